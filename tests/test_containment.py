"""What rewards do besides scoring: it ends with their processes, and reaches neither the run nor the machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rlft import config_file
from rlft.common import bounded_log, child_process
from rlft.common.bounded_log import LOG_LIMIT, BoundedLog
from rlft.config import RunConfig
from rlft.reward.scoring import Scorer
from rlft.types import Failed, RewardSpec, Score
from tests.fakes_server import reply, serve
from tests.processes import gone
from tests.test_scoring import ROOT, kinds, make_group, outcomes

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")

REWARDS = '''
import os, signal, subprocess, sys, time

def leave(completion, pid_file):
    """Leaves a daemon as daemons are made: two forks, a session of its own, no environment, nothing of ours open."""
    if os.fork() == 0:
        os.setsid()
        if daemon := os.fork():
            with open(pid_file, "a") as file:
                file.write(f"{daemon}\\n")
            os._exit(0)
        os.closerange(0, 256)
        os.execve("/bin/sleep", ["sleep", "600"], {})
    os.wait()
    if completion == "hang":
        time.sleep(60)
    return 1.0

def orphan(completion):
    """Leaves processes whose parents have ended, and which soon end, too."""
    subprocess.run(["sh", "-c", "(sleep 0.05 &); (sleep 0.05 &)"], check=True)
    return 1.0

def shout(completion):
    """Prints a megabyte at a time, then one more line."""
    for _ in range(int(completion)):
        os.write(1, b"x" * 999_999 + b"\\n")
    print("the end of", completion, flush=True)
    if completion == "3":
        os._exit(1)
    return 1.0

def variables(completion):
    """1 for each variable that it sees, or a failure for want of the one that the reply names."""
    if completion != "all":
        os.environ[completion]
    return {name: 1.0 for name in os.environ}

def guard(completion):
    """Stops the process that watches this one."""
    if completion == "SIGSTOP":
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(60)
    return 1.0
'''


@pytest.fixture
def reward(tmp_path: Path) -> Callable[..., RewardSpec]:
    """Spec of one of the functions above, by name."""
    (tmp_path / "unruly.py").write_text(REWARDS)
    return lambda function, **args: RewardSpec(path=f"{tmp_path}/unruly.py:{function}", args=args)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def pids(file: Path) -> list[int]:
    """The ids in a file."""
    return [int(pid) for pid in file.read_text().split()]


# Daemons.


@linux
def test_daemons_of_a_reward_end_with_its_process(reward: Callable[..., RewardSpec], tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with Scorer([reward("leave", pid_file=str(file))], workers=2, deadline_s=20.0, log_dir=None) as scorer:
        assert set(kinds(scorer.score([make_group(*["x"] * 40)])[0])) == {"Score"}
        daemons = pids(file)
        assert len(daemons) == 40
        time.sleep(0.2)  # the last one becomes what it will be
        assert {(psutil.Process(pid).name(), *psutil.Process(pid).environ()) for pid in daemons} == {("sleep",)}
    assert [pid for pid in daemons if not gone(pid)] == []


DRIVER = """
import sys
sys.path.insert(0, {root!r})
from rlft.reward.scoring import Scorer
from rlft.types import RewardSpec
from tests.test_scoring import make_group
spec = RewardSpec(path={path!r}, args={{"pid_file": {file!r}}})
scorer = Scorer([spec], workers=2, deadline_s=60.0, log_dir=None)
scorer.score([make_group("x", "x", "x")])
print("scored", flush=True)
scorer.score([make_group({reply!r})])
sys.stdin.read()
"""


@linux
@pytest.mark.parametrize("reply", ["x", "hang"])
def test_daemons_end_when_the_driver_is_killed(reward: Callable[..., RewardSpec], tmp_path: Path, reply: str) -> None:
    file = tmp_path / "pids"
    code = DRIVER.format(root=str(ROOT), path=reward("leave").path, file=str(file), reply=reply)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "scored\n"
        until = time.monotonic() + 20
        while len(daemons := pids(file)) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        tree = psutil.Process(driver.pid).children(recursive=True)
        assert {process.pid for process in tree} > set(daemons)
        driver.kill()
    assert [process for process in tree if not gone(process.pid)] == []


# The guard.


@linux
def test_orphans_that_end_are_not_kept_as_zombies(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("orphan")], workers=1, deadline_s=20.0, log_dir=None) as scorer:
        assert scorer.score([make_group(*"abcde")])[0].scores == [1.0] * 5
        time.sleep(0.3)
        (guard,) = [p for p in psutil.Process().children() if "rlft.reward.worker:main" in p.cmdline()]
        assert len(guard.children(recursive=True)) == 1


@linux
def test_a_reward_that_stops_its_guard_is_killed_nevertheless(
    reward: Callable[..., RewardSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "CLEANING_LIMIT_S", 0.1)
    with Scorer([reward("guard")], workers=1, deadline_s=0.5, log_dir=None) as scorer:
        assert kinds(scorer.score([make_group("SIGSTOP", "fine")])[0]) == ["timeout", "Score"]


@linux
def test_terminating_a_guard_is_left_to_its_parent() -> None:
    child = child_process.ChildProcess(_answer)
    try:
        child.send(1)
        assert child.receive(60) == 1
        os.kill(child.pid, signal.SIGTERM)
        child.send(2)
        assert child.receive(60) == 2
    finally:
        assert child.kill() == "was killed by SIGKILL"


def _answer(connection: child_process.Connection) -> None:
    while True:
        connection.send(connection.recv())


# Environment variables.

SECRETS = ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "HF_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_PAT")
SECRETS += ("RLFT_PASSWORD", "RAY_AUTH_TOKEN", "SSH_AUTH_SOCK", "DATABASE_URL")
HARMLESS = ("PATH", "HOME", "LANG", "LC_TIME", "TMPDIR", "TZ", "PYTHONWARNINGS", "VIRTUAL_ENV", "HF_HOME")
HARMLESS += ("HF_HUB_OFFLINE", "RLFT_CACHE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NO_PROXY")
HARMLESS += ("TOKENIZERS_PARALLELISM", "SSL_CERT_FILE", "LD_LIBRARY_PATH")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment with harmless variables and secrets."""
    for name in (*SECRETS, *(name for name in HARMLESS if name not in os.environ)):
        monkeypatch.setenv(name, str(tmp_path) if name == "TMPDIR" else "1")
    monkeypatch.setenv("RLFT_JUDGE_CACHE", str(tmp_path / "judge.sqlite"))
    monkeypatch.setenv("HTTPS_PROXY", "http://somebody:password@proxy.example:8080")
    monkeypatch.setenv("http_proxy", "http://proxy.example:8080")


