"""Sweeps: the trials that settings name, trials that are killed or fail, what is told of too few seeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlft import config_file
from rlft.config import BaseRunConfig
from rlft.run.directory import Run
from rlft.run.records import Provenance
from rlft.train.sweep import trials as running
from rlft.train.sweep.grid import Trial, trials_of, values_of
from rlft.train.sweep.table import table_of, too_few
from tests.fakes import tiny_config
from tests.synthetic_runs import write_run

ORIGIN = Provenance(config={}, sha256={}, started="2026-01-01T00:00:00+00:00")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(config_file.dump(tiny_config("model", output_dir=str(tmp_path / "runs"))))
    return path


def load(path: Path, overrides: Sequence[str]) -> BaseRunConfig:
    return config_file.load(path, overrides)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("learner.lr=1e-4,3e-4", ["1e-4", "3e-4"]),
        ("seed=0..3", ["0", "1", "2", "3"]),
        ("seed=7,0..1", ["7", "0", "1"]),
        ("adapter.target_modules=[q_proj, v_proj],all-linear", ["[q_proj, v_proj]", "all-linear"]),
        ('sampling.stop=["a,b"]', ['["a,b"]']),
        ("environment.path=", [""]),
    ],
)
def test_values_of_a_setting(setting: str, values: list[str]) -> None:
    assert values_of(setting) == (setting.partition("=")[0], values)


def test_every_combination_is_a_run_with_its_settings(file: Path) -> None:
    found = trials_of(file, ["learner.lr=1e-4,3e-4", "steps=3", "seed=0..1"], name="mine", load=load)
    assert [trial.path.name for trial in found] == [
        "lr_1e-4-seed_0", "lr_1e-4-seed_1", "lr_3e-4-seed_0", "lr_3e-4-seed_1",
    ]  # fmt: skip
    assert {trial.path.parent.name for trial in found} == {"mine"}
    configs: Any = [trial.config for trial in found]
    assert [(c.learner.lr, c.seed, c.steps) for c in configs] == [
        (1e-4, 0, 3), (1e-4, 1, 3), (3e-4, 0, 3), (3e-4, 1, 3),
    ]  # fmt: skip
    assert [trial.label for trial in found] == ["lr=1e-4", "lr=1e-4", "lr=3e-4", "lr=3e-4"]
    assert [config_file.load(file, trial.overrides) for trial in found] == configs


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["learner.lrr=1,2"], "learner.lrr=1: unknown key. Did you mean 'lr'"),
        (["learner.lr=1e-4,fast"], "learner.lr=fast: .*valid number"),
        (["seed=4..0"], "runs backwards; write 0..4"),
        (["seed=0..5000"], "more than 1000 values"),
        (["seed=1"], "nothing varies: .*rlft train"),
        (["seed=1,,2"], "a value is empty"),
        (["seed=1,1"], "the value 1 stands twice"),
        (["seed=1,2", "seed=3"], "seed stands twice"),
        (["learner.lr=0.1,0.10"], "are the same settings"),
        (["seed"], "expected key.sub=value"),
        (["name=a,b"], "--name"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_starts(file: Path, settings: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        trials_of(file, settings, name="", load=load)
    assert not (file.parent / "runs").exists()


def test_a_folder_with_runs_of_other_settings_is_refused(file: Path) -> None:
    found = trials_of(file, ["seed=0..1"], name="", load=load)
    Run.create(found[0].config, provenance=ORIGIN).__exit__(None, None, None)
    running.check_same(found)
    running.check_same(trials_of(file, ["seed=0..2", "rollout.workers=3"], name="", load=load))  # decides no number
    with pytest.raises(ValueError, match=r"seed_0 was made with learner.lr=.* now it is 0.5; .*--name"):
        running.check_same(trials_of(file, ["seed=0..1", "learner.lr=0.5"], name="", load=load))


BEGIN = "import os, pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True, exist_ok=True); "
DONE = BEGIN + "(p / 'summary.json').write_text('{}')"
KILLED = BEGIN + "(p / 'config.yaml').write_text('name: x'); os.kill(os.getpid(), 9)"
WRONG = BEGIN + "print('error: the reward is wrong'); sys.exit(1)"


def test_killed_trials_are_resumed_and_failed_ones_stop_no_other(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trials_of(file, ["seed=0..4"], name="", load=load)
    started: list[tuple[str, bool]] = []

    def command(file: Path, trial: Trial, *, has_begun: bool) -> list[str]:
        name = trial.path.name
        started.append((name, has_begun))
        code = {"seed_1": DONE if has_begun else KILLED, "seed_2": WRONG, "seed_3": KILLED}.get(name, DONE)
        return [sys.executable, "-S", "-c", code, str(trial.path)]

    monkeypatch.setattr(running, "command_of", command)
    found[4].path.mkdir(parents=True)
    (found[4].path / "summary.json").write_text("{}")  # of an earlier start of the sweep
    told: list[str] = []
    failures = running.run_trials(file, found, max_concurrent=2, tell=told.append)
    assert {failure.trial.path.name: failure.reason.partition(" (")[0] for failure in failures} == {
        "seed_2": "the reward is wrong",
        "seed_3": "killed 4 times",
    }
    assert [has_begun for name, has_begun in started if name == "seed_1"] == [False, True]
    assert [has_begun for name, has_begun in started if name == "seed_3"] == [False, True, True, True]
    assert [name for name, _ in started if name in ("seed_0", "seed_2", "seed_4")] == ["seed_0", "seed_2"]
    assert told[0] == "1 of 5 trials are done"
    assert "seed_1: was killed by SIGKILL; it is resumed" in told


def made_up(folder: Path, means: Sequence[float], seeds: int) -> list[Trial]:
    """Trials of as many learning rates as there are means, whose runs have such held-out means."""
    rng = np.random.default_rng(3)
    found = []
    for index, mean in enumerate(means):
        lr = f"{index + 1}e-4"
        for seed in range(seeds):
            config = tiny_config("model", name=f"lr_{lr}-seed_{seed}", output_dir=str(folder), seed=seed)
            values = {f"t{task}": [float(rng.random() < mean)] for task in range(150)}
            write_run(config.run_dir, values, seed=seed, lr=float(lr))  # type: ignore[arg-type]
            found.append(
                Trial(config=config, command="train", values={"learner.lr": lr, "seed": str(seed)}, overrides=[])
            )
    return found


def test_a_difference_is_told_where_the_seeds_are_enough(tmp_path: Path) -> None:
    lines = table_of(made_up(tmp_path, [0.3, 0.7, 0.3], seeds=5), "", tmp_path)
    assert [(line.label, len(line.scores), line.verdict) for line in lines] == [
        ("lr=1e-4", 5, ""), ("lr=2e-4", 5, "better"), ("lr=3e-4", 5, "cannot tell"),
    ]  # fmt: skip
    assert too_few(lines) == ""
    assert lines[1].p >= lines[1].comparison.headline.p * 2  # type: ignore[union-attr]
    assert lines[0].mean.low < 0.3 < lines[0].mean.high
    assert "lr=2e-4" in (tmp_path / "compare-1.html").read_text()
    json.dumps([line.as_dict() for line in lines], allow_nan=False)


@pytest.mark.parametrize(("seeds", "needed"), [(1, 5), (3, 5), (4, 5)])
def test_too_few_seeds_tell_nothing(tmp_path: Path, seeds: int, needed: int) -> None:
    lines = table_of(made_up(tmp_path, [0.2, 0.8, 0.8], seeds=seeds), "", tmp_path)
    assert [line.verdict for line in lines[1:]] == ["cannot tell", "cannot tell"]
    assert f"with 2 compared it takes at least {needed} seeds each" in too_few(lines)
