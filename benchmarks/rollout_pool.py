"""What the rollout pool costs: throughput over workers, share of a step, and where 256 workers would end.

    python -m benchmarks.rollout_pool [--quick]

The engine is a fake that sleeps for a fixed time and returns 8 tasks x 8 samples x 64 tokens with their log-probs;
everything else is the real thing: Ray actors, chunks, adapters in the object store, the loop with its run directory
and scoring. So nothing here depends on how fast a model is. 256 workers are simulated, with the costs measured here.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table

from rlft.config import RunConfig
from rlft.environment.contract import Environment
from rlft.learner.update import Update
from rlft.model.adapter import make_adapter
from rlft.rollout.chunk import Chunk, make_chunks
from rlft.rollout.ray_pool import RayPool
from rlft.types import Adapter, Batch, Completion, Group, SamplingParams, Task, Trajectory, Turn

TASKS, SAMPLES, TOKENS = 8, 8, 64
LATENCY_S = 0.5
"""What the fake engine takes for a chunk, if nothing else is said."""
WORKERS = (1, 2, 4, 8)
ADAPTER = 4_884_480
"""Parameters of SmolLM2-135M's adapter at rank 16."""
LINK = 1.25e9
"""Bytes per second between nodes in the simulation: 10 Gbit/s."""
WORKERS_PER_NODE = 8


def tasks(count: int) -> list[Task]:
    """Made-up tasks."""
    return [
        Task(id=f"t{i}", messages=({"role": "user", "content": f"question {i}"},), answer="a") for i in range(count)
    ]


def environment() -> Environment:
    """An environment for the loop."""
    return Environment(train=tasks(64), heldout=tasks(80)[64:], demonstrations=[])


def reward(completion: str) -> float:
    """A reward that differs within a group."""
    return float(len(completion) % 7)


class SleepingWorker:
    """Takes a fixed time for every chunk, which its `engine_args` say."""

    def __init__(self, config: RunConfig, model_folder: str) -> None:
        self._latency_s = float(config.rollout.engine_args.get("latency_s", LATENCY_S))
        self._held = (-1, "")

    def load_adapter(self, adapter: Adapter) -> int:
        """Nothing is loaded, but the tensors arrive."""
        self._held = (adapter.version, adapter.hash)
        return adapter.version

    def run_chunk(self, chunk: Chunk) -> list[Group]:
        """A group for every task, after the fixed time."""
        until = time.monotonic() + self._latency_s
        groups = [self._group(chunk, task) for task in chunk.tasks]
        time.sleep(max(0.0, until - time.monotonic()))
        return groups

    def _group(self, chunk: Chunk, task: Task) -> Group:
        return Group(
            task=task, trajectories=tuple(self._sample(task, i, seed) for i, seed in enumerate(chunk.seeds(task)))
        )

    def _sample(self, task: Task, index: int, seed: int) -> Trajectory:
        completion = Completion(
            token_ids=tuple((seed + i) % 49152 for i in range(TOKENS)),
            logprobs=tuple(-1.0 - i / 100 for i in range(TOKENS)),
            finish_reason="stop",
            adapter_version=self._held[0],
            adapter_hash=self._held[1],
        )
        turn = Turn(prompt_ids=tuple(range(40)), completion=completion)
        return Trajectory(task=task, sample_index=index, seed=seed, turns=(turn,), text="word " * (seed % 60))


class LentPool(RayPool):
    """Takes its actors from those that an earlier pool left: to start one takes seconds."""

    stock: ClassVar[deque[Any]] = deque()

    def _start_actor(self) -> Any:
        return self.stock.popleft() if self.stock else super()._start_actor()

    def _release(self, actor: Any) -> None:
        self.stock.append(actor)


def config(folder: str, workers: int, latency_s: float, steps: int = 1) -> RunConfig:
    """The config of a pool, and of the loop."""
    return RunConfig.model_validate(
        {
            "name": f"bench-{workers}",
            "output_dir": folder,
            "steps": steps,
            "tasks_per_step": TASKS * 2,
            "samples_per_task": SAMPLES,
            "model": {"source": "fake"},
            "environment": {"path": "benchmarks.rollout_pool:environment"},
            "rewards": [{"path": "benchmarks.rollout_pool:reward"}],
            "rollout": {
                "workers": workers,
                "threads": 1,
                "engine_args": {"latency_s": latency_s},
                "tasks_per_chunk": TASKS,
            },
            "algorithm": {"preset": "grpo", "kl": "none", "kl_coef": 0},
        }
    )


