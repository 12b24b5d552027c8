"""A short look at the rewards of a run before it starts, in the scoring processes that it has anyway."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from rlft.environment.contract import Environment
from rlft.reward.behaviour import abstentions, ask, constants, repeated, static_findings
from rlft.reward.case_findings import case_findings
from rlft.reward.cases import Case, cases_beside, outcomes_by_name
from rlft.reward.cheats import cheats
from rlft.reward.check import plain_replies
from rlft.reward.failures import failure_findings
from rlft.reward.findings import ALL, Finding, Sample
from rlft.reward.good_replies import answer_names, demonstrated, good_cases
from rlft.reward.probe import GaveUpError, Probe
from rlft.reward.scoring import Scorer
from rlft.types import RewardSpec, Task

WITHIN_S = 4.0
"""No further replies are scored after so many seconds."""
_PLAIN, _CASES = 0.6, 0.8
"""Shares of this time by which ordinary replies, and then the cases, have to be scored."""
_SLOW_S = 0.5
"""A reward that takes longer for a reply may be a judge that costs money: one reply is enough."""
_CHEAP_S = 0.02
"""Cheats are many, so a reply may take so long in the mean for them to be tried."""
_TASKS = 2
_MANY = 4
"""Tasks whose answers are written in replies made up to cheat."""
_ROWS = 1000
"""Tasks and demonstrations among which those are sought that belong together."""
_MORE = "`rlft reward check CONFIG` says more"


def look(
    specs: Sequence[RewardSpec],
    scorer: Scorer,
    environment: Environment,
    deadline_s: float,
    *,
    within_s: float = WITHIN_S,
) -> list[Finding]:
    """What is wrong with a run's rewards, as far as a few seconds show it; of a fine reward, nothing.

    An error is what would end the run or leave nothing to learn from: no `return`, every reply fails, one value of all
    rewards together for all replies, or that and no value of the only one, another value for the same reply. A warning
    are replies that fail now and then (`scoring.max_failed` decides about them), cases that lie beside the reward and
    do not hold, and replies made up to cheat that score like good ones.

    Args:
        specs: the config's rewards; those on the learner's base are passed over, since there is no learner yet.
        deadline_s: `scoring.deadline_s`.
        within_s: no further replies are scored after so many seconds.
    """
    began = time.monotonic()
    called = [spec for spec in specs if not spec.folder]
    found = static_findings(called, deadline_s)
    if found or len(called) < len(specs):  # the weighted sum needs all rewards
        return found
    samples: list[Sample] = []
    is_slow = False
    if environment.episode is None:  # made-up replies are no episodes
        probe = Probe.of(scorer)
        samples, again, is_slow = _scored_twice(probe, _first_tasks(environment), began + _PLAIN * within_s)
        found = _behaviour(called, scorer, samples, again)
    if is_slow or any(finding.severity == "error" for finding in found):
        return found
    # So that one reply, or one group of those that are compared, cannot use up the time.
    compares = any(plan.kind == "group" for plan in scorer.plans.values())
    probe = Probe.of(scorer, deadline_s=_SLOW_S / 10 if compares else _SLOW_S, most_killed=0)
    known, more = _cases(probe, called, began + _CASES * within_s)
    spent, replies = time.monotonic() - began, 2 * len(samples) + len(known)
    if spent <= _CHEAP_S * replies:
        more += _cheats(probe, known, samples, environment, began + within_s)
    label, *others = [spec.label for spec in called if spec.weight]
    return found + [replace(each, reward=ALL if others else label) for each in more]


def told(finding: Finding) -> str:
    """A finding in one paragraph."""
    what = "the rewards together" if finding.reward == ALL else f"reward {finding.reward}"
    example = f" (reply {finding.example})" if finding.example else ""
    advice = f"; {finding.advice}" if finding.advice else ""
    return f"{what}: {finding.detail}{example}{advice}"


def _behaviour(
    called: Sequence[RewardSpec], scorer: Scorer, first: Sequence[Sample], again: Sequence[Sample]
) -> list[Finding]:
    """What ordinary replies show."""
    seen = [(spec, first if scorer.plans[spec.label].kind != "group" else []) for spec in called]
    found = failure_findings(first, called, {label: plan.kind for label, plan in scorer.plans.items()})
    if not all(sample.total is None for sample in first):
        found = [replace(finding, severity="warning") for finding in found]
    abstaining = abstentions(called, first)
    if len([spec for spec in called if spec.weight]) > 1:  # the others may tell replies apart
        abstaining = [replace(finding, severity="warning") for finding in abstaining]
    found += abstaining
    found += [each for each in constants(seen) if each.severity == "error"]
    return found + repeated(called, first, again, "later")


def _cases(probe: Probe, called: Sequence[RewardSpec], ends: float) -> tuple[list[Case], list[Finding]]:
    """The cases that lie beside the only reward with a weight and were scored, and one finding about the broken."""
    if any(spec.only for spec in called):  # a case does not say of which environment it is
        return [], []
    try:
        every = cases_beside(called)
    except ValueError as error:
        return [], [Finding(check="cases", severity="warning", reward=ALL, detail=str(error), advice=_MORE)]
    try:
        began = time.monotonic()
        known = outcomes_by_name(probe, every[:1], ends)
        if time.monotonic() - began <= _SLOW_S:
            known |= outcomes_by_name(probe, every, ends)
    except GaveUpError:  # `reward check` has more patience
        return [], []
    cases = [case for case in every if case.name in known and (not case.expect.above or case.expect.above in known)]
    wrong = [each for each in case_findings(cases, [known[case.name] for case in cases]) if each.severity == "error"]
    if not wrong:
        return cases, []
    more = f", and {len(wrong) - 1} more of {len(cases)} cases do not hold" if wrong[1:] else ""
    finding = replace(wrong[0], severity="warning", detail=wrong[0].detail + more)
    return cases, [replace(finding, advice=f"{finding.advice}; {_MORE}")]


def _cheats(
    probe: Probe, cases: Sequence[Case], samples: Sequence[Sample], environment: Environment, ends: float
) -> list[Finding]:
    """One finding about replies made up to cheat, where some score like good ones."""
    is_episodic = environment.episode is not None
    tasks = [] if is_episodic else _first_tasks(environment, _MANY)
    names = answer_names(tasks)
    good = good_cases(cases)
    if not good and not any(name in plan.parameters for plan in probe.plans.values() for name in names):
        return []  # nobody has said what is right
    if not is_episodic:
        rows = list(islice(environment.train, _ROWS))
        good += demonstrated(rows, environment.demonstrations[:_ROWS], _MANY)
    try:
        found, search = cheats(probe, [*samples], tasks=tasks, good=good[:_MANY], answer_names=names, ends=ends)
    except GaveUpError:
        return []
    wrong = [each for each in found if each.severity == "error"]
    if not wrong or search.lost:
        return []
    others = ", ".join(dict.fromkeys(each.check for each in wrong[1:]))
    also = f"; other tricks work, too: {others}" if others else ""
    finding = replace(wrong[0], severity="warning", advice=f"{wrong[0].advice}; {_MORE}".removeprefix("; "))
    detail = f"it can be cheated: {finding.check}: {finding.detail}{also}"
    return [replace(finding, detail=detail)]


def _first_tasks(environment: Environment, most: int = _TASKS) -> list[Task]:
    return [each.train[0] for each in environment.sources.values()] or [*environment.train[:most]]


def _scored_twice(probe: Probe, tasks: Sequence[Task], ends: float) -> tuple[list[Sample], list[Sample], bool]:
    """Replies to tasks, one call each, as many as there is time for; those scored twice; whether a call was slow."""
    texts = plain_replies(tasks)
    rounds: tuple[list[Sample], list[Sample]] = ([], [])
    for samples, order in zip(rounds, (texts, texts[::-1]), strict=True):
        for text in order:
            began = time.monotonic()
            if began > ends:
                return *rounds, False
            samples += ask(probe, [text])
            if time.monotonic() - began > _SLOW_S:
                return *rounds, True
    return *rounds, False
