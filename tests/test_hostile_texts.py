"""Every place that reads what a model wrote or a data set holds, tried with the texts of `hostile_texts` and with those
that hypothesis makes: nothing crashes, hangs, acts, or comes back as another value."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
import re
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from rich.console import Console

from environments import calculator, dataset, number_guessing, retrieval
from rewards.constraints import CHECKS
from rewards.countdown import countdown as countdown_reward
from rewards.exact_answer import exact_answer
from rewards.graded_answer import graded_answer
from rewards.instructions import instructions
from rewards.last_number import last_number
from rlft import config_file
from rlft.common import rows
from rlft.common.arithmetic import DIGITS, evaluate, show
from rlft.common.by_path import did_you_mean
from rlft.curves.live_panel import View
from rlft.curves.report import write_report
from rlft.curves.samples import read_groups
from rlft.curves.text import shortened, visible
from rlft.environment import tools
from rlft.model import chat
from rlft.reward import answers, extract, judge, sandbox
from rlft.reward.sandbox import Limits, call
from rlft.reward.scoring import Scorer
from rlft.run import damage, logs
from rlft.run.records import EVENTS, METRICS, TASKS, Event, MetricsLine
from rlft.run.rollout_table import to_parquet
from rlft.run.stored_task import StoredTask
from rlft.types import (
    Completion,
    Failed,
    Group,
    Message,
    RewardSpec,
    Score,
    Task,
    Trajectory,
    Turn,
    whole_text,
)
from tests.chat_templates import TEMPLATES, tokenizer_of
from tests.fakes_run import append, write_config
from tests.hostile_texts import BYTES, TEXTS, acting, as_json, texts
from tests.test_report import Page
from tests.test_scoring import make_group

TAGS = {"html", "main", "meta", "p", "script"}
"""Elements of a report that have attributes."""
LIMIT_S = 5.0
"""CPU time that a reader may take for one text: what takes longer grows faster than the text."""
Reader: TypeAlias = Callable[[str, Path], None]
READERS: dict[str, Reader] = {}
SHORT = {name: text for name, text in TEXTS.items() if len(text) < 10_000}
TOKENIZERS = {name: tokenizer_of(name) for name in TEMPLATES}


def reader(function: Reader) -> Reader:
    """A row of the table: what reads a text, and what must hold then. It gets an empty folder of its own, too."""
    READERS[function.__name__.strip("_")] = function
    return function


def paired(text: str) -> str:
    """Text as JSON gives it back: two halves that stand in order are one character there."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def refused(error: ValueError) -> None:
    """A refusal says what is wrong in words that do not act."""
    assert str(error).strip()
    assert not acting(visible(str(error)))


# Prompts.


def _special(tokenizer: Any, ids: Iterable[int]) -> list[int]:
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [token for token in ids if token in special]


@reader
def _prompt(text: str, folder: Path) -> None:
    tokenizer = TOKENIZERS["chatml"]
    if whole_text(text) != text:
        with pytest.raises(ValueError, match="half a surrogate pair"):
            chat.render(tokenizer, [Message(role="user", content=text)])
        return
    ids, plain = (chat.render(tokenizer, [Message(role="user", content=each)]) for each in (text, "a"))
    assert _special(tokenizer, ids) == _special(tokenizer, plain)
    assert f"user\n{text}<|im_end|>" in tokenizer.decode(list(ids))


@reader
def _tool_messages_and_calls(text: str, folder: Path) -> None:
    tokenizer, text = TOKENIZERS["qwen2.5"], whole_text(text[:10_000])

    def ids(said: str) -> tuple[int, ...]:
        asked: list[Any] = [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": said,
                "tool_calls": [{"type": "function", "function": {"name": said, "arguments": {"x": said}}}],
            },
            {"role": "tool", "name": said, "content": said},
        ]
        described = {"type": "function", "function": {"name": "f", "description": said, "parameters": {}}}
        return chat.render(tokenizer, asked, tools=[described])

    assert _special(tokenizer, ids(text)) == _special(tokenizer, ids("a"))


@reader
def _observation(text: str, folder: Path) -> None:
    tokenizer = TOKENIZERS["llama3"]
    end = tokenizer("<|eot_id|>", add_special_tokens=False)["input_ids"]
    ids, plain = (
        chat.render_observation(tokenizer, [Message(role="user", content=each)], after=end)
        for each in (whole_text(text), "a")
    )
    assert _special(tokenizer, ids) == _special(tokenizer, plain)


