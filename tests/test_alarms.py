"""Alarms: each planted fault is named near its onset, healthy runs have none, what cannot be told is said."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.healthy_runs import healthy_rows
from rlft.cli import main
from rlft.curves.alarms import ALARMS, Health, alarms_from, alarms_of
from rlft.curves.alarms.course import Course, course_of, jump, onset, shift, trend
from rlft.curves.alarms.detectors import DETECTORS
from rlft.curves.alarms.evidence import _KEYS, samples_for
from rlft.curves.alarms.seen import Found
from rlft.curves.alarms.watch import is_looked_at
from rlft.curves.statistics import mean_interval
from rlft.train.rl.metrics import describe
from tests.fakes import made_up_group
from tests.fakes_run import append, rollout, write_config, write_json, write_rollouts
from tests.test_report import Page

STEPS, ONSET = 200, 101
Row = dict[str, float]


def quiet_rows(steps: int = STEPS) -> list[Row]:
    """A healthy run whose reward rises to 0.7 by half of it and a little more after, with little noise."""
    random = np.random.default_rng(1)
    rows = []
    for step in range(1, steps + 1):
        skill, jitter = 1 - math.exp(-3 * step / steps), random.standard_normal(12)
        rows.append(
            {
                "step": step,
                "reward/mean": 0.2 + 0.55 * skill + 0.02 * jitter[0],
                "reward/std": 0.4,
                "reward/part/answer": 0.1 + 0.5 * skill + 0.02 * jitter[1],
                "reward/part/shape": 0.1 + 0.3 * skill + 0.02 * jitter[2],
                "reward/part/truth": 0.1 + 0.4 * skill + 0.02 * jitter[3],
                "groups/with_signal": 0.8 + 0.03 * jitter[4],
                "groups/solved_all": 0.1,
                "policy/entropy": 1.5 * (1 - 0.3 * skill) + 0.03 * jitter[5],
                "policy/kl_ref": 0.02 + 0.05 * skill + 0.002 * jitter[6],
                "policy/grad_norm": math.exp(0.2 * jitter[7]),
                "policy/clip_fraction": 0.08 + 0.01 * jitter[8],
                "policy/mismatch": 0.01 * math.exp(0.1 * jitter[9]),
                "critic/explained_variance": 0.2 + 0.4 * skill + 0.03 * jitter[10],
                "rollout/length": 200 + 5 * jitter[11],
                "rollout/truncated": 0.03 + 0.005 * jitter[0],
                "rollout/repetition": 0.05 + 0.005 * jitter[1],
                "rollout/duplicates": 0.1 + 0.02 * jitter[2],
                "time/step": 20 + 0.5 * jitter[3],
                "time/tokens_per_s": 600 + 15 * jitter[4],
            }
        )
    return rows


def plant(**faults: Callable[[float, float], float]) -> list[Row]:
    """The rows with metrics changed from `ONSET` on: by (their value, how much of the rest is gone, 0 to 1)."""
    rows = quiet_rows()
    for row in rows[ONSET - 1 :]:
        gone = (row["step"] - ONSET + 1) / (STEPS - ONSET + 1)
        for name, change in faults.items():
            row[name.replace("__", "/")] = change(row[name.replace("__", "/")], gone)
    return rows


FAULTS: dict[str, list[Row]] = {
    "entropy_collapse": plant(
        policy__entropy=lambda v, t: v * math.exp(-5 * t), reward__mean=lambda v, t: 0.6 + 0.02 * math.sin(40 * t)
    ),
    "kl_without_reward": plant(
        policy__kl_ref=lambda v, t: v * math.exp(4 * t), reward__mean=lambda v, t: 0.6 + 0.02 * math.sin(40 * t)
    ),
    "length_with_reward": plant(rollout__length=lambda v, t: v * (1 + 2 * t), reward__mean=lambda v, t: v + 0.5 * t),
    "part_against_part": plant(
        reward__part__shape=lambda v, t: v + 0.6 * t, reward__part__truth=lambda v, t: v - 0.3 * t
    ),
    "repetition": plant(rollout__repetition=lambda v, t: v + 0.5 * t),
    "truncation": plant(rollout__truncated=lambda v, t: v + 0.6 * min(1, 2 * t)),
    "no_signal": plant(groups__with_signal=lambda v, t: v - 0.7 * t),
    "reward_collapse": plant(reward__mean=lambda v, t: max(0.05, v - 1.5 * t)),
    "clip_saturation": plant(policy__clip_fraction=lambda v, t: v + 0.35),
    "critic_diverges": plant(critic__explained_variance=lambda v, t: v - 1.2 * t),
    "mismatch": plant(policy__mismatch=lambda v, t: v + 0.3 * t),
    "throughput": plant(time__step=lambda v, t: v * (1 + t), time__tokens_per_s=lambda v, t: v / (1 + t)),
}


def names(health: Health) -> list[str]:
    return [alarm.name for alarm in health.alarms]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_near_its_onset(name: str) -> None:
    health = alarms_from(FAULTS[name])
    assert name in names(health)
    alarm = next(each for each in health.alarms if each.name == name)
    assert abs(alarm.onset - ONSET) <= STEPS / 10
    assert alarm.seen == STEPS
    assert health.exit_code == 1
    assert alarm.meaning.endswith(".")
    assert alarm.advice.endswith(".")
    assert alarms_from(FAULTS[name][: ONSET - 1]).alarms == (), "nothing before it begins"


def test_single_steps_are_named_where_they_are() -> None:
    rows = quiet_rows()
    rows[79]["reward/mean"] = 3.0
    for step in (50, 90, 130):
        rows[step - 1]["policy/grad_norm"] = 60.0
    assert {alarm.name: alarm.onset for alarm in alarms_from(rows).alarms} == {
        "reward_spike": 80,
        "gradient_spikes": 50,
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_edge_of_a_collapse_is_its_onset_and_no_spike(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for step in range(1, 121):
        right = random.binomial(64, 0.3 + 0.1 * min(step, 31) / 31 + 0.03 * random.standard_normal()) / 64
        rows.append({"step": step, "reward/mean": right if step < 31 else 0.0, "reward/std": 0.4})
    found = {alarm.name: alarm for alarm in alarms_from(rows).alarms}
    assert "reward_spike" not in found, found["reward_spike"].evidence
    assert found["reward_collapse"].onset == 31
    assert found["reward_collapse"].evidence.endswith(" in steps 1 to 24")
    quiet = [{**row, "reward/mean": 0.35 + 0.02 * random.standard_normal()} for row in rows[:30]] + rows[30:]
    for row in quiet[9:11]:
        row["reward/mean"] = 1.0  # which comes back, and is one before a collapse, too
    spikes = {alarm.name: alarm for alarm in alarms_from(quiet).alarms}["reward_spike"]
    assert (spikes.onset, spikes.numbers["steps"]) == (10, 2)


def test_a_jump_is_told_from_a_slope() -> None:
    random, steps = np.random.default_rng(3), np.arange(1.0, 101.0)
    noise = 0.02 * random.standard_normal(100)
    assert jump(Course(steps, np.where(steps < 41, 0.5, 0.1) + noise), -1, 0.2) == 41
    assert jump(Course(steps, np.where(steps < 41, 0.1, 0.5) + noise), 1, 0.2) == 41
    assert jump(Course(steps, np.where(steps < 41, 0.1, 0.5) + noise), -1, 0.2) is None
    slope = np.interp(steps, [41, 71], [0.5, 0.1])
    assert jump(Course(steps, slope + noise), -1, 0.2) is None
    assert jump(Course(steps, np.where(steps < 41, 0.5, 0.4) + noise), -1, 0.2) is None


def test_what_is_not_finite_is_named_from_the_first_step_on() -> None:
    rows = quiet_rows(3)
    rows[1]["policy/loss"] = math.nan
    (alarm,) = alarms_from(rows).alarms
    assert (alarm.name, alarm.onset, alarm.severity) == ("not_finite", 2, "warning")
    for row in rows:
        row["policy/skipped"] = 1.0
    assert alarms_from(rows).alarms[0].severity == "critical"


def test_a_shadow_that_turns_is_a_gap_and_without_one_it_cannot_be_told() -> None:
    rows = quiet_rows()
    for row in rows:
        step = row["step"]
        row["reward/mean"] = 0.2 + 0.003 * step + 0.02 * math.sin(step)
        row["reward/part/wanted"] = 0.2 + 0.003 * min(step, 80) - 0.003 * max(0, step - 80) + 0.02 * math.sin(2 * step)
    health = alarms_from(rows, shadows=["wanted"])
    (alarm,) = health.alarms
    assert (alarm.name, alarm.severity) == ("shadow_gap", "critical")
    assert abs(alarm.onset - 80) <= 20
    blind = alarms_from(quiet_rows())
    assert blind.alarms == ()
    assert "no reward has role: shadow" in {each.name: each.reason for each in blind.unable}["shadow_gap"]
    assert (blind.state, blind.exit_code) == ("healthy", 0), "what is not measured is no alarm"


def test_what_learning_looks_like_is_no_alarm() -> None:
    rows = quiet_rows()
    for row in rows:
        gone = row["step"] / STEPS
        row["reward/mean"] = 0.2 + 0.7 * gone  # it rises to the end
        row["policy/entropy"] = 1.5 * math.exp(-3 * gone)  # to a twentieth
        row["groups/with_signal"] = 0.9 - 0.7 * gone  # since most tasks are solved
        row["groups/solved_all"] = 0.05 + 0.7 * gone
        row["rollout/duplicates"] = 0.1 + 0.7 * gone
        row["policy/kl_ref"] = 0.5 * gone
    assert alarms_from(rows).alarms == ()
    for row in rows:
        row["groups/solved_all"] = 0.0  # the same groups out of reach instead
    assert names(alarms_from(rows)) == ["no_signal"]


def test_a_reward_that_all_samples_get_is_solved_only_if_there_was_a_lower_and_no_higher_one() -> None:
    def run(end: float, others: float = 0.0, begin: float = 0.15) -> Health:
        """A share that rises gets 1 and the others `others`, until all of them get `end`."""
        random_ = random.Random(0)
        rows = []
        for step in range(1, 61):
            chance = min(1.0, begin + step * 0.03)
            groups = [
                made_up_group(
                    [end if chance == 1 else 1.0 if random_.random() < chance else others for _ in range(8)],
                    task_id=str(task),
                )
                for task in range(8)
            ]
            rows.append({"step": step, **describe(groups)})
        return alarms_from(rows)

    assert names(run(1.0)) == []
    assert "no_signal" in names(run(0.7, others=0.7))  # it had 1 before
    assert "no_signal" in names(run(0.0, begin=1.0))  # and this one never anything else


def test_a_policy_that_collapsed_within_its_first_steps_is_not_healthy() -> None:
    def run(solved: float, idle: int) -> list[dict[str, float]]:
        """30 steps; of those from the third on, `idle` in ten have no group that teaches anything."""
        signal = [0.3, 0.3, *(0.0 if step % 10 < idle else 0.1 for step in range(28))]
        return [
            {"step": step, "reward/mean": 0.05, "groups/with_signal": each, "groups/solved_all": solved}
            for step, each in enumerate(signal, start=1)
        ]

    (alarm,) = alarms_from(run(0.0, 8)).alarms
    assert (alarm.name, alarm.severity, alarm.onset) == ("no_signal", "critical", 3)
    assert [each.severity for each in alarms_from(run(0.0, 5)).alarms] == ["warning"]
    assert names(alarms_from(run(0.0, 3))) == []
    assert names(alarms_from(run(0.95, 8))) == []  # solved


def test_too_few_steps_cannot_be_called_healthy() -> None:
    for steps in (0, 1, 19):
        health = alarms_from(quiet_rows(steps))
        assert (health.state, health.exit_code) == ("cant_tell", 2)
    assert alarms_from(quiet_rows(20)).exit_code == 0


def test_at_most_one_healthy_run_in_twenty_has_an_alarm_at_any_look() -> None:
    # The whole table is printed by `make bench-alarms`; these are fixed seeds of it.
    raised = {
        (steps, seed): sorted({name for end in ends for name in names(alarms_from(rows[:end], shadows=["observed"]))})
        for steps, runs in ((30, 30), (60, 10))
        for seed in range(runs)
        for rows in [healthy_rows(steps, seed)]
        for ends in [[step for step in range(1, steps + 1) if is_looked_at(step) or step == steps]]
    }
    told = {run: alarms for run, alarms in raised.items() if alarms}
    assert len(told) <= len(raised) / 20, told


def test_every_alarm_has_a_detector_and_words() -> None:
    assert set(DETECTORS) == set(ALARMS)


def test_a_shift_needs_more_than_what_neighbouring_steps_share() -> None:
    random = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        values = np.zeros(100)
        for step in range(1, 100):
            values[step] = 0.8 * values[step - 1] + random.standard_normal()
        false += shift(Course(np.arange(100.0), values)).is_real
    assert false <= 6, "3 %: each alarm asks for a large change, too"
    assert shift(Course(np.arange(100.0), np.r_[np.zeros(50), np.ones(50)] + 0.1 * random.standard_normal(100))).is_real


def test_onset_and_trend_by_hand() -> None:
    steps = np.arange(1.0, 101.0)
    bent = Course(steps, np.maximum(0.0, steps - 60))
    assert abs(onset(bent, 1) - 60) <= 3
    assert abs(onset(Course(steps, -bent.values), -1) - 60) <= 3
    # A straight line has gone a tenth of its way after a tenth of its steps.
    assert abs(onset(Course(steps, steps), 1) - 10) <= 3
    over = trend(Course(steps, steps))
    assert over.rises()
    assert over.change == pytest.approx(100, rel=0.05)
    assert not trend(Course(steps, np.sin(steps))).rises()
    assert len(course_of([{"step": 1, "a": math.nan}, {"step": 2}, {"step": 3, "a": 1.0}], "a")) == 1


def write_run(folder: Path, rows: list[Row]) -> Path:
    """A run directory with these metrics and with rollouts of its last steps; those of task 0 are hostile and cut."""
    write_config(folder, len(rows))
    for row in rows:
        append(folder / "metrics.jsonl", row)
    for step in range(len(rows) - 2, len(rows) + 1):
        samples = [
            rollout(step, group, sample, completion=f"\x1b[31m{group} <b>{sample}</b>", finish_reason=reason)
            for group, reason in ((0, "length"), (1, "stop"))
            for sample in range(4)
        ]
        write_rollouts(folder / "rollouts" / f"step-{step:06d}.parquet", samples)
    return folder


def test_the_command_shows_samples_and_exits_with_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.setenv("COLUMNS", "150")
    runs = {0: write_run(tmp_path / "well", quiet_rows()), 1: write_run(tmp_path / "cut", FAULTS["truncation"])}
    runs[2] = write_run(tmp_path / "short", quiet_rows(5))
    for code, run in runs.items():
        shown = CliRunner().invoke(main.app, ["health", str(run)])
        assert shown.exit_code == code, shown.output
        assert "\x1b[31m" not in shown.output
        data = json.loads(CliRunner().invoke(main.app, ["health", str(run), "--json"]).output)
        assert (data["verdict"], data["exit_code"]) == (("healthy", "alarm", "cant_tell")[code], code)
    assert "cannot tell: 5 steps are too few" in shown.output
    gone = CliRunner().invoke(main.app, ["health", str(tmp_path / "gone"), "--json"])
    assert (gone.exit_code, json.loads(gone.stdout)["verdict"]) == (2, "cant_tell"), (
        "1 would say that there is an alarm"
    )
    assert "is not a run directory" in gone.stderr
    health = alarms_of(runs[1])
    (alarm,) = health.alarms
    assert [sample.id for sample in alarm.samples] == [f"step-000198/sum-000/{index}" for index in range(4)] + [
        "step-000199/sum-000/0"
    ]
    shown = CliRunner().invoke(main.app, ["health", str(runs[1])])
    for words in ("truncation", "critical", "3.0 % of the completions cut", "do: Raise", "step-000198/sum-000/0"):
        assert words in shown.output


def test_a_value_that_was_left_out_is_found_in_the_events(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", quiet_rows(4))
    message = "policy/loss, reward/mean not finite, left out of metrics.jsonl"
    append(run / "events.jsonl", {"time": "", "kind": "not_finite", "message": message, "step": 3})
    (alarm,) = alarms_of(run).alarms
    assert (alarm.name, alarm.onset) == ("not_finite", 3)
    assert "policy/loss" in alarm.evidence


def test_held_out_samples_tell_a_shadow_that_does_not_follow(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", quiet_rows(30))
    text = (run / "config.yaml").read_text().replace("  weight: 0.1\n", "  role: shadow\n")
    (run / "config.yaml").write_text(text)
    for name, step, reward in (("base", 0, 0.2), ("step-000030", 30, 0.9)):
        random = np.random.default_rng(step)
        by_task = {f"t{task}": [float(random.random() < reward)] for task in range(60)}
        samples = [
            rollout(
                step, 0, 0, task_id=task, prompt=task, reward=values[0], parts=json.dumps({"brevity": float(i % 2)})
            )
            for i, (task, values) in enumerate(by_task.items())
        ]
        accuracy = mean_interval(list(by_task.values())).as_dict()
        record = {"name": name, "step": step, "adapter_version": step, "adapter_hash": "", "metric": "math_answer"}
        further = {"accuracy": accuracy, "failed": 0, "length": 4, "truncated": 0, "by_task": by_task}
        write_json(run / "evals" / f"{name}.json", {**record, **further})
        write_rollouts(run / "evals" / f"{name}.parquet", samples)
    alarms = {alarm.name: alarm for alarm in alarms_of(run).alarms}
    assert alarms["shadow_gap"].severity == "warning"
    assert "held-out tasks, RL, step 30 against base" in alarms["shadow_gap"].evidence
    assert len(alarms["shadow_gap"].samples) == 5


def test_the_report_has_the_alarms_with_their_samples(tmp_path: Path) -> None:
    from rlft.curves.report import write_report

    run = write_run(tmp_path / "run", FAULTS["truncation"])
    page = Page(write_report(run))
    (alarm,) = [each for each in page.data["health"]["alarms"] if each["name"] == "truncation"]
    assert alarm["severity"] == "critical"
    sample = alarm["samples"][0]
    assert sample["id"] == "step-000198/sum-000/0"
    assert "<b>" in sample["text"]
    assert "\x1b" not in page.text
    cut = page.data["health"]["charts"][0]  # what an alarm is about comes first
    assert (cut["metrics"], cut["alarm"]) == (["rollout/truncated"], "truncation")
    assert page.data["chips"][0]["tone"] == "bad"
    assert "alarm truncation" in {why for group in page.data["samples"]["groups"] for why in group["why"]}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("not_finite", [(4, 3), (4, 2), (4, 1)]),
        ("gradient_spikes", [(4, 3), (4, 2), (4, 1)]),
        ("clip_saturation", [(5, 3), (4, 3), (5, 2), (4, 2), (5, 1)]),
        ("critic_diverges", [(5, 3), (4, 3), (5, 2), (4, 2), (5, 1)]),
        ("throughput", [(5, 1), (4, 1), (5, 2), (4, 2), (5, 3)]),
    ],
)
def test_alarms_about_updates_and_speed_show_samples(tmp_path: Path, name: str, shown: list[tuple[int, int]]) -> None:
    write_config(tmp_path, 5)
    for step in (3, 4, 5):
        rows = [
            rollout(step, 0, at, advantage=(-1) ** at * (0.4 * at + 0.1 * step), completion_tokens=10 * (4 - at) + step)
            for at in (1, 2, 3)
        ]
        write_rollouts(tmp_path / "rollouts" / f"step-{step:06d}.parquet", rows)
    found = Found(severity="warning", onset=4, evidence="", numbers={})
    assert [(each.step, each.index) for each in samples_for(tmp_path, name, found)] == shown


def test_every_alarm_can_have_samples() -> None:
    assert set(_KEYS) == set(ALARMS)


def test_samples_without_an_advantage_are_shown_where_something_was_not_finite(tmp_path: Path) -> None:
    write_config(tmp_path, 1)
    rows = [rollout(1, 0, at, advantage=value) for at, value in enumerate((None, 0.5, math.nan))]
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    found = Found(severity="warning", onset=1, evidence="", numbers={})
    assert [each.index for each in samples_for(tmp_path, "not_finite", found)] == [2, 1, 0]
    assert [each.index for each in samples_for(tmp_path, "clip_saturation", found)] == [2, 1]
