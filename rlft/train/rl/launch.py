"""A whole run around the RL loop: base measurement, SFT warm start, RL, final measurement, report.

A stage that is complete on disk is not done again, which is what makes resuming the same function as training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.curves.text import format_accuracy
from rlft.environment import loading, prompt_lengths
from rlft.environment.contract import Environment
from rlft.learner import reward_model
from rlft.learner.group import make_learner
from rlft.learner.reward_model import folder_hash
from rlft.learner.rl import Learner
from rlft.model import chat
from rlft.model.adapter import bare_base, make_adapter, read_folder
from rlft.model.base import resolve_dtype
from rlft.model.starting_point import (
    reference_source,
    refuse_other_scale,
    resolve_model,
    save_adapter,
    start_tensors,
)
from rlft.reward.loading import source_hash
from rlft.reward.scoring import Scorer
from rlft.rollout.engines.by_name import refuse_training
from rlft.rollout.pool import MakePool, RolloutPool
from rlft.rollout.weight_proof import CanaryMaker
from rlft.run.checkpoint import Snapshot
from rlft.run.directory import Run
from rlft.run.records import Provenance
from rlft.run.resume import PLAIN, Continued, How, config_of, continued
from rlft.train import provenance
from rlft.train.rl.evaluate import evaluate
from rlft.train.rl.loop import train_rl
from rlft.train.rl.services import make_scorer, services
from rlft.train.rl.state import restore, snapshot
from rlft.train.sft import check_demonstrations, train_sft
from rlft.train.task_order import tasks_of_step
from rlft.types import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the stages of a run share."""

    run: Run
    view: View
    environment: Environment
    model_folder: str
    pool: RolloutPool
    scorer: Scorer


def train(config: RunConfig, *, restart: bool = False, pools: MakePool | None = None) -> dict[str, Any]:
    """Start a run and bring it to its end.

    Args:
        restart: move an existing run of that name aside.
        pools: makes the rollout pool; `pool.make_pool` if not given.

    Returns:
        The summary, as `summary.json` holds it.

    Raises:
        ValueError: something in the config, the environment, the rewards or the model cannot work; nothing was started.
        RuntimeError: the run had to stop; `resume` continues it.
    """
    environment, model_folder, dropped = _prepare(config)
    origin = _provenance(config, environment, model_folder)
    with Run.create(config, provenance=origin, restart=restart) as run:
        return _execute(run, environment, model_folder, dropped, pools=pools)


def resume(path: Path, how: How = PLAIN) -> tuple[Path, dict[str, Any]]:
    """Continue a run from its newest whole checkpoint; on a CPU it ends as it would have without the interruption.

    Returns:
        (the run's directory, which is another one of a fork; its summary).

    Raises:
        ValueError: `path` holds no run, or another process is working on it; or see `run.resume.continued`.
    """
    with Run.reopen(path) as run:
        config = config_of(run, how)
        environment, model_folder, dropped = _prepare(config)
        now = _provenance(config, environment, model_folder)
        with continued(run, config, now, how, every=config.checkpoint.every) as going_on:
            return going_on.run.path, _execute(going_on.run, environment, model_folder, dropped, going_on=going_on)


def sft(config: RunConfig, *, restart: bool = False) -> Path:
    """Only the SFT stage.

    Returns:
        The adapter's folder, in PEFT's layout.

    Raises:
        ValueError: see `train`; or the config has no `sft` section.
    """
    environment, model_folder, _ = _prepare(config)
    origin = _provenance(config, environment, model_folder)
    with Run.create(config, provenance=origin, restart=restart) as run:
        with View(config.name, steps=0) as view:
            _warm_start(run, view, environment, model_folder)
        return run.path / "adapters" / "sft"


def measure(config: RunConfig, adapter_folder: Path | None) -> dict[str, Any]:
    """Held-out accuracy of the base model, or of an adapter folder; nothing is written.

    Raises:
        ValueError: see `train`.
    """
    environment = loading.load(config.environment)
    model_folder = str(resolve_model(config))
    environment, _ = prompt_lengths.fit(config, environment, model_folder, is_trained=False)
    adapter = bare_base()
    if adapter_folder is not None:
        refuse_other_scale(adapter_folder, config)
        adapter = make_adapter(0, read_folder(adapter_folder))
    with View(config.name, steps=0) as view, services(config, environment, model_folder, None, view) as (pool, scorer):
        if config.learner_rewards:
            reward_model.check(config, model_folder)
            scorer.learner = partial(Learner(config, model_folder).scores, tools=environment.tools)
        pool.publish(adapter)
        view.stage("held-out evaluation")
        result, _ = evaluate(
            config,
            pool,
            scorer,
            environment.heldout,
            adapter=adapter,
            name="measure",
            step=0,
            on_chunk=view.progress,
        )
        if config.rollout.engine == "openai":  # not the weights that the result's adapter_hash speaks of
            result["served"] = {key: config.rollout.engine_args[key] for key in ("model", "base_url")}
        return result


def _prepare(config: RunConfig) -> tuple[Environment, str, str]:
    """The environment, the model's folder and what was dropped; refuses what could not work, before a run exists."""
    refuse_training(config)
    environment = loading.load(config.environment)
    if not environment.heldout:
        raise ValueError(
            f"environment {config.environment.path} has no held-out tasks; the accuracy is measured on them"
        )
    if config.sft is not None:
        check_demonstrations(config.sft, environment.demonstrations)
    make_scorer(config, environment, log_dir=None).close()
    start_tensors(config)
    model_folder = str(resolve_model(config))
    environment, dropped = prompt_lengths.fit(config, environment, model_folder)
    tasks_of_step(
        environment.train, step=1, count=config.tasks_per_step, seed=config.seed, order=config.environment.order
    )
    reward_model.check(config, model_folder)
    return environment, model_folder, dropped