@reader
def _reply_to_learn(text: str, folder: Path) -> None:
    tokenizer = TOKENIZERS["chatml"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    messages = [Message(role="user", content="?"), Message(role="assistant", content=text)]
    try:
        _, ids, mask = chat.render_completion(tokenizer, messages[:1], messages[1:], frozenset([end]))
    except ValueError as error:
        return refused(error)
    assert ids[-1] == end
    assert ids.count(end) == 1
    assert len(mask) == len(ids)
    assert tokenizer.decode(list(ids[:-1])) == text


# Tools and environments.


def _calculate(expression: str) -> str:
    """
    Computes an arithmetic expression.

    Args:
        expression: numbers, + - * / and brackets
    """
    return show(evaluate(expression)[0])


_calculate.__name__ = "calculate"
TOOLS = tools.make_tools(_calculate)


@reader
def _call_of_a_tool(text: str, folder: Path) -> None:
    named = [{"name": name, "arguments": {key: text}} for name, key in (("calculate", "expression"), (text, text))]
    for written in (text, f"<tool_call>{text}", *(f"<tool_call>{json.dumps(each)}</tool_call>" for each in named)):
        for one in tools.read_calls(written)[:20]:
            told = asyncio.run(tools.answer(TOOLS, one))
            assert told["role"] == "tool"
            assert 0 < len(told["content"]) <= tools.MAX_RESULT + 100
            json.dumps(told)


EPISODES = {
    "calculator": calculator.load(tasks=30, heldout=5, demonstrations=5),
    "number_guessing": number_guessing.load(),
    "retrieval": retrieval.load(people=4, demonstrations=0),
}


@reader
def _episode(text: str, folder: Path) -> None:
    for environment in EPISODES.values():
        assert environment.episode
        episode: Any = environment.episode()
        episode.start(environment.train[0], 1)
        for said in (text, f'<tool_call>{{"name": "search", "arguments": {{"query": {as_json(text)}}}}}</tool_call>'):
            step = episode.step(Message(role="assistant", content=said))
            step = asyncio.run(step) if asyncio.iscoroutine(step) else step
            assert step.reward is None or math.isfinite(step.reward)


@reader
def _arithmetic(text: str, folder: Path) -> None:
    for written in (text, f"({text})/7", f"1 + {text}"):
        try:
            value, numbers = evaluate(written)
        except ValueError as error:
            refused(error)
        else:
            assert len(show(value)) <= 2 * DIGITS + 2
            assert len(numbers) <= len(written)


# Rewards.


EXTRACTIONS: tuple[Callable[[str], Any], ...] = (
    *(extract.last_number, extract.tagged, extract.boxed, extract.code_block, extract.json_object),
    *(extract.choice, extract.stated_answer, extract.conclusion, extract.is_denied),
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "at_most_words": {"count": 3},
    "at_least_words": {"count": 3},
    "starts_with": {"phrase": "a"},
    "ends_with": {"phrase": "a"},
    "without_word": {"word": "a"},
    "items": {"count": 2},
    "json_object": {"keys": ["a"]},
    **{kind: {"count": 2} for kind in ("at_most_sentences", "at_least_sentences", "paragraphs", "capital_words")},
    **{kind: {"count": 2} for kind in ("placeholders", "highlights")},
    "paragraph_starts": {"number": 2, "word": "a"},
    "postscript": {"marker": "P.S."},
    "uses_word": {"word": "a", "count": 2},
    "uses_letter": {"letter": "a", "count": 2},
    "one_of": {"options": ["a", "b"]},
    "sections": {"word": "Part", "count": 2},
}


@reader
def _reward(text: str, folder: Path) -> None:
    kinds = [{"kind": kind, **ARGUMENTS.get(kind, {})} for kind in CHECKS]
    for reply in (text, f"<answer>{text}</answer>", f"```json\n{text}\n```", f"5 {text} 5"):
        for result in (
            exact_answer(reply, text),
            graded_answer(reply, text),
            last_number(reply, "5"),
            last_number("5", text),
            countdown_reward(reply, [5, 7], 12),
            instructions(reply, kinds),
            judge.score(reply),
            judge.passed(reply),
        ):
            values = result.values() if isinstance(result, dict) else [result or 0.0]
            assert all(-1 <= value <= 1 for value in values)
    assert exact_answer(f"<answer>{text}</answer>", text) == 1.0


@reader
def _extraction(text: str, folder: Path) -> None:
    for take in (*EXTRACTIONS, lambda reply: extract.code_block(reply, defines="f")):
        found = take(text)
        assert found is None or len(str(found)) <= 2 * len(text) + 20
    value = extract.number(text)
    assert value is None or extract.same_number(text, text)
    assert extract.tagged(f"<answer>{text}</answer>") in (text.strip(), None) or "answer>" in text


@reader
def _answer_of_a_scoring_process(text: str, folder: Path) -> None:
    message = text[:2000]
    sent = [Failed(kind="error", message=message, reproduce=""), Score(value=1.0, parts={message: 0.5})]
    results = {0: answers.Result(outcomes=sent, seconds=0.5, metrics={message: 0.5}, extras={message: [text, None]})}
    written = answers.write_results(3, results, is_last=True)
    assert answers.read_results(written, message=3, sizes=[2]).results == results


# Files.


@reader
def _lines_of_a_run(text: str, folder: Path) -> None:
    line = MetricsLine(step=3, metrics={f"reward/part/{text}": 0.5}, texts={text: text})
    event = Event(time="now", kind=text, message=text, step=3)
    task = StoredTask(task_id=text, step=3, answer={"a": [text]}, columns={"x": text})
    for name, record in ((METRICS, line), (EVENTS, event), (TASKS, task)):
        (folder / name).write_text(f"{record.line()}\n" * 2, encoding="ascii")
    came = paired(text)
    metrics = MetricsLine(step=3, metrics={f"reward/part/{came}": 0.5}, texts={came: came})
    assert logs.read_metrics(folder).rows == [metrics] * 2
    assert logs.read_tasks(folder).rows == [replace(task, task_id=came)] * 2
    assert logs.read_events(folder).rows == [Event(time="now", kind=came, message=came, step=3)] * 2


@reader
def _damaged_log(text: str, folder: Path) -> None:
    for content in (text, f'{{"step": 1, "x": {text}}}\n{{"step": 2}}\n'):
        (folder / METRICS).write_text(content, encoding="utf-8", errors="surrogatepass")
        try:
            logs.read_metrics(folder, [])
        except ValueError as error:
            refused(error)
        with damage.left_out():
            logs.read_metrics(folder, [])
        logs.mend_end(folder / METRICS)


@reader
def _column_of_a_table(text: str, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(f"{json.dumps({'text': text, text or 'x': 1.5})}\n" * 2, encoding="ascii")
    (folder / "rows.json").write_text(json.dumps([{"text": text}]), encoding="ascii")
    for name in ("rows.jsonl", "rows.json"):
        assert {row["text"] for _, row in rows.read_rows(str(folder / name))} == {paired(text)}
    with (folder / "rows.csv").open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["text", "x"], [text, "1"]])
    try:
        ((_, row),) = rows.read_rows(str(folder / "rows.csv"))
    except ValueError as error:
        refused(error)
        assert whole_text(text) != text or len(text) > csv.field_size_limit()
    else:
        assert row == {"text": text, "x": "1"}


