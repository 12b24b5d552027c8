"""A learner in several processes gives the numbers of one, resumes alike, and ends by name when one of them fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlft.config import AdapterConfig
from rlft.config_file import load
from rlft.learner import processes, sharding
from rlft.learner.batch import collate
from rlft.learner.group import LearnerGroup
from rlft.learner.reward_model import HEAD
from rlft.learner.rl import Learner
from rlft.learner.update import step_metrics
from rlft.model.adapter import save_tensors
from rlft.rollout.pool import InlinePool
from rlft.run.directory import Run
from rlft.train.rl import launch, services
from rlft.types import Batch, Metrics
from tests.fakes import byte_tokenizer, made_up_group, read_metrics, read_result, tiny_config, write_config
from tests.sweeps import swept
from tests.test_learner import assert_same_bits, made_up_batch, random_tensors, widen

pytestmark = pytest.mark.timeout(180)

STOCK: dict[int, Any] = {}
"""Actors that no group has at the moment, by rank: to start one takes seconds. Each keeps its rank, since torch keeps
what it knew of a mesh of that shape."""


class LentGroup(LearnerGroup):
    """A group that takes its processes from the stock and, while they live, gives them back."""

    large = sharding.LARGE

    def _start_workers(self, size: int) -> list[Any]:
        missing = [rank for rank in range(size) if rank not in STOCK]
        STOCK.update(zip(missing, super()._start_workers(len(missing)), strict=True))
        workers = [STOCK.pop(rank) for rank in range(size)]
        self._ray.get([worker.__ray_call__.remote(_leave_group, self.large) for worker in workers])
        return workers

    def close(self) -> None:
        for rank, worker in enumerate(self._workers):
            with suppress(self._ray.exceptions.RayActorError):
                self._ray.get(worker.__ray_ready__.remote())
                STOCK[rank] = worker
        self._workers = []

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(worker, ...)` in all processes at the same time."""
        return self._answers([worker.__ray_call__.remote(function, *arguments) for worker in self._workers])


class ShardingGroup(LentGroup):
    """Splits frozen models too, whatever their size."""

    large = 0.0


def _leave_group(worker: Any, large: float) -> None:
    sharding.LARGE = large
    if dist.is_initialized():
        dist.destroy_process_group()


def _widen(worker: Any) -> None:
    widen_all(worker.learner)


def widen_all(learner: Learner) -> None:
    """See `widen`; with the critic's head."""
    widen(learner)
    if learner.roles.value_head is not None:
        learner.roles.value_head.double()


def _gradients(worker: Any) -> dict[str, Tensor]:
    return gradients(worker.learner)


def _is_split(worker: Any) -> tuple[bool, int]:
    roles = worker.learner.roles
    return roles.is_sharded, sum(p.numel() for p in map(_local, roles.model.parameters()))


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def gradients(learner: Learner) -> dict[str, Tensor]:
    """The gradients that the last update summed and clipped, whole."""
    named = learner.roles._named_parameters()
    return {name: sharding.whole(p.grad) for name, p in named if p.grad is not None}


@pytest.fixture(scope="module", autouse=True)
def stock(ray_cluster: None) -> Iterator[None]:
    import ray

    yield
    for worker in STOCK.values():
        ray.kill(worker)
    STOCK.clear()


def one_pair() -> Batch:
    """A batch that three processes cannot share."""
    return collate([made_up_group([0.0, 1.0], task_id="pair", lengths=[4, 2])])


def train(learner: Learner | LearnerGroup, *, dtype: torch.dtype = torch.float32) -> list[Metrics]:
    """Three updates, each on a step of its own, and all of them together as one step's."""
    updates = []
    for scored in (made_up_batch(0), one_pair(), made_up_batch(1)):
        batch = learner.annotate(replace(scored, rewards=scored.rewards.to(dtype)))
        assert learner.has_gradient(batch)
        updates.append(learner.update(batch))
    return [*(update.metrics for update in updates), step_metrics(updates)]


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(actual[name].double(), tensor.double(), rtol=0, atol=tolerance), name


def assert_close_metrics(actual: list[Metrics], expected: list[Metrics], tolerance: float) -> None:
    for mine, other in zip(actual, expected, strict=True):
        assert mine == pytest.approx(other, rel=tolerance, abs=tolerance)


# The numbers

KINDS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": {"preset": "grpo", "entropy_coef": 0.01}},
    "ppo": {"algorithm": {"preset": "ppo"}},
    "online_dpo": {"algorithm": {"preset": "online_dpo", "label_smoothing": 0.1}},
    "kto": {"algorithm": {"preset": "online_dpo", "loss": "kto"}, "tasks_per_step": 4},
    "ppo, split base": {"algorithm": {"preset": "ppo"}},
    "grpo, split base": {"algorithm": {"preset": "grpo"}},
    "grpo, full": {"algorithm": {"preset": "grpo"}, "adapter": {"kind": "full"}, "learner": {"lr": 1e-4}},
}


