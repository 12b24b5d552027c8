"""The shipped environments and what the contract refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from environments import jsonl_file, sums
from rlft.config import EnvironmentConfig
from rlft.environment.contract import Environment, check
from rlft.environment.loading import load
from rlft.types import Task


def write_rows(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_sums_are_disjoint_reproducible_and_right() -> None:
    environment = sums.load(seed=3, high=12, heldout=40, demonstrations=20)
    check(environment)
    assert (len(environment.heldout), len(environment.demonstrations), len(environment.train)) == (40, 20, 84)
    assert [t.id for t in environment.train] == [
        t.id for t in sums.load(seed=3, high=12, heldout=40, demonstrations=20).train
    ]
    assert {t.id for t in environment.heldout} != {
        t.id for t in sums.load(seed=4, high=12, heldout=40, demonstrations=20).heldout
    }
    for task in environment.train:
        a, b = task.id.split("+")
        assert task.answer == str(int(a) + int(b))


def test_sums_refuses_a_range_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="holds 9 sums"):
        sums.load(high=3)


def test_jsonl_file_splits_by_prompt_not_by_order(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{i}", "answer": i, "level": i % 3}) for i in range(200)]
    options = {"reply": "<answer>{answer}</answer>", "heldout": 0.25, "system": "Be brief."}
    first = jsonl_file.load(write_rows(tmp_path / "a.jsonl", *lines), **options)
    second = jsonl_file.load(write_rows(tmp_path / "b.jsonl", *lines[::-1], lines[0]), **options)
    check(first)
    assert {t.id for t in first.heldout} == {t.id for t in second.heldout}
    assert 30 <= len(first.heldout) <= 70
    assert len(first.heldout) + len(first.train) == 200 == len(second.heldout) + len(second.train)
    task = first.train[0]
    assert task.messages[0] == {"role": "system", "content": "Be brief."}
    assert task.columns["level"] == task.answer % 3
    assert first.demonstrations[0][-1] == {"role": "assistant", "content": f"<answer>{task.answer}</answer>"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows\.jsonl:2: not JSON"),
        ("[1]", r"rows\.jsonl:2: expected an object, found list"),
        ('{"answer": 1}', r"rows\.jsonl:2: the template names 'question', but the row has answer"),
        ('{"question": "x"}', r"rows\.jsonl:2: no field 'answer'"),
    ],
)
def test_jsonl_file_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", '{"question": "x?", "answer": 1}', line)
    with pytest.raises(ValueError, match=message):
        jsonl_file.load(path)


def test_loading_names_a_wrong_argument() -> None:
    with pytest.raises(ValueError, match=r"environment\.args\.hihg.*Did you mean 'high'"):
        load(EnvironmentConfig(path="environments.sums:load", args={"hihg": 3}))
    with pytest.raises(ValueError, match="needs the argument 'path'"):
        load(EnvironmentConfig(path="environments.jsonl_file:load"))


def ask(text: str, task_id: str = "t") -> Task:
    return Task(id=task_id, messages=({"role": "user", "content": text},))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Environment(train=[], heldout=[]), "no training tasks"),
        (Environment(train=[ask(" ")], heldout=[]), "train task 0 .*the prompt is empty"),
        (Environment(train=[ask("a"), ask("b")], heldout=[]), "the id stands twice"),
        (Environment(train=[ask("a", "x")], heldout=[ask("a", "y")]), "asks the same as held-out task 'y'"),
        (
            Environment(
                train=[ask("a", "x")],
                heldout=[ask("b", "y")],
                demonstrations=[({"role": "user", "content": "b"}, {"role": "assistant", "content": "!"})],
            ),
            "demonstration 0 answers held-out task 'y'",
        ),
        (
            Environment(train=[ask("a")], heldout=[], demonstrations=[({"role": "user", "content": "b"},)]),
            "demonstration 0: expected a prompt and, last, the assistant's reply",
        ),
    ],
)
def test_contract_refuses(environment: Environment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(environment)
