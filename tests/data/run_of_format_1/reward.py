
def odd(completion: str) -> float:
    """Share of the characters that have an odd code: random text differs in it, so every group has signal."""
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
