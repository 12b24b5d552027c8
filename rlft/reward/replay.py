"""What another reward would have done to a run: its stored rollouts are scored again and compared, without a model.

The rollouts stay those of the policy that the old reward trained: under the new one it would have written others from
the second step on. So a step's comparison is exact about that step, and the curve is a counterfactual of the reward,
not of the training.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from rlft.config import RunConfig
from rlft.curves.reading import read_metrics, rollout_steps
from rlft.curves.statistics import mean_interval, reached_bounds
from rlft.objectives.signal import has_signal
from rlft.reward.recompute import Recomputed, kl_coefs, recompute
from rlft.reward.scoring import Scorer
from rlft.reward.stored import StoredStep, StoredTasks, read_greedy, read_step, read_tasks, unscored
from rlft.reward.stored_scoring import StoredScores, stored_scorer
from rlft.run.records import Interval
from rlft.types import Abstain, Failed, Group, RewardSpec, Score

MOVED = 10
"""Samples that are shown of those that moved most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A sample under both rewards."""

    sample: str
    """`STEP/TASK/INDEX`, as `rlft reward explain` takes it."""
    old_reward: float
    new_reward: float
    old_advantage: float | None
    new_advantage: float | None
    completion: str

    @property
    def distance(self) -> float:
        """How far its advantage moved; 0 where there is none to compare."""
        if self.old_advantage is None or self.new_advantage is None:
            return 0.0
        return abs(self.new_advantage - self.old_advantage)


@dataclass(slots=True, kw_only=True)
class Part:
    """A part of the rewards that both have: how far they disagree on it."""

    samples: int = 0
    differ: int = 0
    """Samples on which its values are not equal."""
    total: float = 0.0
    """Sum of the absolute differences."""
    largest: float = 0.0

    def add(self, old: float, new: float) -> None:
        """Count a sample."""
        distance = abs(new - old)
        self.samples += 1
        self.differ += distance > 0
        self.total += distance
        self.largest = max(self.largest, distance)

    def as_dict(self) -> dict[str, float]:
        """Plain data."""
        mean = self.total / self.samples if self.samples else 0.0
        return {"samples": self.samples, "differ": self.differ, "mean_difference": mean, "largest": self.largest}


@dataclass(slots=True, kw_only=True)
class Compared:
    """One step, or all of them, under both rewards."""

    step: int | None
    """None for all."""
    counts: Counter[str] = field(default_factory=Counter)
    """What `COUNTS` lists, by name; what is 0 may be absent."""
    old: Interval
    """Mean of the old reward over the tasks, with its 95 % interval, of the samples that have it."""
    new: Interval
    parts: dict[str, Part] = field(default_factory=lambda: defaultdict(Part))

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "step": self.step,
            "old": self.old.as_dict(),
            "new": self.new.as_dict(),
            **{name: self.counts[name] for name in COUNTS},
            "parts": {name: part.as_dict() for name, part in sorted(self.parts.items())},
        }


_UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)
"""Of a step, until all steps are there."""
COUNTS = {
    "samples": "stored samples",
    "compared": "samples with a score under both",
    "failed_old": "samples that failed under the old reward",
    "failed_new": "samples that fail under the new reward",
    "abstained_old": "samples that the old reward abstained on",
    "abstained_new": "samples that the new reward abstains on",
    "pairs": "pairs of samples of one group that either reward tells apart",
    "flipped": "pairs that the rewards rank in opposite order",
    "tied": "pairs that only the old reward tells apart",
    "untied": "pairs that only the new reward tells apart",
    "advantages": "samples with an advantage under both",
    "sign_flips": "samples whose advantage changes its sign",
    "to_zero": "samples whose advantage becomes 0",
    "from_zero": "samples whose advantage was 0",
    "groups": "groups of samples",
    "gained": "groups whose rewards were equal and would differ",
    "lost": "groups whose rewards differed and would be equal",
    "stored_advantages": "stored advantages",
    "reproduced": "stored advantages that are computed again from the stored rewards, to the bit",
}
"""What is counted, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The stored rollouts of a run under another reward."""

    steps: Sequence[Compared]
    total: Compared
    moved: Sequence[Moved]
    """The samples whose advantages moved most, largest first; by reward where there are no advantages."""
    only_old: Sequence[str]
    """Parts that only the old rewards have."""
    only_new: Sequence[str]
    notes: Sequence[str]
    """What could not be replayed, and what to bear in mind."""

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        named = ("sample", "old_reward", "new_reward", "old_advantage", "new_advantage", "completion")
        return {
            "steps": [step.as_dict() for step in self.steps],
            "total": self.total.as_dict(),
            "moved": [{name: getattr(moved, name) for name in named} for moved in self.moved],
            "only_old": list(self.only_old),
            "only_new": list(self.only_new),
            "notes": list(self.notes),
        }


def replay(
    run: Path, config: RunConfig, rewards: Sequence[RewardSpec], *, steps: Sequence[int] | None = None, workers: int = 1
) -> Replay:
    """Score stored rollouts by other rewards and compare.

    Args:
        config: the run's.
        rewards: the new ones, all of them.
        steps: which; None is all that are stored.
        workers: scoring processes.

    Raises:
        ValueError: the run has no such rollouts; or a reward cannot be loaded, cannot be replayed, or lacks a
            parameter.
    """
    wanted = rollout_steps(run) if steps is None else list(steps)
    tasks = read_tasks(run)
    coefs = kl_coefs(config, read_metrics(run, []))
    notes = [*_of_tasks(tasks), *_of_models(config, rewards)]
    collected = _Collected(config)
    stored_scores = StoredScores(rewards)
    with stored_scorer(config, rewards, tasks, stored_scores, workers=workers) as scorer:
        for step in wanted:
            stored = read_step(run, step, tasks)
            stored_scores.bind(stored.groups)
            greedy = read_greedy(run, step, tasks)
            scored = scorer.score([unscored(group) for group in stored.groups], step=step)
            baselines = _baselines(scorer, greedy, stored_scores, step)
            collected.add(stored, scored, baselines, kl_coef=coefs.get(step, 0.0))
    return collected.result([*notes, *collected.notes])


def _of_tasks(tasks: StoredTasks) -> Iterator[str]:
    if not tasks.lines:
        yield (
            "this run keeps no tasks.jsonl, as it was made by an earlier rlft: rewards that need a column of the tasks "
            "cannot be replayed, and answers are as JSON has them"
        )
    if tasks.lost:
        yield f"of some tasks {', '.join(tasks.lost)} could not be kept: rewards that need it fail there"


def _of_models(config: RunConfig, rewards: Sequence[RewardSpec]) -> Iterator[str]:
    """What is said of reward models on the run's base. Raises ValueError for one that the run did not have."""
    for spec in rewards:
        if not spec.folder:
            continue
        if not any((own.path, own.label, own.args) == (spec.path, spec.label, spec.args) for own in config.rewards):
            raise ValueError(
                f"reward {spec.path} cannot be replayed: a reward model on the learner's base needs the learner, and "
                "this run has not stored its scores; use path: rewards.reward_model:reward_model with args: "
                f"{{folder: {spec.folder}}}"
            )
        yield f"{spec.label}: a reward model on the learner's base is not asked again; its stored scores are used"


