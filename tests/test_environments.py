"""The shipped environments and what the contract refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from environments import sums
from rlft.config import EnvironmentConfig
from rlft.environment.contract import Environment, check
from rlft.environment.loading import load, sources
from rlft.types import Task


def test_sums_are_disjoint_reproducible_and_right() -> None:
    environment = sums.load(seed=3, high=12, heldout=40, demonstrations=20)
    check(environment)
    assert (len(environment.heldout), len(environment.demonstrations), len(environment.train)) == (40, 20, 84)
    assert [t.id for t in environment.train] == [
        t.id for t in sums.load(seed=3, high=12, heldout=40, demonstrations=20).train
    ]
    assert {t.id for t in environment.heldout} != {
        t.id for t in sums.load(seed=4, high=12, heldout=40, demonstrations=20).heldout
    }
    for task in environment.train:
        a, b = task.id.split("+")
        assert task.answer == str(int(a) + int(b))


def test_sums_refuses_a_range_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="holds 9 sums"):
        sums.load(high=3)


def test_an_environment_that_a_helper_makes_counts_with_the_file_that_makes_it(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def make(size):\n    return lambda: size\n")
    (tmp_path / "mine.py").write_text("from helper import make\nload = make(3)\n")
    assert list(sources(f"{tmp_path}/mine.py:load")) == ["mine.py", "helper.py"]
    assert list(sources("environments.sums:load")) == ["sums.py"]


def test_loading_names_a_wrong_argument() -> None:
    with pytest.raises(ValueError, match=r"environment\.args\.hihg.*Did you mean 'high'"):
        load(EnvironmentConfig(path="environments.sums:load", args={"hihg": 3}))
    with pytest.raises(ValueError, match="needs the argument 'source'"):
        load(EnvironmentConfig(path="environments.dataset:load"))


def ask(text: str, task_id: str = "t") -> Task:
    return Task(id=task_id, messages=({"role": "user", "content": text},))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Environment(train=[], heldout=[]), "no training tasks"),
        (Environment(train=[ask(" ")], heldout=[]), "train task 0 .*the prompt is empty"),
        (Environment(train=[ask("a"), ask("b")], heldout=[]), "the id stands twice"),
        (Environment(train=[ask("a", "x")], heldout=[ask("a", "y")]), "asks the same as held-out task 'y'"),
        (
            Environment(
                train=[ask("a", "x")],
                heldout=[ask("b", "y")],
                demonstrations=[({"role": "user", "content": "b"}, {"role": "assistant", "content": "!"})],
            ),
            "demonstration 0 answers held-out task 'y'",
        ),
        (
            Environment(train=[ask("a")], heldout=[], demonstrations=[({"role": "user", "content": "b"},)]),
            "demonstration 0: expected a prompt and, last, the assistant's reply",
        ),
    ],
)
def test_contract_refuses(environment: Environment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(environment)
