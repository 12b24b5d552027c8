"""Whether a config's curve survives the death of its rollout workers: the run as it is, and with workers killed.

Kills are planned from a seed: which chunk of which training step, and how far into it, as a share of the time that the
same chunk took in the undisturbed run. The worker that has the chunk gets SIGKILL from outside. Afterwards everything
that the seed of the run decides is compared: metrics, rollouts, evaluations, adapters, byte for byte.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlft.common.cluster import Cluster
from rlft.config import RunConfig
from rlft.rollout.engines.by_name import traits_of
from rlft.rollout.ray_pool import RayPool, WorkerSlot
from rlft.rollout.work_queue import Job
from rlft.rollout.worker import Reply
from rlft.run import logs
from rlft.run.records import ADAPTERS, EVALS, ROLLOUTS
from rlft.train.rl import launch
from rlft.train.rl.metrics import is_of_the_machine

LATEST = 0.9
"""Largest share of a chunk's time after which a kill comes: all of its parts are hit, and it is rarely done by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A planned kill: which chunk's worker, and how far into the chunk."""

    step: int
    chunk: int
    """Position of the chunk among the step's, from 0."""
    share: float
    """How far into the chunk, as a share of the seconds that it took in the undisturbed run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of one kind of result (metrics, rollouts, ...) between the two runs."""

    what: str
    files: int
    """Files, lines of metrics or replacements, that were counted."""
    difference: str
    """The first one, in words, or why the comparison proves nothing; empty when there is neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a chaos test: both runs, the kills, the comparisons."""

    undisturbed: Path
    """Run directory."""
    disturbed: Path
    """Run directory."""
    kills: Sequence[Kill]
    """Those that happened."""
    replaced: int
    """Workers that were replaced."""
    comparisons: Sequence[Comparison]
    reason: str
    """Why the runs may differ although nothing is wrong; empty where they may not."""

    @property
    def is_same(self) -> bool:
        """Whether nothing differs, and somebody was killed and replaced."""
        return not any(comparison.difference for comparison in self.comparisons)


def chaos(config: RunConfig, *, kills: int, seed: int) -> Outcome:
    """Run `config` twice, the second time with workers killed, and compare. Both runs are kept, as NAME-undisturbed and
    NAME-disturbed; earlier ones of those names are moved aside.

    Raises:
        ValueError: see `launch.train`; or there are not as many chunks as kills.
    """
    planned = plan(config, kills=kills, seed=seed)
    rollout = config.rollout.model_copy(update={"max_restarts": config.rollout.max_restarts + kills})
    config = config.model_copy(update={"backend": "ray", "rollout": rollout})
    happened: list[Kill] = []
    seconds: dict[tuple[int, int], float] = {}
    paths = []
    # Held open for both, since it takes seconds to start.
    cluster = Cluster(config.ray_address, processes=config.processes)
    try:
        for name, kills_now in (("undisturbed", ()), ("disturbed", planned)):
            named = config.model_copy(update={"name": f"{config.name}-{name}"})
            pools = partial(KillingPool, planned=kills_now, happened=happened, seconds=seconds)
            launch.train(named, restart=True, pools=pools)
            paths.append(named.run_dir)
    finally:
        cluster.close()
    replaced = sum(event.kind == "worker_restarted" for event in logs.read_events(paths[1]).rows)
    return Outcome(
        undisturbed=paths[0],
        disturbed=paths[1],
        kills=happened,
        replaced=replaced,
        comparisons=[_count_replaced(len(happened), replaced), *compare(*paths)],
        reason=_reason(config),
    )


