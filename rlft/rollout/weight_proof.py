"""The weight proof: an engine that loads an adapter computes a fixed text's log-probs, which must be the learner's.

A content hash proves which tensors an engine received. It does not prove what it computes with: an adapter that was
never switched on, merged twice, or left from the version before has the right hash. So the learner sends what the
text's log-probs are under the adapter, and the worker refuses to generate with an engine that finds others, or that
finds the same as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from rlft.model import chat
from rlft.model.adapter import make_adapter
from rlft.rollout.engines.contract import Engine
from rlft.types import Adapter, Canary, Message, Task

TOLERANCE = {"float32": (2e-3, 1e-3), "bfloat16": (0.5, 0.12)}
"""Largest mean |difference| in nats per token by the type of the base's weights: at least the first number, and this
share of the text's mean |log-prob|, since unlikely tokens have large logits, which round coarsely. Sums round otherwise
in a merged weight and in a batch of another shape. Seen in bfloat16: 0.05 on a base model, 0.15 after a warm start (4 %
of the mean), where the adapter applied twice makes 1.0."""
REPLY = (
    "The answer is 42, because it is written in the book. First I read what was asked, then I wrote down what I knew, "
    "and in the end I looked at every step once more before I gave the result."
)
CANARY_TOKENS = 48
"""Most tokens of that reply."""
MOVED = 0.02
"""Share of the tolerance that the learner's log-probs have to move by, for an engine that did not to be stale. Seen in
bfloat16: as soon as any of the learner's bits change, they move by four times that on average."""
DIVERGED = 5.0
"""Nats per token since the first version by which a learner that has diverged has moved."""
PROBE = 8.0
"""What an adapter's tensors are multiplied by to see whether loading has an effect; LoRA's update grows 64 times."""
KEPT = 16
"""Earlier versions whose log-probs are sent along: the first and the last ones."""

LogprobsOf = Callable[[tuple[int, ...], tuple[int, ...]], Sequence[float]]
"""The learner's log-probs of tokens behind a prompt, at temperature 1."""


def canary_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the prompt that these messages make, and of a plain reply to it.

    Where there is no chat template, the prompt is the last message's text.
    """
    reply = tokenizer(REPLY, add_special_tokens=False)["input_ids"][:CANARY_TOKENS]
    if not tokenizer.chat_template:
        return tuple(tokenizer(messages[-1]["content"])["input_ids"]), tuple(reply)
    return chat.render(tokenizer, messages), tuple(reply)


class CanaryMaker:
    """Puts the canary into every adapter that a learner publishes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, *, dtype: str) -> None:
        """Choose the text: a plain reply to a training task, where the policy changes most.

        Args:
            dtype: type of the base's weights, a key of `TOLERANCE`.
        """
        prompt_ids, token_ids = canary_text(tokenizer, task.messages)
        self._canary = Canary(prompt_ids=prompt_ids, token_ids=token_ids, logprobs=(), tolerance=0.0)
        self._absolute, self._relative = TOLERANCE[dtype]

    def __call__(self, adapter: Adapter, logprobs_of: LogprobsOf) -> Adapter:
        """Put the canary into an adapter, which has to be the one that the learner holds at this moment."""
        logprobs = tuple(logprobs_of(self._canary.prompt_ids, self._canary.token_ids))
        mean = -sum(logprobs) / len(logprobs)
        sent = replace(self._canary, logprobs=logprobs, tolerance=max(self._absolute, self._relative * mean))
        earlier = list({**self._canary.earlier, adapter.version: logprobs}.items())
        self._canary = replace(self._canary, earlier=dict(earlier[:1] + earlier[1:][1 - KEPT :]))
        return replace(adapter, canary=sent)


