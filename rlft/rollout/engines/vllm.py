"""The engine that generates with vLLM, https://docs.vllm.ai: paged attention, continuous batching, cached prompts.

vLLM lives in a process of its own (`vllm_process`), which ends with this one. Adapters are LoRA requests beside the
frozen base: nothing is merged, and a new version costs the reading of a few megabytes.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlft.common.child_process import ChildProcess
from rlft.config import AdapterConfig, ModelConfig
from rlft.model import base as models
from rlft.model import chat
from rlft.model.adapter import adapter_shapes, refuse_misfit, save_tensors, verified_hash
from rlft.model.pretrained import load_generation_config
from rlft.rollout.engines import vllm_process
from rlft.rollout.engines.contract import EngineLostError, Request, refuse_other_version
from rlft.rollout.engines.traits import VllmArguments
from rlft.rollout.engines.vllm_process import Answer
from rlft.types import Adapter, Completion, FinishReason, SamplingParams

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `max_lora_rank` can be; see `traits.EngineTraits.max_rank`."""
CPU_ARGUMENTS = {"kv_cache_memory_bytes": 2 * 2**30, "enable_chunked_prefill": False}
"""On a CPU, unless `engine_args` say otherwise: vLLM would take nearly all memory for keys and values, and it fails
when a sample with a seed has its prompt computed in parts."""
MIN_TEMPERATURE = 0.01
"""vLLM raises lower temperatures to this one."""


