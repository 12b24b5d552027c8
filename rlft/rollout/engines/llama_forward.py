"""Forward passes of Llama and its relatives without transformers' layers: a quarter of the operations.

    x + W_o attention(rotate(W_q n), rotate(W_k n), W_v n) with n = norm(x),   then   x + W_d (silu(W_g n) * W_u n)

Tokens stand in rows (N, width), whichever sequences they belong to; the caller's attention knows which. Queries, keys
and values come from one product, residuals and gates are part of theirs, and the weights, with the adapter merged, lie
as the processor wants them (`frozen_linear`). A model is taken over only if the results agree with its own on a probe,
so that no list of model families has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlft.common.private_names import private
from rlft.model.kernels.elementwise import rms_norm, signed_sin_of
from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.joint_projection import joint_bias
from rlft.model.kernels.kv_cache import KVCache, Span
from rlft.model.kernels.llama_layers import LlamaLayer, LlamaLayers, Norm
from rlft.model.kernels.segments import Segment
from rlft.model.kernels.sizes import rounded_up
from rlft.model.kernels.tree_attention import Tree, attention_behind
from rlft.model.layers.slow_paths import note, slow_paths
from rlft.rollout.engines.prefixes import TOKENS_PER_PASS, Context

KNOWN_PER_PASS = 4 * TOKENS_PER_PASS
"""Tokens before them, all of whose keys and values attention copies, layer by layer."""


def llama_forward_of(model: PreTrainedModel) -> LlamaForward | None:
    """A model's lean forward pass, or None where it computes something else, which is then noted on the model."""
    noted = slow_paths(model)
    try:
        lean = LlamaForward(model)
        if (error := _error(lean, model)) <= (allowed := 1e-4 if model.dtype.itemsize >= 4 else 4e-2):
            return lean
        note(
            noted,
            f"{type(model).__name__} computes something else than Llama: logits differ by {error:.1e} of their "
            f"size on a probe, {allowed:.0e} is allowed",
        )
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        # It has other parts or takes other inputs.
        note(noted, f"{type(model).__name__} is another kind of model than Llama ({error})")
    return None


