"""A run that is asked to stop loses no step that it has finished, and one that is asked twice is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from rlft.common import interrupts
from rlft.model.adapter import read_folder
from rlft.run.checkpoint import steps_kept
from rlft.run.directory import Run
from rlft.run.records import Provenance, numbered
from rlft.train.preference import loop as preference_loop
from rlft.train.rl import evaluations, launch
from rlft.train.rl.rollouts import StepRollouts
from rlft.train.standing import keep_adapter
from rlft.types import Adapter
from tests.conftest import MakeConfig
from tests.fakes import read_metrics, read_result
from tests.test_report import Page

SETTINGS = ("steps=5", "checkpoint.every=3", "evaluation.every=2", "evaluation.tasks=2")


def stop_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, call: int, error: BaseException) -> None:
    """Have the `call`th call of a function raise."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    from rlft.config_file import load
    from tests.fakes import write_config

    config = load(write_config(tmp_path_factory.mktemp("whole"), tiny_model), SETTINGS)
    launch.train(config)
    return read_result(config.run_dir)


@pytest.mark.parametrize(
    ("where", "call", "saved", "error"),
    [
        ("collect", 3, [2], KeyboardInterrupt()),  # in the third step's rollouts: off the schedule
        ("collect", 5, [3, 4], RuntimeError("a worker died")),
        ("evaluate", 2, [2], interrupts.Interrupted(143)),  # in the evaluation after step 2, which is made up for
        ("evaluate", 4, [3, 5], RuntimeError("a worker died")),
        # While step 2 is published (the base adapter comes first): neither step 1 nor step 2.
        ("publish", 3, [], interrupts.Interrupted(143)),
    ],
)
def test_a_stopped_run_keeps_its_last_whole_step_and_ends_the_same(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
    where: str,
    call: int,
    saved: list[int],
    error: BaseException,
) -> None:
    config = make_config(*SETTINGS)
    with monkeypatch.context() as patch:
        owner = evaluations if where == "evaluate" else StepRollouts
        name = "answer_heldout" if where == "evaluate" else where
        stop_in(patch, owner, name, call=call, error=error)
        with pytest.raises(type(error)):
            launch.train(config)
    assert steps_kept(config.run_dir / "checkpoints") == saved
    assert "stopped" in Page(config.run_dir / "report.html").text
    assert (config.run_dir / "reward.png").is_file()
    launch.resume(config.run_dir)
    assert read_result(config.run_dir) == undisturbed


def test_with_staleness_the_adapters_in_use_are_those_of_the_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that comes while a step is being finished ends the run behind it, before its evaluation."""
    settings = (
        "steps=6",
        "checkpoint.every=10",
        "evaluation.tasks=2",
        "max_staleness=1",
        "algorithm.correction=token_mask",
    )
    whole = make_config(*settings, "name=whole")
    launch.train(whole)
    config = make_config(*settings)
    log = Run.log

    def asked(run: Run, step: int, metrics: Any) -> None:
        log(run, step, metrics)
        if step == 3:
            interrupts._State.asked = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", asked)
        patch.setattr(interrupts._State, "asked", 0)
        with pytest.raises(interrupts.Interrupted):
            launch.train(config)
    assert steps_kept(config.run_dir / "checkpoints") == [3]
    launch.resume(config.run_dir)
    assert read_metrics(config.run_dir) == read_metrics(whole.run_dir)


def test_preference_runs_too(make_dpo_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, train, _ = make_dpo_run("whole")
    train()
    config, train, resume = make_dpo_run("dpo")
    with monkeypatch.context() as patch:
        stop_in(patch, preference_loop, "make_batch", call=6, error=interrupts.Interrupted(130))
        with pytest.raises(interrupts.Interrupted):
            train()
    kept = steps_kept(config.run_dir / "checkpoints")
    assert len(kept) == 1
    assert kept[0] % config.checkpoint.every
    resume()
    result, expected = read_result(config.run_dir), read_result(whole.run_dir)
    assert {**result.pop("summary.json"), "name": "whole"} == expected.pop("summary.json")
    assert result == expected


@pytest.fixture
def make_dpo_run(tmp_path: Path, tiny_model: Path) -> Any:
    """`make_dpo_run(name)`: (a config, a function that trains it, one that resumes it)."""
    from rlft.train.preference import launch as launch_dpo
    from rlft.train.preference.config import PreferenceConfig

    rows = [f'{{"prompt": "p{i}", "chosen": "aa{i}", "rejected": "b{i}"}}' for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))

    def make(name: str) -> Any:
        config = PreferenceConfig.model_validate(
            {
                "name": name,
                "output_dir": str(tmp_path / "runs"),
                "model": {"source": str(tiny_model), "dtype": "float32"},
                "data": {"source": str(tmp_path / "pairs.jsonl"), "heldout": 0},
                "batch_size": 4,
                "learner": {"threads": 1},
                "reference_logprobs": "live",
            }
        )
        return config, lambda: launch_dpo.train(config), lambda: launch_dpo.resume(config.run_dir)

    return make


# The signals themselves.

PROGRAM = """
import os, signal, sys, threading, time
from rlft.common import interrupts
interrupts.LONGEST_S = 1.0
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
if "UNDER_NOHUP" not in os.environ:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
interrupts.install()
me = os.getpid()
def send(*numbers, pause=0.8):
    def later():
        for number in numbers:
            time.sleep(pause)
            os.kill(me, number)
    threading.Thread(target=later, daemon=True).start()
