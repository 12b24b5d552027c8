"""Where a training stands, so that one that is stopped between two steps loses neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rlft.common import interrupts
from rlft.common.by_path import describe_error
from rlft.common.files import describe_os_error, remove_folder
from rlft.curves.live_panel import View
from rlft.model.adapter import adapter_hash, read_folder
from rlft.model.starting_point import save_adapter
from rlft.run.checkpoint import Snapshot, steps_kept
from rlft.run.directory import Run
from rlft.run.records import ADAPTERS, CHECKPOINTS, adapter_folder, numbered, step_name
from rlft.types import Adapter


class Standing:
    """The last step after which the learner's state was whole."""

    def __init__(self, step: int) -> None:
        """Begin after `step`, whose checkpoint there is if it is not 0."""
        self._step, self._is_whole = step, True
        self.adapters: Sequence[Adapter] = ()
        """Of RL: the published adapters that samples of later steps may come from, the step's own last."""

    @contextmanager
    def moves_to(self, step: int) -> Iterator[None]:
        """The learner changes within the block and is at `step` behind it; signals wait until then."""
        with interrupts.held():
            self._is_whole = False
            yield
            self._step, self._is_whole = step, True

    @contextmanager
    def saved(self, run: Run[Any], view: View, snapshot: Callable[[int], Snapshot], *, every: int) -> Iterator[None]:
        """Save a checkpoint of the last step if the block is stopped, by a signal or an error, between two steps.

        Within a step the learner's state is half that of the next one: then the last checkpoint stays the last.

        Args:
            snapshot: of the step that it gets.
            every: steps between the checkpoints of an undisturbed run.
        """
        try:
            yield
        except BaseException:
            kept = steps_kept(run.path / CHECKPOINTS)
            if not self._is_whole:
                view.note(
                    f"step {self._step + 1} was half done; a resumed run goes on after step {max(kept, default=0)}"
                )
            elif self._step and self._step not in kept:
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
    folder = run.path / adapter_folder(step)
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
    earlier = [(made, path) for made, path in numbered(run.path / ADAPTERS) if made < step]
    if rule == "last":
        spare = earlier[: max(0, len(earlier) + 1 - int(number))]
    else:
        spare = [(made, path) for made, path in earlier if rule == "every" and made % int(number)]
    for _, path in spare:
        remove_folder(path)


def has_adapter(run: Run[Any], step: int) -> bool:
    """Whether the saved adapter of a step is whole, and the one that was evaluated."""
    evaluation = run.evaluation(step_name(step))
    try:
        found = adapter_hash(read_folder(run.path / adapter_folder(step)))
    except ValueError:
        return False
    return evaluation is None or evaluation.adapter_hash == found


def _told(error: Exception) -> str:
    return describe_os_error(error) if isinstance(error, OSError) else describe_error(error)
