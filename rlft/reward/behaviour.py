"""How a reward behaves on made-up replies: whether it fails, abstains, tells replies apart, and says the same twice."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from statistics import quantiles

from rlft.curves.text import counted
from rlft.reward.contract import prompt_text
from rlft.reward.findings import ALL, Finding, Sample, quoted
from rlft.reward.good_replies import answer_text
from rlft.reward.odd_replies import ODD_REPLIES
from rlft.reward.probe import Probe
from rlft.reward.source import definition_of
from rlft.types import Abstain, RewardSpec, Score, Task

_DIFFERS = 1e-4
"""Values further apart than this share of them differ; reward models in float32 vary by less."""
_FEW = 8
"""Replies that have to score alike before a reward is called constant."""
_TIMED = 20


def ask(probe: Probe, texts: Sequence[tuple[Task, str]], ends: float = math.inf) -> list[Sample]:
    """Score replies, each in a group of its own; those for which no time is left by `ends` are missing."""
    scored = probe.trajectories([(task, [text]) for task, text in texts], ends=ends)
    return [
        Sample(task=task, text=text, trajectory=trajectory)
        for (task, text), (trajectory,) in zip(texts, scored, strict=False)
    ]


def differ(one: float | None, other: float | None) -> bool:
    """Whether two values of a reward are not the same, but for rounding."""
    if one is None or other is None:
        return one is not other
    return abs(one - other) > _DIFFERS * max(1.0, abs(one), abs(other))


def static_findings(specs: Sequence[RewardSpec], deadline_s: float) -> list[Finding]:
    """What the source alone shows: a missing `return`, a judge that may take longer than its process."""
    return [*missing_returns(specs), *slow_judges(specs, deadline_s)]


def missing_returns(specs: Sequence[RewardSpec]) -> list[Finding]:
    """Rewards whose source has no `return` with a value."""
    return [
        Finding(
            check="contract",
            severity="error",
            reward=spec.label,
            detail=f"{source.where}: the function returns nothing, so the reward always abstains",
            advice="add a `return` with a number, or with a dict of named numbers",
        )
        for spec in specs
        if (source := definition_of(spec)) is not None and not source.returns
    ]


def slow_judges(specs: Sequence[RewardSpec], deadline_s: float) -> list[Finding]:
    """Judges that may take longer than their process."""
    found = []
    for spec in specs:
        source = definition_of(spec)
        limit = spec.args.get("deadline_s", source.defaults.get("deadline_s") if source else None)
        if isinstance(limit, int | float) and limit >= deadline_s:
            found.append(
                Finding(
                    check="contract",
                    severity="error",
                    reward=spec.label,
                    detail=f"its deadline_s ({limit:g} s) is not below scoring.deadline_s ({deadline_s:g} s): a slow "
                    "verdict would be a killed process",
                    advice=f"set scoring.deadline_s above {limit:g}, or args.deadline_s below {deadline_s:g}",
                )
            )
    return found


def abstentions(specs: Sequence[RewardSpec], samples: Sequence[Sample]) -> list[Finding]:
    """Rewards that never gave a value, and those that gave one value only and abstained else."""
    found = []
    scored = [sample for sample in samples if isinstance(sample.trajectory.outcome, Score | Abstain)]
    for spec in specs:
        values = [value for sample in scored if (value := sample.value(spec.label)) is not None]
        absent = len(scored) - len(values)
        source = definition_of(spec)
        if not absent or not (source is None or source.returns):  # else its source says why
            continue
        if not values:
            found.append(
                Finding(
                    check="contract",
                    severity="warning",
                    reward=spec.label,
                    detail=f"it abstained on all {len(scored)} replies, so that nothing else could be checked",
                    advice="give tasks that it applies to (--data, --cases), or look for a path without `return`",
                )
            )
        elif len(set(values)) == 1 and len(scored) >= _FEW:
            lacks = source is not None and source.may_end
            found.append(
                Finding(
                    check="contract",
                    severity="error" if lacks else "warning",
                    reward=spec.label,
                    detail=f"it abstains (returns None) from {absent} of {len(scored)} replies and gives "
                    f"{values[0]:g} to all others: "
                    + ("one path has no return" if lacks else "nothing can be learnt from these"),
                    advice="return 0 where the reply is wrong: what abstains takes no part in the baseline",
                )
            )
    return found


def constants(seen: Sequence[tuple[RewardSpec, Sequence[Sample]]], *, good_known: bool = True) -> list[Finding]:
    """Rewards that gave one value for many different replies.

    It is an error where good replies are known, or the source never looks at a reply, and every reward with a weight
    gave one value above 0 for replies of all sorts (`ODD_REPLIES`): then their weighted sum never changes. One of
    several may be about something rare, as a bound on the length is. A value of 0 or less is a warning, too: wrong
    replies and most replies to a penalty get that.

    Args:
        seen: all rewards, each with the replies on which its values can be compared; none where there are no such.
        good_known: whether replies that somebody called good are among them.
    """
    found = {}
    for spec, samples in seen:
        given = [(sample.text, value) for sample in samples if (value := sample.value(spec.label)) is not None]
        texts, values = {text for text, _ in given}, {value for _, value in given}
        if len(values) == 1 and len(texts) >= _FEW:
            found[spec.label] = (spec, values.pop(), texts)
    is_sum_constant = all(
        spec.label in found and found[spec.label][1] > 0 and found[spec.label][2] >= set(ODD_REPLIES)
        for spec, _ in seen
        if spec.weight
    )
    return [
        _constant(*one, is_error=bool(one[0].weight) and is_sum_constant, good_known=good_known or is_blind(one[0]))
        for one in found.values()
    ]


def is_blind(spec: RewardSpec) -> bool:
    """Whether the source of a reward never looks at a reply."""
    source = definition_of(spec)
    return source is not None and not source.reads_reply


def _constant(spec: RewardSpec, value: float, replies: Collection[str], *, is_error: bool, good_known: bool) -> Finding:
    remark = ", which may be all wrong ones, or right ones of a penalty" if value <= 0 else ""
    follows = ": nothing can be learnt from it"
    if is_error and not good_known:
        is_error, follows = False, "; no good reply is known, and one may get another value: as it is, nothing differs"
    return Finding(
        check="constant",
        severity="error" if is_error else "warning",
        reward=spec.label,
        detail=f"it gave {value:g} for {len(replies)} different replies{remark}{follows}",
        advice="let the value depend on the completion"
        if is_error
        else "add cases with a reply that gets another value (FILE.cases.jsonl, or --cases)",
    )


def repeated(specs: Sequence[RewardSpec], first: Sequence[Sample], again: Sequence[Sample], how: str) -> list[Finding]:
    """Rewards that gave another value for the same reply.

    Args:
        how: what was different the second time, to follow "and".
    """
    found = []
    values = {(sample.task.id, sample.text): sample for sample in first}
    for spec in specs:
        changed = [
            (sample, one, other)
            for sample in again
            if differ(one := values[sample.task.id, sample.text].value(spec.label), other := sample.value(spec.label))
        ]
        if changed:
            sample, one, other = min(changed, key=lambda change: len(change[0].text))
            found.append(
                Finding(
                    check="deterministic",
                    severity="error",
                    reward=spec.label,
                    detail=f"the same reply got {_said(one)} and {how} {_said(other)} ({len(changed)} of {len(again)} "
                    "replies differ)",
                    example=quoted(sample.text),
                    advice="let the value depend on the arguments alone: no random numbers, no counters, no memory of "
                    "earlier replies; a judge at temperature 0",
                )
            )
    return found


def _said(value: float | None) -> str:
    return "no value" if value is None else f"{value:.6g}"


def in_groups(
    probe: Probe, samples: Sequence[Sample], *, backwards: bool = False, ends: float = math.inf
) -> list[Sample]:
    """Score the replies to each task again, as one group; groups for which no time is left by `ends` are missing."""
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples[::-1] if backwards else samples:
        by_task[sample.task.id].append(sample)
    groups = list(by_task.values())
    scored = probe.trajectories([(group[0].task, [sample.text for sample in group]) for group in groups], ends=ends)
    return [
        Sample(task=sample.task, text=sample.text, trajectory=trajectory)
        for group, trajectories in zip(groups, scored, strict=False)
        for sample, trajectory in zip(group, trajectories, strict=True)
    ]


def paid_by_place(
    specs: Sequence[RewardSpec], grouped: Sequence[Sample], backwards: Sequence[Sample]
) -> Iterator[Finding]:
    """Rewards that compare the samples of a group and whose values belong to places in it, whoever stands there.

    A right one may pay replies that it takes for equal by their places, as a ranking does. So it is said only of one
    that gives every group the same list of values whichever way round it stands, and never twice ranks two replies in
    the same order.

    Args:
        grouped: the replies to each task as one group.
        backwards: the same, the other way round; some may be missing.
    """
    for spec in specs:
        lists: dict[str, list[tuple[str, float]]] = defaultdict(list)
        again: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for samples, values in ((grouped, lists), (backwards, again)):
            for sample in samples:
                if (value := sample.value(spec.label)) is not None:
                    values[sample.task.id].append((sample.text, value))
        told = [(lists[task], again[task]) for task in again if len({value for _, value in lists[task]}) > 1]
        if not told or any(_follows_replies(one, other) for one, other in told):
            continue
        (first, value), other = told[0][0][0], dict(told[0][1])
        yield Finding(
            check="deterministic",
            severity="error",
            reward=spec.label,
            detail=f"what a reply gets depends on its place in the group alone: the first one got {value:.6g}, and as "
            f"the last one {other[first]:.6g}, as whatever stood there",
            example=quoted(first),
            advice="return the values in the order of `group.trajectories`: where these are sorted first, remember "
            "where each one stood",
        )


def _follows_replies(one: Sequence[tuple[str, float]], other: Sequence[tuple[str, float]]) -> bool:
    """Whether some values of a group stay with the replies and not with the places, when it is turned round."""
    if len(one) != len(other) or any(differ(v, w) for (_, v), (_, w) in zip(one, other, strict=True)):
        return True
    again = dict(other)
    return any(
        differ(value, lower) and differ(again[text], again[below]) and (value > lower) == (again[text] > again[below])
        for (text, value), (below, lower) in itertools.combinations(one, 2)
    )


def timed(probe: Probe, samples: Sequence[Sample], deadline_s: float, ends: float = math.inf) -> list[Finding]:
    """How long a reply takes, one at a time; fewer are timed where no time is left by `ends`."""
    seconds = []
    for sample in samples[:_TIMED]:
        if probe.trajectories([(sample.task, [sample.text])], ends=ends):
            seconds.append(probe.seconds)
    if len(seconds) < 2:
        return []
    marks = quantiles(seconds, n=100, method="inclusive")
    middle, high = marks[49], marks[98]
    slow = high > deadline_s / 2
    return [
        Finding(
            check="time",
            severity="warning" if slow else "info",
            reward=ALL,
            detail=f"p50 {1e3 * middle:.1f} ms, p99 {1e3 * high:.1f} ms for a reply, with the way to the process",
            advice=f"more than half of scoring.deadline_s ({deadline_s:g} s): raise it" if slow else "",
        )
    ]


def spread(specs: Sequence[RewardSpec], samples: Sequence[Sample]) -> Iterator[Finding]:
    """Range of each reward, how often two replies score alike, and from how many it abstained."""
    scored = [sample for sample in samples if isinstance(sample.trajectory.outcome, Score | Abstain)]
    for spec in specs:
        values = [value for sample in samples if (value := sample.value(spec.label)) is not None]
        if not values:
            continue
        counts = Counter(values)
        pairs = len(values) * (len(values) - 1)
        ties = sum(count * (count - 1) for count in counts.values()) / pairs if pairs else 0.0
        (common, _), *_ = counts.most_common(1)
        yield Finding(
            check="range",
            severity="info",
            reward=spec.label,
            detail=f"{min(values):g} to {max(values):g} over {counted(len(values), 'reply', 'replies')}, "
            f"{counted(len(counts), 'different value')}, "
            f"{ties:.0%} of the pairs tie, most often at {common:g}"
            + (
                f"; it abstained from {len(scored) - len(values)} of {len(scored)}" if len(scored) > len(values) else ""
            ),
        )


def leaks(tasks: Sequence[Task]) -> list[Finding]:
    """Whether the tasks' prompts hold their answers, so that a copy of the prompt may pass.

    A prompt that lists all the answers that there are, as a classifier's does, tells nothing.
    """
    answers = [(task, text) for task in tasks if len(text := answer_text(task.answer) or "") > 1]
    labels = {text for _, text in answers}
    held = [
        task
        for task, text in answers
        if text in (asked := prompt_text(task)) and not (len(labels) > 1 and all(label in asked for label in labels))
    ]
    if not held or 2 * len(held) < len(answers):
        return []
    detail = f"the answer stands in the prompt of {len(held)} of {len(answers)} tasks"
    advice = "make sure that it can only be found by solving the task"
    return [Finding(check="data", severity="info", reward=ALL, detail=detail, example=held[0].id, advice=advice)]


def pays_for_nothing(samples: Sequence[Sample], *, takes_answer: bool) -> list[Finding]:
    """Whether an empty reply gets the most that any reply got.

    That is a warning, but for a penalty: what takes no answer and gives nothing above 0 is meant to stand beside a
    reward.
    """
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.total is not None:
            by_task[sample.task.id].append(sample)
    values = [sample.total or 0.0 for group in by_task.values() for sample in group]
    best: dict[str, float] = {}
    for task, group in by_task.items():
        empty = [sample.total or 0.0 for sample in group if not sample.text.strip()]
        if empty:
            best[task] = max(empty)
            if best[task] < max(sample.total or 0.0 for sample in group):
                return []
    if not best or max(values) == min(values) or max(best.values()) < max(values):
        return []
    is_penalty = max(values) <= 0 and not takes_answer
    return [
        Finding(
            check="nothing",
            severity="info" if is_penalty else "warning",
            reward=ALL,
            detail=f"an empty reply gets the most that any of {len(values)} replies got, {max(best.values()):g}: "
            "saying nothing is the best policy",
            example="''",
            advice="a penalty needs a reward beside it that an empty reply does not get; check the config with both",
        )
    ]