class VllmEngine:
    """An engine that generates with vLLM, which runs in a process of its own; a `contract.Engine`.

    Samples depend on their seeds; that they do not depend on the batch as well is best effort, since the sizes of
    matrix products and so their rounding follow the batch (on GPUs: VLLM_BATCH_INVARIANT=1).
    """

    def __init__(
        self,
        model_folder: Path | str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model: ModelConfig,
        adapter: AdapterConfig,
        threads: int,
        engine_args: VllmArguments,
    ) -> None:
        """Start the process and load the base model into it.

        Raises:
            ValueError: vllm is not installed, does not take these arguments, or cannot run this model or adapter.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "rollout.engine: vllm needs the package vllm: pip install 'rlft[vllm]' on a GPU, see docs/rollouts.md "
                "for a CPU"
            )
        self.version: int | None = None
        self._hash = ""
        self._config, self._folder = adapter, str(model_folder)
        self._shapes = adapter_shapes(model_folder, adapter)
        arguments = _llm_arguments(self._folder, model, adapter, engine_args)
        # Without a list it also prepares the output layer for updates, which costs time for every token.
        arguments["lora_target_modules"] = sorted({key.split(".lora_")[0].rpartition(".")[2] for key in self._shapes})
        self._end_ids = tuple(sorted(chat.end_token_ids(tokenizer, load_generation_config(self._folder))))
        self._loads = 0
        self._process = _start_process(threads)
        self._finalizer = weakref.finalize(self, _end, self._process, os.getpid())
        self._process.send({"sleep": engine_args.sleep, "arguments": arguments})
        self.context: int = self._answer("rollout.engine_args: vLLM does not start with them")

    def load_adapter(self, adapter: Adapter) -> None:
        """Hand an adapter to vLLM as a folder in memory; the bare base takes the LoRA request away instead."""
        content_hash = verified_hash(adapter)
        if adapter.tensors:
            # vLLM fits tensors of other shapes in where it can, and leaves out those of other modules.
            refuse_misfit(self._shapes, adapter.tensors)
            self._loads += 1
            # vLLM keeps prompts' keys and values by the adapter's name: no two loads may share one.
            name = f"v{adapter.version}-{content_hash[:12]}-{self._loads}"
            with tempfile.TemporaryDirectory(prefix="rlft-adapter-", dir=_memory_folder()) as folder:
                save_tensors(Path(folder), self._config, self._folder, adapter.tensors)
                self._call("load_adapter", self._loads, name, folder)
        else:
            self._call("unload_adapter")
        self.version, self._hash = adapter.version, content_hash

    def generate(self, requests: Sequence[Request], params: SamplingParams, *, version: int) -> list[list[Completion]]:
        """Complete every request; vLLM batches all samples itself.

        Raises:
            ValueError: vLLM refuses the request, see `contract.Engine`.
            RuntimeError: the process of vLLM died, or failed.
        """
        refuse_other_version(version, self.version)
        self._check(requests, params)
        rows = [(index, request.prompt_ids, seed) for index, request in enumerate(requests) for seed in request.seeds]
        prompts, seeds = [row[1] for row in rows], [row[2] % 2**63 for row in rows]
        samples = self._call("generate", prompts, seeds, params, self._end_ids) if rows else []
        completions: list[list[Completion]] = [[] for _ in requests]
        for (index, _, _), (token_ids, logprobs, policy_logprobs, finish) in zip(rows, samples, strict=True):
            reason: FinishReason = finish
            completions[index].append(
                Completion(
                    token_ids=token_ids,
                    logprobs=logprobs,
                    policy_logprobs=policy_logprobs,
                    finish_reason=reason,
                    adapter_version=version,
                    adapter_hash=self._hash,
                )
            )
        return completions

    def logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int], *, version: int) -> list[float]:
        """Log-probs of these tokens behind the prompt at temperature 1, as vLLM computes those of a prompt."""
        refuse_other_version(version, self.version)
        request = Request(prompt_ids=tuple(prompt_ids), seeds=())
        # The pass asks vLLM for one token more, as truncated sampling does.
        self._check([request], SamplingParams(temperature=1.0, top_p=1.0, top_k=1, max_new_tokens=len(token_ids)))
        return list(self._call("logprobs", [request.prompt_ids], [tuple(token_ids)])[0])

    def close(self) -> None:
        """End the process of vLLM."""
        self._finalizer()

    def _call(self, method: str, *arguments: Any) -> Any:
        self._process.send((method, arguments))
        return self._answer("vLLM refuses")

    def _answer(self, refused: str) -> Any:
        """The next answer of vLLM's process.

        Raises:
            ValueError: vLLM refuses; `refused` and its own words.
            EngineLostError: the process died.
            RuntimeError: vLLM failed.
        """
        try:
            answer: Answer = self._process.receive()
        except EOFError:
            how = f"the process of vLLM {self._process.kill()}"
            raise EngineLostError(f"{how}. The last that it printed:\n{self._process.printed() or 'nothing'}") from None
        if answer.refusal:
            raise ValueError(f"{refused}: {answer.refusal}")
        if answer.failure:
            printed = self._process.printed() or "nothing"
            raise RuntimeError(f"vLLM failed:\n{answer.failure}\nThe last that it printed:\n{printed}")
        return answer.value

    def _check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        if 0 < params.temperature < MIN_TEMPERATURE:
            raise ValueError(f"vLLM samples at temperatures from {MIN_TEMPERATURE}; use that, or 0 for greedy")
        if params.is_truncating and params.temperature != 1:
            # It gives the policy's log-probs before all its sampling parameters, the temperature too, or after them.
            raise ValueError(
                f"vLLM gives no log-probs of the policy at temperature {params.temperature:g} before top_p, top_k and "
                "min_p; use temperature 1, or none of them, or rollout.engine: transformers"
            )
        # A second pass then needs the finished sequence as a prompt, and vLLM a place behind it.
        behind = 1 if params.is_truncating else 0
        for request in requests:
            if not request.prompt_ids:
                raise ValueError("a request has an empty prompt: there is nothing to continue")
            total = len(request.prompt_ids) + params.max_new_tokens
            if total + behind > self.context:
                raise ValueError(
                    f"prompt and completion of {total} tokens exceed the context of {self.context - behind} that vLLM "
                    "has room for; see rollout.engine_args.max_model_len"
                )


def _start_process(threads: int) -> ChildProcess:
    """Start the process that vLLM runs in; `vllm_process.main` is its other half."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # workers on one machine would all take the first cores
        "TOKENIZERS_PARALLELISM": "false",
    }
    ours = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # it has a process of its own
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    return ChildProcess(vllm_process.main, threads=threads, defaults=defaults, environment=ours)


def _end(process: ChildProcess, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of the worker that exits
        process.kill()


def _llm_arguments(
    folder: str, model: ModelConfig, adapter: AdapterConfig, engine_args: VllmArguments
) -> dict[str, Any]:
    """The arguments of vllm.LLM; see `traits.VLLM_TAKEN`."""
    is_cpu = models.default_device().type == "cpu"
    return {
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # else it takes sampling settings from the model's folder
        **(CPU_ARGUMENTS if is_cpu else {}),
        **engine_args.for_llm(),
        "model": folder,
        "dtype": str(models.resolve_dtype(model)).removeprefix("torch."),
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= adapter.rank),
        "max_loras": 1,
        "max_cpu_loras": 2,  # the new one is read before the old one is forgotten
        "logprobs_mode": "processed_logprobs",
        "enable_sleep_mode": engine_args.sleep,
    }


def _memory_folder() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
