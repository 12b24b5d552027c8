"""`rlft chaos`: workers die at seeded points, and the runs are compared."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli import chaos as module
from rlft.cli.chaos import Kill, KillingPool, chaos, compare, plan
from rlft.cli.main import app
from rlft.rollout.ray_pool import RayPool
from rlft.rollout.work_queue import Submission
from tests.conftest import MakeConfig
from tests.fakes import read_metrics, read_result
from tests.fakes_pool import LentPool, fake_chunks

pytestmark = pytest.mark.timeout(120)

SHORT = ("steps=3", "evaluation.tasks=4", "rollout.workers=2")


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Actors from the stock."""
    monkeypatch.setattr(module, "KillingPool", type("LentKillingPool", (KillingPool, LentPool), {}))


def test_kills_follow_from_the_seed(make_config: MakeConfig) -> None:
    config = make_config("steps=5", "rollout.tasks_per_chunk=2")  # 2 chunks in each of 5 steps
    kills = plan(config, kills=4, seed=1)
    assert plan(config, kills=4, seed=1) == kills != plan(config, kills=4, seed=2)
    places = [(kill.step, kill.chunk) for kill in kills]
    assert places == sorted(set(places))
    assert {kill.chunk for kill in plan(config, kills=10, seed=0)} == {0, 1}
    assert all(0 <= kill.share <= module.LATEST for kill in plan(config, kills=10, seed=0))
    with pytest.raises(ValueError, match="11 kills need as many chunks, but 5 steps have 10"):
        plan(config, kills=11, seed=0)


def test_the_curve_survives(make_config: MakeConfig, lent: None, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(*SHORT)
    outcome = chaos(config, kills=2, seed=0)
    assert len(outcome.kills) == 2
    assert outcome.replaced in (1, 2)  # one that died between two chunks is missed when it gets the next one
    assert outcome.is_same
    assert [(c.what, c.files, c.difference) for c in outcome.comparisons] == [
        ("workers replaced", outcome.replaced, ""),
        ("metrics", 3, ""),
        ("rollouts", 3, ""),
        ("evaluations", 2, ""),
        ("adapters", 2, ""),
    ]
    assert (outcome.undisturbed.name, outcome.disturbed.name) == ("tiny-undisturbed", "tiny-disturbed")
    one, other = read_result(outcome.undisturbed), read_result(outcome.disturbed)
    assert [name for name in one if one[name] != other[name]] == ["summary.json"]  # it holds the run's name


@pytest.mark.parametrize("survives", [False, True])
def test_what_proves_nothing_is_said_and_fails(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path, survives: bool
) -> None:
    def planted(config: Any, *, restart: bool, pools: partial[KillingPool]) -> None:
        """Two runs that are the same, with one kill and nobody or one that was replaced."""
        shutil.copytree(finished_run, config.run_dir)
        pools.keywords["happened"].extend(pools.keywords["planned"])
        event = {"kind": "worker_restarted" if survives else "other"}
        (config.run_dir / "events.jsonl").write_text(json.dumps(event) + "\n")

    monkeypatch.setattr(module.launch, "train", planted)
    monkeypatch.setattr(module, "Cluster", lambda address, processes: type("None_", (), {"close": lambda self: None})())
    result = CliRunner().invoke(
        app, ["chaos", str(config_file), "--kills", "1", "--steps", "2"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == (0 if survives else 1), result.output
    nothing = "1 workers were killed and none was replaced, so that this proves nothing"
    assert (nothing in result.output) is not survives


def test_a_kill_comes_at_a_share_of_the_chunks_time(
    make_config: MakeConfig, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(self: RayPool, place: Any, job: Any) -> str:
        await asyncio.sleep(0.3 if job.number == 0 else 0.6)
        return "reply"

    monkeypatch.setattr(RayPool, "_attempt", slow)
    killed: list[float] = []
    seconds: dict[tuple[int, int], float] = {}
    kills = [Kill(step=1, chunk=0, share=0.1), Kill(step=1, chunk=1, share=0.5)]

    async def run(planned: Sequence[Kill]) -> list[float]:
        pool = KillingPool.__new__(KillingPool)
        pool._planned = {(kill.step, kill.chunk): kill for kill in planned}
        pool._happened, pool._seconds = [], seconds
        began = time.monotonic()
        kill = lambda process_id, node: killed.append(time.monotonic() - began)  # noqa: E731
        pool._cluster = SimpleNamespace(kill_process=kill)  # type: ignore[assignment]
        jobs = Submission(fake_chunks(["a", "b"]), adapter=None).jobs
        await asyncio.gather(*(pool._attempt(SimpleNamespace(process_id=1, node_id=""), job) for job in jobs))  # type: ignore[arg-type]
        return killed

    assert asyncio.run(run(())) == []
    first, second = asyncio.run(run(kills))
    assert 0.03 <= first < 0.2
    assert 0.3 <= second < 0.5


def test_a_curve_that_does_not_survive_is_shown_and_fails(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    def planted(config: Any, *, restart: bool, pools: Any) -> None:
        """Runs of which the second one has another reward in step 2."""
        config.run_dir.mkdir(parents=True)
        rows = read_metrics(finished_run)
        if config.name.endswith("-disturbed"):
            rows[1]["reward/mean"] += 1e-9
            (config.run_dir / "adapters" / "v000004").mkdir(parents=True)
            (config.run_dir / "adapters" / "v000004" / "adapter_model.safetensors").write_bytes(b"other")
        (config.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (config.run_dir / "events.jsonl").write_text("")

    monkeypatch.setattr(module.launch, "train", planted)
    monkeypatch.setattr(module, "Cluster", lambda address, processes: type("None_", (), {"close": lambda self: None})())
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
