"""An engine without a model: a function says what it samples. For checking environments, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlft.rollout.engines.contract import Request
from rlft.types import Adapter, Completion, SamplingParams

_MARKS = ("<|im_end|>", "<|im_start|>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ScriptedEngine:
    """An engine whose completions a function writes; a `contract.Engine`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str, int, int], str], *, context: int = 8192
    ) -> None:
        """Make the engine.

        Args:
            say: gets the whole prompt as text, special tokens included, the sample's position in its request, and its
                seed. What it returns is cut at `max_new_tokens`; unless it ends with a stop text, an end token follows.
        """
        self._tokenizer, self._say, self.context = tokenizer, say, context
        self.version: int | None = 0
        self.calls: list[list[Request]] = []
        """What was asked for."""
        self.num_sampled = 0
        """Tokens."""

    def load_adapter(self, adapter: Adapter) -> None:
        """Take the adapter's version; the adapter changes nothing else."""
        self.version = adapter.version

    def generate(self, requests: Sequence[Request], params: SamplingParams, *, version: int) -> list[list[Completion]]:
        """Complete every request with what the function says, and note the requests in `calls`."""
        self.calls.append(list(requests))
        return [[self._complete(request, index, params) for index in range(len(request.seeds))] for request in requests]

    def logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int], *, version: int) -> list[float]:
        """Made-up log-probs, the same for every token."""
        return [-1e-3] * len(token_ids)

    def _complete(self, request: Request, index: int, params: SamplingParams) -> Completion:
        text = self._say(self._tokenizer.decode(list(request.prompt_ids)), index, request.seeds[index])
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if not (params.stop and text.endswith(params.stop)):
            ids.append(self._tokenizer.eos_token_id)
        is_cut = len(ids) > params.max_new_tokens
        ids = ids[: params.max_new_tokens]
        first = self.num_sampled + 1
        self.num_sampled += len(ids)
        return Completion(
            token_ids=tuple(ids),
            logprobs=tuple(-1e-3 * number for number in range(first, first + len(ids))),  # no two alike
            finish_reason="length" if is_cut else "stop",
            adapter_version=self.version or 0,
            adapter_hash="scripted",
        )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte and the two marks of ChatML: a text has one way to be written, so ids can be compared."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*_MARKS, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_MARKS))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_MARKS[0], pad_token=_MARKS[0])
    fast.chat_template = _TEMPLATE
    return fast