def chunks(count: int, version: int) -> list[Chunk]:
    """Chunks of 8 x 8 samples."""
    return make_chunks(
        tasks(count * TASKS),
        tasks_per_chunk=TASKS,
        samples_per_task=SAMPLES,
        params=SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=TOKENS),
        run_seed=0,
        stream="train",
        step=1,
        version=version,
    )


def open_pool(settings: RunConfig) -> RayPool:
    """A pool whose workers are ready."""
    pool = LentPool(settings, "fake", make_worker=SleepingWorker)
    pool.publish(adapter(0, 1000))
    while not all(slot.is_ready for slot in pool.slots):
        time.sleep(0.05)
    pool.run(chunks(settings.rollout.workers, 0))
    return pool


def adapter(version: int, size: int) -> Adapter:
    """An adapter of so many parameters."""
    return make_adapter(version, {"w": torch.full((size,), float(version))})


def efficiency(folder: str, workers: int, rounds: int) -> dict[str, float]:
    """Chunks per second with so many workers, and the share of what they could do at best."""
    pool = open_pool(config(folder, workers, LATENCY_S))
    began = time.perf_counter()
    pool.run(chunks(rounds * workers, 0))
    seconds = time.perf_counter() - began
    pool.close()
    return {"workers": workers, "chunks_per_s": rounds * workers / seconds, "efficiency": rounds * LATENCY_S / seconds}


def driver_costs(folder: str, count: int) -> dict[str, float]:
    """What a chunk costs the driver when workers take no time: CPU seconds of its process, all threads."""
    pool = open_pool(config(folder, 2, 0.0))
    cpu, began = time.process_time(), time.perf_counter()
    pool.run(chunks(count, 0))
    costs = {
        "driver_ms_per_chunk": (time.process_time() - cpu) / count * 1e3,
        "wall_ms_per_chunk": (time.perf_counter() - began) / count * 1e3,
    }
    for size in (1_000_000, ADAPTER, 20_000_000):
        times = []
        for version in range(1, 4):
            made = adapter(version, size)
            began = time.perf_counter()
            pool.publish(made)
            pool.run(chunks(2, version))
            times.append(time.perf_counter() - began)
        costs[f"publish_{size * 4 / 1e6:.0f}_mb_ms"] = (statistics.median(times)) * 1e3
    pool.close()
    return costs


