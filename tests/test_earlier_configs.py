"""Run directories whose configs an earlier rlft wrote are read, reported and resumed as what they were."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from rlft.cli import main
from rlft.config import RunConfig
from rlft.curves.report import write_report
from rlft.objectives.algorithm import PreferenceObjective
from rlft.objectives.presets import PRESETS
from rlft.run.directory import Run, read_config
from rlft.run.earlier_configs import modernise
from rlft.run.resume import How
from rlft.train.preference import launch as launch_dpo
from rlft.train.preference.config import PreferenceConfig
from rlft.train.rl import launch
from tests.conftest import MakeConfig
from tests.fakes import read_metrics, read_result
from tests.fakes_reward import write_pairs
from tests.test_report import Page

# `algorithm` as it was written when one kind of objective held all losses.
OF_POLICY = {
    "baseline": "none",
    "scale": "none",
    "ratio": "token",
    "surrogate": "score_function",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "aggregate": "sequence_sum",
    "reward_coef": 1.0,
    "advantage_clip": 0.0,
    "kl": "none",
    "kl_coef": 0.0,
    "label_smoothing": 0.0,
    "kl_in": "loss",
    "kl_target": 0.0,
    "entropy_coef": 0.0,
    "gamma": 1.0,
    "gae_lambda": 1.0,
    "value_clip": 0.0,
    "correction": "none",
    "correction_range": [0.0, 2.0],
    "overlong": "count",
    "max_refills": 0,
}


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the config in both files of a run directory that hold it."""
    yaml, provenance = YAML(), json.loads((run / "provenance.json").read_text())
    tree = yaml.load((run / "config.yaml").read_text())
    change(tree)
    change(provenance["config"])
    with (run / "config.yaml").open("w") as file:
        yaml.dump(tree, file)
    (run / "provenance.json").write_text(json.dumps(provenance))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"preset": "online_dpo", "surrogate": "sigmoid", "kl_coef": 0.1}, {}),
        ({"preset": "online_dpo", "surrogate": "kto", "kl_coef": 0.5}, {"loss": "kto", "beta": 0.5}),
        (
            {"preset": "grpo", "surrogate": "sigmoid", "kl_coef": 0.3, "label_smoothing": 0.1},
            {"beta": 0.3, "label_smoothing": 0.1},
        ),
        (
            {"preset": "dapo", "surrogate": "ipo", "kl_coef": 1.0, "overlong": "penalize", "max_refills": 2},
            {"loss": "ipo", "beta": 1.0, "overlong": "penalize", "max_refills": 2},
        ),
    ],
)
def test_what_was_a_surrogate_is_a_loss(written: dict[str, Any], meant: dict[str, Any]) -> None:
    tree = {"algorithm": {**OF_POLICY, **written}}
    modernise(tree)
    assert tree == {"algorithm": asdict(PreferenceObjective(preset="online_dpo", **meant))}
    again = copy.deepcopy(tree)
    modernise(again)
    assert again == tree


def test_a_policy_objective_stays_what_it_was() -> None:
    row = asdict(PRESETS["ppo"])
    tree = {"algorithm": {**row, "label_smoothing": 0.0}, "learner": {"critic_lr": 0.1}, "adapter": {"start": "x"}}
    modernise(tree)
    assert tree == {"algorithm": row, "learner": {"critic_lr": 0.1}, "adapter": {"start": "x"}}


def test_settings_without_a_use_are_dropped() -> None:
    for kind, kept in (("dpo", ["adapter"]), ("reward-model", ["learner"])):
        tree: dict[str, Any] = {"kind": kind, "learner": {"critic_lr": 0.1}, "adapter": {"start": ""}}
        modernise(tree)
        assert [name for name in ("learner", "adapter") if tree[name]] == kept


def test_an_online_run_is_resumed(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("algorithm={preset: online_dpo, beta: 0.2}", "checkpoint.every=2", "evaluation.tasks=2")
    whole, cut = make_config(*settings, "name=whole"), make_config(*settings, "name=cut")
    launch.train(whole)
    stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        launch.train(cut)

    def write_as_before(tree: dict[str, Any]) -> None:
        tree["algorithm"] = {"preset": "online_dpo", **OF_POLICY, "surrogate": "sigmoid", "kl_coef": 0.2}

    rewrite(cut.run_dir, write_as_before)
    assert "online_dpo" in Page(write_report(cut.run_dir)).text
    assert read_config(cut.run_dir, RunConfig) == cut
    launch.resume(cut.run_dir)
    one, other = read_result(whole.run_dir), read_result(cut.run_dir)
    assert [name for name in one if one[name] != other[name]] == ["summary.json"]  # it holds the run's name
    # A fork is told in today's words.
    fork, _ = launch.resume(cut.run_dir, How(fork="other", overrides=("algorithm.beta=0.5", "steps=5")))
    assert read_config(fork, RunConfig).algorithm == PreferenceObjective(preset="online_dpo", beta=0.5)
    with pytest.raises(ValueError, match=r"^override algorithm\.kl_coef=0\.5: this key has no place here"):
        launch.resume(cut.run_dir, How(fork="third", overrides=("algorithm.kl_coef=0.5",)))
    done = CliRunner().invoke(main.app, ["evaluate", str(cut.run_dir)], catch_exceptions=False)
    assert json.loads(done.stdout)["adapter"].endswith("v000004")


def test_a_preference_run_is_resumed(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "name": "tiny",
        "output_dir": str(tmp_path / "runs"),
        "model": {"source": str(tiny_model), "dtype": "float32"},
        "adapter": {"rank": 4},
        "data": {"source": str(write_pairs(tmp_path / "pairs.jsonl", 24)), "heldout": 0.2},
        "batch_size": 4,
        "learner": {"threads": 1},
        "checkpoint": {"every": 1},
    }
    config = PreferenceConfig.model_validate(tree)
    stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        launch_dpo.train(config)
    rewrite(config.run_dir, lambda tree: tree["learner"].update(critic_lr=5e-4))
    launch_dpo.resume(config.run_dir)
    assert len(read_metrics(config.run_dir)) > 2


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt the next run when it logs this step."""
    log = Run.log

    def stop(self: Any, number: int, metrics: Any) -> None:
        if number == step:
            monkeypatch.setattr(Run, "log", log)
            raise KeyboardInterrupt
        log(self, number, metrics)

    monkeypatch.setattr(Run, "log", stop)
