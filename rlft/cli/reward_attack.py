"""What `rlft reward attack` works on: a reward or a config, with tasks, cases, an oracle, a run; and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlft.cli import reward_check
from rlft.cli.blocks import show_block
from rlft.curves.reading import rollout_steps
from rlft.curves.text import counted, visible
from rlft.reward.attack import Attacked, AttackReport, attack
from rlft.reward.cases import cases_file, read_cases, write_cases
from rlft.reward.check import MOST_TASKS, Checked
from rlft.reward.exploits import as_cases
from rlft.reward.findings import quoted
from rlft.reward.stored import read_step, read_tasks
from rlft.reward.transcript import of_trajectory
from rlft.types import RewardSpec, Score, Task

_STEPS = 4
"""The last steps of a run whose replies are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The policies that `--policy` asks for."""

    steps: int
    seeds: int

    def train(self, target: str, data: str, checked: Checked, oracle: RewardSpec | None) -> list[Path]:
        """Train them, say what they made of the reward, and give their runs."""
        from rlft.cli import attack_policy

        with redirect_stdout(sys.stderr):  # what is printed to stdout may have to be JSON
            learnt = attack_policy.train(
                checked.specs,
                oracle,
                attack_policy.environment_of(target, data),
                variables=checked.environment,
                deadline_s=checked.deadline_s,
                steps=self.steps,
                seeds=self.seeds,
            )
        for each in learnt:
            Console(stderr=True).print(Text(visible(each.told)), soft_wrap=True)
        return [each.run for each in learnt]


def asked(
    target: str,
    *,
    args: Sequence[str],
    data: str,
    cases: Path | None,
    oracle: str,
    run: Path | None,
    seconds: float,
    seed: int,
    policy: Policy | None = None,
    write: bool = False,
) -> Attacked:
    """What is to be attacked.

    Args:
        target: a reward, or a config file.
        data: as `reward_check.asked` takes it.
        run: a run directory; its tasks are used where `data` is empty.
        policy: trained first, and then used like a run.
        write: whether what is found is added to the cases, whose file may then be missing.

    Raises:
        ValueError: something of it does not exist or cannot be read.
    """
    checked = reward_check.asked(
        target, args=args, data=data, cases=cases, deadline_s=None, within_s=seconds, is_written=write
    )
    runs = [run] if run else []
    if policy:
        runs += policy.train(target, data, checked, RewardSpec(path=oracle) if oracle else None)
    replies = stored(runs)
    tasks = list({task.id: task for task, _ in replies}.values())[:MOST_TASKS]
    return Attacked(
        specs=checked.specs,
        tasks=tasks if tasks and not data else checked.tasks,
        demonstrations=checked.demonstrations,
        cases=checked.cases,
        replies=replies,
        oracle=RewardSpec(path=oracle) if oracle else None,
        seconds=seconds,
        seed=seed,
        deadline_s=min(checked.hangs_s, checked.deadline_s),
        environment=checked.environment,
        answer_names=checked.answer_names,
    )


def run(
    console: Console, title: str, attacked: Attacked, *, cases: Path | None, write: bool, as_json: bool
) -> AttackReport:
    """Attack, print what was found, and add it to the cases where that is asked for.

    Raises:
        ValueError: a reward cannot be loaded or called, or there is no file to add cases to.
    """
    file = cases or cases_file(attacked.specs)
    if write and file is None:
        raise ValueError("--write-cases: rewards with weights or arguments have no cases of their own; name --cases")
    report = attack(attacked)
    if cases and cases.exists() and not attacked.cases:
        report = replace(report, notes=[f"{cases} holds no case", *report.notes])
    if as_json:
        console.print_json(json.dumps(as_dict(report)))
    else:
        show(console, title, report)
    if write and file is not None:
        known = read_cases(file) if file.is_file() else []
        new = as_cases(report.exploits, known)
        if new:
            write_cases(file, [*known, *new])
        if not as_json:
            console.print(Text(f"{counted(len(new), 'case')} added to {file}"), soft_wrap=True)
    return report


def as_dict(report: AttackReport) -> dict[str, object]:
    """Plain data, for JSON."""
    return {
        "survives": None if report.cannot_tell else not report.exploits,
        "cannot_tell": report.cannot_tell,
        "exploits": [exploit.as_dict() for exploit in report.exploits],
        "notes": list(report.notes),
        "replies": report.replies,
        "seconds": report.seconds,
    }


def show(console: Console, title: str, report: AttackReport) -> None:
    """Print the exploits, those that score most first."""
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    console.print()
    for exploit in report.exploits:
        where = f" (task {exploit.task.id}, {exploit.tasks} of {exploit.of} tasks)"
        good = f"{quoted(exploit.good)} scores {exploit.good_score:g}"
        if exploit.good_is_ordinary:
            good = f"none is known; the best of ordinary ones, {good}"
        elif exploit.family == "cases":  # it has a bound, and no good reply to be compared with
            where, good = f" ({exploit.name})", f"the case allows {exploit.good_score:g}"
        says = f"; the oracle gives it {exploit.oracle:g}" if exploit.oracle is not None else ""
        facts = {
            "exploit": f"{exploit.told}{says}{where}",
            "reply": quoted(exploit.completion),
            "a good one": good,
            "do": exploit.advice,
        }
        show_block(console, exploit.family, facts, style="red")
    for note in report.notes:
        console.print(Text(visible(f"note: {note}"), style="yellow"), soft_wrap=True)
    count = len(report.exploits)
    none = f"cannot tell, since {report.cannot_tell}" if report.cannot_tell else "no exploit found"
    found = counted(count, "exploit") if count else none
    console.print(Text(f"{found}; {counted(report.replies, 'reply', 'replies')} in {report.seconds:.1f} s"))


def stored(runs: Sequence[Path]) -> list[tuple[Task, str]]:
    """The replies of the runs' last steps, the highest rewards first.

    Raises:
        ValueError: a run has none.
    """
    found: list[tuple[float, Task, str]] = []
    for run in runs:
        tasks, steps = read_tasks(run), rollout_steps(run)[-_STEPS:]
        if not steps:
            raise ValueError(f"{run} has no rollouts yet: they are written after each step")
        for step in steps:
            for group in read_step(run, step, tasks).groups:
                for each in group.trajectories:
                    value = each.outcome.value if isinstance(each.outcome, Score) else float("-inf")
                    found.append((value, group.task, of_trajectory(each)))
    found.sort(key=lambda row: -row[0])
    return [(task, text) for _, task, text in found]
