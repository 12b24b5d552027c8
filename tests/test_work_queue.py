"""The queue of chunks by itself: order, redoing, stragglers, ends. No Ray, no model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rlft.rollout.work_queue import Submission, WorkQueue
from tests.fakes_pool import fake_chunks


def on_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a coroutine as a test."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 10))

    run.__name__ = test.__name__
    return run


def submit(queue: WorkQueue, *names: str, step: int = 1, stream: str = "train") -> Submission:
    submission = Submission(fake_chunks(names, step=step, stream=stream), adapter=None)
    queue.add(submission)
    return submission


async def take(queue: WorkQueue) -> Any:
    return await asyncio.wait_for(queue.take(), 1)


def names(jobs: list[Any]) -> list[str]:
    return [job.chunk.tasks[0].id for job in jobs]


@on_loop
async def test_earlier_steps_come_first() -> None:
    queue = WorkQueue()
    submit(queue, "b1", "b2", step=2)
    submit(queue, "a1", step=1)
    submit(queue, "e1", step=0)
    submit(queue, "a2", step=1)
    assert names([await take(queue) for _ in range(5)]) == ["e1", "a1", "a2", "b1", "b2"]


@on_loop
async def test_a_job_that_was_given_back_is_the_next_one() -> None:
    queue = WorkQueue()
    submission = submit(queue, "a", "b")
    job = await take(queue)
    queue.give_back(job)
    assert await take(queue) is job
    queue.finish(job, ["A"])  # type: ignore[list-item]
    queue.finish(await take(queue), ["B"])  # type: ignore[list-item]
    assert submission.collect() == ["A", "B"]


@on_loop
async def test_the_suspect_is_the_open_job_that_cost_most_workers() -> None:
    queue = WorkQueue()
    submit(queue, "a", "b", "c")
    assert queue.suspect is None
    for is_suspect in (True, False, True):  # a is always the next one
        queue.give_back(await take(queue), is_suspect=is_suspect)
    first, second = await take(queue), await take(queue)
    assert (first.losses, second.losses) == (2, 0)
    assert queue.suspect is first
    queue.finish(first, [])
    assert queue.suspect is None
    queue.give_back(second)
    assert queue.suspect is second


@on_loop
async def test_an_idle_worker_waits_for_work() -> None:
    queue = WorkQueue()
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    submit(queue, "a")
    assert names([await waiting]) == ["a"]


async def late(queue: WorkQueue) -> tuple[Submission, Any]:
    """A queue with a job that is late: three others took next to no time."""
    submission = submit(queue, "a", "b", "c", "d")
    for _ in range(3):
        queue.finish(await take(queue), [])
    job = await take(queue)
    await asyncio.sleep(0.02)
    return submission, job


@on_loop
async def test_a_late_job_is_given_out_once_more_and_no_more() -> None:
    queue = WorkQueue(hedge_after=2)
    _, job = await late(queue)
    assert await take(queue) is job
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.1)
    assert queue.hedged == 1


@on_loop
async def test_a_late_job_of_another_stream_is_not_measured_by_this_one() -> None:
    queue = WorkQueue(hedge_after=2)
    _, job = await late(queue)
    queue.finish(job, [])
    submit(queue, "slow", stream="evaluate", step=0)
    await take(queue)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.1)


@on_loop
async def test_without_hedging_a_late_job_stays_where_it_is() -> None:
    queue = WorkQueue()
    await late(queue)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.1)


@on_loop
async def test_the_loser_of_a_hedge_changes_nothing() -> None:
    queue = WorkQueue(hedge_after=2)
    submission, job = await late(queue)
    again = await take(queue)
    queue.finish(again, ["first"])  # type: ignore[list-item]
    queue.fail(job, ValueError("too late"))
    assert submission.collect() == ["first"]
    assert not queue.running


@on_loop
async def test_a_lost_hedge_is_redone_only_when_nobody_has_it() -> None:
    queue = WorkQueue(hedge_after=2)
    submission, job = await late(queue)
    await take(queue)
    queue.give_back(job)  # the other one still has it
    assert not queue.has_waiting
    queue.give_back(job)
    assert await take(queue) is job
    queue.finish(job, ["at last"])  # type: ignore[list-item]
    assert submission.collect() == ["at last"]


@on_loop
async def test_a_worker_that_is_lost_after_its_chunk_was_done_elsewhere_costs_no_chunk() -> None:
    queue = WorkQueue(hedge_after=2)
    _, job = await late(queue)
    queue.finish(await take(queue), [])
    queue.give_back(job)
    assert not queue.has_waiting
    assert not queue.running


@on_loop
async def test_a_failed_chunk_ends_its_submission_alone() -> None:
    queue = WorkQueue()
    failed, other = submit(queue, "a", "b", "c"), submit(queue, "d")
    first, second = await take(queue), await take(queue)
    queue.fail(first, KeyError("a"))
    queue.finish(second, [])
    job = await take(queue)
    assert names([job]) == ["d"]  # c is taken down
    queue.finish(job, ["D"])  # type: ignore[list-item]
    assert other.collect() == ["D"]
    with pytest.raises(KeyError):
        failed.collect()


@on_loop
async def test_a_broken_board_ends_everything() -> None:
    queue = WorkQueue()
    submissions = [submit(queue, "a", "b"), submit(queue, "c")]
    await take(queue)
    queue.break_(RuntimeError("the last one died"))
    queue.break_(RuntimeError("another one died too"))
    submissions.append(submit(queue, "d"))
    for submission in submissions:
        with pytest.raises(RuntimeError, match="the last one died"):
            submission.collect()


@on_loop
async def test_busy_time_is_that_with_at_least_one_job() -> None:
    queue = WorkQueue()
    submit(queue, "a", "b")
    await asyncio.sleep(0.05)
    assert queue.busy_s == 0
    first, second = await take(queue), await take(queue)
    await asyncio.sleep(0.1)
    queue.finish(first, [])
    await asyncio.sleep(0.1)
    queue.finish(second, [])
    busy = queue.busy_s
    await asyncio.sleep(0.05)
    assert queue.busy_s == busy
    assert 0.19 < busy < 0.4
