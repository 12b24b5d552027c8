"""The weight proof: after every publish an engine tells the log-probs of a fixed text, and they must be the learner's.

A content hash proves which tensors an engine received. It does not prove what it generates with: an adapter that was
never switched on, merged twice, or left from the version before has the right hash. So the engine computes the canary's
log-probs by what generates, and the learner computes the same under the adapter that it published.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlft import chat
from rlft.types import Task

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.15}
"""Largest mean |difference| of the canary's log-probs in nats per token, by the type of the base's weights. Both
compute with other batch shapes, so that sums round differently; measured: 1e-6 and 0.01 to 0.03."""
REPLY = "The answer is 42, because it is written in the book."
KEPT = 8
"""Versions whose log-probs are remembered, to say which of them a wrong engine has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A text whose log-probs both sides compute at temperature 1."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


def make_canary(tokenizer: PreTrainedTokenizerBase, task: Task) -> Canary:
    """A plain reply to a training task: the policy changes most where it is trained."""
    reply = tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    return Canary(prompt_ids=chat.render(tokenizer, task.messages), token_ids=tuple(reply))


class WeightProof:
    """What the learner's versions make of the canary, and whether an engine's answer fits."""

    def __init__(self, tolerance: float) -> None:
        """Nothing is expected yet."""
        self._tolerance = tolerance
        self._expected: OrderedDict[int, list[float]] = OrderedDict()

    def expect(self, version: int, logprobs: Sequence[float]) -> None:
        """The learner's log-probs under an adapter that is about to be published."""
        self._expected[version] = list(logprobs)
        while len(self._expected) > KEPT:
            self._expected.popitem(last=False)

    def check(self, version: int, logprobs: Sequence[float], who: str) -> float:
        """Mean |difference| in nats per token of what an engine says under `version`.

        Raises:
            RuntimeError: it is larger than the tolerance; says which version it looks like, if any.
        """
        difference = _distance(self._expected[version], logprobs)
        if difference <= self._tolerance:
            return difference
        near = min(self._expected, key=lambda other: _distance(self._expected[other], logprobs))
        looks = "no version that the learner remembers: an adapter applied twice, or another model"
        if near != version and _distance(self._expected[near], logprobs) <= self._tolerance:
            looks = f"version {near}: it did not take the new adapter over"
        raise RuntimeError(
            f"{who} does not generate with adapter version {version}: its log-probs of the canary differ from the "
            f"learner's by {difference:.3f} nats per token on average (allowed {self._tolerance}). They look like "
            f"{looks}. The run stops before it trains on samples of other weights."
        )


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
