"""The held-out measurements of a run: `evaluation`, which decides the verdict, and those of `evaluations` beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.config import EnvironmentConfig, RunConfig
from rlft.curves.live_panel import View
from rlft.curves.text import format_accuracy
from rlft.environment import loading
from rlft.environment.contract import Environment, refuse_overlap
from rlft.reward.scoring import Scorer
from rlft.rollout.context import fit
from rlft.rollout.pool import RolloutPool
from rlft.run.directory import Run
from rlft.run.provenance import tasks_of_set
from rlft.train import provenance
from rlft.train.rl.evaluate import answer_heldout, evaluation, headline
from rlft.train.rl.observed import note_observed_failures
from rlft.types import Adapter

EVALUATION = "held-out evaluation: "
"""How the stage of an evaluation is called, before `[SET, ]NAME`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One of the things that are measured on held-out tasks."""

    set_name: str
    """Name of the evaluation set; empty is `evaluation`."""
    config: RunConfig
    """The run's config, with what this measures as `evaluation` and `environment`."""
    environment: Environment
    """Has the held-out tasks."""
    is_elsewhere: bool = False
    """Whether that is another environment than the run's."""
    source: Mapping[str, Any] | None = None
    """What makes the tasks, see `records.SOURCES`; None where it is what makes the run's."""

    @property
    def episodes(self) -> EnvironmentConfig | None:
        """Whose episodes its samples are, if not the run's."""
        return self.config.environment if self.is_elsewhere and self.environment.episode else None

    def is_due(self, step: int) -> bool:
        """Whether it is made after this step."""
        every = self.config.evaluation.every
        return step == self.config.steps or bool(every and step % every == 0)


def set_config(config: RunConfig, name: str) -> RunConfig:
    """The config that measures an evaluation set as if it were `evaluation`.

    Raises:
        ValueError: the config has no set of that name.
    """
    found = {each.name: each for each in config.evaluations}
    if name not in found:
        there = f"There are: {', '.join(found)}" if found else "The config has no `evaluations`"
        raise ValueError(f"no evaluation set is named {name!r}.{did_you_mean(name, found)} {there}")
    return config.for_set(found[name])


def heldout_only(environment: Environment) -> Environment:
    """An environment that is only measured on."""
    return replace(environment, train=(), demonstrations=())


def load_measurements(config: RunConfig, environment: Environment) -> list[Measurement]:
    """What a run measures: `evaluation` first, then the sets, whose environments are loaded.

    Raises:
        ValueError: a metric that no reward gives, or no held-out tasks; or a set's held-out tasks are trained on.
    """
    headline(config)
    if not environment.heldout:
        raise ValueError(f"environment {config.environment.told} has no held-out tasks; the policy is measured on them")
    if config.learner_rewards and len({repr(each.tools) for each in environment.sources.values()}) > 1:
        raise ValueError(
            "environment.mix: its environments show different tools, and the reward "
            f"{config.learner_rewards[0].path} on the learner's base reads those of one; use the reward "
            "rewards.reward_model:reward_model with args.folder"
        )
    found = [Measurement(set_name="", config=config, environment=environment)]
    for measured in config.evaluations:
        of_set = config.for_set(measured)
        headline(of_set, f"evaluations.{measured.name}")
        if measured.environment is None:
            found.append(Measurement(set_name=measured.name, config=of_set, environment=environment))
            continue
        try:
            own = _own_environment(of_set, environment)
        except ValueError as error:
            raise ValueError(f"evaluations.{measured.name}: {error}") from None
        record = provenance.environment_record(of_set.environment)
        found.append(
            Measurement(set_name=measured.name, config=of_set, environment=own, is_elsewhere=True, source=record)
        )
    return found


def _own_environment(config: RunConfig, trained: Environment) -> Environment:
    """A set's environment without what it would train on."""
    own = loading.load(config.environment)
    if not own.heldout:
        raise ValueError(f"environment {config.environment.path} has no held-out tasks")
    refuse_overlap(trained, own.heldout, are_episodes=bool(own.episode or trained.episode))
    if config.learner_rewards and list(own.tools) != list(trained.tools):
        raise ValueError(
            f"its environment shows other tools than the run's, and the reward {config.learner_rewards[0].path} on the "
            "learner's base reads those of the run; use the reward rewards.reward_model:reward_model with args.folder"
        )
    return heldout_only(own)


def fit_measurements(
    measurements: Sequence[Measurement], environment: Environment, model_folder: str, scorer: Scorer
) -> tuple[list[Measurement], list[str]]:
    """Check that the sets' own tasks fit the model, and have the columns that rewards ask for.

    Args:
        environment: the run's, of which the tasks that do not fit are left out.

    Returns:
        (the measurements with the tasks that fit, what was left out in words)

    Raises:
        ValueError: they do not.
    """
    fitted, notes = [], []
    for each in measurements:
        if not each.is_elsewhere:
            fitted.append(replace(each, environment=environment))
            continue
        try:
            scorer.check_columns({column for task in each.environment.heldout for column in task.columns})
            own, dropped = fit(each.config, each.environment, model_folder, is_trained=False)
        except ValueError as error:
            raise ValueError(f"evaluations.{each.set_name}: {error}") from None
        notes += [f"evaluation {each.set_name}: {note}" for note in (dropped, *own.notes) if note]
        fitted.append(replace(each, environment=own))
    return fitted, notes


def own_hashes(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Hashes of the sets' own environments and tasks, for the run's provenance."""
    found = {}
    for each in measurements:
        if each.is_elsewhere:
            found[each.config.environment.path] = loading.identity(each.config.environment.path)
            found[tasks_of_set(each.set_name)] = provenance.tasks_sha256(each.environment)
    return found


def measure_heldout(
    run: Run,
    view: View,
    pool: RolloutPool,
    scorer: Scorer,
    measurements: Sequence[Measurement],
    adapter: Adapter,
    *,
    name: str,
    step: int,
    publish: bool,
) -> None:
    """Make those evaluations of an adapter that the run directory does not have yet.

    Args:
        name: of the evaluations, as `records.Evaluation` has it.
        publish: whether the workers have to be given the adapter.

    Raises:
        RuntimeError: too many samples could not be scored, see `evaluation`.
    """
    missing = [each for each in measurements if run.evaluation(name, each.set_name) is None]
    if missing and publish:
        pool.publish(adapter)
    for each in missing:
        told = f"{each.set_name}, {name}" if each.set_name else name
        view.stage(f"{EVALUATION}{told}")
        groups = answer_heldout(
            each.config,
            pool,
            scorer,
            each.environment.heldout,
            version=adapter.version,
            environment=each.episodes,
            on_chunk=view.progress,
        )
        sources = {**run.sources, "environment": each.source} if each.source else None
        samples = run.write_evaluation_samples(name, step, groups, set_name=each.set_name, sources=sources)
        result = evaluation(
            each.config, groups, adapter=adapter, name=name, step=step, samples_file=samples, set_name=each.set_name
        )
        run.write_evaluation(result)
        note_observed_failures(run, view, groups, step=step)
        view.evaluated(result, f"held-out {result.metric}, {told}: {format_accuracy(result.accuracy, result.missing)}")