def _execute(
    run: Run,
    environment: Environment,
    model_folder: str,
    dropped: str,
    *,
    going_on: Continued[RunConfig] | None = None,
    pools: MakePool | None = None,
) -> dict[str, Any]:
    config = run.config
    with (
        View(config.name, steps=config.steps) as view,
        services(config, environment, model_folder, run, view, pools) as (pool, scorer),
    ):
        if dropped:
            run.event("overlong", dropped)
            view.note(dropped)
        parts = _Parts(run=run, view=view, environment=environment, model_folder=model_folder, pool=pool, scorer=scorer)
        for remark in going_on.remarks if going_on else ():
            view.note(remark)
        try:
            return _stages(parts, going_on.snapshot if going_on else None)
        except BaseException:
            view.note(f"the run stopped before its end; `rlft resume {run.path}` continues from the last checkpoint")
            raise


def _stages(parts: _Parts, saved: Snapshot | None) -> dict[str, Any]:
    run, view, config = parts.run, parts.view, parts.run.config
    base = bare_base()
    if not config.learner_rewards:  # else when the learner is there
        _evaluate_once(parts, base, name="base", step=0, publish=True)
    warm_start = start_tensors(config)
    if config.sft is not None:
        warm_start = _warm_start(run, view, parts.environment, parts.model_folder)
    view.stage("loading the learner")
    source = reference_source(config.reference)
    with closing(make_learner(config, parts.model_folder, warm_start=warm_start, reference=source)) as learner:
        parts.scorer.learner = partial(learner.scores, tools=parts.environment.tools)
        if config.learner_rewards:
            _evaluate_once(parts, base, name="base", step=0, publish=True)
        if config.sft is not None and warm_start is not None:
            _evaluate_once(parts, make_adapter(0, warm_start), name="sft", step=0, publish=True)
        earlier = restore(learner, saved) if saved else []

        def after_step(step: int, published: Sequence[Adapter]) -> None:
            adapter = published[-1]
            is_last = step == config.steps
            if is_last or (config.evaluation.every and step % config.evaluation.every == 0):
                _evaluate_once(parts, adapter, name=f"step-{step:06d}", step=step, publish=False)
            if is_last or step % config.checkpoint.every == 0:
                save_adapter(run.path / "adapters" / f"v{step:06d}", config, parts.model_folder, adapter.tensors)
                run.checkpoint(snapshot(learner, step, published[:-1]))

        train_rl(
            run,
            learner,
            parts.pool,
            parts.scorer,
            parts.environment.train,
            start=saved.step if saved else 0,
            earlier=earlier,
            canary=_canary(config, parts.model_folder, parts.environment),
            view=view,
            after_step=after_step,
        )
    return _summarize(run)


def _canary(config: RunConfig, model_folder: str, environment: Environment) -> CanaryMaker:
    dtype = str(resolve_dtype(config.model)).removeprefix("torch.")
    return CanaryMaker(chat.load_tokenizer(model_folder), environment.train[0], dtype=dtype)


def _warm_start(run: Run, view: View, environment: Environment, model_folder: str) -> dict[str, Tensor]:
    """The SFT adapter: made now, or read where a complete one lies."""
    folder = run.path / "adapters" / "sft"
    if not folder.exists():
        view.stage("SFT warm start")
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
            tools=environment.tools,
        )
        save_adapter(folder, run.config, model_folder, tensors)
        run.event("sft", f"{len(losses)} updates, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    return read_folder(folder)


def _evaluate_once(parts: _Parts, adapter: Adapter, *, name: str, step: int, publish: bool) -> None:
    run, view = parts.run, parts.view
    if run.evaluation(name) is not None:
        return
    view.stage(f"held-out evaluation: {name}")
    if publish:
        parts.pool.publish(adapter)
    result, groups = evaluate(
        run.config,
        parts.pool,
        parts.scorer,
        parts.environment.heldout,
        adapter=adapter,
        name=name,
        step=step,
        on_chunk=view.progress,
    )
    run.write_evaluation(result, groups)
    accuracy = result["accuracy"]
    view.note(f"held-out {result['metric']}, {name}: {format_accuracy(accuracy)}")


def _summarize(run: Run) -> dict[str, Any]:
    from rlft.curves.report import write_report, write_reward_png

    config = run.config
    evaluations = {
        "base": run.evaluation("base"),
        "sft": run.evaluation("sft"),
        "rl": run.evaluation(f"step-{config.steps:06d}"),
    }
    summary: dict[str, Any] = {
        "name": config.name,
        "metric": config.rewards[0].label,
        "steps": config.steps,
        **{f"accuracy_{key}": value["accuracy"] if value else None for key, value in evaluations.items()},
        "adapter": f"adapters/v{config.steps:06d}",
    }
    run.write_summary(summary)
    write_report(run.path)
    write_reward_png(run.path)
    return summary


def _provenance(config: RunConfig, environment: Environment, model_folder: str) -> Provenance:
    rewards = {r.path: folder_hash(r.folder) if r.folder else source_hash(r.path) for r in config.rewards}
    hashes = {config.environment.path: loading.identity(config.environment.path), **rewards}
    tasks = provenance.tasks_sha256(environment)
    return provenance.present(config, model_folder, sha256=hashes, tasks=tasks, reference=config.reference)
