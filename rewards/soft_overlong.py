"""Length: a penalty that grows over the last tokens before the limit, as in DAPO."""

from __future__ import annotations

from rlft.types import Trajectory


def soft_overlong(trajectory: Trajectory, max_tokens: int, buffer: int) -> float:
    """0 up to `max_tokens - buffer` sampled tokens, from there down to -1 at `max_tokens`, and -1 beyond.

    Soft overlong punishment of https://arxiv.org/abs/2503.14476, section 3.4. A reply that is cut at the limit for new
    tokens gets no answer in; this tells the policy before it comes to that. Set `max_tokens` to
    `sampling.max_new_tokens`, or below.

    It counts what the policy sampled, so neither words without end nor invisible characters hide anything. Saying
    nothing costs nothing: it is a term beside a reward for the answer, never a reward alone.

    Args:
        max_tokens: where the penalty is whole.
        buffer: over how many tokens it grows.

    Raises:
        ValueError: the buffer is not between 1 and `max_tokens`.
    """
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"buffer is {buffer}, but must be between 1 and max_tokens, {max_tokens}")
    beyond = trajectory.num_actions - (max_tokens - buffer)
    return -min(1.0, max(0, beyond) / buffer)
