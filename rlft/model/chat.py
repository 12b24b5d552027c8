"""The only place where messages become tokens and tokens become text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlft.common.beginnings import alike
from rlft.model import pretrained, special_tokens
from rlft.model.templates import refuse_halves, write
from rlft.types import Completion, Message


def load_tokenizer(
    folder: str | Path, *, for_chat: bool = True, special_tokens_in_text: special_tokens.Policy = "encode"
) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer.

    Args:
        for_chat: whether it needs a chat template.
        special_tokens_in_text: what becomes of special tokens that a message spells, see `special_tokens`.

    Raises:
        ValueError: it has no chat template, so there is no right way to ask the model anything; or see `pretrained`.
    """
    tokenizer = pretrained.load_tokenizer(folder)
    if for_chat and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {folder} has no chat template (a base model?); use an instruct model, or put a "
            "chat_template.jinja beside its tokenizer"
        )
    special_tokens.set_policy(tokenizer, special_tokens_in_text)
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
    return _ids(tokenizer, write(tokenizer, messages, tools))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of text that a template wrote, with all special tokens that it is to have."""
    return special_tokens.token_ids(tokenizer, text)


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
    ids = _ids(tokenizer, following)
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


def render_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    end_ids: frozenset[int],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """A prompt, as `render` gives it, and the messages that follow it, of which the assistant's are its actions.

    An action is what a policy would sample: all behind the mark that opens the assistant's turn, calls of tools too, up
    to the end token. What a template writes behind the last end token, such as a line break, is left out: no policy is
    asked for it. A reply of weight 0 is no action, it is only read.

    Args:
        completion: begins and ends with a message of the assistant.
        end_ids: see `end_token_ids`.

    Returns:
        The prompt's token ids (P,), the completion's (T,), and the completion's action mask (T,).

    Raises:
        ValueError: the template writes a message otherwise once others follow it, or none of the end tokens behind it.
    """
    messages = [*prompt, *completion]
    replies = [at for at in range(len(prompt), len(messages)) if messages[at]["role"] == "assistant"]
    before = [write(tokenizer, messages[:at], tools, opened=False) for at in replies]
    alone = [write(tokenizer, messages[: at + 1], tools, opened=False) for at in replies]
    for at, earlier, text in zip(replies, before, alone, strict=True):
        _refuse_cut(tokenizer, messages[at]["content"], text[len(earlier) :], end_ids)
    contexts, whole = _tokenized_at(
        tokenizer,
        [write(tokenizer, messages[:at], tools) for at in replies],
        alone[-1],
    )
    histories = [len(_ids(tokenizer, text)) for text in before]
    contents = [messages[at]["content"] for at in replies]
    is_learnt = [bool(messages[at].get("weight", 1)) for at in replies]
    starts = [
        _start(tokenizer, context, whole, content, least=least)
        for context, content, least in zip(contexts, contents, histories, strict=True)
    ]
    ids: list[int] = []
    mask: list[bool] = []
    for turn, (start, following) in enumerate(pairwise(starts)):
        end = next((at + 1 for at in range(start, following) if whole[at] in end_ids), None)
        if end is None:
            raise ValueError(
                "the chat template writes none of the model's end tokens behind a reply that other messages follow, so "
                "its end cannot be told; name the token that ends a turn as eos_token_id in generation_config.json"
            )
        as_last = _ids(tokenizer, alone[turn])
        opened = _start(tokenizer, contexts[turn], as_last, contents[turn], least=histories[turn])
        _refuse_rewritten(
            tokenizer,
            _ended(tokenizer, as_last[opened:], end_ids),
            whole[start : end - 1],
            may_lose_marks=start == len(contexts[turn]),
        )
        observation = contexts[turn + 1][end:]
        ids += [*whole[start:end], *observation]
        mask += [is_learnt[turn]] * (end - start) + [False] * len(observation)
    last = _ended(tokenizer, whole[starts[-1] :], end_ids)
    return contexts[0], (*ids, *last), (*mask, *(is_learnt[-1] for _ in last))


def _tokenized_at(
    tokenizer: PreTrainedTokenizerBase, contexts: Sequence[str], whole: str
) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Token ids of the texts that replies follow and of the whole, without a token across the border of any reply.

    No sampled reply has such a token, which a reply that begins with white space would get behind a line break.
    """
    ids, whole_ids = [_ids(tokenizer, context) for context in contexts], _ids(tokenizer, whole)
    kept = [(text, own) for text, own in zip(contexts, ids, strict=True) if whole.startswith(text)]
    if all(whole_ids[: len(own)] == own for _, own in kept):
        return ids, whole_ids
    borders = [0, *(len(text) for text, _ in kept), len(whole)]
    pieces = [_ids(tokenizer, whole[start:end]) for start, end in pairwise(borders)]
    apart = {text: sum(pieces[: at + 1], ()) for at, (text, _) in enumerate(kept)}
    return [apart.get(text, own) for text, own in zip(contexts, ids, strict=True)], sum(pieces, ())


def _refuse_cut(tokenizer: PreTrainedTokenizerBase, content: str, written: str, end_ids: frozenset[int]) -> None:
    """Refuse a reply of which the template drops a part, or which holds an end token before its end.

    An empty block of thought may go, and white space, which templates trim.

    Args:
        written: what the template writes of it as the last message.

    Raises:
        ValueError: quotes the reply and what becomes of it.
    """
    ends = [tokenizer.decode([token]) for token in end_ids]  # nothing, of a token that the tokenizer does not know
    said = written[: min((written.index(end) for end in ends if end and end in written), default=len(written))]
    said = special_tokens.unmarked(said)
    if _bare(content) not in _bare(said):
        raise ValueError(
            f"a reply loses a part of itself: {content[:200]!r} becomes {said[:200]!r}, by the chat template, which "
            "may drop thoughts, or by an end token within it; use a chat_template.jinja that writes replies as they "
            "are, or take out of the reply what gets lost"
        )


