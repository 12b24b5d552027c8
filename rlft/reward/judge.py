"""Asking a served model for a verdict, so that a reward can be a judge; `rewards/judge.py` is one to copy.

    verdict = await ask_judge(question, score, base_url="http://localhost:8000/v1", model="judge")
    verdict.value      # what `score` read from the reply, or None
    verdict.reply      # the text itself

A reply that cannot be read is asked for again; after that `value` is None, and the reward should abstain. A server that
does not answer is an exception, so a failed sample. Neither is ever a number.

Rewards that are `async def` ask for many samples at once. What was asked before is not asked again (`judge_cache`), in
this run or another; one of a hundred such replies is compared with a new one, each question at most once in a run,
which tells a judge that has changed.
A run may have a budget (`scoring.judge_calls`, `scoring.judge_tokens`): when it is spent, samples fail and it stops.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from rlft.common.chat_server import Reply, ServerError, ask_async, connect_async, request
from rlft.reward import judge_cache
from rlft.reward.judge_cache import Budget, key_of
from rlft.types import Abstain, Message

T = TypeVar("T")

MOST_AT_ONCE = 64
"""Most requests that a process has under way."""
CHECKED = 100
"""Of so many times that a known reply is used, the question is asked again once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Generic[T]):
    """What a judge said."""

    value: T | None
    """What was read from its reply; None if it could not be read."""
    reply: str
    """The reply, the last one where several were asked for."""
    tokens: int
    """Tokens of this verdict's questions and replies, known ones included."""
    is_known: bool
    """Whether all of it had been asked before."""
    drift: float | None = None
    """Difference to what the judge says today, where that was checked: of numbers the distance, else 0 or 1."""

    @property
    def abstention(self) -> Abstain:
        """What a reward returns when the reply could not be read."""
        return Abstain(reason=f"no verdict in the judge's reply {self.reply[:200]!r}")

    def note(self, log_metric: Callable[[str, float], None], log_extra: Callable[[str, Any], None]) -> None:
        """Log what it cost and said, with what a reward gets under these names."""
        log_metric("tokens", self.tokens)
        log_metric("known", float(self.is_known))
        if self.drift is not None:
            log_metric("drift", self.drift)
        log_extra("reply", self.reply)


async def ask_judge(
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
    extra: Mapping[str, Any] | None = None,
    label: str = "",
) -> Verdict[T]:
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
        extra: further fields of the request's body; see `chat_server.request`.
        label: tells models apart that have the same name, at one address or at two; with a new one nothing is known.

    Raises:
        ValueError: the environment variable is not set here.
        ServerError: the server cannot be reached or refuses, what it said; or the deadline passed, or the budget is
            spent.
    """
    if not api_key_env or os.environ.get(api_key_env):
        client = _client(base_url, api_key_env, retries, deadline_s, asyncio.get_running_loop())
    else:
        raise ValueError(
            f"the environment variable {api_key_env}, which api_key_env names, is not set here; set it where rlft is "
            f"started, and let it pass to the scoring processes with `scoring.environment: [{api_key_env}]`"
        )
    messages = [Message(role="user", content=question)] if isinstance(question, str) else list(question)
    tokens, is_known, drift = 0, True, None
    try:
        async with _place(asyncio.get_running_loop()), asyncio.timeout(deadline_s):
            for attempt in range(attempts):
                heat = max(temperature, 1.0) if attempt else temperature
                sampling: dict[str, Any] = {
                    "max_tokens": max_tokens,
                    "temperature": heat,
                    "seed": attempt,
                    "extra": extra,
                }
                # A request that is the same as the one before would be known, with a reply that cannot be read.
                is_same = attempt and {"seed", "temperature"} <= set(extra or {})
                key = key_of(request(model, messages, **sampling), f"{label}#{attempt}" if is_same else label)
                known = judge_cache.find(key)
                reply = known or await _once(key, functools.partial(ask_async, client, model, messages, **sampling))
                tokens, is_known = tokens + reply.tokens, is_known and known is not None
                value = parse(reply.text)
                is_settled = (extra or {}).get("temperature", heat) == 0  # the same question has the same answer
                if known and is_settled and _is_checked(key):
                    with suppress(ServerError):  # the known reply serves without it
                        new = await _paid(ask_async(client, model, messages, **sampling))
                        drift = _distance(value, parse(new.text))
                if value is not None:
                    break
    except TimeoutError as error:
        raise ServerError(f"judge {model!r} at {base_url} gave no verdict within {deadline_s:g} s") from error
    return Verdict(value=value, reply=reply.text, tokens=tokens, is_known=is_known, drift=drift)


def judge(question: str | Sequence[Message], parse: Callable[[str], T | None], **options: Any) -> T | None:
    """`ask_judge` for rewards that are no coroutines: the verdict's value."""
    return _runner(os.getpid(), threading.get_ident()).run(ask_judge(question, parse, **options)).value


