"""Run directories are read as they are: running, torn, resumed, damaged."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path

import pytest

from rlft.curves.reading import read_config, read_evals, read_events, read_metrics, read_rollouts, rollout_steps
from rlft.run.records import ROLLOUT_COLUMNS
from tests.fakes_run import append, event, make_run, rollout, write_config, write_eval, write_rollouts


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "lr=0.1"  # a name that looks like a parquet partition
    write_config(folder)
    return folder


def test_a_run_that_has_not_started_is_empty_and_not_an_error(run: Path) -> None:
    assert read_metrics(run) == []
    assert read_events(run) == []
    assert read_evals(run) == []
    assert rollout_steps(run) == []
    with pytest.raises(ValueError, match="has no rollouts yet"):
        read_rollouts(run)


def test_a_folder_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory: it has no config\.yaml"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b\n"])
def test_a_damaged_config_is_named(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_config(run)


def test_a_torn_last_line_is_left_out_and_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(run / "metrics.jsonl", {"step": 1, "reward/mean": 0.5, "policy/kl_ref": None})
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 2, "reward/mean": 0.7, "note": "ä'.encode()[:-1])  # torn within a character
    notes: list[str] = []
    assert read_metrics(run, notes) == [{"step": 1, "reward/mean": 0.5}]
    assert len(notes) == 1
    assert "metrics.jsonl:2: the last line is torn" in notes[0]
    with caplog.at_level(logging.WARNING):
        read_metrics(run)
    assert "metrics.jsonl:2: the last line is torn" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"reward/mean": 1}', "expected an integer 'step', got None"),
        ('{"step": 1, "reward/mean": "high"}', "metric 'reward/mean' is not a number but 'high'"),
    ],
)
def test_any_other_bad_line_is_an_error_with_its_place(run: Path, line: str, message: str) -> None:
    (run / "metrics.jsonl").write_text('{"step": 0}\n\n' + line + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl:3: {message}"):
        read_metrics(run)


def test_steps_redone_after_a_resume_count_once(run: Path) -> None:
    for step, reward in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25), (3, 0.35)):
        append(run / "metrics.jsonl", {"step": step, "reward/mean": reward})
    notes: list[str] = []
    assert [row["reward/mean"] for row in read_metrics(run, notes)] == [0.1, 0.25, 0.35]
    assert "2 steps were logged more than once" in notes[0]


def test_nan_is_kept_and_null_is_absent(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/low": NaN, "reward/high": null}\n')
    (row,) = read_metrics(run)
    assert math.isnan(row["reward/low"])
    assert "reward/high" not in row


def test_evaluations_come_in_the_order_of_training(run: Path) -> None:
    for name in ("step-000010", "sft", "step-000002", "base"):
        write_eval(run, name, 0.5, random.Random(0), tasks=3)
    evals = read_evals(run)
    assert [(e.name, e.step) for e in evals] == [
        ("base", 0), ("sft", 0), ("step-000002", 2), ("step-000010", 10),
    ]  # fmt: skip
    assert evals[0].accuracy.n == len(evals[0].by_task) == 3


def test_an_evaluation_without_bounds_or_lengths_is_readable(run: Path) -> None:
    write_eval(run, "base", 0.5, random.Random(0), tasks=2)
    path = run / "evals" / "base.json"
    record = json.loads(path.read_text())
    record |= {"accuracy": {**record["accuracy"], "low": None, "high": None}, "length": None}
    path.write_text(json.dumps(record))
    (evaluation,) = read_evals(run)
    assert not evaluation.accuracy.bounded
    assert math.isnan(evaluation.length)


def test_a_mean_that_cannot_be_is_damage(run: Path) -> None:
    write_eval(run, "base", 0.5, random.Random(0))
    path = run / "evals" / "base.json"
    record = json.loads(path.read_text())
    for accuracy, says in (({"mean": 0.9}, "outside of its own interval"), ({"mean": 0.9, "high": 0.95}, "by_task")):
        path.write_text(json.dumps({**record, "accuracy": {**record["accuracy"], **accuracy}}))
        with pytest.raises(ValueError, match=says):
            read_evals(run)
        assert len(read_evals(run, is_checked=False)) == 1


def test_a_damaged_evaluation_is_named(run: Path) -> None:
    write_eval(run, "base", 0.5, random.Random(0), tasks=2)
    path = run / "evals" / "base.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "by_task": [1]}))
    with pytest.raises(ValueError, match=r"base\.json is not an evaluation"):
        read_evals(run)
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "metric"}))
    with pytest.raises(ValueError, match=r"base\.json has no field 'metric'"):
        read_evals(run)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"base\.json is not readable JSON"):
        read_evals(run)


def test_only_wanted_rollouts_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    assert rollout_steps(run) == [1, 2, 3]
    table = read_rollouts(run, columns=["task_id", "reward"], steps=[3, 2])
    assert table.column_names == ["task_id", "reward"]
    assert len(table) == 2 * 96
    assert read_rollouts(run)["step"].to_pylist() == [1] * 96 + [2] * 96 + [3] * 96
    (run / "rollouts" / "step-000001.parquet").write_bytes(b"PAR1 torn")
    assert len(read_rollouts(run, steps=[2])) == 96
    with pytest.raises(ValueError, match=r"step-000001\.parquet cannot be read"):
        read_rollouts(run)
    with pytest.raises(ValueError, match="no rollouts of step 9; stored: 1 to 3"):
        read_rollouts(run, steps=[9])
    with pytest.raises(ValueError, match=r"step-000002\.parquet has no column 'rewards'"):
        read_rollouts(run, columns=["rewards"], steps=[2])


def test_rollouts_keep_large_seeds_absent_values_and_the_folder_name(run: Path) -> None:
    rows = [rollout(2), rollout(2, sample=1, outcome="failed", reward=None, failure_kind="error")]
    write_rollouts(run / "rollouts" / "step-000002.parquet", rows)
    read = read_rollouts(run).to_pylist()
    assert read[0]["seed"] == 2**63 + 1
    assert read[1]["reward"] is None
    assert list(read[0]) == list(ROLLOUT_COLUMNS)


def test_events_keep_their_order_and_extra_fields_do_no_harm(run: Path) -> None:
    append(run / "events.jsonl", event("sft_done", "loss 0.8"))
    append(run / "events.jsonl", event("resumed", "from step 4", step=4, host="x"))
    assert [(e.kind, e.step) for e in read_events(run)] == [("sft_done", None), ("resumed", 4)]
