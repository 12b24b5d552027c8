"""From what a probe saw to the time, the memory and the signal of the whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from rlft.config import RunConfig
from rlft.curves.statistics import mean_interval
from rlft.run.records import BEFORE_TRAINING, Interval
from rlft.train.rl.evaluations import EVALUATION
from rlft.train.rl.launch import LOADING, WARM_START
from rlft.train.rl.plan.arithmetic import Counts
from rlft.train.rl.plan.probe import Mark, Probed

HOPELESS = 0.1
"""A run is hopeless if the share of groups with signal is below this, and its interval too."""
SOLVED = 0.5
"""Above this mean reward groups without signal are taken for solved ones, else for ones beyond the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the run's time."""

    name: str
    seconds: float
    """All of it."""
    how: str = ""
    """What it is made of, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """How many groups tell the algorithm anything."""

    share: Interval
    """Of the probe's groups, those whose rewards differ; n counts them."""
    samples: int
    """Samples of a group."""
    reward: float
    """Mean reward of the probe's rollouts."""
    policy: str
    """Whose samples they are."""
    is_whole: bool = True
    """Whether RL starts from that policy. Else the probe's warm start is only the beginning of the run's."""

    @property
    def may_rise(self) -> bool:
        """Whether the whole warm start may give signal where its beginning gave none: not to tasks that it solved."""
        return not self.is_whole and self.reward <= SOLVED

    @property
    def is_hopeless(self) -> bool:
        """Whether even the interval's upper end is below `HOPELESS`, and no further warm start may raise it."""
        return self.share.bounded and self.share.high < HOPELESS and not self.may_rise


def stages(config: RunConfig, counts: Counts, probed: Probed) -> list[Stage]:
    """The run's time, stage by stage, from the probe's."""
    marks, steps = probed.marks, probed.steps
    first = next(mark.at for mark in marks if mark.kind == "stage" and mark.text.startswith(EVALUATION))
    found = [Stage(name="start", seconds=first, how="imports, data, rewards, engine")]
    taken = _evaluations(marks)
    answers = {name: (times, count) for name, times, count in counts.evaluations}
    probed_answers = {
        "": probed.config.evaluation.tasks * probed.config.evaluation.samples_per_task,
        **{each.name: each.tasks * each.samples_per_task for each in probed.config.evaluations},
    }
    for set_name, (times, count) in answers.items():
        scale = max(1.0, count / probed_answers[set_name])
        each = {when: scale * seconds for (which, when), seconds in taken.items() if which == set_name}
        before = [seconds for when, seconds in each.items() if when in BEFORE_TRAINING]
        trained = [seconds for when, seconds in each.items() if when not in BEFORE_TRAINING]
        seconds = math.fsum(before) + (times - len(before)) * (trained[-1] if trained else 0.0)
        label = f"evaluations of {set_name}" if set_name else "evaluations"
        found.append(Stage(name=label, seconds=seconds, how=f"{times} of {count} answers"))
    if config.sft is not None:
        found.append(_warm_start(marks, counts.sft_updates))
    found.append(Stage(name="learner", seconds=_between(marks, LOADING), how="loading it"))
    durations = [mark.metrics["time/step"] for mark in steps]
    usual = fmean(durations[1:] or durations)
    found.append(
        Stage(
            name="steps",
            seconds=durations[0] + (config.steps - 1) * usual,
            how=f"{config.steps} of {usual:.1f} s ({_laps(steps[1:] or steps)})",
        )
    )
    saves = math.ceil(config.steps / config.checkpoint.every) - 1
    kept = [after.at - before.at - after.metrics["time/step"] for before, after in pairwise(steps)]
    last = max((mark.at for mark in marks if mark.kind == "note"), default=probed.seconds)
    found.append(
        Stage(
            name="records",
            seconds=saves * max(0.0, fmean(kept or [0.0])) + max(0.0, probed.seconds - last),
            how=f"{saves + 1} checkpoints, summary, report",
        )
    )
    return found