def make(kind: str, folder: Path, size: int, *, activations: str = "keep", **more: Any) -> tuple[Learner, LentGroup]:
    """The same learner in this process and in `size` others."""
    changes = {"updates_per_step": 2, **KINDS[kind], **more}
    settings = {"threads": 1, "tokens_per_microbatch": 16, "activations": activations, **changes.pop("learner", {})}
    alone = tiny_config(folder, **changes, learner=settings)
    shared = tiny_config(folder, **changes, learner={**settings, "workers": size}, backend="ray")
    warm_start = None if "full" in kind else random_tensors(folder)
    group = ShardingGroup if "split" in kind else LentGroup
    return Learner(alone, folder, warm_start=warm_start), group(shared, folder, warm_start=warm_start)


NUMBERS = list(product(["grpo", "ppo", "online_dpo", "kto", "ppo, split base", "grpo, full"], [3, 2]))
ALWAYS = {("grpo", 3), ("kto", 2), ("ppo, split base", 3), ("grpo, full", 2)}
"""With three processes one has nothing to do in some microbatches; two meet each other in every exchange."""


@pytest.mark.parametrize(("kind", "size"), swept(NUMBERS, always=ALWAYS.__contains__))
def test_several_processes_give_the_numbers_of_one(tiny_model: Path, kind: str, size: int) -> None:
    alone, group = make(kind, tiny_model, size)
    expected, actual = train(alone), train(group)
    assert_close_metrics(actual, expected, 1e-6)
    assert_close(group.everywhere(_gradients)[0], gradients(alone), 1e-6)
    assert_close(dict(group.adapter(3).tensors), dict(alone.adapter(3).tensors), 1e-6)
    assert group.adapter(3).version == 3
    assert group.num_updates == 3

    # What was saved by either is continued by the other.
    tensors, numbers = group.state()
    # Where a gradient is about Adam's 1e-8, its rounding moves a parameter by a part of the learning rate.
    assert_close(tensors, alone.state()[0], 1e-5)
    assert numbers == alone.state()[1]
    saved = alone.state()
    alone.load_state(tensors, numbers)
    assert_same_bits(alone.state()[0], tensors)
    group.annotate(one_pair())  # a forward pass without a backward pass leaves nothing behind
    group.load_state(*saved)
    assert_same_bits(group.state()[0], saved[0])
    assert_close_metrics(train(group), train(alone), 1e-6)
    group.close()


@pytest.mark.parametrize("kind", ["grpo", "ppo", "online_dpo", "kto"])
def test_the_sums_are_exact(tiny_model: Path, kind: str) -> None:
    # In float64 nothing but the order of the terms is left.
    alone, group = make(kind, tiny_model, 3)
    widen_all(alone)
    group.everywhere(_widen)
    assert_close_metrics(train(group, dtype=torch.float64), train(alone, dtype=torch.float64), 1e-9)
    assert_close(group.everywhere(_gradients)[0], gradients(alone), 1e-10)
    group.close()


def test_one_process_of_its_own_gives_the_same_bits(tiny_model: Path) -> None:
    alone, group = make("ppo", tiny_model, 1)
    assert train(group) == train(alone)
    assert_same_bits(group.state()[0], alone.state()[0])
    group.close()


@pytest.mark.parametrize("kind", ["grpo, full", "ppo, split base"])
def test_weights_are_split(tiny_model: Path, kind: str) -> None:
    alone, group = make(kind, tiny_model, 2, activations="recompute")
    assert_close_metrics(train(group), train(alone), 1e-6)
    numel = sum(p.numel() for p in alone.roles.model.parameters())
    layers = sum(p.numel() for n, p in alone.roles.model.named_parameters() if ".layers." in n and "lora_" not in n)
    for is_sharded, held in group.everywhere(_is_split):
        assert is_sharded
        assert held == (numel / 2 if "full" in kind else numel - layers / 2)
    group.close()


def test_an_update_that_is_not_finite_is_skipped_by_all(tiny_model: Path) -> None:
    _, group = make("ppo", tiny_model, 2)
    batch = group.annotate(made_up_batch())
    before = group.state()
    assert batch.advantages is not None
    broken = batch.advantages.clone()
    broken[-1] = torch.nan  # in one process's share
    assert group.update(replace(batch, advantages=broken)).skipped == "the loss is not finite"
    assert_same_bits(group.state()[0], before[0])
    assert group.state()[1] == before[1]
    group.close()


