"""Every `rlft` command that a page shows can be given as it stands; those that take no time are given."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.config_file import load
from tests.fakes import save_tiny_model, write_config
from tests.test_docs import PAGES, TOP

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMAND = get_command(app)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def shown(text: str) -> list[list[str]]:
    """The words of each `rlft` command in the fenced blocks of a page, those behind `&&` too."""
    return [words for block in _blocks(text) for line in _commands(block) for words in _split(line)]


def mentioned(text: str) -> list[list[str]]:
    """The words of each `rlft` command between backticks within the text; with 1 for N, and without `[ ]` and `...`."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [span for span in re.findall(r"`([^`\n]*)`", prose) if span.startswith("rlft ")]
    found = [words for span in spans for words in _split(span)]
    return [[_plain(word) for word in words if word.strip(".]")] for words in found]


def _plain(word: str) -> str:
    """A placeholder as a word; brackets that stand around several of them go."""
    return "1" if word == "N" else word if word.count("[") == word.count("]") else word.strip("[]")


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```(?:bash|sh|console|text)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _commands(block: str) -> Iterator[str]:
    """The lines of a block that are typed: behind `$ ` where it has such lines, as the others are printed then."""
    lines = block.replace("\\\n", " ").splitlines()
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
    yield from (line for line in typed if re.match(r"\s*(?:cd \S+ && )?(?:\w+ run .* )?rlft ", line))