@reader
def _table_that_is_none(text: str, folder: Path) -> None:
    for suffix in rows.FORMATS:
        file = folder / f"rows{suffix}"
        for content in (text, f"text\n{text}\n" if suffix == ".csv" else f'{{"text": {text}}}\n'):
            file.write_text(content, encoding="utf-8", errors="surrogatepass")
            try:
                for _, row in rows.read_rows(str(file)):
                    json.dumps(dict(row))
            except ValueError as error:
                refused(error)


@reader
def _task_of_a_table(text: str, folder: Path) -> None:
    file = folder / "rows.jsonl"
    row = {"question": text, "answer": text, "other": {"deep": [text]}}
    file.write_text(json.dumps(row), encoding="ascii")
    (task,) = dataset.load(str(file), prompt="Q: {question}", reply="{answer}", heldout=0.0).train
    assert task.messages == ({"role": "user", "content": f"Q: {paired(text)}"},)
    assert task.answer == paired(text)
    assert re.fullmatch("[0-9a-f]{16}", task.id)
    assert rows.canonical_text(text).count("\n") <= text.count("\n") + text.count("\r")


@reader
def _rollout_table(text: str, folder: Path) -> None:
    path = folder / "step-000001.parquet"
    path.write_bytes(to_parquet([_group(text)], step=1))
    _check_rollouts(list(rows.read_rows(str(path))), [text])