class SleepingLearner:
    """Learns nothing in a fixed time; its adapter has the real one's size."""

    num_updates = 0

    def __init__(self, seconds: float) -> None:
        self._seconds, self.spent = seconds, 0.0

    def annotate(self, batch: Batch) -> Batch:
        """Advantages of zero would leave nothing to do; these are the rewards."""
        return replace(batch, advantages=batch.rewards[batch.sequence_index] + 1)

    def has_gradient(self, batch: Batch) -> bool:
        """Always."""
        return True

    def update(self, batch: Batch) -> Update:
        """Sleep."""
        time.sleep(self._seconds)
        self.spent += self._seconds
        self.num_updates += 1
        return Update(measures={})

    def adapter(self, version: int) -> Adapter:
        """A new one each time, hashed as the real one is."""
        return adapter(version, ADAPTER)

    def logprobs_of(self, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
        """Nothing is proven here."""
        return []

    def state(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Nothing."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Nothing."""


def orchestration(folder: str, steps: int) -> dict[str, float]:
    """Share of a step of the real loop that is neither generation nor scoring nor learning."""
    from rlft.curves.live_panel import View
    from rlft.run.directory import Run
    from rlft.run.records import Provenance
    from rlft.train.rl.loop import train_rl
    from rlft.train.rl.services import make_scorer
    from rlft.train.rl.task_choice import TaskChoice
    from rlft.train.standing import Standing

    generation_s = learning_s = 4.0
    settings = config(folder, 2, generation_s, steps)
    pool = open_pool(settings)
    learner = SleepingLearner(learning_s)
    with (
        Run.create(settings, provenance=Provenance(), restart=True) as run,
        make_scorer(settings, environment(), log_dir=None) as scorer,
    ):
        train_rl(
            run,
            learner,  # type: ignore[arg-type]
            pool,
            scorer,
            TaskChoice(settings, environment().train),
            start=0,
            canary=lambda made, logprobs_of: made,  # type: ignore[arg-type]
            view=View("bench", steps=steps, console=Console(quiet=True)),
            standing=Standing(0),
            after_step=lambda step, adapter: None,
        )
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    pool.close()
    rest = [1 - (generation_s + learning_s + row["time/score"]) / row["time/step"] for row in rows[1:]]
    return {"orchestration": statistics.median(rest), "step_s": statistics.median(r["time/step"] for r in rows[1:])}


def simulate(workers: int, chunk_s: float, driver_s: float, *, rounds: int = 20, broadcast_s: float = 0.0) -> float:
    """Share of the workers' time that is spent generating, when one driver handles their chunks one after the other.

    Every chunk takes between 0.5 and 1.5 times `chunk_s`. A worker whose chunk is done waits until the driver has taken
    the result and sent the next one, `driver_s`. Before all that every worker waits for the adapter, `broadcast_s`.
    """
    random_ = random.Random(0)
    left, driver_free, busy, end = workers * rounds, broadcast_s, 0.0, 0.0
    done: list[float] = [broadcast_s] * workers  # when each asks for its next chunk
    heapq.heapify(done)
    while left:
        driver_free = max(driver_free, heapq.heappop(done)) + driver_s
        work = chunk_s * random_.uniform(0.5, 1.5)
        busy, left = busy + work, left - 1
        heapq.heappush(done, driver_free + work)
        end = max(end, driver_free + work)
    return busy / (workers * end)


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, to see that it runs")
    quick = parser.parse_args().quick
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        from rlft.common.cluster import Cluster

        cluster = Cluster("", processes=max(WORKERS))
        rows = [efficiency(folder, workers, 4 if quick else 16) for workers in WORKERS]
        costs = driver_costs(folder, 40 if quick else 400)
        share = orchestration(folder, 2 if quick else 4)
        cluster.close()
    table = Table(title=f"Chunks of {LATENCY_S} s", title_justify="left")
    for heading in ("workers", "chunks/s", "efficiency"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(str(row["workers"]), f"{row['chunks_per_s']:.2f}", f"{row['efficiency']:.1%}")
    console.print(table)
    driver_s = costs["driver_ms_per_chunk"] / 1e3
    table = Table(title=f"Simulated, {driver_s * 1e3:.1f} ms of the driver per chunk", title_justify="left")
    for heading in ("workers", *(f"{seconds:g} s chunks" for seconds in (0.5, 2, 10))):
        table.add_column(heading, justify="right")
    for workers in (32, 128, 256, 512):
        table.add_row(str(workers), *(f"{simulate(workers, seconds, driver_s):.0%}" for seconds in (0.5, 2, 10)))
    console.print(table)
    table = Table(title="Simulated broadcast to 256 workers on 32 nodes", title_justify="left")
    for heading in ("adapter", "one after the other", "of a step of 10 s", "of a step of 60 s"):
        table.add_column(heading, justify="right")
    for size in (20e6, 100e6, 500e6, 2e9):
        seconds = size * (256 / WORKERS_PER_NODE) / LINK
        table.add_row(f"{size / 1e6:.0f} MB", f"{seconds:.1f} s", f"{seconds / 10:.0%}", f"{seconds / 60:.0%}")
    console.print(table)
    result = {
        "efficiency": {str(row["workers"]): round(row["efficiency"], 3) for row in rows},
        **{key: round(value, 3) for key, value in (costs | share).items()},
        "saturates_at_workers": {f"{s:g}": int(s / driver_s) for s in (0.5, 2, 10)},
        "efficiency_256": {f"{s:g}": round(simulate(256, s, driver_s), 3) for s in (0.5, 2, 10)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
