"""A reward that says less than its author meant, and a shadow beside it that says what was meant."""

import re


def ten_words(completion: str) -> bool:
    """Whether the reply has at most ten words, to keep replies short; an empty one has, too."""
    return len(completion.split()) <= 10


def counted(completion: str, first: int, last: int) -> bool:
    """Whether the reply's numbers are those from `first` to `last`, in order."""
    return [int(number) for number in re.findall(r"\d+", completion)] == list(range(int(first), int(last) + 1))
