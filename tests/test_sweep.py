"""Sweeps: the trials that settings name, trials that are killed or fail, what is told of too few seeds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlft import config_file
from rlft.cli import main
from rlft.common.asha import Asha
from rlft.config import BaseRunConfig
from rlft.run.directory import Run
from rlft.run.records import Provenance
from rlft.train.sweep import trials as running
from rlft.train.sweep.early_stopping import EarlyStopping, Plan, plan_of, stopped_steps
from rlft.train.sweep.grid import Trial, trials_of, values_of
from rlft.train.sweep.table import largest_of, of_the_best, table_of, too_few
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


def test_a_metric_that_no_trial_measures_is_refused_before_anything_starts(file: Path) -> None:
    def swept(*more: str, of: Path = file) -> str:
        result = CliRunner().invoke(main.app, ["sweep", str(of), "seed=0..1", "--dry-run", *more])
        return "" if result.exit_code == 0 else str(result.exception)

    reward = config_file.load(file).rewards[0].label
    assert swept() == swept("--metric", reward) == swept("--metric", f"{reward}/part") == ""
    told = swept("--metric", "nope")
    assert f"seed_0: --metric: no reward is named 'nope'. There are: {reward}" in told.replace("\n", " ")
    # The config's own headline is looked at before the first trial, too, and in each of them.
    told = swept(f"evaluation.metric={reward},gone")
    assert "seed_0-metric_gone: evaluation.metric: no reward is named 'gone'" in told
    assert swept("--metric", "logprob", of=SHIPPED / "sft.yaml") == ""
    assert "`rlft sft` measures no 'nope'" in swept("--metric", "nope", of=SHIPPED / "sft.yaml")
    assert "only 'preference'" in swept("--metric", "nope", of=SHIPPED / "dpo.yaml")
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
    assert told[0] == "1 of 5 trials have ended"
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


# Early stopping.

PLAN = Plan(metric="", of_steps="", max_steps=9, grace_period=1, factor=3.0)


def asha() -> Asha:
    return Asha(max_steps=PLAN.max_steps, grace_period=PLAN.grace_period, reduction_factor=PLAN.factor)


def test_asha_stops_those_that_are_worse_than_most_at_a_rung() -> None:
    scheduler = asha()
    assert PLAN.rungs == [1, 3]
    # At step 1 the first one has nobody beside it. 0.2 is below the upper third of {0.5}; 0.6 and 0.7 are above all.
    assert [scheduler.is_to_stop(*report) for report in [("a", 1, 0.5), ("b", 1, 0.2), ("c", 1, 0.6)]] == [
        False, True, False,
    ]  # fmt: skip
    assert not scheduler.is_to_stop("a", 2, 0.0)  # between two rungs nothing is compared
    assert not scheduler.is_to_stop("c", 3, 0.6)
    assert scheduler.is_to_stop("a", 3, 0.5)
    assert not scheduler.is_to_stop("c", 9, 0.0)  # its end


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, r"makes none before its end at step 4 \(evaluation.every=0\). Add evaluation.every=1, .*reward/mean"),
        ({"of_steps": "reward/mean", "grace_period": 4}, "--grace-period 4: trials end at step 4, .* between 1 and 3"),
        ({"of_steps": "reward/mean", "factor": 1.0}, "--reduction-factor 1: "),
    ],
)
def test_asha_is_refused_where_it_has_nothing_to_compare(file: Path, changes: dict[str, Any], told: str) -> None:
    found = trials_of(file, ["seed=0..1"], name="", load=load)
    arguments = {"metric": "", "of_steps": "", "grace_period": None, **changes}
    with pytest.raises(ValueError, match=told):
        plan_of(found, **arguments)
    with pytest.raises(ValueError, match=r"asha is for RL runs.*evaluation.patience"):
        plan_of([Trial(config=found[0].config, command="sft", values={}, overrides=[])], **arguments)


def test_asha_compares_by_the_mean_of_the_newest_steps(file: Path) -> None:
    found = trials_of(file, ["seed=0..1"], name="", load=load)
    plan = plan_of(found, metric="", of_steps="reward/mean", grace_period=2)
    assert (plan.grace_period, plan.rungs) == (2, [2])
    assert plan_of(found, metric="", of_steps="reward/mean", grace_period=None).rungs == [1, 3]
    found[0].path.mkdir(parents=True)
    reports: list[tuple[str, int, float]] = []

    class Recorder:
        def is_to_stop(self, run: str, step: int, value: float) -> bool:
            reports.append((run, step, value))
            return False

    stopping = EarlyStopping(found[0].path.parent, plan, Recorder())
    metrics = found[0].path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "reward/mean": 0.2}\n{"step": 2, "reward/mean": 0.4}\n{"step": 3, "rew')
    assert stopping.step_to_stop(found[0]) is None
    metrics.write_text(metrics.read_text() + 'ard/mean": 0.8}\n')
    assert stopping.step_to_stop(found[0]) is None
    assert reports == [("seed_0", 1, 0.2), ("seed_0", 2, pytest.approx(0.3)), ("seed_0", 3, pytest.approx(0.6))]
    metrics.write_text(metrics.read_text() + '{"step": 4, "reward/std": 0.1}\n')
    with pytest.raises(ValueError, match=r"seed_0: step 4 has no metric 'reward/mean'|has no 'reward/mean'"):
        stopping.step_to_stop(found[0])


MEASURES = """
import json, pathlib, signal, sys, time
run, values = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
def end(*_):
    (run / "saved").write_text("")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
