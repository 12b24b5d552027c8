"""Running a sweep's trials as child processes: `rlft train` (sft, dpo), or `rlft resume` where a trial has begun."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from rlft.config import BaseRunConfig, RunConfig
from rlft.run.directory import make_output_dir, read_config
from rlft.run.provenance import decides_nothing
from rlft.run.records import CONFIG, SUMMARY
from rlft.train.sweep.early_stopping import EarlyStopping
from rlft.train.sweep.grid import Trial

MAX_KILLS = 3
"""Times that a trial may be killed and is resumed."""
STOPPING_S = 120.0
"""Longest wait for trials to save what they have when the sweep is stopped."""
LOOK_EVERY_S = 1.0
"""Time between two looks at what the trials report."""
OF_ROWS = {"sft": "logprob", "dpo": "preference"}
"""What runs on rows measure on those that are held out, by command."""
LOGS = "logs"
"""Folder of the sweep for what its trials print."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A trial that did not come to its end."""

    trial: Trial
    reason: str
    """The end of what it printed, and where the rest is."""


@dataclass(slots=True, kw_only=True)
class _Running:
    trial: Trial
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float
    stopped: int | None = None
    """Step at which it was stopped early, if it was."""
    stopped_at: float = 0.0
    """When, by the monotonic clock."""


def has_ended(trial: Trial) -> bool:
    """Whether its run has come to its end."""
    return (trial.path / SUMMARY).is_file()


def check_same(trials: Sequence[Trial]) -> None:
    """Refuse a sweep whose folder holds runs of other settings under the names of its trials.

    Raises:
        ValueError: names the run and the first setting that differs.
    """
    for trial in trials:
        if not (trial.path / CONFIG).is_file():
            continue
        old, new = (_flat(config.model_dump(mode="json")) for config in (_config(trial), trial.config))
        for key in {**old, **new}:
            if old.get(key) != new.get(key) and not decides_nothing(key):
                raise ValueError(
                    f"{trial.path} was made with {key}={old.get(key)}, and now it is {new.get(key)}; give this sweep "
                    "another name with --name, or remove that folder"
                )


def check_metric(trials: Sequence[Trial], metric: str) -> None:
    """Refuse a metric that the trials will not measure, before hours of training.

    Args:
        metric: reward or part to compare; where empty it is the headline of their configs, which is checked then.

    Raises:
        ValueError: says what there is.
    """
    from rlft.train.rl import evaluate  # here, because it imports the rollouts

    for trial in trials:
        if isinstance(trial.config, RunConfig):
            if metric:
                evaluate.check_metric(trial.config, metric, f"{trial.path.name}: --metric")
            else:
                evaluate.headline(trial.config, f"{trial.path.name}: evaluation")
        elif metric not in ("", own := OF_ROWS[trial.command]):
            raise ValueError(
                f"--metric: `rlft {trial.command}` measures no {metric!r} on held-out rows, only {own!r}; leave it out"
            )


def run_trials(
    file: Path,
    trials: Sequence[Trial],
    *,
    max_concurrent: int,
    tell: Tell,
    make_stopping: Callable[[Path], EarlyStopping] | None = None,
) -> list[Failure]:
    """Bring every trial to its end that is not there yet, and return those that could not be.

    A trial that is killed from outside is resumed, up to `MAX_KILLS` times; one that ends with an error is not tried
    again. The others go on in any case. A signal is passed on to the trials, which save what they have.

    Args:
        file: the config file.
        max_concurrent: trials that run at once.
        tell: gets a line for each trial that starts or ends.
        make_stopping: called with the sweep's folder, decides which trials are stopped early; those save what they
            have and are not continued. None stops none.

    Raises:
        ValueError: another sweep is at work in the same folder, or what trials are compared by is not measured.
    """
    folder = trials[0].path.parent
    make_output_dir(folder.parent)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder} is in use by another `rlft sweep`; wait for it, or choose another --name") from None
    running: list[_Running] = []
    kills: dict[Path, int] = {}
    failures: list[Failure] = []
    looked = 0.0
    try:
        stopping = make_stopping(folder) if make_stopping else None
        stopped = stopping.stopped if stopping else {}
        done = [trial for trial in trials if has_ended(trial)]
        waiting = [trial for trial in trials if trial not in done and trial.path.name not in stopped]
        if len(waiting) < len(trials):
            early = len(trials) - len(waiting) - len(done)
            tell(f"{len(done)} of {len(trials)} trials have ended" + (f", {early} stopped early" if early else ""))
        while waiting or running:
            while waiting and len(running) < max_concurrent:
                trial = waiting.pop(0)
                running.append(_start(file, trial, tell))
            ended = [each for each in running if each.process.poll() is not None]
            for each in ended:
                running.remove(each)
                each.log.close()
                again = _ended(each, kills, failures, tell)
                waiting[:0] = [each.trial] if again else []
                if stopping is not None and has_ended(each.trial):
                    stopping.step_to_stop(each.trial)  # what the others are compared with
            if stopping is not None and time.monotonic() - looked >= LOOK_EVERY_S:
                _stop_early(running, stopping, tell)
                looked = time.monotonic()
            if not ended:
                time.sleep(0.1)
    except BaseException:
        tell("stopping the trials that run; the same command goes on with the sweep")
        _stop(running)
        raise
    finally:
        lock.release()
    return failures


