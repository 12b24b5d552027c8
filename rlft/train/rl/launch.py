"""A whole run around the RL loop: base measurement, SFT warm start, RL, final measurement, report.

A stage that is complete on disk is not done again, which is what makes resuming the same function as training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from rlft.common.user_folder import combined
from rlft.config import RunConfig
from rlft.curves.live_panel import View, training_console
from rlft.curves.shadow import shadow_names
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.learner import reward_model
from rlft.learner.group import make_learner
from rlft.learner.reward_model import folder_hash
from rlft.model.adapter import adapter_shapes, bare_base, make_adapter, read_folder
from rlft.model.starting_point import (
    reference_source,
    resolve_model,
    save_adapter,
    start_tensors,
)
from rlft.reward.contract import refuse_untrainable
from rlft.reward.scoring import LearnerScores, Scorer
from rlft.rollout.context import fit
from rlft.rollout.engines.by_name import check_engine
from rlft.rollout.pool import MakePool, RolloutPool
from rlft.run.checkpoint import Snapshot
from rlft.run.directory import Run, make_output_dir
from rlft.run.provenance import source_record
from rlft.run.records import LOGS, Provenance, adapter_folder, step_name
from rlft.run.resume import PLAIN, Continued, How, config_of, continued, way_on
from rlft.run.summaries import RLSummary
from rlft.train import provenance
from rlft.train.rl.alarms import AlarmWatch, RollBackError, rolled_back_adapter
from rlft.train.rl.evaluations import (
    Measurement,
    fit_measurements,
    load_measurements,
    measure_heldout,
    own_hashes,
)
from rlft.train.rl.loop import train_rl
from rlft.train.rl.services import canary_maker, judge_budget, make_scorer, reward_remarks, services
from rlft.train.rl.state import restore, snapshot
from rlft.train.rl.summary import summarize
from rlft.train.rl.task_choice import TaskChoice
from rlft.train.sft import check_demonstrations, train_sft
from rlft.train.slow_paths import tell_slow_paths
from rlft.train.standing import Standing, has_adapter, keep_adapter
from rlft.train.stop_report import report_stop
from rlft.types import Adapter

WARM_START, LOADING = "SFT warm start", "loading the learner"
"""What two stages are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What a run is made of, checked before its directory exists."""

    environment: Environment
    model_folder: str
    dropped: str
    """The training tasks that are left out for their length, in words."""
    scorer: Scorer
    """Its processes have loaded the rewards."""
    learner_scores: LearnerScores
    """Where the scorer gets the scores of the rewards on the learner's base."""
    measurements: Sequence[Measurement]
    """What is measured on held-out tasks; the first one decides the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the stages of a run share."""

    run: Run
    view: View
    environment: Environment
    model_folder: str
    pool: RolloutPool
    scorer: Scorer
    learner_scores: LearnerScores
    measurements: Sequence[Measurement]

    def evaluate(self, adapter: Adapter, *, name: str, step: int, publish: bool) -> None:
        """Make what is to be measured of an adapter after a step and is not yet."""
        due = [each for each in self.measurements if publish or each.is_due(step)]
        measure_heldout(
            self.run, self.view, self.pool, self.scorer, due, adapter, name=name, step=step, publish=publish
        )


def train(
    config: RunConfig,
    *,
    restart: bool = False,
    pools: MakePool | None = None,
    make_view: Callable[..., View] | None = None,
) -> RLSummary:
    """Start a run and bring it to its end; returns its summary.

    Args:
        restart: move an existing run of that name aside.
        pools: makes the rollout pool; `pool.make_pool` if not given.
        make_view: what is called for the run's view, with the arguments of `View`; `View` on `training_console()` if
            not given.

    Raises:
        ValueError: something in the config, the environment, the rewards or the model cannot work; nothing was started.
        RuntimeError: the run had to stop; `resume` continues it.
    """
    with _prepare(config) as prepared:
        remarks = reward_remarks(config, prepared.environment, prepared.scorer)
        with Run.create(config, provenance=_provenance(config, prepared), restart=restart) as run:
            prepared.scorer.move_logs(run.path / LOGS)
            judge_budget(config).start()
            for remark in remarks:
                run.event("reward", remark)
            return _execute(run, prepared, remarks=remarks, pools=pools, make_view=make_view)


