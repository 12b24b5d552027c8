"""Why a stored sample moved the policy as it did: from its reward's parts to its gradient share, without a model."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlft.config import RunConfig
from rlft.curves.reading import read_metrics
from rlft.learner.batch import minibatches
from rlft.objectives.advantages import group_baseline, group_std
from rlft.objectives.algorithm import PolicyObjective
from rlft.objectives.batch_advantages import included_actions, shaped_rewards
from rlft.objectives.policy import aggregation_weights, correction_factor
from rlft.reward.recompute import Recomputed, kl_coefs, recompute
from rlft.reward.stored import find_sample, parse_sample, read_step, read_tasks
from rlft.types import Batch, Group, Score, Trajectory

Facts = dict[str, Any]
"""Plain data by name; what is not known is None, and `unknown` says why."""


def explain(run: Path, config: RunConfig, sample: str) -> Facts:
    """What is known of a stored sample: reward, group, advantage, its place in the loss.

    Args:
        config: the run's.
        sample: `STEP/TASK/INDEX`.

    Returns:
        `sample`, `reward`, `group`, `advantage`, `loss` (mappings), and `unknown`: what stored data cannot say.

    Raises:
        ValueError: there is no such sample; says which there are.
    """
    step, task_id, sample_index = parse_sample(sample)
    stored = read_step(run, step, read_tasks(run))
    place = find_sample(stored, task_id, sample_index)
    group, row = stored.groups[place[0]], stored.rows[place[0]][place[1]]
    trajectory = group.trajectories[place[1]]
    unknown: list[str] = []
    again = recompute(
        config, stored.groups, stored.rows, kl_coef=kl_coefs(config, read_metrics(run, [])).get(step, 0.0)
    )
    sequence = again.places.index(place) if place in again.places else None
    facts: Facts = {
        "sample": {
            "step": step,
            "task_id": task_id,
            "sample_index": sample_index,
            "completion": trajectory.text,
            "actions": trajectory.num_actions,
            "turns": len(trajectory.turns),
            "finish_reason": trajectory.finish_reason,
            "adapter_version": row["adapter_version"],
        },
        "reward": _reward(config, trajectory, row),
        "group": _group(group, trajectory),
        "advantage": _advantage(config, again, sequence, row, unknown),
        "loss": _loss(config, again, sequence, unknown),
    }
    return {**facts, "unknown": unknown}


def _reward(config: RunConfig, trajectory: Trajectory, row: Mapping[str, Any]) -> Facts:
    """The outcome, and each reward with its weight, value and share of the sum; parts of a reward have no weight."""
    outcome = trajectory.outcome
    weights = {spec.label: spec.weight for spec in config.rewards}
    shares = weights if isinstance(outcome, Score) else {}  # without a sum there is no share of it
    return {
        "outcome": row["outcome"],
        "value": outcome.value if isinstance(outcome, Score) else None,
        "parts": [
            {
                "name": name,
                "value": value,
                "weight": weights.get(name),
                "contribution": None if name not in shares else shares[name] * value,
            }
            for name, value in trajectory.parts.items()
        ],
        "failure": row["failure_message"],
        "failed_parts": {name: failure.message for name, failure in trajectory.failed_parts.items()},
        "environment_reward": row.get("environment_reward"),
    }


def _group(group: Group, trajectory: Trajectory) -> Facts:
    """Statistics of the scores that the sample is compared with; ranks count from 1, equals share the best one."""
    scores = group.scores
    own = trajectory.outcome.value if isinstance(trajectory.outcome, Score) else None
    return {
        "samples": len(group.trajectories),
        "scored": len(scores),
        "scores": scores,
        "mean": statistics.fmean(scores) if scores else None,
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
        "rank": None if own is None else 1 + sum(score > own for score in scores),
        "ties": None if own is None else sum(score == own for score in scores) - 1,
        "greedy_score": group.baseline_score,
    }


def _advantage(
    config: RunConfig, again: Recomputed, sequence: int | None, row: Mapping[str, Any], unknown: list[str]
) -> Facts:
    algorithm = config.algorithm
    facts: Facts = {"stored": row["advantage"], "recomputed": None, "baseline": None, "scale": None}
    facts |= {"penalty": None, "lowest": None, "highest": None}
    batch = again.batch
    if batch is None or sequence is None:
        unknown.append(f"its advantage: {again.reason or 'the learner did not learn from it'}")
        return facts
    assert batch.advantages is not None
    rewards = shaped_rewards(algorithm, batch, max_new_tokens=config.sampling.max_new_tokens)
    own = batch.advantages[batch.sequence_index == sequence]
    facts["recomputed"] = again.advantages[again.places[sequence]]
    facts["penalty"] = float(rewards[sequence] - batch.rewards[sequence])
    if own.numel():
        facts |= {"lowest": float(own.min()), "highest": float(own.max())}
    if not isinstance(algorithm, PolicyObjective):
        facts["label"] = facts["recomputed"]  # what the preference loss calls it
    elif algorithm.needs_critic:
        assert batch.values is not None
        facts["baseline"] = float(batch.values[batch.sequence_index == sequence][0]) if own.numel() else None
    else:
        baseline = group_baseline(rewards, batch.group_index, algorithm.baseline, batch.baseline_rewards)
        facts["baseline"] = float(baseline[sequence])
        if algorithm.has_kl_in_reward:
            unknown.append("baseline: the rewards' share only; that of the KL in the reward is in the advantage")
        if algorithm.scale == "group_std":
            facts["scale"] = float(group_std(rewards, batch.group_index)[sequence])
        elif algorithm.scale == "group_mean":
            facts["scale"] = float(group_baseline(rewards, batch.group_index, "group_mean")[sequence])
    return facts


def _loss(config: RunConfig, again: Recomputed, sequence: int | None, unknown: list[str]) -> Facts:
    """Its place in the loss: which update, masks, correction, its share of that update's and of the step's gradient."""
    algorithm, batch = config.algorithm, again.batch
    facts: Facts = {"update": None, "updates": config.updates_per_step, "included": None, "ratio": None}
    facts |= {"clip": None, "clipped": None, "correction": None, "masked": None, "weight": None, "gradient_share": None}
    facts["step_gradient_share"] = None
    if batch is None or sequence is None:
        return {**facts, "included": False}
    if not isinstance(algorithm, PolicyObjective):
        assert batch.advantages is not None
        labels = batch.advantages[batch.sequence_index == sequence]
        unknown.append("its share of the gradient: a preference loss weighs pairs by the policy's own log-probs")
        return {**facts, "included": bool(labels.any())}
    parts = minibatches(batch, config.updates_per_step)
    update, position = _update_of(parts, sequence)
    part = parts[update - 1]
    own = part.sequence_index == position
    included, weights = included_actions(algorithm, part), _weights(config, algorithm, part)
    facts |= {"update": update, "included": bool(included[own].any()), "weight": float(weights[own].sum())}
    if algorithm.surrogate != "score_function":
        facts["clip"] = [1 - algorithm.clip_low, 1 + algorithm.clip_high]
    if update == 1:
        facts |= {"ratio": 1.0, "clipped": 0}  # the policy is still the one that the ratio divides by
    else:
        unknown.append(f"ratio and clip: it is in update {update} of its step, and the policy before it is not stored")
    factor = _correction(algorithm, part, facts, own, unknown)
    if factor is not None:
        sizes = [_sizes(config, algorithm, each) for each in parts]
        mine, of_updates = float(sizes[update - 1][own].sum()), [float(each.sum()) for each in sizes]
        facts["gradient_share"] = _share(mine, of_updates[update - 1])
        facts["step_gradient_share"] = _share(mine, sum(of_updates))
        what = [] if update == 1 else ["ratio 1"]
        what += ["without the KL term"] if algorithm.kl != "none" and algorithm.kl_in == "loss" else []
        what += ["without the entropy bonus"] if algorithm.entropy_coef else []
        facts["gradient_share_is"] = ", ".join(
            ["weight times |advantage| of its tokens, of all tokens of its update", *what]
        )
    return facts


def _update_of(parts: Sequence[Batch], sequence: int) -> tuple[int, int]:
    """(number of the update that a sequence is in, from 1; the sequence's position in its batch)."""
    before = 0
    for number, part in enumerate(parts, start=1):
        if sequence < before + part.num_sequences:
            return number, sequence - before
        before += part.num_sequences
    raise AssertionError("every sequence is in an update")


def _weights(config: RunConfig, algorithm: PolicyObjective, part: Batch) -> Tensor:
    """Of each token of an update in its loss."""
    return aggregation_weights(
        algorithm.aggregate,
        part.sequence_index,
        max_new_tokens=config.sampling.max_new_tokens,
        included=included_actions(algorithm, part),
    )


def _sizes(config: RunConfig, algorithm: PolicyObjective, part: Batch) -> Tensor:
    """Weight times |advantage| of each token of an update, with the factor against sampling from other weights."""
    assert part.advantages is not None
    size = (_weights(config, algorithm, part) * part.advantages).abs()
    if algorithm.correction == "none":
        return size
    assert part.old_logprobs is not None
    return size * correction_factor(part.old_logprobs, part.rollout_logprobs, part.sequence_index, algorithm)


def _share(size: float, total: float) -> float:
    return size / total if total > 0 else 0.0


def _correction(
    algorithm: PolicyObjective, part: Batch, facts: Facts, own: Tensor, unknown: list[str]
) -> Tensor | float | None:
    """The factor against sampling from other weights; 1 without one, None where it is not known."""
    if algorithm.correction == "none":
        return 1.0
    if part.old_logprobs is None:
        unknown.append("correction and gradient share: the learner's own log-probs of its tokens are not stored")
        return None
    factor = correction_factor(part.old_logprobs, part.rollout_logprobs, part.sequence_index, algorithm)
    mine = factor[own]
    facts["correction"] = {"mean": float(mine.mean()), "lowest": float(mine.min()), "highest": float(mine.max())}
    facts["masked"] = int((mine == 0).sum()) if algorithm.correction.endswith("mask") else 0
    return factor


def as_json(facts: Facts) -> str:
    """The facts as JSON, in which what is no finite number is null."""
    return json.dumps(_finite(facts), indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
