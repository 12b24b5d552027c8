"""Where a training stands, so that one that is stopped loses no step that it has finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rlft.common import interrupts
from rlft.common.by_path import describe_error
from rlft.common.files import describe_os_error
from rlft.curves.live_panel import View
from rlft.model.adapter import adapter_hash, read_folder
from rlft.model.starting_point import save_adapter
from rlft.run.checkpoint import Snapshot, steps_kept
from rlft.run.directory import Run
from rlft.run.records import ADAPTERS, CHECKPOINTS, adapter_name, step_of
from rlft.types import Adapter


class Standing:
    """The last step after which the learner's state was whole."""

    def __init__(self, step: int) -> None:
        """Begin after `step`, whose checkpoint there is if it is not 0."""
        self._step: int | None = step

    @contextmanager
    def moves_to(self, step: int) -> Iterator[None]:
        """The learner changes within the block and is at `step` behind it; signals wait until then."""
        self._step = None
        with interrupts.held():
            yield
            self._step = step

    @contextmanager
    def saved(self, run: Run[Any], view: View, snapshot: Callable[[int], Snapshot], *, every: int) -> Iterator[None]:
        """Save a checkpoint of the last whole step if the block is stopped, by a signal or an error.

        Args:
            snapshot: of the step that it gets.
            every: steps between the checkpoints of an undisturbed run.
        """
        try:
            yield
        except BaseException:
            if self._step and self._step not in steps_kept(run.path / CHECKPOINTS):
                view.note(f"saving a checkpoint of step {self._step}")
                try:
                    run.checkpoint(snapshot(self._step), every=every)
                except Exception as error:  # what stopped the run is what has to be told
                    view.note(f"no checkpoint of step {self._step} could be saved: {_told(error)}")
            raise


def keep_adapter(run: Run[Any], step: int, adapter: Adapter, model_folder: str, view: View) -> None:
    """Save a step's adapter, and remove earlier ones as `checkpoint.adapters` says.

    One that lies there already is written again if it is not whole, and that is said.
    """
    folder = run.path / ADAPTERS / adapter_name(step)
    if folder.exists():
        try:
            found = adapter_hash(read_folder(folder))
        except ValueError:
            found = ""
        if found == adapter.hash:
            return
        view.note(f"{folder} is not the adapter of step {step} (damaged?); it is written again")
    save_adapter(folder, run.config, model_folder, adapter.tensors)
    rule, _, number = run.config.checkpoint.adapters.partition(" ")
    steps = {path: step_of(path.name) or 0 for path in (run.path / ADAPTERS).glob("v*")}
    earlier = sorted((path for path in steps if steps[path] < step), key=lambda path: steps[path])
    kept = set(earlier[len(earlier) + 1 - int(number) :]) if rule == "last" else set(earlier)
    for path in earlier:
        if path not in kept or (rule == "every" and steps[path] % int(number)):
            shutil.rmtree(path)


def _told(error: Exception) -> str:
    return describe_os_error(error) if isinstance(error, OSError) else describe_error(error)
