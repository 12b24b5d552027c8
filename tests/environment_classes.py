"""Environments as their authors write them for other systems; the tests of the adapters name them by file."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


class Safe:
    """TRL: a safe whose code is found by trying; the dial is a global random number."""

    def __init__(self) -> None:
        self.opened = False

    def reset(self, digits: int = 1, **kwargs: Any) -> str:
        """Starts over."""
        self.opened = False
        self.code = random.randint(10 ** (digits - 1), 10**digits - 1)
        return f" The code has {digits} digits."

    def turn(self, code: int) -> str:
        """
        Turns the dial to a code.

        Args:
            code: the number to try.
        """
        self.opened = self.opened or code == self.code
        return "open" if self.opened else f"closed, {'higher' if code < self.code else 'lower'}"

    async def listen(self) -> str:
        """Listens to the lock; it says a little."""
        return f"click {np.random.randint(100)}"

    def get_reward(self) -> float:
        """1 if the safe is open."""
        if self.code == 3 and not self.opened:
            raise RuntimeError("the safe is stuck")
        return float(self.opened)

    def _oil(self) -> None: ...


class Untyped:
    """TRL: a tool without types."""

    def reset(self) -> None: ...

    def push(self, where):  # type: ignore[no-untyped-def]
        """Pushes."""


class Countdown:
    """SkyRL-gym: count down from `reward_spec.ground_truth` to 1."""

    def __init__(self, env_config: Any = None, extras: dict[str, Any] | None = None) -> None:
        assert extras
        self.step_reward = getattr(env_config, "step_reward", 0.5)
        self.next = int(extras["reward_spec"]["ground_truth"])
        self.left = extras.get("max_turns", 1)
        self.closed = False

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + f" Luck: {random.random():.3f}"}], {}

    def step(self, action: str) -> dict[str, Any]:
        if action == "explode":
            raise RuntimeError("bang")
        right = action.strip() == str(self.next)
        self.next -= right
        self.left -= 1
        over = not right or self.next == 0 or self.left == 0
        observations = [] if over else [{"role": "user", "content": "And?"}]
        return {"observations": observations, "reward": self.step_reward * right, "done": over, "metadata": {}}