class LlamaForward:
    """The forward passes of a Llama-like model, computed without transformers' layers; a `forward.ForwardPass`."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the model's weights as they are; `llama_forward_of` checks that the results are the model's.

        Raises:
            AttributeError, TypeError, ValueError: the model has other parts.
        """
        self.packs_contexts = True
        self._model, self._decoder = model, model.base_model
        self._linears = _Linears(model)
        self._layers = [_Layer(layer, self._linears) for layer in self._decoder.layers]
        self._head = self._linears.add([model.get_output_embeddings()])
        self._held: LlamaLayers | None = None
        self.reload()

    def pristine(self, name: str) -> Tensor:
        """A parameter of the base model, whose own parameters are never changed here."""
        return self._model.get_parameter(name)

    def load(self, names: Collection[str], weight: Callable[[str], Tensor]) -> None:
        """Replace the weights of the linear layers that these parameters belong to."""
        self._held = None  # or the old ones would be there until the last new one is
        for linear in self._linears_of(names):
            linear.load(weight)
        self._held = LlamaLayers([layer.loaded() for layer in self._layers])

    def release(self, names: Collection[str]) -> None:
        """Let go of the weights of these linear layers, which have to be loaded before the next pass."""
        self._held = None
        for linear in self._linears_of(names):
            linear.release()

    def reload(self) -> None:
        """Take the model's own weights again, which have changed."""
        self._held = None
        for linear in self._linears.all:
            linear.load(self._model.get_parameter)
        self._held = LlamaLayers([layer.loaded() for layer in self._layers])

    def _linears_of(self, names: Collection[str]) -> list[_Linear]:
        return [linear for linear in self._linears.all if any(name in names for name in linear.names)]

    @property
    def _loaded(self) -> LlamaLayers:
        if self._held is None:
            raise ValueError("the layers' weights were let go of, or their loading broke off; load an adapter first")
        return self._held

    def prefill(self, sequences: Sequence[Sequence[int]], contexts: Sequence[Context]) -> list[Span]:
        """Keys and values of sequences of tokens, each of which stands behind its context."""
        found: list[Span] = []
        for part in _passes(sequences, contexts):
            first = part.start
            known = [
                [
                    each if not isinstance(each, int) else found[each] if each < first else each - first
                    for each in context
                ]
                for context in contexts[part]
            ]
            found += self._pass(sequences[part], known)
        return found

    def _pass(self, sequences: Sequence[Sequence[int]], contexts: Sequence[Context]) -> list[Span]:
        """`prefill` in one row of tokens."""
        row = _Row(sequences, contexts, self._num_padding(sequences))
        spans: list[list[Tensor]] = [[] for _ in sequences]

        def keep(heads: Tensor, num_heads: int) -> None:
            keys_values = heads[:, num_heads:].unflatten(1, (2, -1)).permute(1, 2, 0, 3)
            # Copies, since a view would keep those of all sequences in memory.
            for span, place in zip(spans, row.places, strict=True):
                span.append(keys_values[:, :, place].clone(memory_format=torch.contiguous_format))

        def attention(layer_index: int, heads: Tensor, num_heads: int, scale: float) -> Tensor:
            keep(heads, num_heads)
            return row.attention(layer_index, heads, num_heads, scale)

        heads, num_heads = self._loaded.last_heads(*self._embedded(*row.tokens(self._model.device)), attention)
        keep(heads, num_heads)
        return list(spans)

    def logits(self, token_ids: Tensor) -> Tensor:
        """Logits (P, T, V) of sequences (P, T)."""
        sequences: list[list[int]] = token_ids.tolist()
        row = _Row(sequences, [()] * len(sequences), self._num_padding(sequences))
        x = self._loaded(*self._embedded(*row.tokens(self._model.device)), row.attention)
        return self._head.linear(self._normed(x)[: token_ids.numel()]).unflatten(0, token_ids.shape)

    def step(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        """Append a token to each of the first R rows of the cache, (R,); returns their logits (R, V)."""
        positions = cache.begin(len(token_ids))
        logits = self._head.linear(self._normed(self._loaded.step(*self._embedded(token_ids, positions), cache)))
        cache.advance()
        return logits

    def _num_padding(self, sequences: Sequence[Sequence[int]]) -> int:
        """Tokens to add to a row that belong to no sequence, where products are made per shape."""
        count = sum(map(len, sequences))
        return rounded_up(max(1, count), self._head.linear.step) - count

    def _embedded(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the layers take of tokens (N,) at their positions (N,): (x (N, width), cosines and signed sines)."""
        x = self._decoder.embed_tokens(token_ids)
        cos, sin = (table[0, :, None] for table in self._decoder.rotary_emb(x, positions[None]))
        return x, cos, signed_sin_of(sin)

    def _normed(self, x: Tensor) -> Tensor:
        return rms_norm(x, *_norm(self._decoder.norm))


def _passes(sequences: Sequence[Sequence[int]], contexts: Sequence[Context]) -> Iterator[slice]:
    """The sequences in their order, as many at a time as there is room for."""
    start = tokens = 0
    known: dict[int, int] = {}
    for index, (sequence, context) in enumerate(zip(sequences, contexts, strict=True)):
        before = {id(each): each[0].shape[2] for each in context if not isinstance(each, int)}
        tokens += len(sequence)
        known |= before
        if index > start and (tokens > TOKENS_PER_PASS or sum(known.values()) > KNOWN_PER_PASS):
            yield slice(start, index)
            start, tokens, known = index, len(sequence), before
    if sequences:
        yield slice(start, len(sequences))


class _Row:
    """Sequences in one row of tokens without gaps, each attending to its context and to itself, causally."""

    def __init__(self, sequences: Sequence[Sequence[int]], contexts: Sequence[Context], num_padding: int) -> None:
        spans: dict[tuple[int, ...], Span] = {}
        """What is known, by the identities of the spans up to each."""
        for context in contexts:
            known = [each for each in context if not isinstance(each, int)]
            spans |= {tuple(map(id, known[:end])): known[end - 1] for end in range(1, len(known) + 1)}
        self._earlier = [span for span in spans.values() if span[0].shape[2]]
        start = -sum(span[0].shape[2] for span in self._earlier)
        segments: list[Segment] = []

        def path(before: tuple[Segment, ...], length: int) -> tuple[Segment, ...]:
            """The segments up to and with a new one."""
            nonlocal start
            if length == 0:
                return before
            segments.append(Segment(start=start, length=length, before=before))
            start += length
            return (*before, segments[-1])

        paths: dict[tuple[int, ...], tuple[Segment, ...]] = {(): ()}
        for identities, span in spans.items():
            paths[identities] = path(paths[identities[:-1]], span[0].shape[2])
        own: list[tuple[Segment, ...]] = []
        self.places: list[slice] = []
        """Where each sequence lies in the row."""
        self._positions: list[int] = []
        for tokens, context in zip(sequences, contexts, strict=True):
            before = own[context[-1]] if context and isinstance(context[-1], int) else paths[tuple(map(id, context))]
            first = sum(segment.length for segment in before)
            self.places.append(slice(start, start + len(tokens)))
            self._positions += range(first, first + len(tokens))
            own.append(path(before, len(tokens)))
        self._token_ids = [*(token for tokens in sequences for token in tokens), *[0] * num_padding]
        self._positions += [0] * num_padding
        path((), num_padding)
        self._tree = Tree(segments)

    def tokens(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids and positions (N,), those of the padding at the end."""
        return torch.tensor(self._token_ids, device=device), torch.tensor(self._positions, device=device)

    def attention(self, layer_index: int, heads: Tensor, num_heads: int, scale: float) -> Tensor:
        """A `llama_layers.Attention`."""
        earlier = [span[layer_index] for span in self._earlier]
        return attention_behind(heads, num_heads, self._tree, earlier, scale)


class _Linears:
    """All linear layers of a model, each made of one or several modules side by side."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._name_of = {module: name for name, module in model.named_modules()}
        self.all: list[_Linear] = []

    def add(self, modules: Sequence[nn.Module]) -> _Linear:
        if any(type(module) is not nn.Linear for module in modules):
            raise TypeError("a projection is not a plain linear layer")
        self.all.append(_Linear([f"{self._name_of[module]}.weight" for module in modules], modules))
        return self.all[-1]


class _Linear:
    linear: FrozenLinear

    def __init__(self, names: Sequence[str], modules: Sequence[Any]) -> None:
        self.names, self._modules = names, modules

    def load(self, weight: Callable[[str], Tensor]) -> None:
        weights = [weight(name) for name in self.names]
        bias = joint_bias(weights, [module.bias for module in self._modules])
        self.linear = FrozenLinear(torch.cat(weights) if len(weights) > 1 else weights[0], bias)

    def release(self) -> None:
        del self.linear


class _Layer:
    """Where a layer's weights are, and how it computes with them."""

    def __init__(self, layer: Any, linears: _Linears) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self._head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        is_silu = type(mlp.act_fn) in (nn.SiLU, private("transformers.activations.SiLUActivation"))
        self._activation = None if is_silu else mlp.act_fn
        self._scale = attention.scaling
        self._num_heads = attention.q_proj.out_features // attention.head_dim
        self._num_key_heads = attention.k_proj.out_features // attention.head_dim
        self._input = linears.add([attention.q_proj, attention.k_proj, attention.v_proj])
        self._output, self._gate = linears.add([attention.o_proj]), linears.add([mlp.gate_proj])
        self._up, self._down = linears.add([mlp.up_proj]), linears.add([mlp.down_proj])

    def loaded(self) -> LlamaLayer:
        """The layer with the weights that are loaded now."""
        query_norm, key_norm = (None if norm is None else _norm(norm) for norm in self._head_norms)
        return LlamaLayer(
            input_norm=_norm(self._norms[0]),
            input=self._input.linear,
            query_norm=query_norm,
            key_norm=key_norm,
            output=self._output.linear,
            inner_norm=_norm(self._norms[1]),
            gate=self._gate.linear,
            up=self._up.linear,
            down=self._down.linear,
            activation=self._activation,
            num_heads=self._num_heads,
            num_key_heads=self._num_key_heads,
            scale=self._scale,
        )


def _norm(norm: Any) -> Norm:
    return norm.weight, norm.variance_epsilon


# The probe


def _error(lean: LlamaForward, model: PreTrainedModel) -> float:
    """How much the logits of both differ, over their size: of sequences, and of tokens that continue them."""
    vocabulary, device = model.get_output_embeddings().out_features, model.device
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (2, 7), generator=generator).to(device)
    rows = torch.randint(vocabulary, (3, 3), generator=generator).to(device)
    prompt_of_row = [1, 0, 1]
    cache = KVCache(prompts=2, prompt_length=7, rows=3, new_tokens=3, device=device)
    with torch.inference_mode():
        # One prompt in three parts, so that what follows on known tokens and on those of the same row is tried, too.
        (begun,) = lean.prefill([prompts[1, :3].tolist()], [[]])
        parts = [prompts[0].tolist(), prompts[1, 3:5].tolist(), prompts[1, 5:].tolist()]
        whole_prompt, middle, rest = lean.prefill(parts, [[], [begun], [begun, 1]])
        cache.enter_prompts([0, 1], [[whole_prompt], [begun, middle, rest]])
        cache.enter_rows([0, 1, 2], prompt_of_row)
        continued = torch.stack([lean.step(rows[:, age], cache) for age in range(3)], dim=1)
        whole = torch.cat([prompts[prompt_of_row], rows], dim=1)
        expected = model(input_ids=whole, use_cache=False).logits
        actual = torch.cat([lean.logits(whole)[:, :7], continued], dim=1)
    # Single tokens may differ more in bfloat16, where a model has few states that are far larger than the others.
    error = (actual - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
    return float(error.mean())
