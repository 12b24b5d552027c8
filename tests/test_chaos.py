"""`rlft chaos`: workers die at seeded points, and the runs are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft import chaos as module
from rlft import services
from rlft.chaos import KillingPool, chaos, compare, plan
from rlft.cli import app
from tests.conftest import MakeConfig
from tests.fakes import read_metrics, read_result
from tests.fakes_pool import LentPool

pytestmark = pytest.mark.timeout(120)

SHORT = ("steps=3", "evaluation.tasks=4", "rollout.workers=2")


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Actors from the stock."""
    monkeypatch.setattr(module, "KillingPool", type("LentKillingPool", (KillingPool, LentPool), {}))
    monkeypatch.setattr(services, "make_pool", LentPool)


def test_kills_follow_from_the_seed(make_config: MakeConfig) -> None:
    config = make_config("steps=5", "rollout.tasks_per_chunk=2")  # 2 chunks in each of 5 steps
    kills = plan(config, kills=4, seed=1)
    assert plan(config, kills=4, seed=1) == kills != plan(config, kills=4, seed=2)
    places = [(kill.step, kill.chunk) for kill in kills]
    assert places == sorted(set(places))
    assert {kill.chunk for kill in plan(config, kills=10, seed=0)} == {0, 1}
    with pytest.raises(ValueError, match="11 kills need as many chunks, but 5 steps have 10"):
        plan(config, kills=11, seed=0)


def test_the_curve_survives(make_config: MakeConfig, lent: None, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(*SHORT)
    outcome = chaos(config, kills=2, seed=0)
    assert len(outcome.kills) == 2
    assert outcome.replaced in (1, 2)  # one that died between two chunks is missed when it gets the next one
    assert outcome.is_same
    assert [(c.what, c.files, c.difference) for c in outcome.comparisons] == [
        ("metrics", 3, ""),
        ("rollouts", 3, ""),
        ("evaluations", 2, ""),
        ("adapters", 2, ""),
    ]
    assert (outcome.undisturbed.name, outcome.disturbed.name) == ("tiny-undisturbed", "tiny-disturbed")
    one, other = read_result(outcome.undisturbed), read_result(outcome.disturbed)
    assert [name for name in one if one[name] != other[name]] == ["summary.json"]  # it holds the run's name


def test_a_curve_that_does_not_survive_is_shown_and_fails(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    def planted(config: Any, *, restart: bool, pools: Callable[..., Any] | None) -> None:
        """Runs of which the second one has another reward in step 2."""
        config.run_dir.mkdir(parents=True)
        rows = read_metrics(finished_run)
        if pools:
            rows[1]["reward/mean"] += 1e-9
            (config.run_dir / "adapters" / "v000004").mkdir(parents=True)
            (config.run_dir / "adapters" / "v000004" / "adapter_model.safetensors").write_bytes(b"other")
        (config.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (config.run_dir / "events.jsonl").write_text("")

    monkeypatch.setattr(module.launch, "train", planted)
    monkeypatch.setattr(module, "Cluster", lambda config: type("None_", (), {"close": lambda self: None})())
    result = CliRunner().invoke(
        app, ["chaos", str(config_file), "--kills", "1", "--steps", "2"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 1, result.output
    assert "step 2: reward/mean is" in result.output
    assert "adapters/v000004/adapter_model.safetensors" in result.output


def test_runs_that_are_the_same_compare_as_the_same(finished_run: Path) -> None:
    assert [c.difference for c in compare(finished_run, finished_run)] == [""] * 4


def test_what_may_differ_is_said(make_config: MakeConfig) -> None:
    assert module._reason(make_config()) == ""
    assert "vllm may round otherwise" in module._reason(make_config("rollout.engine=vllm"))