def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
"""


def ran(body: str, **options: Any) -> subprocess.CompletedProcess[str]:
    program = PROGRAM + body
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False, **options
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_program_with_a_shells_exit_code(name: str) -> None:
    done = ran(f"send(signal.{name})\ntry:\n    busy(20)\nfinally:\n    print('cleaned up')")
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stdout == "cleaned up\n"
    assert done.stderr == ""


def test_within_a_held_block_it_waits_for_the_end() -> None:
    done = ran(
        "send(signal.SIGTERM, pause=0.2)\nwith interrupts.held():\n    busy(0.8)\n    print('whole', flush=True)\n"
        "print('never')"
    )
    assert (done.returncode, done.stdout) == (143, "whole\n")
    assert "stopping after this step, or in its middle after 1 s; once more to stop at once" in done.stderr


def test_but_not_for_ever() -> None:
    done = ran("send(signal.SIGTERM)\nwith interrupts.held():\n    busy(20)\n    print('never')")
    assert (done.returncode, done.stdout) == (143, "")


@pytest.mark.parametrize("held", ["interrupts.held()", "__import__('contextlib').nullcontext()"])
def test_the_second_signal_ends_it_at_once(held: str) -> None:
    started = time.monotonic()
    done = ran(f"send(signal.SIGINT, signal.SIGINT)\ntry:\n    with {held}:\n        busy(20)\nfinally:\n    busy(20)")
    assert done.returncode == 130
    assert time.monotonic() - started < 15


def test_under_nohup_a_hangup_is_ignored() -> None:
    done = ran(
        "send(signal.SIGHUP, pause=0.2)\nbusy(0.6)\nprint('on')",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        env={**os.environ, "UNDER_NOHUP": "1"},
    )
    assert (done.returncode, done.stdout) == (0, "on\n")


def test_a_timer_of_an_earlier_block_does_not_end_a_later_one() -> None:
    done = ran(
        "send(signal.SIGTERM, pause=0.2)\ntry:\n    with interrupts.held():\n        busy(0.5)\nexcept SystemExit:\n"
        "    busy(2)\n    print('cleaned up')\n    raise"
    )
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_signals_that_come_together_are_one_request(pause: float) -> None:
    done = ran(
        f"try:\n    send(signal.SIGHUP, signal.SIGTERM, pause={pause})\n    busy(20)\nfinally:\n    print('cleaned up')"
    )
    assert done.returncode in (129, 143)
    assert done.stdout == "cleaned up\n"


# Adapters that stay.


@pytest.mark.parametrize(
    ("rule", "steps"),
    [("all", [1, 2, 3, 4, 5, 6]), *((f"last {k}", list(range(7 - k, 7))) for k in (1, 2, 4, 5)), ("every 4", [4, 6])],
)
def test_adapters_are_pruned_as_asked(make_config: MakeConfig, finished_run: Path, rule: str, steps: list[int]) -> None:
    config = make_config(f"checkpoint.adapters={rule}")
    tensors = read_folder(max(finished_run.glob("adapters/v*")))
    with Run.create(config, provenance=Provenance()) as run:
        for step in range(1, 7):
            keep_adapter(run, step, Adapter(version=step, hash="", tensors=tensors), config.model.source, mock.Mock())
    assert [step for step, _ in numbered(config.run_dir / "adapters")] == steps