def resume(path: Path, how: How = PLAIN) -> tuple[Path, RLSummary]:
    """Continue a run from its newest whole checkpoint; on a CPU it ends as it would have without the interruption.

    Returns:
        (the run's directory, which is another one of a fork; its summary).

    Raises:
        ValueError: `path` holds no run, or another process is working on it; or see `run.resume.continued`.
    """
    with Run.reopen(path) as run:
        config = config_of(run, how)
        with (
            _prepare(config, path=None if how.fork else run.path) as prepared,
            continued(
                run, config, _provenance(config, prepared), how, every=config.checkpoint.every, is_whole=has_adapter
            ) as going_on,
        ):
            if how.fork:
                prepared.scorer.move_logs(going_on.run.path / LOGS)
            if going_on.summary is not None:
                View(config.name, steps=0, console=training_console()).note(going_on.remarks[0])
                return path, cast(RLSummary, going_on.summary)
            return going_on.run.path, _execute(going_on.run, prepared, going_on=going_on)


def sft(config: RunConfig, *, restart: bool = False) -> Path:
    """Only the SFT stage.

    Returns:
        The adapter's folder, in PEFT's layout.

    Raises:
        ValueError: see `train`; or the config has no `sft` section.
    """
    with (
        _prepare(config) as prepared,
        Run.create(config, provenance=_provenance(config, prepared), restart=restart) as run,
    ):
        prepared.scorer.move_logs(run.path / LOGS)
        prepared.scorer.close()  # the rewards were only checked
        with View(config.name, steps=0, console=training_console()) as view:
            _warm_start(run, view, prepared.environment, prepared.model_folder)
        return run.path / adapter_folder(None)


def refuse_unfit(config: RunConfig, environment: Environment) -> None:
    """Refuse a config that could not start with its environment, as far as that shows without a model or a process.

    Raises:
        ValueError: too few demonstrations, no reward with a weight, or no adapter to start from.
    """
    refuse_untrainable(config.rewards)
    if config.sft is not None:
        check_demonstrations(config.sft, environment.demonstrations)
    start_tensors(config)


@contextmanager
def _prepare(config: RunConfig, *, path: Path | None = None) -> Iterator[_Prepared]:
    """Start the scoring processes and refuse what could not work, before a run exists.

    Args:
        path: of the run that goes on, where the scoring processes print; if not given, `Scorer.move_logs` has to move
            what they printed before the end, which deletes it.
    """
    check_engine(config, is_trained=True)
    environment = loading.load(config.environment)
    measurements = load_measurements(config, environment)
    refuse_unfit(config, environment)
    learner_scores = LearnerScores()
    with ExitStack() as stack:
        log_dir = path / LOGS if path else None
        if log_dir is None:
            make_output_dir(config.run_dir.parent)
            # On the run's own disk, where open files can be moved.
            folder = tempfile.TemporaryDirectory(prefix=f".{config.name}.", dir=config.run_dir.parent)
            log_dir = Path(stack.enter_context(folder))
        scorer = stack.enter_context(
            make_scorer(config, environment, log_dir=log_dir, learner=learner_scores, path=path)
        )
        model_folder = str(resolve_model(config))
        if config.adapter.kind != "full":
            adapter_shapes(model_folder, config.adapter)  # refuses targets before anything is measured
        environment, dropped = fit(config, environment, model_folder)
        choice = TaskChoice(config, environment.train)
        choice.of_step(1)
        reward_model.check(config, model_folder)
        measurements, notes = fit_measurements(measurements, environment, model_folder, scorer)
        yield _Prepared(
            environment=replace(environment, notes=(*environment.notes, *choice.notes, *notes)),
            model_folder=model_folder,
            dropped=dropped,
            scorer=scorer,
            learner_scores=learner_scores,
            measurements=measurements,
        )


def _execute(
    run: Run,
    prepared: _Prepared,
    *,
    going_on: Continued[RunConfig] | None = None,
    remarks: Sequence[str] = (),
    pools: MakePool | None = None,
    make_view: Callable[..., View] | None = None,
) -> RLSummary:
    config, model_folder, scorer = run.config, prepared.model_folder, prepared.scorer
    run.sources = _sources(config, prepared)
    make_view = make_view or partial(View, console=training_console())
    with (
        make_view(config.name, steps=config.steps, shadows=shadow_names(config.rewards)) as view,
        services(config, model_folder, scorer, run, view, pools) as pool,
    ):
        run.on_stop = partial(report_stop, view)
        if prepared.dropped:
            run.event("overlong", prepared.dropped)
        for note in (prepared.dropped, *prepared.environment.notes):
            if note:
                view.note(note)
        for note in prepared.environment.notes:
            run.event("data", note)
        for remark in (*remarks, *(going_on.remarks if going_on else ())):
            view.note(remark)
        parts = _Parts(
            run=run,
            view=view,
            environment=prepared.environment,
            model_folder=model_folder,
            pool=pool,
            scorer=scorer,
            learner_scores=prepared.learner_scores,
            measurements=prepared.measurements,
        )
        try:
            return _stages(parts, going_on.snapshot if going_on else None)
        except BaseException:
            view.note(way_on(run))
            raise


