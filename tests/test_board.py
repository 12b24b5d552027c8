"""The board of chunks by itself: order, redoing, stragglers, ends. No Ray, no model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rlft.rollout.board import Board, Submission
from tests.fakes_pool import fake_chunks


def on_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a coroutine as a test."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 10))

    run.__name__ = test.__name__
    return run


def submit(board: Board, *names: str, step: int = 1, stream: str = "train") -> Submission:
    submission = Submission(fake_chunks(names, step=step, stream=stream), adapter=None)
    board.add(submission)
    return submission


async def take(board: Board) -> Any:
    return await asyncio.wait_for(board.take(), 1)


def names(jobs: list[Any]) -> list[str]:
    return [job.chunk.tasks[0].id for job in jobs]


@on_loop
async def test_earlier_steps_come_first() -> None:
    board = Board()
    submit(board, "b1", "b2", step=2)
    submit(board, "a1", step=1)
    submit(board, "e1", step=0)
    submit(board, "a2", step=1)
    assert names([await take(board) for _ in range(5)]) == ["e1", "a1", "a2", "b1", "b2"]


@on_loop
async def test_a_job_that_was_given_back_is_the_next_one() -> None:
    board = Board()
    submission = submit(board, "a", "b")
    job = await take(board)
    board.give_back(job)
    assert await take(board) is job
    board.finish(job, ["A"])  # type: ignore[list-item]
    board.finish(await take(board), ["B"])  # type: ignore[list-item]
    assert submission.collect() == ["A", "B"]


@on_loop
async def test_the_suspect_is_the_open_job_that_cost_most_workers() -> None:
    board = Board()
    submit(board, "a", "b", "c")
    assert board.suspect is None
    for is_suspect in (True, False, True):  # a is always the next one
        board.give_back(await take(board), is_suspect=is_suspect)
    first, second = await take(board), await take(board)
    assert (first.losses, second.losses) == (2, 0)
    assert board.suspect is first
    board.finish(first, [])
    assert board.suspect is None
    board.give_back(second)
    assert board.suspect is second


@on_loop
async def test_an_idle_worker_waits_for_work() -> None:
    board = Board()
    waiting = asyncio.create_task(board.take())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    submit(board, "a")
    assert names([await waiting]) == ["a"]


async def late(board: Board) -> tuple[Submission, Any]:
    """A board with a job that is late: three others took next to no time."""
    submission = submit(board, "a", "b", "c", "d")
    for _ in range(3):
        board.finish(await take(board), [])
    job = await take(board)
    await asyncio.sleep(0.02)
    return submission, job


@on_loop
async def test_a_late_job_is_given_out_once_more_and_no_more() -> None:
    board = Board(hedge_after=2)
    _, job = await late(board)
    assert await take(board) is job
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(board.take(), 0.1)
    assert board.hedged == 1


@on_loop
async def test_a_late_job_of_another_stream_is_not_measured_by_this_one() -> None:
    board = Board(hedge_after=2)
    _, job = await late(board)
    board.finish(job, [])
    submit(board, "slow", stream="evaluate", step=0)
    await take(board)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(board.take(), 0.1)


@on_loop
async def test_without_hedging_a_late_job_stays_where_it_is() -> None:
    board = Board()
    await late(board)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(board.take(), 0.1)


@on_loop
async def test_the_loser_of_a_hedge_changes_nothing() -> None:
    board = Board(hedge_after=2)
    submission, job = await late(board)
    again = await take(board)
    board.finish(again, ["first"])  # type: ignore[list-item]
    board.fail(job, ValueError("too late"))
    assert submission.collect() == ["first"]
    assert not board.running


@on_loop
async def test_a_lost_hedge_is_redone_only_when_nobody_has_it() -> None:
    board = Board(hedge_after=2)
    submission, job = await late(board)
    await take(board)
    board.give_back(job)  # the other one still has it
    assert not board.has_waiting
    board.give_back(job)
    assert await take(board) is job
    board.finish(job, ["at last"])  # type: ignore[list-item]
    assert submission.collect() == ["at last"]


@on_loop
async def test_a_worker_that_is_lost_after_its_chunk_was_done_elsewhere_costs_no_chunk() -> None:
    board = Board(hedge_after=2)
    _, job = await late(board)
    board.finish(await take(board), [])
    board.give_back(job)
    assert not board.has_waiting
    assert not board.running


@on_loop
async def test_a_failed_chunk_ends_its_submission_alone() -> None:
    board = Board()
    failed, other = submit(board, "a", "b", "c"), submit(board, "d")
    first, second = await take(board), await take(board)
    board.fail(first, KeyError("a"))
    board.finish(second, [])
    job = await take(board)
    assert names([job]) == ["d"]  # c is taken down
    board.finish(job, ["D"])  # type: ignore[list-item]
    assert other.collect() == ["D"]
    with pytest.raises(KeyError):
        failed.collect()


@on_loop
async def test_a_broken_board_ends_everything() -> None:
    board = Board()
    submissions = [submit(board, "a", "b"), submit(board, "c")]
    await take(board)
    board.break_(RuntimeError("the last one died"))
    board.break_(RuntimeError("another one died too"))
    submissions.append(submit(board, "d"))
    for submission in submissions:
        with pytest.raises(RuntimeError, match="the last one died"):
            submission.collect()


@on_loop
async def test_busy_time_is_that_with_at_least_one_job() -> None:
    board = Board()
    submit(board, "a", "b")
    await asyncio.sleep(0.05)
    assert board.busy_s == 0
    first, second = await take(board), await take(board)
    await asyncio.sleep(0.1)
    board.finish(first, [])
    await asyncio.sleep(0.1)
    board.finish(second, [])
    busy = board.busy_s
    await asyncio.sleep(0.05)
    assert board.busy_s == busy
    assert 0.19 < busy < 0.4
