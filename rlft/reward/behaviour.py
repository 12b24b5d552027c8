"""How a reward behaves on made-up replies: whether it fails, abstains, tells replies apart, and says the same twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import TypeGuard

from rlft.reward.findings import Finding, quoted
from rlft.reward.odd_replies import ODD_REPLIES
from rlft.reward.probe import Probe
from rlft.reward.source import Definition, definition
from rlft.types import Abstain, Failed, RewardSpec, Score, Task, Trajectory

ALL = "all together"
"""Name of the weighted sum of a config's rewards."""
_DIFFERS = 1e-4
"""Values further apart than this share of them differ; reward models in float32 vary by less."""
SERVER_ADVICE = (
    "start the server that the reward asks, which has to speak OpenAI's chat API, and name it and its model: "
    "--args base_url=URL --args model=NAME, or `args` in the config"
)
_FEW = 8
"""Replies that have to score alike before a reward is called constant."""
_TIMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A made-up reply that was scored."""

    task: Task
    text: str
    trajectory: Trajectory

    @property
    def total(self) -> float | None:
        """The weighted sum; None where there is none."""
        return self.trajectory.outcome.value if isinstance(self.trajectory.outcome, Score) else None

    @property
    def parts(self) -> Mapping[str, float]:
        """The values of the rewards and of their parts; empty where there are none."""
        return self.trajectory.outcome.parts if isinstance(self.trajectory.outcome, Score) else {}

    def value(self, reward: str) -> float | None:
        """What one reward gave; None where it abstained, or a reward failed."""
        return self.parts.get(reward)


def ask(probe: Probe, texts: Sequence[tuple[Task, str]]) -> list[Sample]:
    """Score replies, each in a group of its own."""
    scored = probe.trajectories([(task, [text]) for task, text in texts])
    return [
        Sample(task=task, text=text, trajectory=trajectory)
        for (task, text), (trajectory,) in zip(texts, scored, strict=True)
    ]


def differ(one: float | None, other: float | None) -> bool:
    """Whether two values of a reward are not the same, but for rounding."""
    if one is None or other is None:
        return one is not other
    return abs(one - other) > _DIFFERS * max(1.0, abs(one), abs(other))


def static_findings(specs: Sequence[RewardSpec], deadline_s: float) -> list[Finding]:
    """What the source alone shows: a missing `return`, a judge that may take longer than its process."""
    found = []
    for spec in specs:
        source = _definition(spec)
        if source is not None and not source.returns:
            found.append(
                Finding(
                    check="contract",
                    severity="error",
                    reward=spec.label,
                    detail=f"{source.where}: the function returns nothing, so the reward always abstains",
                    advice="add a `return` with a number, or with a dict of named numbers",
                )
            )
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


def failure_findings(samples: Sequence[Sample]) -> list[Finding]:
    """Replies that could not be scored: one finding for each way to fail, with the shortest reply.

    The same exception at one line of the user's code is one way, whatever it says; what has no such line is told apart
    by what it says. A reward that was not called, since others had failed, did nothing wrong.
    """
    groups: dict[tuple[str, str, str], list[tuple[Sample, Failed]]] = defaultdict(list)
    for sample in samples:
        for reward, failure in sample.trajectory.failed_parts.items():
            if failure.kind == "not_run":
                continue
            said = failure.message.rpartition("\n")[2]
            is_raised = failure.kind == "error" and failure.where
            way = f"{failure.where} {said.partition(':')[0]}" if is_raised else said
            groups[reward, failure.kind, way].append((sample, failure))
    if not groups:
        odd = [s for s in samples if isinstance(s.trajectory.outcome, Failed)]
        return [_failed(ALL, [(s, s.trajectory.outcome) for s in odd], len(samples))] if odd else []  # type: ignore[misc]
    return [_failed(reward, found, len(samples)) for (reward, _, _), found in groups.items()]


def of_server(outcome: object) -> TypeGuard[Failed]:
    """Whether it failed since a server that a reward asks cannot be reached or refuses."""
    return isinstance(outcome, Failed) and outcome.kind == "server"


def server_said(failure: Failed) -> str:
    """Why a server did not help, without the way there."""
    return failure.message.rpartition("\n")[2].rpartition("ServerError: ")[2]


def _failed(reward: str, found: Sequence[tuple[Sample, Failed]], of: int) -> Finding:
    sample, failure = min(found, key=lambda pair: len(pair[0].text))
    return Finding(
        check="contract",
        severity="error",
        reward=reward,
        detail=f"{len(found)} of {of} replies could not be scored ({failure.kind}): "
        f"{server_said(failure) if failure.kind == 'server' else failure.message}",
        example=quoted(sample.text),
        advice=SERVER_ADVICE
        if failure.kind == "server"
        else "handle every text and every task, since a reply can be anything; None abstains",
    )


def abstentions(specs: Sequence[RewardSpec], samples: Sequence[Sample]) -> list[Finding]:
    """Rewards that never gave a value, and those that did for some replies only."""
    found = []
    scored = [sample for sample in samples if isinstance(sample.trajectory.outcome, Score | Abstain)]
    for spec in specs:
        if not scored or any(sample.value(spec.label) is not None for sample in scored):
            continue
        source = _definition(spec)
        if source is None or source.returns:  # else its source says why
            found.append(
                Finding(
                    check="contract",
                    severity="warning",
                    reward=spec.label,
                    detail=f"it abstained on all {len(scored)} replies, so that nothing else could be checked",
                    advice="give tasks that it applies to (--data, --cases), or look for a path without `return`",
                )
            )
    return found


def constants(seen: Sequence[tuple[RewardSpec, Sequence[Sample]]]) -> list[Finding]:
    """Rewards that gave one value for many different replies.

    It is an error where every reward with a weight gave one value above 0 for replies of all sorts (`ODD_REPLIES`):
    then their weighted sum never changes. One of several may be about something rare, as a bound on the length is. A
    value of 0 or less is a warning, too: wrong replies and most replies to a penalty get that.

    Args:
        seen: all rewards, each with the replies on which its values can be compared; none where there are no such.
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
    return [_constant(*one, is_error=bool(one[0].weight) and is_sum_constant) for one in found.values()]


