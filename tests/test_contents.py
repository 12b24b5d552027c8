"""Tasks of equal content are one cluster, in a report and in a comparison alike."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from rlft.cli.main import app
from tests.synthetic_runs import write_run


def _run(folder: Path, before: float, after: float) -> Path:
    """120 held-out tasks, of which the last 15 ask what the first 15 ask."""
    prompts = {f"t{i}": f"What is {i % 105}?" for i in range(120)}
    for name, share in (("base", before), ("step-000010", after)):
        values = {task: [float(i % 105 < share * 105)] for i, task in enumerate(prompts)}
        write_run(folder, values, prompts=prompts, evaluation=name, rewards=[0.1] * 14)  # type: ignore[arg-type]
    config = (folder / "config.yaml").read_text().replace("evaluation:\n", "evaluation:\n  every: 10\n")
    (folder / "config.yaml").write_text(config)
    return folder


def test_equal_tasks_count_once_everywhere(tmp_path: Path) -> None:
    one, other = _run(tmp_path / "one", 0.2, 0.7), _run(tmp_path / "other", 0.2, 0.8)
    says = "15 tasks have the content of another one and count once"
    report = json.loads(CliRunner().invoke(app, ["report", str(one), "--json"]).stdout)
    assert report["verdict"] == "ship"
    assert report["effect"]["n"] == 105
    assert "Paired over 105 tasks" in report["sentence"]
    assert f"{says}." in [each["says"] for each in report["reasons"]]
    told = json.loads(CliRunner().invoke(app, ["compare", str(one), str(other), "--json"]).stdout)
    assert told["effect"]["n"] == 105
    assert says in told["remarks"]
    gate = json.loads(CliRunner().invoke(app, ["gate", str(one), str(other), "--min-effect", "0.1", "--json"]).stdout)
    assert (gate["effect"]["n"], says in gate["remarks"]) == (105, True)


def test_what_was_measured_is_said(tmp_path: Path) -> None:
    run = _run(tmp_path / "one", 0.2, 0.7)
    report = json.loads(CliRunner().invoke(app, ["report", str(run), "--json"]).stdout)
    assert report["verdict"] == "ship"
    says = "What was measured is the adapter of step 10; steps 11 to 14 were not."
    assert {"code": "measured", "weight": "note", "says": says} in report["reasons"]


def test_a_copy_cannot_be_told_apart_and_the_true_reason_is_named(tmp_path: Path) -> None:
    one, other = (_run(tmp_path / name, 0.2, 0.7) for name in ("one", "other"))
    told = json.loads(CliRunner().invoke(app, ["compare", str(one), str(other), "--json"]).stdout)
    assert told["verdict"] == "cant_tell"
    assert "reaches beyond \N{PLUS-MINUS SIGN}0.01, the smallest change that matters: [-0.0" in told["sentence"]
    assert any("made twice, sample for sample" in each for each in told["remarks"])
