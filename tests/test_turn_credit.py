"""Advantages by turn, against loops that read like their definition."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlft.learner.batch import collate
from rlft.objectives.algorithm import PolicyObjective
from rlft.objectives.batch_advantages import batch_advantages
from rlft.objectives.presets import PRESETS
from rlft.types import Batch, Completion, Group, Score, Task, Trajectory, Turn


def group(name: str, *episodes: list[tuple[int, float]]) -> Group:
    """Samples of a task, each with (tokens, reward) of its turns."""
    task = Task(id=name, messages=({"role": "user", "content": "go"},))
    trajectories = []
    for index, episode in enumerate(episodes):
        turns = []
        for number, (tokens, _) in enumerate(episode):
            completion = Completion(
                token_ids=(5,) * tokens,
                logprobs=(-0.5,) * tokens,
                finish_reason="stop",
                adapter_version=0,
                adapter_hash="",
            )
            turns.append(Turn(prompt_ids=(1, 2) if number else (1,), completion=completion))
        rewards = tuple(reward for _, reward in episode)
        outcome = Score(value=sum(rewards), turns=rewards)
        trajectories.append(
            Trajectory(task=task, sample_index=index, seed=index, turns=tuple(turns), text="", outcome=outcome)
        )
    return Group(task=task, trajectories=tuple(trajectories))


def batch_of(seed: int) -> tuple[Batch, list[Group]]:
    draw = random.Random(seed)
    groups = [
        group(
            name,
            *(
                [(draw.randint(1, 4), draw.choice([0.0, 1.0, -0.5])) for _ in range(draw.randint(1, 3))]
                for _ in range(draw.randint(2, 4))
            ),
        )
        for name in "abc"
    ]
    return collate(groups), groups


def made(**choices: Any) -> PolicyObjective:
    algorithm = replace(PRESETS["rloo"], preset="mine", kl="none", kl_coef=0.0, credit="turn")
    assert isinstance(algorithm, PolicyObjective)
    return replace(algorithm, **choices)


@pytest.mark.parametrize("baseline", ["leave_one_out", "group_mean", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_a_turn_is_compared_with_the_others_at_the_same_turn(baseline: str, seed: int) -> None:
    batch, groups = batch_of(seed)
    expected = []
    for each in groups:
        rewards = [t.outcome.turns for t in each.trajectories if isinstance(t.outcome, Score)]
        for own, trajectory in zip(rewards, each.trajectories, strict=True):
            for k, turn in enumerate(trajectory.turns):
                others = [sum(r[k:]) for r in rewards if len(r) > k and r is not own]
                everyone = [*others, sum(own[k:])]
                base = {
                    "none": 0.0,
                    "group_mean": sum(everyone) / len(everyone),
                    # One that nobody can be compared with has no baseline, or is its own.
                    "leave_one_out": sum(others) / len(others) if others else 0.0,
                }[baseline]
                value = sum(own[k:]) - base
                # What is taken away from all of a group first makes nothing of one that is alone.
                value = 0.0 if baseline == "leave_one_out" and not others else value
                expected += [value] * len(turn.completion.token_ids)
    advantages, _ = batch_advantages(made(baseline=baseline, scale="none"), batch, kl_coef=0.0, max_new_tokens=8)
    assert advantages.tolist() == pytest.approx(expected)


def test_a_critic_gets_the_rewards_where_they_came() -> None:
    """gamma = lambda = 1: the rewards from the token on, less the value before it."""
    batch, _ = batch_of(7)
    values = torch.linspace(-1, 1, len(batch.sequence_index))
    assert batch.turn_rewards is not None
    rewards, sequence = batch.turn_rewards.tolist(), batch.sequence_index.tolist()
    expected = [
        sum(r for r, s in zip(rewards[t:], sequence[t:], strict=True) if s == sequence[t]) - float(values[t])
        for t in range(len(rewards))
    ]
    algorithm = replace(PRESETS["ppo"], credit="turn", kl="none", kl_coef=0.0, scale="none", gamma=1.0, gae_lambda=1.0)
    advantages, returns = batch_advantages(algorithm, replace(batch, values=values), kl_coef=0.0, max_new_tokens=8)
    assert advantages.tolist() == pytest.approx(expected)
    assert returns is not None
    assert returns.tolist() == pytest.approx([a + float(v) for a, v in zip(expected, values, strict=True)])


def test_a_kl_in_the_reward_is_paid_from_its_turn_on() -> None:
    batch, _ = batch_of(3)
    reference = batch.rollout_logprobs - 0.25  # k1: 0.25 nats of each token
    batch = replace(batch, ref_logprobs=reference)
    algorithm = made(kl="k1", kl_coef=2.0, kl_in="reward", baseline="none", scale="none")
    advantages, _ = batch_advantages(algorithm, batch, kl_coef=2.0, max_new_tokens=8)
    assert batch.turn_rewards is not None
    assert batch.turn_index is not None
    rows = list(zip(batch.sequence_index.tolist(), batch.turn_index.tolist(), batch.turn_rewards.tolist(), strict=True))
    expected = [sum(r - 0.5 for s2, k2, r in rows if s2 == s and k2 >= k) for s, k, _ in rows]
    assert advantages.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("baseline", ["leave_one_out", "group_mean", "none"])
def test_it_changes_later_turns_and_never_the_first(baseline: str) -> None:
    """From the first turn on come all rewards of the episode, so its tokens get what they get under `episode`.

    What the second turn gets does not depend on what the first one earned.
    """
    lucky = [(2, 5.0), (2, 1.0)], [(1, 0.0), (3, 0.0)], [(2, -3.0), (1, 1.0)]
    plain = [(2, 0.0), (2, 1.0)], [(1, 0.0), (3, 0.0)], [(2, 0.0), (1, 1.0)]

    def advantages(episodes: Any, credit: str) -> tuple[list[float], list[float]]:
        batch = collate([group("a", *episodes)])
        algorithm = made(baseline=baseline, scale="none", credit=credit)
        values, _ = batch_advantages(algorithm, batch, kl_coef=0.0, max_new_tokens=8)
        assert batch.turn_index is not None
        turns: tuple[list[float], list[float]] = ([], [])
        for value, turn in zip(values.tolist(), batch.turn_index.tolist(), strict=True):
            turns[turn].append(value)
        return turns

    (first, second), (all_of_first, all_of_second) = advantages(lucky, "turn"), advantages(lucky, "episode")
    assert first == pytest.approx(all_of_first)
    assert second != pytest.approx(all_of_second)
    assert second == pytest.approx(advantages(plain, "turn")[1])


def learnt_first_turn(credit: str, seed: int, *, steps: int = 30, luck: float = 20.0) -> float:
    """Probability of the action that the first turn pays for, after some steps of a policy with one logit.

    The second turn earns 0 or `luck`, whatever is done. The critic knows which turn it is and nothing else, and begins
    with the right values; both are updated by what `batch_advantages` says.
    """
    draw, logit, values = random.Random(seed), 0.0, [luck / 2 + 0.5, luck / 2]
    algorithm = replace(PRESETS["ppo"], credit=credit, kl="none", kl_coef=0.0, scale="none", gamma=1.0, gae_lambda=0.0)
    for _ in range(steps):
        probability = 1 / (1 + math.exp(-logit))
        actions = [float(draw.random() < probability) for _ in range(16)]
        batch = collate([group("a", *([(1, action), (1, luck * draw.randint(0, 1))] for action in actions))])
        assert batch.turn_index is not None
        batch = replace(batch, values=torch.tensor(values)[batch.turn_index])
        advantages, returns = batch_advantages(algorithm, batch, kl_coef=0.0, max_new_tokens=8)
        assert returns is not None
        first = advantages[batch.turn_index == 0].tolist()
        logit += sum(a * (action - probability) for a, action in zip(first, actions, strict=True)) / len(actions)
        for turn in (0, 1):
            values[turn] += 0.1 * (float(returns[batch.turn_index == turn].mean()) - values[turn])
    return 1 / (1 + math.exp(-logit))


def test_with_a_critic_only_turn_credit_teaches_a_first_turn_whose_second_is_luck() -> None:
    """With lambda = 0 an action hears of later rewards through the critic alone.

    By episode the first turn's reward arrives behind the second one, so that the first hears nothing of what it earned:
    its advantages are equal for all samples. By turn it hears it at once, and nothing of the luck.
    """
    seeds = range(10)
    by_turn = [learnt_first_turn("turn", seed) for seed in seeds]
    by_episode = [learnt_first_turn("episode", seed) for seed in seeds]
    assert min(by_turn) > 0.9, by_turn
    assert max(by_episode) < 0.9, by_episode
    assert sum(by_episode) / len(by_episode) == pytest.approx(0.5, abs=0.15)


def test_of_single_turns_it_is_the_same() -> None:
    batch = collate([group("a", [(3, 1.0)], [(2, 0.0)], [(1, 0.5)]), group("b", [(1, 2.0)], [(2, 2.0)])])
    for scale in ("none", "group_std"):
        episode, turn = (
            batch_advantages(
                made(credit=credit, baseline="group_mean", scale=scale), batch, kl_coef=0.0, max_new_tokens=8
            )[0]
            for credit in ("episode", "turn")
        )
        assert torch.equal(episode, turn)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="credit: 'turn' has no baseline in a greedy answer"):
        made(baseline="greedy")
    with pytest.raises(ValueError, match="use that"):
        made(kl="k1", kl_coef=0.1, kl_in="reward_to_go")