def _constant(spec: RewardSpec, value: float, replies: Collection[str], *, is_error: bool) -> Finding:
    remark = ", which may be all wrong ones, or right ones of a penalty" if value <= 0 else ""
    return Finding(
        check="constant",
        severity="error" if is_error else "warning",
        reward=spec.label,
        detail=f"it gave {value:g} for {len(replies)} different replies{remark}: nothing can be learnt from it",
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


def in_groups(probe: Probe, samples: Sequence[Sample], *, backwards: bool = False) -> list[Sample]:
    """Score the replies to each task again, as one group."""
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples[::-1] if backwards else samples:
        by_task[sample.task.id].append(sample)
    groups = list(by_task.values())
    scored = probe.trajectories([(group[0].task, [sample.text for sample in group]) for group in groups])
    return [
        Sample(task=sample.task, text=sample.text, trajectory=trajectory)
        for group, trajectories in zip(groups, scored, strict=True)
        for sample, trajectory in zip(group, trajectories, strict=True)
    ]


def timed(probe: Probe, samples: Sequence[Sample], deadline_s: float) -> list[Finding]:
    """How long a reply takes, one at a time."""
    seconds = []
    for sample in samples[:_TIMED]:
        probe.trajectories([(sample.task, [sample.text])])
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
    """Range of each reward, and how often two replies score alike."""
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
            detail=f"{min(values):g} to {max(values):g} over {len(values)} replies, {len(counts)} different values, "
            f"{ties:.0%} of the pairs tie, most often at {common:g}",
        )


def _definition(spec: RewardSpec) -> Definition | None:
    try:
        return definition(spec.path)
    except ValueError:  # loading it says what is wrong
        return None
