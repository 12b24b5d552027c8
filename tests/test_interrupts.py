"""A run that is asked to stop loses no step that it has finished, and one that is asked twice is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rlft.common import interrupts
from rlft.run.checkpoint import steps_kept
from rlft.train.preference import loop as preference_loop
from rlft.train.rl import launch
from rlft.train.rl.rollouts import StepRollouts
from tests.conftest import MakeConfig
from tests.fakes import read_result

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


@pytest.mark.parametrize("error", [interrupts.Interrupted(143), KeyboardInterrupt(), RuntimeError("a worker died")])
@pytest.mark.parametrize(
    ("where", "call", "saved"),
    [
        ("collect", 3, [2]),  # in the third step's rollouts: off the schedule
        ("collect", 5, [3, 4]),
        ("evaluate", 2, [2]),  # in the evaluation after step 2, which is made up for
        ("evaluate", 4, [3, 5]),
        ("publish", 3, []),  # while step 2 is published (the base adapter comes first): neither step 1 nor step 2
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
    if isinstance(error, KeyboardInterrupt) and where != "collect":
        pytest.skip("one place is enough")
    config = make_config(*SETTINGS)
    with monkeypatch.context() as patch:
        owner = launch if where == "evaluate" else StepRollouts
        name = "answer_heldout" if where == "evaluate" else where
        stop_in(patch, owner, name, call=call, error=error)
        with pytest.raises(type(error)):
            launch.train(config)
    assert steps_kept(config.run_dir / "checkpoints") == saved
    launch.resume(config.run_dir)
    assert read_result(config.run_dir) == undisturbed


def test_preference_runs_too(make_dpo_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, train, resume = make_dpo_run
    with monkeypatch.context() as patch:
        stop_in(patch, preference_loop, "make_batch", call=6, error=interrupts.Interrupted(130))
        with pytest.raises(interrupts.Interrupted):
            train()
    kept = steps_kept(config.run_dir / "checkpoints")
    assert len(kept) == 1
    assert kept[0] % config.checkpoint.every
    resume()


@pytest.fixture
def make_dpo_run(tmp_path: Path, tiny_model: Path) -> Any:
    from rlft.train.preference import launch as launch_dpo
    from rlft.train.preference.config import PreferenceConfig

    rows = [f'{{"prompt": "p{i}", "chosen": "aa{i}", "rejected": "b{i}"}}' for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    config = PreferenceConfig.model_validate(
        {
            "name": "dpo",
            "output_dir": str(tmp_path / "runs"),
            "model": {"source": str(tiny_model), "dtype": "float32"},
            "data": {"source": str(tmp_path / "pairs.jsonl"), "heldout": 0},
            "batch_size": 4,
            "learner": {"threads": 1},
            "reference_logprobs": "live",
        }
    )
    return config, lambda: launch_dpo.train(config), lambda: launch_dpo.resume(config.run_dir)


# The signals themselves.

PROGRAM = """
import os, signal, sys, threading, time
from rlft.common import interrupts
interrupts.LONGEST_S = 1.0
interrupts.install()
me = os.getpid()
def send(*numbers, pause=0.2):
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
        "send(signal.SIGTERM)\nwith interrupts.held():\n    busy(0.8)\n    print('whole', flush=True)\nprint('never')"
    )
    assert (done.returncode, done.stdout) == (143, "whole\n")
    assert "stopping after this update; once more to stop at once" in done.stderr


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
        "send(signal.SIGHUP)\nbusy(0.6)\nprint('on')",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout) == (0, "on\n")


def test_a_timer_of_an_earlier_block_does_not_end_a_later_one() -> None:
    assert threading.active_count() < 50
    done = ran(
        "send(signal.SIGTERM)\ntry:\n    with interrupts.held():\n        busy(0.5)\nexcept SystemExit:\n"
        "    busy(2)\n    print('cleaned up')\n    raise"
    )
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")
    assert os.getpid()
