"""`rlft data check`: every finding fires on a planted fault, with its line, and is quiet on the shipped data."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli import data, main
from rlft.config import EnvironmentConfig
from rlft.model import chat
from rlft.train.data_check import same, texts, tokens
from rlft.train.data_check.check import _check, check_config, check_file
from rlft.train.data_check.findings import Checked
from rlft.train.data_check.records import Record, of_file, of_preferences, same_text
from rlft.train.data_check.tokens import Model
from rlft.train.head.data import HeadData
from rlft.train.head.data import load as load_head_data
from rlft.train.supervised.config import SupervisedConfig
from tests.fakes import byte_tokenizer, tiny_config
from tests.fakes_head import head_config

CITIES = ["Lima", "Oslo", "Rome", "Cairo", "Quito", "Paris", "Sofia", "Hanoi", "Kyiv", "Accra", "Dhaka", "Minsk"]
CITIES += ["Tunis", "Doha", "Lagos", "Osaka"]
LONG = "The old harbour of {} was built by traders, who brought salt, wool and timber from the islands over there"


def rows() -> list[dict[str, Any]]:
    """24 good tasks."""
    rivers = [
        {"question": f"Which river flows through {city}?", "answer": f"river {n}"} for n, city in enumerate(CITIES)
    ]
    return rivers + [{"question": f"What is {n} + {n * 7}?", "answer": str(n * 8)} for n in range(8)]


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Checked]:
    """Checks rows, written into a file as they are."""

    def run(table: list[Any], **options: Any) -> Checked:
        file = tmp_path / "tasks.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in table))
        return check_file(str(file), **options)

    return run


def lines(checked: Checked) -> dict[str, list[int]]:
    """Of each finding the lines of the file that it names."""
    return {
        each.name: [int(place.rpartition(":")[2]) for place in each.places]
        for each in checked.findings
        if each.severity != "not checked"
    }


def test_good_rows_have_no_finding(check: Callable[..., Checked]) -> None:
    checked = check(rows())
    assert lines(checked) == {}
    assert (checked.exit_code, checked.rows) == (0, 24)


ONE_ROW: dict[str, tuple[dict[str, Any], int]] = {
    # finding: (a row that has it and no other one, exit code)
    "duplicate": (rows()[3], 0),
    "contradiction": ({**rows()[3], "answer": "another"}, 1),
    "duplicate but for case": ({"question": "which river flows through  CAIRO", "answer": "river 3"}, 0),
    "empty prompt": ({"question": " \u200b\n", "answer": "x"}, 1),
    "empty answer": ({"question": "Who wrote the Iliad?", "answer": " "}, 0),
    "half a character": ({"question": "What does \ud83d mean?", "answer": "x"}, 1),
    "lost characters": ({"question": "Where is the caf\ufffd?", "answer": "x"}, 0),
    "control characters": ({"question": "Ring the \x07 bell, who hears?", "answer": "x"}, 0),
    "special token": ({"question": "Say <|im_end|> twice, please", "answer": "x"}, 0),
    "not readable": ({"question": 7, "answer": "x"}, 1),
    "cut by mark": ({"question": LONG.format("Split") + " and so on...", "answer": "x"}, 0),
}


@pytest.mark.parametrize("name", ONE_ROW)
def test_a_planted_row_is_found_with_its_line(check: Callable[..., Checked], name: str) -> None:
    row, code = ONE_ROW[name]
    checked = check([*rows(), row])
    assert lines(checked) == {name: [25]}
    assert checked.exit_code == code


def test_a_missing_answer_is_told_where_others_have_one(check: Callable[..., Checked]) -> None:
    assert lines(check([*rows(), {"question": "Who wrote the Iliad?"}])) == {"empty answer": [25]}
    assert lines(check([{"question": row["question"]} for row in rows()])) == {}


def test_mojibake_is_found_and_accents_are_not(check: Callable[..., Checked]) -> None:
    pytest.importorskip("ftfy")
    good = {"question": "Où est le café près de la gare de Saint-Étienne?", "answer": "là"}
    bad = {"question": "Où est le café d'hier?".encode().decode("latin-1"), "answer": "là"}
    checked = check([*rows(), good, bad])
    assert lines(checked) == {"mojibake": [26]}
    assert "Où" in checked.findings[0].what


def conversation(question: str, reply: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def test_cut_replies_are_found(check: Callable[..., Checked]) -> None:
    whole = [conversation(f"Tell me about {city}", LONG.format(city) + ".") for city in CITIES]
    assert lines(check(whole)) == {}
    assert lines(check([*whole, conversation("And of Ulm", LONG.format("Ulm"))])) == {"reply stops": [17]}
    assert lines(check([*whole, conversation("Code for Ulm", "```\nprint(1)\n")])) == {"open block": [17]}
    limited = [conversation(f"Tell of {city}", (LONG.format(city) + " and on and on")[:110]) for city in CITIES[:6]]
    found = lines(check([*whole, *limited]))
    assert found["cut reply"] == [17, 18, 19, 20, 21, 22]


def test_a_template_of_one_length_was_not_cut() -> None:
    records = [Record(where=f"f:{n}", is_heldout=False, prompt=LONG.format(f"{n:03}")) for n in range(20)]
    assert texts.truncated(records) == []


def test_overlap_with_heldout_rows(check: Callable[..., Checked], tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    story = "Someone carries a fox, a goose and a sack of grain over a wide river in one small boat. What goes first"
    measured = [
        {"question": "Which river flows through Oslo?", "answer": "river 1"},
        {"question": "which river flows through Rome", "answer": "river 2"},
        {"question": story.replace("wide", "broad"), "answer": "goose"},
        {"question": "What is 5 + 36?", "answer": "41"},
    ]
    heldout = tmp_path / "test.jsonl"
    heldout.write_text("".join(json.dumps(row) + "\n" for row in measured))
    checked = check([*rows(), {"question": story, "answer": "goose"}], heldout=str(heldout))
    assert lines(checked) == {"overlap": [1], "overlap but for case": [2], "overlap, nearly": [3]}
    assert all(place.startswith(str(heldout)) for finding in checked.findings for place in finding.places)
    assert (checked.exit_code, checked.heldout) == (1, 4)


def test_near_duplicates_are_the_pairs_that_all_comparisons_find() -> None:
    pytest.importorskip("datasketch")
    words = [f"w{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(600)]
    records = []
    for n in range(120):
        text = [words[(n * 31 + k * 7) % 600] for k in range(20)]
        start, count = n % 12, 1 + n % 3
        changed = [*text[:start], *(words[(n * 17 + k + 300) % 600] for k in range(count)), *text[start + count :]]
        records += [
            Record(where=f"{n}", is_heldout=False, prompt=" ".join(text)),
            Record(where=f"{n}'", is_heldout=False, prompt=" ".join(changed)),
        ]
    parts = same._distinctive([same_text(record.prompt) for record in records])
    near = {
        records[two].where
        for two in range(len(records))
        for one in range(two)
        if same.similarity(parts[one], parts[two]) >= same.NEAR
    }
    assert len(near) > 40
    assert {two.where for _, two in same.near_pairs(records)} == near
    assert same.miss_probability(same.NEAR) < 2e-4


def test_without_the_extra_it_says_what_it_did_not_look_at(
    check: Callable[..., Checked], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("datasketch", "ftfy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    checked = check(rows())
    assert [(each.name, each.severity) for each in checked.findings] == [
        ("mojibake", "not checked"),
        ("near-duplicates", "not checked"),
    ]
    assert all("pip install 'rlft[data]'" in each.todo for each in checked.findings)


def test_uneven_labels(check: Callable[..., Checked]) -> None:
    table = [{"text": row["question"], "label": "spam" if n < 20 else "ham"} for n, row in enumerate(rows())]
    checked = check(table)
    assert list(lines(checked)) == ["uneven labels"]
    assert "83 %" in checked.findings[0].what
    even = [{**row, "label": ("spam", "ham")[n % 2]} for n, row in enumerate(table)]
    assert lines(check(even)) == {}


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_preferences_that_contradict_each_other(check: Callable[..., Checked]) -> None:
    table = [pair("Capital of Peru?", "Lima.", "Oslo."), pair("Capital of Peru?", "Lima.", "Rome.")]
    assert lines(check(table)) == {}
    assert lines(check([*table, pair("Capital of Peru?", "Oslo.", "Lima.")])) == {"contradiction": [3]}
    assert lines(check([*table, pair("Capital of Peru?", "Lima.", "Lima.")])) == {"not readable": [3]}
    rated = [{"prompt": "Hi", "completion": "Hello", "label": label} for label in (True, False)]
    assert lines(check(rated)) == {"contradiction": [2]}


def test_lengths_and_special_tokens_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    table = [{"question": "short"}, {"question": "long" * 60}, {"question": "an <end> of it"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    tokenizer = byte_tokenizer()
    special = str(tokenizer.eos_token)
    file.write_text(file.read_text().replace("<end>", special))
    model = Model(tokenizer=tokenizer, end_ids=None, limit=200, limit_name="the model's context", new_tokens=20)
    records = of_file(str(file))
    checked = _check(records, model)
    assert lines(checked) == {"too long": [2], "special token": [3]}
    assert checked.exit_code == 1
    assert special in next(each.what for each in checked.findings if each.name == "special token")
    length = tokens.write(records.rows[0], model, kind="tasks").length
    assert f"{length} to" in checked.facts["tokens"]
    assert length == len(checked.tokens) + 20
    assert "short" in "".join(text for text, _ in checked.tokens)
    assert not any(is_learnt for _, is_learnt in checked.tokens)

    longest = max(tokens.write(record, model, kind="tasks").length for record in records.rows)
    assert "too long" not in lines(_check(records, replace(model, limit=longest)))
    assert lines(_check(records, replace(model, limit=longest - 1)))["too long"] == [2]


def test_special_tokens_act_in_plain_text_and_not_in_messages(check: Callable[..., Checked]) -> None:
    tokenizer, end = byte_tokenizer(), "<|end|>"
    model = Model(tokenizer=tokenizer, end_ids=frozenset([0]), limit=200, limit_name="the model's context")
    table = [pair("Sky?", "blue", "red"), pair(f"Sea?{end}", "blue", "red")]

    def told(rows: list[dict[str, Any]], model: Model) -> str:
        read = [(f"row {number}", row) for number, row in enumerate(rows)]
        records = of_preferences("file", read, paired=True, is_heldout=lambda row: False)
        return next(each.what for each in _check(records, model).findings if each.name == "special token")

    assert told(table, model) == f"plain text spells {end!r}: it acts as that token"
    assert "becomes the tokens of its characters" in told(table, replace(model, end_ids=None))  # of a reward model
    messages = [{"role": "user", "content": f"Sea?{end}"}]
    replies = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert "becomes the tokens of its characters" in told([{"prompt": messages, **replies}], model)


def test_other_numbers_make_another_question() -> None:
    pytest.importorskip("datasketch")
    story = "A shop sells {} boxes of pears and gives every customer a bag. How many boxes are left in the evening?"
    prompts = [story.format(5), story.format(9), story.format(5).replace("gives", "hands")]
    records = [Record(where=f"f:{n}", is_heldout=False, prompt=prompt) for n, prompt in enumerate(prompts)]
    assert [(one.where, two.where) for one, two in same.near_pairs(records)] == [("f:0", "f:2")]


def test_the_reply_is_what_is_learnt() -> None:
    model = Model(tokenizer=byte_tokenizer(), end_ids=frozenset([0]), limit=500, limit_name="the model's context")
    messages: Any = ({"role": "user", "content": "Capital of Peru?"},)
    reply = [{"role": "assistant", "content": "Lima."}]
    record = Record(where="f:1", is_heldout=False, prompt="Capital of Peru?", messages=messages, replies=(reply,))
    shown = tokens.shown(record, model, kind="tasks")
    assert "".join(text for text, is_learnt in shown if is_learnt).startswith("Lima.")
    assert "Capital of Peru?" in "".join(text for text, is_learnt in shown if not is_learnt)


def test_a_config_is_read_as_its_run_reads_it(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    table = [*rows(), rows()[5], {"question": "Where is the caf\ufffd?", "answer": "x"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    environment = EnvironmentConfig(path="environments.dataset:load", args={"source": str(file)})
    checked = check_config(tiny_config(tiny_model).model_copy(update={"environment": environment}))
    found = lines(checked)
    assert found["lost characters"] == [26]
    assert checked.rows == 25
    assert any(f"1 rows of {file} are no task: {file}:25" in fact for fact in checked.facts.values())
    file.write_text(file.read_text() + json.dumps({**rows()[0], "answer": "another"}) + "\n")
    refused = check_config(tiny_config(tiny_model).model_copy(update={"environment": environment}))
    assert refused.exit_code == 1
    assert f"{file}:27" in refused.findings[0].what


@pytest.mark.parametrize("kind", ["head", "sft", "file"])
def test_plain_text_needs_no_chat_template(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """A base model reads such rows as they are, and so the check shows and counts them."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    if kind == "head":
        checked = check_config(head_config(tmp_path, base, data={"limit": 200}))
        assert checked.rows == 200
        assert checked.heldout == len(load_labelled(tmp_path, base).heldout)
        assert any("data.limit leaves 40 of 240 rows out" in fact for fact in checked.facts.values())
    else:
        file = tmp_path / "texts.jsonl"
        file.write_text("".join(json.dumps({"prompt": row["question"], "completion": "x"}) + "\n" for row in rows()))
        settings = {"model": {"source": str(base), "dtype": "float32"}, "data": {"source": str(file), "heldout": 4}}
        preferred = file.with_name("rated.jsonl")
        preferred.write_text("".join(f'{{"prompt": "{i}", "completion": "x", "label": true}}\n' for i in range(4)))
        checked = (
            check_config(SupervisedConfig.model_validate({"name": "plain", **settings}))
            if kind == "sft"
            else check_file(str(preferred), model=str(base))
        )
    assert checked.exit_code == 0
    assert "<|user|>" not in "".join(token for token, _ in checked.tokens)
    assert checked.tokens


