"""Which tasks a step works on, and what is measured of its groups."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rlft.curves.statistics import mean_interval
from rlft.objectives.signal import has_signal
from rlft.train.rl.metrics import describe, is_of_the_machine
from rlft.train.task_order import tasks_of_step
from rlft.types import Abstain, Failed, Group, Outcome, Score
from tests.fakes import letters, made_up_group

FAILED = Failed(kind="error", message="it raised", reproduce="")
ABSTAINED = Abstain(reason="not applicable")


def ids_of_steps(num_tasks: int, count: int, *, steps: range, seed: int = 0) -> list[list[str]]:
    tasks = letters(num_tasks).train
    return [[task.id for task in tasks_of_step(tasks, step=step, count=count, seed=seed)] for step in steps]


def scored(value: float, **parts: float) -> Score:
    return Score(value=value, parts=parts)


# tasks_of_step


@pytest.mark.parametrize(("num_tasks", "count"), [(8, 2), (8, 8), (7, 3), (5, 1), (10, 4)])
def test_no_step_and_no_epoch_holds_a_task_twice(num_tasks: int, count: int) -> None:
    steps_per_epoch = num_tasks // count
    for epoch in range(5):
        first = 1 + epoch * steps_per_epoch
        steps = ids_of_steps(num_tasks, count, steps=range(first, first + steps_per_epoch))
        assert [len(step) for step in steps] == [count] * steps_per_epoch
        seen = [task_id for step in steps for task_id in step]
        assert len(set(seen)) == len(seen) == steps_per_epoch * count


@pytest.mark.parametrize(("num_tasks", "count"), [(8, 2), (7, 3), (10, 4)])
def test_every_task_is_reached(num_tasks: int, count: int) -> None:
    # The tail of an epoch is another one each time: what one epoch leaves out, the next ones take.
    seen = {task_id for step in ids_of_steps(num_tasks, count, steps=range(1, 40)) for task_id in step}
    assert seen == {task.id for task in letters(num_tasks).train}


def test_an_epoch_is_another_permutation() -> None:
    first, second = (ids_of_steps(16, 16, steps=range(epoch, epoch + 1))[0] for epoch in (1, 2))
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != [task.id for task in letters(16).train]


def test_the_tasks_are_a_function_of_seed_and_step() -> None:
    # Asked in another order, as after a resume, a step has the same tasks; with another seed it has others.
    forward = ids_of_steps(9, 4, steps=range(1, 7))
    backward = ids_of_steps(9, 4, steps=range(6, 0, -1))
    assert backward[::-1] == forward
    assert ids_of_steps(9, 4, steps=range(1, 7), seed=1) != forward


def test_more_tasks_per_step_than_tasks() -> None:
    with pytest.raises(ValueError, match="tasks_per_step is 9, but the environment has 8"):
        tasks_of_step(letters(8).train, step=1, count=9, seed=0)


# has_signal


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([1.0, 0.0], True),
        ([1.0, 1.0, 1.0], False),
        ([0.0, 0.0], False),
        ([1.0, FAILED, 1.0], False),  # a failure counted as 0 would be a difference
        ([1.0, ABSTAINED, FAILED], False),
        ([1.0, FAILED, 0.5], True),
        ([FAILED, FAILED], False),
    ],
)
def test_has_signal(outcomes: list[float | Outcome], expected: bool) -> None:
    assert has_signal(made_up_group(outcomes)) is expected


def test_turns_are_a_signal_where_they_are_judged() -> None:
    group = made_up_group([Score(value=1.0, turns=(1.0, 0.0)), Score(value=1.0, turns=(0.0, 1.0))])
    assert (has_signal(group), has_signal(group, by_turn=True)) == (False, True)


def test_what_a_judges_cache_decides_differs_between_identical_runs() -> None:
    names = ["reward/logged/j/known", "reward/logged/j/drift", "time/step", "reward/logged/j/tokens", "reward/known"]
    assert [is_of_the_machine(name) for name in names] == [True, True, True, False, False]


# describe


def test_describe_by_hand() -> None:
    # Group a: 1, 0, 1, 0 (mean 1/2). Group b: 1, 1, failed, abstained (mean 1). Group c: 0, 0 (mean 0).
    groups = [
        made_up_group([1.0, 0.0, 1.0, 0.0], task_id="a", lengths=[1, 2, 3, 4]),
        made_up_group([1.0, 1.0, FAILED, ABSTAINED], task_id="b", lengths=[5, 6, 7, 8]),
        made_up_group([0.0, 0.0], task_id="c", lengths=[4, 20], finish_reason="length"),
    ]
    # Mean of the task means (1/2 + 1 + 0) / 3 = 1/2; with what was not seen, 0 and 1, the interval is all of [0, 1].
    assert describe(groups) == pytest.approx(
        {
            "reward/mean": 0.5,
            "reward/low": 0.0,
            "reward/high": 1.0,
            "reward/max": 1.0,
            "reward/std": 0.5,  # of the 8 scores, 4 of them 1 and 4 of them 0
            "reward/failed": 1.0,
            "reward/abstained": 1.0,
            "groups/total": 3.0,
            "groups/with_signal": 1 / 3,  # a
            "groups/solved_all": 1 / 3,  # b
            "groups/solved_none": 1 / 3,  # c
            "rollout/length": 60 / 10,  # 1 + ... + 8 = 36, + 24
            "rollout/tokens": 60.0,
            "rollout/truncated": 2 / 10,
            "low/groups/with_signal": 0.0,
            "high/groups/with_signal": 1.0,
            "low/groups/solved_all": 0.0,  # one of three groups, as each of these
            "high/groups/solved_all": 1.0,
            "low/groups/solved_none": 0.0,
            "high/groups/solved_none": 1.0,
            "low/rollout/truncated": 0.0,
            "high/rollout/truncated": 1.0,
        }
    )


def test_shares_of_groups_and_of_cut_completions_have_intervals() -> None:
    scores = [[1.0, 1.0]] * 6 + [[0.0, 0.0]] * 2 + [[0.0, 1.0]] * 24
    groups = [
        made_up_group(each, task_id=str(index), finish_reason="length" if index < 4 else "stop")
        for index, each in enumerate(scores)
    ]
    metrics = describe(groups)
    for name, count in (("groups/solved_all", 6), ("groups/solved_none", 2), ("rollout/truncated", 4)):
        interval = mean_interval([[float(index < count)] for index in range(32)])
        found = metrics[name], metrics[f"low/{name}"], metrics[f"high/{name}"]
        assert found == pytest.approx((count / 32, interval.low, interval.high)), name
    equal = describe([made_up_group([1.0, 1.0], task_id=str(index)) for index in range(4)])
    assert equal["groups/solved_all"] == 0  # which reward is the highest that there can be is not known
    assert "low/groups/solved_all" not in equal


@pytest.mark.parametrize("hole", [FAILED, ABSTAINED], ids=["failed", "abstained"])
def test_a_hole_changes_no_reward(hole: Outcome) -> None:
    whole = describe([made_up_group([0.5, 1.0], task_id="a"), made_up_group([0.0, 1.0], task_id="b")])
    holed = describe([made_up_group([0.5, hole, 1.0, hole], task_id="a"), made_up_group([hole, 0.0, 1.0], task_id="b")])
    names = [name for name in whole if name.startswith(("reward/", "groups/")) and not name.endswith("ed")]
    assert "reward/mean" in names
    assert {name: holed[name] for name in names} == pytest.approx({name: whole[name] for name in names})
    assert holed["reward/failed"] + holed["reward/abstained"] == 3


def test_a_task_whose_samples_all_failed_is_absent_from_the_mean() -> None:
    metrics = describe([made_up_group([1.0, 1.0], task_id="a"), made_up_group([FAILED, FAILED], task_id="b")])
    assert metrics["reward/mean"] == 1.0
    assert metrics["reward/std"] == 0.0
    assert metrics["groups/total"] == 2
    assert metrics["groups/with_signal"] == 0


def test_a_step_without_any_score_has_no_reward() -> None:
    metrics = describe([made_up_group([FAILED, ABSTAINED]), made_up_group([FAILED])])
    assert (metrics["reward/failed"], metrics["reward/abstained"]) == (2, 1)
    assert not [name for name in metrics if name.startswith("reward/") and not name.endswith("ed")]


def test_one_group_alone_has_no_interval() -> None:
    metrics = describe([made_up_group([1.0, 0.0])])
    assert metrics["reward/mean"] == 0.5
    assert "reward/low" not in metrics
    assert not any(math.isnan(value) for value in metrics.values())


def test_parts_are_averaged_where_they_are_given() -> None:
    # `right` over tasks: (1 + 0) / 2 = 0.5 in a, 1 in b: 0.75. `extra` stands on one sample only: 7, not 7 / 3.
    groups = [
        made_up_group([scored(1, right=1.0), scored(0, right=0.0, extra=7.0), FAILED], task_id="a"),
        made_up_group([scored(1, right=1.0)], task_id="b"),
    ]
    metrics = describe(groups)
    assert metrics["reward/part/right"] == 0.75
    assert metrics["reward/part/extra"] == 7.0


def test_failures_are_counted_by_reward_whatever_its_weight() -> None:
    group = made_up_group([scored(1, right=1.0), FAILED, ABSTAINED, 0.0])
    failed = [{"style": FAILED}, {"right": FAILED, "style": FAILED}, {"style": FAILED}, {}]
    trajectories = [replace(t, failed_parts=f) for t, f in zip(group.trajectories, failed, strict=True)]
    metrics = describe([replace(group, trajectories=tuple(trajectories))])
    assert (metrics["reward/failed/style"], metrics["reward/failed/right"], metrics["reward/failed"]) == (3, 1, 1)
    assert not [name for name in describe([group]) if name.startswith("reward/failed/")]


def test_the_mean_is_clustered_by_task() -> None:
    # A task whose other samples failed keeps its weight: (0 + 1) / 2, not the mean 2/3 of the three scores.
    groups = [made_up_group([0.0, FAILED], task_id="a"), made_up_group([1.0, 1.0], task_id="b")]
    metrics = describe(groups)
    assert metrics["reward/mean"] == 0.5
    interval = mean_interval([[0.0], [1.0, 1.0]])
    assert (metrics["reward/low"], metrics["reward/high"]) == pytest.approx((interval.low, interval.high))


def test_describe_does_not_depend_on_the_order() -> None:
    groups = [
        made_up_group([0.3, 0.1, FAILED, 0.9], task_id="a"),
        made_up_group([1.0, 0.0], task_id="b"),
        made_up_group([0.2, 0.2, 0.7], task_id="c"),
    ]

    def turned(group: Group) -> Group:
        return replace(group, trajectories=group.trajectories[::-1])

    assert describe([turned(group) for group in reversed(groups)]) == pytest.approx(describe(groups))


def test_tasks_that_are_not_drawn_at_random_stand_for_themselves() -> None:
    # Easy and hard tasks, answered 8 times each: the mean of tasks like them is known badly, that of these tasks well.
    scores = [[1.0] * 8] * 8 + [[0.0] * 7 + [1.0]] * 8
    groups = [made_up_group(each, task_id=str(index)) for index, each in enumerate(scores)]
    drawn, listed = describe(groups), describe(groups, order="listed")
    assert drawn["reward/mean"] == listed["reward/mean"] == pytest.approx(72 / 128)
    assert drawn["reward/high"] - drawn["reward/low"] > 2 * (listed["reward/high"] - listed["reward/low"])
    assert listed["reward/low"] < 72 / 128 < listed["reward/high"]