def fenced(tag: str, text: str) -> str:
    """A text to judge between tags that it cannot close: their name holds the text's own hash."""
    name = f"{tag}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"<{name}>\n{text}\n</{name}>"


def score(reply: str, *, low: float = 1, high: float = 10) -> float | None:
    """The last `Score: N` of a reply, from 0 for `low` to 1 for `high`; None without one or beyond the two."""
    found = re.findall(r"\bscore\b\W{0,10}?(-?\d+(?:\.\d+)?)", reply, re.IGNORECASE)
    value = float(found[-1]) if found else None
    return (value - low) / (high - low) if value is not None and low <= value <= high else None


def passed(reply: str) -> bool | None:
    """The last `Verdict: pass` or `Verdict: fail` of a reply; None without one."""
    found = re.findall(r"\bverdict\b\W{0,10}?(pass|fail)\b", reply, re.IGNORECASE)
    return found[-1].lower() == "pass" if found else None


@dataclass(slots=True)
class _Request:
    """A request that is under way."""

    reply: asyncio.Future[Reply]
    waiting: int = 0
    """Samples that wait for it."""


async def _once(key: str, send: Callable[[], Any]) -> Reply:
    """The reply to a request that several samples make at the same time: it is sent once."""
    if key not in _under_way:
        _under_way[key] = _Request(asyncio.ensure_future(_paid(send(), key)))
    own = _under_way[key]
    own.waiting += 1
    try:
        # One sample's deadline must not cancel what others wait for.
        return await asyncio.shield(own.reply)
    finally:
        own.waiting -= 1
        if not own.waiting:
            own.reply.cancel()
            _under_way.pop(key, None)


async def _paid(asking: Any, key: str = "") -> Reply:
    """Ask within the budget; the reply is kept under its key."""
    budget = Budget.here()
    try:
        judge_cache.take(budget)
    except ServerError:
        asking.close()
        raise
    reply: Reply = await asking
    judge_cache.add_tokens(budget, reply.tokens)
    if key:
        judge_cache.keep(key, reply)
    return reply


_under_way: dict[str, _Request] = {}


def _is_checked(key: str) -> bool:
    """Whether this use of a known reply is one of a hundred, and the first of its question that is.

    Which ones they are follows from the question and from how many known replies this process has used before, so a
    question that comes back often is checked some time.
    """
    drawn = hashlib.sha256(f"{key} {next(_known_used)}".encode()).digest()
    if int.from_bytes(drawn[:8], "big") % CHECKED:
        return False
    return judge_cache.is_first_check(Budget.here().start_id, key)


_known_used = itertools.count()


def _distance(known: Any, new: Any) -> float:
    if isinstance(known, int | float) and isinstance(new, int | float):
        return abs(float(known) - float(new))
    return float(known != new)


def _client(base_url: str, api_key_env: str, retries: int, deadline_s: float, loop: asyncio.AbstractEventLoop) -> Any:
    """Kept between calls; one for each loop, since connections belong to it."""
    clients = _clients.setdefault(loop, {})
    wanted = (base_url, api_key_env, retries, deadline_s)
    if wanted not in clients:
        # The client pauses between tries, so each try may only take a share of the time.
        timeout_s = deadline_s / (retries + 1)
        clients[wanted] = connect_async(base_url, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries)
    return clients[wanted]


def _place(loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
    """A place among those who ask at the same time; waiting for one is not charged to the judge's deadline."""
    return _places.setdefault(loop, asyncio.Semaphore(MOST_AT_ONCE))


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Any]] = WeakKeyDictionary()
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


@functools.lru_cache(maxsize=8)
def _runner(process: int, thread: int) -> asyncio.Runner:
    """The event loop of callers that have none; one for each process and thread, which cannot share it."""
    return asyncio.Runner()
