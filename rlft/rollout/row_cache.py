"""Keys and values of a batch whose rows continue shared prompts, and attention of one new token per row over them.

A prompt's keys and values stand once, however many samples continue it; each row has its own for what it generated:

    prompts   [P0 P0 P0 P0]  [P1 P1]          rows   prompt 0: [a0 a1 a2]  [b0 b1]   prompt 1: [c0 c1 c2 c3]

The queries of a prompt's rows meet its keys in one product, and every row's query its own keys in another; one softmax
runs over both. Keys are stored transposed, the layout in which these thin products are fastest on a CPU. Rows can be
moved and given away, so that finished ones leave the batch and waiting ones take their place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

_FIRST_COLUMNS = 64
"""Tokens that a row has room for at first; doubled when they are full."""


class RowCache(Cache):
    """A cache as transformers' models take it; one token per row and step."""

    def __init__(self, *, prompts: int, prompt_length: int, rows: int, new_tokens: int, device: torch.device) -> None:
        """Room for `prompts` prompts of at most `prompt_length` tokens and `rows` rows of at most `new_tokens`."""
        self.capacity = (prompts, max(1, prompt_length), rows)
        self.new_tokens = new_tokens
        self.prompt_of_row = torch.zeros(rows, dtype=torch.int64, device=device)
        self.age = torch.zeros(rows, dtype=torch.int64, device=device)
        """Tokens that each row has of its own; the next one is written there."""
        self.prompt_length = torch.zeros(prompts, dtype=torch.int64, device=device)
        self.width = 0
        """Rows of the current step."""
        super().__init__(layers=[])

    # Rows and prompts

    def enter_prompts(self, slots: Sequence[int], lengths: Sequence[int], prefill: DynamicCache) -> None:
        """Keep the keys and values of prompts, whose lengths are `lengths`, in `slots`."""
        if not self.layers:
            self.layers: list[CacheLayerMixin] = [_RowLayer(self, layer.keys, layer.values) for layer in prefill.layers]
        index = torch.tensor(list(slots), device=self.age.device)
        self.prompt_length[index] = torch.tensor(list(lengths), device=self.age.device)
        for own, layer in zip(self.layers, prefill.layers, strict=True):
            assert isinstance(own, _RowLayer)
            length = layer.keys.shape[2]
            own.prompt_keys[index, :, :, :length] = layer.keys.mT
            own.prompt_values[index, :, :length] = layer.values

    def enter_rows(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Let rows begin behind prompts."""
        index = torch.tensor(list(rows), device=self.age.device)
        self.prompt_of_row[index] = torch.tensor(list(prompts), device=self.age.device)
        self.age[index] = 0

    def move_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let rows go on in other places."""
        source, target = (torch.tensor(list(rows), device=self.age.device) for rows in (sources, targets))
        for state in (self.prompt_of_row, self.age):
            state[target] = state[source]
        used = int(self.age.max()) + 1
        for layer in self.layers:
            assert isinstance(layer, _RowLayer)
            layer.row_keys[target, :, :, :used] = layer.row_keys[source, :, :, :used]
            layer.row_values[target, :, :used] = layer.row_values[source, :, :used]

    # A step

    def begin(self, width: int) -> tuple[Tensor, Tensor]:
        """Prepare a step of the first `width` rows.

        Returns:
            (positions (width,), additive mask (width, 1, 1, 1) for transformers, which asks for one; attention here
            has its own)
        """
        self.width = width
        prompt, age = self.prompt_of_row[:width], self.age[:width]
        longest = self.prompt_length[prompt]
        self._rows = torch.arange(width, device=age.device)
        self._num_columns, self._num_prompt_columns = int(age.max()) + 1, max(1, int(longest.max()))
        for layer in self.layers:
            assert isinstance(layer, _RowLayer)
            layer.make_room(self._num_columns)
        columns = torch.arange(max(self._num_columns, self._num_prompt_columns), device=age.device)
        hidden = torch.cat(
            [
                columns[: self._num_prompt_columns] >= longest[:, None],
                columns[: self._num_columns] > age[:, None],
            ],
            dim=1,
        )
        dtype = self.layers[0].keys.dtype
        self._mask = torch.zeros(hidden.shape, dtype=dtype, device=age.device).masked_fill_(hidden, float("-inf"))
        self._by_prompt, self._place = _arranged(prompt.tolist(), age.device)
        return longest + age, torch.zeros(width, 1, 1, 1, dtype=dtype, device=age.device)

    def advance(self) -> None:
        """Count the step's token in."""
        self.age[: self.width] += 1
        self.age.clamp_(max=self.new_tokens - 1)  # rows that have ended stay where they are

    def attend(self, layer_index: int, query: Tensor, scale: float, softcap: float | None = None) -> Tensor:
        """Attention of the step's tokens, after `update` has written their keys and values.

        Args:
            query: (R, H, 1, D).

        Returns:
            (R, 1, H, D)
        """
        layer = self.layers[layer_index]
        assert isinstance(layer, _RowLayer)
        num_rows, num_heads, _, size = query.shape
        num_key_heads = layer.row_keys.shape[1]
        shared = num_heads // num_key_heads
        num_prompts, width = self._by_prompt.shape
        own = query.reshape(num_rows, num_key_heads, shared, size).contiguous()
        together = own.index_select(0, self._by_prompt.flatten())
        together = together.view(num_prompts, width, num_key_heads, shared, size).transpose(1, 2)
        scores = torch.bmm(
            together.reshape(num_prompts * num_key_heads, width * shared, size),
            layer.prompt_keys[:num_prompts].flatten(0, 1)[:, :, : self._num_prompt_columns],
        )
        scores = scores.view(num_prompts, num_key_heads, width, shared, -1).transpose(1, 2).flatten(0, 1)
        own_scores = torch.bmm(
            own.view(num_rows * num_key_heads, shared, size),
            layer.row_keys[:num_rows].flatten(0, 1)[:, :, : self._num_columns],
        )
        both = torch.cat(
            [scores.index_select(0, self._place), own_scores.view(num_rows, num_key_heads, shared, -1)], dim=-1
        )
        both = both.mul_(scale)
        if softcap is not None:
            both = both.div_(softcap).tanh_().mul_(softcap)
        weights = torch.softmax(both.add_(self._mask[:, None, None]), dim=-1)
        of_prompt, of_row = weights.split([self._num_prompt_columns, self._num_columns], dim=-1)
        together = of_prompt.index_select(0, self._by_prompt.flatten())
        together = together.view(num_prompts, width, num_key_heads, shared, -1).transpose(1, 2)
        output = torch.bmm(
            together.reshape(num_prompts * num_key_heads, width * shared, -1),
            layer.prompt_values[:num_prompts].flatten(0, 1)[:, : self._num_prompt_columns],
        )
        output = output.view(num_prompts, num_key_heads, width, shared, size).transpose(1, 2).flatten(0, 1)
        own_output = torch.bmm(
            of_row.reshape(num_rows * num_key_heads, shared, -1),
            layer.row_values[:num_rows].flatten(0, 1)[:, : self._num_columns],
        )
        output = output.index_select(0, self._place).add_(own_output.view(num_rows, num_key_heads, shared, size))
        return output.view(num_rows, 1, num_heads, size)

    # What transformers asks

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._num_prompt_columns + self._num_columns - 1


class _RowLayer(CacheLayerMixin):
    def __init__(self, cache: RowCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._cache = cache
        prompts, length, rows = cache.capacity
        heads, size, value_size = keys.shape[1], keys.shape[3], values.shape[3]
        columns = min(cache.new_tokens, _FIRST_COLUMNS)
        # Zeros, since what is masked is still multiplied.
        self.prompt_keys = keys.new_zeros(prompts, heads, size, length)
        self.prompt_values = values.new_zeros(prompts, heads, length, value_size)
        self.row_keys = keys.new_zeros(rows, heads, size, columns)
        self.row_values = values.new_zeros(rows, heads, columns, value_size)
        self.keys, self.values = self.row_keys, self.row_values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def make_room(self, columns: int) -> None:
        while self.row_keys.shape[3] < columns:
            room = min(self._cache.new_tokens, 2 * self.row_keys.shape[3]) - self.row_keys.shape[3]
            self.row_keys = torch.nn.functional.pad(self.row_keys, (0, room))
            self.row_values = torch.nn.functional.pad(self.row_values, (0, 0, 0, room))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        cache = self._cache
        rows, age = cache._rows, cache.age[: cache.width]
        self.row_keys[rows, :, :, age] = key_states[:, :, 0]
        self.row_values[rows, :, age] = value_states[:, :, 0]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self._cache.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + 1, 0

    def get_max_length(self) -> int:
        return self._cache.capacity[1] + self._cache.new_tokens

    get_max_cache_shape = get_max_length


def _arranged(prompt_of_row: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows by prompt (prompts, width), padded with row 0, and each row's place in that table, flattened, (R,)."""
    members: list[list[int]] = [[] for _ in range(max(prompt_of_row) + 1)]
    for row, prompt in enumerate(prompt_of_row):
        members[prompt].append(row)
    width = max(map(len, members))
    place = [0] * len(prompt_of_row)
    for prompt, rows in enumerate(members):
        for column, row in enumerate(rows):
            place[row] = prompt * width + column
    table = [rows + [0] * (width - len(rows)) for rows in members]
    return torch.tensor(table, device=device), torch.tensor(place, device=device)
