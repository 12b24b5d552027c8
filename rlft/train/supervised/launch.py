"""A whole supervised run: reading rows, training, held-out measurements, accuracy on tasks, report.

`run.directory` says what it leaves behind. A stage that is complete on disk is not done again, which is what makes
resuming the same function as training.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from transformers.utils import logging as transformers_logging

from rlft.curves.evaluation_sets import TASKS
from rlft.curves.live_panel import View, training_console
from rlft.curves.reading import STOPPED_EARLY
from rlft.curves.text import format_accuracy
from rlft.model import chat
from rlft.model.context import model_context
from rlft.model.memory import keep_freed_memory
from rlft.model.pretrained import load_config, load_generation_config
from rlft.model.starting_point import resolve_model, start_tensors
from rlft.run.checkpoint import Snapshot
from rlft.run.directory import Run
from rlft.run.records import Evaluation, Provenance, adapter_folder, step_name
from rlft.run.resume import PLAIN, How, config_of, continued, way_on
from rlft.run.summaries import SupervisedSummary
from rlft.train import provenance
from rlft.train.slow_paths import tell_slow_paths
from rlft.train.standing import Standing, has_adapter, keep_adapter
from rlft.train.stop_report import report_stop
from rlft.train.supervised import stopping
from rlft.train.supervised.config import SupervisedConfig
from rlft.train.supervised.data import SupervisedData, load
from rlft.train.supervised.learner import make_supervised_learner
from rlft.train.supervised.loop import (
    METRIC,
    STAGE,
    AnyLearner,
    looks_planned,
    measure,
    num_updates,
    train_supervised,
)
from rlft.train.supervised.tasks import HeldoutTasks, load_tasks, measure_tasks, refuse_learnt_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What a run is made of, checked before its directory exists."""

    data: SupervisedData
    tasks: HeldoutTasks | None
    model_folder: str


def train(config: SupervisedConfig, *, restart: bool = False) -> SupervisedSummary:
    """Start a supervised run and bring it to its end.

    Args:
        restart: move an existing run of that name aside.

    Returns:
        The summary, as `summary.json` holds it.

    Raises:
        ValueError: something in the config, the data or the model cannot work; nothing was started.
        RuntimeError: the run had to stop; `resume` continues it.
    """
    with View(config.name, steps=0, unit="update", console=training_console()) as view:
        prepared = _prepare(config, view)
        with Run.create(config, provenance=_provenance(config, prepared), restart=restart) as run:
            return _execute(run, prepared, view)


def resume(path: Path, how: How = PLAIN) -> tuple[Path, SupervisedSummary]:
    """Continue a supervised run from its newest whole checkpoint; on a CPU it ends as it would have without a break.

    Returns:
        (the run's directory, which is another one of a fork; its summary).

    Raises:
        ValueError: see `run.resume.continued`.
    """
    with (
        Run.reopen(path, SupervisedConfig) as run,
        View(run.config.name, steps=0, unit="update", console=training_console()) as view,
    ):
        config = config_of(run, how)
        prepared = _prepare(config, view)
        now = _provenance(config, prepared)
        with continued(run, config, now, how, every=config.checkpoint.every, is_whole=has_adapter) as going_on:
            for remark in going_on.remarks:
                view.note(remark)
            if going_on.summary is not None:
                return path, cast(SupervisedSummary, going_on.summary)
            return going_on.run.path, _execute(going_on.run, prepared, view, going_on.snapshot)


def _provenance(config: SupervisedConfig, prepared: _Prepared) -> Provenance:
    hashes = {config.data.source: prepared.data.hash}
    if prepared.tasks is not None:
        hashes |= prepared.tasks.hashes
    return provenance.present(
        config, prepared.model_folder, sha256=hashes, tasks=prepared.data.hash, start=config.adapter.start
    )


def _prepare(config: SupervisedConfig, view: View) -> _Prepared:
    """The data and the model's folder, with everything refused that could not work, before a run exists."""
    transformers_logging.disable_progress_bar()
    start_tensors(config)
    tasks = load_tasks(config)
    data, model_folder = read_rows(config, view)
    if config.batch_size > len(data.train):
        raise ValueError(
            f"batch_size is {config.batch_size}, but {config.data.source} has {len(data.train)} rows to train on; "
            "lower batch_size or add rows"
        )
    if tasks is not None:
        refuse_learnt_tasks(tasks, data.train)
    if config.evaluation.patience:
        stopping.refuse_few(len({example.id for example in data.heldout}))
    if data.dropped:
        view.note(f"{data.dropped} rows of more than {data.max_length} tokens were left out")
    if data.duplicates:
        view.note(f"{data.duplicates} rows that repeat an earlier one were left out")
    view.steps = num_updates(config, data)
    return _Prepared(data=data, tasks=tasks, model_folder=model_folder)


def read_rows(config: SupervisedConfig, view: View) -> tuple[SupervisedData, str]:
    """The rows in the tokens of the config's model, and that model's folder; errors as of `data.load`."""
    model_folder = str(resolve_model(config))
    tokenizer = chat.load_tokenizer(
        model_folder, for_chat=False, special_tokens_in_text=config.model.special_tokens_in_text
    )
    view.stage("reading rows")
    data = load(
        config.data,
        tokenizer,
        chat.end_token_ids(tokenizer, load_generation_config(model_folder)),
        context=model_context(load_config(model_folder)).tokens,
        on_row=view.progress,
    )
    return data, model_folder