(run / "evals").mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text("name: x")
for step, value in values:
    accuracy = {"mean": value, "low": value, "high": value, "n": 1}
    record = {"name": "", "step": step, "adapter_version": 1, "adapter_hash": "", "metric": "right",
              "accuracy": accuracy, "failed": 0, "length": 1.0, "truncated": 0.0, "by_task": {"t": [value]}}
    whole = run / "evals" / f".{step}"
    whole.write_text(json.dumps(record))
    whole.rename(run / "evals" / f"step-{step:06d}.json")
if len(values) == 1:
    time.sleep(20)
(run / "summary.json").write_text("{}")
"""


def test_a_stopped_trial_saves_what_it_has_and_is_not_started_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trials_of(file, ["seed=0..2"], name="", load=load)
    values = {"seed_0": [(1, 0.5), (3, 0.6), (9, 0.9)], "seed_1": [(1, 0.2)], "seed_2": [(1, 0.6), (3, 0.7), (9, 0.8)]}
    started: list[str] = []

    def command(file: Path, trial: Trial, *, has_begun: bool) -> list[str]:
        name = trial.path.name
        started.append(name)
        return [sys.executable, "-S", "-c", MEASURES, str(trial.path), json.dumps(values[name])]

    monkeypatch.setattr(running, "command_of", command)
    monkeypatch.setattr(running, "LOOK_EVERY_S", 0.05)
    told: list[str] = []

    def sweep() -> list[running.Failure]:
        return running.run_trials(
            file,
            found,
            max_concurrent=1,
            tell=told.append,
            make_stopping=lambda folder: EarlyStopping(folder, PLAN, asha()),
        )

    assert sweep() == []
    assert stopped_steps(found[0].path.parent) == {"seed_1": 1}
    assert (found[1].path / "saved").exists()
    assert started == ["seed_0", "seed_1", "seed_2"]
    assert f"seed_1: is stopped at step 1 by asha; rlft resume {found[1].path} continues it" in told
    assert running.has_ended(found[2])
    # The sweep goes on: what was decided stands, and a new trial meets the cutoffs of the earlier ones.
    found += trials_of(file, ["seed=3,4"], name="", load=load)
    values |= {"seed_3": [(1, 0.52)], "seed_4": [(1, 0.65), (3, 0.8)]}
    del told[:]
    assert sweep() == []
    assert told[0] == "2 of 5 trials have ended, 1 stopped early"
    assert started[3:] == ["seed_3", "seed_4"]
    assert stopped_steps(found[0].path.parent) == {"seed_1": 1, "seed_3": 1}
    # Without a scheduler they are brought to their end like any that was interrupted.
    values |= {name: [(1, 0.2), (9, 0.2)] for name in ("seed_1", "seed_3")}
    assert running.run_trials(file, found, max_concurrent=1, tell=told.append) == []
    assert started[5:] == ["seed_1", "seed_3"]
    assert all(map(running.has_ended, found))
    with pytest.raises(ValueError, match=r"compared by held-out headline, and now it is held-out brief; .*--name"):
        EarlyStopping(
            found[0].path.parent, Plan(metric="brief", of_steps="", max_steps=9, grace_period=1, factor=3.0), asha()
        )


def test_what_was_stopped_is_in_no_comparison(tmp_path: Path) -> None:
    found = made_up(tmp_path, [0.3, 0.9, 0.5, 0.3], seeds=5)
    stopped = {"lr_3e-4-seed_0": 10, "lr_3e-4-seed_3": 20, **{f"lr_4e-4-seed_{seed}": 10 for seed in range(5)}}
    lines = table_of(found, "", tmp_path, stopped)
    assert [(line.label, len(line.scores), list(line.stopped), line.verdict) for line in lines] == [
        ("lr=1e-4", 5, [], ""),
        ("lr=2e-4", 5, [], "better"),
        ("lr=3e-4", 3, [10, 20], "stopped early"),
        ("lr=4e-4", 0, [10] * 5, "stopped early"),
    ]
    assert lines[1].p == lines[1].comparison.headline.p  # type: ignore[union-attr]  # the only one that is compared
    assert too_few(lines) == ""
    json.dumps([line.as_dict() for line in lines], allow_nan=False)
    of_first = table_of(found, "", tmp_path, {"lr_1e-4-seed_0": 10})
    assert [line.verdict for line in of_first] == ["stopped early", "", "", ""]
    assert too_few(of_first) == ""


def test_the_best_of_many_is_said_to_be_too_high(tmp_path: Path) -> None:
    # Expected maxima of 1, 2 and 3 standard normal numbers: 0, 1 / sqrt(pi), 1.5 / sqrt(pi).
    assert [largest_of(count) for count in (1, 2, 3)] == pytest.approx([0, 0.56419, 0.84628], abs=1e-5)
    lines = table_of(made_up(tmp_path / "seeds", [0.3, 0.7, 0.3], seeds=4), "", tmp_path)
    spread = np.sqrt(np.mean([np.var(line.scores, ddof=1) for line in lines]))
    assert "lr=2e-4 has the highest mean of 3 configurations" in of_the_best(lines)
    assert f"still be about {spread / 2 * 0.84628:.2g} too high" in of_the_best(lines)
    single = table_of(made_up(tmp_path / "single", [0.3, 0.7, 0.3], seeds=1), "", tmp_path)
    assert "it would still be at least 0.032 too high" in of_the_best(single)  # 150 tasks: 0.85 * sqrt(0.21 / 150)


# The command.

SHIPPED = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(("kind", "setting"), [("sft", "learner.lr=1e-5,1e-4"), ("dpo", "seed=0..1")])
def test_the_kind_of_a_config_is_seen(tmp_path: Path, kind: str, setting: str) -> None:
    arguments = [str(SHIPPED / f"{kind}.yaml"), setting, f"output_dir={tmp_path}", "--name", "two", "--dry-run"]
    result = CliRunner().invoke(main.app, ["sweep", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.exception
    assert f"2 trials in {tmp_path / 'two'}, 1 at a time" in result.output
    assert result.output.count(": to do") == 2


@pytest.mark.parametrize("kind", ["head", "reward_model"])
def test_what_trains_no_policy_is_refused(kind: str) -> None:
    result = CliRunner().invoke(main.app, ["sweep", str(SHIPPED / f"{kind}.yaml"), "seed=0..1", "--dry-run"])
    told = f"this is a config of `rlft {kind.replace('_', '-')}`; a sweep compares .* train, sft, dpo"
    assert re.search(told, str(result.exception))


def test_a_wrong_setting_of_sft_is_told_as_one_of_sft() -> None:
    result = CliRunner().invoke(main.app, ["sweep", str(SHIPPED / "sft.yaml"), "epoch=1,2", "--dry-run"])
    assert "epoch=1: unknown key. Did you mean 'epochs'" in str(result.exception)
