"""Keys and values of a batch whose rows continue shared prompts, and attention of one new token per row over them.

A prompt's keys and values are kept once, however many samples continue it; each row has its own for what it generated:

    prompts   [P0 P0 P0 P0]  [P1 P1]          rows   prompt 0: [a0 a1 a2]  [b0 b1]   prompt 1: [c0 c1 c2 c3]

A prompt's keys and values are multiplied with the queries and weights of all its rows together, and a row's own with
its alone; one softmax runs over both. A compiled kernel has prompts laid out in panels (`native/products.h`) and reads
only what was written. In torch, products run over whole buffers, with what is not there yet masked, since parts of a
buffer are copied before a product. Rows can be moved and given away, so that finished ones leave the batch and waiting
ones take their place.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from rlft.model.kernels.block_attention import scaled_bmm
from rlft.model.kernels.library import VECTOR, Kernel, kernel
from rlft.model.kernels.sizes import LENGTH, rounded_up

Span: TypeAlias = Sequence[Tensor]
"""Keys and values (2, H_kv, T, D) of every layer for T tokens of a sequence, which follow each other."""

_COLUMNS = 16
"""Rows get room for a multiple of so many tokens, when they need it."""


class KernelOperands(NamedTuple):
    """What does not change within a step; pointers are right until the next step begins."""

    run: Kernel
    rows: tuple[int, int, int]
    """Pointers to what is known of each row and prompt."""
    shape: ctypes.Array[ctypes.c_int64]
    layers: list[tuple[int, int]]
    """Pointers to each layer's keys and values: of prompts and of rows."""


