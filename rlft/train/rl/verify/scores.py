"""Scoring a random share of a run's stored groups again, and comparing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlft.common.user_folder import combined
from rlft.config import RunConfig
from rlft.model import chat
from rlft.reward.judge_cache import BUDGET, Budget
from rlft.reward.scoring import Scorer
from rlft.reward.stored import StoredTasks, is_environments_failure, unscored
from rlft.reward.stored_scoring import StoredScores, stored_scorer
from rlft.run.records import Provenance
from rlft.train.rl.verify.findings import Check
from rlft.train.rl.verify.material import Here, with_prompt
from rlft.types import Abstain, Failed, Group, Outcome, Score, Trajectory, whole_text

PASSING = ("timeout", "crash", "server", "not_run")
"""Kinds of failures that another attempt, or another machine, need not repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stored group."""

    file: str
    """Below the run's directory."""
    step: int
    """Step that the group is of."""
    is_heldout: bool
    """Whether it is of an evaluation, of which rewards are told step 0."""
    set_name: str
    """The evaluation set that it is of; empty of training and of `evaluation`."""
    index: int
    """Position in the file."""
    samples: int


@contextmanager
def asking_nobody() -> Iterator[None]:
    """Let judges give only the replies that this machine keeps, within the block."""
    before = os.environ.get(BUDGET)
    os.environ |= Budget(scope="verify", calls=-1).variables
    try:
        yield
    finally:
        if before is None:
            del os.environ[BUDGET]
        else:
            os.environ[BUDGET] = before


class Rescorer:
    """The run's own rewards, called again for stored groups."""

    def __init__(self, config: RunConfig, tasks: StoredTasks, *, workers: int) -> None:
        """Load the rewards; within `asking_nobody`.

        Args:
            tasks: all that are stored, whose columns the rewards may ask for.
            workers: scoring processes.

        Raises:
            ValueError: one cannot be loaded or called.
        """
        self._config = config
        self._scores = StoredScores(config.rewards)
        self._scorer: Scorer = stored_scorer(config, config.rewards, tasks, self._scores, workers=workers)
        self._on_learner = [spec.label for spec in config.rewards if spec.folder]

    def close(self) -> None:
        """End the processes."""
        self._scorer.close()

    def changed(self, then: Provenance) -> list[str]:
        """Rewards whose files are others than the run's, in words."""
        sources = self._scorer.sources
        named = {spec.path: combined(sources[spec.label]) for spec in self._config.rewards if not spec.folder}
        return [
            f"reward {path} has changed since: sha256 {then.sha256[path][:12]} then, {digest[:12]} here"
            for path, digest in named.items()
            if path in then.sha256 and then.sha256[path] != digest
        ]

    def check(self, file: str, step: int, groups: Sequence[Group], here: Here, check: Check) -> None:
        """Score groups of one file again and compare every outcome.

        Args:
            step: as the rewards were told.
            here: with the environment of the groups.
        """
        if here.tokenizer is not None:
            groups = [with_prompt(here, group) for group in groups]
            for group in groups:
                _check_texts(here.tokenizer, file, group, check)
        again = self._score(groups, step)
        for name in self._scorer.stats.logged:
            if name.endswith("/known"):
                check.remark(f"{name.removesuffix('/known')} is a judge: its replies are those that this machine keeps")
        if self._on_learner:
            check.remark(f"reward models on the learner's base are not asked again: {', '.join(self._on_learner)}")
        unlike = [i for i, pair in enumerate(zip(groups, again, strict=True)) if _groups_differ(*pair)]
        twice = dict(zip(unlike, self._score([groups[i] for i in unlike], step), strict=True)) if unlike else {}
        for index, (group, own) in enumerate(zip(groups, again, strict=True)):
            second = twice.get(index, own)
            for stored, now, once_more in zip(group.trajectories, own.trajectories, second.trajectories, strict=True):
                where = f"{file}, {group.task.id}/{stored.sample_index}"
                _compare(where, stored, now, once_more, check)

    def _score(self, groups: Sequence[Group], step: int) -> list[Group]:
        self._scores.bind(groups)
        return self._scorer.score([unscored(group) for group in groups], step=step)


def _check_texts(tokenizer: PreTrainedTokenizerBase, file: str, group: Group, check: Check) -> None:
    """The text that the rewards see is that of the tokens which were sampled."""
    for trajectory in group.trajectories:
        text = whole_text(chat.completion_text(tokenizer, trajectory.turns[-1].completion))
        if text != trajectory.text:
            where = f"{file}, {group.task.id}/{trajectory.sample_index}"
            check.differ(where, f"its text is {trajectory.text[:60]!r}, its tokens say {text[:60]!r}")


def _groups_differ(stored: Group, again: Group) -> bool:
    pairs = zip(stored.trajectories, again.trajectories, strict=True)
    return any(_facts(one.outcome) != _facts(other.outcome) for one, other in pairs)


def _compare(where: str, stored: Trajectory, now: Trajectory, once_more: Trajectory, check: Check) -> None:
    old, new = stored.outcome, now.outcome
    if is_environments_failure(stored):
        check.skip("the environment failed, and no reward saw the sample")
    elif _facts(old) == _facts(new):
        check.agree()
    elif isinstance(new, Failed) and new.kind == "server":
        check.skip(f"a judge's reply is not kept here: {new.message.splitlines()[-1][:120] if new.message else ''}")
    elif isinstance(old, Failed) and old.kind in PASSING:
        check.skip(f"the reward failed by {old.kind}, which another attempt need not repeat")
    elif isinstance(new, Failed) and new.kind in PASSING:
        check.skip(f"the reward fails here by {new.kind}")
    elif _facts(new) != _facts(once_more.outcome):
        check.skip("the reward gives another value each time it is called")
    else:
        check.differ(where, f"outcome is {_told(old)}, scored again {_told(new)}")


def _facts(outcome: Outcome | None) -> tuple[object, ...]:
    """What two scorings have to agree on."""
    match outcome:
        case Score():
            return ("score", outcome.value, dict(outcome.parts), outcome.turns)
        case Abstain():
            return ("abstain", dict(outcome.parts))
        case Failed():
            return ("failed", outcome.kind, dict(outcome.parts))
    return ()


def _told(outcome: Outcome | None) -> str:
    match outcome:
        case Score():
            return f"{outcome.value:.9g} {_shown(outcome.parts)}"
        case Failed():
            return f"failed ({outcome.kind})"
    return "abstained"


def _shown(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.9g}" for name, value in parts.items())
