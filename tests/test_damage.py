"""A run with a damaged file is shown without it, with a note, and never shipped on what is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves.page_data.whole import page_data
from rlft.curves.reading import read_evals, read_events, read_metrics
from rlft.curves.report import write_report, write_reward_png
from rlft.curves.verdict import verdict_of
from rlft.run import damage
from tests.fakes_run import append, make_run, write_json, write_rollouts
from tests.gallery import empty, hacked, one_step
from tests.test_report import Page


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def break_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"step": 2, "rewa', *lines[1:]]) + "\n")


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "metric": (
        "metrics.jsonl",
        lambda path: append(path, {"step": 99, "reward/mean": "high"}),
        "metric 'reward/mean' is not a number but 'high'",
    ),
    "line": ("metrics.jsonl", break_line, "metrics.jsonl:2: not readable as JSON"),
    "evaluation": ("evals/step-000010.json", tear, "step-000010.json is not readable JSON"),
    "last evaluation": ("evals/step-000040.json", tear, "step-000040.json is not readable JSON"),
    "events": (
        "events.jsonl",
        lambda path: path.write_text('[1]\n{"kind": "x"}\n'),
        "expected a JSON object, got list",
    ),
}
"""What is damaged: its file, how, and what is said of it."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("good") / "run", steps=40)


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "run")


def test_the_undamaged_run_ships(run: Path) -> None:
    assert verdict_of(run).kind == "ship"


@pytest.mark.parametrize("what", DAMAGES)
def test_what_decides_is_never_silently_less(run: Path, what: str) -> None:
    file, do, says = DAMAGES[what]
    do(run / file)
    verdict = verdict_of(run)
    assert verdict.kind == "cant_tell"
    assert any(
        reason.code == "damaged" and reason.weight == "doubt" and says in reason.says for reason in verdict.reasons
    )
    # Whoever builds on the file and does not say that it may be left out still gets the error.
    with pytest.raises(ValueError, match=r"left out|readable|not a number|expected"):
        (read_metrics(run), read_events(run), read_evals(run))


def test_everything_else_is_shown(run: Path) -> None:
    tear(run / "rollouts" / "step-000003.parquet")
    break_line(run / "metrics.jsonl")
    tear(run / "evals" / "step-000010.json")
    (run / "summary.json").write_text("{")
    page = Page(write_report(run)).text
    for note in (
        "step-000003.parquet cannot be read",
        "metrics.jsonl:2: not readable as JSON",
        "step-000010.json is not readable JSON",
        "summary.json is not readable JSON",
    ):
        assert note in page
    for shown in ("best of the last steps", "40 of 40", "RL, step 40", "gave a gradient"):
        assert shown in page
    assert write_reward_png(run).stat().st_size > 1000


def test_a_torn_file_of_rollouts_is_noted_and_decides_nothing(run: Path) -> None:
    tear(run / "rollouts" / "step-000040.parquet")
    assert verdict_of(run).kind == "ship"
    assert "step-000040.parquet cannot be read" in Page(write_report(run)).text
    for file in (run / "rollouts").iterdir():
        tear(file)
    page = Page(write_report(run))
    assert sum("cannot be read" in note for note in page.data["notes"]) == 40
    assert page.data["samples"] is None
    assert "RL, step 40" in page.text


TORN = {
    "first": (range(1, 6), b"junk"),
    "last": (range(16, 21), b"junk"),
    "last empty": (range(16, 21), b""),
    "all": (range(1, 21), b""),
}
"""Which rollouts of a run of 20 steps are torn, and what is left of each."""


@pytest.fixture(scope="module")
def shadowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = hacked(tmp_path_factory.mktemp("shadowed") / "run", steps=20)
    for file in (folder / "evals").glob("*.parquet"):
        file.unlink()
    return folder


@pytest.mark.parametrize("which", TORN)
def test_a_shadow_whose_samples_are_torn_cannot_be_told(shadowed: Path, tmp_path: Path, which: str) -> None:
    torn = shutil.copytree(shadowed, tmp_path / "torn")
    steps, left = TORN[which]
    for step in steps:
        (torn / "rollouts" / f"step-{step:06d}.parquet").write_bytes(left)
    name = f"step-{steps[0 if which == 'first' else -1]:06d}.parquet cannot be read"
    told = CliRunner().invoke(app, ["gate", str(shadowed), str(torn), "--min-effect", "0.1", "--json"])
    assert told.exit_code == 2, told.output
    assert name in json.loads(told.stdout)["sentence"]
    report = json.loads(CliRunner().invoke(app, ["report", str(torn), "--json"]).stdout)
    assert report["verdict"] == "cant_tell"
    assert any(name in each["says"] for each in report["reasons"])
    assert "remove it" not in json.dumps(report)
    found = CliRunner().invoke(app, ["health", str(torn), "--json"])
    assert found.exit_code != 0
    assert any(name in note for note in json.loads(found.stdout)["notes"])
    assert any(name in note for note in page_data(torn)["notes"])


