"""Asking a served model for a verdict, so that a reward can be a judge; `rewards/judge.py` is one to copy.

A reply that cannot be read is asked for again and is then None: the reward abstains. A server that does not answer is
an exception, so a failed sample. Neither is ever a number.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rlft.common.chat_server import ask, connect
from rlft.types import Message

T = TypeVar("T")


def judge(
    question: str | Sequence[Message],
    parse: Callable[[str], T | None],
    *,
    base_url: str,
    model: str,
    api_key_env: str = "",
    deadline_s: float = 8.0,
    attempts: int = 3,
    retries: int = 2,
    temperature: float = 0.0,
    max_tokens: int = 512,
    extra: dict[str, Any] | None = None,
) -> T | None:
    """A served model's verdict on what `question` holds, a user's message or a conversation.

    Args:
        parse: the verdict in a reply, None where there is none; see `score` and `passed`.
        base_url, model: see `chat_server.connect`.
        api_key_env: environment variable that holds the key, which `scoring.environment` has to name, too; empty for
            servers that want none.
        deadline_s: seconds for everything; keep it below `scoring.deadline_s`, which kills the process.
        attempts: replies that are asked for until one can be read; from the second on at temperature 1 and with
            another seed, or they would be the same.
        retries: further tries of each after a connection error, 429 or 5xx.
        extra: further fields of the request's body.

    Returns:
        None if no reply could be read.

    Raises:
        ValueError: the environment variable is not set here.
        TimeoutError: the deadline passed.
        RuntimeError: the server cannot be reached or refuses; what it said.
    """
    ends = time.monotonic() + deadline_s
    client = _client(base_url, api_key_env, retries, os.getpid())
    messages = [Message(role="user", content=question)] if isinstance(question, str) else list(question)
    for attempt in range(attempts):
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"judge {model!r} at {base_url} gave no verdict within {deadline_s:g} s")
        # The client pauses between tries, so each try may only take a share of what is left.
        reply = ask(
            client.with_options(timeout=left / (retries + 1)),
            model,
            messages,
            max_tokens=max_tokens,
            temperature=max(temperature, 1.0) if attempt else temperature,
            seed=attempt,
            extra=extra,
        )
        if (verdict := parse(reply.text)) is not None:
            return verdict
    return None


def score(reply: str, *, low: float = 1, high: float = 10) -> float | None:
    """The last `Score: N` of a reply, from 0 for `low` to 1 for `high`; None without one or beyond the two."""
    found = re.findall(r"\bscore\b\W{0,10}?(-?\d+(?:\.\d+)?)", reply, re.IGNORECASE)
    value = float(found[-1]) if found else None
    return (value - low) / (high - low) if value is not None and low <= value <= high else None


def passed(reply: str) -> bool | None:
    """The last `Verdict: pass` or `Verdict: fail` of a reply; None without one."""
    found = re.findall(r"\bverdict\b\W{0,10}?(pass|fail)\b", reply, re.IGNORECASE)
    return found[-1].lower() == "pass" if found else None


@functools.cache
def _client(base_url: str, api_key_env: str, retries: int, process: int) -> Any:
    """Kept between calls; one for each process, since connections do not survive a fork."""
    if api_key_env and not os.environ.get(api_key_env):
        raise ValueError(
            f"the environment variable {api_key_env}, which api_key_env names, is not set here; set it where rlft is "
            f"started, and let it pass to the scoring processes with `scoring.environment: [{api_key_env}]`"
        )
    return connect(base_url, api_key_env=api_key_env, timeout_s=60.0, retries=retries)
