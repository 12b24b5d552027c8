"""What was made of good replies to cheat, and which of that a reward paid for."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rlft.reward.behaviour import ask
from rlft.reward.findings import ALL, Finding, Sample, quoted
from rlft.reward.good_replies import Source
from rlft.reward.odd_replies import JUDGE_TEXTS
from rlft.reward.padding import lengthened
from rlft.reward.probe import GaveUpError, Probe
from rlft.reward.transforms import (
    FAMILIES,
    FILLER,
    GARBAGE,
    TRANSFORMS,
    Good,
    Looks,
    Severity,
    Transform,
)
from rlft.reward.turn_transforms import TURN_TRANSFORMS, broken, looked_at
from rlft.types import Task

_AS_GOOD = 0.01
"""A reply that is nearer than this share to the good one's score, from that of a bad one, scores as high."""
_MOST_SOURCES = 8
_OF_BEST = 4
_AT_ONCE = 16
_PAID = 0.1
"""A reply without an answer that is further above a wrong one than this share of the way from bad to good is paid for
not giving an answer."""
LONG = FILLER * 60
_LETTER = re.compile(r"[A-Za-z]")
_MOST_LOST = 2
"""Hangs after which no further replies are tried."""
_EMPTY = ("nothing", "echo", "garbage", "format only")
"""Families that hold no answer: more than half of a good reply's score for them is worth a word. A wrong answer may
earn a part of it, as where nearness counts."""


