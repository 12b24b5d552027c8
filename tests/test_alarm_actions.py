"""Alarms while a run goes on: told once, shown in the panel, and pause, stop and roll back do what they say."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
from rich.console import Console

from rlft.config.sections import AlarmName
from rlft.curves.alarms import ALARMS, Alarm, Health
from rlft.curves.live_panel import View
from rlft.curves.reading import read_events
from rlft.model.adapter import adapter_hash, read_folder
from rlft.run.resume import How
from rlft.train.rl import alarms, launch
from rlft.train.rl.repetition import describe_repetition
from rlft.train.rl.verify.verify import verify
from tests.conftest import MakeConfig
from tests.fakes import made_up_group, read_metrics

RUN = ("steps=16", "checkpoint.every=2", "evaluation.tasks=2")


@pytest.fixture
def _alarm_from_step_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's runs are too short for a real one: one that says that the reward has collapsed since step 5."""

    def made(rows: Any, *, shadows: Collection[str]) -> Health:
        alarm = Alarm(
            name="reward_collapse", severity="critical", onset=5, seen=len(rows), evidence="half of [it]", numbers={}
        )
        return Health(steps=len(rows), alarms=(alarm,) if len(rows) >= 5 else (), unable=())

    monkeypatch.setattr(alarms, "alarms_from", made)


def told(run: Path, kind: str = "alarm") -> list[tuple[int | None, str]]:
    return [(event.step, event.message) for event in read_events(run) if event.kind == kind]


@pytest.mark.usefixtures("_alarm_from_step_5")
def test_an_alarm_is_told_once_and_a_paused_run_goes_on(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(*RUN, "guards.alarms={reward_collapse: pause}")
    with pytest.raises(RuntimeError, match=r"step 10: paused, as guards\.alarms asks for: reward_coll.* step 5"):
        launch.train(config)
    assert (config.run_dir / "checkpoints" / "step-000010").is_dir()
    _, summary = launch.resume(config.run_dir)
    assert summary["steps"] == len(read_metrics(config.run_dir)) == 16
    assert told(config.run_dir) == [(5, "reward_collapse since step 5: half of [it] (told after step 10)")]
    assert "alarm after step 10: reward_collapse since step 5" in capsys.readouterr().out


@pytest.mark.usefixtures("_alarm_from_step_5")
def test_a_stopped_run_stops_again_until_the_alarm_is_taken_out(make_config: MakeConfig) -> None:
    config = make_config(*RUN, "guards.alarms={reward_collapse: stop}")
    with pytest.raises(RuntimeError, match=r"The last healthy adapter is .*v000004\. To go on from there with its opt"):
        launch.train(config)
    with pytest.raises(RuntimeError, match="step 10: stopped"):
        launch.resume(config.run_dir)
    _, summary = launch.resume(config.run_dir, How(overrides=("guards.alarms={}",)))
    assert summary["steps"] == 16
    assert len(told(config.run_dir)) == 1


@pytest.mark.usefixtures("_alarm_from_step_5")
def test_rolling_back_makes_the_last_healthy_adapter_the_result(make_config: MakeConfig) -> None:
    config = make_config(*RUN, "guards.alarms={reward_collapse: roll_back}")
    summary = launch.train(config)
    run = config.run_dir
    assert (summary["steps"], summary["adapter"]) == (4, "adapters/v000004")
    assert json.loads((run / "summary.json").read_text())["adapter"] == "adapters/v000004"
    evaluation = json.loads((run / "evals" / "step-000004.json").read_text())
    assert evaluation["adapter_hash"] == adapter_hash(read_folder(run / "adapters" / "v000004"))
    ((step, message),) = told(run, "rolled_back")
    assert step == 4
    assert f"rlft resume {run} --fork NAME --step 4" in message
    assert verify(run, config, share=0.1, seed=0, workers=0).verdict == "agrees"
    path, forked = launch.resume(run, How(fork="again", step=4, overrides=("guards.alarms={}",)))
    assert forked["steps"] == len(read_metrics(path)) == 16


def test_without_an_adapter_from_before_there_is_nothing_to_go_back_to(tmp_path: Path, make_config: MakeConfig) -> None:
    run: Any = mock.MagicMock(path=tmp_path, config=make_config())
    (tmp_path / "adapters" / "v000005").mkdir(parents=True)
    assert alarms.healthy_step(run, 5) is None
    assert alarms.way_back(run, None) == "No adapter from before was saved."
    assert alarms.healthy_step(run, 6) == 5
    assert "Its optimizer is not kept" in alarms.way_back(run, 5)
    (tmp_path / "adapters" / "v000004").mkdir()
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    assert alarms.healthy_step(run, 6) == 4, "the one that training can go on from"


def test_the_config_names_every_alarm_and_no_other(make_config: MakeConfig) -> None:
    assert set(get_args(AlarmName)) == set(ALARMS)
    with pytest.raises(ValueError, match=r"guards\.alarms"):
        make_config("guards.alarms={entropy: stop}")


def test_the_panel_has_a_line_for_each_alarm() -> None:
    console = Console(file=StringIO(), width=100, force_terminal=False)
    view = View("run", steps=9, console=console)
    view.alarms(["no_signal since step 3: [bold]10 %\x1b"])
    console.print(view)
    assert "alarm  no_signal since step 3: [bold]10 %\N{SYMBOL FOR ESCAPE}" in console.file.getvalue()  # type: ignore[attr-defined]
    view.alarms([])
    console.print(view)
    assert console.file.getvalue().count("no_signal") == 1  # type: ignore[attr-defined]


def test_repeated_phrases_and_equal_samples_by_hand() -> None:
    group = made_up_group([0.0, 0.0, 0.0, 0.0], lengths=[12, 12, 3, 3])
    ids = [(1, 2, 3, 4, 5, 6) * 2, tuple(range(12)), (1, 1, 1), (1, 1, 1)]
    changed = [
        replace(t, turns=(replace(t.turns[0], completion=replace(t.turns[0].completion, token_ids=tokens)),))
        for t, tokens in zip(group.trajectories, ids, strict=True)
    ]
    # Of the first one's 7 phrases of 6 tokens the last equals the first; 3 tokens are no phrase.
    metrics = describe_repetition([replace(group, trajectories=tuple(changed))])
    assert metrics == {"rollout/repetition": pytest.approx(1 / 7 / 4), "rollout/duplicates": 1 / 4}


def test_every_step_has_them(finished_run: Path) -> None:
    rows = read_metrics(finished_run)
    assert all(0 <= row["rollout/repetition"] <= 1 and 0 <= row["rollout/duplicates"] <= 1 for row in rows)