def signal(config: RunConfig, probed: Probed) -> Signal:
    """The share of groups with signal in the probe's steps, where `config` is the run's own."""
    flags, rewards = [], []
    for mark in probed.steps:
        total = round(mark.metrics["groups/total"])
        useful = round(mark.metrics.get("groups/with_signal", 0.0) * total)
        flags += [1.0] * useful + [0.0] * (total - useful)
        rewards.append(mark.metrics.get("reward/mean", math.nan))
    known = [reward for reward in rewards if math.isfinite(reward)]
    policy = "the model"
    if probed.config.adapter.start:
        policy = "the adapter that it starts from"
    is_whole = True
    if config.sft is not None and probed.config.sft is not None:
        shown, all_of_them = probed.config.sft.examples, config.sft.examples
        is_whole = shown == all_of_them
        policy = "the warm start" if is_whole else f"a warm start of {shown:,} of the {all_of_them:,} demonstrations"
    return Signal(
        share=mean_interval([[flag] for flag in flags]),
        samples=probed.config.samples_per_task,
        reward=fmean(known) if known else math.nan,
        policy=policy,
        is_whole=is_whole,
    )


def advice(config: RunConfig, found: Signal) -> str:
    """What to do about a run without signal."""
    if found.reward > SOLVED:
        return "nearly all samples are as good as they can be: take harder tasks, or a reward that tells them apart"
    ways = ["easier tasks (`rlft env measure` says which)", f"more samples_per_task than {config.samples_per_task}"]
    if config.sft is None:
        ways.insert(0, "a warm start (`sft: {examples: 64}`) where the environment has demonstrations")
    else:
        ways.insert(0, f"a longer warm start than sft.examples={config.sft.examples}")
    return f"{'; '.join(ways)}; or a reward that gives parts of an answer something"


def as_dict(stages: Sequence[Stage], probed: Probed, found: Signal) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "seconds": sum(stage.seconds for stage in stages),
        "stages": [{"name": stage.name, "seconds": stage.seconds, "how": stage.how} for stage in stages],
        "memory_bytes": {role: {"processes": n, "peak_of_one": size} for role, (n, size) in probed.peaks.items()},
        "memory_bytes_together": probed.peak,
        "signal": {
            **found.share.as_dict(),
            **{"samples": found.samples, "reward": found.reward, "policy": found.policy, "whole": found.is_whole},
        },
        "lengths": {"prompt": probed.lengths.prompt, "completion": probed.lengths.completion},
        "probe": {"seconds": probed.seconds, "steps": len(probed.steps)},
    }


def _evaluations(marks: Sequence[Mark]) -> dict[tuple[str, str], float]:
    """Seconds of each evaluation by (set, name): from its stage to the note that tells its result."""
    found: dict[tuple[str, str], float] = {}
    for index, mark in enumerate(marks):
        if mark.kind == "stage" and mark.text.startswith(EVALUATION):
            set_name, _, name = mark.text.removeprefix(EVALUATION).rpartition(", ")
            ended = next(m.at for m in marks[index:] if m.kind == "note" and m.text.startswith("held-out "))
            found[set_name, name] = ended - mark.at
    return found


def _warm_start(marks: Sequence[Mark], updates: int) -> Stage:
    """The warm start: what comes before its second update once, the others as long as the probe's took."""
    begin = next(i for i, mark in enumerate(marks) if mark.kind == "stage" and mark.text == WARM_START)
    stop = next(i for i, mark in enumerate(marks) if i > begin and mark.kind == "stage")
    done = [mark.at for mark in marks[begin:stop] if mark.kind == "progress"]
    whole = marks[stop].at - marks[begin].at
    each = (done[-1] - done[0]) / (len(done) - 1) if len(done) > 1 else 0.0
    return Stage(
        name="warm start", seconds=whole + (updates - len(done)) * each, how=f"{updates} updates of {each:.2f} s"
    )


def _between(marks: Sequence[Mark], name: str) -> float:
    """Seconds from a stage to whatever is marked next, without what a step takes; 0 where there is no such stage."""
    for mark, after in pairwise(marks):
        if mark.kind == "stage" and mark.text == name:
            return max(0.0, after.at - mark.at - after.metrics.get("time/step", 0.0))
    return 0.0


def _laps(steps: Sequence[Mark]) -> str:
    names = ("rollout", "score", "learn", "publish")
    means = {name: fmean(mark.metrics.get(f"time/{name}", 0.0) for mark in steps) for name in names}
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in means.items() if seconds >= 0.05)
