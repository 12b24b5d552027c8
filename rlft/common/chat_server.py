"""Models behind a server that speaks OpenAI's chat API (vLLM, Ollama, llama.cpp, a provider): a question, a reply.

The retries are the client's own (https://github.com/openai/openai-python): connection errors, timeouts, 408, 409, 429
and 5xx, with growing pauses or the one that the server asks for.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlft.types import FinishReason, Message

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI


class ServerError(RuntimeError):
    """A server that cannot be reached, refuses, or gives no reply: the failure is not the caller's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server answered."""

    text: str
    finish_reason: FinishReason
    """`length`: cut at `max_tokens`."""
    tokens: int = 0
    """Tokens of question and reply, as the server counts them; 0 where it does not."""


def connect(base_url: str, *, api_key_env: str = "", timeout_s: float, retries: int) -> OpenAI:
    """A client of the server; nothing is sent yet.

    Args:
        base_url: such as http://localhost:8000/v1.
        api_key_env: environment variable that holds the key; empty for servers that want none.
        timeout_s: seconds that one try may take.
        retries: further tries after one that failed for a reason that may pass.

    Raises:
        ValueError: the package openai is not installed, or the environment variable is not set.
    """
    key = _key(api_key_env)
    from openai import OpenAI

    return OpenAI(base_url=base_url, api_key=key, timeout=timeout_s, max_retries=retries)


def connect_async(base_url: str, *, api_key_env: str = "", timeout_s: float, retries: int) -> AsyncOpenAI:
    """Like `connect`, for coroutines of one event loop."""
    key = _key(api_key_env)
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=base_url, api_key=key, timeout=timeout_s, max_retries=retries)


def _key(api_key_env: str) -> str:
    if importlib.util.find_spec("openai") is None:
        raise ValueError("asking a served model needs the package openai: pip install 'rlft[openai]'")
    key = os.environ.get(api_key_env, "") if api_key_env else "none"  # never the key of another provider by accident
    if not key:
        raise ValueError(f"the environment variable {api_key_env}, which api_key_env names, is not set here")
    return key


def ask(client: OpenAI, model: str, messages: Sequence[Message], **sampling: Any) -> Reply:
    """Send messages to the server and return its reply.

    Args:
        sampling: see `request`.

    Raises:
        ServerError: the server cannot be reached, refuses, or gives no reply; what it said.
    """
    from openai import OpenAIError

    where = f"model {model!r} at {client.base_url}"
    try:
        return _read(client.chat.completions.create(**request(model, messages, **sampling)), where)
    except OpenAIError as error:
        raise _refusal(error, where) from error


async def ask_async(client: AsyncOpenAI, model: str, messages: Sequence[Message], **sampling: Any) -> Reply:
    """Like `ask`, with a client of `connect_async`."""
    from openai import OpenAIError

    where = f"model {model!r} at {client.base_url}"
    try:
        return _read(await client.chat.completions.create(**request(model, messages, **sampling)), where)
    except OpenAIError as error:
        raise _refusal(error, where) from error


def request(
    model: str,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    top_p: float = 1.0,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is sent.

    Args:
        seed: its lowest 31 bits are sent, which every server takes.
        extra: further fields of the request's body. Of `max_tokens`, `temperature`, `top_p` and `seed`, one that stands
            here is sent as it is here, and None leaves it out: OpenAI's reasoning models refuse the first two.
    """
    own = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed % 2**31}
    others = dict(extra or {})
    sent = {name: value for name, value in own.items() if name not in others}
    body = {name: value for name, value in others.items() if name not in own or value is not None}
    return {"model": model, "messages": list(messages), **sent, "extra_body": body}


def _refusal(error: Exception, where: str) -> ServerError:
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return ServerError(f"{where}: {error}{cause}{_advice(str(error))}")


def _advice(refusal: str) -> str:
    """What to write in a config where a model refuses the fields that others take."""
    if not re.search(r"unsupported[ _](parameter|value)", refusal, re.IGNORECASE):
        return ""
    return (
        ". Fields are replaced or, with null, left out by `extra` of a judge and `extra_body` of rollout.engine_args: "
        "{max_tokens: null, temperature: null, max_completion_tokens: 4096}"
    )


def _read(answer: Any, where: str) -> Reply:
    if not answer.choices:
        raise ServerError(f"{where} answered without a reply: {answer.model_dump_json()[:500]}")
    choice = answer.choices[0]
    finish = choice.finish_reason
    if finish not in ("stop", "length"):
        raise ServerError(f"{where} ended its reply with {finish!r}, which is no text that could be scored")
    return Reply(
        text=choice.message.content or "",
        finish_reason=finish,
        tokens=answer.usage.total_tokens if answer.usage else 0,
    )
