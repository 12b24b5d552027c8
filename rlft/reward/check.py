"""Whether a reward may be trained on, tried without a model: its contract, its cases, and replies made up to cheat it.

    report = check_rewards(Checked(specs=[RewardSpec(path="brevity.py:brevity")]))
    report.errors           # why nobody should train on it

The rewards of a config are checked together: one by one for what each has to keep (`behaviour.py`), and their weighted
sum for what it pays (`adversarial.py`). What a good reply is, the cases and demonstrations say; else an answer is
written in several ways, and the way that scores highest is taken.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlft.reward import behaviour
from rlft.reward import cases as case_files
from rlft.reward.case_findings import case_findings
from rlft.reward.cases import Case
from rlft.reward.cheats import cheats
from rlft.reward.contract import Kind, prompt_text
from rlft.reward.failures import LISTS, failure_findings
from rlft.reward.findings import ALL, Finding, Report, Sample, quoted, sorted_findings
from rlft.reward.good_replies import good_cases, written
from rlft.reward.odd_replies import ODD_REPLIES
from rlft.reward.probe import IMPORT_S, GaveUpError, Probe, make_task
from rlft.reward.processes import SlowImportError
from rlft.reward.texts_or_messages import told, values_as_texts
from rlft.reward.transforms import GARBAGE
from rlft.types import Failed, RewardSpec, Task

MADE_UP = tuple(
    make_task(prompt, answer=answer, id=f"made-up {answer}")
    for prompt, answer in (
        ("What is 17 + 25?", "42"),
        ("What is 9 * 13?", "117"),
        ("What is 100 - 37?", "63"),
        ("What is 8 * 7?", "56"),
    )
)
"""Tasks for a reward that is checked without data."""
HANGS_S = 3.0
"""Seconds for a made-up reply, where the config's deadline is not shorter: what hangs should be found soon."""
MOST_TASKS = 6
_A_FEW = 4
_WATCHED = " arguments"
_PLAIN = ("", " \n", GARBAGE, "hello", "I think the answer is 7, since 3 + 4 = 7.", "<answer>7</answer>", "-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is checked, and how."""

    specs: Sequence[RewardSpec]
    """None on the learner's base."""
    tasks: Sequence[Task] = MADE_UP
    demonstrations: Sequence[tuple[Task, str]] = ()
    """Good replies to tasks."""
    cases: Sequence[Case] = ()
    deadline_s: float = 10.0
    """`scoring.deadline_s`."""
    hangs_s: float = HANGS_S
    """Seconds that a made-up reply may take, at most `deadline_s`."""
    environment: Collection[str] = ()
    """`scoring.environment`."""
    within_s: float = 60.0
    """No further replies are scored after so many seconds; what was left out for that is a finding."""
    cases_file: str = ""
    """Where the cases come from, if somebody named it."""
    answer_names: Collection[str] = ("answer",)
    """Names by which a reward may take the answer."""
    remarks: Sequence[Finding] = ()
    """What is to be said of the tasks."""
    workers: int = 1
    """0 calls the rewards in this process, where nothing can be killed."""


@dataclass(slots=True, kw_only=True)
class _Clock:
    """The time for a check, of which each part may take what is left up to a share of the whole."""

    started: float
    within_s: float
    missed: list[str] = field(default_factory=list)
    """What was not looked at, or not wholly, for want of time."""
    is_too_short: bool = False
    """Whether less than half of the ordinary replies were looked at."""

    def ends(self, share: float) -> float:
        """When that share of the time is over, by `time.monotonic`."""
        return self.started + share * self.within_s

    def note(self, what: str, done: int, of: int) -> None:
        """Note what was missed, if anything was."""
        if done < of:
            self.missed.append(f"{what} ({done} of {of} replies)" if done else what)

    def findings(self) -> list[Finding]:
        """What was missed, as a finding."""
        if not self.missed:
            return []
        detail = f"there was no time within {self.within_s:g} s for: {'; '.join(self.missed)}"
        advice = f"give it more: --within-s {4 * self.within_s:g}"
        return [Finding(check="time", severity="warning", reward=ALL, detail=detail, advice=advice)]


def check_rewards(checked: Checked) -> Report:
    """Check rewards in processes of their own; whatever is wrong with them is a finding."""
    return _checked(checked, _Clock(started=time.monotonic(), within_s=checked.within_s))


def _checked(checked: Checked, clock: _Clock) -> Report:
    findings = behaviour.slow_judges(checked.specs, checked.deadline_s)
    samples: list[Sample] = []
    limit_s = min(checked.hangs_s, checked.deadline_s)
    try:
        with _probe(checked, checked.specs, limit_s) as probe:
            start_s = time.monotonic() - clock.started
            kinds = {label: plan.kind for label, plan in probe.plans.items()}
            if apart := case_files.uncalled(probe, checked.specs, checked.cases):
                return _checked_apart(checked, apart, limit_s, clock)
            findings += _first(probe, checked, samples, clock)
            findings += _cases(probe, checked, clock)
            unrepeatable = {finding.reward for finding in findings if finding.check == "deterministic"}
            if not unrepeatable and any(sample.total is not None for sample in samples):
                findings += _cheats(probe, checked, samples, clock)
        findings += failure_findings(samples, checked.specs, kinds)
        if time.monotonic() + start_s < clock.ends(1.0):
            findings += _elsewhere(checked, samples, kinds, limit_s, unrepeatable, clock)
        else:
            clock.missed.append("another process, and changed arguments")
    except GaveUpError as error:
        if not samples and error.outcome.kind == "timeout" and limit_s < checked.deadline_s:
            # The first reply: it may load something, for which its deadline has to leave time.
            return _checked(replace(checked, hangs_s=checked.deadline_s), clock)
        findings.append(_hangs(error, limit_s, checked.deadline_s))
    except ValueError as error:
        findings.append(
            Finding(check="contract", severity="error", reward=ALL, detail=str(error), advice=_advice(error, checked))
        )
    late = {name for sample in samples for name, o in sample.trajectory.failed_parts.items() if o.kind == "timeout"}
    findings += behaviour.missing_returns([spec for spec in checked.specs if spec.label not in late])
    findings += [*clock.findings(), *checked.remarks]
    seconds = time.monotonic() - clock.started
    return Report(
        findings=sorted_findings(findings),
        replies=len(samples),
        seconds=seconds,
        cannot_tell=clock.is_too_short,
    )


def _checked_apart(checked: Checked, apart: Mapping[str, Sequence[str]], limit_s: float, clock: _Clock) -> Report:
    """Like `_checked`, where the rewards `apart`, which are only watched, cannot be called on the cases."""
    report = _checked(replace(checked, specs=[spec for spec in checked.specs if spec.label not in apart]), clock)
    watched = [spec for spec in checked.specs if spec.label in apart]
    samples: list[Sample] = []
    with _probe(checked, [replace(spec, weight=1.0, role="train") for spec in watched], limit_s) as probe:
        found = _first(probe, replace(checked, specs=watched, cases=()), samples, clock)
        found += failure_findings(samples, watched, {label: plan.kind for label, plan in probe.plans.items()})
    own = [finding for finding in found if finding.reward in apart]
    said = Finding(check="cases", severity="info", reward=ALL, detail=case_files.not_asked(apart))
    return replace(
        report,
        findings=sorted_findings([*report.findings, *own, said]),
        replies=report.replies + len(samples),
        seconds=time.monotonic() - clock.started,
        cannot_tell=report.cannot_tell or clock.is_too_short,
    )


def plain_replies(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    """Replies of all sorts to some tasks: nothing, nonsense, the prompt, and the answers as `TEMPLATES` write them.

    The first task gets `ODD_REPLIES`, too.
    """
    found: list[tuple[Task, str]] = []
    for task in tasks[:MOST_TASKS]:
        found += [(task, text) for text in (*_PLAIN, prompt_text(task))]
    found += [(s.task, s.good.text) for sources in written(tasks[:MOST_TASKS]).values() for s in sources]
    found += [(task, text) for task in tasks[:1] for text in ODD_REPLIES]
    return list({(task.id, text): (task, text) for task, text in found}.values())


def _probe(checked: Checked, specs: Sequence[RewardSpec], limit_s: float) -> Probe:
    return Probe(
        specs,
        deadline_s=limit_s,
        workers=checked.workers,
        environment=checked.environment,
        most_killed=0,
        startup_s=max(IMPORT_S, checked.hangs_s, checked.deadline_s),
    )


def _first(probe: Probe, checked: Checked, samples: list[Sample], clock: _Clock) -> list[Finding]:
    """What each reward has to keep, on replies of all sorts: alone, once more in another order, and in groups."""
    kinds = {label: plan.kind for label, plan in probe.plans.items()}
    shown_replies = [*good_cases(checked.cases), *checked.demonstrations[:MOST_TASKS]]
    of_cases = [(case.task, case.reply) for case in checked.cases]
    texts = [*shown_replies, *of_cases, *plain_replies(checked.tasks)]
    texts = list({(task.id, text): (task, text) for task, text in texts}.values())
    first = behaviour.ask(probe, texts[:1])
    samples += first
    first += behaviour.ask(probe, texts[1:_A_FEW], clock.ends(1.0))
    if all(isinstance(sample.trajectory.outcome, Failed) for sample in first):
        samples += first[1:]  # it would not do better with the others, and a server that is not there takes its time
        return []
    first += behaviour.ask(probe, texts[_A_FEW:], clock.ends(0.25))
    clock.note("ordinary replies", len(first), len(texts))
    clock.is_too_short = 2 * len(first) < len(texts)
    texts = texts[: len(first)]
    again = behaviour.ask(probe, texts[::-1], clock.ends(0.35))
    clock.note("whether values repeat", len(again), len(first))
    samples += first[1:]
    grouped: list[Sample] = []
    found: list[Finding] = []
    if any(kind != "sample" for kind in kinds.values()):
        grouped = behaviour.in_groups(probe, first, ends=clock.ends(0.45))
        clock.note("lists and groups of several", len(grouped), len(first))
        samples += grouped
        backwards = behaviour.in_groups(probe, first, backwards=True, ends=clock.ends(0.5))
        lists = [spec for spec in checked.specs if kinds[spec.label] == "batch"]
        for others in (grouped, backwards):
            found = found or behaviour.repeated(lists, first, others, "in a list with others")
        compare = [spec for spec in checked.specs if kinds[spec.label] == "group"]
        found += behaviour.paid_by_place(compare, grouped, backwards)
    found += behaviour.repeated(checked.specs, first, again, "later, in another order,")
    seen = [(spec, grouped if kinds[spec.label] == "group" else first) for spec in checked.specs]
    abstaining: set[str] = set()
    for spec, replies in seen:
        found += (abstains := behaviour.abstentions([spec], replies))
        found += behaviour.spread([spec], replies)
        abstaining |= {finding.reward for finding in abstains}
    constants = behaviour.constants(seen, good_known=bool(shown_replies))
    constants = [each for each in constants if each.reward not in abstaining or each.severity == "error"]
    found += _one_value(constants, checked, kinds, first, clock)
    return [
        *found,
        *behaviour.leaks(checked.tasks),
        *behaviour.timed(probe, first, checked.deadline_s, clock.ends(0.55)),
    ]


def _one_value(
    constants: Sequence[Finding],
    checked: Checked,
    kinds: Mapping[str, Kind],
    first: Sequence[Sample],
    clock: _Clock,
) -> list[Finding]:
    """The findings about constant rewards; of one that wants texts and gets messages, that."""
    specs = {spec.label: spec for spec in checked.specs}
    found = []
    for constant in constants:
        spec = specs[constant.reward]
        given = next(value for sample in first if (value := sample.value(spec.label)) is not None)
        values = values_as_texts(
            spec,
            kinds[spec.label],
            [(sample.task, sample.text) for sample in first],
            deadline_s=min(checked.hangs_s, checked.deadline_s),
            environment=checked.environment,
            workers=checked.workers,
            within_s=clock.ends(0.6) - time.monotonic(),
        )
        if any(value != given for value in values):
            detail, advice = told(spec, given, values)
            constant = replace(constant, check="contract", severity="error", detail=detail, advice=advice)
        elif kinds[spec.label] == "batch":
            constant = replace(constant, advice=f"{constant.advice}; {LISTS}")
        found.append(constant)
    return found


def _cases(probe: Probe, checked: Checked, clock: _Clock) -> list[Finding]:
    """Whether the user's cases hold."""
    if not checked.cases:
        if not checked.cases_file:
            return []
        advice = 'write one on each line: {"completion": "...", "answer": "...", "expect": 1.0}'
        detail = f"{checked.cases_file} holds no case"
        return [Finding(check="cases", severity="warning", reward=ALL, detail=detail, advice=advice)]
    known = case_files.outcomes_by_name(probe, checked.cases, clock.ends(1.0))
    clock.note("cases", len(known), len(checked.cases))
    cases = [c for c in checked.cases if c.name in known and (not c.expect.above or c.expect.above in known)]
    outcomes = [known[case.name] for case in cases]
    return case_findings(cases, outcomes)


def _cheats(probe: Probe, checked: Checked, samples: list[Sample], clock: _Clock) -> list[Finding]:
    """Replies made up to cheat the weighted sum."""
    found, search = cheats(
        probe,
        samples,
        tasks=checked.tasks[:MOST_TASKS],
        good=[*good_cases(checked.cases), *checked.demonstrations][:MOST_TASKS],
        answer_names=checked.answer_names,
        ends=clock.ends(0.85),
    )
    limit_s = min(checked.hangs_s, checked.deadline_s)
    found += [_hangs(error, limit_s, checked.deadline_s) for error in search.lost[:1]]
    if search.stopped and not search.lost:
        clock.missed.append(f"replies made up to cheat ({len(search.samples)} were tried)")
    return found


def _elsewhere(
    checked: Checked,
    samples: Sequence[Sample],
    kinds: Mapping[str, Kind],
    limit_s: float,
    unrepeatable: Collection[str],
    clock: _Clock,
) -> list[Finding]:
    """Whether another process says the same, and whether rewards change their arguments."""
    known = [sample for sample in samples if sample.total is not None][:60]
    if not known:
        return []
    watchers = [_watcher(spec, kinds[spec.label]) for spec in checked.specs]
    with _probe(checked, [*checked.specs, *watchers], limit_s) as probe:
        again = behaviour.ask(probe, [(sample.task, sample.text) for sample in known], clock.ends(1.0))
    clock.note("another process, and changed arguments", len(again), len(known))
    alone = [spec for spec in checked.specs if kinds[spec.label] != "group" and spec.label not in unrepeatable]
    found = behaviour.repeated(alone, known, again, "in another process")
    for spec in checked.specs:
        parts = {name for sample in again for name in sample.parts if name.startswith(f"{spec.label}{_WATCHED}/")}
        names = {name.partition("/")[2] for name in parts}
        if names:
            found.append(
                Finding(
                    check="arguments",
                    severity="warning",
                    reward=spec.label,
                    detail=f"it changes what it is given: {', '.join(sorted(names))}",
                    advice="change a copy; where rewards share their arguments, the next one sees the change",
                )
            )
    return found


def _watcher(spec: RewardSpec, kind: Kind) -> RewardSpec:
    args = {"watched": spec.path, "watched_args": dict(spec.args)}
    return RewardSpec(path=f"rlft.reward.mutation:{kind}", name=f"{spec.label}{_WATCHED}", weight=0, args=args)


def _hangs(error: GaveUpError, limit_s: float, deadline_s: float) -> Finding:
    is_slow = error.outcome.kind == "timeout"
    slower = f"; if it is slow by design: --deadline-s {deadline_s:g}" if limit_s < deadline_s else ""
    return Finding(
        check="hangs" if is_slow else "contract",
        severity="error",
        reward=_culprit(error),
        detail=error.outcome.message + (f", at {error.outcome.where}" if error.outcome.where else ""),
        example=quoted(error.text),
        advice=f"bound the work for a reply{slower}" if is_slow else "find out what ends its process",
    )


def _culprit(error: GaveUpError) -> str:
    return error.outcome.message.partition(":")[0] if ":" in error.outcome.message else ALL


def _advice(problem: ValueError, checked: Checked) -> str:
    if isinstance(problem, SlowImportError):
        more = 4 * max(IMPORT_S, checked.deadline_s)
        return f"do nothing that waits where the module is imported; if it has to load much: --deadline-s {more:g}"
    if "nothing supplies" in str(problem):
        return "give tasks that have this column: --data FILE, --cases FILE, or a config"
    return ""
