"""The processes of a run besides its driver: scoring processes and rollout workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.environment.contract import Environment
from rlft.model.memory import keep_freed_memory
from rlft.reward.contract import RewardSpec
from rlft.reward.scoring import Scorer
from rlft.rollout.pool import MakePool, RolloutPool, make_pool
from rlft.run.directory import Run


@contextmanager
def services(
    config: RunConfig,
    environment: Environment,
    model_folder: str,
    run: Run | None,
    view: View,
    pools: MakePool | None = None,
) -> Iterator[tuple[RolloutPool, Scorer]]:
    """The processes of a run, ended whatever happens."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    view.stage("starting scoring processes")
    scorer = make_scorer(config, environment, log_dir=run.path / "logs" if run else None)
    with scorer:
        view.stage("starting rollout workers")
        pool = (pools or make_pool)(config, model_folder, run.event if run else None)
        try:
            yield pool, scorer
        finally:
            pool.close()


def make_scorer(config: RunConfig, environment: Environment, *, log_dir: Path | None) -> Scorer:
    """The scorer of the config's rewards.

    Raises:
        ValueError: see `Scorer`.
    """
    specs = [RewardSpec(path=r.path, weight=r.weight, args=r.args, name=r.label) for r in config.rewards]
    pairs = list(zip(specs, config.rewards, strict=True))
    return Scorer(
        [spec for spec, reward in pairs if not reward.folder],
        on_learner=[spec for spec, reward in pairs if reward.folder],
        workers=config.scoring.workers,
        deadline_s=config.scoring.deadline_s,
        log_dir=log_dir,
        columns={column for task in (*environment.train, *environment.heldout) for column in task.columns},
    )
