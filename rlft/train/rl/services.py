"""The processes of a run besides its driver: scoring processes, and rollout workers beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from transformers.utils import logging as transformers_logging

from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.environment.contract import Environment
from rlft.model import chat
from rlft.model.base import resolve_dtype
from rlft.model.layers.slow_paths import SLOW_PATH
from rlft.model.memory import keep_freed_memory
from rlft.reward.judge_cache import Budget
from rlft.reward.scoring import ScoreGroups, Scorer
from rlft.reward.startup import look, told
from rlft.rollout.pool import MakePool, RolloutPool, make_pool
from rlft.rollout.weight_proof import CanaryMaker
from rlft.run.directory import Run


@contextmanager
def services(
    config: RunConfig,
    model_folder: str,
    scorer: Scorer,
    run: Run | None,
    view: View,
    pools: MakePool | None = None,
) -> Iterator[RolloutPool]:
    """The rollout workers of a run; they and the scorer are ended whatever happens."""
    with scorer:
        keep_freed_memory()
        transformers_logging.disable_progress_bar()
        view.stage("loading the rollout engine" if config.backend == "inline" else "starting rollout workers")
        pool = (pools or make_pool)(config, model_folder, partial(_enter, run, view))
        try:
            yield pool
        finally:
            pool.close()


def _enter(run: Run | None, view: View, kind: str, message: str) -> None:
    """Enter an event of the workers into the run's; what every chunk tells is entered once, a wait shown at once."""
    if run is not None:
        (run.event_once if kind == SLOW_PATH else run.event)(kind, message)
    if kind == "low_memory":
        view.note(message)


def judge_budget(config: RunConfig, path: Path | None = None) -> Budget:
    """What the run may ask of its judges; its directory is at `path` if that is not where its config says."""
    scoring = config.scoring
    return Budget(
        scope=str((path or config.run_dir).absolute()), calls=scoring.judge_calls, tokens=scoring.judge_tokens
    )


def make_scorer(
    config: RunConfig,
    environment: Environment,
    *,
    log_dir: Path | None,
    learner: ScoreGroups | None = None,
    path: Path | None = None,
) -> Scorer:
    """Start the scoring processes with the config's rewards.

    Args:
        learner: scores the reward models on the learner's base.
        path: see `judge_budget`.

    Raises:
        ValueError: a reward cannot be loaded or called, see `Scorer`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # for a reward's tokenizer, too
    os.environ |= judge_budget(config, path).variables
    return Scorer(
        config.rewards,
        workers=config.scoring.workers,
        deadline_s=config.scoring.deadline_s,
        log_dir=log_dir,
        environment=config.scoring.environment,
        learner=learner,
        max_failed=config.scoring.max_failed,
        max_concurrent=config.scoring.max_concurrent,
        memory_mb=config.scoring.memory_mb,
        columns={column for task in (*environment.train, *environment.heldout) for column in task.columns},
    )


def reward_remarks(config: RunConfig, environment: Environment, scorer: Scorer) -> list[str]:
    """What a short look at the rewards shows, before a run starts; see `reward.startup.look`.

    Raises:
        ValueError: nothing could be learnt from them, and `scoring.check` says to stop then.
    """
    if config.scoring.check == "off":
        return []
    findings = look(config.rewards, scorer, environment, config.scoring.deadline_s)
    errors = [told(finding) for finding in findings if finding.severity == "error"]
    if errors and config.scoring.check == "stop":
        raise ValueError(
            "\n".join(errors) + "\n`rlft reward check CONFIG` shows more; to train all the same: scoring.check=warn"
        )
    return [told(finding) for finding in findings]


def canary_maker(config: RunConfig, model_folder: str, environment: Environment) -> CanaryMaker:
    """What makes the proof that every published adapter asks of the engines, on the first training task."""
    dtype = str(resolve_dtype(config.model)).removeprefix("torch.")
    tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
    return CanaryMaker(tokenizer, environment.train[0], dtype=dtype)
