"""The engine that runs anywhere: a transformers model with the adapter merged into its weights.

What it saves: what prompts begin with, and an episode's earlier turns, are computed once (`prefixes`); a prompt's keys
and values are kept once for all of its samples (`model.kernels.kv_cache`); rows that have ended give their place to
waiting samples or leave the batch (`batching`); few operations per layer where the model allows it (`llama_forward`);
one pass over the vocabulary per token (`sampling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlft.config import AdapterConfig, ModelConfig
from rlft.model import base as models
from rlft.model import chat
from rlft.model.adapter import verified_hash
from rlft.model.context import model_context
from rlft.model.kernels.kv_cache import KVCache, Span
from rlft.model.layers.slow_paths import slow_paths
from rlft.rollout.engines.batching import Sampled, sample_all
from rlft.rollout.engines.contract import Request, refuse_other_version
from rlft.rollout.engines.forward import ForwardPass, forward_pass
from rlft.rollout.engines.merging import MergedWeights
from rlft.rollout.engines.prefixes import KeptTurns, Prompts
from rlft.rollout.engines.traits import TransformersArguments
from rlft.types import Adapter, Completion, SamplingParams

MAX_ROWS = {"cpu": 64, "cuda": 256}
"""Rows of a batch by default. More rows help the products little on a CPU, and waiting samples keep fewer rows full."""


class TransformersEngine:
    """An engine that runs a transformers model in this process; a `contract.Engine`."""

    def __init__(
        self,
        model_folder: Path | str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model: ModelConfig,
        adapter: AdapterConfig,
        threads: int,
        engine_args: TransformersArguments | None = None,
    ) -> None:
        """Load the base model."""
        arguments = engine_args or TransformersArguments()
        self.device = models.default_device()
        self.threads = threads
        self.version: int | None = None
        self._hash = ""
        self._folder, self._is_full = model_folder, adapter.kind == "full"
        self._tokenizer = tokenizer
        self._model = models.load_base(
            model_folder,
            models.resolve_dtype(model),
            self.device,
            quantize=adapter.kind == "qlora",
            shares_weights=adapter.kind != "full",  # whose weights are written over
        )
        if adapter.kind == "qlora":
            # An update cannot be merged into 4-bit weights: generate with what they stand for.
            self._model = self._model.dequantize()
        self._forward = forward_pass(self._model, compile=arguments.compile)
        self._weights = MergedWeights(self._model, self._forward, adapter)
        self._end_ids = chat.end_token_ids(tokenizer, self._model.generation_config)
        self._context = model_context(self._model.config)
        self.context = self._context.tokens
        self._max_rows = arguments.max_rows or MAX_ROWS[self.device.type]
        self._cache_bytes = arguments.cache_mb * 1e6
        self._kept = KeptTurns()
        """What the next call may go on from."""

    @property
    def slow_paths(self) -> tuple[str, ...]:
        """Why parts of the model are computed by transformers, as far as that has come up."""
        return tuple(slow_paths(self._model))

    def load_adapter(self, adapter: Adapter) -> None:
        """Merge an adapter in float32 into the pristine base weights, so that nothing of earlier ones accumulates."""
        content_hash = verified_hash(adapter)
        torch.set_num_threads(self.threads)
        self.forget()
        if self._is_full:
            self._load_all_weights(adapter)
        else:
            self._weights.check(adapter)
            self.version = None  # until all its weights are there
            self._weights.load(adapter)
        self.version, self._hash = adapter.version, content_hash

    def unload(self) -> None:
        """Let go of the merged weights, where they are beside the model's own, until the next adapter is loaded."""
        self.forget()
        if self.version is not None and not self._is_full:
            self.version, self._hash = None, ""
            self._forward.release(self._weights.merged)

    def forget(self) -> None:
        """Let go of what was kept for the next call."""
        self._kept = KeptTurns()

    @torch.no_grad()
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
        self._forward.reload()

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_token: Callable[[Sequence[int]], None] | None = None,
    ) -> list[list[Completion]]:
        """Complete every request; all of them share batches and one cache, which is dropped afterwards.

        Args:
            on_token: called after each token with all tokens of its sample, to show them as they come; what it raises
                ends the call.
        """
        refuse_other_version(version, self.version)
        self._check(requests, params)
        if not any(request.seeds for request in requests):
            return [[] for _ in requests]
        torch.set_num_threads(self.threads)
        kept = self._kept if any(request.continues for request in requests) else KeptTurns()
        self.forget()
        prompts, rows = self._room(requests, params)
        cache = KVCache(
            prompts=prompts,
            prompt_length=max(len(request.prompt_ids) for request in requests) - 1,
            rows=rows,
            new_tokens=params.max_new_tokens,
            device=self.device,
        )
        # Where each turn's rest would need a pass of its own, computing all turns again in one pass is better.
        bound = self._cache_bytes / 2 if self._forward.packs_contexts else 0.0
        decoder = _Decoder(self._forward, cache, requests, kept, KeptTurns(bound), bytes_per_token=self._per_token())
        del kept  # the decoder lets go of it
        sampled = sample_all(
            decoder,
            requests,
            params,
            max_rows=rows,
            max_prompts=prompts,
            end_ids=self._end_ids,
            ends_with_stop=lambda ids: chat.ends_with(self._tokenizer, ids, params.stop),
            device=self.device,
            on_token=on_token,
        )
        self._kept = decoder.kept
        return [[self._completion(one) for one in samples] for samples in sampled]

    @torch.inference_mode()
    def logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int], *, version: int) -> list[float]:
        """Log-probs of these tokens behind the prompt at temperature 1, from one pass over both."""
        logits = self.logits(prompt_ids, token_ids, version=version)
        targets = torch.tensor(token_ids, device=self.device)[:, None]
        return logits.float().log_softmax(dim=-1).gather(1, targets).squeeze(1).tolist()

    @torch.inference_mode()
    def logits(self, prompt_ids: Sequence[int], token_ids: Sequence[int], *, version: int) -> Tensor:
        """Logits (len(token_ids), V) that each of these tokens behind the prompt is drawn from, of one pass."""
        refuse_other_version(version, self.version)
        torch.set_num_threads(self.threads)
        ids = torch.tensor([[*prompt_ids, *token_ids]], device=self.device)
        return self._forward.logits(ids)[0, len(prompt_ids) - 1 : -1]

    def _completion(self, sampled: Sampled) -> Completion:
        assert self.version is not None
        return Completion(
            token_ids=tuple(sampled.token_ids),
            logprobs=tuple(sampled.logprobs),
            policy_logprobs=tuple(sampled.policy_logprobs) or None,
            finish_reason="stop" if sampled.has_stopped else "length",
            adapter_version=self.version,
            adapter_hash=self._hash,
        )

    def _room(self, requests: Sequence[Request], params: SamplingParams) -> tuple[int, int]:
        """How many prompts and rows the cache holds at a time, within its bound.

        Raises:
            ValueError: not even one sample fits.
        """
        per_token = self._per_token()
        per_prompt = per_token * max(len(request.prompt_ids) for request in requests)
        per_row = per_token * params.max_new_tokens
        num_rows = sum(len(request.seeds) for request in requests)
        samples = max(1, num_rows // len(requests))
        for rows in range(min(num_rows, self._max_rows), 0, -1):
            prompts = min(len(requests), -(-rows // samples) + 1)
            if prompts * per_prompt + rows * per_row <= self._cache_bytes:
                return prompts, rows
        raise ValueError(
            f"one sample needs {(per_prompt + per_row) / 1e6:.0f} MB of keys and values, more than "
            f"rollout.engine_args.cache_mb={self._cache_bytes / 1e6:.0f}; raise it, or shorten prompts or "
            "sampling.max_new_tokens"
        )

    def _per_token(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self._model.dtype.itemsize)

    def _check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        for request in requests:
            if not request.prompt_ids:
                raise ValueError("a request has an empty prompt: there is nothing to continue")
            total = len(request.prompt_ids) + params.max_new_tokens
            if total > self.context:
                raise ValueError(f"prompt and completion of {total} tokens exceed {self._context.words}")


class _Decoder:
    """A model's forward pass, the prompts and the cache of one `generate`; a `batching.Decoder`."""

    def __init__(
        self,
        forward: ForwardPass,
        cache: KVCache,
        requests: Sequence[Request],
        known: KeptTurns,
        kept: KeptTurns,
        *,
        bytes_per_token: int,
    ) -> None:
        """Arguments: `known`, of the call before; `kept`, to be filled for the next one."""
        self._forward, self._cache, self._requests = forward, cache, requests
        self._prompts = Prompts(forward, requests, known)
        self.kept, self._bytes_per_token = kept, bytes_per_token
        self._in_slot: dict[int, tuple[int, Sequence[Span]]] = {}
        """The request of each slot, and the spans of its prompt if it goes on."""
        self.enter_rows, self.move_rows = cache.enter_rows, cache.move_rows

    def enter_prompts(self, slots: Sequence[int], requests: Sequence[int]) -> None:
        prompts = self._prompts.spans(requests)
        self._cache.enter_prompts(slots, prompts)
        for slot, request, spans in zip(slots, requests, prompts, strict=True):
            self._in_slot[slot] = (request, spans if self._requests[request].goes_on else ())

    def keep(self, row: int, request: int, token_ids: Sequence[int]) -> None:
        """The last token that was sampled has never been read, and the prompt's last one is the row's first.

        What finds no room is computed again in the next turn.
        """
        spans = next(spans for held, spans in self._in_slot.values() if held == request)
        if self.kept.has_room(spans, len(token_ids) * self._bytes_per_token):
            own = self._cache.own_span(row, len(token_ids))
            self.kept.keep((*self._requests[request].prompt_ids, *token_ids[:-1]), [*spans, own])

    def step(self, tokens: Tensor) -> Tensor:
        return self._forward.step(tokens, self._cache)
