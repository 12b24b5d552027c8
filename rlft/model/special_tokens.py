"""Special tokens that stand in a text: a user's or a tool's `<|im_end|>` must not end a turn.

A chat template's text is tokenised as a whole, so a special token that a message happens to spell would become that
token. Before the template writes them, messages get a mark inside of each such spelling, and the text is cut there when
it is tokenised: what a message says are then the tokens of its characters, and nothing else changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Policy: TypeAlias = Literal["encode", "refuse", "allow"]

# Code points that are no characters: templates neither trim nor change them. A text that holds the first one has it
# followed by the third, so that every text can be told from a mark.
_OPEN, _CUT, _ITSELF = "\ufdd0", "\ufdd1", "\ufdd2"

_POLICIES: WeakKeyDictionary[PreTrainedTokenizerBase, Policy] = WeakKeyDictionary()
_PATTERNS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, re.Pattern[str] | None]] = WeakKeyDictionary()


def set_policy(tokenizer: PreTrainedTokenizerBase, policy: Policy) -> None:
    """Say what happens to special tokens in messages that this tokenizer gets; `encode` where nothing was said."""
    _POLICIES[tokenizer] = policy


def found(tokenizer: PreTrainedTokenizerBase, content: Any) -> str | None:
    """The first special token that a text, or a text anywhere in lists and mappings, spells; None if none does."""
    pattern = _pattern(tokenizer)
    if pattern is None:
        return None
    if isinstance(content, str):
        match = pattern.search(content)
        return match[0] if match else None
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return next((token for part in parts if (token := found(tokenizer, part))), None)


def marked(tokenizer: PreTrainedTokenizerBase, content: T) -> T:
    """Messages, tools or texts with marks in the special tokens that they spell, as the tokenizer's policy says.

    Raises:
        ValueError: the policy is to refuse them, or one has a single character and cannot be cut.
    """
    policy = _POLICIES.get(tokenizer, "encode")
    if policy == "refuse" and (token := found(tokenizer, content)):
        raise ValueError(
            f"a message holds the special token {token!r} as text; take it out of the data, or set "
            "model.special_tokens_in_text to encode (it stays text) or allow (it acts as that token)"
        )
    return _each_text(content, lambda text: _marked_text(tokenizer, text, cuts=policy != "allow"))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a template's text that was written from `marked` messages: special tokens only from the template."""
    pieces = [piece.replace(_OPEN + _ITSELF, _OPEN) for piece in text.split(_OPEN + _CUT)]
    return tuple(token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"])


def unmarked(text: str) -> str:
    """A template's text without the marks."""
    return text.replace(_OPEN + _CUT, "").replace(_OPEN + _ITSELF, _OPEN)


def _marked_text(tokenizer: PreTrainedTokenizerBase, text: str, *, cuts: bool) -> str:
    text = text.replace(_OPEN, _OPEN + _ITSELF)
    pattern = _pattern(tokenizer)
    return pattern.sub(_cut, text) if cuts and pattern is not None else text


def _cut(match: re.Match[str]) -> str:
    token = match[0]
    if len(token) == 1:
        raise ValueError(
            f"a message holds {token!r}, which is a special token of this tokenizer and cannot be written otherwise; "
            "take it out of the data, or set model.special_tokens_in_text: allow"
        )
    return token[0] + _OPEN + _CUT + token[1:]


def _each_text(content: Any, change: Any) -> Any:
    if isinstance(content, str):
        return change(content)
    if isinstance(content, Mapping):
        return {key: _each_text(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_each_text(part, change) for part in content]
    return content


def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches every spelling of a special token; tokenizers that lower-case their text match any case."""
    size, pattern = _PATTERNS.get(tokenizer, (-1, None))
    if size != len(tokenizer):
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        spelled = sorted(filter(None, added | set(tokenizer.all_special_tokens)), key=len, reverse=True)
        flags = re.IGNORECASE if any(_is_special_in_any_case(tokenizer, token) for token in spelled) else re.NOFLAG
        pattern = re.compile("|".join(map(re.escape, spelled)), flags) if spelled else None
        _PATTERNS[tokenizer] = (len(tokenizer), pattern)
    return pattern


def _is_special_in_any_case(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether the tokenizer changes the case of its texts before it looks for special tokens."""
    swapped = token.swapcase()
    ids = tokenizer(swapped, add_special_tokens=False)["input_ids"] if swapped != token else []
    return tokenizer.convert_tokens_to_ids(token) in ids


def as_text(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Any]]) -> tuple[int, str]:
    """(How many of the conversations spell a special token, the first that is spelt), to be said."""
    tokens = [token for messages in conversations if (token := found(tokenizer, list(messages)))]
    return len(tokens), tokens[0] if tokens else ""


def without_padding(ids: tuple[int, ...], pad: int) -> tuple[int, ...]:
    """The tokens up to the last one that a sequence classifier of transformers reads.

    Where the padding token is also the end mark, it reads the score before it.
    """
    length = len(ids)
    while length > 1 and ids[length - 1] == pad:
        length -= 1
    return ids[:length]