def command_of(file: Path, trial: Trial, *, has_begun: bool) -> list[str]:
    """The command line that begins a trial's run, or continues it."""
    words = ["resume", str(trial.path)] if has_begun else [trial.command, str(file), *trial.overrides]
    return [sys.executable, "-m", "rlft", *words]


def _start(file: Path, trial: Trial, tell: Tell) -> _Running:
    has_begun = (trial.path / CONFIG).is_file()
    log = _log(trial).open("ab")
    command = command_of(file, trial, has_begun=has_begun)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    tell(f"{trial.path.name}: {'goes on' if has_begun else 'starts'} (process {process.pid})")
    return _Running(trial=trial, process=process, log=log, began=time.monotonic())


def _stop_early(running: Sequence[_Running], stopping: EarlyStopping, tell: Tell) -> None:
    """Ask the trials to end that are worse than the others, and end those that were asked and do not."""
    for each in running:
        if each.stopped is None and (step := stopping.step_to_stop(each.trial)) is not None:
            each.stopped, each.stopped_at = step, time.monotonic()
            tell(
                f"{each.trial.path.name}: is stopped at step {step} by asha; rlft resume {each.trial.path} continues it"
            )
            each.process.send_signal(signal.SIGTERM)
        elif each.stopped is not None and time.monotonic() - each.stopped_at > STOPPING_S:
            each.process.kill()


def _ended(each: _Running, kills: dict[Path, int], failures: list[Failure], tell: Tell) -> bool:
    """Say how a process ended; whether its trial is to be resumed."""
    trial, code = each.trial, each.process.returncode
    if code == 0 and has_ended(trial):
        tell(f"{trial.path.name}: ended after {time.monotonic() - each.began:.0f} s")
        return False
    if each.stopped is not None:
        return False
    was_killed = code < 0 or code > 128
    kills[trial.path] = kills.get(trial.path, 0) + was_killed
    if was_killed and kills[trial.path] <= MAX_KILLS:
        tell(f"{trial.path.name}: was killed by {_signal(code)}; it is resumed")
        return True
    lines = _log(trial).read_text(encoding="utf-8", errors="replace").split("error: ")[-1].split()
    reason = f"killed {kills[trial.path]} times" if was_killed else " ".join(lines)[:500]
    failures.append(Failure(trial=trial, reason=f"{reason} (all of it: {_log(trial)})"))
    tell(f"{trial.path.name}: failed: {reason}")
    return False


def _stop(running: Sequence[_Running]) -> None:
    """Let all trials save what they have, and end those that take too long."""
    for each in running:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOPPING_S
    for each in running:
        try:
            each.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
        each.log.close()


def _signal(code: int) -> str:
    number = -code if code < 0 else code - 128
    return signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"


def _log(trial: Trial) -> Path:
    return trial.path.parent / LOGS / f"{trial.path.name}.log"


def _config(trial: Trial) -> BaseRunConfig:
    return read_config(trial.path, type(trial.config))


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
