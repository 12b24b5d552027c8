"""From scored groups to tensors: collate, minibatches, microbatches, and the packed row that a model reads.

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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
from torch import Tensor

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


def packed_length(batch: Batch) -> int:
    """Number of tokens of the whole batch as one packed row, in which each prompt, and their prefix, stand once."""
    row = _Row()
    for sequences in _members(batch).values():
        row = row.with_prompt(batch.prompt_ids[sequences[0]])
    return sum(_read_lengths(batch)) + row.prompt_tokens


def shared_prefix(prompts: Iterable[tuple[int, ...]]) -> int:
    """Tokens that stand once in a packed row with these prompts for all of them; 0 where it is not worth it."""
    row = _Row()
    for prompt in prompts:
        row = row.with_prompt(prompt)
    return row.prefix_length


@dataclass(frozen=True, slots=True)
class _Row:
    """The prompts of a packed row."""

    first: tuple[int, ...] = ()
    """The first of them."""
    common: int = 0
    """Tokens that they begin with alike, all but the last of the shortest at most: each has something of its own."""
    number: int = 0
    total: int = 0
    """Tokens of all of them."""

    def with_prompt(self, prompt: tuple[int, ...]) -> _Row:
        """The row with one more prompt."""
        if not self.number:
            return _Row(prompt, max(0, len(prompt) - 1), 1, len(prompt))
        end = min(self.common, len(prompt) - 1)
        same = prompt[:end] == self.first[:end]  # as nearly always; else token by token
        common = max(0, end) if same else next(at for at in range(end) if prompt[at] != self.first[at])
        return _Row(self.first, common, self.number + 1, self.total + len(prompt))

    @property
    def prefix_length(self) -> int:
        """Tokens that stand once in the row for all prompts."""
        return self.common if self.number > 1 and self.common >= MIN_PREFIX else 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the row that are prompts."""
        return self.total - (self.number - 1) * self.prefix_length if self.number else 0


def _read_lengths(batch: Batch) -> list[int]:
    """Tokens of each completion that have to be read: those before its last action."""
    return [next((t for t in reversed(range(len(mask))) if mask[t]), 0) for mask in batch.action_mask]


def microbatches(batch: Batch, tokens: int, *, whole_groups: bool = False) -> list[list[int]]:
    """Cut a batch into consecutive microbatches of at most `tokens` packed tokens; the sequence numbers of each.

    A group is split when it is too long, unless `whole_groups`; its prompt is then repeated. What is longer than the
    budget and cannot be split stands alone.
    """
    lengths = _read_lengths(batch)
    if whole_groups:
        return _whole_groups(batch, lengths, tokens)
    result: list[list[int]] = []
    row, used, previous_group = _Row(), 0, -1
    for sequence, group in enumerate(batch.group_index.tolist()):
        prompt, length = batch.prompt_ids[sequence], lengths[sequence]
        longer = row if group == previous_group else row.with_prompt(prompt)
        if not result or longer.prompt_tokens + used + length > tokens:
            result.append([])
            longer, used = _Row().with_prompt(prompt), 0
        result[-1].append(sequence)
        row, used, previous_group = longer, used + length, group
    return result


def even_microbatches(batch: Batch, tokens: int, shares: int, *, whole_groups: bool = False) -> list[list[int]]:
    """Cut a batch into microbatches of which `shares` processes get equally many, of about equal length.

    Their number is the next multiple of `shares`, under the smallest budget that keeps it; fewer where the batch cannot
    be split that far. Groups are split only where that number needs it.
    """
    limit = -(-len(microbatches(batch, tokens, whole_groups=whole_groups)) // shares) * shares
    if not whole_groups:
        whole = _smallest_budget(batch, tokens, limit, whole_groups=True)
        if whole is not None and all(packed_length(select(batch, part)) <= tokens for part in whole):
            return whole
    parts = _smallest_budget(batch, tokens, limit, whole_groups=whole_groups)
    assert parts is not None
    return parts


def _smallest_budget(batch: Batch, tokens: int, limit: int, *, whole_groups: bool) -> list[list[int]] | None:
    """The microbatches under the smallest budget up to `tokens` that gives at most `limit` of them, if one does."""
    low, high = 1, min(tokens, packed_length(batch))
    parts = microbatches(batch, high, whole_groups=whole_groups)
    if len(parts) > limit:
        return None
    while low < high:
        middle = (low + high) // 2
        smaller = microbatches(batch, middle, whole_groups=whole_groups)
        if len(smaller) <= limit:
            high, parts = middle, smaller
        else:
            low = middle + 1
    return parts


def _whole_groups(batch: Batch, lengths: Sequence[int], tokens: int) -> list[list[int]]:
    result: list[list[int]] = []
    row, used = _Row(), 0
    for members in _members(batch).values():
        prompt, length = batch.prompt_ids[members[0]], sum(lengths[s] for s in members)
        longer = row.with_prompt(prompt)
        if not result or longer.prompt_tokens + used + length > tokens:
            result.append([])
            longer, used = _Row().with_prompt(prompt), 0
        result[-1] += members
        row, used = longer, used + length
    return result


def _members(batch: Batch) -> dict[int, list[int]]:
    """Sequence numbers of each group."""
    members: dict[int, list[int]] = {}
    for sequence, group in enumerate(batch.group_index.tolist()):
        members.setdefault(group, []).append(sequence)
    return members


def pack(batch: Batch, *, with_ends: bool = False) -> Packed:
    """Lay a batch out as one row, each group's prompt once, and once what all prompts begin with.

    Args:
        with_ends: keep what follows the token that predicts a completion's last action.

    Raises:
        ValueError: a prompt without tokens, which has no logits to predict the first action.
    """
    lengths = [len(ids) for ids in batch.token_ids] if with_ends else _read_lengths(batch)
    members = list(_members(batch).values())
    row = _Row()
    for sequences in members:
        if not batch.prompt_ids[sequences[0]]:
            raise ValueError(
                f"sequence {sequences[0]} has an empty prompt: there is nothing to predict its first token from"
            )
        row = row.with_prompt(batch.prompt_ids[sequences[0]])
    prefix = row.prefix_length
    token_ids, position_ids = list(row.first[:prefix]), list(range(prefix))
    predictor_index: list[int] = []
    target_ids: list[int] = []
    groups = [PackedGroup(start=0, prompt_length=prefix, lengths=())] if prefix else []
    for sequences in members:
        prompt = batch.prompt_ids[sequences[0]]
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