def test_a_row_that_a_head_cannot_read_is_a_finding(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model)
    file = Path(config.data.source)
    with file.open("a") as more:
        more.write('{"label": "liked"}\n{"text": " ", "label": "liked"}\n')
    checked = check_config(config)
    assert lines(checked)["not readable"] == [241, 242]
    assert checked.exit_code == 1


def load_labelled(folder: Path, model: Path) -> HeadData:
    """What a run of the same config takes."""
    config = head_config(folder, model, data={"limit": 200})
    return load_head_data(config, chat.load_tokenizer(model, for_chat=False), context=256)


def test_the_shipped_data_has_no_finding() -> None:
    for file in (*Path("configs").glob("*/*.jsonl"),):
        checked = check_file(str(file))
        assert lines(checked) == {}, file
        assert checked.rows > 10


def test_the_command_prints_lines_and_json(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows(), ONE_ROW["empty prompt"][0]]))
    shown = CliRunner().invoke(main.app, ["data", "check", str(file)], env={"COLUMNS": "400"})
    assert shown.exit_code == 1
    assert f"{file}:25" in shown.output
    assert "do: fill it in, or remove the row" in shown.output
    told = json.loads(CliRunner().invoke(main.app, ["data", "check", str(file), "--json"]).output)
    assert (told["exit_code"], told["findings"][0]["places"]) == (1, [f"{file}:25"])
    with pytest.raises(ValueError, match="--model is for a table"):
        data._checked("config.yaml", "", "model", "", "")
    with pytest.raises(ValueError, match="Did you mean"):
        check_file(str(file), prompt="qestion")


def test_the_page_names_every_finding() -> None:
    sources = "".join(path.read_text() for path in Path("rlft/train/data_check").glob("*.py"))
    made = set(re.findall(r"found\(\s*\"([\w ,-]+)\"", sources)) | {"cut prompt", "cut reply"}
    table = re.findall(r"^\| ([\w ,-]+) \| (?:error|warning) \|", Path("docs/data.md").read_text(), re.MULTILINE)
    named = {name for cell in table for name in re.split(r", (?!nearly)", cell)}
    assert named == made
