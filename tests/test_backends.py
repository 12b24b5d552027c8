"""Nothing depends on who computed it: the backend, the number of workers, and their deaths do not show in the curve."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from rlft.common import cluster
from rlft.config import RunConfig
from rlft.config_file import load
from rlft.curves.live_panel import View
from rlft.learner.rl import Learner
from rlft.model.adapter import adapter_hash, bare_base
from rlft.rollout.chunk import make_chunks
from rlft.rollout.pool import InlinePool
from rlft.train.rl import launch, services
from rlft.types import Group, SamplingParams
from tests.conftest import MakeConfig
from tests.fakes import letters, read_lines, read_metrics, read_result, write_config
from tests.fakes_pool import LentPool, process_ids
from tests.sweeps import swept

pytestmark = pytest.mark.timeout(180)

PPO = ("algorithm=ppo", "updates_per_step=2")
Train = Callable[..., Path]


@pytest.fixture
def ray_train(train: Train, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train` on Ray."""
    monkeypatch.setattr(services, "make_pool", LentPool)

    def run(*overrides: str) -> Path:
        return train("backend=ray", *overrides)

    return run


@pytest.fixture
def train(tmp_path: Path, tiny_model: Path) -> Train:
    """`train("seed=1", ...)`: the run of `finished_run` with overrides, and where it lies."""

    def run(*overrides: str) -> Path:
        config = load(write_config(tmp_path, tiny_model), ["checkpoint.every=1", *overrides])
        launch.train(config)
        return config.run_dir

    return run


@pytest.mark.parametrize("workers", swept([3, 2, 1], always=lambda workers: workers == 2))
def test_ray_gives_the_run_that_inline_gives(ray_train: Train, finished_run: Path, workers: int) -> None:
    run = ray_train(f"rollout.workers={workers}")
    assert read_metrics(run) == read_metrics(finished_run)
    assert read_result(run) == read_result(finished_run)


def test_ray_gives_the_run_that_inline_gives_with_a_critic(ray_train: Train, train: Train, tmp_path: Path) -> None:
    on_ray = read_result(ray_train("rollout.workers=2", *PPO))
    inline = read_result(train("name=inline", *PPO))
    del on_ray["summary.json"]["name"], inline["summary.json"]["name"]
    assert on_ray["metrics.jsonl"] == inline["metrics.jsonl"]
    assert on_ray == inline
    assert "critic/loss" in inline["metrics.jsonl"][0]


def test_another_seed_gives_another_run(train: Train, finished_run: Path) -> None:
    # Otherwise the comparisons above would say nothing.
    run = train("seed=1")
    for mine, other in zip(read_metrics(run), read_metrics(finished_run), strict=True):
        assert mine["reward/mean"] != other["reward/mean"]
    final = "adapters/v000004/adapter_model.safetensors"
    assert (run / final).read_bytes() != (finished_run / final).read_bytes()


def test_every_completion_names_the_adapter_that_made_it(finished_run: Path) -> None:
    config = load(finished_run / "config.yaml")
    made = {0: Learner(config, config.model.source).adapter(0).hash, -1: bare_base().hash}
    for step in (1, 2, 3, 4):
        file = finished_run / "adapters" / f"v{step:06d}" / "adapter_model.safetensors"
        made[step] = adapter_hash(load_file(file))
    assert len(set(made.values())) == 6
    for step in (1, 2, 3, 4):
        assert _stamps(finished_run / "rollouts" / f"step-{step:06d}.parquet") == {(step - 1, made[step - 1])}
    assert _stamps(finished_run / "evals" / "base.parquet") == {(-1, made[-1])}
    assert _stamps(finished_run / "evals" / "step-000004.parquet") == {(4, made[4])}


