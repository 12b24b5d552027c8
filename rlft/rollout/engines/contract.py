"""What an engine is: it holds one adapter at a time and completes prompts with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlft.types import Adapter, Completion, Message, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to complete, and one seed for each sample of it."""

    prompt_ids: tuple[int, ...]
    """Templated prompt; never empty."""
    seeds: tuple[int, ...]
    """One seed per sample, see `seeds.sample_seed`."""
    messages: tuple[Message, ...] = ()
    """What `prompt_ids` were made of, for engines that ask a chat server."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The tools' JSON schemas that they were made with."""
    goes_on: bool = False
    """Whether a request of the next call may begin with this prompt and what is sampled behind it: an engine may then
    keep what it has computed of both."""
    continues: bool = False
    """Whether this prompt begins with one of the call before that went on, and a sample of it."""


class EngineLostError(RuntimeError):
    """The engine has lost its process or server, so that another worker has to redo the chunk."""


class Engine(Protocol):
    """Generates completions under a named adapter version.

    An engine may also have `close()`, called when its worker ends, `forget()`, called when no request continues an
    earlier one any more, `unload()`, called when an adapter is loaded before it generates again and another part of its
    process needs memory, and `slow_paths`, texts that say why it is slower than it could be.
    """

    version: int | None
    """Version of the adapter that is loaded; None before the first one."""
    context: int
    """Tokens that prompt and completion may have together."""

    def load_adapter(self, adapter: Adapter) -> None:
        """Make this adapter the one that generates; the engine hashes the tensors it received itself.

        Raises:
            ValueError: the tensors do not have the hash that the adapter claims, or do not fit the model.
        """
        ...

    def generate(self, requests: Sequence[Request], params: SamplingParams, *, version: int) -> list[list[Completion]]:
        """Complete every request, one list per request in the order of its seeds.

        The result depends on the requests, the parameters and the adapter only.

        Raises:
            ValueError: another adapter version is loaded than the caller asks for, or a request exceeds the context.
            EngineLostError: the process or server that generates is gone.
        """
        ...

    def logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int], *, version: int) -> list[float]:
        """Log-probability of each of these tokens behind the prompt at temperature 1, in nats, without sampling.

        Computed with the weights that generate, so that it proves which these are (`rollout.weight_proof`).

        Raises:
            ValueError: as `generate` does.
        """
        ...


def refuse_other_version(asked: int, loaded: int | None) -> None:
    """Refuse to generate with another adapter than the caller asks for.

    Raises:
        ValueError: another adapter version is loaded than the caller asks for.
    """
    if asked != loaded:
        raise ValueError(f"asked to generate with adapter version {asked} while {loaded} is loaded")
