"""The only place where messages become tokens and tokens become text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlft.types import Message, Task


def load_tokenizer(folder: str | Path, *, for_chat: bool = True) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ValueError: it has no chat template, so there is no right way to ask the model anything.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=Path(folder).is_dir())
    if for_chat and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {folder} has no chat template (a base model?); use an instruct model, or put a "
            "chat_template.jinja beside its tokenizer"
        )
    return tokenizer


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of a prompt, up to and including the mark that opens the assistant's turn."""
    ids = tokenizer.apply_chat_template(list(messages), tokenize=True, add_generation_prompt=True, return_dict=False)
    return tuple(ids)


def render_reply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], end_ids: frozenset[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the prompt, as `render` gives them, and of the last message, the assistant's, with its end token.

    What a template writes after the end token, such as a line break, is left out: no policy is asked for it.

    Args:
        end_ids: see `end_token_ids`.

    Raises:
        ValueError: the template writes the earlier messages otherwise once the reply follows.
    """
    prompt = render(tokenizer, messages[:-1])
    history = tokenizer.apply_chat_template(list(messages[:-1]), tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False)
    # Some templates open the assistant's turn with more than they keep of it (an empty block of thought).
    pairs = enumerate(zip(prompt, whole, strict=False))
    shared = next((index for index, (token, other) in pairs if token != other), min(len(prompt), len(whole)))
    if shared < len(history):
        raise ValueError(
            "the chat template writes the prompt otherwise when the reply follows it, so the reply cannot be told from "
            "the prompt; use a template that only appends"
        )
    return prompt, _ended(tokenizer, whole[shared:], end_ids)


def render_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a plain prompt and of its continuation, with the end token.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token), so a completion of plain text could never end")
    prompt_ids = tuple(tokenizer(prompt)["input_ids"])
    whole = tuple(tokenizer(prompt + completion)["input_ids"])
    if whole[: len(prompt_ids)] == prompt_ids:
        continuation = whole[len(prompt_ids) :]
    else:  # a token across the border, which no sampled completion has
        continuation = tuple(tokenizer(completion, add_special_tokens=False)["input_ids"])
    return prompt_ids, _ended(tokenizer, continuation, frozenset([tokenizer.eos_token_id]))


def _ended(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    """The tokens up to the last end token, which is added where there is none."""
    ends = [index for index, token in enumerate(token_ids) if token in end_ids]
    if ends:
        return tuple(token_ids[: ends[-1] + 1])
    return (*token_ids, min(end_ids) if tokenizer.eos_token_id is None else tokenizer.eos_token_id)


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of a whole conversation, with what the template writes after its last message."""
    return tuple(tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False))


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of a completion without special tokens."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> frozenset[int]:
    """Tokens that end the assistant's turn, from the model's generation config and the tokenizer.

    Raises:
        ValueError: neither names one, so no completion could ever end.
    """
    ids = generation_config.eos_token_id
    named = {ids} if isinstance(ids, int) else set(ids or ())
    if tokenizer.eos_token_id is not None:
        named.add(tokenizer.eos_token_id)
    if not named:
        raise ValueError("neither the tokenizer nor the generation config names an end token; set eos_token_id")
    return frozenset(named)


def check_lengths(
    tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], *, max_new_tokens: int, context: int
) -> None:
    """Refuse tasks whose prompt and completion do not fit the model's context.

    Raises:
        ValueError: how many tasks are too long, the longest one, and the bound.
    """
    too_long = [
        (length, task.id)
        for task in tasks
        if (length := len(render(tokenizer, task.messages))) + max_new_tokens > context
    ]
    if too_long:
        length, task_id = max(too_long)
        raise ValueError(
            f"{len(too_long)} of {len(tasks)} prompts are too long: task {task_id!r} has {length} tokens, and with "
            f"sampling.max_new_tokens={max_new_tokens} that exceeds the model's context of {context}; shorten the "
            "prompts or lower max_new_tokens"
        )


def check_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, context: int
) -> None:
    """Refuse demonstrations that do not fit the model's context.

    Raises:
        ValueError: names the first one.
    """
    for row, messages in enumerate(conversations):
        length = len(conversation(tokenizer, messages))
        if length > context:
            raise ValueError(f"demonstration {row} has {length} tokens, more than the model's context of {context}")
