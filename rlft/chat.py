"""The only place where messages become tokens and tokens become text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlft.templates import fit, refuse_halves, write
from rlft.types import Completion, Message


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
        tools: JSON schemas of tools; a template that does not take any has them in the system message instead.

    Raises:
        ValueError: the template refuses these messages, or one holds half a surrogate pair.
    """
    return tuple(tokenizer(write(tokenizer, messages, tools), add_special_tokens=False)["input_ids"])


def render_observation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    after: Sequence[int],
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Token ids of the environment's answer, to be appended to the policy's own tokens.

    From the end of the policy's turn to the mark that opens its next one. What the template writes around messages is
    found by rendering them behind a stand-in reply, so that nothing earlier is tokenised again.

    Args:
        after: the policy's tokens; where they lack the end token, as after a stop text, it comes first.

    Raises:
        ValueError: the template refuses these messages, or does not write a reply as it is.
    """
    reply = _REPLY
    while reply in str(messages):
        reply += ")"
    history = [Message(role="user", content="?"), Message(role="assistant", content=reply)]
    whole = write(tokenizer, [*history, *messages], tools)
    _, found, following = whole.partition(reply)
    if not found or reply in following:
        raise ValueError(
            "the chat template does not write an assistant's reply exactly once and as it is, so what follows it "
            "cannot be told; use another chat_template.jinja"
        )
    ids = tuple(tokenizer(following, add_special_tokens=False)["input_ids"])
    if after and _is_special(tokenizer, after[-1]) and after[-1] in ids:
        end = ids.index(after[-1])  # some templates put a space before it
        if not tokenizer.decode(list(ids[:end])).strip():
            return ids[end + 1 :]
    return ids


_REPLY = "(here stands the reply)"
"""Not a mark of control characters: templates trim those as white space."""


def _is_special(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token_id)
    return token_id in tokenizer.all_special_ids or (added is not None and added.special)


def render_reply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], end_ids: frozenset[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the prompt, as `render` gives them, and of the last message, the assistant's, with its end token.

    What a template writes after the end token, such as a line break, is left out: no policy is asked for it.

    Args:
        end_ids: see `end_token_ids`.

    Raises:
        ValueError: the template writes the earlier messages otherwise once the reply follows, or a message holds half
            a surrogate pair.
    """
    refuse_halves(messages[-1].get("content"))
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
        ValueError: the tokenizer has no end token, or a text holds half a surrogate pair.
    """
    refuse_halves(prompt, completion)
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


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, ...]:
    """Token ids of a whole conversation, with what the template writes after its last message."""
    fitted, options = fit(tokenizer, messages, tools)
    return tuple(tokenizer.apply_chat_template(fitted, tokenize=True, return_dict=False, **options))


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of a completion without special tokens."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True)


def ends_with(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the last token of a completion completes one of the texts; special tokens count as text."""
    # A token is at least one byte long, so a text has at most as many tokens as bytes. The window is wider, since
    # sentencepiece drops a space at its start. Where it begins inside a character, byte fallback reads the whole run of
    # bytes wrongly, the text's own with it; but one of four neighbouring bytes begins a character.
    longest = max(len(text.encode()) for text in stop) + 8
    for window in range(longest, longest - 4, -1):
        tail = tokenizer.decode(list(token_ids[-window:]))
        if any(text in tail for text in stop):
            return True
        if not tail.startswith("\N{REPLACEMENT CHARACTER}"):
            return False
    return False


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


def check_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    context: int,
    tools: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Refuse demonstrations that do not fit the model's context, or that cannot be tokens at all.

    Raises:
        ValueError: names the first one.
    """
    for row, messages in enumerate(conversations):
        try:
            length = len(conversation(tokenizer, messages, tools=tools))
        except ValueError as error:
            raise ValueError(f"demonstration {row}: {error}") from error
        if length > context:
            raise ValueError(f"demonstration {row} has {length} tokens, more than the model's context of {context}")