def test_killed_workers_are_replaced_and_leave_no_trace_in_the_curve(
    ray_train: Train, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_make, real_rollout = services.make_pool, View.rollout
    pool: Any = None
    pids: list[int] = []
    killed: list[int] = []

    def make(config: RunConfig, *rest: Any) -> Any:
        nonlocal pool
        pool = real_make(config, *rest)
        pids[:] = process_ids(pool)
        return pool

    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    def kill_some(view: View, done: int, total: int) -> None:
        real_rollout(view, done, total)
        step = view._step + 1
        if (step, done) == (2, 1):  # one of two has just finished a chunk, so the other one is at work
            kill(pids[1])
        if (step, done) == (3, total):  # both are idle: it shows when the next adapter is published
            kill(process_ids(pool)[0])

    monkeypatch.setattr(services, "make_pool", make)
    monkeypatch.setattr(View, "rollout", kill_some)
    run = ray_train("rollout.workers=2")
    assert len(killed) == 2
    assert not any(psutil.pid_exists(pid) for pid in killed)
    events = read_lines(run / "events.jsonl")
    assert [event["kind"] for event in events] == ["worker_restarted", "worker_restarted", "ended"]
    assert "rollout worker 1 died" in events[0]["message"]
    assert "rollout worker 0 died" in events[1]["message"]
    assert read_result(run) == read_result(finished_run)


def test_a_worker_that_dies_too_often_stops_the_run_by_name(make_config: MakeConfig, ray_cluster: None) -> None:
    config = make_config("backend=ray", "rollout.max_restarts=0")
    events: list[tuple[str, str]] = []
    pool = LentPool(config, config.model.source, lambda kind, message: events.append((kind, message)))
    pool.publish(bare_base())
    with pytest.raises(ValueError, match="asks for adapter version 7, but -1 was published last"):
        pool.run(base_chunks(config, version=7))
    too_long = [replace(chunk, params=replace(chunk.params, max_new_tokens=999)) for chunk in base_chunks(config)]
    with pytest.raises(ValueError, match="exceed the model's context"):
        pool.run(too_long)  # a worker's own error arrives as itself and restarts nobody
    os.kill(process_ids(pool)[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"died 1 times, more than rollout\.max_restarts=0 allows"):
        pool.run(base_chunks(config, version=-1))
    assert events == []


def test_ray_without_protection_is_refused(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(RuntimeError, match="set RAY_AUTH_MODE=token before importing it"):
        cluster.protect()


def test_a_chunk_does_not_depend_on_what_the_worker_did_before(make_config: MakeConfig) -> None:
    config = make_config()
    fresh, used = InlinePool(config, config.model.source), InlinePool(config, config.model.source)
    first, second = base_chunks(config, version=-1)[:2]
    for pool in (fresh, used):
        pool.publish(bare_base())
    used.run([first, second, first])
    assert _ids(fresh.run([second])) == _ids(used.run([second]))


def test_a_pool_that_rested_generates_the_same(make_config: MakeConfig) -> None:
    config = make_config()
    rested, busy = InlinePool(config, config.model.source), InlinePool(config, config.model.source)
    adapter = Learner(config, config.model.source).adapter(version=0)
    first, second = base_chunks(config, version=0)[:2]
    for pool in (rested, busy):
        pool.publish(adapter)
        pool.run([first])
    waiting = rested.submit([first])
    rested.rest()  # not yet
    engine = rested._worker._engine
    assert engine.version == 0
    waiting.collect()
    rested.rest()
    assert engine.version is None
    assert _ids(rested.run([second])) == _ids(busy.run([second]))
    assert engine.version == 0
    rested.rest()
    rested.publish(replace(adapter, version=1))
    assert engine.version == 1


def base_chunks(config: RunConfig, *, version: int = -1) -> list[Any]:
    """Four chunks of two tasks for the bare base."""
    return make_chunks(
        letters().train,
        tasks_per_chunk=2,
        samples_per_task=2,
        params=SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=4),
        run_seed=config.seed,
        stream="train",
        step=1,
        version=version,
    )


def _ids(groups: list[Group]) -> list[Any]:
    return [(t.token_ids, t.logprobs) for group in groups for t in group.trajectories]


def _stamps(path: Path) -> set[tuple[int, str]]:
    rows = pq.read_table(path, columns=["adapter_version", "adapter_hash"]).to_pylist()
    return {(row["adapter_version"], row["adapter_hash"]) for row in rows}
