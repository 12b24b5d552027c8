"""The supervisor of Ray actors: what dies, hangs or dawdles is replaced, and the groups are the same."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rlft.common import low_memory
from rlft.model.adapter import make_adapter
from rlft.rollout import ray_pool
from rlft.rollout.ray_pool import RayPool
from rlft.types import Adapter
from tests.conftest import MakeConfig
from tests.fakes_pool import FakeWorker, LentPool, fake_chunks, process_ids, tokens

pytestmark = pytest.mark.timeout(120)

NAMES = [f"t{i}" for i in range(8)]


def adapter(version: int) -> Adapter:
    return make_adapter(version, {"w": torch.full((4,), float(version))})


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], None]:
    """`script("t3", "die")`: what the worker that gets task t3 first does."""
    (tmp_path / "script").mkdir()

    def write(task: str, what: str) -> None:
        (tmp_path / "script" / task).write_text(what)

    return write


@pytest.fixture
def events() -> list[str]:
    """What the pool told."""
    return []


@pytest.fixture
def make_pool(
    make_config: MakeConfig, script: Any, events: list[str], tmp_path: Path, ray_cluster: None
) -> Iterator[Callable[..., RayPool]]:
    """`make_pool("rollout.workers=2", ...)`: a pool of fake workers that holds adapter 0."""
    pools: list[RayPool] = []

    def make(*overrides: str, kind: type[RayPool] = LentPool) -> RayPool:
        config = make_config("backend=ray", "rollout.workers=2", *overrides)
        told = lambda kind, message: events.append(f"{kind}: {message}")  # noqa: E731
        pools.append(kind(config, str(tmp_path / "script"), told, make_worker=FakeWorker))
        pools[-1].publish(adapter(0))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """(process id, task, adapter version) of every chunk that was begun, in order."""
    return lambda: [line.split() for line in (tmp_path / "script" / "log").read_text().splitlines()]


EXPECTED = [
    (name, [(seed % 1000, 1) for seed in chunk.seeds(chunk.tasks[0])])
    for name, chunk in zip(NAMES, fake_chunks(NAMES), strict=True)
]


def test_groups_come_in_the_order_of_the_chunks(make_pool: Any, script: Any) -> None:
    script("t0", "sleep 0.5")
    pool = make_pool()
    seen: list[tuple[int, int]] = []
    groups = pool.submit(fake_chunks(NAMES)).collect(lambda done, total: seen.append((done, total)))
    assert tokens(groups) == EXPECTED
    assert seen == [(n, 8) for n in range(1, 9)]


def test_lost_workers_are_replaced_and_exactly_their_chunks_redone(
    make_pool: Any, script: Any, events: list[str], log: Any
) -> None:
    script("t1", "die")
    script("t3", "lose its engine")
    script("t5", "stop")  # not even a request to exit is heard
    pool = make_pool("rollout.deadline_s=3")
    before = process_ids(pool)
    assert tokens(pool.run(fake_chunks(NAMES))) == EXPECTED
    assert Counter(task for _, task, _ in log()) == {name: 2 if name in ("t1", "t3", "t5") else 1 for name in NAMES}
    lost = [next(int(pid) for pid, task, _ in log() if task == name) for name in ("t1", "t3", "t5")]
    assert lost[0] in before
    until = time.monotonic() + 10
    while any(map(psutil.pid_exists, lost)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, lost))
    assert len(events) == 3
    assert sum("died and was replaced; its chunk is redone" in event for event in events) == 2
    assert sum("did not finish a chunk within rollout.deadline_s=3" in event for event in events) == 1


def test_a_crash_loop_ends_with_its_cause(make_pool: Any, script: Any, events: list[str]) -> None:
    script("t3", "always die")
    pool = make_pool("rollout.max_restarts=1", "rollout.workers=1")
    with pytest.raises(RuntimeError) as caught:
        pool.run(fake_chunks(NAMES, step=7))
    message = str(caught.value)
    assert message.startswith(
        "the chunk of step 7 with the tasks 't3' cost 2 rollout workers, of 2 that were lost in this run, more than "
        "rollout.max_restarts=1 allows. The environment (its step), or the engine, may hang or crash on them. To try"
    )
    assert f"`rlft env play {pool._config.environment.path} --task=t3`" in message
    assert len(events) == 1
    with pytest.raises(RuntimeError, match=r"cost 2 rollout workers"):  # and it stays ended
        pool.run(fake_chunks(NAMES))


LOW_ON_MEMORY = """Task was killed due to the node running low on memory.
Memory on the node (IP: 127.0.0.1, ID: 5f) was 14.49GB used / 15.00GB limit (0.966), above the threshold of 0.95.
Top 10 memory users:
PID\tMEM(GB)\tCOMMAND
77\t8.10\t/usr/bin/python serve.py --key=secret
78\t0.90\tray::WorkerProcess
Refer to the documentation and set RAY_memory_usage_threshold."""


def test_what_ray_says_of_memory_is_one_sentence() -> None:
    assert low_memory.describe(LOW_ON_MEMORY).endswith(
        "low on memory (14.49 of 15.00 GB used); the largest process was python (process 77, 8.10 GB)"
    )
    assert low_memory.describe("said otherwise").endswith("as the machine was low on memory")


def test_a_worker_that_was_ended_for_memory_is_replaced_after_a_pause(
    make_pool: Any, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import OutOfMemoryError

    monkeypatch.setattr(ray_pool, "PAUSE_S", 0.1)
    attempt, begun = RayPool._attempt, []

    async def short(pool: RayPool, slot: Any, job: Any) -> Any:
        begun.append(time.monotonic())
        if len(begun) < 3:
            raise OutOfMemoryError(LOW_ON_MEMORY)
        return await attempt(pool, slot, job)

    monkeypatch.setattr(RayPool, "_attempt", short)
    pool = make_pool("rollout.workers=1", "rollout.max_restarts=2")
    assert tokens(pool.run(fake_chunks(NAMES))) == EXPECTED
    assert [begun[1] - begun[0] >= 0.1, begun[2] - begun[1] >= 0.3] == [True, True]
    assert [event.partition(":")[0] for event in events] == ["low_memory", "low_memory"]
    assert "It is replaced in 0.3 s; its chunk is redone" in events[1]
    begun.clear()
    with pytest.raises(
        RuntimeError, match=r"rollout workers died 3 times.*14\.49 of 15\.00 GB.*rollout\.tasks_per_chunk"
    ) as e:
        pool.run(fake_chunks(NAMES))
    assert "secret" not in str(e.value) + "".join(events)


def test_a_hang_that_is_one_too_many_names_the_tasks(make_pool: Any, script: Any) -> None:
    script("t3", "sleep 60")
    pool = make_pool("rollout.max_restarts=0", "rollout.workers=1", "rollout.deadline_s=1.5")
    with pytest.raises(RuntimeError) as caught:
        pool.run(fake_chunks(NAMES))
    assert str(caught.value).startswith(
        "rollout workers died 1 times, more than rollout.max_restarts=0 allows; the last one did not finish a chunk "
        "within rollout.deadline_s=1.5. It had the chunk of step 1 with the tasks 't3'. The environment (its step)"
    )


def test_why_an_engine_is_slow_comes_with_its_chunks(make_pool: Any, script: Any, events: list[str]) -> None:
    make_pool().run(fake_chunks(NAMES[:2]))
    assert events == []
    script("slow", "it is made up")
    make_pool().run(fake_chunks(NAMES[:3]))
    assert events == ["slow_path: rollout engine: it is made up"] * 3


def wait_for(events: list[str]) -> list[str]:
    """The events, as soon as there are any."""
    until = time.monotonic() + 20
    while not events and time.monotonic() < until:
        time.sleep(0.02)
    return events


def test_a_worker_that_is_lost_while_it_loads_is_replaced(make_pool: Any, script: Any, events: list[str]) -> None:
    script("load", "lose its engine")
    pool = make_pool()
    assert tokens(pool.run(fake_chunks(NAMES))) == EXPECTED
    assert len(wait_for(events)) == 1
    assert events[0].endswith(" died as it loaded and was replaced")


def test_a_worker_that_hangs_while_it_loads_is_replaced(
    make_pool: Any, script: Any, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "LOAD_S", 2.0)
    script("load", "sleep 60")
    pool = make_pool("rollout.deadline_s=1")  # which is for chunks: loading may take longer
    assert tokens(pool.run(fake_chunks(NAMES))) == EXPECTED  # by the other one
    assert len(wait_for(events)) == 1
    assert events[0].endswith(" did not load its model within 2 s and was replaced")


def test_losses_while_loading_name_no_tasks(make_pool: Any, script: Any) -> None:
    script("load_adapter", "lose its engine")
    pool = make_pool("rollout.max_restarts=0", "rollout.workers=1")
    with pytest.raises(RuntimeError, match=r"died 1 times, .* the last one died: its engine$") as caught:
        pool.run(fake_chunks(NAMES))
    assert "tasks" not in str(caught.value)


def test_the_users_own_error_arrives_as_itself_and_the_pool_goes_on(
    make_pool: Any, script: Any, events: list[str]
) -> None:
    script("t3", "raise no such key")
    pool = make_pool()
    with pytest.raises(KeyError, match="no such key"):
        pool.run(fake_chunks(NAMES))
    assert tokens(pool.run(fake_chunks(NAMES))) == EXPECTED
    assert events == []


def test_a_model_that_cannot_be_loaded_is_the_users_error(make_pool: Any, script: Any) -> None:
    script("broken", "")
    pool = make_pool()
    with pytest.raises(ValueError, match="this model cannot be loaded"):
        pool.run(fake_chunks(NAMES))


def test_a_straggler_is_given_to_a_second_worker_and_the_first_result_counts(
    make_pool: Any, script: Any, log: Any
) -> None:
    script("t3", "wait end")
    pool = make_pool("rollout.hedge_after=4")
    assert tokens(pool.run(fake_chunks(NAMES))) == EXPECTED  # while the first worker is still at it
    script("end", "")
    begun = [(task, pid) for pid, task, _ in log() if task == "t3"]
    assert len(begun) == len(set(begun)) == 2  # by two different workers


def test_without_hedging_nothing_is_done_twice(make_pool: Any, script: Any, log: Any) -> None:
    script("t3", "sleep 1")
    assert tokens(make_pool().run(fake_chunks(NAMES))) == EXPECTED
    assert Counter(task for _, task, _ in log()) == dict.fromkeys(NAMES, 1)


def test_what_was_submitted_keeps_its_adapter_and_earlier_steps_come_first(
    make_pool: Any, log: Any, script: Any
) -> None:
    script("s0", "sleep 0.5")
    pool = make_pool("rollout.workers=1")
    pool.run(fake_chunks(["warm"]))
    first = pool.submit(fake_chunks(["s0", "s1"], step=1))
    while not pool._queue.running:  # what is submitted from here on finds the worker busy
        time.sleep(0.01)
    second = pool.submit(fake_chunks(["u0", "u1"], step=2))
    pool.publish(adapter(1))
    refill = pool.submit(fake_chunks(["r0"], step=1, version=1))
    evaluation = pool.submit(fake_chunks(["e0"], step=0, version=1))
    versions = [
        {t.turns[0].completion.adapter_version for group in pending.collect() for t in group.trajectories}
        for pending in (second, evaluation, refill, first)
    ]
    assert versions == [{0}, {1}, {1}, {0}]
    assert [task for _, task, _ in log()] == ["warm", "s0", "e0", "s1", "r0", "u0", "u1"]


def test_updates_in_flight_take_the_newest_adapter_between_chunks(make_pool: Any, script: Any) -> None:
    script("t1", "sleep 1")
    overrides = ("rollout.workers=1", "max_staleness=1", "algorithm.correction=token_truncate")
    pool = make_pool(*overrides, "rollout.update_in_flight=true")
    pending = pool.submit(fake_chunks(NAMES[:4]))
    while not pool._queue.running or next(iter(pool._queue.running)).number < 1:
        time.sleep(0.01)
    pool.publish(adapter(1))
    groups = pending.collect()
    assert [g.trajectories[0].turns[0].completion.adapter_version for g in groups] == [0, 0, 1, 1]
    assert groups[3].trajectories[0].turns[0].completion.adapter_hash == adapter(1).hash


def test_workers_are_at_work_while_the_driver_is_not_waiting(make_pool: Any, script: Any) -> None:
    for name in NAMES:
        script(name, "sleep 0.1")
    pool = make_pool()
    pool.run(fake_chunks(["warm"]))
    busy = pool.busy_s
    pending = pool.submit(fake_chunks(NAMES))
    time.sleep(1.0)  # the driver learns meanwhile
    began = time.monotonic()
    assert tokens(pending.collect()) == EXPECTED
    assert time.monotonic() - began < 0.1  # nothing was left to wait for
    assert 0.35 < pool.busy_s - busy < 0.9


def test_a_chunk_of_another_version_is_refused_at_once(make_pool: Any) -> None:
    with pytest.raises(ValueError, match="asks for adapter version 7, but 0 was published last"):
        make_pool().submit(fake_chunks(NAMES, version=7))


def test_workers_that_find_no_resources_are_an_error_only_when_there_are_no_others(
    make_pool: Any, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A GPU is what this machine cannot give.
    monkeypatch.setattr(ray_pool, "PATIENCE_S", 0.2)
    monkeypatch.setattr(ray_pool, "LIMIT_S", 1.0)
    pool = make_pool("rollout.gpus_per_worker=1", kind=RayPool)
    time.sleep(1.5)  # without work nobody minds
    with pytest.raises(RuntimeError, match=r"waits for a CPU and rollout.gpus_per_worker=1 GPUs.*no other worker"):
        pool.run(fake_chunks(NAMES))
    assert sorted(event.split(",")[0] for event in events) == [
        f"worker_waiting: rollout worker {n} waits for a CPU and rollout.gpus_per_worker=1 GPUs" for n in (0, 1)
    ]


def supervisors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rollout supervisor"]


def test_closing_ends_the_thread_and_the_actors(
    make_config: MakeConfig, script: Any, tmp_path: Path, ray_cluster: None
) -> None:
    config = make_config("backend=ray", "rollout.workers=1")
    before = supervisors()  # of pools that other tests share
    with closing(RayPool(config, str(tmp_path / "script"), make_worker=FakeWorker)) as pool:
        assert len(supervisors()) == len(before) + 1
        pool.publish(adapter(0))
        pool.run(fake_chunks(["t0"]))
        (pid,) = process_ids(pool)
        script("t1", "sleep 60")
        pool.submit(fake_chunks(NAMES))  # is in the middle of it
    assert supervisors() == before
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_leaks_over_500_steps(make_pool: Any, tmp_path: Path) -> None:
    from ray._private.worker import global_worker

    pool = make_pool("rollout.hedge_after=3")
    tensors = {"w": torch.zeros(500_000)}  # 2 MB: 1 GB in all, four times the object store
    sizes: list[tuple[float, float, int]] = []
    driver = psutil.Process()
    for step in range(1, 501):
        tensors["w"][0] = step
        pool.publish(make_adapter(step, tensors))
        groups = pool.run(fake_chunks(NAMES, step=step, version=step))
        assert len(groups) == 8
        if step % 50 == 0:
            references = len(global_worker.core_worker.get_all_reference_counts())
            sizes.append((pool.worker_rss_mb, driver.memory_info().rss / 1e6, references))
    workers, drivers, references = zip(*sizes, strict=True)
    # After 200 steps what grows once has grown, but for pages of the object store, which are mapped 16 MB at a time.
    # 2 MB that stay in every step would be 500 MB more at the end.
    for process in (workers, drivers):
        assert statistics.mean(process[-3:]) - statistics.mean(process[3:6]) < 60, process
    assert max(references) < 60