@reader
def _config(text: str, folder: Path) -> None:
    file, text = folder / "run.yaml", text[:500]
    head = 'name: r\nmodel: {source: m}\nenvironment: {path: "e.py:f"}\nsteps: 2\nrewards:\n- path: "a:f"\n  args: '
    file.write_text(f"{head}{text}\n", encoding="utf-8", errors="surrogatepass")
    _read_config(file)
    file.write_text(f"{head}{{x: {as_json(text)}}}\n", encoding="ascii")
    _read_config(file, f"rewards.0.args.y={text}")
    _read_config(file, f"rewards.{text}=1")


def _read_config(file: Path, *overrides: str) -> None:
    try:
        config = config_file.load(file, overrides)
        kept = config_file.dump(config)
    except ValueError as error:
        return refused(error)
    again = file.with_name("again.yaml")
    again.write_text(kept, encoding="utf-8")
    assert config_file.load(again) == config


# What a person sees.


_OF_RICH = r"\x1b\[(?:\d+(?:;\d+)*m|\d*[AJK]|\?25[lh])|\r"
"""Colours, lines up and cleared, the cursor shown or not: what the live panel does itself."""


@reader
def _screen(text: str, folder: Path) -> None:
    assert not acting(visible(text))
    assert len(shortened(text)) <= 4100
    for is_terminal in (True, False):
        console = Console(force_terminal=is_terminal, width=100, file=io.StringIO(), color_system="truecolor")
        short = text[:300]
        view = View(short, steps=2, console=console)
        with view:
            view.stage(short)
            view.note(short if is_terminal else text[:10_000])
            view.step(1, {"reward/mean": math.nan, "time/step": 1.0})
            view.step(2, {"reward/mean": math.inf, "time/step": 1.0})
            console.print(view)
        assert isinstance(console.file, io.StringIO)
        written = console.file.getvalue()
        written.encode()
        assert not acting(re.sub(_OF_RICH, "", written))


@reader
def _suggestion(text: str, folder: Path) -> None:
    did_you_mean(text, ["abc", "calculate", "learner"])
    did_you_mean("calculate", [text, text[:9]])


# Each with the corpus, then with what hypothesis makes.


@pytest.mark.parametrize("name", READERS)
def test_each_reader_with_the_corpus(name: str, tmp_path: Path) -> None:
    wrong = {}
    for label, text in TEXTS.items():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        started = time.process_time()
        try:
            READERS[name](text, folder)
        except (Exception, pytest.fail.Exception) as error:
            wrong[label] = f"{type(error).__name__}: {str(error)[:300]!r}"
        if (seconds := time.process_time() - started) > LIMIT_S:
            wrong[label] = f"it took {seconds:.1f} s; {wrong.get(label, '')}"
    assert not wrong, "\n".join(f"{label}: {what}" for label, what in wrong.items())