@pytest.mark.parametrize("kind", ["grpo", "grpo, split base"])
def test_reward_models_on_the_base_are_shared_too(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    head = {HEAD: torch.linspace(-1, 1, 32)[None]}
    save_tensors(tmp_path, AdapterConfig(rank=4), str(tiny_model), random_tensors(tiny_model))
    save_file(head | load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    byte_tokenizer().save_pretrained(tmp_path)
    alone, group = make(kind, tiny_model, 3, rewards=[{"path": f"adapter:{tmp_path}"}])
    groups = [made_up_group([0.0] * 4, task_id="a"), made_up_group([0.0], task_id="b")]
    groups = [
        replace(g, trajectories=tuple(replace(t, text="x" * (2 + 3 * i)) for i, t in enumerate(g.trajectories)))
        for g in groups
    ]
    (expected,), (actual,) = alone.scores(groups), group.scores(groups)
    assert len({*expected[0], *expected[1]}) == 5
    for scores, others in zip(actual, expected, strict=True):
        assert scores == pytest.approx(others, abs=1e-6)
    group.close()


# A whole run


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`run("steps=4", ...)` trains on a group of two and returns the run's directory."""
    monkeypatch.setattr(launch, "make_learner", LentGroup)
    monkeypatch.setattr(services, "make_pool", lambda config, folder, on_event: InlinePool(config, folder))

    def run(*overrides: str) -> Path:
        file = write_config(tmp_path, tiny_model)
        config = load(file, ["backend=ray", "learner.workers=2", "checkpoint.every=1", *overrides])
        launch.train(config)
        return config.run_dir

    return run


def test_a_run_is_that_of_one_process(run: Callable[..., Path], finished_run: Path) -> None:
    for mine, other in zip(read_metrics(run()), read_metrics(finished_run), strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_a_resumed_run_ends_with_the_same_bytes(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("algorithm=ppo", "updates_per_step=2")
    whole = read_result(run("name=whole", *settings))
    log = Run.log

    def log_two_steps(self: Run, step: int, metrics: Metrics) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(Run, "log", log_two_steps)
    with pytest.raises(KeyboardInterrupt):
        run("name=broken", *settings)
    monkeypatch.setattr(Run, "log", log)
    broken = tmp_path / "runs" / "broken"
    assert [row["step"] for row in read_metrics(broken)] == [1, 2]
    launch.resume(broken)
    resumed = read_result(broken)
    del whole["summary.json"]["name"], resumed["summary.json"]["name"]
    assert resumed == whole


# What goes wrong


def _nudge(worker: Any, key: str) -> None:
    """Move a number of the policy, or of the optimizer, by a little."""
    parameter = worker.learner.roles._named_parameters()[0][1]
    tensor = parameter.data if key == "parameter" else worker.learner.roles.optimizer.state[parameter][key]
    tensor.view(-1)[0] += 1e-6


def _sleep_instead(worker: Any) -> None:
    worker.learner.roles.step = lambda *_, **__: time.sleep(600)


def _pid(worker: Any) -> int:
    return os.getpid()


def test_processes_that_drift_apart_are_named(tiny_model: Path) -> None:
    _, group = make("grpo", tiny_model, 3)
    train(group)
    saved = group.state()
    group._ray.get(group._workers[2].__ray_call__.remote(_nudge, "exp_avg_sq"))
    group.adapter(3)
    with pytest.raises(RuntimeError, match=r"learner process 2 holds other numbers than process 0"):
        group.state()
    group.load_state(*saved)
    group._ray.get(group._workers[1].__ray_call__.remote(_nudge, "parameter"))
    with pytest.raises(RuntimeError, match=r"learner process 1 holds other .* `rlft resume` continues"):
        group.adapter(3)
    group.close()


def test_a_mistake_is_the_learners_own_error(tiny_model: Path) -> None:
    _, group = make("grpo", tiny_model, 2)
    tensors, numbers = group.state()
    with pytest.raises(ValueError, match="the checkpoint's parameters do not fit this configuration"):
        group.load_state(dict(list(tensors.items())[1:]), numbers)


def test_a_dead_process_ends_the_group_by_name(tiny_model: Path) -> None:
    _, group = make("grpo", tiny_model, 2)
    batch = group.annotate(made_up_batch())
    os.kill(group.everywhere(_pid)[1], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"learner process 1 of 2 died; `rlft resume` continues from the last"):
        group.update(batch)
    assert group._workers == []


def test_a_silent_process_ends_the_group_by_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 1.0)
    config = tiny_config(tiny_model, backend="ray", learner={"workers": 2, "threads": 1})
    group = LentGroup(config, tiny_model, limit=timedelta(seconds=5))
    batch = group.annotate(made_up_batch())
    group._ray.get(group._workers[1].__ray_call__.remote(_sleep_instead))
    monkeypatch.setattr(LentGroup, "close", LearnerGroup.close)  # the one that sleeps is of no use any more
    with pytest.raises(RuntimeError, match=r"process 0 of 2 failed \(.*\); no answer from learner process 1 of 2"):
        group.update(batch)


def test_a_cluster_without_room_is_an_error(tiny_model: Path) -> None:
    config = tiny_config(tiny_model, backend="ray", learner={"workers": 2, "gpus_per_worker": 1})
    with pytest.raises(RuntimeError, match=r"did not start within 1 s; no answer from learner process 0 of 2"):
        LearnerGroup(config, tiny_model, limit=timedelta(seconds=1))
