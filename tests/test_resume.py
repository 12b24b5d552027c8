"""A run that is interrupted at any moment and resumed ends like one that was not, byte for byte; no process is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlft.config_file import load
from rlft.run import directory as run_module
from rlft.run.directory import Run
from rlft.run.records import Provenance
from rlft.run.resume import How
from rlft.train.rl import launch
from tests.conftest import WIDE, start_rlft
from tests.fakes import read_lines, read_metrics, read_result, write_config

pytestmark = pytest.mark.timeout(240)

RLFT = Path(sys.executable).with_name("rlft")

# Scores like the other tests' reward, but once a sample of the named kind ("train" or "heldout") and adapter version
# comes, it says so and waits: a run that is killed then is killed at a known moment.
HOLDING_REWARD = """
import time
from pathlib import Path

HERE = Path(__file__).parent

def odd(completion, trajectory, task_id):
    hold = HERE / "hold"
    moment = f"{task_id.partition('-')[0]} {trajectory.turns[0].completion.adapter_version}"
    if hold.exists() and hold.read_text() == moment:
        (HERE / "reached").touch()
        time.sleep(600)
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
"""

SETTINGS = (
    *("steps=5", "checkpoint.every=2", "scoring.deadline_s=300", "evaluation.tasks=4"),
    *("sft.examples=16", "sft.batch_size=4", "sft.epochs=10"),
)


@dataclass(frozen=True)
class Kill:
    """When a run is killed, and what is then on the disk."""

    holds: tuple[str, ...]
    """Samples that it is held at, one after the other; "sft" is the SFT stage."""
    rows: int
    """Complete steps at the last kill."""
    checkpoints: tuple[str, ...] = ()
    backend: str = "inline"


KILLS = {
    "base evaluation": Kill(("heldout -1",), rows=0),
    "SFT": Kill(("sft",), rows=0),
    "after step 1": Kill(("train 1",), rows=1),
    "right after a checkpoint": Kill(("train 2",), rows=2, checkpoints=("step-000002",)),
    "between checkpoints": Kill(("train 3",), rows=3, checkpoints=("step-000002",)),
    "final evaluation": Kill(("heldout 5",), rows=5, checkpoints=("step-000002", "step-000004")),
    "twice": Kill(("train 3", "train 4"), rows=4, checkpoints=("step-000002", "step-000004")),
    "on Ray": Kill(("train 3",), rows=3, checkpoints=("step-000002",), backend="ray"),
}


@dataclass
class Interrupted:
    """What was seen of a run that was killed and resumed."""

    run: Path
    rows: int = -1
    checkpoints: tuple[str, ...] = ()
    has_sft: bool = False
    left: tuple[str, ...] = ()
    """Processes that outlived their driver."""
    result: Any = None


class Driver:
    """A config in a folder of its own, and one `rlft` at a time that works on it."""

    def __init__(self, folder: Path, model: Path, *overrides: str) -> None:
        self.folder = folder
        self.run = folder / "runs" / "tiny"
        self.config = write_config(folder, model, reward=HOLDING_REWARD)
        self.train = ("train", str(self.config), *SETTINGS, *overrides)
        self.environment = {"RLFT_TEST": str(folder)}
        self.log = folder / "log.txt"

    def hold(self, moment: str) -> None:
        (self.folder / "reached").unlink(missing_ok=True)
        (self.folder / "hold").write_text(moment)

    def wait_for(self, path: Path, is_alive: Callable[[], bool]) -> None:
        while not path.exists():
            assert is_alive(), f"rlft ended before it reached {path.name}:\n{self.log.read_text()}"
            time.sleep(0.01)

    def kill_at(self, moment: str, *arguments: str) -> tuple[str, ...]:
        """Start rlft, wait for the moment, SIGKILL its process group; the processes that it leaves."""
        self.hold(moment)
        process = start_rlft(*arguments, log=self.log, environment=self.environment)
        is_sft = moment == "sft"
        self.wait_for(self.run / "evals" / "base.json" if is_sft else self.folder / "reached", process.is_alive)
        time.sleep(0.05 if is_sft else 0.0)  # into the stage, which takes ten times as long
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return leftovers(self.folder)

    def finish(self, *arguments: str) -> Any:
        """Run rlft to the end of the run; what it made."""
        (self.folder / "hold").unlink(missing_ok=True)
        process = start_rlft(*arguments, log=self.log, environment=self.environment)
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        return read_result(self.run)


def leftovers(folder: Path, limit_s: float = 15.0) -> tuple[str, ...]:
    """Processes started by a driver of this folder that are still there after a while."""
    until = time.monotonic() + limit_s
    while alive := tuple(_marked(str(folder))):
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return alive


def _marked(mark: str) -> Iterator[str]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("RLFT_TEST") == mark:
                yield " ".join(process.cmdline())[:200]


def interrupt(folder: Path, model: Path, kill: Kill) -> Interrupted:
    driver = Driver(folder, model, f"backend={kill.backend}")
    seen = Interrupted(driver.run)
    arguments = driver.train
    for moment in kill.holds:
        seen.left += driver.kill_at(moment, *arguments)
        arguments = ("resume", str(driver.run))
    metrics = driver.run / "metrics.jsonl"
    seen.rows = len(read_metrics(driver.run)) if metrics.exists() else 0
    seen.checkpoints = tuple(sorted(path.name for path in driver.run.glob("checkpoints/*")))
    seen.has_sft = (driver.run / "adapters" / "sft").exists()
    seen.result = driver.finish(*arguments)
    return seen


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[dict[str, Future[Interrupted]]]:
    """Every run of KILLS, and under "reference" one that nobody interrupted; two or three at a time."""
    with ThreadPoolExecutor(3) as executor:
        make = tmp_path_factory.mktemp
        reference = Driver(make("reference"), tiny_model)
        result = executor.submit(reference.finish, *reference.train)
        order = sorted(KILLS, key=lambda name: KILLS[name].backend != "ray")  # the slowest one first
        futures = {name: executor.submit(interrupt, make("killed"), tiny_model, KILLS[name]) for name in order}
        futures["reference"] = executor.submit(lambda: Interrupted(reference.run, result=result.result()))
        yield futures


@pytest.fixture(scope="module")
def reference(interrupted: dict[str, Future[Interrupted]]) -> Interrupted:
    """The run that nobody interrupted."""
    return interrupted["reference"].result()


# kill -9


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_ends_like_one_that_was_not(
    interrupted: dict[str, Future[Interrupted]], reference: Interrupted, name: str
) -> None:
    seen = interrupted[name].result()
    assert (seen.rows, seen.checkpoints) == (KILLS[name].rows, KILLS[name].checkpoints)
    assert seen.has_sft == (KILLS[name].holds[-1] not in ("heldout -1", "sft"))
    assert seen.result["metrics.jsonl"] == reference.result["metrics.jsonl"]
    assert seen.result == reference.result
    assert len(seen.result["metrics.jsonl"]) == 5
    assert "adapters/v000005/adapter_model.safetensors" in seen.result


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_driver_leaves_no_process(interrupted: dict[str, Future[Interrupted]], name: str) -> None:
    assert interrupted[name].result().left == ()


def test_resuming_is_on_record(interrupted: dict[str, Future[Interrupted]]) -> None:
    events = read_lines(interrupted["twice"].result().run / "events.jsonl")
    resumed = [event["step"] for event in events if event["kind"] == "resumed"]
    assert resumed == [2, 4]


def test_every_moment_at_which_something_was_written_can_be_resumed_from(
    tmp_path: Path, tiny_model: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The directory as it was at each sync of step 2: rollouts, metrics, adapter, checkpoint, in all their files.
    monkeypatch.setattr(run_module, "KEPT_CHECKPOINTS", 1)
    settings = ["steps=3", "checkpoint.every=1", "evaluation.tasks=2"]
    config = load(write_config(tmp_path, tiny_model), settings)
    moments: list[Path] = []
    seen: list[Any] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        is_after_1 = (config.run_dir / "checkpoints" / "step-000001").exists() or moments
        if is_after_1 and not (config.run_dir / "rollouts" / "step-000003.parquet").exists():
            content = {(path, path.stat().st_size) for path in config.run_dir.rglob("*") if path.is_file()}
            if content in seen:
                return
            seen.append(content)
            moments.append(tmp_path / f"moment-{len(moments):02d}")
            shutil.copytree(config.run_dir, moments[-1])
            for path in moments[-1].rglob(f"*.{os.getpid()}.tmp"):  # it is another process that resumes
                path.rename(path.with_name(path.name.replace(f".{os.getpid()}.", ".1.")))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        launch.train(config)
    expected = read_result(config.run_dir)
    assert len(moments) >= 8
    assert any(list(moment.rglob("*.tmp")) for moment in moments)
    assert {len(read_metrics(moment)) for moment in moments} == {1, 2}
    assert {max(path.name for path in moment.glob("checkpoints/s*")) for moment in moments} == {
        "step-000001",
        "step-000002",
    }
    for moment in moments:
        launch.resume(moment)
        assert read_result(moment) == expected, moment.name
    litter = sorted(str(path.relative_to(tmp_path)) for moment in moments for path in moment.rglob("*.tmp"))
    assert litter == []  # what a killed write left is cleared away; it may be as large as a checkpoint


# A cluster that dies.


def test_a_run_that_lost_its_cluster_says_so_and_can_be_resumed(
    tmp_path: Path, tiny_model: Path, reference: Interrupted
) -> None:
    driver = Driver(tmp_path, tiny_model, "backend=ray")
    driver.hold("train 3")
    rlft = start_rlft(*driver.train, log=driver.log, environment=driver.environment)
    driver.wait_for(driver.folder / "reached", rlft.is_alive)
    [lost] = [each for each in psutil.Process(rlft.pid).children(recursive=True) if each.name() == "raylet"]
    lost.kill()
    rlft.join(90)
    assert rlft.exitcode == 1
    told = " ".join(driver.log.read_text().split())
    assert f"the run's Ray cluster is lost: its raylet (process {lost.pid}) has died" in told
    assert f"`rlft resume {driver.run}` continues from the last checkpoint" in told
    assert leftovers(driver.folder) == ()
    assert driver.finish("resume", str(driver.run)) == reference.result


# Damage.


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "copy")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage"),
    [("tensors.safetensors", flip), ("tensors.safetensors", cut), ("state.json", flip), ("manifest.json", Path.unlink)],
    ids=["flipped", "truncated", "state", "manifest"],
)
def test_a_damaged_checkpoint_is_passed_over(copy: Path, finished_run: Path, name: str, damage: Any) -> None:
    damage(copy / "checkpoints" / "step-000004" / name)
    launch.resume(copy)
    assert read_result(copy) == read_result(finished_run)
    events = {event["kind"]: event for event in read_lines(copy / "events.jsonl")}
    assert "step-000004" in events["checkpoint_skipped"]["message"]
    assert events["resumed"]["step"] == 3


def test_strict_refuses_an_older_checkpoint(copy: Path) -> None:
    flip(copy / "checkpoints" / "step-000004" / "tensors.safetensors")
    with pytest.raises(ValueError, match=r"step-000004.*without --strict"):
        launch.resume(copy, How(strict=True))


def lose_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def damage_checkpoints(run: Path) -> None:
    for step in (3, 4):
        flip(run / "checkpoints" / f"step-{step:06d}" / "tensors.safetensors")


def damage_a_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1][:-5]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def lose_a_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], *lines[2:]]) + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_checkpoints, "has 4 steps behind it and no whole checkpoint.*--restart"),
        (damage_checkpoints, "no whole checkpoint.*sha256.*from a copy"),
        (damage_a_line, r"metrics.jsonl:2: not readable.*--fork NAME"),
        (lose_a_line, r"lacks step 2, .* --fork NAME"),
    ],
)
def test_records_that_are_damaged_are_refused_and_not_deleted(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    before = content()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        launch.resume(copy)
    assert content() == before


def test_what_is_made_again_is_moved_aside(copy: Path, finished_run: Path) -> None:
    shutil.rmtree(copy / "checkpoints" / "step-000004")
    launch.resume(copy)
    assert read_result(copy) == read_result(finished_run)
    aside = copy / "aside" / "after-step-000003"
    assert [row["step"] for row in read_metrics(aside)] == [4]
    names = ("summary.json", "rollouts/step-000004.parquet", "adapters/v000004", "evals/step-000004.json")
    assert all((aside / name).exists() for name in names)
    (resumed,) = [event for event in read_lines(copy / "events.jsonl") if event["kind"] == "resumed"]
    assert str(aside) in resumed["message"]


def test_a_torn_last_line_is_mended(copy: Path, finished_run: Path) -> None:
    shutil.rmtree(copy / "checkpoints" / "step-000004")  # as if killed while step 4 was being written
    metrics, events = copy / "metrics.jsonl", copy / "events.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-40])
    for log in (events, copy / "tasks.jsonl"):
        with log.open("a") as file:
            file.write('{"time": "2030-01-01T00:00:00", "kind": "cut o')
    launch.resume(copy)
    assert read_result(copy) == read_result(finished_run)
    lines = events.read_text().splitlines()
    assert sum('"resumed"' in line and line.startswith('{"time"') and line.count("{") == 1 for line in lines) == 1


def test_a_finished_run_is_left_as_it_is_and_said_to_be_finished(
    copy: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    _, summary = launch.resume(copy)
    assert summary == read_result(finished_run)["summary.json"]
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert "has ended after 4 steps" in (told := " ".join(capsys.readouterr().out.split()))
    assert f"`rlft resume {copy} steps=N`" in told


# Signals and second drivers: the installed command, as a shell would start it.


@dataclass
class Stopped:
    """What a signal did to a run that was held in step 2."""

    code: int
    seconds: float
    printed: str
    left: tuple[str, ...]
    driver: Driver
    second: str = ""
    """What a second driver was told meanwhile."""


# A shell ignores SIGINT in what it starts in the background, and so would everything that these tests start from there.
HEEDING_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def stop(folder: Path, model: Path, backend: str, number: signal.Signals) -> Stopped:
    # The inline run is resumed and compared with the reference; the others can do without the SFT stage.
    driver = Driver(folder, model, f"backend={backend}", *([] if backend == "inline" else ["sft=null"]))
    driver.hold("train 1")
    with driver.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", HEEDING_SIGINT, str(RLFT), *driver.train],
            stdout=log,
            stderr=log,
            env={**os.environ, **WIDE, **driver.environment},
            start_new_session=True,
        )
    driver.wait_for(driver.folder / "reached", lambda: process.poll() is None)
    second = ""
    try:
        launch.resume(driver.run)
    except ValueError as error:
        second = str(error)
    started = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to everyone in the foreground
    else:
        process.send_signal(number)
    code = process.wait(timeout=60)
    seconds = time.monotonic() - started
    return Stopped(code, seconds, driver.log.read_text(), leftovers(folder), driver, second)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[dict[Any, Future[Stopped]]]:
    """Runs that got a signal, by backend and signal."""
    with ThreadPoolExecutor(2) as executor:
        yield {
            (backend, number): executor.submit(stop, tmp_path_factory.mktemp("stopped"), tiny_model, backend, number)
            for backend, number in SIGNALS
        }


SIGNALS = [("ray", signal.SIGTERM), ("ray", signal.SIGINT), ("inline", signal.SIGTERM)]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize(("backend", "number"), SIGNALS)
def test_a_signal_ends_everything_and_says_how_to_go_on(
    stopped: dict[Any, Future[Stopped]], backend: str, number: signal.Signals
) -> None:
    seen = stopped[backend, number].result()
    assert seen.left == ()
    assert seen.seconds < 15
    assert f"rlft resume {seen.driver.run}" in " ".join(seen.printed.split())
    assert "Traceback" not in seen.printed
    assert seen.code == CODES[number]


def test_a_second_driver_is_refused(stopped: dict[Any, Future[Stopped]]) -> None:
    assert "in use by another rlft process" in stopped["inline", signal.SIGTERM].result().second


def test_after_a_signal_the_run_goes_on_as_if_nothing_had_been(
    stopped: dict[Any, Future[Stopped]], reference: Interrupted
) -> None:
    driver = stopped["inline", signal.SIGTERM].result().driver
    assert driver.finish("resume", str(driver.run)) == reference.result


# Starting again.


def test_an_existing_run_is_refused_before_anything_happens(copy: Path, finished_run: Path) -> None:
    config = load(finished_run / "config.yaml")
    with pytest.raises(ValueError, match="holds a run already") as caught:
        launch.train(config)
    for way_out in (f"rlft resume {finished_run}", "--restart", "name="):
        assert way_out in str(caught.value)
    assert read_result(copy) == read_result(finished_run)


def test_restart_moves_the_old_run_aside(tmp_path: Path, tiny_model: Path) -> None:
    config = load(write_config(tmp_path, tiny_model), ["steps=1", "evaluation.tasks=2"])
    with Run.create(config, provenance=Provenance()) as run:
        run.log(1, {"old": 1.0})
    launch.train(config, restart=True)
    (old,) = [path for path in config.run_dir.parent.iterdir() if path != config.run_dir]
    assert read_metrics(old) == [{"step": 1, "old": 1.0}]
    assert "reward/mean" in read_metrics(config.run_dir)[0]
