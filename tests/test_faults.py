"""Faults that no other file makes, and the table of all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from rlft.model.adapter import read_folder
from rlft.train.rl import launch
from tests.conftest import WIDE, MakeConfig, start_rlft
from tests.fakes import read_lines, read_result, read_rollouts
from tests.faults.__main__ import results, verdict
from tests.faults.table import ALL, page

ROOT = Path(__file__).parents[1]


def test_each_fault_has_tests_that_exist() -> None:
    for node in sorted({node for fault in ALL for node in fault.nodes}):
        file, _, function = node.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), node


def test_a_fault_has_a_test_or_a_reason() -> None:
    assert all(bool(fault.tests) != bool(fault.missing) for fault in ALL)
    assert len({fault.what for fault in ALL}) == len(ALL)


def test_the_page_shows_the_table() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert text.endswith(page()), "python -c 'from tests.faults.table import page; print(page())' writes its tables"


def test_the_verdict_of_a_fault(tmp_path: Path) -> None:
    (tmp_path / "r.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="test_b[1]"/>'
        '<testcase classname="tests.test_a" name="test_b[2]"><failure/></testcase>'
        '<testcase classname="tests.test_a" name="test_c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert results(tmp_path / "r.xml") == {
        "tests/test_a.py::test_b": {"passed", "failed"},
        "tests/test_a.py::test_c": {"skipped"},
    }
    assert [verdict(set(kinds)) for kinds in (["passed", "failed"], ["passed", "skipped"], ["skipped"])] == [
        "failed",
        "passed",
        "skipped",
    ]


def _rlft(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, in a shell that runs `before` first."""
    command = f"{before} exec {sys.executable} -m rlft {' '.join(arguments)}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=250, check=False, cwd=ROOT)


# The system's clock belongs to everybody, so a library in front of libc gives a run one of its own: it jumps two days
# forth or back every two seconds. What waits by the monotonic clock does not notice. Ray's own code keeps the true
# time: gRPC waits by the wall clock, and Ray does not start in about one of three runs where that jumps meanwhile.
JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int told(clockid_t id, struct timespec *now, void *caller) {
  struct timespec running;
  Dl_info from;
  int result = syscall(SYS_clock_gettime, id, now);
  if (id != CLOCK_REALTIME || result) return result;
  if (dladdr(caller, &from) && from.dli_fname)
    if (strstr(from.dli_fname, "/ray/") || strstr(from.dli_fname, "libstdc++")) return 0;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &running);
  now->tv_sec += running.tv_sec / 2 % 2 ? 86400 : -86400;
  return 0;
}

int clock_gettime(clockid_t id, struct timespec *now) { return told(id, now, __builtin_return_address(0)); }

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec precise;
  int result = told(CLOCK_REALTIME, &precise, __builtin_return_address(0));
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return result;
}

time_t time(time_t *now) {
  struct timespec precise;
  told(CLOCK_REALTIME, &precise, __builtin_return_address(0));
  if (now) *now = precise.tv_sec;
  return precise.tv_sec;
}
"""


@pytest.fixture(scope="module")
def jumping_clock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What to write before a command whose clock jumps."""
    compiler = shutil.which("cc") or shutil.which("c++")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(JUMPING_CLOCK)
    done = subprocess.run(
        [compiler, "-x", "c", "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    preload = f"LD_PRELOAD={folder}/clock.so"
    program = "import time; a = time.time(); time.sleep(2); print(abs(time.time() - a))"
    done = subprocess.run(f"{preload} {sys.executable} -c '{program}'", shell=True, capture_output=True, check=True)
    assert float(done.stdout) > 86400
    return preload


def test_a_clock_that_jumps_does_not_show_in_a_run(jumping_clock: str, config_file: Path, finished_run: Path) -> None:
    done = _rlft("train", str(config_file), "backend=ray", "checkpoint.every=1", before=jumping_clock)
    assert done.returncode == 0, done.stderr
    run = config_file.parent / "runs" / "tiny"
    assert read_result(run) == read_result(finished_run)
    assert [event["kind"] for event in read_lines(run / "events.jsonl")] == ["ended"]  # no worker was replaced


HANGS_ON_ONE_TASK = """
import time
def odd(completion, task_id):
    if task_id == "train-3":
        time.sleep(600)
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
"""


def test_a_clock_that_jumps_ends_no_deadline_early_or_late(
    jumping_clock: str, config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(HANGS_ON_ONE_TASK)
    began = time.monotonic()
    done = _rlft(
        *("train", str(config_file), "steps=2", "evaluation.tasks=2", "scoring.deadline_s=3", "scoring.max_failed=1"),
        before=jumping_clock,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 240
    rows = [row for step in (1, 2) for row in read_rollouts(tmp_path / "runs" / "tiny", step)]
    kinds = Counter((row["task_id"] == "train-3", row["failure_kind"]) for row in rows)
    assert kinds == {(True, "timeout"): 4, (False, None): 28}


def _can_mount() -> bool:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not _can_mount(), reason="a small disk needs the right to mount one")
@pytest.mark.parametrize("size", ["150k", "700k"])
def test_a_full_disk_is_named_with_its_bytes(config_file: Path, tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={size} tmpfs {disk} &&"
    command = (
        f"{mount} {sys.executable} -m rlft train {config_file} steps=40 checkpoint.every=1 output_dir={disk}; code=$?; "
    )
    command += f"ls {disk}/tiny/checkpoints >&2; exit $code"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env={**os.environ, **WIDE},
    )
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert re.search(rf"error: No space left on device: {disk}/\S+ \(\d+ bytes are free there\)", told), told
    assert "Traceback" not in told
    assert f"rlft resume {disk}/tiny" in told


def test_a_folder_that_may_not_be_written_is_named(config_file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    process = start_rlft("train", str(config_file), "steps=1", "output_dir=/proc/nowhere", log=log)
    process.join()
    told = log.read_text()
    assert process.exitcode == 1
    assert "/proc/nowhere" in told
    assert "Traceback" not in told


def test_a_damaged_adapter_of_a_finished_run_is_noticed(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("steps=2", "evaluation.tasks=2")
    launch.train(config)
    file = config.run_dir / "adapters" / "v000002" / "adapter_model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100]):
        file.write_bytes(damaged)
        launch.resume(config.run_dir)
        assert "is not the adapter of step 2 (damaged?); it is written again" in " ".join(
            capsys.readouterr().out.split()
        )
        assert file.read_bytes() == whole
    file.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        read_folder(file.parent)
