"""What a run measures on held-out tasks, as it is on this machine: `evaluation`, and each of `evaluations`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlft.config import EnvironmentConfig, EvaluationSetConfig, RunConfig
from rlft.reward.stored import StoredTasks, read_tasks
from rlft.rollout.context import fit
from rlft.run import logs
from rlft.run.provenance import tasks_of_set
from rlft.run.records import evaluations_folder
from rlft.run.stored_task import StoredTask
from rlft.train import provenance
from rlft.train.rl.evaluations import Measurement, load_measurements
from rlft.train.rl.verify.material import Here, Material


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHere:
    """One of the things that a run measures, with what its samples are computed again with."""

    config: RunConfig
    """The run's, with what this measures as `evaluation` and `environment`."""
    tasks: StoredTasks
    """What the run keeps of its tasks."""
    here: Here
    """With the environment that has its tasks; its `missing` says why they are not here."""
    episodes: EnvironmentConfig | None = None
    """Whose episodes the samples are, if not the run's."""


def sets_here(material: Material, here: Here) -> Mapping[str, SetHere]:
    """Every measurement of a run by name; that of the empty name is `evaluation`, and has the tasks of training, too.

    Raises:
        ValueError: the file of a set's tasks is damaged.
    """
    own = SetHere(config=material.config, tasks=material.tasks, here=here)
    return {"": own, **{each.name: _set_here(material, here, each) for each in material.config.evaluations}}


def _set_here(material: Material, here: Here, measured: EvaluationSetConfig) -> SetHere:
    config, folder = material.config.for_set(measured), material.run / evaluations_folder(measured.name)
    found = SetHere(config=config, tasks=read_tasks(folder), here=here)
    if here.environment is None:
        return found
    try:
        own = _measurement(material, here, measured)
    except ValueError as error:
        why = f"evaluation set {measured.name}: its tasks cannot be loaded: {error}"
        return replace(found, here=replace(here, environment=None, missing={**here.missing, "environment": why}))
    return replace(found, here=replace(here, environment=own.environment), episodes=own.episodes)


def _measurement(material: Material, here: Here, measured: EvaluationSetConfig) -> Measurement:
    """A set with the tasks that fit the model. Raises ValueError if they cannot be loaded, or are others."""
    assert here.environment is not None
    only = material.config.model_copy(update={"evaluations": (measured,)})
    _, own = load_measurements(only, here.environment)
    if not own.is_elsewhere:
        return own
    if here.model_folder:
        fitted, _ = fit(own.config, own.environment, here.model_folder, is_trained=False)
        own = replace(own, environment=fitted)
    then = logs.read_provenance(material.run).sha256.get(tasks_of_set(measured.name))
    if here.model_folder and then and (now := provenance.tasks_sha256(own.environment)) != then:
        raise ValueError(f"they are others now: sha256 {then[:12]} then, {now[:12]} here")
    return own


def all_tasks(sets: Mapping[str, SetHere]) -> StoredTasks:
    """What the run keeps of all tasks, for what asks for columns alone: ids of two sets may be the same."""
    lines: dict[str, list[StoredTask]] = {}
    for task_id, kept in (item for each in sets.values() for item in each.tasks.lines.items()):
        lines.setdefault(task_id, []).extend(kept)
    return StoredTasks(lines=lines, lost=sorted({name for each in sets.values() for name in each.tasks.lost}))
