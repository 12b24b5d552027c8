"""Tools: typed Python functions that a policy may call in the middle of an episode.

    def calculate(expression: str) -> str:
        \"\"\"
        Computes an arithmetic expression.

        Args:
            expression: such as "2 * (3 + 4)".
        \"\"\"

    TOOLS = make_tools(calculate)
    Environment(..., tools=schemas(TOOLS), episode=lambda: ToolEpisode(TOOLS))

The policy calls one by writing `<tool_call>{"name": "calculate", "arguments": {"expression": "2 * 7"}}</tool_call>`,
the form of Hermes and Qwen, or by a reply that is nothing but `{"name": "calculate", "parameters": {...}}`, that of
Llama 3, or a list of such objects, that of Mistral. Whatever goes wrong in a call (no JSON, no such tool, wrong
arguments, an exception inside the function, no result within the deadline) is a message to the policy: such errors
belong to the task. An error of the environment itself does not.

A function that is `async` is cancelled at the deadline. Another one is interrupted, which works in the main thread,
where rollout workers run, and not for every code in C: `rlft.common.overrun` says what the limits are. While one blocks
the event loop the clocks of those that wait go on.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from rlft.common import json_text
from rlft.common.by_path import did_you_mean
from rlft.common.overrun import OverrunError, interrupted_after
from rlft.environment.contract import Step
from rlft.types import Message, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
# What may stand before a bare call where the tokenizer does not hold it for a special token, which are left out.
_BARE_MARKS = ("<|python_tag|>", "[TOOL_CALLS]")

CALL_DEADLINE_S = 10.0
"""Seconds that a call may take where nothing else is said."""
MAX_RESULT = 2000
"""Longest answer to a call in characters, also to a wrong one, which quotes it; what is longer is cut, and says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A Python function that the policy may call, with its JSON schema."""

    function: Callable[..., Any]
    """May be `async`."""
    schema: Mapping[str, Any]
    """JSON schema in the form that chat templates take: `{"type": "function", "function": {"name": ...}}`."""

    @property
    def name(self) -> str:
        """The name that the policy calls it by."""
        return str(self.schema["function"]["name"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the policy wrote: the tool's name and its arguments."""

    name: str
    """The tool's."""
    arguments: Mapping[str, Any]
    """By name, not validated yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCall:
    """A call that cannot be read, and the message that tells the policy so."""

    message: str


def make_tools(*functions: Callable[..., Any]) -> tuple[Tool, ...]:
    """Make tools of functions: types from their signatures, descriptions from their docstrings in Google style.

    Raises:
        ValueError: one has no docstring, or an argument without type or description; or two have the same name.
    """
    from transformers.utils import get_json_schema  # takes seconds, which environments without tools need not wait

    tools = []
    for function in functions:
        try:
            tools.append(Tool(function=function, schema=get_json_schema(function)))
        except Exception as error:  # transformers raises several kinds of its own
            raise ValueError(
                f"{function.__name__} cannot be a tool: {error} Give every argument a type and a line under `Args:`."
            ) from error
    names = [tool.name for tool in tools]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two tools are called {doubled[0]!r}")
    return tuple(tools)


def schemas(tools: Sequence[Tool]) -> tuple[Mapping[str, Any], ...]:
    """The tools' JSON schemas, as `Environment.tools` takes them."""
    return tuple(tool.schema for tool in tools)


def read_calls(text: str, names: Collection[str] = ()) -> list[ToolCall | BadCall]:
    """The tool calls of a reply, in order; empty when it has none. The last one need not be closed.

    Args:
        names: of the tools that a reply of nothing but JSON may call, as Llama 3 is told to; of others it is an answer.
    """
    tagged = [_read_call(written) for written in _CALL.findall(text)]
    return tagged or [*bare_calls(text, names)]


def bare_calls(text: str, names: Collection[str]) -> list[ToolCall]:
    """The calls that a reply consists of: one JSON object, or a list of them, with a known name and its arguments.

    Everything else is an answer, also JSON: an object of other keys, or with the name of something else.
    """
    text = text.strip()
    for mark in _BARE_MARKS:
        text = text.removeprefix(mark).lstrip()
    if not names or not text.startswith(("{", "[")):
        return []
    try:
        found = json_text.parse(text)
    except ValueError:
        return []
    calls = found if isinstance(found, list) else [found]
    if not all(_is_bare_call(call, names) for call in calls):
        return []
    return [ToolCall(name=call["name"], arguments=call.get("parameters", call.get("arguments"))) for call in calls]


def _is_bare_call(call: Any, names: Collection[str]) -> bool:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or call["name"] not in names:
        return False
    given = [key for key in ("parameters", "arguments") if key in call]
    return len(given) == 1 and isinstance(call[given[0]], dict) and call.keys() <= {"name", "type", "id", *given}