def seen(spec: RewardSpec, environment: tuple[str, ...] = ()) -> set[str]:
    with Scorer([spec], workers=1, deadline_s=20.0, log_dir=None, environment=environment) as scorer:
        (outcome,) = outcomes(scorer.score([make_group("all")])[0])
    assert isinstance(outcome, Score)
    return {name.partition("/")[2] for name in outcome.parts} - {""}


@pytest.mark.usefixtures("variables")
def test_secrets_reach_a_reward_only_by_name(reward: Callable[..., RewardSpec]) -> None:
    plain = seen(reward("variables"))
    assert plain >= {*HARMLESS, "http_proxy", "PYTHONHASHSEED"}
    assert plain & {*SECRETS, "HTTPS_PROXY"} == set()
    assert seen(reward("variables"), ("OPENAI_API_KEY", "HTTPS_PROXY")) == plain | {"OPENAI_API_KEY", "HTTPS_PROXY"}


@pytest.mark.usefixtures("variables")
def test_a_secret_is_not_in_the_process_nor_in_its_guard(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("variables")], workers=1, deadline_s=20.0, log_dir=None):
        (guard,) = [p for p in psutil.Process().children() if "rlft.reward.worker:main" in p.cmdline()]
        for process in (guard, *guard.children(recursive=True)):
            assert process.environ().keys() & set(SECRETS) == set()


@pytest.mark.usefixtures("variables")
def test_a_failure_for_want_of_a_variable_says_what_to_set(reward: Callable[..., RewardSpec], tmp_path: Path) -> None:
    with Scorer([reward("variables")], workers=1, deadline_s=20.0, log_dir=None) as scorer:
        told, unset = outcomes(scorer.score([make_group("OPENAI_API_KEY", "NEVER_SET")])[0])
    assert isinstance(told, Failed)
    assert told.message.endswith(
        "KeyError: 'OPENAI_API_KEY'\nOPENAI_API_KEY is set, but scoring processes get it only with "
        "`scoring: {environment: [OPENAI_API_KEY]}`"
    )
    assert isinstance(unset, Failed)
    assert unset.message.endswith("KeyError: 'NEVER_SET'")
    (tmp_path / "keyed.py").write_text("import os\nKEY = os.environ['GITHUB_PAT']\ndef r(completion): return 1.0\n")
    with pytest.raises(ValueError, match=r"(?s)KeyError: 'GITHUB_PAT'.*only with `scoring: .environment: \[GITHUB_PAT"):
        Scorer([RewardSpec(path=f"{tmp_path}/keyed.py:r")], workers=1, deadline_s=20.0, log_dir=None)


