"""`rlft bisect`: the search keeps its error rate and says what it cannot tell; policies are measured once."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.config_file import load
from rlft.run.records import Interval
from rlft.train.rl import launch
from rlft.train.rl.bisect.measure import Measured
from rlft.train.rl.bisect.search import ERROR_RATE, Found, Look, Question, Side, look, looks_at_most, search
from tests.conftest import WIDE
from tests.fakes import read_result, write_config

HALFWAY = Question(kind="halfway")


def simulate(means: Sequence[float], question: Question, seed: int, *, tasks: int = 100) -> tuple[Found, int]:
    """A search over policies whose true means are known; tasks differ in difficulty. Also how many were looked at."""
    random = np.random.default_rng(seed)
    difficulty = random.random(tasks)
    made: dict[int, dict[str, list[float]]] = {}

    def values(index: int) -> dict[str, list[float]]:
        if index not in made:
            noise = 0.3 * (difficulty - 0.5) + 0.2 * random.standard_normal(tasks)
            made[index] = {str(task): [float(value)] for task, value in enumerate(means[index] + noise)}
        return made[index]

    looks = looks_at_most(len(means))

    def look_at(index: int) -> Look:
        return look(question, values(index), first=values(0), last=values(len(means) - 1), looks=looks)

    return search(len(means), look_at), len(made)


@pytest.mark.parametrize("question", [HALFWAY, Question(kind="above", bound=0.45), Question(kind="by", bound=0.15)])
def test_a_step_is_found_and_is_seldom_wrong(question: Question) -> None:
    random, wrong, widths = np.random.default_rng(1), 0, []
    for seed in range(100):
        step = int(random.integers(1, 32))
        found, looked = simulate([0.3] * step + [0.6] * (33 - step), question, seed)
        assert looked <= looks_at_most(33) == 12
        if found.last_before is None or found.first_after is None:
            continue
        wrong += not found.last_before < step <= found.first_after
        widths.append(found.first_after - found.last_before)
    assert wrong <= 100 * ERROR_RATE
    assert len(widths) >= 90
    assert np.mean(widths) < 1.5


def test_a_slope_is_narrowed_as_far_as_the_noise_lets() -> None:
    crossing = 16  # of 0.3 to 0.6 in 32 steps, 0.45
    found = [simulate(np.linspace(0.3, 0.6, 33).tolist(), Question(kind="above", bound=0.45), s)[0] for s in range(60)]
    ranges = [(each.last_before, each.first_after) for each in found if each.first_after is not None]
    assert len(ranges) >= 55
    right = [low is not None and low <= crossing <= (high or 0) for low, high in ranges]
    assert sum(right) >= (1 - ERROR_RATE) * len(ranges)
    assert all(each.unclear for each in found if each.first_after is not None)  # nothing near the crossing is clear


def test_where_nothing_changed_no_step_is_named() -> None:
    found = [simulate([0.5] * 33, HALFWAY, seed)[0] for seed in range(200)]
    assert sum(each.first_after is not None for each in found) <= 200 * ERROR_RATE
    assert "cannot be told from it" in found[0].reason
    above = simulate([0.7] * 9, Question(kind="above", bound=0.45), 0)[0]
    assert above.reason == "the first and the last policy are both beyond it"


def test_falling_and_rising_are_both_found() -> None:
    means = [0.7] * 5 + [0.2] * 4
    for question in (Question(kind="below", bound=0.45), Question(kind="above", bound=0.45), HALFWAY):
        found = simulate(means, question, 3)[0]
        assert (found.last_before, found.first_after) == (4, 5), question


def test_shares_without_spread_are_not_taken_for_certain() -> None:
    values: Any = {str(task): [0.0] for task in range(8)}
    others: Any = {str(task): [float(task < 7)] for task in range(8)}
    question = Question(kind="above", bound=0.2)
    few = look(question, values, first=values, last=others, looks=5)  # 0 of 8 may be 0.2
    assert few.side == "unclear"
    many: Any = {str(task): [0.0] for task in range(80)}
    assert look(question, many, first=many, last=others, looks=5).side == "before"


# On a run.


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run of four steps with 32 held-out tasks, whose reward rises from 0 to nearly 1."""
    config = load(
        write_config(tmp_path_factory.mktemp("bisect"), tiny_model),
        ["checkpoint.every=1", "environment.args.num_heldout=32"],
    )
    launch.train(config)
    return config.run_dir


