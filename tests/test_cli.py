"""The command line: what it says of itself, what it prints, how it fails; and what a person sees while a run trains."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from rlft.cli import listing, main
from rlft.curves import live_panel
from rlft.curves.live_panel import View
from rlft.curves.terminal_plot import sparkline
from rlft.objectives.presets import PRESETS
from tests.fakes import read_result, write_config
from tests.fakes_run import make_run

RLFT = Path(sys.executable).with_name("rlft")

Rlft = Callable[..., "Ended"]


class Ended:
    """What a command left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def rlft(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rlft:
    """`rlft("report", run)`: the entry point in this process, as the installed command calls it."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rlft", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(main.interrupts, "install", lambda: None)  # the handlers would stay in the tests' process
        capfd.readouterr()
        try:
            main.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return run


# Help.

HELP = {
    "train": ["CONFIG", "KEY=VALUE", "--restart", "measure the base model", "RL"],
    "plan": ["CONFIG", "KEY=VALUE", "--no-probe", "--anyway", "--json", "memory, time", "signal", "Exit code 1"],
    "sft": ["CONFIG", "KEY=VALUE", "--restart", "rows of text or chat", "SFT stage", "PEFT"],
    "reward-model": ["CONFIG", "KEY=VALUE", "--restart", "preferences", "held-out pairs", "PEFT"],
    "head": ["CONFIG", "KEY=VALUE", "--restart", "new layers", "bag of words", "computed once"],
    "distill": ["RUN", "--top", "--min-reward", "--all-steps", "best samples", "Held-out tasks"],
    "sweep": [
        "CONFIG",
        "KEY=VALUES",
        "one of rlft train, sft or dpo",
        "--metric",
        "--max-concurrent",
        "--dry-run",
        "--scheduler",
        "--grace-period",
        "ordinary run",
        "over seeds",
    ],
    "submit": [
        "CONFIG",
        "--address",
        "--output-dir",
        "--pip",
        "--detach",
        "Ray cluster",
        "Ctrl-C only stops following",
    ],
    "runs": ["FOLDER", "--address", "--follow", "--stop", "jobs of a cluster", "why they stopped"],
    "dpo": ["CONFIG", "KEY=VALUE", "--restart", "preferences", "KTO"],
    "resume": ["RUN", "interrupted run", "newest whole checkpoint"],
    "evaluate": ["TARGET", "KEY=VALUE", "--adapter", "accuracy", "JSON"],
    "report": ["RUN", "report.html", "reward.png", "--out"],
    "why": ["RUN", "--from", "--to", "--samples", "--seed", "--json", "add up to the change"],
    "watch": ["RUN", "--once", "--every", "verdict, numbers"],
    "compare": ["RUNS", "--html", "--json", "--by-id", "paired by task", "@base"],
    "gate": ["BASELINE", "CANDIDATE", "--min-effect", "--junit", "Exit with 0", "2 if that cannot be told"],
    "power": ["--effect", "--config", "--run", "how many seeds, tasks and samples"],
    "health": ["RUN", "--json", "since which step", "Exit code"],
    "view": ["--host", "--port", "--token", "all rollouts", "The server only reads", "extra `view`"],
    "verify": ["RUN", "--share", "--root"],
    "bisect": ["RUN", "--metric"],
    "export": ["RUN", "--merged", "--to", "--adapter", "model card", "fresh process"],
    "chat": ["RUN|MODEL", "--only", "--prompt", "--task", "side by side", "Ctrl-C stops a reply"],
    "serve": ["RUN|MODEL", "--port", "--server", "127.0.0.1", "OpenAI's API"],
    "new": ["FOLDER", "--template", "answer|judge|tools|game|classify", "of your own", "several turns"],
    "doctor": ["--json", "--start-ray", "what this machine can do", "Exit code 0"],
    "data": ["check", "duplicates", "too long for the model"],
    "list": ["KIND", "rewards, environments, presets or engines"],
    "schema": ["JSON Schema"],
    "models": ["hub"],
    "env": ["play", "check", "measure"],
    "reward": ["init", "try", "check", "replay", "explain"],
    "chaos": ["CONFIG", "--kills"],
}


def test_there_is_help_for_every_command_here() -> None:
    assert set(get_command(main.app).commands) == set(HELP)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", HELP)
def test_help_says_what_a_command_does(command: str) -> None:
    result = CliRunner().invoke(main.app, [command, "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert result.exit_code == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())
    for words in HELP[command]:
        assert words.lower() in text.lower()
    assert "[[" not in text
    assert "[default: None]" not in text


def test_help_lists_the_commands_in_one_line_each() -> None:
    result = CliRunner().invoke(main.app, ["--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert result.exit_code == 0
    for command in HELP:
        assert re.search(rf"^\W*{command} +[A-Z]", result.output, re.MULTILINE), command


def test_no_arguments_show_the_help() -> None:
    assert "Commands" in CliRunner().invoke(main.app, [], env={"COLUMNS": "120"}).output


# Lists.


def test_list_names_everything_that_a_config_can(rlft: Rlft) -> None:
    out = rlft("list").out
    for name in (
        "rewards.exact_answer:exact_answer",
        "environments.sums:load",
        "gymnasium:ID",
        "transformers",
        *PRESETS,
    ):
        assert name in out
    assert "environments.number_guessing:load" in out
    assert "Strict" not in out  # a function's line, not its module's
    assert "1 if the whole reply is" in out


def test_list_of_one_kind(rlft: Rlft) -> None:
    out = rlft("list", "presets").out
    assert "grpo" in out
    assert "exact_answer" not in out
    wrong = rlft("list", "reward")
    assert (wrong.code, "rewards, environments, presets, engines" in wrong.err) == (1, True)


def test_lists_never_shorten_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {"a" * 70: "word " * 30, "b": "c"}
    monkeypatch.setenv("COLUMNS", "40")
    listing.print_names("names", lines)
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()[1:]] == [[name, *text.split()] for name, text in lines.items()]
    console = Console(force_terminal=True, width=40, file=(file := io.StringIO()))
    monkeypatch.setattr(listing, "Console", lambda: console)
    listing.print_names("names", lines)
    assert "a" * 70 in file.getvalue()
    assert file.getvalue().count("word") == 30


def test_a_preset_is_listed_by_what_distinguishes_it() -> None:
    lines = {name: listing.preset_line(algorithm) for name, algorithm in PRESETS.items()}
    assert lines["opd"].endswith("reward_coef=0.0, kl=k1, kl_coef=1.0, kl_in=reward_to_go, gamma=0.0")
    assert lines["online_dpo"] == "loss=sigmoid, beta=0.1"
    assert "overlong=penalize, max_refills=2" in lines["dapo"]
    assert "clip_low=0.0003" in lines["gspo"]
    assert not any("clip_low" in lines[name] for name in ("reinforce", "rloo", "remax"))
    assert len(set(lines.values())) == len(lines)


def test_the_version_is_shown(rlft: Rlft) -> None:
    assert re.fullmatch(r"rlft \d+\.\d+.*\n", rlft("--version").out)


def test_schema_is_a_json_schema(rlft: Rlft) -> None:
    schema = json.loads(rlft("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert "tasks_per_step" in schema["properties"]


def test_models_lists_the_catalogue(rlft: Rlft) -> None:
    out = rlft("models").out
    for words in ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "MB"):
        assert words in out
    assert re.search("apache", out, re.IGNORECASE)


# A run, by its commands.


@pytest.mark.timeout(60)
def test_train_prints_the_accuracies_and_what_it_wrote(rlft: Rlft, config_file: Path, finished_run: Path) -> None:
    done = rlft("train", config_file, "checkpoint.every=1")
    assert done.code == 0
    run = config_file.parent / "runs" / "tiny"
    assert read_result(run) == read_result(finished_run)
    summary = json.loads((run / "summary.json").read_text())
    for label, key in (("base model", "accuracy_base"), ("after RL", "accuracy_rl")):
        accuracy = summary[key]
        low, high = accuracy["low"], accuracy["high"]
        bounds = "" if low is None else rf"{low:.3f} to {high:.3f}\W+"  # none where all eight tasks have one value
        numbers = rf"{accuracy['mean']:.3f}\W+{bounds}8\b"
        assert re.search(rf"{label}\W+{numbers}", done.out)
    assert "after SFT" not in done.out
    for name in ("report.html", "reward.png", "summary.json", "adapters/v000004"):
        assert str(run / name) in done.out
        assert (run / name).exists()
    assert re.search(r"step 4/4 +reward 0\.\d{3} +KL .*entropy .*length .*tokens/s \d+ +left 0:00", done.out)


@pytest.mark.timeout(60)
def test_sft_writes_its_adapter_and_resume_goes_on_from_it(rlft: Rlft, config_file: Path) -> None:
    small = ("sft.examples=4", "sft.batch_size=2", "steps=1", "evaluation.tasks=2")
    done = rlft("sft", config_file, *small)
    assert done.code == 0
    run = config_file.parent / "runs" / "tiny"
    folder = run / "adapters" / "sft"
    assert f"SFT adapter: {folder}" in done.out
    assert {"adapter_config.json", "adapter_model.safetensors"} == {path.name for path in folder.iterdir()}
    made = (folder / "adapter_model.safetensors").read_bytes()
    again = rlft("resume", run)
    assert again.code == 0
    assert "after SFT" in again.out
    assert (folder / "adapter_model.safetensors").read_bytes() == made


def test_sft_needs_its_section(rlft: Rlft, config_file: Path) -> None:
    done = rlft("sft", config_file)
    assert done.code == 1
    assert "the config has no `sft` section; add one" in done.err


def test_evaluate_of_a_config_measures_the_base_model(rlft: Rlft, config_file: Path, finished_run: Path) -> None:
    done = rlft("evaluate", config_file)
    assert done.code == 0
    result = json.loads(done.out)
    stored = json.loads((finished_run / "evals" / "base.json").read_text())
    assert result["adapter"] == "base"
    assert (result["accuracy"], result["adapter_hash"]) == (stored["accuracy"], stored["adapter_hash"])
    assert not (config_file.parent / "runs").exists()


def test_evaluate_of_a_run_measures_its_last_adapter(rlft: Rlft, finished_run: Path) -> None:
    before = sorted(finished_run.rglob("*"))
    result = json.loads(rlft("evaluate", finished_run).out)
    stored = json.loads((finished_run / "evals" / "step-000004.json").read_text())
    assert result["adapter"] == str(finished_run / "adapters" / "v000004")
    assert (result["accuracy"], result["adapter_hash"]) == (stored["accuracy"], stored["adapter_hash"])
    assert sorted(finished_run.rglob("*")) == before


def test_evaluate_of_a_named_adapter(rlft: Rlft, finished_run: Path) -> None:
    folder = finished_run / "adapters" / "v000002"
    result = json.loads(rlft("evaluate", finished_run, "evaluation.tasks=4", "--adapter", folder).out)
    assert (result["adapter"], result["accuracy"]["n"]) == (str(folder), 4)


def test_report_names_its_files(rlft: Rlft, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    for name in ("report.html", "reward.png"):
        (run / name).unlink()
    done = rlft("report", run)
    assert done.code == 0
    head, *reasons, page, picture = done.out.splitlines()
    assert head.startswith("CAN'T TELL  Held-out accuracy went from")
    assert reasons
    assert (page, picture) == (str(run / "report.html"), str(run / "reward.png"))
    assert (run / "report.html").stat().st_size > 50_000
    assert (run / "reward.png").read_bytes().startswith(b"\x89PNG")


# Errors.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "{folder}/no.yaml"), "no config file"),
        (("train", "{config}", "learner.lrr=1"), "override learner.lrr=1: unknown key"),
        (("dpo", "{config}"), "{config}: this looks like a config of `rlft train`"),
        (("reward-model", "{config}"), "{config}: this looks like a config of `rlft train`"),
        (("train", "configs/dpo.yaml"), "this looks like a config of `rlft dpo`"),
        (("train", "configs/sft.yaml"), "this looks like a config of `rlft sft`"),
        (("sft", "configs/dpo.yaml"), "this looks like a config of `rlft dpo`"),
        (("dpo", "configs/reward_model.yaml"), "this looks like a config of `rlft reward-model`"),
        (("train", "{config}", "steps"), "expected key.sub=value"),
        (("train", "{config}", "environment.path=environments.sumz:load"), "Did you mean 'environments.sums:load'"),
        (("resume", "{folder}"), "is not a run directory"),
        (("resume", "{folder}/nowhere"), "is not a run directory"),
        (("evaluate", "{folder}"), "{folder}"),
        (("evaluate", "{config}", "--adapter", "{folder}/nowhere"), "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_message_on_stderr(
    rlft: Rlft, config_file: Path, arguments: tuple[str, ...], says: str
) -> None:
    names = {"folder": config_file.parent, "config": config_file}
    done = rlft(*(argument.format(**names) for argument in arguments))
    assert done.code == 1
    assert "error: " in done.err
    assert says.format(**names) in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("command", ["compare", "gate", "health", "report", "verify", "bisect"])
def test_a_decision_about_what_cannot_be_read_is_exit_code_2_and_json(rlft: Rlft, tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    runs = {"compare": [gone, gone], "gate": [gone, gone, "--min-effect", 0.1]}.get(command, [gone])
    for asked, is_json in (([], False), (["--json"], True)):
        done = rlft(command, *runs, *asked)
        assert done.code == 2, "not 1, which is an answer"
        assert f"error: {gone}" in done.err.replace("\n", "")
        assert bool(done.out) == is_json
    told = json.loads(done.out)
    assert (told["verdict"], told["exit_code"]) == ("cant_tell", 2)
    assert str(gone) in told["sentence"]
    assert told["reasons"] == [told["sentence"].removeprefix("CAN'T TELL: ")]


def test_an_unknown_command_or_option_is_a_usage_error(rlft: Rlft) -> None:
    for arguments in (("trian", "x"), ("train", "x", "--restrat"), ("train",)):
        done = rlft(*arguments)
        assert done.code == 2
        assert "Usage" in done.err


@pytest.mark.timeout(60)
def test_the_installed_command_ends_with_the_same_error(config_file: Path) -> None:
    done = subprocess.run([RLFT, "train", config_file, "stepps=3"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: override stepps=3: unknown key" in done.stderr
    assert "Traceback" not in done.stderr


def test_markup_and_escapes_in_a_message_are_inert(rlft: Rlft, tmp_path: Path) -> None:
    # A message may quote a reward's exception, and that a model's reply.
    done = rlft("report", tmp_path / "[red]x[red] \x1b]0;owned\x07")
    assert done.code == 2
    assert "[red]x[red]" in done.err
    assert "\x1b]0;" not in done.err
    assert "\x07" not in done.err


def test_a_name_with_escapes_is_inert_where_a_command_went_well(rlft: Rlft, tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", steps=1).rename(tmp_path / "x\x1b]0;owned\x07")
    done = rlft("report", run)
    assert done.code == 0
    assert "\N{SYMBOL FOR ESCAPE}]0;owned" in done.out.replace("\n", "")
    assert not {"\x1b", "\x07"} & set(done.out + done.err)


# The live view.

METRICS = {
    "reward/mean": 0.5,
    "policy/kl_ref": 0.0123,
    "policy/entropy": 2.345,
    "rollout/length": 17.25,
    "groups/with_signal": 0.75,
    "time/tokens_per_s": 1234.0,
    "time/step": 30.0,
}


def terminal(width: int = 100) -> Console:
    return Console(force_terminal=True, width=width, file=io.StringIO(), color_system="truecolor")


def shown(console: Console, view: View) -> str:
    """The panel as a terminal shows it, without its colours."""
    assert isinstance(console.file, io.StringIO)
    console.file.truncate(0)
    console.print(view)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_the_view_shows_what_decides() -> None:
    console = terminal()
    view = View("my-run", steps=40, console=console)
    with view:
        for step, reward in enumerate((0.0, 0.25, 0.5, 1.0), start=1):
            view.step(step, {**METRICS, "reward/mean": reward})
        text = shown(console, view)
    assert "my-run" in text
    assert "step 4/40" in text
    assert re.search(r"reward +1\.000 +▁▃▅█|reward +1\.000 +▁▃[▄▅]█", text)
    for pattern in (r"KL +0\.0123", r"entropy +2\.345", r"length +17\.2", r"tokens/s +1234", r"signal +75 ?%"):
        assert re.search(pattern, text), pattern
    assert re.search(r"left +18:00", text)  # 36 steps of 30 s


def test_the_view_leaves_out_what_was_not_measured() -> None:
    console = terminal()
    view = View("r", steps=2, console=console)
    view.step(1, {"time/step": 1.0, "rollout/length": 3.0})
    text = shown(console, view)
    assert "length" in text
    assert "reward" not in text
    assert "KL" not in text


def test_the_view_shows_the_stage_and_its_progress() -> None:
    console = terminal()
    view = View("r", steps=2, console=console)
    view.stage("SFT warm start")
    view.progress(3, 8)
    text = shown(console, view)
    assert "SFT warm start" in text
    assert "3/8" in text


def test_markup_and_escapes_of_a_run_are_inert() -> None:
    console = terminal()
    hostile = "[bold red]x[/] [link=file:///etc/passwd]y[/link] \x1b]0;owned\x07\x1b[2J"
    view = View(hostile, steps=2, console=console)
    with view:
        view.stage(hostile)
        view.note(hostile)
        view.step(1, METRICS)
        console.print(view)
    assert isinstance(console.file, io.StringIO)
    raw = console.file.getvalue()
    assert "[bold red]x[/]" in raw  # shown as it stands
    for sequence in ("\x1b]0;", "\x07", "\x1b[2J", "\x1b]8;"):
        assert sequence not in raw


def test_a_run_that_ends_before_its_first_step_leaves_no_empty_panel() -> None:
    console = terminal()
    with View("r", steps=2, console=console) as view:
        view.stage("loading the learner")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith("\x1b[1A\x1b[2K")  # what was drawn last is erased, up to its first line


def test_without_a_terminal_a_long_stage_says_once_a_minute_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(live_panel.time, "monotonic", lambda: now)
    console = Console(force_terminal=False, width=200, file=io.StringIO())
    view = View("r", steps=40, console=console)
    view.stage("SFT warm start")
    for done in range(1, 9):
        now += 25.0
        view.progress(done, 8)
    view.step(1, METRICS)
    for done in range(1, 5):
        now += 45.0
        view.rollout(done, 4)
    assert isinstance(console.file, io.StringIO)
    told = [line for line in console.file.getvalue().splitlines() if "left" in line and not line.startswith("step ")]
    assert told == [
        "SFT warm start 3/8  left 2:05",
        "SFT warm start 6/8  left 0:50",
        "rollouts of step 2 3/4  left 0:45",  # counted from the first ones, since a stage may lie before them
    ]


def test_without_a_terminal_there_are_plain_lines() -> None:
    console = Console(force_terminal=False, width=200, file=io.StringIO())
    with View("r", steps=40, console=console) as view:
        view.stage("SFT warm start")
        view.step(1, METRICS)
        view.note("held-out odd, base: 0.1 [0.0, 0.2]")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert "SFT warm start ..." in text
    assert "[0.0, 0.2]" in text
    assert re.search(r"^step 1/40  reward 0\.500  KL 0\.0123 .* left 19:30$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([0.0, 1.0], "▁█"),
        ([-7.0, 0.0], "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([1.0, float("nan"), 2.0, float("inf")], "▁ █ "),
        ([float("nan")], " "),
    ],
)
def test_a_sparkline_spans_its_values(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_a_sparkline_shows_the_last_values() -> None:
    assert sparkline([9.0] * 50 + [0.0, 1.0], width=2) == "▁█"


def test_an_invalid_config_costs_no_model(config_file: Path, tmp_path: Path, rlft: Rlft) -> None:
    # The message must come although the model's folder does not exist: the config is read first.
    write_config(tmp_path, tmp_path / "no-model")
    done = rlft("train", config_file, "steps=0")
    assert done.code == 1
    assert "override steps=0: " in done.err
