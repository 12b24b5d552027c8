"""What the constraints of `instructions` mean: a check of a reply for each kind, with the arguments of a constraint.

A reply has no white space around it and is not empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rlft.reward.extract import json_value
from rlft.reward.measures import lines, occurrences, paragraphs, sentences


def _has_keys(reply: str, keys: list[str]) -> bool:
    if reply.startswith("```") and reply.endswith("```"):
        reply = reply[3:-3].removeprefix("json")
    try:
        value = json_value(reply)
    except ValueError:
        return False
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def _filled(pattern: str, reply: str) -> int:
    """How many brackets of that kind hold a letter or digit."""
    return sum(any(map(str.isalnum, inside)) for inside in re.findall(pattern, reply))


def _two(parts: list[str]) -> bool:
    return len(parts) == 2 and all(map(str.strip, parts)) and parts[0].strip() != parts[1].strip()


CHECKS: dict[str, Callable[..., bool]] = {
    # Length
    "at_most_words": lambda reply, count: len(reply.split()) <= count,
    "at_least_words": lambda reply, count: len(reply.split()) >= count,
    "at_most_sentences": lambda reply, count: sentences(reply) <= count,
    "at_least_sentences": lambda reply, count: sentences(reply) >= count,
    "paragraphs": lambda reply, count: len(paragraphs(reply)) == count,  # with an empty line between them
    # Beginning and end, with something besides
    "starts_with": lambda reply, phrase: reply.startswith(phrase) and len(reply) > len(phrase),
    "ends_with": lambda reply, phrase: reply.endswith(phrase) and len(reply) > len(phrase),
    "paragraph_starts": lambda reply, number, word: any(
        part.lower().startswith(word.lower()) for part in paragraphs(reply)[number - 1 : number]
    ),
    "title": lambda reply: _filled(r"\A<<([^<>\n]+)>>(?=\s*\S)", reply) == 1,
    "postscript": lambda reply, marker: (
        len(lines(reply)) > 1 and bool(re.match(rf"{re.escape(marker)}\s*\w", lines(reply)[-1]))
    ),
    # Words and letters, in whatever case
    "without_word": lambda reply, word: not occurrences(reply, word),
    "uses_word": lambda reply, word, count=1: occurrences(reply, word) >= count,
    "uses_letter": lambda reply, letter, count: reply.lower().count(letter.lower()) >= count,
    "without_commas": lambda reply: not re.search("[,\uff0c\u3001\u060c]", reply),
    # Case
    "lower_case": lambda reply: reply == reply.lower() and any(map(str.isalpha, reply)),
    "upper_case": lambda reply: reply == reply.upper() and any(map(str.isalpha, reply)),
    "capital_words": lambda reply, count: len(re.findall(r"\b[A-Z]{2,}\b", reply)) >= count,
    # Form of the whole
    "in_quotes": lambda reply: len(reply) > 2 and reply[0] == reply[-1] == '"' and '"' not in reply[1:-1],
    "items": lambda reply, count: (
        len(lines(reply)) == count and all(re.match(r"-\s*\S", line) for line in lines(reply))
    ),
    "json_object": _has_keys,  # with exactly these keys, between triple backticks or not
    "two_replies": lambda reply: _two(reply.split("******")),
    "one_of": lambda reply, options: reply in options,
    # Parts
    "placeholders": lambda reply, count: _filled(r"\[([^\[\]\n]+)\]", reply) >= count,
    "highlights": lambda reply, count: _filled(r"\*([^*\n]+)\*", reply) >= count,
    "sections": lambda reply, word, count: (
        [line.split()[:2] for line in lines(reply) if line.startswith(f"{word} ")]
        == [[word, str(number)] for number in range(1, count + 1)]
    ),
}
