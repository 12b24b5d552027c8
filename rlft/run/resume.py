"""Continuing a run: as itself, if what makes its numbers is still there, or as a fork with lineage if it is not."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rlft import config_file
from rlft.common.files import write_file
from rlft.config import BaseRunConfig
from rlft.run import cut_back, logs, provenance
from rlft.run.checkpoint import Snapshot, load_latest, prune, steps_kept
from rlft.run.directory import Run, kept_checkpoints, read_config
from rlft.run.records import CHECKPOINTS, CONFIG, PROVENANCE, SUMMARY, Provenance
from rlft.run.same_evaluations import is_same_start, same_evaluations
from rlft.run.trackers.by_name import refuse_missing

C = TypeVar("C", bound=BaseRunConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What a user may ask of `rlft resume`."""

    fork: str = ""
    """Name of a new run that continues from the checkpoint; empty continues the run itself."""
    overrides: Sequence[str] = ()
    """`key.sub=value` settings of the fork; of the run itself those that do not change its numbers."""
    step: int | None = None
    """Step whose checkpoint the fork continues from; None is the newest."""
    strict: bool = False
    """Refuse to continue from an older checkpoint because the newest is damaged."""


PLAIN = How()
"""Continue the run itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued(Generic[C]):
    """A run that goes on."""

    run: Run[C]
    snapshot: Snapshot | None
    """Where it stands; None at its beginning, if it was stopped before its first checkpoint."""
    remarks: Sequence[str]
    """What the user should see of it on the terminal."""
    summary: Mapping[str, Any] | None = None
    """Its result if it has ended, so that nothing is left to do."""


def way_on(run: Run[Any]) -> str:
    """How a run that stopped goes on, for the terminal."""
    if steps_kept(run.path / CHECKPOINTS):
        return f"the run stopped before its end; `rlft resume {_quoted(run)}` continues from the last checkpoint"
    return (
        f"the run stopped before its first checkpoint: `rlft resume {_quoted(run)}` continues it as it is; after a "
        f"change of its rewards or settings {_start_over(run)}"
    )


def _quoted(run: Run[Any]) -> str:
    """Its path as a shell takes it."""
    return shlex.quote(str(run.path))


def _start_over(run: Run[Any]) -> str:
    command = getattr(run.config, "kind", "train")
    return f"`rlft {command} CONFIG --restart` starts over (this run is moved aside)"


def _has_begun(run: Run[Any]) -> bool:
    """Whether there is, or has been, a checkpoint."""
    return bool(steps_kept(run.path / CHECKPOINTS)) or (run.path / SUMMARY).exists()


def config_of(run: Run[C], how: How) -> C:
    """The config that it goes on with: its own, with overrides that `continued` has to accept, or the fork's.

    Raises:
        ValueError: a step or a name without a fork, or a setting that is wrong.
    """
    if not how.fork:
        if how.step is not None:
            raise ValueError("--step says where a fork begins, and a fork needs a name: --fork NAME")
        if moved := next((o for o in how.overrides if o.partition("=")[0] in ("name", "output_dir")), None):
            raise ValueError(f"{moved!r} would be another run; to continue as one: --fork NAME")
        return read_config(run.path, type(run.config), how.overrides)
    place = [f"name={how.fork}", f"output_dir={json.dumps(str(run.path.parent))}"]
    return read_config(run.path, type(run.config), [*how.overrides, *place])


@contextmanager
def continued(
    run: Run[C],
    config: C,
    now: Provenance,
    how: How,
    *,
    every: int,
    is_whole: Callable[[Run[C], int], bool] = lambda run, step: True,
) -> Iterator[Continued[C]]:
    """Bring an open run back to its newest whole checkpoint, or fork it there; the fork is open meanwhile.

    Args:
        config: see `config_of`.
        now: what makes its numbers if it goes on here.
        every: steps between checkpoints.
        is_whole: whether a run whose last step is done has all that it should leave; else that is made again.

    Raises:
        ValueError: what makes the numbers has changed (the changes, and how to fork); or the run's records are damaged
            (where, and what to do).
    """
    refuse_missing(config.trackers)
    if how.fork:
        fork = _fork(run, config, now, how)
        with fork.run:
            yield fork
        return
    then = _comparable(run)
    instead = f"continue from the last checkpoint as a run of its own: rlft resume {_quoted(run)} --fork NAME"
    if not _has_begun(run):
        instead = f"as it has no checkpoint yet and nothing is lost: {_start_over(run)}"
    provenance.refuse_changed(run.path, provenance.changed_numbers(then, now), instead)
    changes = provenance.changed_computing(then, now)
    cut_back.clear_torn_writes(run.path)
    # What there is was made under its own schedule, which this one may replace.
    schedule = getattr(run.config, "checkpoint", None)
    most = max(every, schedule.every) if schedule else every
    snapshot, problems = cut_back.newest_checkpoint(run.path, every=most, strict=how.strict)
    step = snapshot.step if snapshot else 0
    if getattr(config, "steps", step) < step:
        raise ValueError(
            f"{run.path} has {step} steps behind it, more than steps={config.steps}; for a shorter one: "  # type: ignore[attr-defined]
            f"rlft resume {_quoted(run)} --fork NAME --step N steps=N"
        )
    if (summary := _result(run, config, snapshot, problems)) and is_whole(run, step):
        again = f"rlft resume {_quoted(run)} " + ("steps=N" if hasattr(config, "steps") else "--fork NAME epochs=N")
        told = f"{run.path} has ended after {step} steps, and nothing was done; to train further: `{again}`"
        yield Continued(run=run, snapshot=snapshot, remarks=[told], summary=summary)
        return
    # What is refused has changed nothing so far; the marks on the curves come before what they tell of.
    run.is_going = True
    for problem in problems:
        run.event("checkpoint_skipped", problem)
    aside = cut_back.set_aside_after(run.path, step)
    cut_back.set_manifest_aside(run.path, step)
    prune(run.path / CHECKPOINTS, keep=kept_checkpoints(config), last=step, every=every)
    moved = f"; the records of later steps are in {aside}" if aside else ""
    run.event("resumed", f"continuing after step {step}{moved}", step=step)
    if changes:
        run.event("computing_changed", "; ".join(changes), step=step)
    if changes or then.format != now.format:
        run.write_provenance(provenance.succeeded_by(then, now))
    if config != run.config:
        run.change_config(config)
    fallback = [f"{problem}; going on from step {step}" for problem in problems]
    yield Continued(run=run, snapshot=snapshot, remarks=[*fallback, *changes])


def _result(run: Run[C], config: C, snapshot: Snapshot | None, problems: Sequence[str]) -> Mapping[str, Any]:
    """The summary of a run whose last step is done, to go on with the same config; else empty."""
    summary = logs.read_json(run.path / SUMMARY)
    if snapshot is None or problems or config != run.config or summary.get("steps") != snapshot.step:
        return {}
    return summary if getattr(config, "steps", snapshot.step) == snapshot.step else {}


def _comparable(run: Run[C]) -> Provenance:
    """What made the run; settings that came with a newer rlft have their defaults, which is what was done before."""
    then = logs.read_provenance(run.path)
    if not then.config:
        return then
    return replace(then, config=type(run.config).model_validate(then.config).model_dump(mode="json"))


def _fork(run: Run[C], config: C, now: Provenance, how: How) -> Continued[C]:
    """A new run with the records up to a whole checkpoint: its folder appears whole or not at all."""
    then, target, step = _comparable(run), config.run_dir, how.step
    if target.exists():
        raise ValueError(f"{target} exists already; give the fork another name")
    snapshot, problems = load_latest(run.path / CHECKPOINTS, step=step)
    if not _has_begun(run):
        raise ValueError(f"{run.path} has no checkpoint yet, so there is nothing to fork; {_start_over(run)}")
    if snapshot is None:
        kept = ", ".join(map(str, steps_kept(run.path / CHECKPOINTS))) or "none"
        which = "whole checkpoint" if step is None else f"whole checkpoint of step {step} (there are: {kept})"
        raise ValueError(f"{run.path} has no {which} to fork from{''.join(f'; {p}' for p in problems)}")
    if problems and how.strict:
        raise ValueError(f"{problems[0]}; without --strict the fork continues from step {snapshot.step}")
    numbers = provenance.changed_numbers(then, now)
    changes = numbers + provenance.changed_computing(then, now)
    origin = {"run": str(run.path), "step": snapshot.step, "changes": changes, "numbers": numbers}
    measured = then if then.config else replace(then, config=run.config.model_dump(mode="json"))
    made = replace(now, lineage=[origin, *then.lineage])
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        cut_back.copy_until(
            run.path,
            snapshot.step,
            temporary,
            evaluations=same_evaluations(measured, now),
            same_start=is_same_start(measured, now),
        )
        write_file(temporary / PROVENANCE, json.dumps(made.as_dict(), indent=1))
        write_file(temporary / CONFIG, config_file.dump(config))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    forked = Run(config)
    forked.is_going = True
    what = f"; changed: {'; '.join(changes)}" if changes else ""
    forked.event("forked", f"continues {run.path} after step {snapshot.step}{what}", step=snapshot.step)
    for problem in problems:
        forked.event("checkpoint_skipped", problem)
    fallback = [f"{problem}; going on from step {snapshot.step}" for problem in problems]
    return Continued(run=forked, snapshot=snapshot, remarks=fallback)
