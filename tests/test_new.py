"""`rlft new`: what it makes is whole, clean and runs as it is; nothing is ever overwritten."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from rlft.cli import main
from rlft.cli.new import CONFIG, IGNORED, TEMPLATES, Template, make_project
from rlft.config_file import load
from rlft.environment import loading
from rlft.reward.cases import SUFFIX
from rlft.run.records import SUMMARY
from rlft.train.rl import launch
from tests.fakes import read_rollouts, save_tiny_model
from tests.fakes_server import reply, serve
from tests.test_architecture import imported_names, public_names, top

NAMES = get_args(Template)
ROOT = Path(__file__).parents[1]


@pytest.fixture(params=NAMES)
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of each template, in which the test stands."""
    folder = tmp_path / f"my {request.param}"
    make_project(folder, request.param)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def roomy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that holds tools in bytes."""
    return save_tiny_model(tmp_path_factory.mktemp("roomy") / "model", context=4096)


def rlft(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main.app, arguments, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit | ValueError), result.exception
    return result.exit_code, result.output if not isinstance(result.exception, ValueError) else str(result.exception)


# What is made.


def test_every_folder_of_templates_can_be_named() -> None:
    assert {path.name for path in TEMPLATES.iterdir() if path.is_dir()} == set(NAMES)


def test_a_project_has_what_a_project_needs(project: Path) -> None:
    names = {path.name for path in project.iterdir()}
    assert {CONFIG, "README.md", f".{IGNORED}"} < names
    assert any(name.endswith(SUFFIX) for name in names)
    assert "runs/" in (project / ".gitignore").read_text().splitlines()
    template = project.name.removeprefix("my ")
    assert load(CONFIG).name == template, "the command that is printed names the run"
    assert (project / CONFIG).read_text().startswith("#"), "a config says what it trains"


def test_the_readme_has_three_commands(project: Path) -> None:
    template = project.name.removeprefix("my ")
    (block,) = re.findall(r"^```bash\n(.*?)^```$", (project / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    commands = [line.partition("  #")[0].strip() for line in block.splitlines()]
    assert commands == [f"rlft reward check {CONFIG}", f"rlft train {CONFIG}", f"rlft report runs/{template}"]


def test_every_file_is_named_in_its_readme(project: Path) -> None:
    text = (project / "README.md").read_text()
    assert {path.name for path in project.iterdir() if path.name not in text} == {"README.md", ".gitignore"}


@pytest.mark.parametrize("name", NAMES)
def test_python_of_a_template_imports_public_names_only(name: str) -> None:
    for file in (TEMPLATES / name).glob("*.py"):
        source = file.read_text(encoding="utf-8")
        ours = {each for each in imported_names(source) if top(each) in ("rlft", "rewards", "environments", "tests")}
        assert ours <= public_names(), file
        assert ast.get_docstring(ast.parse(source))


def test_the_files_are_installed_with_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rlft"]
    shipped = {path for pattern in patterns for path in (ROOT / "rlft").glob(pattern)}
    files = {path for path in TEMPLATES.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files <= shipped
    assert not [path for path in files if path.name.startswith(".")], "a pattern finds no hidden files"


# The command.


@pytest.mark.parametrize("name", ["plain", "two words; rm -rf"])
def test_the_command_tells_the_next_three(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    code, told = rlft("new", str(folder), "--template", "classify")
    assert code == 0
    steps = [line.partition("  #")[0].strip() for line in told.partition("Next:\n")[2].splitlines()]
    assert shlex.split(steps[0]) == ["cd", str(folder), "&&", "rlft", "reward", "check", CONFIG]
    assert steps[1:] == [f"rlft train {CONFIG}", "rlft report runs/classify"]
    assert all(path.name in told for path in folder.iterdir())


def test_an_empty_folder_is_taken_and_the_default_is_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert rlft("new", ".")[0] == 0
    assert load(CONFIG).name == "answer"


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, told = rlft("new", str(tmp_path))
    assert code == 1
    assert re.search(r"is not empty \(notes\.txt\).*name a folder that is not there yet", told)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("")
    assert "(0.txt, 1.txt, 2.txt and 3 more)" in rlft("new", str(tmp_path))[1]
    code, told = rlft("new", str(tmp_path / "notes.txt"))
    assert (code, "is no folder" in told, (tmp_path / "notes.txt").read_text()) == (1, True, "mine")


def test_a_template_that_there_is_not_is_refused(tmp_path: Path) -> None:
    code, told = rlft("new", str(tmp_path / "x"), "--template", "toolz")
    assert code == 2
    assert all(name in told for name in NAMES)
    assert not (tmp_path / "x").exists()


# What it does.


def test_the_reward_is_clean(project: Path) -> None:
    code, told = rlft("reward", "check", CONFIG, "--json")
    assert code == 0, told
    severities = {finding["severity"] for finding in json.loads(told)["findings"]}
    assert severities <= {"info"}, told
    held = sum(1 for path in project.glob(f"*{SUFFIX}") for _ in path.read_text().splitlines())
    assert f"all {held} hold" in told


def test_the_environment_is_clean(project: Path) -> None:
    code, told = rlft("env", "check", CONFIG, "--samples", "2", "--tasks", "3")
    assert code == 0, told
    assert "wrong" not in told
    config = load(CONFIG)
    if config.sft:
        assert config.sft.examples <= len(loading.load(config.environment).demonstrations)


def test_it_trains_as_it_is(project: Path, roomy_model: Path) -> None:
    config = load(
        CONFIG,
        [
            *(f"model={{source: '{roomy_model}', dtype: float32}}", "steps=2", "tasks_per_step=2", "backend=inline"),
            *("samples_per_task=3", "sampling.max_new_tokens=8", "evaluation.tasks=2", "scoring.workers=0"),
            *("rollout.threads=1", "learner.threads=1"),
            *(["sft.examples=4", "sft.batch_size=4"] if load(CONFIG).sft else []),
        ],
    )
    launch.train(config)
    summary = json.loads((config.run_dir / SUMMARY).read_text())
    assert summary["steps"] == 2
    assert summary["accuracy_rl"]["n"] == 2
    assert (config.run_dir / "report.html").is_file()
    assert {row["outcome"] for row in read_rollouts(config.run_dir, 2)} == {"score"}


# Single templates.


def test_the_middle_guess_always_wins_the_game(tmp_path: Path) -> None:
    make_project(tmp_path / "game", "game")
    environment = loading.load(
        load(tmp_path / "game" / CONFIG, [f"environment.path={tmp_path}/game/higher_lower.py:load"]).environment
    )
    assert environment.episode
    for task in (*environment.train, *environment.heldout):
        game = environment.episode()
        low, high = map(int, re.findall(r"\d+", game.start(task, 0)[0]["content"])[:2])  # type: ignore[index]
        for _ in range(environment.max_turns):
            middle = (low + high) // 2
            step = game.step({"role": "assistant", "content": f"{middle}"})
            if step.done:  # type: ignore[union-attr]
                break
            low, high = map(int, re.findall(r"\d+", step.messages[0]["content"]))  # type: ignore[union-attr]
            assert not low <= middle <= high, "what the hint leaves"
        assert step.done, task.id  # type: ignore[union-attr]


def test_a_served_judge_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path / "judge", "judge")
    monkeypatch.chdir(tmp_path / "judge")
    monkeypatch.setenv("RLFT_JUDGE_CACHE", str(tmp_path / "judge.sqlite"))
    with serve(lambda body, count: reply("1: yes\n2: no\n3: yes")) as server:
        code, told = rlft(
            *("reward", "try", "kind_reply.py:kind_reply", "--completion", "No.", "--column", "message=Where is it?"),
            *("--args", f"base_url={server.base_url}", "--args", "model=m", "--json"),
        )
    assert code == 0, told
    (row,) = json.loads(told)
    assert row["reward"] == pytest.approx(2 / 3)
    assert row["parts"]["kind_reply/promise"] == 0
    asked = server.asked[0]["messages"][-1]["content"]
    assert "Where is it?" in asked
    assert "No." in asked
