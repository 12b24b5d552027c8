"""The engine that generates with vLLM, https://docs.vllm.ai: paged attention, continuous batching, cached prompts.

vLLM lives in a process of its own (`vllm_process`), which ends with this one. Adapters are LoRA requests beside the
frozen base: nothing is merged, and a new version costs the reading of a few megabytes.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from rlft.config import AdapterConfig, ModelConfig
from rlft.model import base as models
from rlft.model import chat
from rlft.model.adapter import adapter_shapes, refuse_misfit, save_tensors, verified_hash
from rlft.rollout.engines.contract import EngineLostError, Request, refuse_other_version
from rlft.rollout.engines.vllm_process import Answer
from rlft.types import Adapter, Completion, FinishReason, SamplingParams

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `max_lora_rank` can be."""
CPU_ARGUMENTS = {"kv_cache_memory_bytes": 2 * 2**30, "enable_chunked_prefill": False}
"""On a CPU, unless `engine_args` say otherwise: vLLM would take nearly all memory for keys and values, and it fails
when a sample with a seed has its prompt computed in parts."""
MIN_TEMPERATURE = 0.01
"""vLLM raises lower temperatures to this one."""

# The import path is passed as arguments: in PYTHONPATH it would leak into what vLLM starts.
_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from rlft.rollout.engines.vllm_process import main; main()"
_OURS = {"model", "tokenizer", "dtype", "enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras", "logprobs_mode"}
_OURS |= {"enable_sleep_mode", "lora_target_modules"}


class VllmEngine:
    """See `contract.Engine`.

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
        engine_args: Mapping[str, Any],
    ) -> None:
        """Start the process and load the base model into it.

        Args:
            engine_args: `sleep` (on a GPU: leave its memory to the learner between two calls), and arguments of
                vllm.LLM.

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
        arguments = _arguments(self._folder, model, adapter, engine_args)
        # Without a list it also prepares the output layer for updates, which costs time for every token.
        arguments["lora_target_modules"] = sorted({key.split(".lora_")[0].rpartition(".")[2] for key in self._shapes})
        self._end_ids = tuple(sorted(chat.end_token_ids(tokenizer, _generation_config(self._folder))))
        self._loads = 0
        self._process = _Process(threads)
        self._process.send({"sleep": bool(engine_args.get("sleep")), "arguments": arguments})
        self.context: int = self._process.answer("rollout.engine_args: vLLM does not start with them")

    def load_adapter(self, adapter: Adapter) -> None:
        """See `contract.Engine`."""
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
        """See `contract.Engine`.

        Raises:
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
        """See `contract.Engine`: in one pass, as vLLM computes a prompt."""
        refuse_other_version(version, self.version)
        request = Request(prompt_ids=tuple(prompt_ids), seeds=())
        # The pass asks vLLM for one token more, as truncated sampling does.
        self._check([request], SamplingParams(temperature=1.0, top_p=1.0, top_k=1, max_new_tokens=len(token_ids)))
        return list(self._call("logprobs", [request.prompt_ids], [tuple(token_ids)])[0])

    def close(self) -> None:
        """End the process of vLLM."""
        self._process.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        self._process.send((method, arguments))
        return self._process.answer("vLLM refuses")

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


class _Process:
    """The process of vLLM as the worker sees it."""

    def __init__(self, threads: int) -> None:
        ours, theirs = socket.socketpair()
        lifeline, keep = os.pipe()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), str(lifeline)),
                *map(os.path.abspath, sys.path),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(theirs.fileno(), lifeline),
            start_new_session=True,
            env=_environment(threads),
        )
        theirs.close()
        os.close(lifeline)
        self._process, self._connection = process, Connection(ours.detach())
        self._finalizer = weakref.finalize(self, _end, process, self._connection, self._log, keep, os.getpid())

    def send(self, message: Any) -> None:
        with suppress(OSError):  # it died; `answer` tells
            self._connection.send(message)

    def answer(self, refused: str) -> Any:
        """Its next answer.

        Raises:
            ValueError: vLLM refuses; `refused` and its own words.
            RuntimeError: it died or failed.
        """
        try:
            while not self._connection.poll(1.0):
                if self._process.poll() is not None and not self._connection.poll(0):
                    raise EOFError
            answer: Answer = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise EngineLostError(f"the process of vLLM {how}. The last that it printed:\n{self._printed()}") from None
        if answer.refusal:
            raise ValueError(f"{refused}: {answer.refusal}")
        if answer.failure:
            raise RuntimeError(f"vLLM failed:\n{answer.failure}\nThe last that it printed:\n{self._printed()}")
        return answer.value

    def close(self) -> None:
        self._finalizer()

    def _printed(self, limit: int = 3000) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - limit))
        return self._log.read().decode(errors="replace").strip() or "nothing"


def _end(process: subprocess.Popen[bytes], connection: Connection, log: IO[bytes], lifeline: int, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the worker that exits
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    connection.close()
    log.close()
    os.close(lifeline)


def _environment(threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    defaults = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # workers on one machine would all take the first cores
        "TOKENIZERS_PARALLELISM": "false",
    }
    ours = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # it has a process of its own
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "OMP_NUM_THREADS": str(threads),
    }
    return {**defaults, **kept, **ours}


def _arguments(
    folder: str, model: ModelConfig, adapter: AdapterConfig, engine_args: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of vllm.LLM."""
    arguments = {key: value for key, value in engine_args.items() if key != "sleep"}
    if taken := sorted(arguments.keys() & _OURS):
        raise ValueError(f"rollout.engine_args.{taken[0]} follows from model, adapter and `sleep`; remove it")
    if adapter.rank > RANKS[-1]:
        raise ValueError(f"vLLM takes adapters up to rank {RANKS[-1]}, adapter.rank is {adapter.rank}")
    is_cpu = models.default_device().type == "cpu"
    return {
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # else it takes sampling settings from the model's folder
        **(CPU_ARGUMENTS if is_cpu else {}),
        **arguments,
        "model": folder,
        "dtype": str(models.resolve_dtype(model)).removeprefix("torch."),
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= adapter.rank),
        "max_loras": 1,
        "max_cpu_loras": 2,  # the new one is read before the old one is forgotten
        "logprobs_mode": "processed_logprobs",
        "enable_sleep_mode": bool(engine_args.get("sleep")),
    }


def _memory_folder() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _generation_config(folder: str) -> GenerationConfig:
    if (Path(folder) / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
