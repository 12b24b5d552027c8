"""Accuracy on an RL config's held-out tasks before and after a supervised run: `evaluation.tasks`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rlft import config_file
from rlft.common import user_folder
from rlft.config import RunConfig
from rlft.curves.evaluation_sets import TASKS
from rlft.curves.live_panel import View
from rlft.curves.text import format_accuracy
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.learner.reward_model import folder_hash
from rlft.reward import systems
from rlft.reward.source import source_file
from rlft.rollout.engines.by_name import engine_problems
from rlft.run.directory import Run
from rlft.train import provenance
from rlft.train.rl.measure import measure
from rlft.train.supervised.config import SupervisedConfig
from rlft.train.supervised.data import Example
from rlft.train.supervised.loop import STAGE
from rlft.train.supervised.rows import Row
from rlft.types import RewardSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutTasks:
    """Tasks that are answered before and after."""

    config: RunConfig
    """The RL config, with the model and the adapter of the supervised run."""
    environment: Environment
    """Has the held-out tasks."""

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the environment, of its tasks and of the rewards that score them, for the run's provenance."""
        environment = self.config.environment
        of_tasks = {f"tasks of {environment.told}": provenance.tasks_sha256(self.environment)}
        of_environment = {each.path: loading.identity(each.path) for each in environment.entries}
        of_rewards = {each.path: digest for each in self.config.rewards if (digest := _reward_identity(each))}
        settings = self.config.model_dump(mode="json", include={"rewards", "sampling", "evaluation", "scoring"})
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return {**of_environment, **of_rewards, **of_tasks, "rewards and sampling of evaluation.tasks": digest}


def load_tasks(config: SupervisedConfig) -> HeldoutTasks | None:
    """The tasks that `evaluation.tasks` names; None where it names none.

    Raises:
        ValueError: the file is no RL config, its environment cannot be loaded or has no held-out tasks.
    """
    if not config.evaluation.tasks:
        return None
    path = Path(config.evaluation.tasks)
    try:
        loaded = config_file.load(path, (), RunConfig, check=_problems)
    except ValueError as error:
        raise ValueError(f"evaluation.tasks: {error}") from None
    rl = loaded.model_copy(update={"model": config.model, "adapter": config.adapter, "evaluations": ()})
    environment = loading.load(rl.environment)
    if not environment.heldout:
        raise ValueError(f"evaluation.tasks: environment {rl.environment.told} has no held-out tasks to answer")
    return HeldoutTasks(config=rl, environment=environment)


def _reward_identity(reward: RewardSpec) -> str:
    """The hash of the files behind a reward, which are read and not run: it is a process's to run them.

    Empty for one of another system's package, whose version the provenance has.
    """
    if reward.folder:
        return folder_hash(reward.folder)
    file = systems.grader_file(reward.path) or source_file(reward.path)
    return user_folder.combined(user_folder.sources(file)) if file else ""


def _problems(config: RunConfig) -> Iterable[config_file.Problem]:
    return engine_problems(config, is_trained=False)


def refuse_learnt_tasks(tasks: HeldoutTasks, examples: Iterable[Example]) -> None:
    """Refuse rows whose prompt is that of a held-out task, which would measure what was learnt by heart.

    Episodes may all open alike and go on differently, so that nothing is refused there.

    Args:
        examples: what is trained on.

    Raises:
        ValueError: names the row and the task, and how many there are.
    """
    if tasks.environment.episode is not None:
        return
    asked = {
        Row(list(task.messages), "", tools).id: task.id
        for task in tasks.environment.heldout
        for tools in ((), tasks.environment.of(task).tools)
    }
    found = [(example.where, asked[example.id]) for example in examples if example.id in asked]
    if found:
        where, task = found[0]
        more = f" ({len(found)} rows do so)" if len(found) > 1 else ""
        raise ValueError(
            f"{where}: its prompt is that of held-out task {task!r} of {tasks.config.environment.told}, so that "
            f"measuring it would tell nothing{more}; take such rows out"
        )


def measure_tasks(
    run: Run[SupervisedConfig], tasks: HeldoutTasks | None, view: View, *, folder: Path | None, name: str, step: int
) -> None:
    """Answer the held-out tasks with an adapter folder, or with the base model, unless the run has that already."""
    if tasks is None or run.evaluation(name, TASKS) is not None:
        return
    view.stage(f"held-out tasks: {name}")
    found = measure(tasks.config, folder, view=view)  # makes its own engine, so no learner need be there
    evaluation, environment = tasks.config.evaluation, tasks.config.environment
    settings = {
        "environment": {"path": environment.told, "args": dict(environment.args)},
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "samples_per_task": evaluation.samples_per_task,
    }
    result = replace(
        found,
        name=name,
        stage=STAGE,
        step=step,
        adapter_version=step if folder else found.adapter_version,
        set_name=TASKS,
        extra={**found.extra, "settings": settings},
    )
    run.write_evaluation(result)
    view.evaluated(result, f"held-out {result.metric}, {name}: {format_accuracy(result.accuracy, result.missing)}")
