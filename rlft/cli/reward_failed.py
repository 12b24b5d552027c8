"""`rlft reward try --failed RUN SAMPLE`: a stored failed call again, in a process or in a debugger."""

from __future__ import annotations

import json
import pdb
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlft.cli.reward_try import row, show, show_failure
from rlft.cli.run_config import load_run
from rlft.common.by_path import describe_error, innermost_line
from rlft.curves.text import counted, shortened, visible
from rlft.reward.repeat import (
    FailedSample,
    at_users_line,
    failed_samples,
    listed,
    read_failed,
    repeat,
    repeat_here,
    rewards_to_repeat,
)
from rlft.types import Failed, RewardSpec

_LISTED = 50


def run_failed(
    console: Console, run: Path, sample: str, *, deadline_s: float | None, debug: bool, as_json: bool
) -> bool:
    """Repeat what failed on a stored sample and show what comes of it now.

    Args:
        sample: `STEP/TASK/INDEX`; empty lists those on which something failed.
        deadline_s: seconds for the call; None takes the run's.
        debug: call it in this process, and open the debugger where it raises.

    Returns:
        Whether nothing fails any more; true of a list, which repeats nothing.

    Raises:
        ValueError: there is no such sample, nothing failed on it, or the call cannot be repeated.
    """
    if not sample:
        _list(console, run, as_json=as_json)
        return True
    config = load_run(run, [])
    failed = read_failed(run, config, sample)
    if failed.is_environments:
        (failure,) = failed.failures.values()
        show_failure(console, "the environment failed, and no reward has seen the sample", failure)
        raise ValueError(f"there is no call of a reward to repeat; to repeat the episode:\n{failure.reproduce}")
    specs = rewards_to_repeat(failed, config.rewards)
    if debug:
        found = [_debug(console, failed, spec) for spec in specs]  # each of them, whatever came of the others
        return all(found)
    trajectory = failed.group.trajectories[failed.member]
    rows, is_fine = [], True
    for spec in specs:
        answered = repeat(
            failed,
            spec,
            deadline_s=deadline_s or config.scoring.deadline_s,
            environment=config.scoring.environment,
        )
        is_fine = is_fine and not isinstance(answered.outcome, Failed)
        rows.append({"reward": spec.label, **row([spec], trajectory.task, trajectory.text, answered)})
        if not as_json:
            show_failure(console, f"{spec.label} failed in the run", failed.failures[spec.label])
            show(console, [spec], trajectory.text, answered)
    if as_json:
        console.print_json(json.dumps(rows))
    return is_fine


def _list(console: Console, run: Path, *, as_json: bool) -> None:
    """Print the samples on which something failed."""
    known = failed_samples(run)
    if as_json:
        console.print_json(json.dumps([{"sample": name, "failed": what} for name, what in known.items()]))
        return
    if not known:
        console.print(Text(visible(f"{run}: {listed(known)}")), soft_wrap=True)
        return
    for name, what in list(known.items())[:_LISTED]:
        console.print(Text(visible(f"{name}  {shortened(what, 120)}")), soft_wrap=True)
    more = f", of which {_LISTED} are listed" if len(known) > _LISTED else ""
    told = f"{counted(len(known), 'sample')} failed{more}; to repeat one: rlft reward try --failed {run} SAMPLE"
    console.print(Text(visible(told), style="dim"), soft_wrap=True)


def _debug(console: Console, failed: FailedSample, spec: RewardSpec) -> bool:
    """Call a reward here; whether it gives a value. Ctrl-C opens the debugger where it hangs."""
    stored = failed.failures[spec.label]
    show_failure(console, f"{spec.label} failed in the run", stored)
    if stored.kind in ("timeout", "crash"):
        console.print(Text("called in this process, which nothing ends but Ctrl-C: it opens the debugger there"))
    try:
        outcome = repeat_here(failed, spec)
    except BaseException as error:  # SystemExit and Ctrl-C, too: they are what is to be looked at
        if not innermost_line(error):
            raise
        console.print(Text(visible(describe_error(error)), style="red"), soft_wrap=True)
        pdb.post_mortem(at_users_line(error))
        return False
    if not isinstance(outcome, Failed):
        console.print(Text(visible(f"it does not fail here: {outcome}")), soft_wrap=True)
        return True
    show_failure(console, "it raises nothing, and what it returns is no reward", outcome)
    console.print(Text("write breakpoint() into it to look at how it comes to that"))
    return False
