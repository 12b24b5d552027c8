"""Preferences as tokens: what is trained on, what is held out, and batches of it.

`rows` reads the columns. KTO takes pairs too, as one good and one bad completion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlft.common.rows import canonical_text
from rlft.learner.batch import unscored
from rlft.model import chat, templates
from rlft.train.chat_rows import Text, read_table
from rlft.train.preference.config import PreferenceDataConfig
from rlft.train.preference.rows import SAME, Row, parse
from rlft.types import Batch

OnRow: TypeAlias = "Callable[[int, int], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt with its two completions, or for KTO with one."""

    id: str
    """Hash of the prompt and its tools."""
    prompt_ids: tuple[int, ...]
    """Tokens of the prompt."""
    completions: tuple[tuple[int, ...], ...]
    """Tokens of the chosen and the rejected completion, or of the only one; end tokens included."""
    action_mask: tuple[tuple[bool, ...], ...]
    """Of each completion's tokens: True on the assistant's, which are trained on, False on messages in between."""
    labels: tuple[float, ...]
    """Of each completion: 1 chosen or good, 0 rejected or bad."""
    ref_logprobs: Tensor | None = None
    """(A,) float32, of the actions under the reference; None where that is not computed beforehand."""

    @property
    def num_actions(self) -> int:
        """A, the completions' tokens that are trained on."""
        return sum(map(sum, self.action_mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceData:
    """A run's preferences as tokens, split into training and held-out examples."""

    train: list[Example]
    """Examples to train on, in the order of the source."""
    heldout: list[Example]
    """Examples to measure on, in the order of the source; empty if nothing is held out."""
    dropped: int
    """Rows left out because they are too long."""
    max_length: int
    """Most tokens of a prompt and one completion."""
    shows_tools: bool
    """Whether some prompts show tools."""
    hash: str
    """sha256 over all tokens, action masks and labels, in order."""


def load(
    config: PreferenceDataConfig,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: frozenset[int] | None,
    *,
    context: int,
    paired: bool,
    on_row: OnRow | None = None,
) -> PreferenceData:
    """Read and tokenise the preferences.

    Args:
        end_ids: see `chat.end_token_ids`. None is for a reward model, which reads conversations: each completion then
            is a whole one as the template writes it, the prompt is empty, and plain text becomes messages.
        context: tokens that the model takes.
        paired: whether the loss compares pairs; else pairs come apart into two examples.
        on_row: called with (rows done, rows in all).

    Raises:
        ValueError: there is no such source, or a row cannot be used; names the row and what to do.
    """
    if config.max_length > context:
        raise ValueError(f"data.max_length is {config.max_length}, more than the model's context of {context}")
    limit = config.max_length or context
    try:
        rows = list(read_table(config))
    except UnicodeDecodeError as error:
        raise ValueError(f"{config.source}: not UTF-8 text: {error}") from None
    if not rows:
        raise ValueError(f"{config.source} has no rows")
    train: list[Example] = []
    heldout: list[Example] = []
    dropped, shows_tools = 0, False
    for number, (where, columns) in enumerate(rows, start=1):
        try:
            row = parse(columns, paired=paired)
            example = tokenize(row, tokenizer, end_ids)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        shows_tools |= bool(row.tools)
        length = len(example.prompt_ids) + max(map(len, example.completions))
        if length > limit and config.overlong == "error":
            raise ValueError(
                f"{where}: prompt and completion have {length} tokens, more than "
                f"{'data.max_length' if config.max_length else 'the context of the model'}, {limit}; shorten them, or "
                "leave such rows out with data.overlong=drop"
            )
        if length > limit:
            dropped += 1
        else:
            (heldout if is_heldout(example.id, config.heldout) else train).extend(
                [example] if paired else _apart(example)
            )
        if on_row:
            on_row(number, len(rows))
    if dropped == len(rows):
        raise ValueError(f"{config.source}: all {dropped} rows have more than {limit} tokens; raise data.max_length")
    if config.heldout and not (train and heldout):
        raise ValueError(
            f"{config.source}: data.heldout={config.heldout} holds out {len(heldout)} examples and leaves {len(train)} "
            "to train on; use another share, or 0 to measure nothing"
        )
    digest = hashlib.sha256()
    for example in (*train, *heldout):
        digest.update(repr((example.prompt_ids, example.completions, example.labels)).encode())
        if not all(map(all, example.action_mask)):
            digest.update(repr(example.action_mask).encode())
    return PreferenceData(
        train=train,
        heldout=heldout,
        dropped=dropped,
        max_length=limit,
        shows_tools=shows_tools,
        hash=digest.hexdigest(),
    )


def make_batch(examples: Sequence[Example]) -> Batch:
    """A batch of examples: completions that share a prompt are a group, and the rewards are their labels."""
    counts = torch.tensor([len(example.completions) for example in examples])
    batch = unscored(
        tuple(example.prompt_ids for example in examples for _ in example.completions),
        tuple(ids for example in examples for ids in example.completions),
        tuple(mask for example in examples for mask in example.action_mask),
        torch.arange(len(examples)).repeat_interleave(counts),
    )
    references = [example.ref_logprobs for example in examples if example.ref_logprobs is not None]
    return replace(
        batch,
        rewards=torch.tensor([label for example in examples for label in example.labels]),
        ref_logprobs=torch.cat(references) if len(references) == len(examples) else None,
    )


def row_id(row: Row) -> str:
    """Hash of a row's prompt, as `canonical_text`, and its tools: 16 hex digits."""
    prompt: object = (
        canonical_text(row.prompt)
        if isinstance(row.prompt, str)
        else [{**message, "content": canonical_text(message["content"])} for message in row.prompt]
    )
    named = [prompt, row.tools] if row.tools else prompt
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def is_heldout(row_id: str, share: float) -> bool:
    """Whether a row of this `row_id` is measured on, where this share of the prompts is."""
    return int(row_id, 16) < share * 16 ** len(row_id)


def tokenize(row: Row, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int] | None) -> Example:
    """A row as tokens; arguments as of `load`.

    Raises:
        ValueError: the chat template refuses it, or its completions are the same tokens.
    """
    rendered = [_render(row, completion, tokenizer, end_ids) for completion in row.completions]
    prompts, completions, masks = zip(*rendered, strict=True)
    if len(set(completions)) < len(completions):
        raise ValueError(SAME)
    return Example(
        id=row_id(row),
        prompt_ids=prompts[0],
        completions=completions,
        action_mask=masks,
        labels=row.labels,
    )


def _render(
    row: Row, completion: Text, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """The tokens of the prompt and of the completion, and the completion's action mask."""
    prompt = row.prompt
    if isinstance(prompt, str):
        assert isinstance(completion, str)
        if end_ids is not None:
            prompt_ids, token_ids = chat.render_text(tokenizer, prompt, completion)
            return prompt_ids, token_ids, (True,) * len(token_ids)
        prompt = [{"role": "user", "content": prompt}]
        completion = [{"role": "assistant", "content": completion}]
    assert not isinstance(completion, str)
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template for messages; use an instruct model or plain text")
    messages = [*prompt, *completion]
    templates.check_shown(tokenizer, messages, row.tools)
    if end_ids is None:
        token_ids = chat.conversation(tokenizer, messages, tools=row.tools)
        return (), token_ids, (True,) * len(token_ids)
    return chat.render_completion(tokenizer, prompt, completion, end_ids, tools=row.tools)


def _apart(example: Example) -> list[Example]:
    """One example for each completion."""
    return [
        replace(example, completions=(completion,), action_mask=(mask,), labels=(label,))
        for completion, mask, label in zip(example.completions, example.action_mask, example.labels, strict=True)
    ]
