"""Language: how much of the reply is written in the language that it should be (extra `language`)."""

from __future__ import annotations

import functools
import re
from typing import Any

SHORTEST = 20
"""Letters that a paragraph needs for its language to be told."""
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|\$[^$\n]{1,500}\$|https?://\S+|</?\w+>", re.DOTALL)


def language(completion: str, language: str = "en") -> float | None:
    """Share of the letters that stand in paragraphs of the language; abstains when no paragraph is long enough.

    Code, formulas between dollars, tags and addresses are left out. Told apart by py3langid, which knows 97 languages
    by their two letters (ISO 639-1); the same text always gives the same.

    Every paragraph counts by its length, so a greeting in the right language does not help what follows. Nonsense made
    of a language's letters passes for it, and saying nothing abstains: it stands beside a reward for the content, or is
    the condition of one.

    Raises:
        ValueError: py3langid does not know the language.
    """
    identifier = _identifier()
    if language not in identifier.labels:
        raise ValueError(f"language {language!r} is unknown; there is {', '.join(sorted(identifier.labels))}")
    right = total = 0
    for paragraph in _NOT_PROSE.sub("\n", completion).splitlines():
        letters = sum(map(str.isalpha, paragraph))
        wide = sum("\u3040" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7a3" for letter in paragraph)
        if letters + 3 * wide >= SHORTEST:
            total += letters
            right += letters * (identifier.classify(paragraph[:5000])[0] == language)
    return right / total if total else None


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("rewards.language needs py3langid: pip install 'rlft[language]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)
