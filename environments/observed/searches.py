"""How often an episode searched, and whether the answer was in what came back: to be observed, with weight 0."""

from __future__ import annotations

import re

from rlft.types import Trajectory


def searches(trajectory: Trajectory) -> dict[str, float]:
    """The number of `tool` messages, and as a part whether one of them holds the answer as whole words.

    It says how a policy works, not how well: with a weight it would be paid for asking without end. The reply is not
    looked at, only what the task's answer and the results have in common.
    """
    results = [str(message["content"]) for message in trajectory.conversation if message["role"] == "tool"]
    found: dict[str, float] = {"score": float(len(results))}
    if trajectory.task.answer is not None:
        found["found"] = float(
            any(f" {_words(str(trajectory.task.answer))} " in f" {_words(text)} " for text in results)
        )
    return found


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
