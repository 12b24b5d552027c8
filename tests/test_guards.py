"""A policy that has diverged is not a success: it is said, marked on the curves, and stops the run where asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from rlft.curves.reading import read_events
from rlft.model.adapter import make_adapter
from rlft.run.resume import How
from rlft.train.rl import launch
from rlft.train.rl.guards import EVENT, Guards
from tests.conftest import MakeConfig
from tests.fakes import read_metrics
from tests.test_report import Page

WILD = ("algorithm={preset: grpo, kl: k3, kl_coef: 1.0e-6}", "learner.lr=3", "learner.max_grad_norm=1000", "steps=6")
QUICK = ("evaluation.tasks=2", "checkpoint.every=1")


def told(run: Path) -> list[tuple[int | None, str]]:
    return [(event.step, event.message) for event in read_events(run) if event.kind == EVENT]


def test_a_policy_that_ran_away_stops_the_run_and_a_calm_fork_goes_on(make_config: MakeConfig) -> None:
    # The rate rises until the fourth step, whose numbers show what the third has done.
    config = make_config(*WILD, *QUICK, "guards.max_kl=0.01", "learner.lr=0.05", "learner.warmup_steps=8")
    with pytest.raises(
        RuntimeError, match=r"step \d: the policy is .* nats per token away.*guards\.max_kl=0\.01"
    ) as caught:
        launch.train(config)
    rows = read_metrics(config.run_dir)
    last = int(rows[-1]["step"])
    assert last > 2
    assert [row["policy/kl_ref"] > 0.01 for row in rows] == [False] * (last - 1) + [True]
    assert [step for step, _ in told(config.run_dir)] == [last]
    # Step `last` measured the policy that step `last` - 1 had made, so the one before is the last that was well.
    adapter = config.run_dir / "adapters" / f"v{last - 2:06d}"
    assert f"The last adapter from before is {adapter}." in str(caught.value)
    assert f"rlft resume {config.run_dir} --fork NAME --step {last - 2} learner.lr=0.005" in str(caught.value)
    path, summary = launch.resume(
        config.run_dir, How(fork="calm", step=last - 2, overrides=("learner.lr=1e-4", "guards.max_kl=1"))
    )
    assert summary["steps"] == len(read_metrics(path)) == 6


def test_where_nothing_is_to_stop_it_is_only_said_once(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(*WILD, *QUICK, "guards.max_kl=0.01", "guards.stop=[]", "rollout.max_mismatch=100")
    launch.train(config)
    over = [int(row["step"]) for row in read_metrics(config.run_dir) if row["policy/kl_ref"] > 0.01]
    assert len(over) > 1
    steps = [step for step, _ in told(config.run_dir)]
    assert steps == [step for step in over if step - 1 not in over], "once while it lasts"
    assert "guards.max_kl=0.01" in capsys.readouterr().out
    assert (config.run_dir / "summary.json").exists()


def test_steps_without_an_update_are_counted_across_a_resume(make_config: MakeConfig) -> None:
    reward = "def odd(completion):\n    return 0.25"
    config = make_config(
        *QUICK, "algorithm.kl=none", "algorithm.kl_coef=0", "guards.steps_without_signal=3", reward=reward
    )
    launch.train(config)
    assert [step for step, _ in told(config.run_dir)] == [3]
    stopping = make_config(
        *("name=stopping", *QUICK, "algorithm.kl=none", "algorithm.kl_coef=0"),
        *("guards.steps_without_signal=3", "guards.stop=[signal]"),
        reward=reward,
    )
    with pytest.raises(RuntimeError, match=r"step 3: no update was made for 3 steps.*'guards\.stop=\[\]'"):
        launch.train(stopping)
    with pytest.raises(RuntimeError, match="step 3: no update was made for 3 steps"):
        launch.resume(stopping.run_dir)
    launch.resume(stopping.run_dir, How(overrides=("guards.stop=[]",)))


def guards_of(tmp_path: Path, make_config: MakeConfig, *overrides: str) -> tuple[Guards, mock.MagicMock]:
    run = mock.MagicMock(path=tmp_path, config=make_config(*overrides))
    return Guards(run, mock.MagicMock(), start=0), run


def step_of(**values: float) -> dict[str, float]:
    return {"policy/updates": 1.0, **{f"policy/{name}": value for name, value in values.items()}}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parameters_that_are_not_finite_always_stop(tmp_path: Path, make_config: MakeConfig, bad: float) -> None:
    guards, run = guards_of(tmp_path, make_config, "guards.stop=[]")
    guards.check(1, step_of(), make_adapter(1, {"a": torch.ones(2), "b": torch.ones(2)}))
    with pytest.raises(
        RuntimeError,
        match=r"step 2: the policy's parameters are not finite, first b\. No adapter from before was saved",
    ):
        guards.check(2, step_of(), make_adapter(2, {"a": torch.ones(2), "b": torch.tensor([1.0, bad])}))
    run.log.assert_called_once()


@pytest.mark.parametrize(
    ("setting", "metrics", "says"),
    [
        ("guards.min_entropy=0.1", {"entropy": 0.05}, "entropy is 0.0500"),
        ("guards.min_entropy=0", {"entropy": 0.0}, ""),
        ("guards.max_kl=1", {"kl_ref": 1.01}, "is 1.01 nats"),
        ("guards.max_kl=1", {"kl_ref": 0.99}, ""),
        ("guards.max_kl=0", {"kl_ref": 50.0}, ""),
    ],
)
def test_bounds(tmp_path: Path, make_config: MakeConfig, setting: str, metrics: dict[str, float], says: str) -> None:
    guards, run = guards_of(tmp_path, make_config, setting, "guards.stop=[]")
    guards.check(1, step_of(**metrics), make_adapter(1, {}))
    messages = [call.args[1] for call in run.event.call_args_list]
    assert len(messages) == bool(says)
    assert says in "".join(messages)


def test_the_distance_to_a_teacher_is_no_divergence(tmp_path: Path, make_config: MakeConfig, tiny_model: Path) -> None:
    guards, run = guards_of(tmp_path, make_config, "algorithm=opd", f"reference={tiny_model}")
    guards.check(1, step_of(kl_ref=50.0), make_adapter(1, {}))
    run.event.assert_not_called()


def test_the_events_are_on_the_page(make_config: MakeConfig) -> None:
    config: Any = make_config(*WILD, *QUICK, "guards.max_kl=0.01", "guards.stop=[]", "rollout.max_mismatch=100")
    launch.train(config)
    page = Page(config.run_dir / "report.html").text
    assert "guards.max_kl=0.01" in page
    assert EVENT in page
