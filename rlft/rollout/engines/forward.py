"""Forward passes of the transformers engine: through transformers' layers, or leaner ones where a model allows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, CacheLayerMixin, DynamicCache, PreTrainedModel

from rlft.model.kernels.kv_cache import KVCache, Span
from rlft.model.kernels.sizes import LENGTH, rounded_up
from rlft.model.layers.norms_and_mlps import compile_inference_layers, use_inference_layers
from rlft.model.layers.slow_paths import is_on_cpu, note, slow_paths
from rlft.rollout.engines.llama_forward import llama_forward_of
from rlft.rollout.engines.prefixes import TOKENS_PER_PASS, Context, Prefill


class ForwardPass(Prefill, Protocol):
    """A model whose weights carry one adapter at a time."""

    def pristine(self, name: str) -> Tensor:
        """A parameter of the base model."""
        ...

    def load(self, names: Collection[str], weight: Callable[[str], Tensor]) -> None:
        """Compute with other weights of these parameters; `weight` gives any parameter's, also of those that stay."""
        ...

    def release(self, names: Collection[str]) -> None:
        """Let go of these parameters' weights where that frees memory; they are loaded before the next pass."""
        ...

    def reload(self) -> None:
        """Compute with the model's own parameters, which have changed."""
        ...

    def step(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        """Append a token to each of the first R rows of the cache, (R,); returns their logits (R, V)."""
        ...

    def logits(self, token_ids: Tensor) -> Tensor:
        """Logits (P, T, V) of sequences (P, T)."""
        ...


def forward_pass(model: PreTrainedModel, *, compile: bool) -> ForwardPass:
    """The fastest forward pass with the model's results; with `compile` always through transformers' layers.

    Why it is not `llama_forward` is noted on the model, see `slow_paths`.
    """
    if compile:
        note(slow_paths(model), "rollout.engine_args.compile asks for transformers' layers")
    elif is_on_cpu(model) and (lean := llama_forward_of(model)) is not None:
        return lean
    return _TransformersModel(model, compile=compile)


class _TransformersModel:
    def __init__(self, model: PreTrainedModel, *, compile: bool) -> None:
        self._model = model
        self._pristine: dict[str, Tensor] = {}
        """Parameters of the base that are replaced by own ones: other models of this process may have them, too."""
        use_inference_layers(model)
        if compile:
            compile_inference_layers(model)
        self.packs_contexts = False
        takes_cache = "cache" in inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if takes_cache else "past_key_values"

    def pristine(self, name: str) -> Tensor:
        return self._pristine.get(name, self._model.get_parameter(name))

    def load(self, names: Collection[str], weight: Callable[[str], Tensor]) -> None:
        for name in names:
            if name not in self._pristine:
                self._pristine[name] = self._model.get_parameter(name)
                module, _, leaf = name.rpartition(".")
                own = nn.Parameter(self._pristine[name].clone(), requires_grad=False)
                self._model.get_submodule(module).register_parameter(leaf, own)
            self._model.get_parameter(name).copy_(weight(name))

    def release(self, names: Collection[str]) -> None:
        pass  # parameters that are others each time would be compiled for each time

    def reload(self) -> None:
        self._pristine.clear()

    def prefill(self, sequences: Sequence[Sequence[int]], contexts: Sequence[Context]) -> list[Span]:
        """Those behind known contexts of one length together, the others when theirs are known."""
        found: dict[int, Span] = {}
        while len(found) < len(sequences):
            by_length: dict[int, list[tuple[int, list[Span]]]] = {}
            for index, context in enumerate(contexts):
                if index not in found and all(not isinstance(each, int) or each in found for each in context):
                    spans = [found[each] if isinstance(each, int) else each for each in context]
                    by_length.setdefault(sum(span[0].shape[2] for span in spans), []).append((index, spans))
            for before, ready in by_length.items():
                ready.sort(key=lambda each: len(sequences[each[0]]))  # so that what pads does not pad much
                for part in _passes([before + _width(sequences[index]) for index, _ in ready]):
                    indices, spans_before = zip(*ready[part], strict=True)
                    spans = self._behind(before, [sequences[index] for index in indices], spans_before)
                    found |= dict(zip(indices, spans, strict=True))
        return [found[index] for index in range(len(sequences))]

    def _behind(
        self, before: int, sequences: Sequence[Sequence[int]], contexts: Sequence[Sequence[Span]]
    ) -> list[Span]:
        """One pass over sequences behind contexts of `before` tokens; padding is on the right, which causal attention
        ignores."""
        width = max(map(_width, sequences))
        padded = torch.zeros(len(sequences), width, dtype=torch.int64)
        for row, tokens in enumerate(sequences):
            padded[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        cache = DynamicCache()
        if before:
            whole = [[torch.cat(parts, dim=2) for parts in zip(*context, strict=True)] for context in contexts]
            for layer, rows in enumerate(zip(*whole, strict=True)):
                cache.update(*torch.stack(rows, dim=1), layer)
        layers = self._keys_values(padded, cache)
        # Copies, since a view would keep all rows of the pass, and their contexts, in memory.
        return [
            [layer[:, row, :, before : before + len(tokens)].clone() for layer in layers]
            for row, tokens in enumerate(sequences)
        ]

    def _keys_values(self, token_ids: Tensor, cache: DynamicCache) -> list[Tensor]:
        """Keys and values (2, P, H_kv, T, D) of every layer, those of the cache and of tokens (P, T) behind them."""
        token_ids = token_ids.to(self._model.device)
        self._model.base_model(input_ids=token_ids, use_cache=True, **{self._cache_argument: cache})
        sizes = {(layer.keys.shape[-1], layer.values.shape[-1]) for layer in cache.layers}
        for keys, values in sizes:
            if keys != values:
                raise ValueError(
                    f"this model's keys have {keys} dimensions and its values {values}; the transformers engine needs "
                    "as many of both: use rollout.engine=vllm"
                )
        return [torch.stack([layer.keys, layer.values]) for layer in cache.layers]

    def step(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        positions = cache.begin(len(token_ids))
        logits: Tensor = self._model(
            input_ids=token_ids[:, None],
            position_ids=positions[:, None],
            attention_mask=_unused_mask(cache),
            use_cache=True,
            logits_to_keep=1,
            row_cache=cache,
            **{self._cache_argument: _TransformersCache(cache)},
        ).logits[:, -1]
        cache.advance()
        return logits

    def logits(self, token_ids: Tensor) -> Tensor:
        return self._model(input_ids=token_ids, use_cache=False).logits


def _width(sequence: Sequence[int]) -> int:
    """Tokens that a sequence takes in a pass by itself, padding included."""
    return rounded_up(max(1, len(sequence)), LENGTH)


def _passes(widths: Sequence[int]) -> Iterator[slice]:
    """Sequences of these ascending widths in passes, in which each is as wide as the last one."""
    start = 0
    while start < len(widths):
        end = start + 1
        while end < len(widths) and (end + 1 - start) * widths[end] <= TOKENS_PER_PASS:
            end += 1
        yield slice(start, end)
        start = end


def _unused_mask(cache: KVCache) -> Tensor:
    """An additive mask for transformers' models, which make one otherwise; attention over the cache has its own."""
    return torch.zeros(cache.width, 1, 1, 1, dtype=cache.dtype, device=cache.age.device)


class _TransformersCache(Cache):
    """A cache in a step, as transformers' models take it."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__(layers=[_CacheLayer(cache, index) for index in range(cache.num_layers)])


class _CacheLayer(CacheLayerMixin):
    def __init__(self, cache: KVCache, index: int) -> None:
        super().__init__()
        self._cache, self._index = cache, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self._cache.write(self._index, torch.stack([key_states[:, :, 0], value_states[:, :, 0]], dim=1))
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self._cache.length - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.length, 0

    def get_max_length(self) -> int:
        return self._cache.max_length

    get_max_cache_shape = get_max_length