def test_health_goes_on_without_torn_samples(run: Path, shadowed: Path, tmp_path: Path) -> None:
    (run / "rollouts" / "step-000040.parquet").write_bytes(b"")
    assert CliRunner().invoke(app, ["health", str(run)]).exit_code == 0  # no alarm rests on samples
    torn = shutil.copytree(shadowed, tmp_path / "torn")
    config = (torn / "config.yaml").read_text(encoding="utf-8")
    (torn / "config.yaml").write_text(config.replace("quality", "unseen"), encoding="utf-8")
    (torn / "rollouts" / "step-000020.parquet").write_bytes(b"junk")
    told = CliRunner().invoke(app, ["health", str(torn)])
    assert told.exit_code == 2  # a shadow that is not in the metrics is read from samples
    assert "note: left out as damaged" in told.output


def test_the_terminal_says_it_too(run: Path, tmp_path: Path) -> None:
    tear(run / "rollouts" / "step-000003.parquet")
    tear(run / "evals" / "step-000010.json")
    told = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "there" / "of it")])
    assert told.exit_code == 0, told.output
    assert "CAN'T TELL" in told.output
    assert told.output.count("step-000010.json is not readable JSON") == 1  # among the reasons
    assert "note: left out as damaged" in told.output
    assert sorted(path.name for path in (tmp_path / "there" / "of it").iterdir()) == ["report.html", "reward.png"]
    assert not (run / "report.html").exists()
    found = json.loads(CliRunner().invoke(app, ["report", str(run), "--json"]).output)
    assert found["verdict"] == "cant_tell"
    assert "step-000010.json" in found["notes"][0]
    assert found["state"]["state"] == "ended"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"steps": "ten"}, "summary.json: steps is no whole number"),
        ({"result_step": [1]}, "summary.json: result_step is no whole number"),
        ({"accuracy_rl": 0.9}, "summary.json: the accuracy after training is no mapping"),
    ],
)
def test_a_summary_of_something_else_is_left_out_and_said(run: Path, changed: dict[str, Any], says: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, **changed}))
    result = CliRunner().invoke(app, ["report", str(run)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "CAN'T TELL" in result.output
    assert says in result.output.replace("\n", " ")
    assert says in Page(run / "report.html").text


def test_a_run_that_is_read_only_is_written_elsewhere(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)  # also for root, whom no permission stops
    told = CliRunner().invoke(app, ["report", str(run)])
    assert told.exit_code == 2
    assert f"rlft report {run} --out FOLDER" in " ".join(told.stderr.split())


def test_a_forged_mean_never_ships(run: Path) -> None:
    path = run / "evals" / "step-000040.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "accuracy": {**record["accuracy"], "mean": 0.99}}))
    verdict = verdict_of(run)
    assert verdict.kind == "cant_tell"
    assert any("outside of its own interval" in reason.says for reason in verdict.reasons)
    assert write_reward_png(run).stat().st_size > 1000


def test_held_out_samples_that_are_torn_never_ship(run: Path) -> None:
    (run / "evals" / "step-000040.parquet").write_bytes(b"junk")
    verdict = verdict_of(run)
    assert verdict.kind == "cant_tell"
    assert any("step-000040.parquet cannot be read" in reason.says for reason in verdict.reasons)


def test_why_looks_at_what_can_be_read(run: Path) -> None:
    for step in range(37, 41):
        (run / "rollouts" / f"step-{step:06d}.parquet").write_bytes(b"")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**row, "rollout/tokens": 10_000.0}) + "\n" for row in rows))
    told = " ".join(CliRunner().invoke(app, ["why", str(run)]).output.split())
    assert "(steps 34-36)" in told
    assert "note: left out as damaged" in told
    page = page_data(run)
    assert page["moved"]["changes"][0]["to"] == "steps 34-36"
    (sampled,) = [each for each in page["tiles"] if each["label"] == "Sampled"]
    assert sampled["value"] == "400,000"  # as the metrics have it, those of torn files, too
    assert page["waste"]["sampled"] == 400_000 > page["waste"]["tokens"]
    failed = CliRunner().invoke(app, ["why", str(run), "--from", "1-2", "--to", "39-40"])
    assert failed.exit_code == 1
    assert "step-000039.parquet cannot be read" in str(failed.exception)
    clipped = " ".join(CliRunner().invoke(app, ["why", str(run), "--from", "1-2", "--to", "30-60"]).output.split())
    assert "(steps 30-40)" in clipped
    assert "Steps 30-60 were asked for, and stored are steps 1 to 40." in clipped


def test_a_step_that_was_logged_often_is_said_once(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = (run / "metrics.jsonl").read_text().splitlines()[-1]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n" * 59)
    told = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "out")])
    said = " ".join([*told.output.split(), caplog.text])
    assert said.count("1 step was logged more than once (59 lines)") == 1


def test_why_of_one_step_or_none_says_so(tmp_path: Path) -> None:
    for run, says in ((one_step(tmp_path / "one"), "one step has nothing"), (empty(tmp_path / "empty"), "no rollouts")):
        told = CliRunner().invoke(app, ["why", str(run)])
        assert told.exit_code == 1
        assert says in str(told.exception)
        assert "--from base" not in str(told.exception)


def test_blocks_within_blocks(tmp_path: Path) -> None:
    write_json(tmp_path / "evals" / "base.json", [])
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", [])
    with damage.left_out() as outer:
        with damage.left_out() as inner:
            assert read_evals(tmp_path) == []
        assert read_evals(tmp_path) == []
        assert inner == outer == inner[:1]
    with pytest.raises(ValueError, match="must hold a JSON object"):
        read_evals(tmp_path)
