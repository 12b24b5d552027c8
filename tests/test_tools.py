"""Tools: schemas from typed functions, calls out of a reply, and errors that the policy is told about."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import pdb
import re
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlft.common.overrun import OverrunError, interrupted_after
from rlft.environment import tools
from rlft.environment.contract import Environment
from rlft.environment.systems.tool_text import read_tool_calls
from rlft.environment.tools import (
    MAX_RESULT,
    BadCall,
    ToolCall,
    ToolEpisode,
    answer,
    make_tools,
    read_calls,
    schemas,
    unread_form,
)
from rlft.rollout import context
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.scripted import ScriptedEngine
from rlft.rollout.generate import run_chunk
from rlft.types import SamplingParams, Task
from tests.chat_templates import QWEN25, TEMPLATES, tokenizer_of
from tests.fakes import tiny_config


def divide(a: float, b: float, digits: int = 2) -> str:
    """
    Divides two numbers.

    Args:
        a: the dividend
        b: the divisor
        digits: how many digits follow the point
    """
    return f"{a / b:.{digits}f}"


async def fetch(names: list[str]) -> dict[str, int]:
    """
    Looks names up.

    Args:
        names: whom to look up
    """
    await asyncio.sleep(0)
    return {name: len(name) for name in names}


def shout(text: str) -> str:
    """
    Repeats a text.

    Args:
        text: what to repeat
    """
    return text


TOOLS = make_tools(divide, fetch, shout)


def ask(name: str, **arguments: Any) -> str:
    message = asyncio.run(answer(TOOLS, ToolCall(name=name, arguments=arguments)))
    assert (message["role"], message["name"]) == ("tool", name)
    return message["content"]


def test_a_schema_is_read_from_the_function() -> None:
    described = schemas(TOOLS)[0]["function"]
    assert described["name"] == "divide"
    assert described["description"] == "Divides two numbers."
    assert described["parameters"]["required"] == ["a", "b"]
    assert described["parameters"]["properties"]["digits"]["type"] == "integer"
    json.dumps(schemas(TOOLS))


def test_functions_that_cannot_be_described_are_refused() -> None:
    def bare(a: int) -> int:
        return a

    def untyped(a) -> int:  # type: ignore[no-untyped-def]
        """
        Does it.

        Args:
            a: a number
        """
        return 1

    for function in (bare, untyped):
        with pytest.raises(ValueError, match=f"{function.__name__} cannot be a tool: .* a line under `Args:`"):
            make_tools(function)
    with pytest.raises(ValueError, match="two tools are called 'divide'"):
        make_tools(divide, divide)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 4.", []),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', [ToolCall(name="f", arguments={"x": 1})]),
        ('I look.\n<tool_call>\n{"name": "f"}\n</tool_call> now', [ToolCall(name="f", arguments={})]),
        ('<tool_call>{"name": "f"}', [ToolCall(name="f", arguments={})]),
        (
            '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>',
            [ToolCall(name="f", arguments={}), ToolCall(name="g", arguments={})],
        ),
    ],
)
def test_calls_are_read(text: str, expected: list[ToolCall]) -> None:
    assert read_calls(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "f", "parameters": {"x": 1}}', [ToolCall(name="f", arguments={"x": 1})]),
        (' <|python_tag|>{"type": "function", "name": "f", "parameters": {}}\n', [ToolCall(name="f", arguments={})]),
        ('[{"name": "f", "arguments": {"x": 1}, "id": "a"}]', [ToolCall(name="f", arguments={"x": 1})]),
        ('{"name": "g", "parameters": {}}', []),
        ('{"name": "f", "parameters": {}, "age": 3}', []),
        ('{"name": "f"}', []),
        ('{"name": ["f"], "parameters": {}}', []),
        ('{"name": "f", "parameters": [1]}', []),
        ('{"name": "f", "parameters": {}} is a call', []),
        ('[{"name": "f", "parameters": {}}, 1]', []),
        ("[]", []),
        ("[" * 5000, []),
    ],
)
def test_a_reply_of_nothing_but_json_calls_a_known_tool(text: str, expected: list[ToolCall]) -> None:
    assert read_calls(text, ["f"]) == expected
    assert read_calls(text) == []
    assert read_tool_calls(text, ["f"])[1] == tuple((c.name, json.dumps(c.arguments)) for c in expected)


@pytest.mark.parametrize("family", list(TEMPLATES))
def test_what_a_template_has_the_policy_write_is_read(family: str) -> None:
    assert unread_form(tokenizer_of(family)) == ""


def test_a_form_that_is_not_read_is_quoted_in_the_notes(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer.chat_template = QWEN25.replace("(call.function | tojson)", "call.function.name + '(word)'")
    assert unread_form(tokenizer) == "<tool_call>\nlook_up(word)\n</tool_call>"
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    ask = Task(id="q", messages=({"role": "user", "content": "1 / 4?"},))
    shown = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    environment = Environment(train=[ask], heldout=[], tools=(shown,), episode=lambda: ToolEpisode(TOOLS))
    assert context.fit(tiny_config(model), environment, str(model))[0].notes == ()  # described in words
    own = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
    )
    (model / "chat_template.jinja").write_text(own + "call {{ c.function.name }}{% endfor %}{% endfor %}")
    (note,) = context.fit(tiny_config(model), environment, str(model))[0].notes
    assert "to call tools as in 'call look_up', and the episodes of rlft.environment.tools do not read that" in note


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("divide(1, 2)", "the call is not JSON: Expecting value: line 1 column 1"),
        ("", "the call is not JSON"),
        ("[" * 5000, "the call is nested too deeply"),
        ('{"name": "divide", "arguments": ' + '{"a": ' * 5000, "the call is nested too deeply"),
        ("[1]", 'a call is {"name": "...", "arguments": {...}}'),
        ('{"arguments": {}}', 'a call is {"name"'),
        ('{"name": 3}', 'a call is {"name"'),
        ('{"name": "divide", "arguments": "a=1"}', "the arguments of a call are an object by name"),
    ],
)
def test_a_malformed_call_is_told_to_the_policy(written: str, told: str) -> None:
    (call,) = read_calls(f"<tool_call>{written}</tool_call>")
    assert isinstance(call, BadCall)
    message = asyncio.run(answer(TOOLS, call))
    assert message["role"] == "tool"
    assert message["content"].startswith(f"error: {told}")


def test_results_are_text() -> None:
    assert ask("divide", a=1, b=3) == "0.33"
    assert ask("fetch", names=["ann", "jo"]) == '{"ann": 3, "jo": 2}'
    assert ask("shout", text=" ") == "(no output)"
    long = ask("shout", text="x" * (MAX_RESULT + 5))
    assert long == "x" * MAX_RESULT + " ... (5 more characters)"
    wrong = asyncio.run(answer(TOOLS, ToolCall(name="y" * 100_000, arguments={})))
    assert max(len(wrong["name"]), len(wrong["content"])) < MAX_RESULT + 50  # it is quoted no longer than that


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("devide", {}, "no tool 'devide'; there is divide, fetch, shout. Did you mean 'divide'?"),
        ("divide", {"a": 1}, "'b' is a required property"),
        ("divide", {"a": 1, "b": "two"}, "b: 'two' is not of type 'number'"),
        ("divide", {"a": 1, "b": 2, "digits": True}, "digits: True is not of type 'integer'"),
        ("divide", {"a": 1, "b": 2, "c": 3}, "Additional properties are not allowed ('c' was unexpected)"),
        ("fetch", {"names": ["ann", 3]}, "names.1: 3 is not of type 'string'"),
        ("divide", {"a": 1, "b": 0}, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_goes_wrong_in_a_call_is_a_message(name: str, arguments: dict[str, Any], told: str) -> None:
    assert ask(name, **arguments) == f"error: {told}"


def test_arguments_too_deep_to_be_checked_are_told_to_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(tool: Any, arguments: Any) -> str:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(tools, "_check_arguments", deep)
    assert ask("shout", text=[]).startswith("error: RecursionError: ")


@pytest.mark.parametrize("family", ["chatml", "qwen2.5", "llama3.2"])
def test_an_episode_with_tools(family: str) -> None:
    tokenizer = tokenizer_of(family)
    task = Task(id="q", messages=({"role": "user", "content": "1 / 4?"},), answer="0.25")
    environment = Environment(
        train=[task],
        heldout=[],
        tools=schemas(TOOLS),
        max_turns=4,
        episode=lambda: ToolEpisode(TOOLS, lambda task, text: float(task.answer in text)),
    )
    call = '<tool_call>{"name": "divide", "arguments": {"a": 1, "b": %d}}</tool_call>'
    if family == "llama3.2":  # as its template says
        call = '{"name": "divide", "parameters": {"a": 1, "b": %d}}'

    def say(prompt: str, index: int, seed: int) -> str:
        if "0.25" in prompt:
            return "It is 0.25."
        return call % (4 if "ZeroDivisionError" in prompt else 0)

    engine = ScriptedEngine(tokenizer, say)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=100)
    work = Chunk(tasks=(task,), samples_per_task=1, params=params, run_seed=0, stream="t", step=1, version=0)
    (trajectory,) = run_chunk(engine, tokenizer, work, environment)[0].trajectories
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert trajectory.messages[2]["content"].startswith("error: ZeroDivisionError: ")
    assert (trajectory.stop_reason, trajectory.environment_reward) == ("done", 1.0)
    prompt = tokenizer.decode(list(trajectory.prompt_ids))
    assert ("Tools:" in prompt) == (family == "qwen2.5")
    assert ("You can call tools:" in prompt) == (family == "chatml")
    told = "<|im_start|>user\n<tool_response>\n0.25\n</tool_response><|im_end|>"
    if family == "llama3.2":
        told = '<|start_header_id|>ipython<|end_header_id|>\n\n"0.25"<|eot_id|>'
    assert told in tokenizer.decode(list(trajectory.token_ids))


@pytest.mark.parametrize("family", ["chatml", "qwen2.5"])
def test_demonstrations_are_what_rollouts_look_like(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    # The prompt of an SFT example, tools and all, has the ids that the driver would have made of the same episode.
    import shutil

    from environments import calculator
    from rlft.model import chat
    from rlft.train import sft
    from tests.fakes import tiny_config

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = tokenizer_of(family).chat_template
    tokenizer.save_pretrained(folder)
    environment = calculator.load(tasks=10, heldout=2, demonstrations=2)
    examples: list[Any] = []

    def stop(rows: Sequence[Any]) -> None:
        examples.extend(sorted(rows, key=lambda row: row.where))
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "make_batch", stop)
    config = tiny_config(folder, sft={"examples": 4})
    with pytest.raises(KeyboardInterrupt):
        sft.train_sft(config, str(folder), environment.demonstrations, tools=environment.tools_shown)
    for shown, example in zip(environment.demonstrations, examples, strict=True):
        prompt = chat.render(tokenizer, shown[:-1], tools=environment.tools)
        reply = tuple(tokenizer(shown[-1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"])
        assert (*example.prompt_ids, *example.token_ids)[: len(prompt) + len(reply)] == (*prompt, *reply)
        assert example.prompt_ids == prompt
        assert all(example.action_mask)
        assert "calculate" in tokenizer.decode(list(prompt))
    # And the second example of a problem is the first one, its reply, and the observation.
    first, second = (
        chat.render(tokenizer, shown[:-1], tools=environment.tools) for shown in environment.demonstrations[:2]
    )
    call = tuple(
        tokenizer(environment.demonstrations[0][-1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
    )
    result = [environment.demonstrations[1][-2]]
    assert second == (*first, *call, *chat.render_observation(tokenizer, result, after=call, tools=environment.tools))


# Deadlines.


def sleepy(how: str) -> str:
    """
    Does not come back.

    Args:
        how: in what way
    """
    if how == "spin":
        while True:
            pass
    if how == "regex":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if how == "handles errors":
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)
    if how == "quick":
        return "here"
    time.sleep(60)
    return "late"


async def waits(how: str) -> str:
    """
    Waits for an answer.

    Args:
        how: in what way
    """
    if how == "own":
        raise TimeoutError("the server said so")
    await asyncio.sleep(60)
    return "late"


@pytest.mark.parametrize(
    ("function", "how"),
    [(sleepy, "sleep"), (sleepy, "spin"), (sleepy, "regex"), (sleepy, "handles errors"), (waits, "forever")],
)
def test_a_call_that_takes_too_long_is_an_error_and_the_episode_goes_on(function: Any, how: str) -> None:
    tests_own = signal.getitimer(signal.ITIMER_REAL)[0] > 0  # of the limit on how long a test may take
    episode = ToolEpisode(make_tools(function), lambda task, text: 1.0, deadline_s=0.1)
    episode.start(Task(id="a", messages=({"role": "user", "content": "go"},)), 0)
    name = function.__name__
    call = f'<tool_call>{{"name": "{name}", "arguments": {{"how": "{how}"}}}}</tool_call>'
    step = asyncio.run(episode.step({"role": "assistant", "content": call}))
    assert step.messages == ({"role": "tool", "name": name, "content": f"error: {name} gave no result within 0.1 s"},)
    assert not step.done
    assert asyncio.run(episode.step({"role": "assistant", "content": "4"})).reward == 1.0
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == tests_own


def test_deadlines_leave_alone_what_keeps_them() -> None:
    tools_ = make_tools(sleepy, waits)
    before = signal.getsignal(signal.SIGALRM)
    call = ToolCall(name="sleepy", arguments={"how": "quick"})
    assert asyncio.run(answer(tools_, call, deadline_s=None))["content"] == "here"
    assert asyncio.run(answer(tools_, call, deadline_s=5.0))["content"] == "here"
    assert signal.getsignal(signal.SIGALRM) is before
    own = ToolCall(name="waits", arguments={"how": "own"})
    assert asyncio.run(answer(tools_, own))["content"] == "error: TimeoutError: the server said so"


def _sleep_under_two_alarms() -> None:
    with interrupted_after(0.2):
        with interrupted_after(10.0):
            time.sleep(0.05)
        time.sleep(60)


def test_an_alarm_around_another_goes_on() -> None:
    began = time.monotonic()
    with pytest.raises(OverrunError):
        _sleep_under_two_alarms()
    assert 0.2 <= time.monotonic() - began < 10


def test_outside_of_the_main_thread_there_is_no_deadline() -> None:
    seen: list[str] = []

    def call() -> None:
        with interrupted_after(0.05):
            time.sleep(0.2)
        seen.append("done")

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen == ["done"]


class _Typing(io.StringIO):
    """A person who takes longer than the deadline to type."""

    def readline(self, size: int = -1, /) -> str:
        time.sleep(0.3)
        return "c\n"


def test_a_call_that_stands_in_the_debugger_is_not_interrupted() -> None:
    with interrupted_after(0.1):
        pdb.Pdb(stdin=_Typing(), stdout=io.StringIO()).set_trace()
        found = 1
    assert found == 1
