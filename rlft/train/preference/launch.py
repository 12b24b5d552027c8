"""A whole preference run: reading data, log-probs of the reference, training, held-out measurements, report.

runs/NAME/reference/ holds the reference's log-probs, where they are computed beforehand.
`run.directory` has the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers.utils import logging as transformers_logging

from rlft.common.files import write_file
from rlft.curves.live_panel import View, training_console
from rlft.curves.text import format_accuracy
from rlft.model import chat
from rlft.model.context import model_context
from rlft.model.memory import keep_freed_memory
from rlft.model.pretrained import load_config, load_generation_config
from rlft.model.starting_point import reference_source, resolve_model, start_tensors
from rlft.run.checkpoint import Snapshot
from rlft.run.directory import Run
from rlft.run.records import REFERENCE, Provenance, adapter_folder, step_name
from rlft.run.resume import PLAIN, How, config_of, continued, way_on
from rlft.run.summaries import PreferenceSummary
from rlft.train import provenance
from rlft.train.preference.config import PreferenceConfig
from rlft.train.preference.data import Example, PreferenceData, load
from rlft.train.preference.group import make_preference_learner
from rlft.train.preference.loop import NAMES, AnyLearner, logprobs, measure, num_updates, train_dpo, updates_per_epoch
from rlft.train.slow_paths import tell_slow_paths
from rlft.train.standing import Standing, has_adapter, keep_adapter
from rlft.train.stop_report import report_stop


def train(config: PreferenceConfig, *, restart: bool = False) -> PreferenceSummary:
    """Start a preference run and bring it to its end.

    Args:
        restart: move an existing run of that name aside.

    Returns:
        The summary, as `summary.json` holds it.

    Raises:
        ValueError: something in the config, the data or the model cannot work; nothing was started.
        RuntimeError: the run had to stop; `resume` continues it.
    """
    with View(config.name, steps=0, unit="update", console=training_console()) as view:
        data, model_folder = _prepare(config, view)
        with Run.create(config, provenance=_provenance(config, data, model_folder), restart=restart) as run:
            return _execute(run, data, model_folder, view)


def resume(path: Path, how: How = PLAIN) -> tuple[Path, PreferenceSummary]:
    """Continue a preference run from its newest whole checkpoint; on a CPU it ends as it would have without a break.

    Returns:
        (the run's directory, which is another one of a fork; its summary).

    Raises:
        ValueError: see `run.resume.continued`.
    """
    with (
        Run.reopen(path, PreferenceConfig) as run,
        View(run.config.name, steps=0, unit="update", console=training_console()) as view,
    ):
        config = config_of(run, how)
        data, model_folder = _prepare(config, view)
        now = _provenance(config, data, model_folder)
        with continued(run, config, now, how, every=config.checkpoint.every, is_whole=has_adapter) as going_on:
            for remark in going_on.remarks:
                view.note(remark)
            if going_on.summary is not None:
                return path, cast(PreferenceSummary, going_on.summary)
            return going_on.run.path, _execute(going_on.run, data, model_folder, view, going_on.snapshot)


def _provenance(config: PreferenceConfig, data: PreferenceData, model_folder: str) -> Provenance:
    return provenance.present(
        config,
        model_folder,
        sha256={config.data.source: data.hash},
        tasks=data.hash,
        start=config.adapter.start,
        reference=config.reference,
    )


def _prepare(config: PreferenceConfig, view: View) -> tuple[PreferenceData, str]:
    """The data and the model's folder, with everything refused that could not work, before a run exists."""
    transformers_logging.disable_progress_bar()
    start_tensors(config)
    model_folder = str(resolve_model(config))
    model_config = load_config(model_folder)
    tokenizer = chat.load_tokenizer(
        model_folder, for_chat=False, special_tokens_in_text=config.model.special_tokens_in_text
    )
    generation = load_generation_config(model_folder)
    view.stage("reading preferences")
    data = load(
        config.data,
        tokenizer,
        chat.end_token_ids(tokenizer, generation),
        context=model_context(model_config).tokens,
        paired=config.preference.is_paired,
        on_row=view.progress,
    )
    if config.batch_size > len(data.train):
        raise ValueError(
            f"batch_size is {config.batch_size}, but {config.data.source} has {len(data.train)} examples to train on; "
            "lower batch_size or add rows"
        )
    if data.dropped:
        view.note(f"{data.dropped} rows of more than {data.max_length} tokens were left out")
    view.steps = num_updates(config, data)
    return data, model_folder


def _execute(
    run: Run[PreferenceConfig], data: PreferenceData, model_folder: str, view: View, saved: Snapshot | None = None
) -> PreferenceSummary:
    keep_freed_memory()
    run.on_stop = partial(report_stop, view)
    try:
        return _stages(run, data, model_folder, view, saved)
    except BaseException:
        view.note(way_on(run))
        raise


def _stages(
    run: Run[PreferenceConfig], data: PreferenceData, model_folder: str, view: View, saved: Snapshot | None
) -> PreferenceSummary:
    config, total = run.config, num_updates(run.config, data)
    view.stage("loading the model")
    source = reference_source(config.reference)
    learner = make_preference_learner(
        config,
        model_folder,
        max_length=data.max_length,
        start=start_tensors(config),
        reference=source,
    )
    with closing(learner):
        tell_slow_paths(run, learner)
        if config.preference.needs_reference and config.reference_logprobs == "precomputed":
            folders = [model_folder, config.adapter.start, source.folder if source else ""]
            data = _with_reference(run, learner, data, folders, view)
            learner.drop_reference()
        _measure_once(run, learner, data, view, name="base", step=0)
        if saved is not None:  # after the base, which a fork may measure again
            learner.load_state(saved.tensors, saved.state)

        start, every = saved.step if saved else 0, config.checkpoint.every

        def take(step: int) -> Snapshot:
            tensors, numbers = learner.state()
            return Snapshot(step=step, tensors=tensors, state=numbers)

        def after_update(step: int) -> None:
            is_last = step == total
            tell_slow_paths(run, learner)
            if is_last or step % updates_per_epoch(config, data) == 0:
                _measure_once(run, learner, data, view, name=step_name(step), step=step)
            if is_last or step % every == 0:
                keep_adapter(run, step, learner.adapter(step), model_folder, view)
                if step > start:
                    run.checkpoint(take(step), every=every)

        view.stage("training")
        standing = Standing(start)
        with standing.saved(run, view, take, every=every):
            train_dpo(run, learner, data, start=start, view=view, standing=standing, after_update=after_update)
    return _summarize(run, data)


def _measure_once(
    run: Run[PreferenceConfig], learner: AnyLearner, data: PreferenceData, view: View, *, name: str, step: int
) -> None:
    if not data.heldout or run.evaluation(name) is not None:
        return
    view.stage(f"held-out preferences: {name}")
    result = measure(learner, run.config, data, name=name, step=step, on_chunk=view.progress)
    run.write_evaluation(result)
    accuracy = format_accuracy(result.accuracy)
    view.evaluated(result, f"held-out, {name}: loss {result.loss:.4f}, margin {result.margin:.3f}, accuracy {accuracy}")


def _with_reference(
    run: Run[PreferenceConfig], learner: AnyLearner, data: PreferenceData, folders: Sequence[str], view: View
) -> PreferenceData:
    """The data with the reference's log-probs: computed now, or read if the same were computed before.

    Args:
        folders: where the reference's weights come from.
    """
    parts = [data.hash, run.config.model.dtype, *_identity(folders)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    path = run.path / REFERENCE / f"{key[:16]}.safetensors"
    if not path.is_file():
        view.stage("reference log-probs")
        passes = {
            name: logprobs(learner, "reference", examples, chunk=run.config.batch_size, on_chunk=view.progress)
            for name, examples in (("train", data.train), ("heldout", data.heldout))
        }
        write_file(path, save_tensors(passes))
    stored = load_file(path)
    return replace(
        data,
        train=_annotated(data.train, stored["train"]),
        heldout=_annotated(data.heldout, stored["heldout"]),
    )


def _annotated(examples: Sequence[Example], ref_logprobs: Tensor) -> list[Example]:
    parts = ref_logprobs.split([example.num_actions for example in examples])
    return [replace(example, ref_logprobs=part) for example, part in zip(examples, parts, strict=True)]


def _identity(folders: Iterable[str]) -> list[str]:
    """Name, size and time of every file of weights: hashing whole models at every start would take too long."""
    files = [path for folder in folders if folder for path in sorted(Path(folder).expanduser().glob("*.safetensors"))]
    return [f"{path.absolute()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def _summarize(run: Run[PreferenceConfig], data: PreferenceData) -> PreferenceSummary:
    from rlft.curves.report import write_report, write_reward_png

    total = num_updates(run.config, data)
    before, after = run.evaluation("base"), run.evaluation(step_name(total))
    summary: PreferenceSummary = {
        "name": run.config.name,
        "stage": NAMES[run.config.preference.loss],
        "metric": "preference",
        "steps": total,
        "train_examples": len(data.train),
        "heldout_examples": len(data.heldout),
        "dropped_rows": data.dropped,
        "adapter": adapter_folder(total),
        "accuracy_base": before.accuracy.as_dict() if before else None,
        "loss_base": before.loss if before else None,
        "margin_base": before.margin if before else None,
        "accuracy_trained": after.accuracy.as_dict() if after else None,
        "loss_trained": after.loss if after else None,
        "margin_trained": after.margin if after else None,
    }
    run.write_summary(summary)
    write_report(run.path)
    write_reward_png(run.path)
    return summary
