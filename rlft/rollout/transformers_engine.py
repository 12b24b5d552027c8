"""The engine that runs anywhere: a transformers model with the adapter merged into its weights.

What it saves: a prompt is computed once and its keys and values are copied to the group's rows; rows that have ended
leave the batch; the cache is allocated once at its full length; one pass over the vocabulary per token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.pytorch_utils import Conv1D

from rlft import adapters, chat
from rlft import model as models
from rlft.config import AdapterConfig, ModelConfig
from rlft.rollout.engine import Request
from rlft.rollout.sampling import sample
from rlft.rollout.seeds import uniforms
from rlft.types import Adapter, Completion, FinishReason, SamplingParams

COMPACT_BELOW = 0.75
"""Ended rows are taken out of the batch once the live ones are fewer than this share of it."""


class TransformersEngine:
    """See `engine.Engine`."""

    def __init__(
        self,
        model_folder: Path | str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model: ModelConfig,
        adapter: AdapterConfig,
        threads: int,
    ) -> None:
        """Load the base model."""
        self.device = models.default_device()
        self.threads = threads
        self.version: int | None = None
        self._hash = ""
        self._folder, self._kind, self._rank = model_folder, adapter.kind, adapter.rank
        self._is_full = adapter.kind == "full"
        self._scale = adapters.lora_scale(adapter)
        self._parts = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if adapter.kind == "dora" else set())
        self._model = models.load_base(
            model_folder, models.resolve_dtype(model), self.device, quantize=adapter.kind == "qlora"
        )
        if adapter.kind == "qlora":
            # An update cannot be merged into 4-bit weights: generate with what they stand for.
            self._model = self._model.dequantize()
        self._pristine: dict[str, Tensor] = {}
        self._end_ids = torch.tensor(sorted(chat.end_token_ids(tokenizer, self._model.generation_config)))
        parameters = inspect.signature(self._model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        text_config = self._model.config.get_text_config()
        self.context: int = text_config.max_position_embeddings
        self._window: int | None = getattr(text_config, "sliding_window", None)

    def load_adapter(self, adapter: Adapter) -> None:
        """See `engine.Engine`. Merges in float32 from the pristine base weights, so that nothing accumulates."""
        content_hash = adapters.adapter_hash(adapter.tensors)
        if content_hash != adapter.hash:
            raise ValueError(
                f"adapter version {adapter.version} claims hash {adapter.hash[:12]} but its tensors have "
                f"{content_hash[:12]}: "
                "it was damaged or mixed up on the way"
            )
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            if self._is_full:
                self._load_all_weights(adapter)
            else:
                self._merge(adapter)
        self.version, self._hash = adapter.version, content_hash

    def _merge(self, adapter: Adapter) -> None:
        updates = self._check_adapter(adapter)
        for name in self._pristine.keys() - updates.keys():
            self._model.get_parameter(name).copy_(self._pristine[name])
        for name, parts in updates.items():
            weight = self._model.get_parameter(name)
            pristine = self._pristine.setdefault(name, weight.detach().clone())
            weight.copy_(adapters.merged_weight(pristine, parts, self._scale, is_transposed=self._is_transposed(name)))

    def _load_all_weights(self, adapter: Adapter) -> None:
        parameters = dict(self._model.named_parameters())
        # The bare base has no tensors of its own: its weights are read again rather than kept twice.
        tensors = adapter.tensors
        if not tensors:
            if self.version is None:
                return
            tensors = dict(models.load_base(self._folder, self._model.dtype, self.device).named_parameters())
        wrong = [n for n in {*parameters, *tensors} if n not in parameters or n not in tensors]
        wrong += [n for n in tensors if n in parameters and tensors[n].shape != parameters[n].shape]
        if wrong:
            raise ValueError(f"the weights of adapter version {adapter.version} are not this model's: {min(wrong)!r}")
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], params: SamplingParams, *, version: int) -> list[list[Completion]]:
        """See `engine.Engine`."""
        if version != self.version:
            raise ValueError(f"asked to generate with adapter version {version} while {self.version} is loaded")
        self._check(requests, params)
        torch.set_num_threads(self.threads)
        rows = [index for index, request in enumerate(requests) for _ in request.seeds]
        token_ids, logprobs, lengths, stopped = self._decode(requests, rows, params)
        completions: list[list[Completion]] = [[] for _ in requests]
        for row, index in enumerate(rows):
            finish: FinishReason = "stop" if stopped[row] else "length"
            completions[index].append(
                Completion(
                    token_ids=tuple(token_ids[row, : lengths[row]].tolist()),
                    logprobs=tuple(logprobs[row, : lengths[row]].tolist()),
                    finish_reason=finish,
                    adapter_version=version,
                    adapter_hash=self._hash,
                )
            )
        return completions

    def _decode(
        self, requests: Sequence[Request], rows: list[int], params: SamplingParams
    ) -> tuple[Tensor, Tensor, list[int], list[bool]]:
        """Token ids and log-probs, both (rows, max_new_tokens), and how far and why each row went."""
        num_rows = len(rows)
        seeds = np.array([seed for request in requests for seed in request.seeds], dtype=np.uint64)
        uniform = torch.from_numpy(uniforms(seeds, params.max_new_tokens)).float().to(self.device)
        uniform.clamp_(max=1 - 2**-24)  # float32 rounds the largest doubles up to 1
        token_ids = torch.zeros(num_rows, params.max_new_tokens, dtype=torch.int64)
        logprobs = torch.zeros(num_rows, params.max_new_tokens)
        lengths = [params.max_new_tokens] * num_rows
        stopped = [False] * num_rows

        # The prompt's last token is the first one decoded, so that its logits need no code of their own.
        positions = torch.tensor([len(requests[index].prompt_ids) - 1 for index in rows], device=self.device)
        tokens = torch.tensor([requests[index].prompt_ids[-1] for index in rows], device=self.device)
        cache = self._prefill(requests, rows, params.max_new_tokens)
        live = torch.arange(num_rows)
        end_ids = self._end_ids.to(self.device)
        has_ended = torch.zeros(num_rows, dtype=torch.bool, device=self.device)
        for t in range(params.max_new_tokens):
            cache.positions = positions
            cache.length = int(positions.max()) + 1
            logits = self._model(
                input_ids=tokens[:, None],
                position_ids=positions[:, None],
                attention_mask=self._mask(positions, cache.length),
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_argument: cache},
            ).logits[:, -1]
            tokens, step_logprobs = sample(logits, uniform[live, t], temperature=params.temperature, top_p=params.top_p)
            token_ids[live, t] = tokens.cpu()
            logprobs[live, t] = step_logprobs.cpu()
            ends = torch.isin(tokens, end_ids) & ~has_ended
            for row in live[ends.cpu()].tolist():
                lengths[row], stopped[row] = t + 1, True
            has_ended |= ends
            positions = positions + 1
            num_live = int((~has_ended).sum())
            if num_live == 0:
                break
            if num_live < COMPACT_BELOW * len(live):
                keep = (~has_ended).nonzero().squeeze(1)
                live, tokens, positions, has_ended = (
                    live[keep.cpu()],
                    tokens[keep],
                    positions[keep],
                    has_ended[keep],
                )
                cache.keep(keep)
        return token_ids, logprobs, lengths, stopped

    def _prefill(self, requests: Sequence[Request], rows: list[int], max_new_tokens: int) -> _RowCache:
        """Keys and values of all prompts but for their last tokens, each computed once, then copied to its rows."""
        longest = max(len(request.prompt_ids) for request in requests)
        length = max(1, longest - 1)
        padded = torch.zeros(len(requests), length, dtype=torch.int64)
        for index, request in enumerate(requests):
            head = torch.tensor(request.prompt_ids[:-1] or request.prompt_ids)
            padded[index, : len(head)] = head
        # Padding stands on the right, where causal attention never looks and decoding overwrites it.
        prefill = DynamicCache()
        self._model.base_model(input_ids=padded.to(self.device), use_cache=True, **{self._cache_argument: prefill})
        return _RowCache(prefill, torch.tensor(rows, device=self.device), longest + max_new_tokens)

    def _mask(self, positions: Tensor, length: int) -> Tensor:
        """(rows, 1, 1, length) additive mask that hides what lies beyond each row's position."""
        beyond = torch.arange(length, device=self.device)[None, :] > positions[:, None]
        mask = torch.zeros(beyond.shape, dtype=self._model.dtype, device=self.device)
        return mask.masked_fill_(beyond, float("-inf"))[:, None, None, :]

    def _check_adapter(self, adapter: Adapter) -> dict[str, dict[str, Tensor]]:
        """An update's tensors by parameter name of the base model; all is checked before a single weight changes."""
        updates: dict[str, dict[str, Tensor]] = {}
        parameters = dict(self._model.named_parameters())
        for name in sorted(adapter.tensors):
            stem, _, which = name.removesuffix(".weight").rpartition(".")
            parameter = f"{stem.removeprefix('base_model.model.')}.weight"
            if which not in self._parts or parameter not in parameters:
                raise ValueError(f"the adapter's tensor {name!r} is not part of a {self._kind} update of this model")
            updates.setdefault(parameter, {})[which] = adapter.tensors[name]
        for parameter, parts in updates.items():
            if parts.keys() != self._parts:
                raise ValueError(f"the adapter's update of {parameter} is not whole: it has {', '.join(sorted(parts))}")
            down, up = parts["lora_A"], parts["lora_B"]
            if down.shape[0] != self._rank or up.shape[1] != self._rank:
                raise ValueError(f"the adapter's update of {parameter} has another rank than adapter.rank={self._rank}")
            shape = parameters[parameter].shape
            if (up.shape[0], down.shape[1]) != tuple(reversed(shape) if self._is_transposed(parameter) else shape):
                raise ValueError(f"the adapter's update of {parameter} does not have the weight's shape {tuple(shape)}")
        return updates

    def _is_transposed(self, parameter: str) -> bool:
        """GPT-2's layers store their weight the other way round."""
        return isinstance(self._model.get_submodule(parameter.rpartition(".")[0]), Conv1D)

    def _check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        for request in requests:
            if not request.prompt_ids:
                raise ValueError("a request has an empty prompt: there is nothing to continue")
            total = len(request.prompt_ids) + params.max_new_tokens
            if total > self.context:
                raise ValueError(
                    f"prompt and completion of {total} tokens exceed the model's context of {self.context}"
                )
            if self._window is not None and total > self._window:
                raise ValueError(
                    f"prompt and completion of {total} tokens exceed the model's sliding window of {self._window}"
                )


