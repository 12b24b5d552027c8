"""Whether a reward pays for the wrong answer: right ones score below wrong ones, or below nonsense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rlft.reward.findings import ALL, Finding, quoted
from rlft.reward.good_replies import Source
from rlft.reward.probe import Probe
from rlft.reward.transforms import GARBAGE

_CLEARLY = 0.1
"""How far apart two scores have to be, as a share of the larger one."""
_WRONG = 3
_Above: TypeAlias = Literal["wrong", "nonsense", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """One right answer in one way to write it, beside replies that are not right."""

    source: Source
    right: float
    wrong: tuple[float, ...]
    nonsense: float

    @property
    def above(self) -> _Above:
        """What scores clearly above the right answer."""
        if self.wrong and all(_clearly_above(value, self.right) for value in self.wrong):
            return "wrong"
        return "nonsense" if _clearly_above(self.nonsense, self.right) else ""


def inverted(
    probe: Probe, by_template: Mapping[str, Sequence[Source]], *, anything_known: bool, ends: float
) -> Finding | None:
    """An error where right answers earn less than wrong ones, or where nonsense is paid and they are not.

    It is for rewards that take the answer and prefer the right one in no way to write it. That nonsense scores 0 and
    the right answer less is a warning: a strict reward may not read it.

    Args:
        by_template: the right answers in each way to write them.
        anything_known: whether some way to write them scores above nonsense; then only wrong answers can be above.
        ends: no more is tried after this time of `time.monotonic`.
    """
    found: dict[str, list[_Tried]] = {}
    for form, sources in by_template.items():
        tried = [one for source in sources if (one := _try(probe, source, ends)) is not None]
        if tried and all(one.above for one in tried):
            found[form] = tried
    by_wrong = [form for form, tried in found.items() if all(one.above == "wrong" for one in tried)]
    if anything_known:
        found = {form: found[form] for form in by_wrong}
    if not found:
        return None
    form = (by_wrong or list(found))[0]
    one = found[form][0]
    lower = _clearly_above(one.nonsense, one.right)
    what, value = ("nonsense", one.nonsense) if lower else ("a wrong answer", max(one.wrong))
    is_paid = bool(by_wrong) or one.nonsense > 0
    return Finding(
        check="good replies",
        severity="error" if is_paid else "warning",
        reward=ALL,
        detail=f"the right answer in {form} scores lower than {what} ({one.right:g} against {value:g}): "
        + ("is the comparison inverted?" if is_paid else "no way to write it scores above nonsense"),
        example=quoted(one.source.good.text),
        advice="pay for the right answer; if another format is wanted, or the answer must not be given, add a case "
        "with a good reply (FILE.cases.jsonl, or --cases)",
    )


def _try(probe: Probe, source: Source, ends: float) -> _Tried | None:
    """Scored as one group, so that a reward may compare them; None where one could not be scored."""
    good = source.good
    wrong = [good.write(other) for other in good.others[:_WRONG]]
    replies = [good.text, GARBAGE, *wrong]
    compares = any(plan.kind == "group" for plan in probe.plans.values())
    asks = [(source.task, replies)] if compares else [(source.task, [reply]) for reply in replies]
    scored = [outcome for group in probe.score_groups(asks, ends=ends) for outcome in group]
    values = [getattr(outcome, "value", None) for outcome in scored]
    if len(values) < len(replies) or any(value is None for value in values):
        return None
    right, nonsense, *others = (float(value) for value in values if value is not None)
    return _Tried(source=source, right=right, wrong=tuple(others), nonsense=nonsense)


def _clearly_above(value: float, other: float) -> bool:
    return value - other > _CLEARLY * max(abs(value), abs(other))
