"""Labelled texts from a table: tokens, targets, and the split by content into three parts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from rlft.common.by_path import did_you_mean
from rlft.common.rows import is_heldout, read_rows, row_hash
from rlft.model import chat, special_tokens
from rlft.model.head import is_native
from rlft.train.head.config import HeadConfig
from rlft.types import Message

Target: TypeAlias = "int | tuple[int, ...] | float"
"""Number of the label, numbers of the labels in order, or the number itself."""
_FEW = 2
"""Fewest texts of a label in each part of the split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A text with its label."""

    id: str
    """Hash of the text."""
    text: str
    """The text, of a conversation all its contents: what the bag of words counts."""
    token_ids: tuple[int, ...]
    """What the trunk reads."""
    target: Target
    """Its label, as the task has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadData:
    """The texts of a run, each in one of three parts."""

    train: Sequence[Labelled]
    """Trained on."""
    validation: Sequence[Labelled]
    """Decides when training stops, and the temperature."""
    heldout: Sequence[Labelled]
    """Measured on once, at the end."""
    labels: tuple[str, ...]
    """Names of the outputs; empty for regression."""
    are_conversations: bool
    """Whether the texts were messages that the chat template writes."""
    overlong: int
    """Texts left out as too long."""
    repeated: int
    """Rows left out because the same text stood before with the same label."""
    conflicting: int
    """Rows left out because the same text stood before with another label."""
    hash: str
    """sha256 of all texts, targets and parts."""


def load(
    config: HeadConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    on_row: Callable[[int, int], None] | None = None,
) -> HeadData:
    """Read, check and split the labelled texts of a config.

    Args:
        context: most tokens that the model reads.
        on_row: called with (rows done, rows in all).

    Raises:
        ValueError: a row that cannot be used, with its place; a label that is too rare to be learnt and measured.
    """
    settings = config.data
    rows = list(read_rows(settings.source, subset=settings.subset, split=settings.split, name="data.source"))
    if not rows:
        raise ValueError(f"data.source: {settings.source} has no rows")
    first: dict[str, tuple[str, Any, Any]] = {}
    repeated = conflicting = 0
    for where, row in rows:
        content, label = row_column(where, row, "text", settings.text), row_column(where, row, "label", settings.label)
        text = text_of(where, settings.text, content)
        raw = _raw_target(where, config, label)
        digest = digest_of(text)
        if digest in first:
            repeated, conflicting = repeated + (first[digest][2] == raw), conflicting + (first[digest][2] != raw)
            continue
        first[digest] = (where, content, raw)
    chosen = sample(first, settings.limit)
    labels = _labels(config, [(first[digest][0], first[digest][2]) for digest in chosen])
    limit = min(settings.max_length or context, context)
    as_transformers = is_native(config.task, config.pooling, config.hidden_sizes)  # it reads no padding at the end
    examples: list[Labelled] = []
    overlong = 0
    kinds = {isinstance(first[digest][1], list) for digest in chosen}
    if len(kinds) > 1:
        raise ValueError(f"data.text: the column {settings.text!r} holds texts and conversations; use one of them")
    for number, digest in enumerate(chosen, start=1):
        where, content, raw = first[digest]
        ids = _tokens(where, tokenizer, content)
        if as_transformers:
            ids = special_tokens.without_padding(ids, tokenizer.pad_token_id)
        if len(ids) > limit and settings.overlong == "error":
            raise ValueError(
                f"{where}: the text has {len(ids)} tokens, more than "
                f"{'data.max_length' if limit < context else 'the context of the model'}, {limit}; shorten it, or "
                "leave such rows out with data.overlong=drop"
            )
        if len(ids) > limit:
            overlong += 1
        else:
            text, target = text_of(where, settings.text, content), _target(config, labels, raw)
            examples.append(Labelled(id=digest, text=text, token_ids=ids, target=target))
        if on_row:
            on_row(number, len(chosen))
    heldout = [example for example in examples if is_heldout(example.id, settings.heldout)]
    rest = [example for example in examples if not is_heldout(example.id, settings.heldout)]
    validation = [example for example in rest if _is_validation(example.id, settings.validation)]
    train = [example for example in rest if not _is_validation(example.id, settings.validation)]
    _refuse_few(config, labels, {"training": train, "validation": validation, "held-out": heldout})
    whole = hashlib.sha256()
    for part in (train, validation, heldout):
        whole.update(repr([(example.token_ids, example.target) for example in part]).encode())
    whole.update(repr(labels).encode())
    return HeadData(
        train=train,
        validation=validation,
        heldout=heldout,
        labels=labels,
        are_conversations=True in kinds,
        overlong=overlong,
        repeated=repeated,
        conflicting=conflicting,
        hash=whole.hexdigest(),
    )


def digest_of(text: str) -> str:
    """What identifies a text and splits the texts, which no seed changes, so that runs of several seeds are paired."""
    return row_hash(text, 0)


