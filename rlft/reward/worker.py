"""Runs reward functions: the body of a scoring process, and what `workers: 0` does in the driver.

A scoring process is a fresh interpreter that imports `rlft.types`, `rlft.reward` and the reward modules;
torch and ray only if a reward does. It serves one driver over an inherited socket (`main`):

    driver -> process   the reward specs                    once
    process -> driver   the rewards, or what is wrong       once; starting up is not charged to any sample
    driver -> process   (number of the call, index of the reward, number of samples, keyword arguments)
    process -> driver   the number of the call, outcomes, seconds
    driver -> process   the empty message: finish

The driver's messages are pickles; the answers are plain data (`answers.py`), since nothing that a reward does may run
in the driver. Deadlines are the driver's business (`scoring.py`): a reward stuck in C code cannot be interrupted from
here.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from rlft.common.by_path import describe_error
from rlft.reward.answers import Invalid, Loaded, write_outcomes, write_start
from rlft.reward.contract import CallPlan, RewardFunction, failed, plan_call, read, read_many
from rlft.reward.loading import build, function_sources, load
from rlft.types import Outcome, RewardSpec


def open_rewards(specs: Sequence[RewardSpec]) -> tuple[list[RewardFunction], list[Loaded]]:
    """Import every reward and decide how it is called; ValueError says what is wrong with one."""
    functions, loaded = [], []
    for spec in specs:
        function, is_built = build(load(spec.path), spec.path, spec.args)
        plan = plan_call(function, replace(spec, args={}) if is_built else spec)
        functions.append(function)
        loaded.append(Loaded(plan=plan, sources=function_sources(function), is_built=is_built))
    return functions, loaded


def run(plan: CallPlan, function: RewardFunction, arguments: Mapping[str, Any], size: int) -> list[Outcome]:
    """Call a reward and read its result: `size` outcomes, one per trajectory that the call covers.

    Whatever the reward raises becomes `Failed`, except KeyboardInterrupt, which is the user's.
    """
    try:
        result = function(**arguments)
        if inspect.isawaitable(result):
            result = _event_loop().run(_finish(result))
        return [read(result)] if plan.kind == "sample" else read_many(result, size)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and CancelledError too: a reward does not end the run
        return [failed("error", describe_error(error))] * size


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
    specs = connection.recv()
    try:
        functions, loaded = open_rewards(specs)
    except ValueError as error:
        connection.send_bytes(write_start(Invalid(message=str(error))))
        return
    connection.send_bytes(write_start(loaded))
    while request := _next_request(connection):
        started = time.monotonic()
        number, index, size, arguments = pickle.loads(request)
        outcomes = _call(arguments, size, functions[index], loaded[index].plan)
        if os.getpid() != process_id:  # a child that the reward forked came back out of the reward
            os._exit(1)
        connection.send_bytes(write_outcomes(number, outcomes, time.monotonic() - started))


def _next_request(connection: Connection) -> bytes:
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):  # the driver died: no exit handlers, they might wait for something
        os._exit(0)


def _call(pickled: bytes, size: int, function: RewardFunction, plan: CallPlan) -> list[Outcome]:
    try:
        arguments = pickle.loads(pickled)  # may need a class that only the driver has
    except Exception as error:
        return [failed("error", describe_error(error))] * size
    return run(plan, function, arguments, size)
