"""`rlft gate`: what passes, what is a regression, what cannot be told, and how often each is wrong."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlft.cli.main import app
from rlft.curves import doubts, evaluation_sets, verdict
from rlft.curves.compare import compare
from rlft.curves.gate import _DOUBTS_OF_CANDIDATE, Gate, gate
from rlft.curves.scored_run import Group
from tests.compare_rates import EFFECT, gate_rates, named_size
from tests.fakes_run import write_eval
from tests.synthetic_runs import run, write_run


def _gate(better: int, worse: int, tasks: int = 200, min_effect: float = 0.05, **changes: object) -> Gate:
    """A candidate that gets `better` tasks right that the baseline had wrong, and the other way round `worse`."""
    before = {f"t{i}": [float(better <= i < better + worse)] for i in range(tasks)}
    after = {f"t{i}": [float(i < better)] for i in range(tasks)}
    groups = [Group(label=n, runs=[run(n, v, **changes)]) for n, v in (("base", before), ("new", after))]
    return gate(compare(*groups, min_effect=min_effect), min_effect)


def test_each_decision() -> None:
    assert (_gate(3, 3).decision, _gate(3, 3).exit_code) == ("pass", 0)
    found = _gate(2, 40)
    assert (found.decision, found.exit_code) == ("regression", 1)
    assert found.sentence.startswith("REGRESSION: new against base, right changed by -0.19 [")
    assert "worse by 0.05 or more" in found.sentence
    unsure = _gate(10, 14)
    assert (unsure.decision, unsure.exit_code) == ("cant_tell", 2)
    assert "tasks would tell in 80 of 100 gates" in unsure.sentence
    assert _gate(0, 12, tasks=1000).decision == "pass"  # worse for certain, by less than the margin
    assert _gate(0, 12, tasks=1000, min_effect=0.01).decision == "regression"


def test_nothing_that_changed_passes_only_where_there_are_enough_tasks() -> None:
    assert _gate(0, 0, tasks=200).decision == "pass"
    assert _gate(0, 0, tasks=10).decision == "cant_tell"
    assert _gate(0, 0, tasks=1).decision == "cant_tell"


def test_missing_scores_cannot_be_told() -> None:
    told = _gate(40, 2, missing=1)
    assert told.exit_code == 2
    assert "scores are missing: 2 samples could not be scored" in told.sentence


def test_skewed_differences_cannot_be_told() -> None:
    before = {f"t{i}": [0.0] for i in range(100)}
    after = {f"t{i}": [0.1 if i else -99.0] for i in range(100)}
    groups = [Group(label=n, runs=[run(n, v, word="mean")]) for n, v in (("base", before), ("new", after))]
    told = gate(compare(*groups), 0.05)
    assert told.exit_code == 2
    assert "too skewed to tell" in told.sentence


def test_three_seeds_cannot_show_a_regression() -> None:
    def group(label: str, right: float) -> Group:
        values = {f"t{i}": [right] for i in range(100)}
        return Group(label=label, runs=[run(f"{label}{s}", {**values, f"t{s}": [0.5]}, seed=s) for s in range(3)])

    told = gate(compare(group("base", 0.9), group("new", 0.1)), 0.05)
    assert told.exit_code == 2
    assert "3 and 3 seeds can never show p < 0.05" in told.sentence


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        _gate(1, 1, min_effect=0.0)


def test_a_planted_loss_is_caught_at_the_size_that_power_names() -> None:
    # The quick form of `make compare-rates`; two standard errors of 60 gates: 0.10 at 0.8, 0.056 at 0.05.
    size = named_size(1, 8)
    passes, found, _ = gate_rates(size, -EFFECT, 60)
    assert found >= 0.8 - 0.10
    assert passes <= 0.05 + 0.056
    assert gate_rates(size, 0.0, 60)[1] <= 0.05 + 0.056


def _invoke(*words: object) -> Result:
    return CliRunner().invoke(app, ["gate", *map(str, words)], catch_exceptions=False)


def test_the_command(tmp_path: Path) -> None:
    right = {f"t{i}": [float(i % 2)] for i in range(200)}
    wrong = {task: [0.0] for task in right}
    base = write_run(tmp_path / "base", right)  # type: ignore[arg-type]
    same = write_run(tmp_path / "same", right, seed=1)  # type: ignore[arg-type]
    worse = write_run(tmp_path / "worse", wrong, seed=2)  # type: ignore[arg-type]
    assert _invoke(base, same, "--min-effect", 0.05).exit_code == 0
    junit = tmp_path / "gate.xml"
    bad = _invoke(base, worse, "--min-effect", 0.05, "--junit", junit, "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.output)["verdict"] == "regression"
    suite = ElementTree.fromstring(junit.read_text())
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    assert "REGRESSION" in str(suite.find("testcase/failure").get("message"))  # type: ignore[union-attr]
    failed = write_run(tmp_path / "failed", {**right, "t3": [None]}, seed=3)  # type: ignore[arg-type]
    unknown = _invoke(base, failed, "--min-effect", 0.05, "--junit", junit)
    assert unknown.exit_code == 2
    assert "missing" in unknown.output
    assert ElementTree.fromstring(junit.read_text()).find("testcase/error") is not None
    seeds = tmp_path / "seeds"
    for index in range(8):
        name = f"{'ab'[index // 4]}-{index % 4}"
        write_run(seeds / name, {**right, "t1": [float(index % 2)]}, seed=index, lr=1e-4 * (1 + index // 4))  # type: ignore[dict-item]
    groups = _invoke(seeds / "a-*", seeds / "b-*", "--min-effect", 0.05)
    assert "PASS" in groups.output
    assert "rows" not in groups.output, "a gate shows none"
    gone = _invoke(base, tmp_path / "gone", "--min-effect", 0.05, "--junit", junit, "--json")
    assert gone.exit_code == 2, "not 1, which would say that it is worse"
    told = json.loads(gone.stdout)
    assert (told["verdict"], told["exit_code"]) == ("cant_tell", 2)
    for text in (gone.stderr, told["sentence"], junit.read_text()):
        assert "is not a run directory" in text
    assert ElementTree.fromstring(junit.read_text()).find("testcase/error") is not None


def test_a_candidate_that_is_no_longer_what_was_measured_does_not_pass(tmp_path: Path) -> None:
    right = {f"t{i}": [float(i % 2)] for i in range(200)}
    base = write_run(tmp_path / "base", right)  # type: ignore[arg-type]
    fell = write_run(tmp_path / "fell", right, seed=1, rewards=[0.8] * 10 + [0.0] * 40)  # type: ignore[arg-type]
    write_eval(fell, "base", 0.3, random.Random(0))
    told = _invoke(base, fell, "--min-effect", 0.05)
    assert told.exit_code == 2
    assert "CAN'T TELL" in told.output
    assert "40 steps are not measured" in told.output.replace("\n", " ")
    assert "the train reward fell from 0.80" in told.output.replace("\n", " ")
    assert _invoke(base, f"{fell}@step-000010", "--min-effect", 0.05).exit_code == 0


def test_a_candidate_whose_own_report_doubts_it_does_not_pass(tmp_path: Path) -> None:
    right = {f"t{i}": [float(i % 2)] for i in range(200)}
    base = write_run(tmp_path / "base", right)  # type: ignore[arg-type]
    new = write_run(tmp_path / "new", right, seed=1)  # type: ignore[arg-type]
    write_eval(new, "base", 0.3, random.Random(0))
    assert _invoke(base, new, "--min-effect", 0.05).exit_code == 0
    path = new / "evals" / "step-000010.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncated": 0.6}))
    told = _invoke(base, new, "--min-effect", 0.05)
    assert told.exit_code == 2, told.output
    assert "60 % of the held-out completions were cut at the length limit" in told.output.replace("\n", " ")


def test_every_doubt_about_the_candidate_alone_keeps_it_from_passing() -> None:
    # What the verdict says of its own comparison, or decides nothing by, is no doubt about the candidate.
    others = {"open", "effect", "missing", "measured", "repeated", "picked", "length", "rolled_back"}
    sources = [Path(module.__file__ or "").read_text() for module in (doubts, evaluation_sets, verdict)]
    codes = {code for text in sources for code in re.findall(r'Reason\(\s*code="(\w+)"', text)}
    assert codes == {*_DOUBTS_OF_CANDIDATE, *others}
