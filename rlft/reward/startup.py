"""A short look at the rewards of a run before it starts, in the scoring processes that it has anyway."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from rlft.environment.contract import Environment
from rlft.reward.behaviour import abstentions, ask, constants, repeated, static_findings
from rlft.reward.check import plain_replies
from rlft.reward.failures import failure_findings
from rlft.reward.findings import Finding, Sample
from rlft.reward.probe import Probe
from rlft.reward.scoring import Scorer
from rlft.types import RewardSpec

WITHIN_S = 4.0
"""No further replies are scored after so many seconds."""
_SLOW_S = 0.5
"""A reward that takes longer for a reply may be a judge that costs money: one reply is enough."""
_TASKS = 2


def look(specs: Sequence[RewardSpec], scorer: Scorer, environment: Environment, deadline_s: float) -> list[Finding]:
    """What is wrong with a run's rewards, as far as a few seconds show it; of a fine reward, nothing.

    An error is what would end the run or leave nothing to learn from: no `return`, every reply fails, one value of all
    rewards together for all replies, or that and no value of the only one, another value for the same reply. Replies
    that fail now and then are a warning: `scoring.max_failed` decides about them.

    Args:
        specs: the config's rewards; those on the learner's base are passed over, since there is no learner yet.
        deadline_s: `scoring.deadline_s`.
    """
    called = [spec for spec in specs if not spec.folder]
    found = static_findings(called, deadline_s)
    # Made-up replies are no episodes, and the weighted sum needs all rewards.
    if found or environment.episode is not None or len(called) < len(specs):
        return found
    first, again = _scored_twice(Probe.of(scorer), environment)
    seen = [(spec, first if scorer.plans[spec.label].kind != "group" else []) for spec in called]
    found = failure_findings(first, called, {label: plan.kind for label, plan in scorer.plans.items()})
    if not all(sample.total is None for sample in first):
        found = [replace(finding, severity="warning") for finding in found]
    abstaining = abstentions(called, first)
    if len([spec for spec in called if spec.weight]) > 1:  # the others may tell replies apart
        abstaining = [replace(finding, severity="warning") for finding in abstaining]
    found += abstaining
    found += [each for each in constants(seen) if each.severity == "error"]
    found += repeated(called, first, again, "later")
    return found


def told(finding: Finding) -> str:
    """A finding in one paragraph."""
    example = f" (reply {finding.example})" if finding.example else ""
    advice = f"; {finding.advice}" if finding.advice else ""
    return f"reward {finding.reward}: {finding.detail}{example}{advice}"


def _scored_twice(probe: Probe, environment: Environment) -> tuple[list[Sample], list[Sample]]:
    """Replies to the first tasks, one call each, as many as there is time for; and those scored twice."""
    tasks = [each.train[0] for each in environment.sources.values()] or environment.train[:_TASKS]
    texts = plain_replies(tasks)
    ends = time.monotonic() + WITHIN_S
    rounds: tuple[list[Sample], list[Sample]] = ([], [])
    for samples, order in zip(rounds, (texts, texts[::-1]), strict=True):
        for text in order:
            began = time.monotonic()
            if began > ends:
                return rounds
            samples += ask(probe, [text])
            if time.monotonic() - began > _SLOW_S:
                return rounds
    return rounds