def _stages(parts: _Parts, saved: Snapshot | None) -> RLSummary:
    run, view, config = parts.run, parts.view, parts.run.config
    base = bare_base()
    if not config.learner_rewards:  # else when the learner is there
        parts.evaluate(base, name="base", step=0, publish=True)
    warm_start = start_tensors(config)
    if config.sft is not None:
        warm_start = _warm_start(run, view, parts.environment, parts.model_folder)
    view.stage(LOADING)
    source = reference_source(config.reference)
    with closing(make_learner(config, parts.model_folder, warm_start=warm_start, reference=source)) as learner:
        tell_slow_paths(run, learner)
        parts.learner_scores.bind(partial(learner.scores, tools=parts.environment.tools))
        if config.learner_rewards:
            parts.evaluate(base, name="base", step=0, publish=True)
        if config.sft is not None and warm_start is not None:
            parts.evaluate(make_adapter(0, warm_start), name="sft", step=0, publish=True)
        tasks = TaskChoice(config, parts.environment.train)
        earlier = restore(learner, saved, tasks) if saved else []
        start, every = saved.step if saved else 0, config.checkpoint.every
        standing, watch = Standing(start), AlarmWatch(run, view)

        def take(step: int) -> Snapshot:
            return snapshot(learner, step, standing.adapters[:-1], tasks)

        def after_step(step: int, adapter: Adapter) -> None:
            is_last = step == config.steps
            tell_slow_paths(run, learner)
            parts.evaluate(adapter, name=step_name(step), step=step, publish=False)
            if is_last or step % every == 0:
                keep_adapter(run, step, adapter, parts.model_folder, view)
                if step > start:
                    run.checkpoint(take(step), every=every)
            watch.look(step)

        try:
            with standing.saved(run, view, take, every=every):
                train_rl(
                    run,
                    learner,
                    parts.pool,
                    parts.scorer,
                    tasks,
                    start=start,
                    earlier=earlier,
                    canary=canary_maker(config, parts.model_folder, parts.environment),
                    view=view,
                    standing=standing,
                    after_step=after_step,
                )
        except RollBackError as back:
            adapter = rolled_back_adapter(run, view, back)
            parts.evaluate(adapter, name=step_name(back.step), step=back.step, publish=True)
            return summarize(run, back.step)
    return summarize(run)


def _warm_start(run: Run, view: View, environment: Environment, model_folder: str) -> dict[str, Tensor]:
    """The SFT adapter: made now, or read where a complete one lies."""
    folder = run.path / adapter_folder(None)
    if not folder.exists():
        view.stage(WARM_START)
        losses: list[float] = []

        def on_update(done: int, total: int, loss: float) -> None:
            losses.append(loss)
            view.progress(done, total)

        tensors = train_sft(
            run.config,
            model_folder,
            environment.demonstrations,
            on_update,
            start=start_tensors(run.config),
            tools=environment.tools_shown,
        )
        save_adapter(folder, run.config, model_folder, tensors)
        run.event("sft", f"{len(losses)} updates, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    return read_folder(folder)


def _sources(config: RunConfig, prepared: _Prepared) -> dict[str, Any]:
    """What makes the rewards and the tasks, see `records.SOURCES`."""
    of_rewards = prepared.scorer.sources
    return {
        "rewards": {
            r.label: source_record(r.path, r.args, of_rewards.get(r.label) or {r.folder: folder_hash(r.folder)})
            for r in config.rewards
        },
        "environment": provenance.environment_record(config.environment),
    }


def _provenance(config: RunConfig, prepared: _Prepared) -> Provenance:
    # The scoring processes have hashed what they loaded: the driver imports no reward.
    sources = prepared.scorer.sources
    rewards = {r.path: folder_hash(r.folder) if r.folder else combined(sources[r.label]) for r in config.rewards}
    of_run = {each.path: loading.identity(each.path) for each in config.environment.entries}
    hashes = {**of_run, **rewards, **own_hashes(prepared.measurements)}
    tasks = provenance.tasks_sha256(prepared.environment)
    return provenance.present(
        config,
        prepared.model_folder,
        sha256=hashes,
        tasks=tasks,
        start=config.adapter.start,
        reference=config.reference,
    )
