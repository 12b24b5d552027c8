"""Tasks from tables: every format, templates, the split, few-shot examples, and errors that name the row."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from environments import arithmetic, dataset, number_guessing, programs, sums
from rlft.common.rows import read_rows
from rlft.config import EnvironmentConfig
from rlft.environment.contract import Environment, check
from rlft.environment.loading import load as load_config
from rlft.train.task_order import tasks_of_step
from rlft.types import Task

# Text that readers like to turn into something else: dates, numbers with zeros in front, yes and no.
ROWS = [{"question": f"q{i}?", "answer": answer} for i, answer in enumerate(["2024-01-02", "007", "no", "1e3", "x, y"])]


def write_lines(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        return write_lines(path, *map(json.dumps, rows))
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path = folder / "rows.py"
        path.write_text(f"def rows():\n    yield from {rows!r}\n")
        return f"{path}:rows"
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".py"])
def test_every_format_gives_the_same_tasks(tmp_path: Path, suffix: str) -> None:
    environment = dataset.load(write(tmp_path, suffix, ROWS), heldout=0.0)
    check(environment)
    assert [task.messages for task in environment.train] == [
        ({"role": "user", "content": row["question"]},) for row in ROWS
    ]
    assert [task.answer for task in environment.train] == [row["answer"] for row in ROWS]
    assert [dict(task.columns) for task in environment.train] == ROWS


def test_the_split_is_by_prompt_not_by_order(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{i}", "answer": i, "level": i % 3}) for i in range(200)]
    options: dict[str, Any] = {"reply": "<answer>{answer}</answer>", "heldout": 0.25, "system": "Be brief."}
    first = dataset.load(write_lines(tmp_path / "a.jsonl", *lines), **options)
    second = dataset.load(write_lines(tmp_path / "b.jsonl", *lines[::-1], lines[0]), **options)
    check(first)
    assert {t.id for t in first.heldout} == {t.id for t in second.heldout}
    assert 30 <= len(first.heldout) <= 70
    assert len(first.heldout) + len(first.train) == 200 == len(second.heldout) + len(second.train)
    task = first.train[0]
    assert task.messages[0] == {"role": "system", "content": "Be brief."}
    assert task.columns["level"] == task.answer % 3
    assert first.demonstrations[0][-1] == {"role": "assistant", "content": f"<answer>{task.answer}</answer>"}
    other = dataset.load(str(tmp_path / "a.jsonl"), **options, seed=1)
    assert {t.messages for t in map(_plain, other.heldout)} != {t.messages for t in map(_plain, first.heldout)}


def _plain(task: Task) -> Any:
    class Plain:
        messages = json.dumps(task.messages)

    return Plain


def test_shots_stand_before_every_question_and_are_no_tasks(tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1?", "answer": i + 1} for i in range(20)]
    path = write(tmp_path, ".jsonl", rows)
    environment = dataset.load(path, reply="It is {answer}.", shots=2, system="s", heldout=0.3)
    check(environment)
    without = dataset.load(path, heldout=0.3)
    assert len(environment.train) == len(without.train) - 2
    assert len(environment.heldout) == len(without.heldout)
    shown = without.train[0]
    for task in (*environment.train, *environment.heldout):
        assert [m["role"] for m in task.messages] == ["system", *["user", "assistant"] * 2, "user"]
        assert task.messages[1]["content"] == shown.messages[0]["content"]
        assert task.messages[2]["content"] == f"It is {shown.answer}."
        assert task.messages[-1]["content"] not in (task.messages[1]["content"], task.messages[3]["content"])
    assert environment.demonstrations[0][:-1] == environment.train[0].messages
    with pytest.raises(ValueError, match="shots need a `reply` template"):
        dataset.load(path, shots=2)
    with pytest.raises(ValueError, match="shots is 20, but there are 20 training rows"):
        dataset.load(path, reply="{answer}", shots=20, heldout=0)


def test_a_column_of_messages_is_the_prompt(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    for suffix in (".jsonl", ".parquet"):
        environment = dataset.load(write(tmp_path, suffix, [{"chat": chat}]), messages="chat", answer="", heldout=0)
        assert environment.train[0].messages == tuple(chat)
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: column 'chat' must hold a list of messages"):
        dataset.load(write(tmp_path, ".jsonl", [{"chat": "hi"}]), messages="chat", answer="")


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "hi"}]])
def test_a_message_whose_content_is_no_text_is_named(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path, ".jsonl", [{"chat": [{"role": "user", "content": content}]}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: column 'chat': the content of message 1 must be text"):
        dataset.load(path, messages="chat", answer="")


def test_a_source_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, ".jsonl", ROWS)
    assert len(dataset.load("~/rows.jsonl", heldout=0).train) == len(ROWS)


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *map(json.dumps, ROWS), "not read")
    assert len(dataset.load(path, heldout=0, limit=3).train) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows\.jsonl:2: not JSON: Expecting property name .*: at the end of the line$"),
        ("{,", r"rows\.jsonl:2: not JSON: Expecting property name .*: column 2$"),
        ("[1]", r"rows\.jsonl:2: expected an object with columns, found list"),
        ('{"answer": 1}', r"rows\.jsonl:2: the template names 'question', but the row has answer"),
        ('{"question": "x"}', r"rows\.jsonl:2: no column 'answer'"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", '{"question": "x?", "answer": 1}', line)
    with pytest.raises(ValueError, match=message):
        dataset.load(path)


def test_errors_name_what_is_wrong_with_a_source(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", ROWS)
    (tmp_path / "short.csv").write_text("question,answer\nq1,1\nq2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "raises.py").write_text("def rows():\n    raise OSError('no disk')\n")
    for options, message in [
        ({"source": str(tmp_path / "row.jsonl")}, r"no file .*row\.jsonl\. Did you mean 'rows\.jsonl'"),
        (
            {"source": str(tmp_path / "short.csv")},
            r"short\.csv, row 2: it has another number of fields than the header, 2",
        ),
        ({"source": str(tmp_path / "broken.parquet")}, r"broken\.parquet: not readable as parquet"),
        ({"source": f"{tmp_path}/raises.py:rows"}, r"(?s)raises\.py:rows raised:.*OSError: no disk"),
        ({"source": path, "split": "test"}, r"split and subset are for hub ids and folders"),
        ({"source": path, "prompt": "{question} as {json}"}, r"rows\.jsonl:1: the template names 'json'"),
        ({"source": path, "prompt": "{question"}, r"is not usable: .*for braces that are text"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataset.load(**options)


def test_a_hub_id_offline_is_refused_kindly() -> None:
    with pytest.raises(ValueError, match=r"source: 'nobody/nothing' could not be loaded: .*\n.*hub id"):
        list(read_rows("nobody/nothing"))


# Difficulty and order


def difficult(values: list[Any]) -> list[Task]:
    return [
        Task(id=str(i), messages=({"role": "user", "content": str(i)},), columns={"difficulty": value})
        for i, value in enumerate(values)
    ]


def of_steps(tasks: list[Task], count: int, steps: range, **options: Any) -> list[list[Task]]:
    return [tasks_of_step(tasks, step=step, count=count, seed=3, **options) for step in steps]


def test_listed_goes_round_in_order() -> None:
    tasks = difficult([0] * 5)
    steps = of_steps(tasks, 2, range(1, 6), order="listed")
    assert [[t.id for t in step] for step in steps] == [["0", "1"], ["2", "3"], ["4", "0"], ["1", "2"], ["3", "4"]]
    assert [t.id for t in tasks_of_step(tasks, step=1, count=2, seed=3, round_number=1, order="listed")] == ["2", "3"]
    assert len({t.id for t in tasks_of_step(tasks, step=7, count=5, seed=3, order="listed")}) == 5


def test_easy_first_sorts_each_epoch_and_shuffles_equals() -> None:
    tasks = difficult([0.5, 0.0, "1.0", 0.5, 0.0, 0.25, 1, 0.5, 0.0])
    first, second = (of_steps(tasks, 2, range(1 + 4 * epoch, 5 + 4 * epoch), order="easy_first") for epoch in (0, 1))
    for epoch in (first, second):
        values = [float(t.columns["difficulty"]) for step in epoch for t in step]
        assert values == sorted(values)
        assert len({t.id for step in epoch for t in step}) == 8
    assert first != second
    assert first == of_steps(tasks, 2, range(1, 5), order="easy_first")
    # 9 tasks in steps of 2 leave one out, in each epoch another: also the hardest are reached.
    seen = {t.id for step in of_steps(tasks, 2, range(1, 120), order="easy_first") for t in step}
    assert len(seen) == 9


@pytest.mark.parametrize("value", [None, "hard", float("nan"), [1]])
def test_easy_first_without_difficulty_says_how_to_measure_it(value: Any) -> None:
    with pytest.raises(ValueError, match=r"1 of 2 have none \(the first is '1'\).*rlft env measure.*difficulty_file"):
        tasks_of_step(difficult([0.5, value]), step=1, count=1, seed=0, order="easy_first")


def from_config(**args: Any) -> Environment:
    return load_config(
        EnvironmentConfig(path="environments.sums:load", args={"high": 4, "heldout": 2, "demonstrations": 2, **args})
    )


def test_a_difficulty_file_is_for_every_environment(tmp_path: Path) -> None:
    plain = from_config()
    lines = [json.dumps({"id": task.id, "difficulty": i / 10}) for i, task in enumerate(plain.train)]
    file = write_lines(tmp_path / "difficulty.jsonl", *lines[:-1])
    environment = from_config(difficulty_file=file)
    assert [task.columns["difficulty"] for task in environment.train] == [
        *(i / 10 for i in range(len(plain.train) - 1)),
        None,
    ]
    assert {task.columns["difficulty"] for task in environment.heldout} == {None}
    with pytest.raises(ValueError, match="none of them is a training task here"):
        from_config(difficulty_file=file, low=5, high=9)
    with pytest.raises(ValueError, match=r"wrong\.jsonl:1: expected .*\"difficulty\": 0\.25"):
        from_config(difficulty_file=write_lines(tmp_path / "wrong.jsonl", '{"id": "1+1", "difficulty": "easy"}'))
    with pytest.raises(ValueError, match=r"environment\.args\.difficulty_file: no file"):
        from_config(difficulty_file="nowhere.jsonl")


# What a table can hold that would be read as something else.


def test_a_null_is_not_the_word_none(tmp_path: Path) -> None:
    source = write(tmp_path, ".jsonl", [{"question": "q?", "answer": "1"}, {"question": None, "answer": "2"}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: the template '\{question\}' names 'question', which is null"):
        dataset.load(source)


def test_the_same_prompt_with_another_answer_is_refused_or_counted(tmp_path: Path) -> None:
    rows = [{"question": q, "answer": a} for q, a in (("a", "1"), ("b", "2"), ("a", "1"), ("b ", "3"), ("c", "4"))]
    source = write(tmp_path, ".jsonl", rows)
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:4: the prompt of .*:2 again with another answer, '3' instead of '2'"
    ):
        dataset.load(source, heldout=0)
    environment = dataset.load(source, heldout=0, conflicts="first")
    assert [task.answer for task in environment.train] == ["1", "2", "4"]
    assert environment.notes == (f"{source}: left out 2 rows with the prompt of an earlier row, 1 with another answer",)


@pytest.mark.parametrize("twin", ["cafe\u0301 {} costs?", "caf\u00e9 {} costs? ", "caf\u00e9 {} costs?\n"])
def test_prompts_that_nobody_can_tell_apart_are_on_one_side_of_the_split(tmp_path: Path, twin: str) -> None:
    prompts = [form.format(i) for i in range(40) for form in ("caf\u00e9 {} costs?", twin)]
    source = write(tmp_path, ".jsonl", [{"question": prompt, "answer": "1"} for prompt in prompts])
    environment = dataset.load(source, heldout=0.5)
    assert len(environment.train) + len(environment.heldout) == 40
    check(environment)
    apart = Environment(train=[_asks("a", prompts[0])], heldout=[_asks("b", prompts[1])])
    with pytest.raises(ValueError, match="training task 'a' asks the same as held-out task 'b'"):
        check(apart)


def _asks(task_id: str, prompt: str) -> Task:
    return Task(id=task_id, messages=({"role": "user", "content": prompt},))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, suffix: str) -> None:
    path = Path(write(tmp_path, suffix, ROWS))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    environment = dataset.load(str(path), heldout=0)
    assert [dict(task.columns) for task in environment.train] == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_text_in_another_encoding_is_refused_with_how_to_convert_it(tmp_path: Path, suffix: str) -> None:
    path = Path(write(tmp_path, suffix, ROWS))
    path.write_bytes(path.read_bytes().replace(b"q1?", "é?".encode("latin1")))
    with pytest.raises(ValueError, match=rf"rows\{suffix}:\d: not UTF-8 text \(byte 0xe9.*iconv -f latin1"):
        dataset.load(str(path))
    path.write_bytes(path.read_text("latin1").encode("utf-16"))
    with pytest.raises(ValueError, match=rf"rows\{suffix}:1: not UTF-8 text .*iconv -f utf-16"):
        dataset.load(str(path))


@pytest.mark.parametrize(
    ("load", "arguments"),
    [
        (sums.load, {"heldout": -1}),
        (arithmetic.load, {"heldout": -1}),
        (number_guessing.load, {"heldout": -1}),
        (programs.load, {"heldout": -0.1}),
        (dataset.load, {"source": "rows.jsonl", "limit": -1}),
    ],
)
def test_counts_below_0_are_refused(load: Callable[..., Environment], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is -\d.*; use 0 or more"):
        load(**arguments)


def test_a_share_outside_of_0_to_1_is_refused(tmp_path: Path) -> None:
    for share in (-1, 1, 1.5):
        with pytest.raises(ValueError, match="heldout is a share of the rows, at least 0 and below 1"):
            dataset.load(write(tmp_path, ".jsonl", ROWS), heldout=share)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('question,answer\n"open,1\nb,2\n', r"rows\.csv:3: not readable as CSV: unexpected end"),
        ('question,answer\n"a"b,1\n', r"rows\.csv:2: not readable as CSV"),
        (f'question,answer\n"{"x" * 200_000}",1\n', r"field larger than field limit .* \.jsonl, where"),
    ],
)
def test_a_csv_file_that_could_be_read_in_two_ways_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(ValueError, match=told):
        dataset.load(str(tmp_path / "rows.csv"))