def _baselines(
    scorer: Scorer, greedy: Sequence[Group], scores: StoredScores, step: int
) -> dict[str, float | None] | None:
    """Score of each task's greedy answer under the new reward; None where the algorithm has no such baseline."""
    if not greedy:
        return None
    scores.bind(greedy)
    scored = scorer.score([unscored(group) for group in greedy], step=step)
    return {group.task.id: group.scores[0] if group.scores else None for group in scored}


class _Collected:
    """The comparison as it grows by steps."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._steps: list[Compared] = []
        self._counts: Counter[str] = Counter()
        self._parts: dict[str, Part] = defaultdict(Part)
        self._values: dict[str, dict[str, list[float]]] = {"old": defaultdict(list), "new": defaultdict(list)}
        self._scores: dict[str, list[list[list[float]]]] = {"old": [], "new": []}
        self._moved: list[tuple[tuple[float, float], int, Moved]] = []
        self._old_names: set[str] = set()
        self._new_names: set[str] = set()
        self.notes: list[str] = []
        self._has_failed = False

    def add(
        self,
        stored: StoredStep,
        scored: Sequence[Group],
        baselines: Mapping[str, float | None] | None,
        *,
        kl_coef: float,
    ) -> None:
        """Enter a step."""
        if baselines is not None:
            scored = [replace(group, baseline_score=baselines.get(group.task.id)) for group in scored]
        again = recompute(self._config, stored.groups, stored.rows, kl_coef=kl_coef)
        new = recompute(self._config, scored, stored.rows, kl_coef=kl_coef)
        compared = Compared(step=stored.step, old=_UNKNOWN, new=_UNKNOWN)
        self._note(stored.step, again, new)
        self._note_failure(stored.step, scored)
        self._note_abstention(stored.step, scored)
        for index, (old_group, new_group) in enumerate(zip(stored.groups, scored, strict=True)):
            self._enter_group(compared, old_group, new_group)
            for member, row in enumerate(stored.rows[index]):
                advantage = row["advantage"]
                compared.counts["stored_advantages"] += advantage is not None
                own = again.advantages.get((index, member))
                compared.counts["reproduced"] += advantage is not None and advantage == own
                self._enter_sample(
                    compared, old_group, new_group, member, advantage, new.advantages.get((index, member))
                )
        self._steps.append(compared)
        self._counts += compared.counts
        for name, groups in (("old", stored.groups), ("new", scored)):
            self._scores[name].append([group.scores for group in groups])
            for group in groups:
                self._values[name][group.task.id] += group.scores

    def result(self, notes: Sequence[str]) -> Replay:
        """All steps together. A task counts once in the mean of all, with its samples of all steps.

        The bounds of a reward's values are told from all steps: the few tasks of one step are too few to tell them.
        """
        whole = {}
        for name, values in self._values.items():
            clusters = [each for each in values.values() if each]
            bounds = reached_bounds(clusters) if clusters else None
            whole[name] = mean_interval(clusters, bounds=bounds)
            for step, scores in zip(self._steps, self._scores[name], strict=True):
                setattr(step, name, mean_interval(scores, bounds=bounds))
        total = Compared(
            step=None,
            old=whole["old"],
            new=whole["new"],
            counts=self._counts,
            parts=self._parts,
        )
        ranked = sorted(self._moved, key=lambda each: (each[0], -each[1]), reverse=True)
        both = self._old_names & self._new_names
        return Replay(
            steps=self._steps,
            total=total,
            moved=[moved for _, _, moved in ranked],
            only_old=sorted(self._old_names - both),
            only_new=sorted(self._new_names - both),
            notes=list(dict.fromkeys(notes)),
        )

    def _note(self, step: int, again: Recomputed, new: Recomputed) -> None:
        if new.reason:
            self.notes.append(f"step {step}: no advantages under the new reward: {new.reason}")
        if again.reason:
            self.notes.append(f"step {step}: the stored advantages cannot be computed again: {again.reason}")
        if new.left_out:
            self.notes.append(
                f"step {step}: {new.left_out} samples that the run did not learn from have no advantage under the new "
                "reward, since what the learner would have computed of them is not stored"
            )

    def _note_failure(self, step: int, scored: Sequence[Group]) -> None:
        """Say once why a sample fails now; one that its environment failed was never scored."""
        outcomes = (trajectory.outcome for group in scored for trajectory in group.trajectories)
        failures = [each for each in outcomes if isinstance(each, Failed) and each.fault != "environment"]
        if failures and not self._has_failed:
            self._has_failed = True
            first = failures[0]
            at = f", at {first.where}" if first.where else ""
            self.notes.append(f"step {step}: the first that fails ({first.kind}): {first.message}{at}")

    def _note_abstention(self, step: int, scored: Sequence[Group]) -> None:
        """Say why where a reward abstains on all samples of a step, which hardly any is meant to do."""
        outcomes = [trajectory.outcome for group in scored for trajectory in group.trajectories]
        if outcomes and all(isinstance(outcome, Abstain) for outcome in outcomes):
            assert isinstance(outcomes[0], Abstain)
            self.notes.append(
                f"step {step}: the new reward abstains on every sample: {outcomes[0].reason} (a function without "
                "`return` does that; rlft reward try shows one sample)"
            )

    def _enter_group(self, compared: Compared, old: Group, new: Group) -> None:
        counts = compared.counts
        had, has = (has_signal(group, by_turn=self._config.algorithm.credits_turns) for group in (old, new))
        counts["groups"] += 1
        counts["gained"] += has and not had
        counts["lost"] += had and not has
        pairs = [
            (before.outcome.value, after.outcome.value)
            for before, after in zip(old.trajectories, new.trajectories, strict=True)
            if isinstance(before.outcome, Score) and isinstance(after.outcome, Score)
        ]
        for (old_one, new_one), (old_other, new_other) in combinations(pairs, 2):
            before, after = old_one - old_other, new_one - new_other
            counts["pairs"] += before != 0 or after != 0
            counts["flipped"] += before * after < 0
            counts["tied"] += before != 0 and after == 0
            counts["untied"] += before == 0 and after != 0

    def _enter_sample(
        self,
        compared: Compared,
        old_group: Group,
        new_group: Group,
        member: int,
        old_advantage: float | None,
        new_advantage: float | None,
    ) -> None:
        trajectory = old_group.trajectories[member]
        old, new = trajectory.outcome, new_group.trajectories[member].outcome
        counts = compared.counts
        counts["samples"] += 1
        for outcome, when in ((old, "old"), (new, "new")):
            counts[f"failed_{when}"] += isinstance(outcome, Failed)
            counts[f"abstained_{when}"] += isinstance(outcome, Abstain)
        if not isinstance(old, Score) or not isinstance(new, Score):
            return
        counts["compared"] += 1
        self._old_names |= old.parts.keys()
        self._new_names |= new.parts.keys()
        for name in old.parts.keys() & new.parts.keys():
            for parts in (compared.parts, self._parts):
                parts[name].add(old.parts[name], new.parts[name])
        if old_advantage is not None and new_advantage is not None:
            counts["advantages"] += 1
            counts["sign_flips"] += old_advantage * new_advantage < 0
            counts["to_zero"] += old_advantage != 0 and new_advantage == 0
            counts["from_zero"] += old_advantage == 0 and new_advantage != 0
        moved = Moved(
            sample=f"{compared.step}/{old_group.task.id}/{trajectory.sample_index}",
            old_reward=old.value,
            new_reward=new.value,
            old_advantage=old_advantage,
            new_advantage=new_advantage,
            completion=trajectory.text,
        )
        size = (moved.distance, abs(new.value - old.value))
        if size > (0.0, 0.0):
            entry = (size, -self._counts["samples"] - counts["samples"], moved)  # of equals the first
            push = heapq.heappush if len(self._moved) < MOVED else heapq.heappushpop
            push(self._moved, entry)