@dataclass(slots=True)
class Search:
    """Transforms of good replies, scored and judged."""

    probe: Probe
    ends: float
    """No further replies are scored after this time of `time.monotonic`."""
    samples: list[Sample]
    """All that were scored."""
    stopped: bool = False
    """Whether some were left out for want of time."""
    seen: Mapping[tuple[str, str], Sample] = field(default_factory=dict)
    """Replies that were scored alone before, by their task's id and text: they are not scored again."""
    lost: list[GaveUpError] = field(default_factory=list)
    """Replies that a reward hung on, or that ended its process."""

    def score(self, texts: Sequence[tuple[Task, str]], *, beside: Sequence[str] = ()) -> list[float | None]:
        """The weighted sums; None where there is none."""
        if not beside and self.seen:
            new = [(task, text) for task, text in texts if (task.id, text) not in self.seen]
            scored = dict(zip([(task.id, text) for task, text in new], self._score(new, ()), strict=True))
            known = {key: sample.total for key, sample in self.seen.items()}
            return [{**scored, **known}[task.id, text] for task, text in texts]
        return self._score(texts, beside)

    def _score(self, texts: Sequence[tuple[Task, str]], beside: Sequence[str]) -> list[float | None]:
        values: list[float | None] = []
        for start in range(0, len(texts), _AT_ONCE):
            if time.monotonic() > self.ends or len(self.lost) == _MOST_LOST:
                self.stopped = True
                return values + [None] * (len(texts) - len(values))
            part = texts[start : start + _AT_ONCE]
            try:
                found = self._ask(part, beside)
            except GaveUpError as error:
                self.lost.append(error)
                values += [None] * len(part)
            else:
                self.samples += found
                values += [*(sample.total for sample in found), *[None] * (len(part) - len(found))]
        return values

    def _ask(self, texts: Sequence[tuple[Task, str]], beside: Sequence[str]) -> list[Sample]:
        if not beside:
            return ask(self.probe, texts, self.ends)
        scored = self.probe.trajectories([(task, [*beside, text]) for task, text in texts], ends=self.ends)
        return [
            Sample(task=task, text=text, trajectory=group[-1])
            for (task, text), group in zip(texts, scored, strict=False)
        ]

    def best(self, by_template: dict[str, list[Source]]) -> list[Source]:
        """The sources of the template that scores highest in the mean, and one of each other that scores as high."""
        means: dict[str, float] = {}
        for name, sources in by_template.items():
            values = [v for v in self.score([(s.task, s.good.text) for s in sources]) if v is not None]
            if values:
                means[name] = sum(values) / len(values)
        if not means:
            return []
        best = max(means, key=lambda name: means[name])
        ties = [name for name in means if name != best and means[name] == means[best]]
        return [*by_template[best][:_OF_BEST], *(by_template[name][0] for name in ties)]

    def measured(self, sources: Sequence[Source], *, comparative: bool) -> list[Known]:
        """The sources that score higher than nonsense, with their scores."""
        return [one for source in sources[:_MOST_SOURCES] if (one := self._measured(source, comparative))]

    def judged(self, known: Sequence[Known], *, comparative: bool, takes_answer: bool) -> list[Finding]:
        """What the rewards pay for that they should not."""
        if not known:
            return [_nothing_known()]
        aware = [one for one in known if one.aware]
        with_answer = [one for one in known if one.source.good.answer is not None]
        found: list[Finding] = []
        if with_answer and not aware:
            found.append(_not_aware(takes_answer, with_answer))
        if not with_answer or aware:
            found += self._cheated(aware or known, comparative)
        return found

    def lengthened(self, sources: Sequence[Source], *, comparative: bool) -> list[Finding]:
        """Whether a reward that looks at no answer pays for words about nothing, in the format of a reply or around."""
        hits: list[tuple[float, str, float, str]] = []
        tried = 0
        for source in sources[:_MOST_SOURCES]:
            good = source.good
            made = [good.text, *lengthened(good.text, LONG, good.answer)]
            wholes = [good.whole(text) for text in made]
            base, *others = (
                self._together(source.task, wholes)
                if comparative
                else self.score([(source.task, text) for text in wholes])
            )
            more = [(v, text) for v, text in zip(others, made[1:], strict=True) if v is not None and base is not None]
            tried += base is not None
            if more and base is not None and (best := max(more))[0] > base + _AS_GOOD * max(1.0, abs(base)):
                hits.append((*best, base, good.text))
        if not hits or (sources[0].form == sources[-1].form and 2 * len(hits) < tried):
            return []
        value, text, base, short = max(hits, key=lambda hit: hit[0] - hit[2])
        return [
            Finding(
                check="padding",
                severity="warning",
                reward=ALL,
                detail=f"longer replies get more: {len(text) - len(short):,} characters about nothing take one from "
                f"{base:g} to {value:g}",
                example=quoted(text),
                advice=FAMILIES["padding"],
            )
        ]

    def ordered(self, tasks: Sequence[Task], ordinary: Sequence[Sample]) -> list[Finding]:
        """Whether a text for a judge scores above all ordinary replies to its task, of which none is known to be good.

        Args:
            tasks: those that it is tried on, and has to work on.
            ordinary: what was scored before.
        """
        most = {task.id: max(values) for task in tasks if (values := _ordinary_values(ordinary, task))}
        asks = [(task, text) for task in tasks if task.id in most for text in JUDGE_TEXTS]
        scores = self.score(asks)
        alike = self.score([(task, _LETTER.sub("x", text)) for task, text in asks])  # of the same shape, without sense
        paid: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for (task, text), value, of_shape in zip(asks, scores, alike, strict=True):
            bound = max(most[task.id], most[task.id] if of_shape is None else of_shape)
            if value is not None and value > bound + _PAID * max(1e-6, abs(bound)):
                paid[text].append((value, most[task.id]))
        for text, pairs in paid.items():
            if len(pairs) == len(most):
                value, bound = pairs[0]
                return [
                    Finding(
                        check="injection",
                        severity="error",
                        reward=ALL,
                        detail=f"a text for a judge scores {value:g}, above all ordinary replies ({bound:g} at most)",
                        example=quoted(text),
                        advice=FAMILIES["injection"],
                    )
                ]
        return []

    def _together(self, task: Task, texts: Sequence[str]) -> list[float | None]:
        """The weighted sums of texts that are one group."""
        scored = self.probe.trajectories([(task, texts)])[0]
        found = [Sample(task=task, text=t, trajectory=s) for t, s in zip(texts, scored, strict=True)]
        self.samples += found
        return [sample.total for sample in found]

    def _measured(self, source: Source, comparative: bool) -> Known | None:
        good = source.good
        wrong = [good.write(other) for other in good.others[:4]] if good.answer is not None else []
        spoilt = broken(good)
        texts = [*map(good.whole, [good.text, *wrong]), *(text for texts in spoilt.values() for text in texts)]
        if comparative:
            values = self._together(source.task, texts)
        else:
            values = self.score([(source.task, text) for text in texts])
        high, low = values[0], min((value for value in values[1:] if value is not None), default=None)
        if high is None or low is None or high <= low:
            return None
        bar = high - _AS_GOOD * (high - low)
        aware = bool(wrong) and all(value is not None and value < bar for value in values[1 : 1 + len(wrong)])
        of_garbage = values[2 + len(wrong)]
        nonsense = low if of_garbage is None else of_garbage
        looks = looked_at(spoilt, dict(zip(texts, values, strict=True)).get, bar)
        of_wrong = max((value for value in values[1 : 1 + len(wrong)] if value is not None), default=None)
        return Known(source=source, high=high, low=low, nonsense=nonsense, wrong=of_wrong, aware=aware, looks=looks)

    def _cheated(self, known: Sequence[Known], comparative: bool) -> list[Finding]:
        hits: dict[tuple[Transform, str], list[_Hit]] = defaultdict(list)
        tried: dict[tuple[Transform, str], int] = defaultdict(int)
        ruinous: set[Transform] = set()  # what a reward has hung on is not tried again
        for one in known:
            good = one.source.good
            rows = [t for t in (*TRANSFORMS, *TURN_TRANSFORMS) if t not in ruinous and applies(t, one.looks)]
            made = [(t, text) for t in rows if (text := make(t, good)) is not None]
            beside = [good.whole(good.text), good.whole(good.write(good.wrong))] if comparative else []
            values = self.score([(one.source.task, text) for _, text in made], beside=beside)
            ruinous |= {transform for transform, text in made if text in {error.text for error in self.lost}}
            for (transform, text), value in zip(made, values, strict=True):
                if value is not None:
                    tried[transform, one.source.form] += 1
                    if verdict := one.verdict(transform, value):
                        hits[transform, one.source.form].append(
                            _Hit(text=text, value=value, known=one, verdict=verdict)
                        )
        return _told(hits, tried)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A good reply with its score, and that of a bad one."""

    source: Source
    high: float
    low: float
    nonsense: float
    """Score of words that mean nothing."""
    wrong: float | None
    """The highest score of some wrong answers; None where none is known."""
    aware: bool
    """Whether wrong answers score lower."""
    looks: frozenset[Looks]
    """What of a reply the reward looks at."""

    def verdict(self, transform: Transform, value: float) -> str:
        """What is wrong with the value of a transformed reply; empty if nothing is, see `_VERDICTS`."""
        room = self.high - self.low
        if transform.expected == "below":
            if value >= self.high - _AS_GOOD * room:
                return "full"
            if transform.family in _EMPTY and above_wrong(value, self.wrong, room):
                return "paid" if value > 0 else "spared"
            return "half" if value > self.low + 0.5 * room and transform.family in _EMPTY else ""
        if transform.expected == "not above":
            return "more" if value > self.high + _AS_GOOD * room else ""
        return "less" if transform.expected == "same" and value < self.low + 0.5 * room else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hit:
    """A transformed reply that did not score as it should."""

    text: str
    value: float
    known: Known
    verdict: str


def _ordinary_values(samples: Sequence[Sample], task: Task) -> list[float]:
    """The scores of the replies to a task that are no texts for a judge."""
    of_task = [sample for sample in samples if sample.task.id == task.id and sample.text not in JUDGE_TEXTS]
    return [sample.total for sample in of_task if sample.total is not None]


def applies(transform: Transform, looks: Collection[Looks]) -> bool:
    """Whether what a transform expects is safe to expect of a reward that looks at some things."""
    return transform.looks in looks and transform.not_at not in looks


def make(transform: Transform, good: Good) -> str | None:
    """What a transform makes of a good reply: the whole episode; None where it applies not, or changes nothing."""
    if transform.of_answer and good.answer is None:
        return None
    text = transform.make(good)
    return None if text is None or text == good.text else good.whole(text)


def _told(
    hits: Mapping[tuple[Transform, str], list[_Hit]], tried: Mapping[tuple[Transform, str], int]
) -> list[Finding]:
    """One finding for each family and severity, with the shortest reply."""
    by_family: dict[tuple[str, Severity, bool], list[tuple[Transform, _Hit]]] = defaultdict(list)
    for (transform, form), found in hits.items():
        for hit in found:
            severity: Severity = transform.severity
            if hit.verdict == "spared":
                severity = "info"
            elif severity == "error" and (hit.verdict == "half" or len(found) * 2 < tried[transform, form]):
                severity = "warning"
            family = {"half": "format only", "paid": _UNANSWERED, "spared": _UNANSWERED}.get(
                hit.verdict, transform.family
            )
            by_family[family, severity, hit.verdict == "less"].append((transform, hit))
    findings = []
    for (family, severity, is_less), pairs in by_family.items():
        transform, hit = min(pairs, key=lambda pair: len(pair[1].text))
        good = hit.known.source.good
        names = list(dict.fromkeys(each.name for each, _ in pairs))
        told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        findings.append(
            Finding(
                check=family,
                severity=severity,
                reward=ALL,
                detail=f"{told}: {_verdict(hit)}",
                example=f"{quoted(hit.text)} scores {hit.value:g}, {_compared(hit)}{quoted(good.whole(good.text))} "
                f"{hit.known.high:g}",
                advice=_ADVICE[hit.verdict]
                if family == _UNANSWERED
                else ("" if is_less and family == "many answers" else FAMILIES[family]),
            )
        )
    return findings


_UNANSWERED = "no answer"
"""What a finding is called that compares replies without an answer with wrong answers."""
_VERDICTS = {
    "full": "scores as high as a good reply",
    "half": "gets more than half of what a good reply gets",
    "paid": "a reply without an answer scores above a wrong one",
    "spared": "a reply without an answer scores above a wrong one",
    "more": "scores higher than the good reply that it is made of",
    "less": "scores lower than the good reply that says the same",
}
PAID_ADVICE = "give a reply that cannot be read what a wrong answer gets, or less; see what an `except` returns"
_ADVICE = {
    "paid": PAID_ADVICE,
    "spared": "a policy learns to say nothing where it is not sure: keep it if that is meant",
}


def above_wrong(value: float, wrong: float | None, room: float) -> bool:
    """Whether the score of a reply without an answer is clearly above that of a wrong answer, where one is known.

    Args:
        room: how far the good reply's score is from a bad one's.
    """
    return wrong is not None and value > wrong + _PAID * room


def _verdict(hit: _Hit) -> str:
    return _VERDICTS[hit.verdict]


def _compared(hit: _Hit) -> str:
    """The wrong answer that a reply without an answer is compared with, and its score."""
    if hit.verdict not in _ADVICE or hit.known.wrong is None:
        return ""
    good = hit.known.source.good
    return f"the wrong {quoted(good.whole(good.write(good.wrong)))} {hit.known.wrong:g}, "


def _nothing_known() -> Finding:
    return Finding(
        check="good replies",
        severity="info",
        reward=ALL,
        detail="no way to write the tasks' answers scored above nonsense, so that no cheating replies could be made",
        advice="add cases with good replies (FILE.cases.jsonl, or --cases)",
    )


def _not_aware(takes_answer: bool, known: Sequence[Known]) -> Finding:
    source = known[0].source
    nonsense = all(one.nonsense >= one.high for one in known)
    what, reply = ("nonsense", GARBAGE) if nonsense else ("a wrong answer", source.good.write(source.good.wrong))
    ignored = ", although the reward takes `answer`" if takes_answer else ": the reward does not look at the answer"
    return Finding(
        check="good replies",
        severity=("error" if nonsense else "warning") if takes_answer else "info",
        reward=ALL,
        detail=f"{what} scores as high as the right answer{ignored}",
        example=quoted(reply),
        advice="compare the reply with the answer" if takes_answer else "add a reward that looks at the answer",
    )