def unread_form(tokenizer: PreTrainedTokenizerBase) -> str:
    """How the chat template writes a call that `read_calls` does not find in it; empty where it does, or shows none.

    A policy that does as its template says then calls no tool, and each of its calls is taken for a final answer.
    """
    from rlft.model import templates  # takes seconds, as transformers does

    written = templates.sample_call(tokenizer)
    expected = ToolCall(name=templates.SAMPLE_TOOL, arguments=templates.SAMPLE_ARGUMENTS)
    return "" if read_calls(written, [expected.name]) == [expected] else written


def _read_call(written: str) -> ToolCall | BadCall:
    try:
        json_text.refuse_deep(written)
    except ValueError:
        return BadCall(message="error: the call is nested too deeply")
    try:
        call = json.loads(written)
    except ValueError as error:
        return BadCall(message=f"error: the call is not JSON: {error}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return BadCall(message='error: a call is {"name": "...", "arguments": {...}}')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return BadCall(message="error: the arguments of a call are an object by name")
    return ToolCall(name=call["name"], arguments=arguments)


async def answer(
    tools: Sequence[Tool], call: ToolCall | BadCall, *, deadline_s: float | None = CALL_DEADLINE_S
) -> Message:
    """Carry a call out and give its result, or what is wrong with it, as a `tool` message.

    Args:
        deadline_s: seconds after which the policy is told that there is no result; None waits.
    """
    if isinstance(call, BadCall):
        return Message(role="tool", content=_cut(call.message))
    return Message(role="tool", name=_cut(call.name), content=_cut(await _result(tools, call, deadline_s)))


def _cut(text: str) -> str:
    if len(text) <= MAX_RESULT:
        return text
    return f"{text[:MAX_RESULT]} ... ({len(text) - MAX_RESULT} more characters)"


async def _result(tools: Sequence[Tool], call: ToolCall, deadline_s: float | None) -> str:
    by_name = {tool.name: tool for tool in tools}
    if call.name not in by_name:
        return f"error: no tool {call.name!r}; there is {', '.join(by_name)}.{did_you_mean(call.name, by_name)}"
    tool = by_name[call.name]
    try:
        if wrong := _check_arguments(tool, call.arguments):
            return f"error: {wrong}"
        async with asyncio.timeout(deadline_s) as deadline:
            with interrupted_after(deadline_s):
                result = tool.function(**call.arguments)
            if inspect.isawaitable(result):
                result = await result
            with interrupted_after(deadline_s):
                text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
    except OverrunError:
        return f"error: {call.name} gave no result within {deadline_s:g} s"
    except Exception as error:  # a tool that refuses its input is part of the task
        if isinstance(error, TimeoutError) and deadline.expired():
            return f"error: {call.name} gave no result within {deadline_s:g} s"
        return f"error: {type(error).__name__}: {error}"
    return text if text.strip() else "(no output)"


def _check_arguments(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """What is wrong with the arguments, empty if nothing."""
    parameters = tool.schema["function"]["parameters"]
    validator = Draft202012Validator({**parameters, "additionalProperties": False})
    errors = sorted(
        validator.iter_errors(dict(arguments)), key=lambda error: (list(map(str, error.path)), error.message)
    )
    if not errors:
        return ""
    where = ".".join(map(str, errors[0].path))
    return f"{where}: {errors[0].message}" if where else str(errors[0].message)


class ToolEpisode:
    """An episode in which the policy calls tools until it replies without a call: that is its final answer.

    How many turns it may take is `Environment.max_turns`.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        score: Callable[[Task, str], float | None] | None = None,
        *,
        deadline_s: float | None = CALL_DEADLINE_S,
    ) -> None:
        """Make an episode with these tools.

        Args:
            tools: what the policy may call.
            score: reward of (the task, the final answer); None leaves it to the config's rewards.
            deadline_s: seconds that each call may take, see `answer`.
        """
        self._tools, self._score, self._deadline_s = tools, score, deadline_s

    def start(self, task: Task, seed: int) -> Sequence[Message]:
        """Begin with the task's own messages."""
        self._task = task
        return task.messages

    async def step(self, message: Message) -> Step:
        """Answer the message's tool calls; a message without a call ends the episode and is scored."""
        calls = read_calls(message["content"], [tool.name for tool in self._tools])
        if not calls:
            return Step(reward=self._score and self._score(self._task, message["content"]), done=True)
        # A call earns 0, so that an episode whose turns run out has a reward and is learnt from.
        answers = tuple([await answer(self._tools, call, deadline_s=self._deadline_s) for call in calls])
        return Step(messages=answers, reward=None if self._score is None else 0.0)
