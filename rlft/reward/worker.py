"""Runs reward functions: the body of a scoring process, and what `workers: 0` does in the driver.

A scoring process is a fresh interpreter that imports `rlft.types`, `rlft.reward` and the reward modules;
torch and ray only if a reward does. It serves one driver over an inherited socket (`main`):

    driver -> process   the reward specs, the descriptor of the shared memory      once
    process -> driver   the rewards, or what is wrong       once; starting up is not charged to any sample
    driver -> process   (number of the message, calls); a call: (index of the reward, number of samples, deadline,
                        keyword arguments)
    process -> driver   (number of the message, results by position, whether these are the last), one or several times
    driver -> process   the empty message: finish

Calls of ordinary functions are made one after the other, and which one it is stands in the shared memory (`progress`).
After `TURN_S` the process answers with what it has done, and the driver gives the others to whoever is idle. Calls of
`async def` rewards are made all at once, and each is answered when it is done.

The driver's messages are pickles; the answers are plain data (`answers`), since nothing that a reward does may run
in the driver. Deadlines are the driver's business (`processes`): a reward stuck in C code cannot be interrupted from
here. Only a coroutine that waits is cancelled here, at its deadline.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from rlft.common.by_path import describe_error, innermost_line
from rlft.common.chat_server import ServerError
from rlft.reward.answers import Invalid, Loaded, Result, write_results, write_start
from rlft.reward.contract import CallPlan, RewardFunction, plan_call
from rlft.reward.loading import build, load, reward_sources
from rlft.reward.notes import Notes
from rlft.reward.outcomes import failed, read, read_many
from rlft.reward.progress import Progress
from rlft.reward.stack import write_when_asked
from rlft.types import Failed, RewardSpec

TURN_S = 0.02
"""How long a process works on the calls of a message before it answers what it has done."""
PULSE_S, STALL_S = 0.05, 0.1
"""How often an event loop has to come round, and how much later it may."""
CLOSING_LIMIT_S = 0.3
"""Time that cancelled coroutines have to clean up after themselves."""
_SERVICES = frozenset({"openai", "anthropic", "litellm", "httpx", "httpcore", "requests", "urllib3", "aiohttp"})
"""Packages whose exceptions come from asking a server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward that can be called."""

    function: RewardFunction
    loaded: Loaded
    """What the driver knows of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one reward."""

    reward: int
    """Its index."""
    size: int
    """Trajectories that it covers."""
    limit_s: float
    """Seconds after which a coroutine is cancelled."""
    arguments: bytes
    """Pickled keyword arguments."""


def open_rewards(specs: Sequence[RewardSpec]) -> list[Reward]:
    """Import and build every reward and decide how it is called; ValueError says what is wrong with one."""
    rewards = []
    for spec in specs:
        function, is_built = build(load(spec.path), spec.path, spec.args)
        plan = plan_call(function, replace(spec, args={}) if is_built else spec)
        loaded = Loaded(plan=plan, sources=reward_sources(spec.path, function), is_built=is_built)
        rewards.append(Reward(function=function, loaded=loaded))
    for spec, reward in zip(specs, rewards, strict=True):
        _call_method(reward.function, "setup", spec)
    return rewards


def close_rewards(specs: Sequence[RewardSpec], rewards: Sequence[Reward]) -> None:
    """Let the rewards that are objects give back what they hold."""
    for spec, reward in zip(specs, rewards, strict=True):
        _call_method(reward.function, "close", spec)


def _call_method(function: RewardFunction, name: str, spec: RewardSpec) -> None:
    method = None if inspect.isroutine(function) else getattr(function, name, None)
    if not callable(method):
        return
    try:
        result = method()
        if inspect.isawaitable(result):
            _event_loop().run(_finish(result))
    except Exception as error:
        raise ValueError(f"reward {spec.path}: its {name}() failed:\n{describe_error(error)}") from error


def run(plan: CallPlan, function: RewardFunction, arguments: Mapping[str, Any], size: int) -> Result:
    """Call a reward and read its result: `size` outcomes, one per trajectory that the call covers.

    Whatever the reward raises becomes `Failed`, except KeyboardInterrupt, which is the user's.
    """
    notes, began = Notes(size, is_sample=plan.kind == "sample"), time.monotonic()
    try:
        result = call_here(function, notes.offered(arguments))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and CancelledError too: a reward does not end the run
        return _raised(error, size, began)
    return _returned(plan, result, notes, size, began)


def call_here(function: RewardFunction, arguments: Mapping[str, Any]) -> Any:
    """What a reward returns, a coroutine's result where it is `async def`. Raises whatever it raises."""
    result = function(**arguments)
    return _event_loop().run(_finish(result)) if inspect.isawaitable(result) else result


