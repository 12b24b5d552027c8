"""The only place where messages become tokens and tokens become text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlft.types import Completion, Message, whole_text


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
    return tuple(tokenizer(_text(tokenizer, messages, tools), add_special_tokens=False)["input_ids"])


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
    whole = _text(tokenizer, [*history, *messages], tools)
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


def _text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """A conversation as the template writes it, with the mark that opens the assistant's turn."""
    fitted, options = fit(tokenizer, messages, tools)
    try:
        text = tokenizer.apply_chat_template(fitted, tokenize=False, add_generation_prompt=True, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in fitted)
        raise ValueError(f"the chat template refuses a conversation of {roles}: {error}") from error
    assert isinstance(text, str)
    return text


def fit(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[Message], dict[str, Any]]:
    """(the conversation as the template can write it, what else it takes).

    A template without tools has them in the system message; one without `tool` messages has the user say them.

    Raises:
        ValueError: a message holds half a surrogate pair.
    """
    _refuse_halves(*(message.get("content") for message in messages))
    fitted: list[Message] = list(messages)
    if any(message["role"] == "tool" for message in messages) and not takes_tool_messages(tokenizer):
        fitted = without_tool_messages(messages)
    if not tools:
        return fitted, {}
    if takes_tools(tokenizer):
        return fitted, {"tools": list(tools)}
    return with_tools_described(fitted, tools), {}


def _refuse_halves(*texts: object) -> None:
    """Refuse text that no tokenizer takes; what is no text is the template's affair.

    Raises:
        ValueError: quotes the place.
    """
    for text in texts:
        if isinstance(text, str) and whole_text(text) != text:
            at = next(index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff")
            raise ValueError(
                f"a text holds half a surrogate pair, as a string that was cut inside an emoji does, at the end of "
                f"{text[max(0, at - 40) : at + 1]!r}; no tokenizer takes it: mend the data, or replace it with "
                "text.encode('utf-8', 'replace').decode()"
            )


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template describes tools itself."""
    tool = {"type": "function", "function": {"name": "look_up", "description": "", "parameters": {"properties": {}}}}
    ask: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    with_tool = _tried(tokenizer, ask, tools=[tool])
    return with_tool is not None and "look_up" in with_tool


def takes_tool_messages(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes `tool` messages otherwise than those of a role that it has never heard of."""
    ask = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    answer = {"content": "the answer", "name": "look_up"}
    written = _tried(tokenizer, [*ask, {"role": "tool", **answer}])
    unknown = _tried(tokenizer, [*ask, {"role": "unheard-of", **answer}])
    if written is None or "the answer" not in written:
        return False
    return unknown is None or written != unknown.replace("unheard-of", "tool")


def _tried(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> str | None:
    """What the template writes, None if it refuses."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateError:
        return None


def without_tool_messages(messages: Sequence[Message]) -> list[Message]:
    """Tools' answers as messages of the user, one for those that follow each other, each answer inside tags."""
    fitted: list[Message] = []
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            fitted.append(message)
            continue
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        if index and messages[index - 1]["role"] == "tool":
            content = f"{fitted.pop()['content']}\n{content}"
        fitted.append(Message(role="user", content=content))
    return fitted


def with_tools_described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with the tools described in its system message, which is added if there is none."""
    described = describe_tools(tools)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [Message(role="system", content=f"{first['content']}\n\n{described}"), *messages[1:]]
    return [Message(role="system", content=described), *messages]


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tools in words, and how to call one."""
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return (
        f"You can call tools:\n{listed}\n"
        'To call one, write <tool_call>{"name": "...", "arguments": {...}}</tool_call> and wait for its answer.'
    )


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
    _refuse_halves(messages[-1].get("content"))
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
    _refuse_halves(prompt, completion)
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