def _split(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in ("&&", "||", "|", ";", "&"):
            if "rlft" in words:
                yield words[words.index("rlft") + 1 :]
            words = []
        else:
            words.append(word)


def refusal(words: list[str]) -> str:
    """Why a command is refused when it is parsed as the real one is, without being run; empty where it is not.

    It begins with the kind of error; that of an argument that is left out is `MissingParameter`.
    """
    command: Any = COMMAND
    name = "rlft"
    while hasattr(command, "commands"):
        name, *words = words or [""]
        if name not in command.commands:
            return f"UsageError: no command {name!r}"
        command = command.commands[name]
    try:
        command.make_context(name, list(words))
    except Exception as error:  # typer has the classes of click or a copy of them, by its version
        if not hasattr(error, "format_message"):
            raise
        return f"{type(error).__name__}: {error.format_message()}"
    return ""


def lost_files(words: list[str]) -> list[str]:
    """Arguments and values that are paths into a folder of this repository, and are not there."""
    values = [word.rpartition("=")[2] for word in words]
    return [value for value in values if value.partition("/")[0] in TOP and not (ROOT / value).exists()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_can_be_given(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for words in shown(text):
        assert refusal(words) == "", words
        assert lost_files(words) == [], words
    for words in mentioned(text):
        why = refusal(words)
        only_named = why.startswith("MissingParameter") or why.endswith("requires an argument.")
        assert not why or only_named, (words, why)
        assert lost_files(words) == [], words


def test_commands_are_found_where_pages_show_them() -> None:
    text = """
```bash
cd x && rlft new y  # rlft z
rlft a \\
  b=c
```
and `rlft list`:
```
$ rlft doctor
rlft can train here.
```
"""
    assert shown(text) == [["new", "y"], ["a", "b=c"], ["doctor"]]
    assert mentioned(text) == [["list"]]
    pages = {path.name for path in PAGES if shown(path.read_text(encoding="utf-8"))}
    assert {"README.md", "plan.md", "sweep.md", "submit.md", "new.md", "data.md", "export.md", "rewards.md"} <= pages
    assert sum(len(shown(path.read_text(encoding="utf-8"))) for path in PAGES) > 80


@pytest.mark.parametrize(
    "line", ["plam x", "plan x --no-prob", "new x --template toolz", "runs a b c", "data", "sweep x", "doctor --json=1"]
)
def test_a_command_that_there_is_not_would_be_found(line: str) -> None:
    assert refusal(line.split())


def test_a_file_that_there_is_not_would_be_found() -> None:
    words = ["train", "configs/gone.yaml", "data.source=configs/data/sums.jsonl", "extends=docs/gone.md", "mine.yaml"]
    assert lost_files(words) == ["configs/gone.yaml", "docs/gone.md"]


# Given, with the tiny model where a page names one.


def rlft(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "300"})
    assert result.exit_code == 0, f"{words}\n{result.output}\n{result.exception!r}"
    return result.output


def test_new_makes_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second, *_ = (words for words in shown(page("new.md")) if words[0] == "new")
    assert "from the template answer" in rlft(*first)
    (told,) = re.findall(r"^```text\n(.*?)^```$", page("new.md"), re.DOTALL | re.MULTILINE)
    assert rlft(*second) == told
    (checked,) = (words for words in shown(page("new.md")) if words[:2] == ["reward", "check"])
    assert (tmp_path / second[1] / checked[-1]).is_file()


def test_a_plan_without_a_probe(tiny_model: Path) -> None:
    (words,) = shown(page("plan.md"))
    told = rlft(*words, "--no-probe", f"model={{source: '{tiny_model}', dtype: float32}}")

    def counts(text: str) -> list[str]:
        """The lines that do not depend on the tokenizer: the first one of a step, and those of the run."""
        step, run = re.findall(r"^(?:A step|The run)\n((?:  .*\n)+)", text, re.MULTILINE)
        return [step.splitlines()[0], *run.splitlines()]

    assert counts(told) == counts(page("plan.md"))


def test_data_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_config, of_table = (words for words in mentioned(page("data.md")) if words[:2] == ["data", "check"])
    model = save_tiny_model(tmp_path / "model", context=1024)
    monkeypatch.chdir(ROOT)  # the shipped config names its rows from here
    small = tmp_path / "small.yaml"
    small.write_text(f"extends: {ROOT / of_config[2]}\nmodel: {{source: '{model}'}}\n")
    told = json.loads(rlft("data", "check", str(small), *of_config[3:], "--json"))
    assert told["rows"] == 96
    monkeypatch.chdir(tmp_path)
    for name, numbers in (("tasks", range(8)), ("test", range(8, 10))):
        rows = [{"question": f"What is {n} times {n + 3}?", "answer": str(n * (n + 3))} for n in numbers]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(model) if word == "smollm2-135m-instruct" else word for word in of_table]
    assert "8 rows to train on, 2 held out" in rlft(*words)


def test_a_sweep_lists_its_trials(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_config(tmp_path, tiny_model).name == "run.yaml"
    lines = [
        words
        for words in [*shown(page("sweep.md")), *mentioned(page("sweep.md"))]
        if words[:2] == ["sweep", "run.yaml"]
    ]
    assert len(lines) == 3
    for words in lines:
        # A run of four steps has no rungs; one that is never measured while it trains has nothing to compare by.
        told = rlft(*words, "--dry-run", *(["steps=40", "evaluation.every=5"] if "--scheduler" in words else []))
        trials = 1
        for word in words[2:]:
            values = word.partition("=")[2]
            first, dots, last = values.partition("..")
            trials *= int(last) - int(first) + 1 if dots else len(values.split(",")) if "=" in word else 1
        assert told.count(": to do") == trials > 1


def test_the_trackers_that_a_page_shows_are_right(tiny_model: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path, tiny_model)
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page("trackers.md"), re.DOTALL | re.MULTILINE)
    assert blocks
    plain = file.read_text(encoding="utf-8")
    for block in blocks:
        file.write_text(plain + block, encoding="utf-8")
        assert [each.name for each in load(file).trackers] == ["tensorboard", "wandb"]
        (second,) = (each for each in yaml.safe_load(block)["trackers"] if isinstance(each, dict))
        assert load(file).trackers[1].model_dump() == second
    file.write_text(plain, encoding="utf-8")
    settings = [word for words in mentioned(page("trackers.md")) for word in words if word.startswith("trackers=")]
    assert [[each.name for each in load(file, [setting]).trackers] for setting in settings] == [["tensorboard"], []]
