"""The only place where messages become tokens and tokens become text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlft.types import Completion, Message, Task


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


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, ...]:
    """Token ids of a prompt, up to and including the mark that opens the assistant's turn.

    Args:
        tools: JSON schemas for templates that describe tools themselves.
    """
    options: dict[str, Any] = {"tools": list(tools)} if tools else {}
    ids = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=True, return_dict=False, **options
    )
    return tuple(ids)


def render_observation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    after: Sequence[int],
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Token ids of the environment's answer, to be appended to the policy's own tokens.

    From the end of the policy's turn to the mark that opens its next one. What the template writes around messages is
    found by rendering a stand-in conversation with and without them, so that nothing earlier is tokenised again.

    Args:
        after: the policy's tokens; where they lack the end token, as after a stop text, it comes first.

    Raises:
        ValueError: the template writes earlier messages otherwise once others follow.
    """
    called = [m["name"] for m in messages if m["role"] == "tool" and "name" in m]
    reply: dict[str, Any] = {"role": "assistant", "content": "\x1freply\x1f"}
    if called:
        reply["tool_calls"] = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in called]
    history: list[Any] = [{"role": "user", "content": "?"}, reply]
    options: dict[str, Any] = {"tools": list(tools)} if tools else {}

    def text(conversation: list[Any], *, opened: bool) -> str:
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=opened, **options)
        assert isinstance(rendered, str)
        return rendered

    before, whole = text(history, opened=False), text([*history, *messages], opened=True)
    if not whole.startswith(before):
        raise ValueError(
            "the chat template writes a reply otherwise once messages follow it, so what was sampled would not be what "
            "the model reads next; use a template that only appends"
        )
    end = tokenizer.eos_token or ""
    # The template may write more after the end token, such as a line break, which the policy was not asked for.
    closing, tail = (end, before.rpartition(end)[2]) if end and end in before else ("", "")
    start = len(before) - len(tail) - len(closing)
    ids = tuple(tokenizer(whole[start:], add_special_tokens=False)["input_ids"])
    has_end = bool(after) and bool(ids) and after[-1] == ids[0] and bool(closing)
    return ids[1:] if has_end else ids


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


def ends_with(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the last token of a completion completes one of the texts; special tokens count as text."""
    # Every token but a part of a character is at least one character long.
    window = max(map(len, stop)) + 8
    tail = tokenizer.decode(list(token_ids[-window:]))
    return any(text in tail for text in stop)


def completion_text(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> str:
    """Text of a completion, as a server gave it or from its tokens."""
    return decode(tokenizer, completion.token_ids) if completion.text is None else completion.text


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
