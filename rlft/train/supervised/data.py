"""Rows as tokens: what is trained on, what is held out, and batches of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from transformers import PreTrainedTokenizerBase

from rlft.common.rows import is_heldout
from rlft.learner.batch import unscored
from rlft.model import chat, templates
from rlft.train.chat_rows import read_table
from rlft.train.supervised.config import SupervisedDataConfig
from rlft.train.supervised.rows import Row, parse
from rlft.types import Batch

OnRow: TypeAlias = "Callable[[int, int], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row as tokens: what is only read, and what follows it."""

    where: str
    """Where its row stands, for error messages."""
    id: str
    """Hash of the prompt and its tools, of plain text that of the text."""
    prompt_ids: tuple[int, ...]
    """Tokens that are only read; at least one."""
    token_ids: tuple[int, ...]
    """Tokens that follow, end token included."""
    action_mask: tuple[bool, ...]
    """Of each of these: True on those that are learnt, False on what users and tools say in between."""

    @property
    def num_actions(self) -> int:
        """Tokens that are learnt."""
        return sum(self.action_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedData:
    """A run's rows as tokens, split into training and held-out examples."""

    train: list[Example]
    """Examples to train on, in the order of the source."""
    heldout: list[Example]
    """Examples to measure on, in the order of the source; empty if nothing is held out."""
    dropped: int
    """Rows left out because they are too long."""
    duplicates: int
    """Rows left out because an earlier one is the same."""
    max_length: int
    """Most tokens of a row."""
    hash: str
    """sha256 over all tokens and action masks, in order."""


def load(
    config: SupervisedDataConfig,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: frozenset[int],
    *,
    context: int,
    on_row: OnRow | None = None,
) -> SupervisedData:
    """Read and tokenise the rows.

    A row that is the same tokens as an earlier one is left out and counted; rows of one prompt are all trained on or
    all held out.

    Args:
        end_ids: see `chat.end_token_ids`.
        context: tokens that the model takes.
        on_row: called with (rows done, rows in all).

    Raises:
        ValueError: there is no such source, or a row cannot be used; names the row and what to do.
    """
    if config.max_length > context:
        raise ValueError(f"data.max_length is {config.max_length}, more than the model's context of {context}")
    limit = config.max_length or context
    rows = list(read_table(config))
    if not rows:
        raise ValueError(f"{config.source} has no rows")
    found: dict[tuple[object, ...], Example] = {}
    dropped = duplicates = 0
    for number, (where, columns) in enumerate(rows, start=1):
        try:
            row = parse(columns, config.columns)
            example = tokenize(row, tokenizer, end_ids, loss_on=config.loss_on, where=where)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        length = len(example.prompt_ids) + len(example.token_ids)
        if length > limit and config.overlong == "error":
            raise ValueError(
                f"{where}: it has {length} tokens, more than "
                f"{'data.max_length' if config.max_length else 'the context of the model'}, {limit}; shorten it, or "
                "leave such rows out with data.overlong=drop"
            )
        same = (example.prompt_ids, example.token_ids, example.action_mask)
        if length > limit:
            dropped += 1
        elif same in found:
            duplicates += 1
        else:
            found[same] = example
        if on_row:
            on_row(number, len(rows))
    if dropped == len(rows):
        raise ValueError(f"{config.source}: all {dropped} rows have more than {limit} tokens; raise data.max_length")
    out = held_out([example.id for example in found.values()], config.heldout)
    train = [example for example in found.values() if example.id not in out]
    heldout = [example for example in found.values() if example.id in out]
    if config.heldout and not (train and heldout):
        raise ValueError(
            f"{config.source}: data.heldout={config.heldout:g} holds out {len(heldout)} rows and leaves {len(train)} "
            "to train on; use another share, or 0 to measure nothing"
        )
    digest = hashlib.sha256()
    for example in (*train, *heldout):
        digest.update(repr((example.prompt_ids, example.token_ids, example.action_mask)).encode())
    return SupervisedData(
        train=train,
        heldout=heldout,
        dropped=dropped,
        duplicates=duplicates,
        max_length=limit,
        hash=digest.hexdigest(),
    )


def held_out(ids: Sequence[str], heldout: float) -> set[str]:
    """Which prompts are measured on: those that the hash says, or with the smallest hashes until the rows are enough.

    Args:
        ids: `Row.id` of every row that is used.
        heldout: as in the config.
    """
    if heldout < 1:
        return {each for each in ids if is_heldout(each, heldout)}
    chosen: set[str] = set()
    for rows, each in enumerate(sorted(ids)):
        if rows >= heldout and each not in chosen:
            break
        chosen.add(each)
    return chosen


def make_batch(examples: Sequence[Example]) -> Batch:
    """A batch of examples, each a sequence of its own that sees no other one."""
    return unscored(
        tuple(example.prompt_ids for example in examples),
        tuple(example.token_ids for example in examples),
        tuple(example.action_mask for example in examples),
        torch.arange(len(examples)),
    )


def tokenize(
    row: Row, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int], *, loss_on: str, where: str = ""
) -> Example:
    """A row as tokens; `end_ids` as of `load`, `loss_on` as in the config.

    Raises:
        ValueError: the chat template refuses it, or nothing of it could be learnt.
    """
    prompt, completion = row.prompt, row.completion
    if loss_on == "all" and not isinstance(completion, str) and any(not m.get("weight", 1) for m in completion):
        raise ValueError(
            "a reply has the weight 0, and data.loss_on=all learns all that is in a row; take the weight out of the "
            "message, or use data.loss_on=replies"
        )
    if isinstance(prompt, str) and isinstance(completion, str):
        prompt_ids, token_ids = chat.render_text(tokenizer, prompt, completion)
        mask: tuple[bool, ...] = (True,) * len(token_ids)
    else:
        assert not isinstance(prompt, str)
        assert not isinstance(completion, str)
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template for messages; use an instruct model or plain text")
        templates.check_shown(tokenizer, [*prompt, *completion], row.tools)
        prompt_ids, token_ids, mask = chat.render_completion(tokenizer, prompt, completion, end_ids, tools=row.tools)
    if not prompt or loss_on == "all":
        whole = (*prompt_ids, *token_ids)
        prompt_ids, token_ids, mask = whole[:1], whole[1:], (True,) * (len(whole) - 1)  # nothing predicts the first
    if not any(mask):
        raise ValueError("nothing of it could be learnt: it is a single token")
    return Example(where=where, id=row.id, prompt_ids=prompt_ids, token_ids=token_ids, action_mask=mask)
