"""Bringing a run directory back to its newest whole checkpoint, and copying one up to there.

Nothing is deleted: records of steps after the checkpoint, which are made again, are moved into `aside/`.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from rlft.common.files import write_file
from rlft.run import damage, logs
from rlft.run.checkpoint import Snapshot, load_latest
from rlft.run.manifest import MANIFEST
from rlft.run.records import (
    ADAPTERS,
    ASIDE,
    BEFORE_TRAINING,
    CHECKPOINTS,
    EVALS,
    EVENTS,
    METRICS,
    ROLLOUTS,
    SETS,
    SUMMARY,
    TASKS,
    numbered,
    step_name,
)


def clear_torn_writes(path: Path) -> None:
    """Remove what a killed driver was in the middle of: temporary files, half a line at the end of a log."""
    for temporary in path.rglob(".*.tmp"):
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
    for log in (path / EVENTS, path / METRICS, path / TASKS):
        logs.mend_end(log)


def newest_checkpoint(path: Path, *, every: int, strict: bool) -> tuple[Snapshot | None, list[str]]:
    """The newest whole checkpoint and what is wrong with newer ones; None where the run had not reached its first.

    Args:
        every: most steps between checkpoints.
        strict: refuse to fall back to an older one.

    Raises:
        ValueError: `strict` and the newest is damaged; or there must have been checkpoints and none is whole; or the
            metrics do not hold every step up to it.
    """
    snapshot, problems = load_latest(path / CHECKPOINTS)
    if problems and strict:
        raise ValueError(f"{problems[0]}; without --strict `rlft resume` continues from an older checkpoint")
    known = {line.step for line in logs.read_metrics(path, []).rows}
    last = max(known, default=0)
    if snapshot is None:
        if problems or last > every or (path / SUMMARY).exists():
            reasons = f" ({'; '.join(problems)})" if problems else ""
            raise ValueError(
                f"{path} has {last} steps behind it and no whole checkpoint to continue from{reasons}. Restore one of "
                f"{path / CHECKPOINTS} from a copy, or start over with `rlft train CONFIG --restart`, which moves this "
                "run aside"
            )
        return None, problems
    if missing := [step for step in range(1, snapshot.step + 1) if step not in known]:
        raise ValueError(
            f"{path / METRICS} lacks step {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which "
            f"lies before the checkpoint of step {snapshot.step}; restore the file from a copy, or continue without "
            f"those steps as a run of its own: rlft resume {shlex.quote(str(path))} --fork NAME"
        )
    return snapshot, problems


def set_aside_after(path: Path, step: int) -> Path | None:
    """Move the records of later steps, and a summary, into a folder of `aside/`; that folder, if there were any."""
    lines = logs.read_metrics(path, []).rows
    later = [line for line in lines if line.step > step]
    tasks = logs.read_tasks(path, []).rows
    moved = [each for each, number in _numbered(path) if number > step]
    moved += [each for number, each in numbered(path / CHECKPOINTS) if number > step]
    moved += [path / SUMMARY] if (path / SUMMARY).exists() else []
    if not later and not moved:
        return None
    moved += [path / MANIFEST] if (path / MANIFEST).exists() else []  # it names what goes; the next checkpoint has one
    target = _new_aside(path, step)
    if later:
        write_file(target / METRICS, "".join(line.line() + "\n" for line in later))
        kept = [line for line in lines if line.step <= step]
        write_file(path / METRICS, "".join(line.line() + "\n" for line in kept))
    if later_tasks := [task for task in tasks if task.step > step]:  # which are kept again when they are used
        write_file(target / TASKS, "".join(task.line() + "\n" for task in later_tasks))
        write_file(path / TASKS, "".join(task.line() + "\n" for task in tasks if task.step <= step))
    for each in moved:
        to = target / each.relative_to(path)
        to.parent.mkdir(parents=True, exist_ok=True)
        each.rename(to)
    return target


def set_manifest_aside(path: Path, step: int) -> None:
    """Move the manifest into a folder of `aside/`: it does not know what a run writes that goes on after `step`.

    The run's next checkpoint has another one.
    """
    if (path / MANIFEST).exists():
        (path / MANIFEST).rename(_new_aside(path, step) / MANIFEST)


def _new_aside(path: Path, step: int) -> Path:
    names = (f"after-{step_name(step)}{f'-{n}' if n > 1 else ''}" for n in count(1))
    target = next(folder for name in names if not (folder := path / ASIDE / name).exists())
    target.mkdir(parents=True)
    return target


def copy_until(
    path: Path, step: int, target: Path, *, evaluations: Collection[str] = (), same_start: bool = True
) -> None:
    """Fill the new folder `target` with what a run at `path` had after `step`, whose checkpoint is whole.

    Files that nobody changes are shared by hard links where the disk can.

    Args:
        evaluations: the evaluation sets whose measurements are copied, "" among them for `evaluation`.
        same_start: whether the measurements of the adapter that RL starts from are among them.
    """
    left_out = [each for each in _sets(path) if each.name not in evaluations]
    left_out += [] if "" in evaluations else [path / EVALS]
    found = [path / CHECKPOINTS / step_name(step), *(each for each, number in _numbered(path) if number <= step)]
    for name in BEFORE_TRAINING:
        found += path.glob(f"{ADAPTERS}/{name}")
        if same_start or name == "base":
            found += [*path.glob(f"{EVALS}/{name}.*"), *path.glob(f"{SETS}/*/{name}.*")]
    for each in [*found, *path.glob(f"{SETS}/*/{TASKS}")]:
        if each.parent not in left_out:
            _share(each, target / each.relative_to(path))
    with damage.left_out():  # a line that is damaged is what the fork is made without
        lines = [line for line in logs.read_metrics(path, []).rows if line.step <= step]
    write_file(target / METRICS, "".join(line.line() + "\n" for line in lines))
    tasks = [task for task in logs.read_tasks(path, []).rows if task.step <= step]
    write_file(target / TASKS, "".join(task.line() + "\n" for task in tasks))
    events = [event for event in logs.read_events(path, []).rows if event.step is None or event.step <= step]
    write_file(target / EVENTS, "".join(event.line() + "\n" for event in events))


def _numbered(path: Path) -> Iterator[tuple[Path, int]]:
    """(file or folder, its step) of all that belongs to one step, but for checkpoints."""
    for folder in (path / ROLLOUTS, path / EVALS, *_sets(path), path / ADAPTERS):
        yield from ((each, step) for step, each in numbered(folder))


def _sets(path: Path) -> list[Path]:
    """The folders of the evaluation sets that a run has measured."""
    return [each for each in sorted((path / SETS).glob("[!.]*")) if each.is_dir()]


def _share(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    elif source.exists():
        _link(source, target)


def _link(source: Any, target: Any) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
