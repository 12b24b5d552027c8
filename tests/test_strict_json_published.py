"""The benchmark of strict JSON: what published prompts ask for, shares and intervals, the overlap, the configs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import strict_json as benchmark
from benchmarks.strict_json_prompts import FORMS, load_published, overlap, read_published, understood
from environments import strict_json as prompts
from environments.observed.json_syntax import json_syntax
from rewards.strict_json import strict_json
from rlft.config_file import load
from rlft.curves.text import sampled
from rlft.environment.contract import check
from tests.fakes import save_tiny_model

ROOT = Path(__file__).parents[1]


def held(value: Any, prompt: str) -> dict[str, float]:
    """What the reward says of a value as the answer to a published prompt."""
    return strict_json(f"```json\n{json.dumps(value)}\n```", understood(prompt))


# The published prompts: sentences of the same forms, with other words

BOAT = {"mast": "oak", "crew": 4, "afloat": True}
STEP = {"id": "a", "name": "Wash", "type": "hot", "config": {}, "next": None}
TILE = {"id": 1, "type": "list", "title": "Rain", "position": {"x": 0, "y": 1}, "feed": {"url": "/r", "every": 5}}
OPERATION = {"order": 1, "type": "cut", "part": "hull", "note": {"by": "Ada"}}
ENDPOINT = {
    **{"path": "/boats", "method": "GET", "parameters": [{"name": "size", "type": "integer", "required": False}]},
    **{"request_body": {"type": "object"}, "response": {"schema": {"type": "object"}, "example": {"id": 1}}},
}
EVENT = {
    **{"specversion": "1.0", "id": "7", "source": "/dock", "type": "dock.left", "subject": "boat"},
    **{"time": "2026-02-03T04:05:06Z", "datacontenttype": "application/json", "data": {"boat": "Mila", "crew": 2}},
}
DOCUMENT = {
    "type": "object",
    "properties": {
        "mast": {"type": "object", "properties": {"wood": {"type": "string"}}},
        "sails": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["mast"],
}
PAGE = {"page": 1, "total": 2, "results": [{"id": n, "boat": BOAT} for n in (1, 2)]}
NODE = {"name": "rope", "id": 3, "children": []}
PUBLISHED: list[tuple[str, Any, Any]] = [
    (
        'Generate a JSON object representing a simple boat with keys "mast" (string), "crew" (integer), and "afloat" '
        "(boolean).",
        BOAT,
        {**BOAT, "crew": "4"},
    ),
    ('Generate a valid JSON object with the following keys: "mast" (string), "crew" (number).', BOAT, {"mast": "oak"}),
    (
        "Generate a JSON object with exactly 2 key-value pairs where all values are of type integer. Use descriptive "
        "key names related to boats.",
        {"crew": 3, "sails": 2},
        {"crew": 3},
    ),
    (
        "Generate a valid JSON object representing a key-value mapping of 2 knot abbreviations to their full names.",
        {"BL": "bowline", "RK": "reef knot"},
        {"BL": "bowline", "RK": ""},
    ),
    ("Generate a JSON array containing exactly 2 strings representing boats.", ["ketch", "sloop"], ["ketch", "ketch"]),
    (
        'Generate a JSON array of exactly 2 objects, each containing only a "mast" (string) and a "crew" (integer).',
        [{"mast": "oak", "crew": 1}, {"mast": "ash", "crew": 1}],
        {"mast": "oak", "crew": 1},
    ),
    (
        'Generate a JSON object with a key "mast" (string) and a key "sizes" which is an array of 2 integers.',
        {"mast": "oak", "sizes": [1, 1]},
        {"mast": "oak", "sizes": [1]},
    ),
    (
        'Generate a JSON object with a "mast" key (string) and a "flags" key containing a flat array of 2 booleans.',
        {"mast": "oak", "flags": [True, False]},
        {"mast": "oak", "flags": [1, 0]},
    ),
    (
        'Generate a JSON array of 1 objects, each with keys "mast" (string), "crew" (integer), and a nested object '
        '"dock" containing "town" (string) and "pier" (string).',
        [{**BOAT, "dock": {"town": "Graz", "pier": "4"}}],
        [{**BOAT, "dock": "Graz"}],
    ),
    (
        'Generate a JSON object with a "boat" key (string), a "built" key (ISO 8601 date string), and a "trips" key '
        'containing an array of objects with "to" (string) and "miles" (number) fields.',
        {"boat": "Mila", "built": "1999-12-31", "trips": [{"to": "Oslo", "miles": 2.5}]},
        {"boat": "Mila", "built": "long ago", "trips": [{"to": "Oslo", "miles": 2.5}]},
    ),
    (
        'Generate a JSON object representing a boat with the following sections: "hull", and "deck". Each section '
        "should be a nested object with at least 2 fields.",
        {"hull": {"a": 1, "b": 2}, "deck": {"a": 1, "b": 2}},
        {"hull": {"a": 1, "b": 2}, "deck": {"a": 1}},
    ),
    (
        "Generate a JSON object representing a boat with at least 3 fields, including one nested object and one array "
        "field.",
        {"mast": "oak", "dock": {"pier": 4}, "sails": ["jib"]},
        {"mast": "oak", "dock": "pier 4", "sails": ["jib"]},
    ),
    (
        'Generate a JSON object representing a dock form schema with 2 fields. Each field should have "label" '
        '(string), "type" (one of "text", "date"), and "fixed" (boolean).',
        {"fields": [{"label": name, "type": "text", "fixed": True} for name in ("from", "to")]},
        {"fields": [{"label": name, "type": "time", "fixed": True} for name in ("from", "to")]},
    ),
    (
        "Generate a JSON object representing a harbor that includes a list of 2 boats, each with at least 3 fields.",
        {"harbor": "Oslo", "boats": [BOAT, {**BOAT, "crew": 9}]},
        {"harbor": "Oslo", "boats": [BOAT]},
    ),
    (
        "Generate a JSON object representing a configuration file for a radio with keys for channel, volume, and a "
        "nested alarm section.",
        {"channel": 16, "volume": 3, "alarm": {"on": True}},
        {"channel": 16, "volume": 3, "alarm": {}},
    ),
    (
        'Generate a JSON object representing a boat with an "id" (integer), "mast" (string), "sails" (array of '
        'strings), and a "log" nested object with at least 2 key-value pairs.',
        {"id": 1, "mast": "oak", "sails": ["jib"], "log": {"a": 1, "b": 2}},
        {"id": 1, "mast": "oak", "sails": [4], "log": {"a": 1, "b": 2}},
    ),
    (
        "Generate a JSON Schema (draft-07) that validates objects representing a boat. The schema must include "
        "required fields, an object and an array.",
        DOCUMENT,
        {**DOCUMENT, "required": []},
    ),
    (
        "Generate a JSON object representing a laundry workflow definition with at least 2 steps. Each step must "
        'have an "id", "name", "type" (one of "hot", "cold"), "config" (nested object), and "next" (string or null).',
        {"steps": [STEP, {**STEP, "next": "b"}, {**STEP, "next": "c"}]},
        {"steps": [STEP]},
    ),
    (
        "Generate a JSON object representing a departure event conforming to the CloudEvents specification (version "
        "1.0). Include specversion and a nested data object with at least 2 domain-specific fields.",
        EVENT,
        {**EVENT, "data": {"boat": "Mila"}},
    ),
    (
        'Generate a JSON object representing a harbor board with 1 widgets. Each widget has "id", "type" (list, map, '
        'or text), "title", "position" (object with x, y), and a "feed" object with "url" (string), and "every" '
        "(integer).",
        {"board": {"tiles": [TILE]}},
        {"board": {"tiles": [{**TILE, "position": {"x": 0}}]}},
    ),
    (
        "Generate a JSON object representing a boat building plan with 1 operations. Each operation should be an "
        'object with "order" (integer), "type" (one of "cut", "glue"), "part" (string), and "note" (nested object '
        "saying more).",
        {"operations": [OPERATION]},
        {"operations": [OPERATION, OPERATION]},
    ),
    (
        "Generate a JSON object representing a full boat API endpoint specification (OpenAPI-style) including path, "
        "method and so on.",
        ENDPOINT,
        {**ENDPOINT, "response": {"schema": {"type": "object"}}},
    ),
    (
        "Generate a JSON object representing a paginated API response for a list of boats. Include metadata fields "
        "(page, total) and a results array with 2 items, each having at least 2 fields including one nested object.",
        PAGE,
        {**PAGE, "total": "two"},
    ),
    (
        "Generate a deeply nested JSON object (at least 2 levels of nesting) representing a rigging hierarchy. Each "
        'level should have a "name" (string), "id" (integer), and "children" (array of sub-objects).',
        {**NODE, "children": [NODE]},
        NODE,
    ),
]


def test_every_published_form_has_a_sentence_here() -> None:
    used = [[at for at, (form, _) in enumerate(FORMS) if re.fullmatch(form, prompt)] for prompt, _, _ in PUBLISHED]
    assert {tuple(forms) for forms in used} == {(at,) for at in range(len(FORMS))}  # one form each


@pytest.mark.parametrize(("prompt", "right", "wrong"), PUBLISHED)
def test_published_sentences_are_understood(prompt: str, right: Any, wrong: Any) -> None:
    assert held(right, prompt)["score"] == 1
    assert held(wrong, prompt)["score"] < 1
    assert held(wrong, prompt)["parses"] == json_syntax(json.dumps(wrong)) == 1


def published_file(folder: Path, *changes: dict[str, Any]) -> Path:
    rows = [
        {
            "id": f"p-{at}",
            "system": "Answer in JSON.",
            "prompt": PUBLISHED[at][0],
            "difficulty": level,
            "published_base_valid": at == 0,
            "published_trained_valid": at < 2,
        }
        for at, level in enumerate(("simple", "medium", "hard"))
    ]
    rows = [{**row, **(changes[at] if at < len(changes) else {})} for at, row in enumerate(rows)]
    file = folder / "published.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_published_prompts_are_held_out_tasks(tmp_path: Path) -> None:
    environment = load_published(str(published_file(tmp_path)))
    check(environment)
    assert [(task.id, task.columns["level"]) for task in environment.heldout] == [
        *(("p-0", "simple"), ("p-1", "medium"), ("p-2", "hard"))
    ]
    assert [message["role"] for message in environment.heldout[0].messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "Generate a poem."}, r"published\.jsonl:2: .* none of 23 forms: 'Generate a poem\.'"),
        ({"prompt": PUBLISHED[0][0].replace("integer", "colour")}, r":2: what 'colour' says about a value"),
        ({"difficulty": "easy"}, r":2: difficulty must be one of simple, medium, hard"),
        ({"published_base_valid": "yes"}, r":2: .* the verdicts true or false"),
    ],
)
def test_a_published_row_that_is_not_understood_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_published(published_file(tmp_path, {}, changes))


def test_published_prompts_that_are_trained_on_are_found(tmp_path: Path) -> None:
    rows = read_published(published_file(tmp_path))
    environment = prompts.load(tasks=20, heldout=0, demonstrations=5)
    assert overlap(environment, rows) == []
    spaced = {"role": "user", "content": PUBLISHED[1][0].upper().replace(" ", "  ")}
    learnt = replace(environment.train[0], messages=(spaced,))  # type: ignore[arg-type]
    assert overlap(replace(environment, train=[learnt]), rows) == [PUBLISHED[1][0]]
    shown = (({"role": "user", "content": PUBLISHED[2][0]}, {"role": "assistant", "content": "{}"}),)
    assert overlap(replace(environment, demonstrations=shown), rows) == [PUBLISHED[2][0]]  # type: ignore[arg-type]


CONFIG = """
name: tiny
steps: 1
backend: inline
model: {{source: "{model}", dtype: float32}}
environment: {{path: "environments.strict_json:load", args: {{tasks: 3, heldout: 3, demonstrations: 3}}}}
rewards: [{{path: "rewards.strict_json:strict_json"}}]
scoring: {{workers: 0}}
rollout: {{threads: 1}}
"""


def test_the_benchmark_measures_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG.format(model=save_tiny_model(tmp_path / "model", context=2048)), encoding="utf-8")
    monkeypatch.setattr(benchmark, "SETTINGS", [text.replace("1024", "6") for text in benchmark.SETTINGS])
    prompts_file = str(published_file(tmp_path))
    benchmark.main(["--prompts", prompts_file, "--base", str(file), "--samples", str(tmp_path / "samples")])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["published base"]["published"]["all"]["right"] == 1
    assert told["published trained"]["published"]["medium"]["percent"] == 100
    base = told["base"]
    assert (base["strict"]["all"]["right"], base["strict"]["all"]["of"], base["trained_on"]) == (0, 3, [])
    assert base["length"] <= 6
    samples = [json.loads(line) for line in (tmp_path / "samples" / "base.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in samples] == ["p-0", "p-1", "p-2"]
    assert samples[0]["json_syntax"] == 0
    with pytest.raises(SystemExit):
        benchmark.main(["--prompts", str(published_file(tmp_path, {"prompt": "Hm."})), "--base", str(file)])
    assert "published.jsonl:1: what this prompt asks for is not known" in capsys.readouterr().err


def test_shares_of_runs_and_of_runs_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 263 of 300: Wilson's interval, https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval
    found = benchmark.share([1.0] * 263 + [0.0] * 37)
    assert found["percent"] == pytest.approx(87.667, abs=1e-3)
    p, n, z = 263 / 300, 300, 1.959964
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wilson = [100 * (middle + side * half) / (1 + z * z / n) for side in (-1, 1)]
    assert [found["low"], found["high"]] == pytest.approx(wilson, abs=1e-4)

    def run(name: str, *values: float) -> benchmark.Measured:
        by_task = {f"p-{at}": value for at, value in enumerate(values)}
        facts = {"length": 9.0, "cut": 0.0, "seconds": 1.0}
        return benchmark.Measured(name=name, values={"published": by_task, "strict": by_task}, facts=facts)

    rows = read_published(published_file(tmp_path))
    benchmark.report(rows, [run("base", 0, 0, 0), run("a", 1, 1, 0), run("b", 1, 0, 0)])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["together"]["runs"] == 2
    assert told["together"]["strict"]["percent"] == pytest.approx(50)
    assert told["a"]["strict"]["simple"]["right"] == 1
    assert told["a"]["strict"]["hard"]["right"] == 0


def test_the_configs_train_on_one_reward_and_watch_the_other() -> None:
    strict = load(ROOT / "configs" / "strict_json.yaml")
    syntax = load(ROOT / "configs" / "gallery" / "strict_json_syntax.yaml")
    assert [(reward.label, reward.role) for reward in strict.rewards] == [
        *(("strict_json", "train"), ("json_syntax", "shadow"))
    ]
    assert [(reward.label, reward.role) for reward in syntax.rewards] == [
        *(("json_syntax", "train"), ("as_asked", "shadow"))
    ]
    assert strict.environment.path == syntax.environment.path
    assert strict.steps * strict.tasks_per_step * strict.samples_per_task <= 7000
    assert not strict.algorithm.needs_reference
    measured = benchmark.measuring(ROOT / "configs" / "strict_json.yaml", "x: y.jsonl", 300)
    assert measured.environment.args == {"path": "x: y.jsonl"}
    assert (measured.evaluation.top_p, measured.sampling.max_new_tokens, measured.evaluation.tasks) == (0.95, 1024, 300)


def test_curves_say_how_answers_were_sampled() -> None:
    assert sampled({"temperature": 0.7, "top_p": 0.95}, 0.0) == "T = 0.7, top-p 0.95"
    assert sampled({"temperature": 0.7, "top_p": 1.0}, 0.0) == sampled({"temperature": 0.7}, 0.0) == "T = 0.7"
    assert sampled({"top_p": 0.5}, 0.0) == sampled(None, 0.0) == "greedy"