def plan(config: RunConfig, *, kills: int, seed: int) -> list[Kill]:
    """The kills of a seed, in order: different chunks of the training steps.

    Raises:
        ValueError: there are fewer chunks than kills.
    """
    per_step = -(-config.tasks_per_step // config.rollout.tasks_per_chunk)
    places = [(step, chunk) for step in range(1, config.steps + 1) for chunk in range(per_step)]
    if kills > len(places):
        raise ValueError(
            f"{kills} kills need as many chunks, but {config.steps} steps have {len(places)}; kill less often, or make "
            "more steps (--steps) or smaller chunks (rollout.tasks_per_chunk)"
        )
    random_ = random.Random(seed)
    chosen = sorted(random_.sample(places, kills))
    return [Kill(step=step, chunk=chunk, share=random_.uniform(0, LATEST)) for step, chunk in chosen]


class KillingPool(RayPool):
    """A pool that measures the training chunks, and whose workers are killed while they have the planned ones."""

    def __init__(
        self,
        *arguments: Any,
        planned: Sequence[Kill],
        happened: list[Kill],
        seconds: dict[tuple[int, int], float],
    ) -> None:
        """What `RayPool` takes, and:

        Args:
            planned: what is to happen.
            happened: gets what did.
            seconds: what a chunk took, by step and position; gets those that are not in it.
        """
        self._planned = {(kill.step, kill.chunk): kill for kill in planned}
        self._happened = happened
        self._seconds = seconds
        super().__init__(*arguments)

    async def _attempt(self, slot: WorkerSlot, job: Job) -> Reply:
        if job.chunk.stream != "train":
            return await super()._attempt(slot, job)
        key = (job.chunk.step, job.number)
        kill = self._planned.pop(key, None)
        if kill is None:
            began = time.monotonic()
            reply = await super()._attempt(slot, job)
            self._seconds.setdefault(key, time.monotonic() - began)
            return reply
        attempt = asyncio.ensure_future(super()._attempt(slot, job))
        await asyncio.wait([attempt], timeout=kill.share * self._seconds.get(key, 0.0))  # 0: it got not as far
        if not attempt.done() or attempt.exception() is None:
            with suppress(ProcessLookupError):  # dead already, of an earlier kill
                self._cluster.kill_process(slot.process_id, slot.node_id)
                self._happened.append(kill)
        return await attempt


def compare(one: Path, other: Path) -> list[Comparison]:
    """Compare two runs that have ended, one kind of result at a time."""
    return [
        _compare_metrics(one, other),
        _compare_files("rollouts", one, other, f"{ROLLOUTS}/*.parquet"),
        _compare_files("evaluations", one, other, f"{EVALS}/**/*.parquet"),
        _compare_files("adapters", one, other, f"{ADAPTERS}/*/adapter_model.safetensors"),
    ]


def _count_replaced(kills: int, replaced: int) -> Comparison:
    nothing = (
        f"{kills} workers were killed and none was replaced, so that this proves nothing; take another --seed, or more "
        "--kills and --steps"
    )
    return Comparison(what="workers replaced", files=replaced, difference="" if kills and replaced else nothing)


def _compare_metrics(one: Path, other: Path) -> Comparison:
    mine, theirs = (logs.read_metrics(run).rows for run in (one, other))
    difference = "" if len(mine) == len(theirs) else f"{len(mine)} and {len(theirs)} steps"
    for line, its_line in zip(mine, theirs, strict=False):
        row, its = line.metrics, its_line.metrics
        names = [n for n in sorted({*row, *its}) if not is_of_the_machine(n) and row.get(n) != its.get(n)]
        if names and not difference:
            name = "reward/mean" if "reward/mean" in names else names[0]
            difference = f"step {line.step}: {name} is {row.get(name)} and {its.get(name)}; {len(names)} numbers differ"
    return Comparison(what="metrics", files=len(mine), difference=difference)


def _compare_files(what: str, one: Path, other: Path, pattern: str) -> Comparison:
    names = sorted({str(path.relative_to(run)) for run in (one, other) for path in run.glob(pattern)})
    different = [name for name in names if _content(one / name) != _content(other / name)]
    rest = f" and {len(different) - 1} more" if len(different) > 1 else ""
    return Comparison(what=what, files=len(names), difference=f"{different[0]}{rest}" if different else "")


def _content(path: Path) -> Any:
    if not path.is_file():
        return None
    return pq.read_table(path) if path.suffix == ".parquet" else path.read_bytes()


def _reason(config: RunConfig) -> str:
    if config.rollout.update_in_flight:
        return "rollout.update_in_flight: which adapter makes a chunk depends on when it runs"
    if not traits_of(config.rollout).is_exact:
        return f"rollout.engine: {config.rollout.engine} may round otherwise in another batch"
    from rlft.model.base import default_device

    if default_device().type != "cpu" or config.rollout.gpus_per_worker:
        return "on a GPU sums may come out in another order"
    return ""
