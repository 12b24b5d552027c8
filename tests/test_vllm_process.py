"""The process that vLLM runs in, with a stand-in for the package: what it is started with and what its end becomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rlft.config import AdapterConfig, ModelConfig
from rlft.model.adapter import bare_base
from rlft.model.chat import load_tokenizer
from rlft.rollout.engines.contract import EngineLostError, Request
from rlft.rollout.engines.traits import VllmArguments
from rlft.rollout.engines.vllm import VllmEngine
from rlft.types import SamplingParams

STAND_IN = """
import json, os, sys
from types import SimpleNamespace

class LLM:
    def __init__(self, **arguments):
        print("loading", file=sys.stderr)
        if arguments["block_size"] == 1:
            raise ValueError("block_size must not be 1")
        if arguments["block_size"] == 2:
            os._exit(5)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))
        with open({seen!r}, "w") as file:
            json.dump([arguments, dict(os.environ)], file, default=str)

    def reset_prefix_cache(self):
        print("reset", file=sys.stderr)
        if os.path.exists({seen!r} + ".fail"):
            raise RuntimeError("out of memory")
        if os.path.exists({seen!r} + ".die"):
            os.abort()
"""

Start = Callable[[int], VllmEngine]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in notes what it was started with."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "vllm.py").write_text(STAND_IN.format(seen=str(tmp_path / "seen")))
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    return tmp_path / "seen"


@pytest.fixture
def start(seen: Path, tiny_model: Path) -> Iterator[Start]:
    engines: list[VllmEngine] = []

    def make(block_size: int) -> VllmEngine:
        engine = VllmEngine(
            tiny_model,
            load_tokenizer(tiny_model),
            model=ModelConfig(source=str(tiny_model), dtype="float32"),
            adapter=AdapterConfig(rank=9),
            threads=3,
            engine_args=VllmArguments(block_size=block_size, extra_args={"seed": 7}),
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def test_it_gets_arguments_and_environment(
    start: Start, seen: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    engine = start(16)
    assert engine.context == 64
    arguments, environment = json.loads(seen.read_text())
    assert {name: arguments[name] for name in ("model", "dtype", "block_size", "seed", "max_lora_rank")} == {
        "model": str(tiny_model),
        "dtype": "float32",
        "block_size": 16,
        "seed": 7,
        "max_lora_rank": 16,  # the smallest that vLLM has for 9
    }
    assert {name: environment.get(name) for name in ENVIRONMENT} == ENVIRONMENT
    (process,) = [child for child in psutil.Process().children() if child.pid == engine._process.pid]
    engine.close()
    assert not process.is_running()


ENVIRONMENT = {
    "OMP_NUM_THREADS": "3",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "DEBUG",  # what the user says counts
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_AUTH_TOKEN": None,
}


def test_what_it_refuses_is_said_in_its_words(start: Start) -> None:
    with pytest.raises(ValueError, match=r"engine_args: vLLM does not start with them: block_size must not be 1"):
        start(1)


def test_a_process_that_ends_is_a_lost_engine_with_what_it_printed(start: Start, seen: Path) -> None:
    with pytest.raises(EngineLostError, match=r"vLLM ended with exit code 5\. The last that it printed:\nloading$"):
        start(2)
    engine = start(16)
    Path(f"{seen}.die").touch()
    with pytest.raises(EngineLostError, match=r"vLLM was killed by SIGABRT\. .*\nloading\nreset\nFatal Python error"):
        engine.load_adapter(bare_base())
    with pytest.raises(EngineLostError, match="vLLM was killed by SIGABRT"):  # also when it is asked again
        engine.load_adapter(bare_base())


def test_an_exception_is_an_error_with_what_it_printed(start: Start, seen: Path) -> None:
    engine = start(16)
    Path(f"{seen}.fail").touch()
    with pytest.raises(RuntimeError, match=r"(?s)vLLM failed:.*RuntimeError: out of memory.*printed:\nloading\nreset"):
        engine.load_adapter(bare_base())
    Path(f"{seen}.fail").unlink()
    engine.load_adapter(bare_base())  # and goes on
    with pytest.raises(ValueError, match="76 tokens exceed the context of 64"):
        engine.generate(
            [Request(prompt_ids=(9,) * 70, seeds=(1,))],
            SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=6),
            version=-1,
        )