@pytest.fixture
def copy(long_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(long_run, tmp_path / "copy")


def invoke(run: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["bisect", str(run), *arguments], env=WIDE)


def test_a_run_is_searched_and_what_was_measured_is_kept(copy: Path) -> None:
    before = read_result(copy)
    first = invoke(copy, "--metric", "odd", "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    sources = {each["step"]: each["source"] for each in told["measurements"]}
    assert sources.pop(4) == "stored evaluation"
    assert set(sources.values()) == {"measured now"}
    assert told["after"] < told["until"]
    assert read_result(copy) == before
    again = json.loads(invoke(copy, "--metric", "odd", "--json").stdout)
    assert {each["source"] for each in again["measurements"]} == {"stored evaluation", "kept from before"}
    means = [[each["mean"] for each in result["measurements"]] for result in (told, again)]
    assert means[0] == means[1]
    # Other settings are other measurements.
    other = json.loads(invoke(copy, "--metric", "odd", "--json", "evaluation.tasks=4").stdout)
    assert {each["source"] for each in other["measurements"]} == {"measured now"}
    assert len(list((copy / "bisect").iterdir())) == 2


def test_the_entropy_needs_no_reward(copy: Path) -> None:
    result = invoke(copy, "--metric", "entropy", "--json")
    told = json.loads(result.stdout)
    measured = {each["step"]: each["mean"]["mean"] for each in told["measurements"]}
    uniform = np.log(260)  # the tiny model is random
    assert 0.9 * uniform < measured[0] < uniform
    assert {each["source"] for each in told["measurements"]} == {"measured now"}


def test_what_cannot_be_asked_is_refused(copy: Path) -> None:
    result = invoke(copy, "--metric", "length")
    assert result.exit_code == 2, result.output  # every reply has the full length
    assert "No step at which rollout/length has moved half of the way" in result.output
    assert "ask for two things" in invoke(copy, "--above", "1", "--below", "0").output
    shutil.rmtree(copy / "adapters")
    shutil.rmtree(copy / "evals")
    assert "a change needs two" in invoke(copy, "--metric", "odd").output


def test_a_misspelt_metric_is_refused_before_anything_is_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rlft.train.rl.bisect.bisect", None)  # whose import would fail
    for metric, says in (
        ("od", "no reward is named so. Did you mean 'odd'? There are: odd, length, truncated, entropy, reward"),
        ("odd/shape", "no part is named so. Did you mean 'odd'?"),
        ("lenght", "Did you mean 'length'?"),
    ):
        result = invoke(copy, "--metric", metric)
        assert result.exit_code == 2
        assert says in result.output


def test_stored_evaluations_are_looked_at_before_others_are_made() -> None:
    steps, known, made = list(range(31)), {0, 10, 20, 30}, []

    def look_at(index: int) -> Look:
        made.append(steps[index])
        return Look(side="before" if index < 23 else "after", margin=Interval(1.0, 1.0, 1.0, 1))

    found = search(31, look_at, known)
    assert (found.last_before, found.first_after) == (22, 23)
    assert made[:3] == [0, 30, 20]
    assert all(20 < step < 30 for step in made[3:])
    assert len(made) <= looks_at_most(31, known)


def test_no_search_looks_more_often_than_its_error_rate_allows() -> None:
    random = np.random.default_rng(4)
    sides: tuple[Side, ...] = ("before", "unclear", "after")
    for _ in range(300):
        count = int(random.integers(2, 40))
        known = {int(index) for index in random.integers(0, count, int(random.integers(0, 8)))}
        drawn = ["before", *random.choice(sides, count - 2), "after"]
        looked: list[int] = []

        def look_at(index: int, drawn: list[Any] = drawn, looked: list[int] = looked) -> Look:
            looked.append(index)
            return Look(side=drawn[index], margin=Interval(0.0, 0.0, 0.0, 1))

        search(count, look_at, known)
        assert len(looked) == len(set(looked)) <= looks_at_most(count, known)


def test_what_is_not_stored_is_said_before_an_engine_is_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_engine(*_: object) -> None:
        raise RuntimeError("an engine would be loaded here")

    monkeypatch.setattr(Measured, "_start", no_engine)
    for path in (copy / "evals").glob("*"):
        path.unlink()
    told = invoke(copy, "--metric", "odd").output
    lacking, _, rest = told.partition("answers the held-out tasks")
    assert "odd of the policy of steps 0, 1, 2, 3, 4 is in no evaluation of" in lacking
    assert "an engine would be loaded here" in rest
