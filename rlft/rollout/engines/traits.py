"""What each engine can do and which arguments it takes, readable without loading what it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import Field, field_validator

from rlft.config import Strict

NO_LIMIT = 2**31
"""Context of a server that does not say its own: it refuses what is too long itself."""


class TransformersArguments(Strict):
    """Arguments of the transformers engine."""

    max_rows: int = Field(default=0, ge=0)
    """Samples that are generated together at the most; 0 chooses by the device."""
    cache_mb: float = Field(default=2048.0, gt=0)
    """Bound on keys and values, in MB; fewer samples are generated together where they need more."""
    compile: bool = False
    """Transformers' layers, with norms and gated MLPs through torch.compile, which needs a C++ compiler on a CPU."""


class VllmArguments(Strict):
    """Arguments of the vllm engine: `sleep`, and of `vllm.LLM` those that matter here; null is vLLM's own default."""

    sleep: bool = False
    """On a GPU: leave its memory to the learner between two calls."""
    max_model_len: int | None = Field(None, ge=1)
    """Tokens that prompt and completion may have together; by default as many as the model has positions."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""
    kv_cache_memory_bytes: int | None = Field(None, ge=1)
    """Memory for keys and values; on a CPU 2 GiB by default."""
    kv_cache_dtype: str | None = None
    """Type of keys and values."""
    cpu_offload_gb: float | None = Field(None, ge=0)
    """GiB of weights that lie in the memory of the CPU."""
    block_size: int | None = Field(None, ge=1)
    """Tokens of a block of the cache."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Samples that are generated together at the most."""
    max_num_batched_tokens: int | None = Field(None, ge=1)
    """Tokens that one step computes at the most."""
    enable_prefix_caching: bool | None = None
    """Whether samples of a task share the keys and values of their prompt; on by default."""
    enable_chunked_prefill: bool | None = None
    """Whether a prompt may be computed in parts; on a CPU off by default."""
    enforce_eager: bool | None = None
    """Whether no CUDA graphs are captured."""
    tensor_parallel_size: int | None = Field(None, ge=1)
    """GPUs that share every layer."""
    pipeline_parallel_size: int | None = Field(None, ge=1)
    """Groups of GPUs, each of which has a part of the layers."""
    quantization: str | None = None
    """How the weights in the model's folder are quantized."""
    attention_backend: str | None = None
    """Which kernels compute attention."""
    extra_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm.LLM`, as its documentation has them; it refuses those that it does not know."""

    @field_validator("extra_args")
    @classmethod
    def _check_extra(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in VLLM_TAKEN:
                raise ValueError(f"{name} {VLLM_TAKEN[name]}")
            if name in cls.model_fields:
                raise ValueError(f"{name} is an argument of its own: rollout.engine_args.{name}")
        return value

    def for_llm(self) -> dict[str, Any]:
        """Those that `vllm.LLM` takes, without those that are left to its defaults."""
        return self.model_dump(exclude_none=True, exclude={"sleep", "extra_args"}) | self.extra_args


class OpenAIArguments(Strict):
    """Arguments of the openai engine."""

    base_url: str
    """Such as http://localhost:8000/v1."""
    model: str
    """Name of the model there; for an adapter that the server holds, the name that it was given."""
    api_key_env: str = ""
    """Environment variable that holds the key; the key itself has no place in a config."""
    timeout: float = Field(120.0, gt=0)
    """Seconds that one request may take."""
    max_concurrency: int = Field(16, ge=1)
    """Requests at the same time."""
    retries: int = Field(4, ge=0)
    """Further tries after a connection error, 429 or 5xx, with growing pauses."""
    context: int = Field(NO_LIMIT, ge=1)
    """Tokens that prompt and completion may have together, for the token budget of episodes."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}."""


Arguments: TypeAlias = TransformersArguments | VllmArguments | OpenAIArguments


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTraits:
    """What an engine can do, for everybody who has to know that before there is one."""

    summary: str
    """What it is, in a few words."""
    arguments: type[TransformersArguments] | type[VllmArguments] | type[OpenAIArguments]
    """What `rollout.engine_args` can say."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Arguments that somebody may try, and why they are refused."""
    cannot_train: str = ""
    """Why nothing can be trained on its samples; empty where it can."""
    adapter_kinds: tuple[str, ...] = ()
    """Kinds of adapters that it generates with; empty is all."""
    max_rank: int = 0
    """Largest rank of an adapter; 0 is any."""
    truncates_at_temperature_1_only: bool = False
    """Whether it gives the policy's log-probs beside those of a truncated distribution at temperature 1 only."""
    attends_like_learner: bool = True
    """Whether its context is the learner's; otherwise it is the number of the model's positions."""
    context_argument: str = ""
    """Name of the argument that bounds prompt and completion."""
    rereads_samples: bool = False
    """Whether it needs room for one token behind a sample whose log-probs are asked for."""
    is_exact: bool = False
    """Whether a sample, on a CPU, is the same to the bit whenever its chunk is generated."""
    shares_weights: bool = False
    """Whether it takes the learner's frozen weights where both are one process, rather than loading them again."""
    says_what_is_measured: tuple[str, ...] = ()
    """Arguments that name whose weights generate, where they are not the adapter's."""


_FOLLOWS = "follows from model, adapter and rollout.engine_args.sleep; remove it"
_TAKEN = ("model", "tokenizer", "dtype", "enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras", "logprobs_mode")
VLLM_TAKEN = {
    **dict.fromkeys((*_TAKEN, "enable_sleep_mode", "lora_target_modules"), _FOLLOWS),
    "trust_remote_code": "is refused: no code from a model's folder is run",
}
"""Arguments of `vllm.LLM` that are not the user's to choose."""

ENGINES: Mapping[str, EngineTraits] = {
    "transformers": EngineTraits(
        summary="any machine; the adapter is merged into the weights",
        arguments=TransformersArguments,
        is_exact=True,
        shares_weights=True,
    ),
    "vllm": EngineTraits(
        summary="GPUs, and CPUs with AVX2; the extra `vllm`",
        arguments=VllmArguments,
        refused=VLLM_TAKEN,
        adapter_kinds=("lora", "rslora"),  # as LoRA requests
        max_rank=512,
        truncates_at_temperature_1_only=True,
        attends_like_learner=False,
        context_argument="max_model_len",
        rereads_samples=True,
    ),
    "openai": EngineTraits(
        summary="a server with OpenAI's chat API, for evaluation only; the extra `openai`",
        arguments=OpenAIArguments,
        refused={
            "api_key": "a config is saved with its run, so the key has no place in it; put it into an environment "
            "variable and name that in rollout.engine_args.api_key_env"
        },
        cannot_train="a server returns text without the tokens that were sampled and their log-probs, and it does not "
        "run the adapter",
        attends_like_learner=False,
        context_argument="context",
        says_what_is_measured=("model", "base_url"),
    ),
}
"""The engines by the name that `rollout.engine` gives them."""