def sample(digests: Iterable[str], limit: int) -> list[str]:
    """At most so many of the texts with these digests, the same ones in whatever order they stand; all with 0."""
    # By other digits than those that say what is held out.
    return sorted(digests, key=lambda digest: digest[16:])[: limit or None]


def _is_validation(digest: str, share: float) -> bool:
    """Other digits of the hash than the ones that decide what is held out."""
    return is_heldout(digest[8:16], share)


def row_column(where: str, row: Mapping[str, Any], key: str, name: str) -> Any:
    """A column of a row, named as `data.KEY`. Raises ValueError where the row has none of that name."""
    value = row.get(name)
    if value is None:
        names = [str(column) for column in row if row[column] is not None]
        raise ValueError(
            f"{where}: no column {name!r}; it has {', '.join(names) or 'none'}. Name it in data.{key}."
            + did_you_mean(name, names)
        )
    return value


def text_of(where: str, name: str, content: Any) -> str:
    """The words of a text or conversation, by which a row is known.

    Args:
        name: of the column that holds it.

    Raises:
        ValueError: it is neither, or empty.
    """
    if isinstance(content, str):
        text = content
    elif isinstance(content, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in content
    ):
        text = "\n".join(f"{message['role']}: {message['content']}" for message in content)
    else:
        raise ValueError(
            f"{where}: the column {name!r} must hold a text or a list of messages with role and content, found "
            f"{str(content)[:80]}"
        )
    if not text.strip():
        raise ValueError(f"{where}: the text is empty; fill it or remove the row")
    return text


def _tokens(where: str, tokenizer: PreTrainedTokenizerBase, content: Any) -> tuple[int, ...]:
    if isinstance(content, str):
        ids = tuple(tokenizer(content)["input_ids"])
        if not ids:
            raise ValueError(f"{where}: the tokenizer makes no token of this text; remove the row")
        return ids
    if not tokenizer.chat_template:
        raise ValueError(f"{where}: the tokenizer has no chat template for messages; use an instruct model or texts")
    messages = [Message(role=message["role"], content=message["content"]) for message in content]
    try:
        return chat.conversation(tokenizer, messages)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _raw_target(where: str, config: HeadConfig, value: Any) -> Any:
    """What a row says in its label column: a name, sorted names, or a number."""
    if config.task == "regression":
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{where}: the label {value!r} is not a finite number, which a regression needs")
        return number
    if config.task == "multilabel":
        if not isinstance(value, list):
            raise ValueError(f"{where}: the label of multilabel must be a list of texts, found {value!r}")
        return tuple(sorted({_name(where, each) for each in value}))
    if isinstance(value, list):
        raise ValueError(f"{where}: the label is a list, {str(value)[:80]}; several labels of a text: task=multilabel")
    return _name(where, value)


def _name(where: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return str(value)
    hint = "; a number to predict: task=regression" if isinstance(value, float) else ""
    raise ValueError(f"{where}: a label must be a text or an integer, found {value!r}{hint}")


def _labels(config: HeadConfig, raws: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    """The names of the outputs. Raises ValueError for a label that `labels` does not have."""
    if config.task == "regression":
        return ()
    many = config.task == "multilabel"
    found = {name: where for where, raw in reversed(raws) for name in (raw if many else (raw,))}
    if config.labels:
        if unknown := sorted(found.keys() - set(config.labels)):
            raise ValueError(
                f"{found[unknown[0]]}: the label {unknown[0]!r} is not one of labels, {', '.join(config.labels)}."
                + did_you_mean(unknown[0], config.labels)
            )
        return config.labels
    if len(found) < 2 and not many:
        raise ValueError(f"data.label: the only label is {', '.join(found)!r}; a classification needs two or more")
    if len(found) > 1000:
        raise ValueError(
            f"data.label: there are {len(found)} different labels; is {config.data.label!r} the right column? A number "
            "to predict: task=regression"
        )
    return tuple(sorted(found))


def _target(config: HeadConfig, labels: Sequence[str], raw: Any) -> Target:
    if config.task == "regression":
        return float(raw)
    if config.task == "multilabel":
        return tuple(sorted(labels.index(name) for name in raw))
    return labels.index(raw)


def _refuse_few(config: HeadConfig, labels: Sequence[str], parts: Mapping[str, Sequence[Labelled]]) -> None:
    for name, part in parts.items():
        if len(part) < 2 * _FEW:
            raise ValueError(
                f"{config.data.source}: there are {len(part)} {name} texts, too few; use more rows, or other shares in "
                "data.heldout and data.validation"
            )
        if config.task == "regression" or name == "validation":
            continue
        counts = Counter(number for e in part for number in (e.target if isinstance(e.target, tuple) else (e.target,)))
        if rare := [label for number, label in enumerate(labels) if counts[number] < _FEW]:
            raise ValueError(
                f"{config.data.source}: the label {rare[0]!r} has {counts[labels.index(rare[0])]} of the {len(part)} "
                f"{name} texts, too few to learn and measure it; use more rows, raise data.limit, or merge labels"
            )
