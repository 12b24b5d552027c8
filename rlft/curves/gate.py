"""`rlft gate`: may a candidate replace a baseline? A test of non-inferiority with a stated margin.

With `change` the candidate's held-out mean minus the baseline's, its 95 % interval [low, high], and the margin
`min_effect`, the smallest loss that matters:

- pass: low > -min_effect. The candidate is not worse by as much as matters. A candidate that is worse by exactly
  the margin passes in at most 2.5 of 100 gates.
- regression: high < 0, and it does not pass. The candidate is worse. An equal one is called so in at most 2.5 of 100.
  Between groups of seeds an exact permutation has to agree, which takes at least 4 seeds on each side.
- cannot tell: neither, or a score is missing on either side, or there is no honest interval; or it would pass, and the
  candidate's own report doubts it whatever it is compared with (`doubts_of`).

A candidate that is worse for certain, but by less than the margin, passes: that is what the margin says. The interval
is that of `rlft compare`: paired by task for one run against one, over seeds and tasks for groups. `make compare-rates`
simulates both error rates, and that the size which `rlft power` names finds a loss of the margin in 80 of 100 gates.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlft.curves.comparison import Comparison
from rlft.curves.scored_run import Group
from rlft.curves.text import counted, interval_text, visible
from rlft.curves.verdict import verdict_of

_DOUBTS_OF_CANDIDATE = (
    *("age", "alarm", "collapse", "damaged", "lost"),
    *("truncation", "shadow", "observed", "evaluation_set"),
)
"""Codes of a verdict's reasons that are about the candidate itself and not about what it is compared with: what came
after the evaluation, or was not read; what the evaluation did not measure; and what got worse beside the headline."""
EXIT_CODES = {"pass": 0, "regression": 1, "cant_tell": 2}
"""What `rlft gate` exits with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The decision about a candidate."""

    decision: Literal["pass", "regression", "cant_tell"]
    sentence: str
    """The decision in words, with its numbers."""
    reasons: Sequence[str]
    """Why it cannot be told, and what would help; empty otherwise."""
    min_effect: float
    """The margin."""
    comparison: Comparison

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 2 cannot tell."""
        return EXIT_CODES[self.decision]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        told = self.comparison.as_dict()
        return {
            "verdict": self.decision,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "min_effect": self.min_effect,
            **{
                name: told[name]
                for name in ("metric", "effect", "groups", "missing", "unpaired", "detectable", "remarks")
            },
        }

    def junit(self) -> bytes:
        """The decision as one test case of JUnit's XML: a regression is a failure, what cannot be told an error."""
        name = f"{self.comparison.after.label} against {self.comparison.before.label}"
        return junit(self.decision, self.sentence, self.reasons, name=name, metric=self.comparison.metric)


def junit(decision: str, sentence: str, reasons: Sequence[str], *, name: str, metric: str = "") -> bytes:
    """A decision as JUnit's XML, also one that could not be made because a run cannot be read."""
    failures, errors = (str(int(decision == each)) for each in ("regression", "cant_tell"))
    counts = {"tests": "1", "skipped": "0", "failures": failures, "errors": errors}
    suite = ElementTree.Element("testsuite", {"name": "rlft gate", **counts})
    classname = f"rlft.gate.{metric}" if metric else "rlft.gate"
    case = ElementTree.SubElement(suite, "testcase", classname=visible(classname), name=visible(name))
    if decision != "pass":
        kind = "failure" if decision == "regression" else "error"
        bad = ElementTree.SubElement(case, kind, type=decision, message=visible(sentence))
        bad.text = visible("\n".join(reasons) or sentence)
    text = ElementTree.SubElement(case, "system-out")
    text.text = visible(sentence)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def doubts_of(candidate: Group) -> list[str]:
    """Why the last evaluation of a candidate does not tell what the candidate is worth; empty where nothing says so.

    These are reasons of its own report (`rlft report`): the reward fell since, the run went on for long or lost its
    last evaluation, a file is damaged, an alarm that leaves doubt; completions were cut; a shadow reward, an observed
    one or an evaluation set got worse. An evaluation that was asked for by name is taken as it is.
    """
    runs = [run.folder for run in candidate.runs if not run.is_chosen]
    return [
        f"{folder.name}: {reason.says.rstrip('.')}"
        for folder in runs
        for reason in verdict_of(folder).reasons
        if reason.code in _DOUBTS_OF_CANDIDATE and reason.weight in ("against", "doubt")
    ]


def gate(comparison: Comparison, min_effect: float, doubted: Sequence[str] = ()) -> Gate:
    """Decide about the second group of a comparison, see above.

    Args:
        min_effect: the margin.
        doubted: what its own report says against the candidate (`doubts_of`); with one nothing passes.

    Raises ValueError unless `min_effect` is above 0: no finite number of tasks shows that nothing at all was lost.
    """
    if not min_effect > 0:
        raise ValueError(
            f"--min-effect is the smallest loss that matters and must be above 0, for example 0.02, not {min_effect}: "
            "no number of tasks can show that a candidate lost nothing at all"
        )
    change = comparison.headline.change
    reasons = _missing(comparison)
    decision: Literal["pass", "regression", "cant_tell"] = "cant_tell"
    if reasons:
        pass
    elif comparison.tasks.why_none or not change.bounded:
        reasons = [comparison.tasks.why_none or "there is no interval: one run with one task, or none"]
    elif change.low > -min_effect and doubted:
        reasons = list(doubted)
    elif change.low > -min_effect:
        decision = "pass"
    elif comparison.headline.conclusive and change.mean < 0:
        decision = "regression"
    elif change.high < 0:
        reasons = list(comparison.reasons)
    else:
        what = comparison.tasks.how_skewed or _what_would(comparison)
        reasons = [f"the interval holds both no loss and one of {min_effect:g}; {what}"]
    names = f"{comparison.after.label} against {comparison.before.label}"
    numbers = f"{comparison.metric} changed by {interval_text(change, '+')} over {counted(change.n, 'task')}"
    certain = f"worse{' ' if change.high <= -min_effect else ', perhaps '}by {min_effect:g} or more"
    verdicts = {
        "pass": f"PASS: {names}, {numbers}: no loss of {min_effect:g} or more.",
        "regression": f"REGRESSION: {names}, {numbers}: {certain}.",
        "cant_tell": f"CAN'T TELL: {names}, {numbers}: {'; '.join(reasons)}.",
    }
    return Gate(
        decision=decision,
        sentence=verdicts[decision],
        reasons=reasons,
        min_effect=min_effect,
        comparison=comparison,
    )


def _missing(comparison: Comparison) -> list[str]:
    if not comparison.missing and not comparison.unpaired:
        return []
    told = []
    if comparison.missing:
        told.append(f"{counted(comparison.missing, 'sample')} could not be scored")
    if comparison.unpaired:
        told.append(f"{counted(comparison.unpaired, 'task')} scored in some of the runs only")
    return [
        f"scores are missing: {', and '.join(told)}; mend the reward, or evaluate all on the same tasks, and try again"
    ]


def _what_would(comparison: Comparison) -> str:
    known = comparison.detectable
    ways = []
    if known.tasks:
        ways.append(f"{known.tasks:,} tasks")
    if known.seeds:
        ways.append(f"{known.seeds} seeds on each side")
    return f"{' or '.join(ways)} would tell in 80 of 100 gates" if ways else "neither more tasks nor more seeds tell"
