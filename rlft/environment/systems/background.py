"""Conversations that another system's code leads: it asks the policy, where an `Episode` is asked.

All of them run in one event loop on a thread of its own, so that they wait together and a client that one of them keeps
finds its loop again in the next turn.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from rlft.environment.systems.common import EpisodeRandom

Ask = Callable[[Any], Awaitable[Any]]
"""What the other system's code awaits to get the policy's reply to a prompt."""

_RANDOM: ContextVar[EpisodeRandom] = ContextVar("random")
"""Random numbers of the conversation that a task belongs to; the tasks that it starts inherit them."""


class Conversation:
    """A coroutine that asks the policy, run in the background and answered message by message."""

    def __init__(self, run: Callable[[Ask], Coroutine[Any, Any, Any]], seed: int) -> None:
        """Make a conversation, which does not begin yet.

        Args:
            run: the other system's code; it gets `ask`.
            seed: of the global random numbers that it sees.
        """
        self._run, self._random = run, EpisodeRandom(seed)
        self.result: Any = None
        """What `run` returned, once it has ended."""

    def start(self) -> Any:
        """Run up to the first question.

        Returns:
            What is asked; None at the end.

        Raises:
            Exception: what `run` raises.
        """
        return asyncio.run_coroutine_threadsafe(self._start(), _loop()).result()

    async def reply(self, message: Any) -> Any:
        """Answer, and run up to the next question; see `start`."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._reply(message), _loop()))

    def close(self) -> None:
        """Cancel what still waits for an answer, and let it clean up."""
        asyncio.run_coroutine_threadsafe(self._close(), _loop()).result()

    async def _start(self) -> Any:
        self._questions: asyncio.Queue[Any] = asyncio.Queue()
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        _RANDOM.set(self._random)
        self._task = asyncio.ensure_future(self._run(self._ask))
        return await self._next()

    async def _reply(self, message: Any) -> Any:
        self._replies.put_nowait(message)
        return await self._next()

    async def _ask(self, question: Any) -> Any:
        self._questions.put_nowait(question)
        return await self._replies.get()

    async def _next(self) -> Any:
        question = asyncio.ensure_future(self._questions.get())
        await asyncio.wait({question, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if question.done():
            return question.result()
        question.cancel()
        self.result = self._task.result()
        return None

    async def _close(self) -> None:
        if hasattr(self, "_task"):
            self._task.cancel()
            await asyncio.wait({self._task})


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all conversations, on a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(_make_task)
    threading.Thread(target=loop.run_forever, name="rlft-conversations", daemon=True).start()
    return loop


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task whose steps draw the random numbers of the conversation that started it."""
    random_ = _RANDOM.get(None)
    return asyncio.Task(random_.run(coroutine) if random_ else coroutine, loop=loop, **options)
