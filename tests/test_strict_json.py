"""Strict JSON: prompts with a schema of what they ask for, the reward that holds replies to it, and syntax alone."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from environments import strict_json as prompts
from environments.json_shapes import schemas
from environments.json_shapes.simple import Asked
from environments.observed.json_syntax import json_syntax
from rewards.strict_json import PARTS, strict_json
from rlft.common.by_path import available
from rlft.common.rows import canonical_text
from rlft.environment.contract import Environment, check
from rlft.reward.attack import Attacked, attack
from rlft.reward.cases import read_cases
from rlft.types import RewardSpec

ROOT = Path(__file__).parents[1]
FAMILIES = {name: family for level in prompts.LEVELS.values() for name, family in level.items()}


def asked(family: str, seed: int = 0) -> Asked:
    return FAMILIES[family](random.Random(seed))


def block(value: Any) -> str:
    return f"```json\n{value if isinstance(value, str) else json.dumps(value)}\n```"


def reached(reply: str, schema: schemas.Schema) -> str:
    """The last part that holds; nothing where none does."""
    found = strict_json(reply, schema)
    held = [part for part in PARTS if found[part]]
    assert held == list(PARTS[: len(held)])
    assert found["score"] == (1.0 if held == list(PARTS) else len(held) / 10)
    return held[-1] if held else ""


@cache
def loaded(**args: Any) -> Environment:
    return prompts.load(**{"tasks": 90, "heldout": 45, "demonstrations": 45, **args})


# The prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_that_a_family_shows_is_what_it_asks_for(family: str) -> None:
    for seed in range(12):
        made = asked(family, seed)
        assert reached(block(made.answer), made.schema) == "all", (made.prompt, made.answer)
        assert json_syntax(block(made.answer)) == 1
        json.dumps(made.schema)
    assert len({asked(family, seed).prompt for seed in range(12)}) > 8


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_content_with_something_else(family: str) -> None:
    for seed in range(3):
        made = asked(family, seed)
        for other in ({}, [], {"answer": made.prompt}, [made.answer], "text", None):
            assert strict_json(block(other), made.schema)["score"] <= 0.5, (made.prompt, other)


def test_training_held_out_and_demonstrated_prompts_differ() -> None:
    environment = loaded()
    check(environment)
    shown = [messages[1]["content"] for messages in environment.demonstrations]
    texts = [task.messages[1]["content"] for task in (*environment.train, *environment.heldout)]
    assert len({canonical_text(text) for text in (*shown, *texts)}) == len(shown) + len(texts) == 180
    for messages in (environment.demonstrations, [task.messages for task in environment.train]):
        assert {each[0]["content"] for each in messages} == set(prompts.SYSTEMS)
    levels = [task.columns["level"] for task in environment.heldout]
    assert [levels.count(level) for level in prompts.LEVELS] == [15, 15, 15]
    assert {task.id.rpartition("-")[0] for task in environment.train} == set(FAMILIES)


def test_the_arguments_decide() -> None:
    again = prompts.load(tasks=90, heldout=45, demonstrations=45)
    assert [task.messages for task in again.train] == [task.messages for task in loaded().train]
    assert again.demonstrations == loaded().demonstrations
    assert [task.messages for task in loaded(seed=1).train] != [task.messages for task in loaded().train]
    assert {task.columns["level"] for task in loaded(levels=("hard",)).train} == {"hard"}
    with pytest.raises(ValueError, match="levels are some of simple, medium, hard; got easy"):
        prompts.load(levels=("simple", "easy"))
    with pytest.raises(ValueError, match="got none"):
        prompts.load(levels=())


def test_a_demonstration_is_one_block_with_a_line_for_each_value() -> None:
    environment = loaded()
    for at, messages in enumerate(environment.demonstrations):
        reply = messages[-1]["content"]
        value = json.loads(reply.removeprefix("```json\n").removesuffix("\n```"))
        assert reply == f"```json\n{json.dumps(value, ensure_ascii=False, indent=2)}\n```", at


def test_the_helpers_of_an_environment_are_no_environments() -> None:
    assert [path for path in available("environments") if "json" in path] == ["environments.strict_json:load"]


# What is not what was asked

FIVE = schemas.array(schemas.record({"city": schemas.TEXT, "people": schemas.INTEGER}, only=True), 5)
ROWS = [{"city": name, "people": count} for count, name in enumerate(("Oslo", "Quito", "Hanoi", "Graz", "Porto"), 3)]


@pytest.mark.parametrize(
    ("value", "last"),
    [
        (ROWS, "all"),
        (ROWS[0], "parses"),
        ([], "parses"),
        ({"rows": ROWS}, "parses"),
        ([{"city": "Oslo"}, *ROWS[1:]], "parses"),
        ([{**ROWS[0], "note": "x"}, *ROWS[1:]], "parses"),
        ([{**ROWS[0], "people": "3"}, *ROWS[1:]], "keys"),
        ([{**ROWS[0], "people": True}, *ROWS[1:]], "keys"),
        ([{**ROWS[0], "city": None}, *ROWS[1:]], "keys"),
        (ROWS[:4], "types"),
        ([*ROWS, {"city": "Lima", "people": 9}], "types"),
        ([{**ROWS[0], "city": ""}, *ROWS[1:]], "counts"),
        ([{**ROWS[0], "city": " ... "}, *ROWS[1:]], "counts"),
        ([ROWS[0], *ROWS[:4]], "counts"),
        (json.dumps(ROWS).replace("3", "NaN"), "fence"),
        (json.dumps(ROWS).replace('"people": 3', '"people": 3, "people": 3'), "fence"),
        (json.dumps(ROWS)[:-1], "fence"),
        ("[" * 20_000 + "]" * 20_000, "fence"),
    ],
)
def test_what_falls_short_falls_short_in_its_part(value: Any, last: str) -> None:
    assert reached(block(value), FIVE) == last


@pytest.mark.parametrize(
    "reply",
    [
        f"Here it is:\n{block(ROWS)}",
        f"{block(ROWS)}\nI hope that it helps.",
        f"{block(ROWS)}\n{block(ROWS)}",
        json.dumps(ROWS),
        block(ROWS).replace("json", ""),
        block(ROWS).replace("json", "JSON"),
        block(ROWS)[:-3],
        "",
    ],
)
def test_a_reply_is_one_block_and_nothing_else(reply: str) -> None:
    assert reached(reply, FIVE) == ""
    assert reached(f"\n{block(ROWS)}\n", FIVE) == "all"


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (schemas.record({"day": schemas.DATE}), {"day": "2026-05-04T10:00:00Z"}, {"day": "2026-13-45"}),
        (schemas.record({"kind": schemas.one_of(["a", "b"])}), {"kind": "b"}, {"kind": "c"}),
        (schemas.mapping(schemas.TEXT, 2), {"a": "x", "b": "x"}, {"a": "x"}),
        (schemas.members(2, schemas.FILLED), {"a": 1, "b": {"c": 1}}, {"a": 1, "b": {}}),
        (
            schemas.somewhere(schemas.several(schemas.members(2), 2)),
            {"of": {"rows": [{"a": 1, "b": 2}, {"a": 1, "b": 3}]}},
            {"of": {"rows": [{"a": 1, "b": 2}]}},
        ),
        (
            schemas.somewhere(schemas.several(schemas.members(2), 2)),
            {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 2}},
            {"x": {"a": 1, "b": 2}},
        ),
        (
            schemas.tree({"n": schemas.INTEGER}, "in", 3),
            {"n": 1, "in": [{"n": 2, "in": []}, {"n": 2, "in": [{"n": 3, "in": []}]}]},
            {"n": 1, "in": [{"n": 2, "in": []}, {"n": 2, "in": []}]},
        ),
        (
            schemas.page("rows", 1, 2, ["page"]),
            {"meta": {"page": 1}, "rows": [{"a": 1, "b": {"c": 1}}]},
            {"meta": {"page": 1}, "rows": [{"a": 1, "b": 2}]},
        ),
    ],
)
def test_a_shape_allows_what_it_says(schema: schemas.Schema, right: Any, wrong: Any) -> None:
    assert reached(block(right), schema) == "all"
    assert reached(block(wrong), schema) in PARTS[1:-1]


def test_every_object_and_array_of_a_tree_is_of_the_form() -> None:
    tree = schemas.tree({"n": schemas.INTEGER}, "in", 2)
    assert reached(block({"n": 1, "in": [{"n": 2}]}), tree) == "parses"
    assert reached(block({"n": 1, "in": [{"n": "2", "in": []}]}), tree) == "keys"


def test_a_schema_as_text_is_the_same() -> None:
    assert strict_json(block(ROWS), json.dumps(FIVE)) == strict_json(block(ROWS), FIVE)


# The syntax alone, and the lesson


def test_syntax_is_content_with_an_empty_object_and_strictness_is_not() -> None:
    def found(path: str) -> list[Any]:
        spec = RewardSpec(path=path)
        cases = read_cases(ROOT / "rewards" / "strict_json.cases.jsonl")[:12]
        given = {"cases": cases, "tasks": [cases[0].task], "workers": 0}
        return list(attack(Attacked(specs=[spec], generations=0, seconds=30.0, **given)).exploits)

    assert found("environments.observed.json_syntax:json_syntax") != []
    assert found("rewards.strict_json:strict_json") == []
