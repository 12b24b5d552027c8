"""A reward that says less than its author meant, and a shadow beside it that says what was meant."""

import re


def ten_words(completion: str) -> bool:
    """Whether the reply has at most ten words, to keep explanations short; one that explains nothing has, too."""
    return len(completion.split()) <= 10


def explained(completion: str, a: int, b: int) -> bool:
    """Whether the reply says what is done with both numbers, in words."""
    numbers = set(re.findall(r"\d+", completion))
    return {str(a), str(b)} <= numbers and re.search(r"\b(add|adding|sum|plus|together)\b", completion) is not None