class _RowCache(Cache):
    """Keys and values of R rows at their full length; each row writes at its own position."""

    def __init__(self, prefill: DynamicCache, rows: Tensor, capacity: int) -> None:
        self.positions = torch.zeros_like(rows)
        self.length = 0
        super().__init__(layers=[_RowLayer(self, layer.keys, layer.values, rows, capacity) for layer in prefill.layers])

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
            layer.rows = layer.rows[: len(rows)]


class _RowLayer(CacheLayerMixin):
    def __init__(self, cache: _RowCache, keys: Tensor, values: Tensor, rows: Tensor, capacity: int) -> None:
        super().__init__()
        self._cache = cache
        self.rows = torch.arange(len(rows), device=rows.device)
        self.keys, self.values = (_spread(tensor, rows, capacity) for tensor in (keys, values))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys[self.rows, :, self._cache.positions] = key_states[:, :, 0]
        self.values[self.rows, :, self._cache.positions] = value_states[:, :, 0]
        return self.keys[:, :, : self._cache.length], self.values[:, :, : self._cache.length]

    def get_seq_length(self) -> int:
        return self._cache.length - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.length, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length


def _spread(tensor: Tensor, rows: Tensor, capacity: int) -> Tensor:
    """(prompts, H, P, D) to (rows, H, capacity, D) with zeros behind."""
    spread = tensor.new_zeros(len(rows), tensor.shape[1], capacity, tensor.shape[3])
    spread[:, :, : tensor.shape[2]] = tensor[rows]
    return spread