async def run_async(call: Call, reward: Reward) -> Result:
    """Like `run`, for an `async def` reward, which is cancelled at the deadline.

    One that does not wait when the deadline passes cannot be cancelled; what it gives then comes too late.
    """
    import asyncio

    began, plan = time.monotonic(), reward.loaded.plan
    notes = Notes(call.size, is_sample=plan.kind == "sample")
    try:
        async with asyncio.timeout(call.limit_s) as deadline:
            result = await reward.function(**notes.offered(pickle.loads(call.arguments)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if deadline.expired() and isinstance(error, TimeoutError):
            return _timed_out(call, began, where=innermost_line(error.__cause__ or error))
        return _raised(error, call.size, began)
    if time.monotonic() - began > call.limit_s:
        return _timed_out(call, began)
    return _returned(plan, result, notes, call.size, began)


class Pulse:
    """Tells whether the event loop was held up, so that a call may have come too late by no fault of its own."""

    def __init__(self) -> None:
        self._last = self._stalled = time.monotonic()

    async def beat(self) -> None:
        """Note each time that the loop comes back too late, until this is cancelled."""
        import asyncio

        while True:
            await asyncio.sleep(PULSE_S)
            self._look()
            self._last = time.monotonic()

    def has_stalled(self, since: float) -> bool:
        """Whether the loop was held up after that time."""
        self._look()
        return self._stalled > since

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._last > PULSE_S + STALL_S:
            self._stalled = now


def _returned(plan: CallPlan, result: Any, notes: Notes, size: int, began: float) -> Result:
    outcomes = [read(result)] if plan.kind == "sample" else read_many(result, size)
    seconds = time.monotonic() - began
    return Result(outcomes=outcomes, seconds=seconds, metrics=notes.metrics, extras=notes.extras)


def _raised(error: BaseException, size: int, began: float) -> Result:
    is_server = isinstance(error, ServerError | ConnectionError) or any(
        each.__module__.partition(".")[0] in _SERVICES or each.__name__ == "URLError" for each in type(error).__mro__
    )
    kind, fault = ("server", "server") if is_server else ("error", "reward")
    failure = failed(kind, describe_error(error), fault=fault, where=innermost_line(error))  # type: ignore[arg-type]
    return _failed(failure, size, began)


def _timed_out(call: Call, began: float, where: str = "") -> Result:
    return _failed(failed("timeout", f"no result within {call.limit_s:g} s", where=where), call.size, began)


def _failed(failure: Failed, size: int, began: float) -> Result:
    return Result(outcomes=[failure] * size, seconds=time.monotonic() - began)


async def _finish(awaitable: Any) -> Any:
    return await awaitable


@functools.cache
def _event_loop() -> Any:
    import asyncio  # costs 40 ms, and few rewards are async
    import atexit

    # One loop for the life of the process: a client that a reward keeps between calls is bound to its loop.
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def main(connection: Connection) -> None:
    """Load the rewards that the driver names and answer its calls, until it says to finish or is gone."""
    process_id = os.getpid()
    specs, descriptor = connection.recv()
    progress = Progress(descriptor)
    write_when_asked(descriptor)
    try:
        rewards = open_rewards(specs)
    except ValueError as error:
        connection.send_bytes(write_start(Invalid(message=str(error))))
        return
    connection.send_bytes(write_start([reward.loaded for reward in rewards]))
    while request := _next_request(connection):
        number, calls = pickle.loads(request)

        def answer(results: Mapping[int, Result], *, is_last: bool, number: int = number) -> None:
            if os.getpid() != process_id:  # a child that the reward forked came back out of the reward
                os._exit(1)
            connection.send_bytes(write_results(number, results, is_last=is_last))

        if rewards[calls[0].reward].loaded.plan.is_async:
            _event_loop().run(_answer_at_once(calls, rewards, answer))
        else:
            _answer_in_turn(calls, rewards, answer, progress)
    with suppress(ValueError):  # nobody reads it any more; what it printed is in the log
        close_rewards(specs, rewards)


def _answer_in_turn(
    calls: Sequence[Call], rewards: Sequence[Reward], answer: Callable[..., None], progress: Progress
) -> None:
    until, results = time.monotonic() + TURN_S, {}
    for position, call in enumerate(calls):
        progress.begin(position)
        results[position] = _call(call, rewards[call.reward])
        if time.monotonic() >= until:
            break
    progress.begin(len(calls))  # none of them: what ends the process now may be the work of any
    answer(results, is_last=True)


def _call(call: Call, reward: Reward) -> Result:
    began = time.monotonic()
    try:
        arguments = pickle.loads(call.arguments)  # may need a class that only the driver has
    except Exception as error:
        return _raised(error, call.size, began)
    return run(reward.loaded.plan, reward.function, arguments, call.size)


async def _answer_at_once(calls: Sequence[Call], rewards: Sequence[Reward], answer: Callable[..., None]) -> None:
    import asyncio

    pulse = Pulse()

    async def one(position: int, call: Call) -> None:
        began = time.monotonic()
        result = await run_async(call, rewards[call.reward])
        is_late = any(isinstance(o, Failed) and o.kind == "timeout" for o in result.outcomes)
        # Among several another one may have kept the loop busy: then nobody is blamed, and the driver asks again.
        if not (is_late and len(calls) > 1 and pulse.has_stalled(began)):
            answer({position: result}, is_last=False)

    beating = asyncio.ensure_future(pulse.beat())
    tasks: list[Awaitable[None]] = [asyncio.ensure_future(one(*each)) for each in enumerate(calls)]
    await asyncio.gather(*tasks)
    beating.cancel()
    # Tasks that a reward started and left behind would go on beside the next calls.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=CLOSING_LIMIT_S)
    answer({}, is_last=True)


def _next_request(connection: Connection) -> bytes:
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):  # the driver died: no exit handlers, they might wait for something
        os._exit(0)
