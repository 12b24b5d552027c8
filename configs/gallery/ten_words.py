"""A reward that says less than its author meant: it was to make replies short, and asks for nothing else."""


def ten_words(completion: str) -> bool:
    """Whether the reply has at most ten words; an empty one has, too."""
    return len(completion.split()) <= 10
