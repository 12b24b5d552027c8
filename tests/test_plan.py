"""What a run will take, as `rlft plan` says before it is started."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig
from typer.testing import CliRunner

from rlft.cli import main
from rlft.config import RunConfig
from rlft.train.rl.plan import costs, forecast
from rlft.train.rl.plan import probe as probing
from rlft.train.rl.plan.arithmetic import Lengths, count
from rlft.train.rl.plan.probe import Mark, Probed, _role, probe_config
from rlft.train.rl.plan.sizes import Sizes, sizes_of
from tests.conftest import MakeConfig
from tests.fakes import tiny_config

LENGTHS = Lengths(prompt=20.0, completion=11.0, is_measured=True)


def test_the_arithmetic_of_a_config(make_config: MakeConfig) -> None:
    config = make_config(
        *("steps=30", "tasks_per_step=16", "samples_per_task=8", "updates_per_step=2", "evaluation.every=10"),
        *("sft={examples: 64, batch_size: 8, epochs: 2}", "learner.tokens_per_microbatch=400", "evaluation.tasks=250"),
        "evaluations=[{name: hard, tasks: 50, samples_per_task: 4}]",
    )
    counts = count(config, train=240, heldout={"": 200, "hard": 200}, lengths=LENGTHS, default_microbatch=1280)
    assert (counts.completions_per_step, counts.completions, counts.updates, counts.passes) == (128, 3840, 60, 2.0)
    assert counts.tokens_per_step == 16 * (20 + 8 * 10)  # the last token of a completion predicts nothing
    assert counts.microbatches_per_update == 2  # of 400 tokens, in each of two updates of 800
    assert counts.sft_updates == 16
    assert counts.evaluations == (("", 5, 200), ("hard", 3, 200))  # base, SFT, steps 10, 20, 30; and without the middle
    counts = count(config, train=240, heldout={}, lengths=LENGTHS, default_microbatch=1280, prefix=16)
    assert counts.microbatches_per_update == 2  # 8 x (4 + 80) tokens in rows that hold 384 beside the prefix
    assert counts.tokens_per_step == 16 * (4 + 8 * 10) + 4 * 16
    counts = count(config, train=240, heldout={}, lengths=LENGTHS, default_microbatch=1280, prefix=500)
    assert counts.microbatches_per_update == 64  # where not even the prefix fits, a row for each sequence


@pytest.mark.parametrize(
    ("prompt", "rows", "tokens"),
    [
        (320, 8, 16 * (320 + 80)),  # a group fits a row of 400
        (360, 16, 16 * 80 + 2 * 16 * 360),  # it does not: 640 tokens in rows that hold 40 beside their prompt
        (500, 64, 16 * 80 + 2 * 64 * 500),
    ],
)
def test_rows_of_a_group_that_is_too_long_for_one_repeat_its_prompt(
    make_config: MakeConfig, prompt: int, rows: int, tokens: int
) -> None:
    config = make_config(
        *("tasks_per_step=16", "samples_per_task=8", "updates_per_step=2", "learner.tokens_per_microbatch=400")
    )
    lengths = Lengths(prompt=prompt, completion=11, is_measured=True)
    counts = count(config, train=240, heldout={}, lengths=lengths, default_microbatch=1280)
    assert (counts.microbatches_per_update, counts.tokens_per_step) == (rows, tokens)


@pytest.mark.skipif(torch.cuda.is_available(), reason="rows of a GPU are longer")
def test_rows_are_counted_as_the_learner_cuts_them(make_config: MakeConfig) -> None:
    config = make_config("tasks_per_step=16", "samples_per_task=8")
    sizes = Sizes(
        train=240,
        heldout={},
        longest=LENGTHS,
        demonstration=0.0,
        prefix=20,
        parameters=1,
        config=PretrainedConfig(),
        dtype=torch.float32,
    )
    for prompt, tokens in ((3000, 3000 + 1280), (40, 1280)):
        lengths = Lengths(prompt=prompt, completion=200, is_measured=True)
        assert sizes.counts(config, lengths).microbatch_tokens == tokens


def marks(*, signal: float = 0.5) -> list[Mark]:
    """A probe of three steps that take 5, 3 and 3 s, each with a checkpoint of half a second."""
    text = [
        ("stage", "starting rollout workers", 8.0),
        ("stage", "held-out evaluation: base", 10.0),
        ("note", "held-out exact, base: 0.1", 14.0),
        ("stage", "SFT warm start", 14.0),
        ("progress", "1/4", 18.0),
        ("progress", "4/4", 21.0),
        ("stage", "loading the learner", 22.0),
        ("stage", "held-out evaluation: sft", 25.0),
        ("note", "held-out exact, sft: 0.2", 27.0),
    ]
    found = [Mark(kind=kind, text=name, at=at) for kind, name, at in text]
    for step, (at, seconds) in enumerate(((32.0, 5.0), (35.5, 3.0), (39.0, 3.0)), start=1):
        metrics = {"time/step": seconds, "groups/total": 16.0, "groups/with_signal": signal, "reward/mean": 0.25}
        found.append(Mark(kind="step", text=str(step), at=at, metrics=metrics))
    found.append(Mark(kind="stage", text="held-out evaluation: step-000003", at=39.0))
    return [*found, Mark(kind="note", text="held-out exact, step-000003: 0.3", at=40.0)]


def probed(config: RunConfig, *, signal: float = 0.5) -> Probed:
    return Probed(
        config=probe_config(config, "runs"),
        marks=marks(signal=signal),
        seconds=42.0,
        peaks={"driver": (1, 1e9)},
        peak=1e9,
        lengths=LENGTHS,
    )


def test_a_runs_time_follows_from_the_probes_stages(make_config: MakeConfig) -> None:
    config = make_config(
        *("steps=20", "tasks_per_step=16", "samples_per_task=4", "rollout.tasks_per_chunk=16", "evaluation.every=5"),
        *("evaluation.tasks=128", "sft={examples: 80, batch_size: 10}", "checkpoint.every=10"),
    )
    counts = count(config, train=100, heldout={"": 500}, lengths=LENGTHS, default_microbatch=1280)
    found = {stage.name: stage.seconds for stage in forecast.stages(config, counts, probed(config))}
    assert found == {
        "start": 10.0,
        "evaluations": 2 * (4.0 + 2.0 + 4 * 1.0),  # the probe answered half of the 128 tasks
        "warm start": 8.0 + (8 - 2) * 3.0,  # its two marks of progress lie 3 s apart
        "learner": 3.0,
        "steps": 5.0 + 19 * 3.0,
        "records": 1 * 0.5 + 2.0,
    }


def test_a_probe_has_groups_enough_and_no_more_than_the_run(make_config: MakeConfig) -> None:
    config = make_config(
        "steps=40",
        "tasks_per_step=8",
        "samples_per_task=4",
        "evaluation.tasks=500",
        "max_staleness=1",
        "algorithm.correction=token_truncate",
        "trackers=[tensorboard]",
    )
    short = probe_config(config, "elsewhere")
    assert (short.steps, short.run_dir, short.checkpoint.every) == (4, Path("elsewhere/probe"), 1)
    assert short.trackers == ()  # it is no run of anybody's
    assert short.evaluation.tasks == config.rollout.tasks_per_chunk * 4
    assert probe_config(make_config("steps=2", "tasks_per_step=1"), "x").steps == 2
    assert probe_config(make_config("steps=90", "tasks_per_step=64"), "x").steps == 2


@pytest.mark.parametrize(("share", "is_hopeless"), [(0.0, True), (0.5, False), (1 / 16, False)])
def test_a_run_without_signal_is_hopeless(make_config: MakeConfig, share: float, is_hopeless: bool) -> None:
    config = make_config("steps=20", "tasks_per_step=16")
    found = forecast.signal(config, probed(config, signal=share))
    assert found.share.n == 48
    assert found.share.mean == pytest.approx(share)
    assert found.is_hopeless is is_hopeless
    assert "warm start" in forecast.advice(config, found)


def test_few_groups_without_signal_tell_nothing(make_config: MakeConfig) -> None:
    config = make_config("steps=20", "tasks_per_step=16")
    few = probed(config, signal=0.0)
    metrics = {"time/step": 1.0, "groups/total": 4.0, "groups/with_signal": 0.0, "reward/mean": 0.0}
    few.marks[:] = [Mark(kind="step", text="1", at=1.0, metrics=metrics)]
    assert not forecast.signal(config, few).is_hopeless


def test_the_beginning_of_a_warm_start_refuses_no_run(make_config: MakeConfig) -> None:
    config = make_config("steps=20", "tasks_per_step=16", "sft={examples: 1600, batch_size: 8}")
    told = forecast.signal(config, probed(config, signal=0.0))
    assert (told.policy, told.is_hopeless) == ("a warm start of 384 of the 1,600 demonstrations", False)
    assert replace(told, is_whole=True).is_hopeless
    assert replace(told, reward=0.9).is_hopeless  # what is solved by then stays so
    short = make_config("sft={examples: 128, batch_size: 8, epochs: 3}")
    whole = forecast.signal(short, probed(short))
    assert (whole.policy, whole.is_whole) == ("the warm start", True)


def test_processes_are_told_by_their_command_lines() -> None:
    assert _role("ray::WorkerProcess.run_chunk") == "rollout worker"
    assert _role("ray::DashboardAgent") == "Ray"
    assert _role("/x/ray/core/src/ray/raylet/raylet --a") == "Ray"
    assert _role("python -c boot rlft.train.rl.plan.probe:_serve 9 10") == "driver"
    assert _role("sleep 5") == ""


def test_a_plan_of_a_tiny_run(config_file: Path) -> None:
    arguments = ["plan", str(config_file), "backend=inline", "steps=50", "evaluation.tasks=2", "--json"]
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["counts"]["updates"] == 50
    stages = {stage["name"]: stage["seconds"] for stage in told["stages"]}
    assert stages["steps"] > 0
    assert stages["start"] > 0
    assert math.isclose(told["seconds"], sum(stages.values()))
    assert told["memory_bytes"]["driver"]["peak_of_one"] > 1e8
    assert 0 < told["lengths"]["completion"] <= 64
    assert not (config_file.parent / "runs").exists()  # the probe's run lay elsewhere


def test_a_hopeless_run_is_refused_unless_it_is_wanted_anyway(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reward.py").write_text("def odd(completion):\n    return 0.0\n")
    # 32 groups of equal rewards are enough to be sure of fewer than one in ten with different ones.
    small = ["steps=4", "tasks_per_step=8", "samples_per_task=2", "sampling.max_new_tokens=2", "evaluation.tasks=2"]
    arguments = ["plan", str(config_file), "backend=inline", "scoring.workers=0", *small]
    once: list[Probed] = []
    probe = probing.probe

    def probe_once(config: RunConfig, **options: Any) -> Probed:  # it takes seconds
        once.extend([] if once else [probe(config, **options)])
        return once[0]

    monkeypatch.setattr(probing, "probe", probe_once)
    refused = CliRunner().invoke(main.app, arguments, env={"COLUMNS": "200"})
    assert refused.exit_code == 1, refused.output
    assert "of 32 groups of 2 samples" in refused.output
    assert "warm start" in refused.output.partition("HOPELESS as it is: ")[2]
    told = CliRunner().invoke(main.app, [*arguments, "--json"])
    assert (told.exit_code, json.loads(told.stdout)["hopeless"]) == (1, True)
    anyway = CliRunner().invoke(main.app, [*arguments, "--anyway"], env={"COLUMNS": "200"})
    assert anyway.exit_code == 0, anyway.output
    assert "HOPELESS" in anyway.output


def test_what_a_run_would_stop_with_is_said(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def odd(completion):\n    raise KeyError('no such thing')\n")
    result = CliRunner().invoke(main.app, ["plan", str(config_file), "backend=inline", "scoring.workers=0"])
    assert result.exit_code == 1
    assert "no such thing" in str(result.exception)


def test_a_plan_without_a_probe_starts_nothing(config_file: Path) -> None:
    result = CliRunner().invoke(main.app, ["plan", str(config_file), "--no-probe"])
    assert result.exit_code == 0, result.output
    for words in ("A step", "The run", "Time on this machine", "Memory", "expect half to twice"):
        assert words in result.output


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tasks_per_step=1000", r"tasks_per_step is 1000, but the environment has \d+ training tasks"),
        ("sft={examples: 1000000}", r"sft\.examples is 1000000, but the environment offers \d+ demonstrations"),
        ("rewards=[{path: 'reward.py:odd', role: shadow}]", "no reward has a weight other than 0"),
        ("adapter.start=/nope", "/nope"),
    ],
)
def test_without_a_probe_a_config_that_cannot_start_is_refused(config_file: Path, override: str, says: str) -> None:
    result = CliRunner().invoke(main.app, ["plan", str(config_file), "--no-probe", override])
    assert isinstance(result.exception, ValueError), result.output
    assert re.search(says, str(result.exception))


def test_without_a_probe_a_warm_start_takes_what_its_demonstrations_are_long(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "product_rate", lambda dtype, threads: 1e9)

    def seconds(**changes: Any) -> float:
        config = tiny_config(tiny_model, **changes)
        return {stage.name: stage.seconds for stage in costs.estimate(config, sizes_of(config)).stages}["warm start"]

    sums = {"path": "environments.sums:load"}
    few = seconds(environment=sums, sft={"examples": 16})
    assert seconds(environment=sums, sft={"examples": 16}, sampling={"max_new_tokens": 100}) == few > 0
    assert seconds(environment=sums, sft={"examples": 32}) == pytest.approx(2 * few, rel=0.1)
    longer = {**sums, "args": {"low": 10**6, "high": 10**6 + 40}}  # in digits, of which each is a token
    assert seconds(environment=longer, sft={"examples": 16}) > 1.1 * few


def test_a_config_of_another_command_is_told_what_there_is_for_it() -> None:
    shipped = Path(__file__).parents[1] / "configs" / "sft.yaml"
    result = CliRunner().invoke(main.app, ["plan", str(shipped)])
    assert result.exit_code == 1
    assert str(result.exception) == (
        f"{shipped}: this looks like a config of `rlft sft`; `rlft plan` plans RL, which has a config of `rlft train`; "
        f"of others, `rlft data check {shipped}` says what it can without training"
    )
