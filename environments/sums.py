"""Adding two numbers, with the answer wanted inside `<answer>` tags."""

from __future__ import annotations

import random

from rlft.common.rows import refuse_negative
from rlft.environment.contract import Environment
from rlft.types import Message, Task


def load(seed: int = 0, low: int = 1, high: int = 99, heldout: int = 500, demonstrations: int = 256) -> Environment:
    """Sums a + b with low <= a, b <= high; held-out, demonstrated and training problems are three disjoint sets.

    Args:
        seed: decides which problem goes where.
        heldout: number of held-out problems.
        demonstrations: number of problems with a worked reply for the SFT stage.

    Raises:
        ValueError: the range holds too few problems.
    """
    refuse_negative(heldout=heldout, demonstrations=demonstrations)
    problems = [(a, b) for a in range(low, high + 1) for b in range(low, high + 1)]
    if heldout + demonstrations >= len(problems):
        raise ValueError(
            f"{low}..{high} holds {len(problems)} sums, too few for {heldout} held-out and "
            f"{demonstrations} demonstrations; "
            "widen the range or ask for fewer"
        )
    random.Random(seed).shuffle(problems)
    shown = problems[heldout : heldout + demonstrations]
    return Environment(
        heldout=[_task(a, b) for a, b in problems[:heldout]],
        demonstrations=[
            (*_prompt(a, b), {"role": "assistant", "content": f"<answer>{a + b}</answer>"}) for a, b in shown
        ],
        train=[_task(a, b) for a, b in problems[heldout + demonstrations :]],
    )


def _task(a: int, b: int) -> Task:
    return Task(id=f"{a}+{b}", messages=_prompt(a, b), answer=str(a + b))


def _prompt(a: int, b: int) -> tuple[Message, ...]:
    return ({"role": "user", "content": f"What is {a} + {b}? Put the number inside <answer> tags."},)
