"""pass@k and pass^k: against enumeration of all choices, and on whole evaluations."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves.passes import pass_all_k, pass_at_k, passes
from rlft.curves.report import write_report
from rlft.curves.statistics import mean_interval
from tests.fakes_run import make_run
from tests.test_report import Page


@pytest.mark.parametrize("samples", range(1, 7))
def test_both_are_what_enumeration_gives(samples: int) -> None:
    for right in range(samples + 1):
        values = [1] * right + [0] * (samples - right)
        for k in range(1, samples + 1):
            choices = list(combinations(values, k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))
            assert pass_all_k(samples, right, k) == pytest.approx(sum(map(all, choices)) / len(choices))


def test_impossible_numbers_are_refused() -> None:
    for samples, right, k in ((4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="k must be 1 to the number of samples"):
            pass_at_k(samples, right, k)


def test_intervals_are_by_task_and_cover() -> None:
    # Per task p from Beta(1, 1): the mean of 1 - (1 - p)^2 is 2/3 and that of p^2 is 1/3.
    rng, covered = np.random.default_rng(5), np.zeros(2)
    runs = 300  # standard error of a coverage of 0.95: 0.0126
    for _ in range(runs):
        data = (rng.random((60, 4)) < rng.random((60, 1))).astype(float)
        two = passes({str(task): list(row) for task, row in enumerate(data)})[0]
        assert two.k == 2
        assert two.any_right.n == 60
        covered += [two.any_right.low <= 2 / 3 <= two.any_right.high, two.all_right.low <= 1 / 3 <= two.all_right.high]
    assert (covered / runs > 0.95 - 3 * 0.0126).all()


def test_tasks_with_too_few_scored_samples_are_counted() -> None:
    known = passes({"a": [1.0, 0.0, 1.0], "b": [0.0, 0.0, 0.0], "c": [1.0], "d": []})
    assert [(each.k, each.any_right.mean, each.left_out) for each in known] == [(2, 0.5, 2), (3, 0.5, 2)]
    assert known[1].all_right.mean == 0
    assert "pass@3 0.50" in known[1].sentence
    assert "2 tasks with fewer than 3 scored samples left out" in known[1].sentence
    assert known[0].as_dict()["pass_at_k"]["n"] == 2


def test_there_is_none_without_several_samples_or_without_right_and_wrong() -> None:
    assert passes({"a": [1.0], "b": [0.0]}) == []
    assert passes({"a": [1.0, 0.5]}) == []
    assert passes({}) == []


def test_the_report_shows_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=2)
    path = run / "evals" / "step-000002.json"
    record = json.loads(path.read_text())
    record["by_task"] = {f"t{task}": [1.0, float(task % 2), 0.0, float(task % 2)] for task in range(20)}
    record["accuracy"] = mean_interval(list(record["by_task"].values())).as_dict()
    path.write_text(json.dumps(record))
    rows = {row[0]: row[-1] for row in Page(write_report(run)).data["evaluations"][1]["rows"]}
    # Even tasks: 1 of 4 right, so pass@2 is 1/2; odd ones: 3 of 4, so it is 1. The mean is 0.75.
    assert rows["pass@2: one of 2 is right"].startswith("0.75 [")
    assert "pass^4: all 4 are right" in rows
    told = CliRunner().invoke(app, ["report", str(run), "--json"], catch_exceptions=False)
    assert [each["k"] for each in json.loads(told.output)["passes"]] == [2, 4]