class Prover:
    """Proves after each load that an engine computes with the adapter, and remembers what it answered.

    Two tests. The log-probs have to be the learner's within the tolerance. And where they are, to the bit, those that
    the engine found under an earlier version, while the learner's own moved, other weights have to change them: in
    bfloat16 rounding hides a small step of the policy from the first test, but not from the engine's bits. The tiniest
    steps, of some 1e-8, may leave those as they were, and then it is loading that is put to the test.
    """

    def __init__(self, engine: Engine) -> None:
        """Watch an engine that has loaded nothing yet."""
        self._engine, self._found = engine, dict[int, tuple[str, tuple[float, ...]]]()

    def __call__(self, adapter: Adapter) -> None:
        """Refuse an engine that does not compute with the adapter that it has just loaded.

        Raises:
            RuntimeError: the difference, and which earlier version the engine seems to have.
        """
        canary = adapter.canary
        if canary is None:
            return
        found = self._ask(adapter, canary)
        difference = distance(canary.logprobs, found)
        if not difference <= canary.tolerance:  # also where one of them is no number
            raise RuntimeError(
                f"the engine does not compute with adapter version {adapter.version}, though it has received it: the "
                f"log-probs of the canary differ from the learner's by {difference:.4f} nats per token on average, and "
                f"{canary.tolerance:.4f} is allowed. {_cause(canary, found)} No sample was taken."
            )
        if (earlier := self._unmoved(adapter, canary, found)) is not None and not self._takes(adapter, canary, found):
            moved = distance(canary.logprobs, canary.earlier[earlier])
            raise RuntimeError(
                f"the engine does not compute with adapter version {adapter.version}, though it has received it: the "
                f"log-probs of the canary are exactly those that it found under version {earlier}, while the learner's "
                f"moved by {moved:.4f} nats per token. The new adapter did not take effect. No sample was taken."
            )
        self._found = {version: bits for version, bits in self._found.items() if version in canary.earlier}
        self._found[adapter.version] = (adapter.hash, found)

    def _ask(self, adapter: Adapter, canary: Canary) -> tuple[float, ...]:
        return tuple(self._engine.logprobs(canary.prompt_ids, canary.token_ids, version=adapter.version))

    def _unmoved(self, adapter: Adapter, canary: Canary, found: tuple[float, ...]) -> int | None:
        """An earlier version with which the engine gave the same log-probs and the learner others; None without one."""
        for version, logprobs in canary.earlier.items():
            content_hash, bits = self._found.get(version, (adapter.hash, ()))
            has_moved = distance(canary.logprobs, logprobs) > canary.tolerance * MOVED
            if content_hash != adapter.hash and bits == found and has_moved:
                return version
        return None

    def _takes(self, adapter: Adapter, canary: Canary, found: tuple[float, ...]) -> bool:
        """Whether loading has an effect: far larger weights give other log-probs, and the adapter again the same."""
        larger = {name: PROBE * tensor for name, tensor in adapter.tensors.items()}
        self._engine.load_adapter(make_adapter(adapter.version, larger))
        other = self._ask(adapter, canary)
        self._engine.load_adapter(adapter)
        return other != found and self._ask(adapter, canary) == found


def _cause(canary: Canary, found: Sequence[float]) -> str:
    """What probably happened, in a sentence."""
    moved = distance(canary.logprobs, next(iter(canary.earlier.values()), canary.logprobs))
    if not moved <= DIVERGED:
        return (
            f"The policy itself has moved by {moved:.1f} nats per token since the first version, so that the learner "
            "has probably diverged, and its numbers are rounded apart: lower learner.lr, or add a KL."
        )
    return f"They look like {_likeness(canary, found)}."


def _likeness(canary: Canary, found: Sequence[float]) -> str:
    near = min(canary.earlier, key=lambda version: distance(canary.earlier[version], found), default=None)
    if near is None or distance(canary.earlier[near], found) > canary.tolerance:
        return "no version that the learner remembers, as an adapter applied twice or another model would"
    return f"version {near}: the new adapter did not take effect"


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean |difference| of log-probs of the same tokens, nats per token."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
