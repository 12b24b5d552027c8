"""What the tests share: no hub, a protected Ray, a tiny model, configs of runs that take a second, one such run, and
`rlft` in processes of its own that may be killed.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

# Read when huggingface_hub, ray and the BLAS libraries are imported; the fixtures import those when they are asked for,
# so that tests without a model start at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from rlft.config import RunConfig

MakeConfig: TypeAlias = "Callable[..., RunConfig]"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of vLLM where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vllm is not installed; see `make test-vllm`"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the random Llama; nobody writes into it."""
    from tests.fakes import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def config_file(tmp_path: Path, tiny_model: Path) -> Path:
    """A config that works; its runs go to tmp_path/runs."""
    from tests.fakes import write_config

    return write_config(tmp_path, tiny_model)


@pytest.fixture
def make_config(tmp_path: Path, tiny_model: Path) -> MakeConfig:
    """`make_config("steps=2", reward=SOURCE)`: the same config with overrides, and with the reward `odd` of SOURCE."""
    from rlft.config_file import load
    from tests.fakes import DENSE_REWARD, write_config

    def make(*overrides: str, reward: str = DENSE_REWARD) -> RunConfig:
        return load(write_config(tmp_path, tiny_model, reward=reward), overrides)

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Directory of an inline GRPO run of four steps with a checkpoint after each; nobody changes it."""
    from rlft.config_file import load
    from rlft.train.rl import launch
    from tests.fakes import write_config

    config = load(write_config(tmp_path_factory.mktemp("finished"), tiny_model), ["checkpoint.every=1"])
    launch.train(config)
    return config.run_dir


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private Ray for all tests of this process: pools use it and leave it running."""
    from rlft.common.cluster import protect

    protect()
    import ray

    ray.init(
        address="local",
        num_cpus=16,  # what Ray hands out, not what the machine has: no test waits for another's worker to end
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


WIDE = {"COLUMNS": "200"}
"""The environment in which rlft breaks no path of a test's folder into two lines."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["rlft.train.rl.launch", "rlft.curves.report", "trl.trainer.sft_trainer"])


def start_rlft(*arguments: str, log: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """`rlft ARGUMENTS` as the leader of its own session, printing into `log`.

    It is forked from a process that has done the imports and nothing else, which saves each such process their seconds.
    """
    process = _SERVER.Process(target=_rlft, args=(arguments, str(log), environment or {}))
    process.start()
    return process


def _rlft(arguments: tuple[str, ...], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(WIDE | environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["rlft", *arguments]
    from rlft.cli.main import main

    main()


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Everything in float64, also what either side makes of whole numbers, so that no rounding hides anything."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def no_matrix_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own products also on a processor with a matrix unit, where oneDNN's are faster and taken instead."""
    import torch

    from rlft.model.kernels import library

    if torch.cpu._is_amx_tile_supported():
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(library, "_loaded", None)  # it is loaded again, and after the test as it was
