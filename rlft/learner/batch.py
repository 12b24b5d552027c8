"""From scored groups to tensors: collate, minibatches, and the packed row that a model reads.

A group's prompt stands once in the row and is shared by its completions, and what all prompts begin with, a system
prompt or tools, stands once before them:

    tokens     s0 s1 || p0 p1 p2 | a0 a1 | b0 b1 b2 || q0 q1 | c0 ...
    positions   0  1 ||  2  3  4 |  5  6 |  5  6  7 ||  2  3 |  4 ...

`a` and `b` see `s`, `p` and themselves, never each other, so the result is exactly that of separate rows. The only
shift by one of the project happens here: the logits that predict an action stand at the token before it, which for the
first action of every completion is the prompt's last token. A completion's last action predicts nothing and nothing
else sees it, so the row ends before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate

import torch
from torch import Tensor

from rlft.common.beginnings import alike
from rlft.model.layers.packed import Packed, PackedGroup
from rlft.types import Batch, Group, Score, Trajectory

MIN_PREFIX = 16
"""Fewest tokens that prompts of a row begin with alike for which one more block of attention is worth it."""
PER_SEQUENCE = ("group_index", "rewards", "is_truncated", "baseline_rewards")
"""Fields of a `Batch` with a value for each sequence; the other tensors have one for each action token."""


def collate(groups: Sequence[Group]) -> Batch:
    """Flatten the scored trajectories of `groups`; those without a score are left out.

    Raises:
        ValueError: no trajectory has a score, or an engine's log-prob of one is no number.
    """
    kept = [
        (index, trajectory, trajectory.outcome.value)
        for index, group in enumerate(groups)
        for trajectory in group.trajectories
        if isinstance(trajectory.outcome, Score)
    ]
    if not kept:
        raise ValueError("no trajectory of this step has a score, so there is nothing to learn from")
    present = {index: number for number, index in enumerate(dict.fromkeys(index for index, _, _ in kept))}
    action_masks = tuple(t.action_mask for _, t, _ in kept)
    rollout_logprobs = _of_actions([(t.logprobs, t.action_mask) for _, t, _ in kept])
    if not rollout_logprobs.isfinite().all():
        raise ValueError(
            "the engine's log-probs of sampled tokens are not all finite, so its logits are not either, and what it "
            "sampled is noise; where bfloat16 overflows, model.dtype=float32 helps"
        )
    policy_logprobs = [(t.policy_logprobs, t.action_mask) for _, t, _ in kept]
    is_truncating = any(turn.completion.policy_logprobs is not None for _, t, _ in kept for turn in t.turns)
    return Batch(
        prompt_ids=tuple(t.prompt_ids for _, t, _ in kept),
        token_ids=tuple(t.token_ids for _, t, _ in kept),
        action_mask=action_masks,
        group_index=torch.tensor([present[index] for index, _, _ in kept]),
        rewards=torch.tensor([value for _, _, value in kept], dtype=torch.float32),
        sequence_index=torch.tensor([s for s, mask in enumerate(action_masks) for is_action in mask if is_action]),
        rollout_logprobs=rollout_logprobs,
        is_truncated=torch.tensor([t.finish_reason == "length" for _, t, _ in kept]),
        policy_logprobs=_of_actions(policy_logprobs) if is_truncating else None,
        baseline_rewards=_baseline_rewards(groups, [index for index, _, _ in kept]),
        turn_index=torch.tensor([turn for _, t, _ in kept for turn, of in enumerate(_lengths(t)) for _ in range(of)]),
        turn_rewards=torch.tensor([reward for _, t, _ in kept for reward in _turn_rewards(t)], dtype=torch.float32),
    )


def _lengths(trajectory: Trajectory) -> list[int]:
    """Action tokens of each turn."""
    return [len(turn.completion.token_ids) for turn in trajectory.turns]


def _turn_rewards(trajectory: Trajectory) -> list[float]:
    """Rewards by action token: what a turn adds stands on the last token of its action.

    What a turn without action tokens adds goes to the last action token before it; where there is none before it,
    to the first action token after it.
    """
    assert isinstance(trajectory.outcome, Score)
    rewards, ends = [0.0] * trajectory.num_actions, list(accumulate(_lengths(trajectory)))
    turns = trajectory.outcome.turns or (*[0.0] * (len(ends) - 1), trajectory.outcome.value)
    for end, reward in zip(ends, turns, strict=True):
        if rewards:
            rewards[max(0, end - 1)] += reward
    return rewards


def single(prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Batch:
    """A batch of one sequence, all of whose tokens behind the prompt are actions, to ask for its log-probs."""
    return unscored((tuple(prompt_ids),), (tuple(token_ids),), ((True,) * len(token_ids),), torch.zeros(1).long())


def unscored(
    prompt_ids: tuple[tuple[int, ...], ...],
    token_ids: tuple[tuple[int, ...], ...],
    action_mask: tuple[tuple[bool, ...], ...],
    group_index: Tensor,
) -> Batch:
    """A batch of sequences that no engine sampled and no reward scored; the arguments are fields of `Batch`."""
    num_actions = torch.tensor([sum(mask) for mask in action_mask], dtype=torch.int64)
    num_sequences = len(token_ids)
    return Batch(
        prompt_ids=prompt_ids,
        token_ids=token_ids,
        action_mask=action_mask,
        group_index=group_index,
        rewards=torch.zeros(num_sequences),
        sequence_index=torch.arange(num_sequences).repeat_interleave(num_actions),
        rollout_logprobs=torch.zeros(int(num_actions.sum())),
        is_truncated=torch.zeros(num_sequences, dtype=torch.bool),
    )


def mismatched(batch: Batch, *, max_length: int) -> Batch | None:
    """Pair every prompt with a completion of another prompt, as KTO's KL estimate needs; cut to `max_length` tokens.

    With the sequences sorted by their tokens, that is the one as many places before as the most frequent prompt has
    sequences: so each completion is taken once, and the order of the batch does not matter. Where one prompt has more
    than half of the sequences, its own take the others' in turn. Where there is only one prompt, nothing can be
    mismatched.
    """
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for sequence in sorted(range(batch.num_sequences), key=lambda s: (batch.prompt_ids[s], batch.token_ids[s])):
        of_prompt.setdefault(batch.prompt_ids[sequence], []).append(sequence)
    if len(of_prompt) < 2:
        return None
    order = [sequence for sequences in of_prompt.values() for sequence in sequences]
    largest = max(map(len, of_prompt.values()))
    taken = dict(zip(order, order[-largest:] + order[:-largest], strict=True))
    for prompt_ids, sequences in of_prompt.items():
        if len(sequences) > len(order) - largest:
            others = [sequence for sequence in order if batch.prompt_ids[sequence] != prompt_ids]
            taken |= {sequence: others[place % len(others)] for place, sequence in enumerate(sequences)}
    room = [max_length - len(prompt_ids) for prompt_ids in batch.prompt_ids]
    return unscored(
        batch.prompt_ids,
        tuple(batch.token_ids[taken[sequence]][:tokens] for sequence, tokens in enumerate(room)),
        tuple(batch.action_mask[taken[sequence]][:tokens] for sequence, tokens in enumerate(room)),
        batch.group_index,
    )


def _of_actions(sequences: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> Tensor:
    """(A,) the values that stand on actions."""
    flat = [value for values, mask in sequences for value, is_action in zip(values, mask, strict=True) if is_action]
    return torch.tensor(flat, dtype=torch.float32)


def _baseline_rewards(groups: Sequence[Group], kept: Sequence[int]) -> Tensor | None:
    scores = [groups[index].baseline_score for index in kept]
    return None if None in scores else torch.tensor(scores, dtype=torch.float32)


def select(batch: Batch, sequences: Sequence[int]) -> Batch:
    """The sub-batch of these sequences (ascending), with groups and sequences renumbered."""
    chosen = torch.tensor(list(sequences))
    is_chosen = torch.zeros(batch.num_sequences, dtype=torch.bool)
    is_chosen[chosen] = True
    action = is_chosen[batch.sequence_index]
    number = torch.full((batch.num_sequences,), -1)
    number[chosen] = torch.arange(len(sequences))
    per_action = {
        field.name: value[action]
        for field in fields(batch)
        if field.name not in PER_SEQUENCE
        and field.name != "sequence_index"
        and isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(
        batch,
        prompt_ids=tuple(batch.prompt_ids[s] for s in sequences),
        token_ids=tuple(batch.token_ids[s] for s in sequences),
        action_mask=tuple(batch.action_mask[s] for s in sequences),
        group_index=torch.unique(batch.group_index[chosen], return_inverse=True)[1],
        rewards=batch.rewards[chosen],
        is_truncated=batch.is_truncated[chosen],
        baseline_rewards=None if batch.baseline_rewards is None else batch.baseline_rewards[chosen],
        sequence_index=number[batch.sequence_index[action]],
        **per_action,
    )


def minibatches(batch: Batch, updates: int) -> list[Batch]:
    """Split by whole groups into `updates` shares of nearly equal numbers of groups, one per optimizer update.

    Fewer groups than updates give fewer shares: an update without data is not made.
    """
    if updates == 1:
        return [batch]
    num_groups = int(batch.group_index.max()) + 1
    share_of_group = torch.arange(num_groups) * updates // num_groups
    shares = share_of_group[batch.group_index]
    return [select(batch, (shares == share).nonzero().squeeze(1).tolist()) for share in shares.unique().tolist()]


def num_tokens(batch: Batch) -> int:
    """Tokens of a batch: each group's prompt once, and of each completion those that have to be read."""
    prompts = (batch.prompt_ids[sequences[0]] for sequences in members(batch).values())
    return sum(read_lengths(batch)) + sum(map(len, prompts))


