"""The engine that asks a server with OpenAI's chat API: for evaluation only.

Its completions are text. The tokens are those of the run's own tokenizer, for counting, and the log-probs are NaN:
nothing can be trained on them, and a training run with this engine is refused before it starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from transformers import PreTrainedTokenizerBase

from rlft.common.chat_server import Reply, ask, connect
from rlft.model.adapter import adapter_hash
from rlft.rollout.engines.contract import Request, refuse_other_version
from rlft.rollout.engines.traits import OpenAIArguments
from rlft.types import Adapter, Completion, FinishReason, SamplingParams, whole_text


class OpenAIEngine:
    """An engine whose samples a chat server generates, one request for each; a `contract.Engine`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, engine_args: OpenAIArguments) -> None:
        """Prepare the connections; the server is not asked yet.

        Raises:
            ValueError: no package openai, or no key where one is named.
        """
        self._arguments = engine_args
        self.version: int | None = None
        self.context = self._arguments.context
        self._hash, self._tokenizer = "", tokenizer
        self._client = connect(
            self._arguments.base_url,
            api_key_env=self._arguments.api_key_env,
            timeout_s=self._arguments.timeout,
            retries=self._arguments.retries,
        )

    def load_adapter(self, adapter: Adapter) -> None:
        """Accept the bare base and refuse everything else, since the server generates with weights of its own.

        Raises:
            ValueError: the adapter has tensors.
        """
        if adapter.tensors:
            raise ValueError(
                f"rollout.engine: openai cannot load an adapter into {self._arguments.base_url}: give the server its "
                "folder (vllm serve MODEL --enable-lora --lora-modules NAME=FOLDER), name it in "
                "rollout.engine_args.model, and evaluate the config instead of the run"
            )
        self.version, self._hash = adapter.version, adapter_hash({})

    def generate(self, requests: Sequence[Request], params: SamplingParams, *, version: int) -> list[list[Completion]]:
        """Ask the server for every sample; it gets the sample's seed and decides itself what that means.

        Raises:
            RuntimeError: the server cannot be reached, or refuses; see `chat_server.ask`.
        """
        refuse_other_version(version, self.version)
        for request in requests:
            if not request.messages:
                raise ValueError("a request has no messages, which a chat server takes instead of tokens")
            if request.tools:
                raise ValueError(
                    "rollout.engine: openai cannot act in an environment with tool schemas: servers return tool calls "
                    "as objects, not as the text that the environment reads; describe the tools in the prompt, or use "
                    "another engine"
                )
        rows = [(index, request, seed) for index, request in enumerate(requests) for seed in request.seeds]
        executor = ThreadPoolExecutor(self._arguments.max_concurrency)
        try:
            asked = [executor.submit(self._ask, request, seed, params) for _, request, seed in rows]
            replies = [future.result() for future in asked]
        finally:
            executor.shutdown(cancel_futures=True)
        completions: list[list[Completion]] = [[] for _ in requests]
        for (index, _, _), reply in zip(rows, replies, strict=True):
            completions[index].append(self._completion(reply, params))
        return completions

    def logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int], *, version: int) -> list[float]:
        """Not possible: chat servers do not compute the log-probs of given tokens.

        Raises:
            ValueError: always.
        """
        raise ValueError("rollout.engine: openai has no log-probs of given tokens, so no weights can be proved by it")

    def _ask(self, request: Request, seed: int, params: SamplingParams) -> Reply:
        extra = dict(self._arguments.extra_body)
        if params.is_truncating:  # fields that vLLM, llama.cpp and Ollama have beyond OpenAI's
            extra = {name: value for name in ("top_k", "min_p") if (value := getattr(params, name))} | extra
        return ask(
            self._client,
            self._arguments.model,
            request.messages,
            max_tokens=params.max_new_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=seed,
            extra=extra,
        )

    def _completion(self, reply: Reply, params: SamplingParams) -> Completion:
        # A server cuts the stop text off and does not say which it was, so it is looked for here.
        text = whole_text(reply.text)
        ends = [at + len(stop) for stop in params.stop if (at := text.find(stop)) >= 0]
        finish: FinishReason = "stop" if ends else reply.finish_reason
        text = text[: min(ends)] if ends else text
        token_ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        assert self.version is not None
        return Completion(
            token_ids=token_ids,
            logprobs=(math.nan,) * len(token_ids),
            text=text,
            finish_reason=finish,
            adapter_version=self.version,
            adapter_hash=self._hash,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