def _execute(
    run: Run[SupervisedConfig], prepared: _Prepared, view: View, saved: Snapshot | None = None
) -> SupervisedSummary:
    keep_freed_memory()
    run.on_stop = partial(report_stop, view)
    try:
        measure_tasks(run, prepared.tasks, view, folder=None, name="base", step=0)
        updates = _train(run, prepared, view, saved)
        result = _result_step(run, prepared.data, updates)
        folder = run.path / adapter_folder(result)
        measure_tasks(run, prepared.tasks, view, folder=folder, name=step_name(result), step=result)
        return _summarize(run, prepared.data, updates=updates, result=result)
    except BaseException:
        view.note(way_on(run))
        raise


def _train(run: Run[SupervisedConfig], prepared: _Prepared, view: View, saved: Snapshot | None) -> int:
    """Train to the end or an early stop; returns the number of updates."""
    config, data = run.config, prepared.data
    total = num_updates(config, data)
    view.stage("loading the model")
    learner = make_supervised_learner(config, prepared.model_folder, start=start_tensors(config))
    with closing(learner):
        tell_slow_paths(run, learner)
        _measure_once(run, learner, data, view, name="base", step=0)
        if saved is not None:  # after the base, which a fork may measure again
            learner.load_state(saved.tensors, saved.state)
        start, every, looks = saved.step if saved else 0, config.checkpoint.every, config.evaluation.every

        def take(step: int) -> Snapshot:
            tensors, numbers = learner.state()
            return Snapshot(step=step, tensors=tensors, state=numbers)

        def after_update(step: int) -> bool:
            is_last, is_look = step == total, bool(looks) and step % looks == 0
            tell_slow_paths(run, learner)
            if is_last or is_look:
                _measure_once(run, learner, data, view, name=step_name(step), step=step)
            stops = is_look and not is_last and _stops(run, data, view, step)
            if is_last or stops or step % every == 0 or (is_look and config.evaluation.patience):
                keep_adapter(run, step, learner.adapter(step), prepared.model_folder, view)
            if (is_last or stops or step % every == 0) and step > start:
                run.checkpoint(take(step), every=every)
            return stops

        view.stage("training")
        standing = Standing(start)
        with standing.saved(run, view, take, every=every):
            return train_supervised(
                run, learner, data, start=start, view=view, standing=standing, after_update=after_update
            )


def _measure_once(
    run: Run[SupervisedConfig], learner: AnyLearner, data: SupervisedData, view: View, *, name: str, step: int
) -> None:
    if not data.heldout or run.evaluation(name) is not None:
        return
    view.stage(f"held-out rows: {name}")
    result = measure(learner, run.config, data, name=name, step=step, on_chunk=view.progress)
    run.write_evaluation(result)
    perplexity = f"perplexity {result.extra['perplexity']:.2f}"
    view.evaluated(
        result, f"held-out, {name}: log-probability {format_accuracy(result.accuracy)} per token, {perplexity}"
    )


def _standing(run: Run[SupervisedConfig], data: SupervisedData, until: int) -> tuple[stopping.Standing, Evaluation]:
    """Where early stopping stands at an update, and the best measurement: of that before training, and of the
    scheduled ones up to then."""
    every = run.config.evaluation.every
    found = [run.evaluation("base"), *(run.evaluation(step_name(step)) for step in range(every, until + 1, every))]
    looked = [each for each in found if each is not None]
    planned = looks_planned(run.config, num_updates(run.config, data))
    standing = stopping.standing([each.by_task for each in looked], planned=planned)
    return standing, looked[standing.best]


def _stops(run: Run[SupervisedConfig], data: SupervisedData, view: View, step: int) -> bool:
    """Whether training stops at this update, which is then told."""
    config = run.config
    if not config.evaluation.patience:
        return False
    found, best = _standing(run, data, step)
    if not found.is_over(config.evaluation.patience):
        return False
    total = num_updates(config, data)
    told = f"none of the last {found.since} measurements is better than {best.label} beyond chance"
    run.event(STOPPED_EARLY, f"stopped at update {step} of {total}: {told}", step=best.step or step)
    view.note(f"stopped early: {told}")
    return True


def _result_step(run: Run[SupervisedConfig], data: SupervisedData, updates: int) -> int:
    """The update whose adapter is the result: the last one, or of a run that was stopped early the best measured."""
    config, total = run.config, num_updates(run.config, data)
    if not config.evaluation.patience or updates == total:
        return updates
    _, best = _standing(run, data, updates)
    return best.step or updates  # nothing is better than no training: what there is at its end


def _summarize(run: Run[SupervisedConfig], data: SupervisedData, *, updates: int, result: int) -> SupervisedSummary:
    from rlft.curves.report import write_report, write_reward_png

    policies = {"base": "base", "trained": step_name(result)}
    before, after = (run.evaluation(name) for name in policies.values())
    summary: SupervisedSummary = {
        "name": run.config.name,
        "stage": STAGE,
        "metric": METRIC,
        "word": "log-probability",
        "steps": updates,
        "result_step": result,
        "train_examples": len(data.train),
        "heldout_examples": len(data.heldout),
        "dropped_rows": data.dropped,
        "duplicate_rows": data.duplicates,
        "adapter": adapter_folder(result),
        "accuracy_base": before.accuracy.as_dict() if before else None,
        "loss_base": before.loss if before else None,
        "perplexity_base": before.extra["perplexity"] if before else None,
        "accuracy_trained": after.accuracy.as_dict() if after else None,
        "loss_trained": after.loss if after else None,
        "perplexity_trained": after.extra["perplexity"] if after else None,
    }
    if run.config.evaluation.tasks:
        found = {key: run.evaluation(name, TASKS) for key, name in policies.items()}
        summary["tasks"] = {key: each.accuracy.as_dict() if each else None for key, each in found.items()}
    run.write_summary(summary)
    write_report(run.path)
    write_reward_png(run.path)
    return summary
