"""Rows of supervised runs: conventions, what is learnt of them, what is held out, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlft.train.supervised.config import SupervisedDataConfig
from rlft.train.supervised.data import SupervisedData, load
from rlft.train.supervised.rows import parse
from tests.fakes import byte_tokenizer

END = frozenset([0])
TOKENIZER = byte_tokenizer()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def chat(prompt: str, reply: str) -> dict[str, Any]:
    """A row with one question and one reply."""
    return {"messages": [user(prompt), assistant(reply)]}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, context: int = 256, **settings: Any) -> SupervisedData:
    """The rows of a file as tokens; nothing is held out if nothing else is said."""
    config = SupervisedDataConfig.model_validate({"source": str(path), "heldout": 0, **settings})
    return load(config, TOKENIZER, END, context=context)


def learnt(data: SupervisedData) -> list[tuple[str, str]]:
    """Of each example to train on: what is only read before and between, and what is learnt, as texts."""
    found = []
    for example in data.train:
        read_only = [*example.prompt_ids]
        taught = []
        for token, is_learnt in zip(example.token_ids, example.action_mask, strict=True):
            (taught if is_learnt else read_only).append(token)
        found.append((TOKENIZER.decode(read_only), TOKENIZER.decode(taught)))
    return found


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat("hi", "yes"), ("<|user|>hi<|end|><|assistant|>", "yes<|end|>")),
        (
            {"messages": [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]},
            ("<|system|>s<|end|><|user|>a<|end|><|assistant|><|user|>c<|end|><|assistant|>", "b<|end|>d<|end|>"),
        ),
        (
            {"messages": [user("a"), {**assistant("b"), "weight": 0}, user("c"), {**assistant("d"), "weight": 1}]},
            ("<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>", "d<|end|>"),
        ),
        (
            {"messages": [user("a"), assistant("b"), user("c"), {**assistant("d"), "weight": 0.0}]},
            ("<|user|>a<|end|><|assistant|><|user|>c<|end|><|assistant|>d<|end|>", "b<|end|>"),
        ),
        ({"prompt": "2 +", "completion": " 2"}, ("2 +", " 2<|end|>")),
        ({"prompt": "Who?", "completion": '[{"name": "Ann"}]'}, ("Who?", '[{"name": "Ann"}]<|end|>')),  # not messages
        ({"prompt": "hi", "completion": [assistant("yes")]}, ("<|user|>hi<|end|><|assistant|>", "yes<|end|>")),
        ({"prompt": [user("hi")], "completion": [assistant("yes")]}, ("<|user|>hi<|end|><|assistant|>", "yes<|end|>")),
        ({"text": "abc"}, ("a", "bc<|end|>")),
    ],
    ids=[
        "messages",
        "several replies",
        "weight 0",
        "last weight 0",
        "text pair",
        "JSON",
        "question and messages",
        "messages pair",
        "text",
    ],
)
def test_a_row_is_read_in_its_convention(tmp_path: Path, row: dict[str, Any], expected: tuple[str, str]) -> None:
    assert learnt(read(write(tmp_path / "rows.jsonl", [row]))) == [expected]


def test_all_tokens_are_learnt_where_that_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [chat("hi", "yes"), {"prompt": "2 +", "completion": " 2"}])
    assert learnt(read(file, loss_on="all")) == [
        ("<|user|>", "hi<|end|><|assistant|>yes<|end|>"),
        ("2", " + 2<|end|>"),
    ]


def test_a_weight_of_0_and_a_loss_on_all_contradict_each_other(tmp_path: Path) -> None:
    row = {"messages": [user("a"), {**assistant("b"), "weight": 0}, user("c"), assistant("d")]}
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: a reply has the weight 0, and data\.loss_on=all learns"):
        read(write(tmp_path / "rows.jsonl", [row]), loss_on="all")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a", "text": "not this", "id": 7}])
    assert learnt(read(file, columns={"prompt": "question", "completion": "answer"})) == [("q", "a<|end|>")]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: data\.columns names 'qestion' as prompt, .* mean 'question'"):
        read(file, columns={"prompt": "qestion", "completion": "answer"})


def test_tables_give_the_rows_of_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": [user(f"say {i}")], "completion": [assistant("x" * (i + 1))]} for i in range(3)]
    expected = learnt(read(write(tmp_path / "rows.jsonl", rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("prompt", "completion"))
        table.writeheader()
        table.writerows({name: json.dumps(value) for name, value in row.items()} for row in rows)
    assert learnt(read(tmp_path / "rows.parquet")) == expected
    assert learnt(read(tmp_path / "rows.csv")) == expected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "answer": "b"}, r"this one has question, answer.*data\.columns={prompt: question, complet"),
        ({"instruction": "a", "input": "", "output": "b"}, r"columns={prompt: instruction, completion: output}"),
        ({"id": 1, "note": "b"}, r"Name the one that asks and the one that answers: data\.columns="),
        ({"conversations": [user("a")]}, r"data\.columns={messages: conversations}"),
        ({"messages": [user("a")]}, "no message is the assistant's, so nothing is to be learnt; roles: user"),
        ({"messages": [assistant("a"), user("b"), assistant("c")]}, "the first message is the assistant's, and no pro"),
        ({"messages": [user("a"), assistant("b"), user("c")]}, "the last message is of role 'user' and is answered by"),
        ({"messages": [user("a"), assistant(" ")]}, "a completion is empty, or a reply in it"),
        ({"messages": [user("a"), {**assistant("b"), "weight": 0}]}, "every reply has the weight 0, so nothing is to"),
        ({"messages": [user("a"), {**assistant("b"), "weight": 0.5}]}, "must be 0 .it is not learnt. or 1, found 0.5"),
        ({"messages": "hello"}, "messages holds text; it must be a list of messages"),
        ({"text": [user("a"), assistant("b")]}, "the column text holds messages"),
        ({"text": "  "}, "text is empty; fill it or remove the row"),
        ({"prompt": [user("a")], "completion": "b"}, "prompt holds messages, completion holds text"),
        ({"messages": [{"from": "human", "value": "x"}]}, "a message must have a role and a content"),
        ({"text": "x" * 300}, r"it has 301 tokens, more than the context of the model, 256; shorten .*overlong=drop"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    file = write(tmp_path / "rows.jsonl", [chat("fine", "yes"), row])
    with pytest.raises(ValueError, match=rf"(?s)rows\.jsonl:2: .*{words}"):
        read(file)


def test_rows_that_are_the_same_or_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [chat("a", "b"), chat("a", "c"), chat("a", "b"), chat("long", "x" * 60), chat("a", "b")]
    data = read(write(tmp_path / "rows.jsonl", rows), max_length=40, overlong="drop")
    assert [reply for _, reply in learnt(data)] == ["b<|end|>", "c<|end|>"]
    assert (data.duplicates, data.dropped) == (2, 1)


def test_the_split_goes_by_prompt_and_stays_when_rows_are_added(tmp_path: Path) -> None:
    rows = [chat(f"question {i % 100}", f"reply {i}") for i in range(200)]
    data = read(write(tmp_path / "rows.jsonl", rows), heldout=0.3)
    out, kept = ({e.prompt_ids for e in part} for part in (data.heldout, data.train))
    assert not out & kept
    assert 15 <= len(out) <= 45  # 30 of 100 prompts, plus or minus three standard deviations
    more = [*rows, *(chat(f"further {i}", "x") for i in range(50))]
    again = read(write(tmp_path / "more.jsonl", more), heldout=0.3)
    assert out <= {e.prompt_ids for e in again.heldout}
    assert kept <= {e.prompt_ids for e in again.train}


def test_prompts_that_read_the_same_are_one_prompt() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    same = [chat("cafe\u0301", "x"), chat("caf\u00e9", "y"), chat("caf\u00e9  ", "z")]
    assert len({parse(row, {}).id for row in same}) == 1
    others = [*same, chat("cafe", "x"), {**same[0], "tools": [tool]}, {"prompt": "caf\u00e9", "completion": "x"}]
    assert len({parse(row, {}).id for row in others}) == 4


def test_a_number_of_rows_can_be_held_out(tmp_path: Path) -> None:
    rows = [chat(f"question {i // 2}", f"reply {i}") for i in range(40)]
    data = read(write(tmp_path / "rows.jsonl", rows), heldout=5)
    assert len(data.heldout) == 6  # whole prompts, each of which has two rows
    assert len(data.train) == 34
    assert not {e.id for e in data.heldout} & {e.id for e in data.train}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heldout": 1.5}, "from 1 on a whole number of rows"),
        ({"heldout": 40}, r"data\.heldout=40 holds out 4 rows and leaves 0 to train on"),
        ({"max_length": 500}, r"data\.max_length is 500, more than the model's context of 256"),
        ({"max_length": 5, "overlong": "drop"}, "all 4 rows have more than 5 tokens"),
    ],
)
def test_settings_that_leave_nothing_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    file = write(tmp_path / "rows.jsonl", [chat(f"{i}", "x") for i in range(4)])
    with pytest.raises(ValueError, match=words):
        read(file, **settings)
