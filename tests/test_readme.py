"""The README's example is run, and its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlft.config_file import load
from rlft.train.rl import launch
from tests.fakes import read_lines, read_rollouts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def reward_example() -> tuple[str, str]:
    """File name and source of the custom reward: the block that begins with a comment that names its file."""
    named = [(match[1], block) for block in blocks("python") if (match := re.match(r"# (\w+\.py)\n", block))]
    assert len(named) == 1, "the README shows one complete reward, its first line a comment with the file's name"
    return named[0]


def config_example(file: str) -> str:
    """The config that uses it."""
    using = [block for block in blocks("yaml") if f"{file}:" in block]
    assert len(using) == 1, f"the README shows one config that names {file}"
    return using[0]


def test_the_reward_is_complete_in_ten_lines() -> None:
    file, source = reward_example()
    assert len(source.splitlines()) <= 10
    compile(source, file, "exec")


@pytest.mark.timeout(60)
def test_the_reward_and_its_config_run_as_they_stand(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, source = reward_example()
    (tmp_path / file).write_text(source, encoding="utf-8")
    (tmp_path / "run.yaml").write_text(config_example(file), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    small = ["model.source=" + str(tiny_model), "model.dtype=float32", "backend=inline", "rollout.threads=1"]
    small += ["steps=2", "tasks_per_step=2", "samples_per_task=4", "sampling.max_new_tokens=16", "evaluation.tasks=4"]
    small += ["learner.threads=1", "sft.examples=8", "sft.batch_size=4", "adapter.rank=4"]
    config = load("run.yaml", small)
    assert config.environment.path == "environments.sums:load"
    summary = launch.train(config)
    assert summary["accuracy_rl"]["n"] == 4
    name = summary["metric"]
    assert name in source
    for step in (1, 2):
        rows = read_rollouts(config.run_dir, step)
        assert [row["outcome"] for row in rows] == ["score"] * 8
        assert all(name in json.loads(row["parts"]) for row in rows)
    assert f"reward/part/{name}" in read_lines(config.run_dir / "metrics.jsonl")[0]


def code() -> str:
    """What stands in fenced blocks without a language of data, and in code spans."""
    fenced = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE))
    return "\n".join([*fenced, *spans])


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", code()))
    assert {"quickstart", "test"} <= named
    assert named - targets == set()


def test_every_command_that_is_named_exists() -> None:
    from typer.main import get_command

    from rlft.cli.main import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"\brlft ([a-z][\w-]*)", code()))
    assert {"train", "resume", "report"} <= named
    assert named - commands == set()


MOST_COMMANDS, MOST_CHARACTERS = 26, 160


def command_rows() -> list[str]:
    """The rows of the table of commands as they are read: of links the text, without marks."""
    table = re.findall(r"^\| command \|.*\n\|.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert len(table) == 1
    rows = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", row).replace("`", "").strip("| ") for row in table[0].splitlines()]
    return [row.replace(" | ", " ") for row in rows]


def test_the_table_of_commands_can_be_taken_in() -> None:
    rows = command_rows()
    assert 20 < len(rows) <= MOST_COMMANDS, "put a further command into the row of the one that it belongs to"
    assert "rlft why RUN" in " ".join(rows)
    too_long = [row for row in rows if len(row) > MOST_CHARACTERS]
    assert too_long == [], "what does not fit belongs on the command's page"


def test_the_first_screen_has_both_commands() -> None:
    first = "\n".join(README.splitlines()[:25])
    assert "make quickstart" in first
    assert "make test" in first


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README))) or ["README.md"])
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