def _bare(text: str) -> str:
    """Text without white space and without empty blocks of thought."""
    return re.sub(r"<(\w+)></\1>", "", "".join(text.split()))


def _start(
    tokenizer: PreTrainedTokenizerBase, context: tuple[int, ...], whole: tuple[int, ...], content: str, *, least: int
) -> int:
    """Where a reply begins in the whole conversation: behind what that has in common with the reply's context.

    Where the mark that opens the turn has more than the conversation keeps, as a block of thought, the reply may begin
    like that, `<answer>` like `<think>`: then it begins earlier, with its own first token.

    Raises:
        ValueError: less than `least` tokens are shared, those of the messages before the reply and its mark.
    """
    shared = alike(context, whole)
    if shared < least:
        raise ValueError(
            "the chat template writes the earlier messages otherwise when a reply follows them, so the reply cannot be "
            "told from them; use a chat_template.jinja that only appends"
        )
    if shared == len(context):
        return shared
    said, starts = _bare(content), range(shared, least - 1, -1)
    return next((at for at in starts if _bare(tokenizer.decode(list(whole[at:]))).startswith(said)), shared)


def _refuse_rewritten(
    tokenizer: PreTrainedTokenizerBase, as_last: Sequence[int], kept: Sequence[int], *, may_lose_marks: bool
) -> None:
    """Refuse a reply that the template writes otherwise when other messages follow it.

    Args:
        as_last: its tokens when it is the last message.
        kept: its tokens when it is not, without the end token.
        may_lose_marks: whether an empty block of thought at its beginning may go.

    Raises:
        ValueError: quotes both.
    """
    whole, rest = tokenizer.decode(list(as_last)), tokenizer.decode(list(kept))
    before, _, after = whole.partition(rest) if rest else ("", "", whole)
    lost = re.sub(r"<[^<>]*>", "", before + after).strip()
    if rest not in whole or lost or (before and not may_lose_marks):
        raise ValueError(
            f"the chat template writes a reply otherwise when other messages follow it: {whole[:200]!r} becomes "
            f"{rest[:200]!r}, which is not what the policy said; use a chat_template.jinja that only appends, or take "
            "what gets lost (as thoughts do, and what follows an end token) out of the earlier replies"
        )


def render_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a plain prompt and of its continuation, with the end token.

    Plain text is taken as it is: the special tokens that it spells act as such, since no template brings any. Without a
    prompt all of the text is learnt, also behind an end token within it, as a template that wrote it has them.

    Raises:
        ValueError: the tokenizer has no end token, or a text holds half a surrogate pair.
    """
    refuse_halves(prompt, completion)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token), so a completion of plain text could never end")
    end, end_id = str(tokenizer.eos_token), tokenizer.eos_token_id
    if not prompt:
        ids = _plain_ids(tokenizer, completion.rstrip() if completion.rstrip().endswith(end) else completion)
        return (), ids if ids[-1:] == (end_id,) else (*ids, end_id)
    text, _, rest = completion.partition(end)
    if rest.strip():
        raise ValueError(f"a completion goes on after the end token {end!r}, with {rest[:80]!r}; take that out of it")
    prompt_ids, whole = _plain_ids(tokenizer, prompt), _plain_ids(tokenizer, prompt + text)
    if whole[: len(prompt_ids)] == prompt_ids:
        continuation = whole[len(prompt_ids) :]
    else:  # a token across the border, which no sampled completion has
        continuation = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return prompt_ids, _ended(tokenizer, continuation, frozenset([end_id]))


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of plain text; where it brings the token that begins a text, the tokenizer does not add another one."""
    begins = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    return tuple(tokenizer(text, add_special_tokens=not begins)["input_ids"])


def _ended(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    """The tokens up to the first end token, where a policy's turn ends; it is added where there is none."""
    for at, token in enumerate(token_ids):
        if token in end_ids:
            return tuple(token_ids[: at + 1])
    return (*token_ids, min(end_ids) if tokenizer.eos_token_id is None else tokenizer.eos_token_id)


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, ...]:
    """Token ids of a whole conversation, with what the template writes after its last message.

    Raises:
        ValueError: the template refuses these messages, or one holds half a surrogate pair.
    """
    return _ids(tokenizer, write(tokenizer, messages, tools, opened=False))


def demonstration(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    end_ids: frozenset[int],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the prompt that a rollout has, and of the reply to be learnt, the conversation's last message.

    What the template writes behind the reply's end is learnt, too, where it writes the conversation as it is read.

    Raises:
        ValueError: see `render_completion`.
    """
    prompt, reply, _ = render_completion(tokenizer, messages[:-1], messages[-1:], end_ids, tools=tools)
    whole = conversation(tokenizer, messages, tools=tools)
    is_kept = whole[: len(prompt) + len(reply)] == (*prompt, *reply)
    return prompt, whole[len(prompt) :] if is_kept else reply


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
    end_ids: frozenset[int],
    *,
    context: int,
    tools: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> None:
    """Refuse demonstrations that do not fit the model's context, or that cannot be tokens at all.

    Args:
        end_ids: see `end_token_ids`.
        tools: those that the prompt of each shows; empty for none.

    Raises:
        ValueError: names the first one.
    """
    for row, messages in enumerate(conversations):
        try:
            length = sum(map(len, demonstration(tokenizer, messages, end_ids, tools=tools[row] if tools else ())))
        except ValueError as error:
            raise ValueError(f"demonstration {row}: {error}") from error
        if length > context:
            raise ValueError(f"demonstration {row} has {length} tokens, more than the model's context of {context}")