@pytest.mark.usefixtures("variables")
def test_a_judge_without_its_key_says_which_setting_it_needs() -> None:
    with serve(lambda body, number: reply("Score: 10")) as server:
        spec = RewardSpec(
            path="rewards.judge:helpfulness", args={"base_url": server.base_url, "api_key_env": "OPENAI_API_KEY"}
        )
        for environment in ((), ("OPENAI_API_KEY",)):
            with Scorer([spec], workers=1, deadline_s=60.0, log_dir=None, environment=environment) as scorer:
                (outcome,) = outcomes(scorer.score([make_group("x")])[0])
            if environment:
                assert outcome == Score(value=1.0, parts={"helpfulness": 1.0})
            else:
                assert isinstance(outcome, Failed)
                assert "with `scoring.environment: [OPENAI_API_KEY]`" in outcome.message
                assert outcome.message.count("scoring") == 2  # it is said once
    assert [headers["authorization"] for headers in server.headers] == ["Bearer 1"]


def test_names_are_checked_before_anything_starts(reward: Callable[..., RewardSpec], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scoring\.environment names NEVER_SET, which is not set here"):
        Scorer([reward("variables")], workers=1, deadline_s=5.0, log_dir=None, environment=("NEVER_SET",))
    file = tmp_path / "config.yaml"
    file.write_text("scoring: {environment: [OPENAI_API_KEY=sk-123]}\n")
    with pytest.raises(ValueError, match=r"'OPENAI_API_KEY'\.\.\. is no name of an environment variable") as caught:
        config_file.load(file, [], RunConfig)
    assert "sk-123" not in str(caught.value)


# Output.


def dropped(text: str) -> list[int]:
    return [
        int(number) for number in re.findall(r"^\[\.\.\. (\d+) bytes of output were dropped here", text, re.MULTILINE)
    ]


def test_what_rewards_print_is_bounded_and_its_end_is_kept(reward: Callable[..., RewardSpec], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with Scorer([reward("shout")], workers=1, deadline_s=60.0, log_dir=logs) as scorer:
        # 0, 2 and 3 million bytes, the latter twice, since the process dies each time; then 200 million
        assert kinds(scorer.score([make_group("0", "2", "3", "3", "200", "0")])[0]) == [
            *("Score", "Score", "crash", "crash", "Score", "Score")
        ]
    (log,) = logs.iterdir()
    text = log.read_text()
    assert len(text) < LOG_LIMIT + 200
    assert text.startswith("the end of 0\n")
    assert text.endswith("the end of 200\nthe end of 0\n")
    (number,) = dropped(text)
    # What is missing and what is there is what was printed: 208 times a million, and six lines.
    notice = next(line for line in text.splitlines(keepends=True) if line.startswith("[..."))
    printed = 208 * 10**6 + sum(len(f"the end of {reply}\n") for reply in ("0", "2", "3", "3", "200", "0"))
    assert number + len(text) - len(notice) - 1 == printed


def test_printing_much_holds_nobody_up(reward: Callable[..., RewardSpec], tmp_path: Path) -> None:
    # Half a gigabyte within the deadline of one sample, with and without a log.
    for log_dir in (tmp_path / "logs", None):
        with Scorer([reward("shout")], workers=1, deadline_s=60.0, log_dir=log_dir) as scorer:
            assert kinds(scorer.score([make_group("500")])[0]) == ["Score"]
    assert sum(file.stat().st_size for file in (tmp_path / "logs").iterdir()) < LOG_LIMIT + 200


@pytest.mark.parametrize("sizes", [[7] * 500, [1000, 3], [300, 1, 299, 900], [150, 150, 150, 149]])
def test_a_log_keeps_its_beginning_its_end_and_the_count(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_log, "KEPT", 100)
    written = b""
    for size in sizes:
        data = bytes(65 + (len(written) + n) % 26 for n in range(size))
        written += data
        with (tmp_path / "log").open("ab+") as file:  # by another process each time
            BoundedLog(file.fileno(), limit=600).write(data)
        kept = (tmp_path / "log").read_bytes()
        if len(written) <= 600:
            assert kept == written
            continue
        beginning, notice, end = re.split(rb"\n(\[.*\])\n", kept)
        assert written.startswith(beginning)
        assert len(beginning) == 300
        assert written.endswith(end)
        assert 100 <= len(end) <= 300
        assert dropped(notice.decode()) == [len(written) - len(beginning) - len(end)]
