"""All checks of a file or of a config's data, read as runs read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlft.common.rows import read_rows
from rlft.config import BaseRunConfig, ModelConfig, RunConfig
from rlft.environment import loading
from rlft.model import chat, pretrained, sources
from rlft.model.context import max_positions, model_context
from rlft.train.chat_rows import read_table
from rlft.train.data_check import balance, same, texts, tokens
from rlft.train.data_check.findings import Checked, Finding, found
from rlft.train.data_check.records import (
    Records,
    of_demonstrations,
    of_environment,
    of_file,
    of_labelled,
    of_preferences,
)
from rlft.train.data_check.tokens import Model
from rlft.train.head.config import HeadConfig, HeadDataConfig
from rlft.train.preference.config import PreferenceConfig, PreferenceDataConfig
from rlft.train.preference.data import is_heldout, row_id
from rlft.train.reward_model.config import RewardModelConfig
from rlft.train.supervised.config import SupervisedConfig, SupervisedDataConfig
from rlft.train.supervised.data import held_out

_ORDER = ("error", "warning", "not checked")


def check_file(source: str, *, heldout: str = "", model: str = "", prompt: str = "", answer: str = "") -> Checked:
    """Check a table of tasks, conversations or preferences.

    Args:
        source: as of `rlft.common.rows.read_rows`.
        heldout: another table, of what is measured on.
        model: as `model.source` of a config; without one nothing is said about tokens.
        prompt: the column that asks, where its name does not tell.
        answer: the column that answers.

    Raises:
        ValueError: there is no such file or column, or no such model.
    """
    records = of_file(source, prompt=prompt, answer=answer)
    if heldout:
        measured = of_file(heldout, is_heldout=True, prompt=prompt, answer=answer)
        if measured.kind != records.kind:
            raise ValueError(f"{source} holds {records.kind} and {heldout} {measured.kind}; give two files of one kind")
        records = replace(
            records, rows=[*records.rows, *measured.rows], problems=[*records.problems, *measured.problems]
        )
    return _check(records, _model(ModelConfig(source=model), for_chat=records.kind == "tasks") if model else None)


def check_config(config: BaseRunConfig) -> Checked:
    """Check the tasks or the preferences of a config, with its model's tokenizer.

    Raises:
        ValueError: the model or the file is not there.
    """
    if isinstance(config, RunConfig):
        return _check_tasks(config)
    if isinstance(config, HeadConfig):
        return _check_labelled(config)
    if isinstance(config, SupervisedConfig):
        return _check_demonstrations(config)
    assert isinstance(config, PreferenceConfig | RewardModelConfig)
    data = config.data
    is_policy = isinstance(config, PreferenceConfig)
    model = _limited(_model(config.model, for_reward=not is_policy, for_chat=not is_policy), data)
    paired = config.preference.is_paired if isinstance(config, PreferenceConfig) else True
    records = of_preferences(
        data.source, read_table(data), paired=paired, is_heldout=lambda row: is_heldout(row_id(row), data.heldout)
    )
    return _check(records, model)


def _check_demonstrations(config: SupervisedConfig) -> Checked:
    data = config.data
    model = _limited(_model(config.model, for_chat=False), data)
    model = replace(model, columns=data.columns, loss_on=data.loss_on)
    split = partial(held_out, heldout=data.heldout)
    return _check(of_demonstrations(data.source, read_table(data), names=data.columns, held_out=split), model)


def _check_labelled(config: HeadConfig) -> Checked:
    data = config.data
    read = read_rows(data.source, subset=data.subset, split=data.split, name="data.source")
    model = _limited(_model(config.model, for_reward=True, for_chat=False), data)
    return _check(of_labelled(data.source, read, data), model)


def _limited(model: Model, data: PreferenceDataConfig | SupervisedDataConfig | HeadDataConfig) -> Model:
    """The model with the most tokens that a row may have, and what becomes of longer ones."""
    model = replace(model, is_dropped=data.overlong == "drop")
    return replace(model, limit=data.max_length, limit_name="data.max_length") if data.max_length else model


def _check_tasks(config: RunConfig) -> Checked:
    args = config.environment.args
    source = str(args.get("source", ""))
    model = _model(config.model)
    model = replace(model, new_tokens=config.sampling.max_new_tokens, is_dropped=config.environment.overlong == "drop")
    try:
        environment = loading.load(config.environment)
        records = of_environment(
            environment, source, subset=str(args.get("subset", "")), split=str(args.get("split", "train"))
        )
    except ValueError as error:
        todo = "mend the row, the environment or its arguments: no run starts with this"
        finding = Finding(name="not readable", severity="error", what=str(error), todo=todo, places=(source,))
        return Checked(source=source or config.environment.told, rows=0, heldout=0, findings=[finding])
    checked = _check(records, None if environment.episode else model)
    if environment.episode:
        checked.facts["tokens"] = "of episodes: rlft env check looks at them"
    return checked


def _model(config: ModelConfig, *, for_reward: bool = False, for_chat: bool = True) -> Model:
    folder = Path(sources.resolve(config.source))
    tokenizer = chat.load_tokenizer(folder, for_chat=for_chat, special_tokens_in_text=config.special_tokens_in_text)
    shape = pretrained.load_config(folder)
    return Model(
        tokenizer=tokenizer,
        end_ids=None if for_reward else chat.end_token_ids(tokenizer, pretrained.load_generation_config(folder)),
        limit=max_positions(shape) if for_reward else model_context(shape).tokens,
        limit_name="the model's context",
        policy=config.special_tokens_in_text,
    )


def _check(records: Records, model: Model | None) -> Checked:
    rows, kind = records.rows, records.kind
    findings = found(
        "not readable",
        "error",
        [where for where, _ in records.problems],
        records.problems[0][1] if records.problems else "",
        "mend the row, or remove it: no run starts with it",
    )
    uneven, facts = balance.labels([r for r in rows if not r.is_heldout], kind=kind)
    for looked in (texts.empty, texts.truncated, texts.broken, texts.mojibake, same.alike):
        findings += looked(rows)
    findings += [*same.repeated(rows, kind=kind), *uneven, *tokens.spelt(rows, model, kind=kind)]
    written: Sequence[tuple[str, bool]] = []
    where = ""
    if model is not None and rows:
        too_long, spread = tokens.lengths(rows, model, kind=kind)
        findings, facts = [*findings, *too_long], {**spread, **facts}
        if fitting := [r for r in rows if not any(r.where in each.places for each in too_long)]:
            example = next((r for r in fitting if r.replies), fitting[0])
            where, written = example.where, tokens.shown(example, model, kind=kind)
    elif model is None:
        facts["tokens"] = "unknown: give the model, with --model"
    return Checked(
        source=records.source,
        rows=len(rows) + len(records.problems),
        heldout=sum(record.is_heldout for record in rows),
        findings=sorted(findings, key=lambda each: _ORDER.index(each.severity)),
        facts={**facts, **{f"note {number}": note for number, note in enumerate(records.notes, start=1)}},
        tokens=list(written),
        shown=where,
    )
