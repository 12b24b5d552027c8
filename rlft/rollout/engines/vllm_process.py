"""The half of the vLLM engine that imports vllm, in a process of its own; `vllm` is the other half.

It is a fresh interpreter that serves one rollout worker over an inherited socket and ends with it:

    worker -> process   the arguments of vllm.LLM                        once
    process -> worker   Answer(value=the context)                        once; starting up takes about a minute
    worker -> process   (name of a method of `Server`, its arguments)
    process -> worker   Answer
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from rlft.common.by_path import describe_error
from rlft.types import SamplingParams

Sample: TypeAlias = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...] | None, str]
"""(token ids, log-probs of the sampled distribution, those of the policy where they differ, finish reason)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of a call, or why there is none."""

    value: Any = None
    refusal: str = ""
    """What vLLM says of arguments that it does not take."""
    failure: str = ""
    """The last lines of the traceback of anything else."""


class Server:
    """The calls that a worker can make."""

    def __init__(self, *, sleep: bool, arguments: dict[str, Any]) -> None:
        """Load the model.

        Args:
            sleep: leave the GPU to others between two calls.
        """
        from vllm import LLM

        self._llm = LLM(**arguments)
        self._sleeps = sleep
        self._adapter: Any = None
        if sleep:
            self._llm.sleep(level=1)

    @property
    def context(self) -> int:
        """Tokens that prompt and completion may have together."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    def load_adapter(self, number: int, name: str, folder: str) -> None:
        """Read an adapter from its folder, which may then be deleted, and forget the one before.

        Args:
            number: of the LoRA request; never used before.
            name: never used before, since keys and values of prompts are cached under it.
        """
        from vllm.lora.request import LoRARequest

        request = LoRARequest(name, number, folder)
        if not self._llm.llm_engine.add_lora(request):
            raise ValueError(f"vLLM did not take the adapter {name}")
        self.unload_adapter()
        self._adapter = request

    def unload_adapter(self) -> None:
        """Generate with the base model."""
        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
        self._adapter = None
        self._llm.reset_prefix_cache()

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        params: SamplingParams,
        end_ids: Sequence[int],
    ) -> list[Sample]:
        """Draw a sample of each prompt, each with a seed of its own; equal prompts are computed once."""
        from vllm import SamplingParams as Params

        options: dict[str, Any] = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "max_tokens": params.max_new_tokens,
            "stop": list(params.stop),
            "stop_token_ids": list(end_ids),
            "ignore_eos": True,  # the end tokens are ours alone to name
            "detokenize": bool(params.stop),
            "skip_special_tokens": False,
            "logprobs": 0,
        }
        outputs = self._run(prompts, [Params(seed=seed, **options) for seed in seeds])
        samples: list[Sample] = []
        for output in outputs:
            token_ids, finish = tuple(output.outputs[0].token_ids), output.outputs[0].finish_reason
            if finish not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a sample with {finish!r} instead of completing it")
            logprobs = tuple(at[token].logprob for token, at in zip(token_ids, output.outputs[0].logprobs, strict=True))
            samples.append((token_ids, logprobs, None, finish))
        if not params.is_truncating:
            return samples
        # vLLM returns log-probs either before its sampling parameters (`raw_logprobs`) or after them: those of the
        # policy, which is at temperature 1 here, take a second pass.
        policy = self.logprobs(prompts, [sample[0] for sample in samples])
        return [(ids, logprobs, own, end) for (ids, logprobs, _, end), own in zip(samples, policy, strict=True)]

    def logprobs(
        self, prompts: Sequence[tuple[int, ...]], continuations: Sequence[tuple[int, ...]]
    ) -> list[tuple[float, ...]]:
        """Log-probs at temperature 1 of the tokens behind each prompt, from one pass over both."""
        from vllm import SamplingParams as Params

        whole = [(*prompt, *token_ids) for prompt, token_ids in zip(prompts, continuations, strict=True)]
        options = Params(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        found = []
        for prompt, token_ids, output in zip(
            prompts, continuations, self._run(whole, [options] * len(whole)), strict=True
        ):
            positions = output.prompt_logprobs[len(prompt) :]
            found.append(tuple(at[token].logprob for token, at in zip(token_ids, positions, strict=True)))
        return found

    def _run(self, prompts: Sequence[tuple[int, ...]], params: Sequence[Any]) -> list[Any]:
        from vllm.inputs import TokensPrompt

        inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        return self._llm.generate(inputs, list(params), lora_request=self._adapter, use_tqdm=False)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call one of the methods above; a model that sleeps is woken for it."""
        if not self._sleeps:
            return getattr(self, method)(*arguments)
        self._llm.wake_up()
        try:
            return getattr(self, method)(*arguments)
        finally:
            self._llm.sleep(level=1)


def main(connection: Connection) -> None:
    """Load the model that the worker names and answer its calls, until it is gone."""
    answer = _try(Server, **connection.recv())
    server: Server | None = answer.value
    if server is None:
        connection.send(answer)
        return
    connection.send(replace(answer, value=server.context))
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, OSError):  # the worker is gone
            os._exit(0)
        connection.send(_try(server.call, method, arguments))


def _try(call: Callable[..., Any], *arguments: Any, **named: Any) -> Answer:
    try:
        return Answer(value=call(*arguments, **named))
    except Exception as error:  # whatever vLLM raises is told, and the worker decides
        # vLLM's own class for arguments that it does not take has become a ValueError and back again.
        if isinstance(error, ValueError | TypeError | NotImplementedError) or "Validation" in type(error).__name__:
            return Answer(refusal=str(error))
        return Answer(failure=describe_error(error))
