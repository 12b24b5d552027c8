"""What replies that were made up to cheat show about the weighted sum of some rewards."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlft.reward.adversarial import Search
from rlft.reward.behaviour import pays_for_nothing
from rlft.reward.findings import Finding, Sample
from rlft.reward.good_replies import shown, written
from rlft.reward.inversion import inverted
from rlft.reward.probe import Probe
from rlft.types import Task


def cheats(
    probe: Probe,
    samples: list[Sample],
    *,
    tasks: Sequence[Task],
    good: Sequence[tuple[Task, str]],
    answer_names: Collection[str],
    ends: float,
) -> tuple[list[Finding], Search]:
    """Try replies made up to cheat.

    Args:
        samples: ordinary replies that were scored; those that are scored here are added.
        tasks: whose answers are written in several ways where no good reply is known.
        good: tasks with good replies that somebody wrote.
        answer_names: names by which a reward may take the answer.
        ends: no further replies are scored after this time of `time.monotonic`.

    Returns:
        The findings, and the search, which says what it left out and what a reward hung on.
    """
    comparative = any(plan.kind == "group" for plan in probe.plans.values())
    alone = {(s.task.id, s.text): s for s in samples if s.total is not None}
    search = Search(probe, ends, [], seen={} if comparative else alone)
    takes_answer = any(name in plan.parameters for plan in probe.plans.values() for name in answer_names)
    known = search.measured(shown(good, tasks), comparative=comparative)
    shows_good = bool(known)
    if not known:
        known = search.measured(search.best(written(tasks)), comparative=comparative)
    found = search.judged(known, comparative=comparative, takes_answer=takes_answer)
    upside_down = None
    if takes_answer and not shows_good and not any(one.aware for one in known):
        upside_down = inverted(probe, written(tasks[:2]), anything_known=bool(known), ends=search.ends)
    if upside_down:
        found = [upside_down]
    if not upside_down and not any(one.aware for one in known):
        sources = [one.source for one in known] or [each[0] for each in written(tasks[:1]).values()]
        found += search.lengthened(sources, comparative=comparative)
    if not known and not comparative:
        found += search.ordered(tasks[:2], samples)
    samples += search.samples
    if not upside_down:
        found += pays_for_nothing(samples, takes_answer=takes_answer)
    return found, search