@pytest.mark.parametrize("name", READERS)
def test_each_reader_with_texts_that_are_made(name: str, tmp_path: Path) -> None:
    @settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @given(texts())
    def tried(text: str) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            READERS[name](text, Path(folder))

    tried()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_bytes_that_are_no_text(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows{suffix}"
    for content in BYTES.values():
        file.write_bytes(content)
        try:
            assert all(isinstance(row, dict) for _, row in rows.read_rows(str(file)))
        except ValueError as error:
            refused(error)
        (tmp_path / METRICS).write_bytes(content)
        with damage.left_out():
            logs.read_metrics(tmp_path, [])
        (tmp_path / "run.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.yaml"):
            config_file.load(tmp_path / "run.yaml")


# Those that take the whole corpus at once.


def test_a_run_of_hostile_rollouts_is_kept_and_its_report_is_inert(tmp_path: Path) -> None:
    given = [*TEXTS.values()]
    write_config(tmp_path)
    path = tmp_path / "rollouts" / "step-000001.parquet"
    path.parent.mkdir()
    path.write_bytes(to_parquet([_group(text) for text in given], step=1))
    _check_rollouts(list(rows.read_rows(str(path))), given)
    for text in given:
        append(tmp_path / METRICS, {"step": 1, "reward/mean": 0.5, f"reward/part/{text[:500]}": 0.25})
        append(tmp_path / EVENTS, {"time": "now", "kind": text, "message": text, "step": 1})
    (tmp_path / "provenance.json").write_text(json.dumps({"corpus": TEXTS}))
    groups = read_groups(tmp_path, [(1, index) for index in range(len(given))])
    assert [group["samples"][0]["text"] for group in groups] == [shortened(whole_text(text)) for text in given]
    page = Page(write_report(tmp_path))
    assert page.data["samples"]["shown"] == 2 * len(given)
    assert len(page.scripts) == 2
    assert "alert(" not in page.scripts[1]
    assert "<" not in page.scripts[0]
    assert {tag for tag, _, _ in page.attributes} <= TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not acting(page.text)


def _group(text: str) -> Group:
    task = Task(id=text, messages=(Message(role="user", content=text),), answer={"a": [text]}, columns={"x": text})
    completion = Completion(token_ids=(1,), logprobs=(-1.0,), finish_reason="stop", adapter_version=1, adapter_hash="h")
    outcomes = (Score(value=1.0, parts={text: 1.0}), Failed(kind="error", message=text, reproduce=text))
    return Group(
        task=task,
        trajectories=tuple(
            Trajectory(
                task=task,
                sample_index=index,
                seed=index,
                turns=(Turn(prompt_ids=(1,), completion=completion),),
                text=text,
                messages=(*task.messages, Message(role="assistant", content=text)),
                outcome=outcome,
                failed_parts={text: outcome} if isinstance(outcome, Failed) else {},
            )
            for index, outcome in enumerate(outcomes)
        ),
    )


def _check_rollouts(read: list[Any], written: list[str]) -> None:
    for at, text in enumerate(written):
        scored, failed = (row for _, row in read[2 * at : 2 * at + 2])
        assert scored["completion"] == scored["prompt"] == scored["task_id"] == whole_text(text)
        assert failed["failure_message"] == failed["reproduce"] == whole_text(text)
        for found, expected in (
            (scored["answer"], {"a": [text]}),
            (scored["parts"], {text: 1.0}),
            (failed["messages"], [{"role": "user", "content": text}]),
        ):
            assert json.loads(found) == json.loads(json.dumps(expected))


REWARD = """
def loud(completion):
    print(completion)
    if len(completion) % 2:
        raise ValueError(completion)
    return float(len(completion))
"""


def test_a_reward_prints_and_raises_whatever_it_was_given(tmp_path: Path) -> None:
    given = [*TEXTS.values()]
    (tmp_path / "loud.py").write_text(REWARD)
    with Scorer([RewardSpec(path=f"{tmp_path}/loud.py:loud")], workers=1, deadline_s=20.0, log_dir=tmp_path) as scorer:
        (scored,) = scorer.score([make_group(*given)])
    for text, trajectory in zip(given, scored.trajectories, strict=True):
        match trajectory.outcome:
            case Score(value=value):
                assert value == len(text)
            case Failed(kind=kind, message=message):
                assert (kind, len(text) % 2) == ("error", 1)
                assert "ValueError" in message
            case other:
                raise AssertionError(other)
    log = b"".join(file.read_bytes() for file in tmp_path.glob("*.log"))
    assert b"\\ud83d x \\ude00" in log
    assert b"^[]0;owned^G" in log
    assert not {char for char in log.decode() if unicodedata.category(char) == "Cc"} - {*"\n\t\r"}


@pytest.mark.skipif(bool(sandbox._problem()), reason=f"no sandbox: {sandbox._problem()}")
def test_the_sandbox_with_the_corpus() -> None:
    given = [*TEXTS.values()]
    limits = Limits(seconds=20.0, output_kb=2**14)
    calls = call("def f(text):\n    return [len(text), text]", "f", [[text] for text in given], limits)
    assert [(one.value, one.error) for one in calls] == [([len(paired(t)), paired(t)], "") for t in given]
    tried = "\ntry:\n    exec(text, {})\nexcept BaseException: pass\n"
    for text in (f"text = {TEXTS['python']!r}{tried}def f(): return 7", TEXTS["NUL"], TEXTS["halves of pairs"]):
        (one,) = call(text, "f", [[]])
        assert one.value in (7, None)
        assert one.error or one.value