class KVCache:
    """Keys and values of all layers; every row gets one token per step."""

    def __init__(self, *, prompts: int, prompt_length: int, rows: int, new_tokens: int, device: torch.device) -> None:
        """Room for `prompts` prompts of at most `prompt_length` tokens and `rows` rows of at most `new_tokens`."""
        step = VECTOR if device.type == "cpu" else LENGTH  # whole panels, whose columns divide VECTOR
        self.capacity = (prompts, rounded_up(max(1, prompt_length), step), rows)
        self.new_tokens = new_tokens
        self.prompt_of_row = torch.zeros(rows, dtype=torch.int64, device=device)
        self.age = torch.zeros(rows, dtype=torch.int64, device=device)
        """Tokens that each row has of its own; the next one is written there."""
        self.prompt_length = torch.zeros(prompts, dtype=torch.int64, device=device)
        self.width = 0
        """Rows of the current step."""
        self.layers: list[_Layer] = []
        self.num_columns = min(new_tokens, _COLUMNS)
        """Tokens of its own that each row has room for now."""
        self._is_rearranged = True
        self._columns = torch.arange(new_tokens, device=device)
        self._current_groups: _Groups | None = None
        self._current_mask: Tensor | None = None

    @property
    def num_layers(self) -> int:
        """Layers whose keys and values are kept; 0 before the first prompts."""
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of keys and values."""
        return self.layers[0].rows.dtype

    @property
    def length(self) -> int:
        """Positions that attention of a step covers, masked ones included: of a prompt and of a row's own tokens."""
        return self.capacity[1] + self.num_columns

    @property
    def max_length(self) -> int:
        """Most positions that there can be."""
        return self.capacity[1] + self.new_tokens

    # Rows and prompts

    def enter_prompts(self, slots: Sequence[int], prompts: Sequence[Sequence[Span]]) -> None:
        """Keep prompts in `slots`, each given as one span or several that follow each other."""
        if not self.layers:
            self.layers = [_Layer(self.capacity, self.new_tokens, self.num_columns, *each) for each in prompts[0][0]]
        for slot, spans in zip(slots, prompts, strict=True):
            for layer, *parts in zip(self.layers, *spans, strict=True):
                layer.keep_prompt(slot, parts)
            self.prompt_length[slot] = sum(span[0].shape[2] for span in spans)

    def own_span(self, row: int, count: int) -> Span:
        """A copy of the first `count` tokens that a row has of its own."""
        return [layer.rows[:, row, :, :count].clone() for layer in self.layers]

    def enter_rows(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Let rows begin behind prompts."""
        index = torch.tensor(list(rows), device=self.age.device)
        self.prompt_of_row[index] = torch.tensor(list(prompts), device=self.age.device)
        self.age[index] = 0
        self._is_rearranged = True

    def move_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let rows go on in other places."""
        source, target = (torch.tensor(list(rows), device=self.age.device) for rows in (sources, targets))
        for state in (self.prompt_of_row, self.age):
            state[target] = state[source]
        self._is_rearranged = True
        used = int(self.age.max()) + 1
        for layer in self.layers:
            layer.rows[:, target, :, :used] = layer.rows[:, source, :, :used]

    # A step

    def begin(self, width: int) -> Tensor:
        """Prepare a step of the first `width` rows; returns the positions of their tokens, (width,)."""
        if width != self.width or self._is_rearranged:
            self.width, self._is_rearranged = width, False
            self._rows = torch.arange(width, device=self.age.device)
            self._current_groups = None
            self.age[width:] = 0  # rows that leave; when they are filled again they have nothing of their own
        age, longest = self.age[:width], self.prompt_length[self.prompt_of_row[:width]]
        before, columns = self.num_columns, self._room_for(int(age.max()) + 1)
        if columns > before:
            for layer in self.layers:
                layer.make_room(columns, width)
        self._current_mask = None
        return longest + age

    def advance(self) -> None:
        """Count the step's token in."""
        self.age[: self.width] += 1
        self.age.clamp_(max=self.new_tokens - 1)  # rows that have ended stay where they are

    def write(self, layer_index: int, keys_values: Tensor) -> None:
        """Keep the keys and values of the step's tokens, (R, 2, H_kv, D)."""
        self.layers[layer_index].rows[:, self._rows, :, self.age[: self.width]] = keys_values

    def attention(self, layer_index: int, heads: Tensor, num_heads: int, scale: float) -> Tensor:
        """Attention of the step's tokens with the queries, keys and values (R, num_heads + 2 H_kv, D), which are kept.

        Returns:
            (R, num_heads, D)
        """
        layer = self.layers[layer_index]
        query, keys_values = heads[:, :num_heads], heads[:, num_heads:].unflatten(1, (2, -1))
        if (output := self._by_kernel(layer, query[:, :, None], scale, keys_values)) is None:
            self.write(layer_index, keys_values)
            output = self.attend(layer_index, query[:, :, None], scale)
        return output[:, 0]

    def attend(self, layer_index: int, query: Tensor, scale: float, softcap: float | None = None) -> Tensor:
        """Attention of the step's tokens, after `write` has kept their keys and values.

        Args:
            query: (R, H, 1, D).

        Returns:
            (R, 1, H, D)
        """
        layer = self.layers[layer_index]
        num_rows, num_heads, _, size = query.shape
        if softcap is None and (output := self._by_kernel(layer, query, scale)) is not None:
            return output
        if layer.is_by_kernel:
            raise RuntimeError("attention of earlier steps went by a kernel, which leaves what it masks undefined")
        num_key_heads = layer.prompts.shape[2]
        shape = (num_rows, num_key_heads, num_heads // num_key_heads)
        own, groups, mask = query.reshape(*shape, size), self._groups(), self._mask()
        prompt_keys, prompt_values = (x[: groups.count].flatten(0, 1) for x in layer.prompts)
        row_keys, row_values = (x[:num_rows].flatten(0, 1) for x in layer.rows)
        of_prompt = scaled_bmm(groups.gather(own), prompt_keys.mT, scale)
        of_row = scaled_bmm(own.flatten(0, 1), row_keys.mT, scale)
        scores = torch.cat([groups.scatter(of_prompt, shape), of_row.view(*shape, -1)], dim=-1)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        weights = torch.softmax(scores.add_(mask[:, None, None]), dim=-1)
        of_prompt, of_row = weights.split([prompt_keys.shape[1], row_keys.shape[1]], dim=-1)
        output = groups.scatter(torch.bmm(groups.gather(of_prompt), prompt_values), shape)
        own_output = torch.bmm(of_row.reshape(num_rows * num_key_heads, shape[2], -1), row_values)
        return own_output.view(*shape, size).add_(output).view(num_rows, 1, num_heads, size)

    def kernel_operands(self, x: Tensor, num_heads: int, num_key_heads: int, size: int) -> KernelOperands | None:
        """What a kernel attends with in the current step, for modules of this folder: in every layer, which keeps the
        step's keys and values, too. None where it does not take them.

        Args:
            x: of the type that queries, keys and values (R, num_heads + 2 num_key_heads, size) are going to have.
        """
        run = _attention_kernel(x, *(y for layer in self.layers for y in (layer.prompts, layer.rows)))
        is_laid_out = size % VECTOR == 0 and num_heads % num_key_heads == 0
        if run is None or not is_laid_out or any(layer.kind != (num_key_heads, size) for layer in self.layers):
            return None
        for layer in self.layers:
            layer.lay_out(self.prompt_length)
        row_stride = (num_heads + 2 * num_key_heads) * size
        return KernelOperands(
            run,
            (self.prompt_of_row.data_ptr(), self.prompt_length.data_ptr(), self.age.data_ptr()),
            self._kernel_shape((row_stride, num_heads, num_key_heads, size)),
            [(layer.prompts.data_ptr(), layer.rows.data_ptr()) for layer in self.layers],
        )

    def _by_kernel(
        self, layer: _Layer, query: Tensor, scale: float, keys_values: Tensor | None = None
    ) -> Tensor | None:
        """Attention by a compiled kernel where there is one, which first keeps `keys_values` (R, 2, H_kv, D)."""
        num_rows, num_heads, _, size = query.shape
        stride = query.stride(0)
        is_laid_out = query.stride()[1::2] == (size, 1)
        if keys_values is not None:
            num_key_heads = keys_values.shape[2]
            is_laid_out &= keys_values.stride() == (stride, num_key_heads * size, size, 1)
        output = query.new_empty(num_rows, 1, num_heads, size)
        run = _attention_kernel(layer.prompts, layer.rows, output)
        if run is None or not is_laid_out or size % VECTOR or num_heads % layer.rows.shape[2]:
            return None
        layer.lay_out(self.prompt_length)
        operands = (query, keys_values, layer.prompts, layer.rows, self.prompt_of_row, self.prompt_length, self.age)
        pointers = [None if x is None else x.data_ptr() for x in (*operands, output)]
        run(*pointers, self._kernel_shape((stride, num_heads, layer.rows.shape[2], size)), scale)
        return output

    def _kernel_shape(self, heads: tuple[int, int, int, int]) -> ctypes.Array[ctypes.c_int64]:
        """`CacheShape` in `native/cached_attention.h`, given its (row stride, heads, key heads, size)."""
        prompts, rows = self.layers[0].prompts, self.layers[0].rows
        own = (prompts.shape[1], prompts.shape[3], rows.shape[1], rows.shape[3])
        return (ctypes.c_int64 * 9)(self.width, *heads, *own)

    def _mask(self) -> Tensor:
        """(R, prompt columns + rows' columns), 0 where there is a key and minus infinity elsewhere."""
        if self._current_mask is None:
            age, length = self.age[: self.width, None], self.prompt_length[self.prompt_of_row[: self.width], None]
            columns = torch.arange(self.capacity[1], device=age.device)
            hidden = torch.cat([columns >= length, self._columns[: self.num_columns] > age], dim=1)
            zeros = torch.zeros(hidden.shape, dtype=self.layers[0].rows.dtype, device=age.device)
            self._current_mask = zeros.masked_fill_(hidden, float("-inf"))
        return self._current_mask

    def _groups(self) -> _Groups:
        if self._current_groups is None:
            self._current_groups = _Groups(self.prompt_of_row[: self.width].tolist(), self.age.device)
        return self._current_groups

    def _room_for(self, columns: int) -> int:
        """Columns that the rows' buffers have. Where products run over all of them, few are to spare; a kernel reads
        only what was written, and then it is moving rows that costs."""
        if columns > self.num_columns:
            is_by_kernel = all(layer.is_by_kernel for layer in self.layers)
            room = max(columns, self.num_columns * 4 if is_by_kernel else self.num_columns * 5 // 4)
            self.num_columns = min(self.new_tokens, rounded_up(room, _COLUMNS))
        return self.num_columns


def _attention_kernel(*tensors: Tensor) -> Kernel | None:
    """The kernel for these operands, if there is also the one that lays prompts out for it."""
    return None if kernel("keep_prompt", tensors[0]) is None else kernel("cached_attention", *tensors)


class _Groups:
    """Which rows continue which prompt: rows of a step by prompt, and back."""

    def __init__(self, prompt_of_row: Sequence[int], device: torch.device) -> None:
        members: list[list[int]] = [[] for _ in range(max(prompt_of_row) + 1)]
        for row, prompt in enumerate(prompt_of_row):
            members[prompt].append(row)
        self.count, self._width = len(members), max(map(len, members))
        # Prompts with fewer rows are filled up with row 0.
        table = [row for rows in members for row in rows + [0] * (self._width - len(rows))]
        place = [0] * len(prompt_of_row)
        for prompt, rows in enumerate(members):
            for column, row in enumerate(rows):
                place[row] = prompt * self._width + column
        is_ordered = table == place == list(range(len(prompt_of_row)))
        self._table = None if is_ordered else torch.tensor(table, device=device)
        self._place = None if is_ordered else torch.tensor(place, device=device)

    def gather(self, of_rows: Tensor) -> Tensor:
        """(R, H, S, X) to (prompts H, W S, X), W being the most rows that a prompt has."""
        chosen = of_rows if self._table is None else of_rows.index_select(0, self._table)
        by_prompt = chosen.unflatten(0, (self.count, self._width)).transpose(1, 2)
        return by_prompt.reshape(self.count * of_rows.shape[1], self._width * of_rows.shape[2], -1)

    def scatter(self, of_prompts: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Undo `gather` for `shape` = (R, H, S)."""
        by_row = of_prompts.view(self.count, shape[1], self._width, shape[2], -1).transpose(1, 2).flatten(0, 1)
        return by_row if self._place is None else by_row.index_select(0, self._place)


class _Layer:
    """Keys and values of one layer."""

    def __init__(
        self, capacity: tuple[int, int, int], new_tokens: int, columns: int, keys: Tensor, values: Tensor
    ) -> None:
        """Room as `KVCache` has it, of the type of a prompt's `keys` and `values` (H, T, D)."""
        prompts, length, rows = capacity
        heads, _, size = keys.shape
        self.kind = (heads, size)
        # Zeros, since what is masked is still multiplied.
        self.prompts = keys.new_zeros(2, prompts, heads, length, size)
        """Keys and values of every prompt."""
        self._storage = keys.new_empty(2 * rows * heads * new_tokens * size)
        self.rows = self._view((2, rows, heads, columns, size)).zero_()
        """Keys and values of every row's own tokens."""
        self.is_by_kernel = False
        """Whether a kernel computes attention: it has prompts in panels and reads only what was written, while products
        run over all of it, which has to be finite."""

    def keep_prompt(self, slot: int, parts: Sequence[Tensor]) -> None:
        """Keep a prompt's keys and values, in parts (2, H, T, D) that follow one another."""
        if self.is_by_kernel:
            self._lay_out(slot, torch.cat(list(parts), dim=2))
            return
        length = 0
        for part in parts:
            end = length + part.shape[2]
            self.prompts[:, slot, :, length:end] = part
            length = end

    def lay_out(self, lengths: Tensor) -> None:
        """Have the prompts, which are so long (slots,), as the kernel takes them, from the first call on."""
        if self.is_by_kernel:
            return
        self.is_by_kernel = True
        for slot, length in enumerate(lengths.tolist()):
            self._lay_out(slot, self.prompts[:, slot, :, :length].clone(memory_format=torch.contiguous_format))

    def _lay_out(self, slot: int, keys_values: Tensor) -> None:
        """Write a prompt's keys and values (2, H, T, D) in panels."""
        run = kernel("keep_prompt", keys_values, self.prompts)
        if run is None:
            raise ValueError(
                f"a prompt's keys and values are {keys_values.dtype} on {keys_values.device}, the cache's "
                f"{self.prompts.dtype} on {self.prompts.device}"
            )
        heads, tokens, size = keys_values.shape[1:]
        places = [self.prompts[of, slot].data_ptr() for of in range(2)]
        run(keys_values.data_ptr(), *places, heads, tokens, self.prompts.shape[3], size)

    def make_room(self, columns: int, width: int) -> None:
        """Let rows have so many columns; the first `width` keep theirs."""
        used = self.rows.shape[3]
        if columns > used:
            kept = self.rows[:, :width].clone()
            self.rows = self._view((*self.rows.shape[:3], columns, self.rows.shape[4]))
            self.rows[:, :width, :, :used] = kept
            if not self.is_by_kernel:
                self.rows[:, :width, :, used:] = 0
                self.rows[:, width:] = 0

    def _view(self, shape: tuple[int, ...]) -> Tensor:
        """The beginning of the storage."""
        return self._storage[: math.prod(shape)].view(shape)