def read_lengths(batch: Batch, *, with_ends: bool = False) -> list[int]:
    """Tokens of each completion that have to be read: those before its last action, or all of them `with_ends`."""
    if with_ends:
        return [len(ids) for ids in batch.token_ids]
    return [next((t for t in reversed(range(len(mask))) if mask[t]), 0) for mask in batch.action_mask]


def shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that stand once in a packed row for all of these prompts; 0 where it is not worth it.

    Each prompt keeps a token of its own.
    """
    if len(prompts) < 2:
        return 0
    common = min(alike(min(prompts), max(prompts)), *(len(prompt) - 1 for prompt in prompts))  # what these two share
    return common if common >= MIN_PREFIX else 0


def members(batch: Batch) -> dict[int, list[int]]:
    """Sequence numbers of each group."""
    found: dict[int, list[int]] = {}
    for sequence, group in enumerate(batch.group_index.tolist()):
        found.setdefault(group, []).append(sequence)
    return found


def pack(batch: Batch, *, with_ends: bool = False) -> Packed:
    """Lay a batch out as one row, each group's prompt once, and once what all prompts begin with.

    Args:
        with_ends: keep what follows the token that predicts a completion's last action.

    Raises:
        ValueError: a prompt without tokens, which has no logits to predict the first action.
    """
    lengths = read_lengths(batch, with_ends=with_ends)
    of_groups = list(members(batch).values())
    for sequences in of_groups:
        if not batch.prompt_ids[sequences[0]]:
            raise ValueError(
                f"sequence {sequences[0]} has an empty prompt: there is nothing to predict its first token from"
            )
    prompts = [batch.prompt_ids[sequences[0]] for sequences in of_groups]
    prefix = shared_prefix(prompts)
    token_ids, position_ids = list(prompts[0][:prefix]), list(range(prefix))
    predictor_index: list[int] = []
    target_ids: list[int] = []
    groups = [PackedGroup(start=0, prompt_length=prefix, lengths=())] if prefix else []
    for prompt, sequences in zip(prompts, of_groups, strict=True):
        start = len(token_ids)
        token_ids += prompt[prefix:]
        position_ids += range(prefix, len(prompt))
        last = len(token_ids) - 1
        for sequence in sequences:
            offset = len(token_ids)
            ids = batch.token_ids[sequence]
            for t, is_action in enumerate(batch.action_mask[sequence]):
                if is_action:
                    predictor_index.append(offset + t - 1 if t else last)
                    target_ids.append(ids[t])
            token_ids += ids[: lengths[sequence]]
            position_ids += range(len(prompt), len(prompt) + lengths[sequence])
        groups.append(
            PackedGroup(
                start=start,
                prompt_length=len(prompt) - prefix,
                lengths=tuple(lengths[s] for s in sequences),
                prefix_length=prefix,
            )
        )
    return Packed(
        token_ids=torch.tensor([token_ids]),
        position_ids=torch.tensor([position_ids]),
        groups=tuple(groups),
        predictor_index=torch.tensor(predictor_index),
        target_ids=torch.tensor(target_ids),
    )
