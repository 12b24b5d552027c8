"""Scoring processes: whatever a reward does, every trajectory gets an outcome and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rlft.reward.scoring import LearnerScores, Scorer
from rlft.reward.stack import users_line
from rlft.types import (
    Abstain,
    Completion,
    Failed,
    Group,
    Outcome,
    RewardSpec,
    Score,
    Task,
    Trajectory,
    Turn,
)
from tests.processes import gone

ROOT = Path(__file__).parents[1]

# What a reply makes these rewards do is written in the reply.
REWARDS = '''
import ctypes, os, re, signal, subprocess, sys, threading, time

def behave(completion):
    if completion == "sleep":
        time.sleep(60)
    if completion == "regex":  # stuck in C code, holding the interpreter's lock
        re.match(r"(a+)+$", "a" * 60 + "b")
    if completion == "exit":
        os._exit(3)
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "raise":
        raise KeyError("the reply is bad")
    if completion == "sys.exit":
        sys.exit(0)
    if completion == "fork":  # a child that comes back out of the reward
        if os.fork() == 0:
            return -1.0
        os.wait()
    odd = {"nan": float("nan"), "inf": float("inf"), "str": "0.5", "none": None, "list": [0.5],
           "dict": {"correct": 1.0, "style": 0.5}, "lambda": lambda: 1, "module": sys}
    return odd.get(completion, float(len(completion)))

def length(completion):
    return len(completion)

def trl(completions, answer, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]

def short_list(completions, **kwargs):
    return [1.0]

def slow_list(completions, **kwargs):
    time.sleep(0.1 * len(completions))
    return [1.0] * len(completions)

def rank(group):
    order = sorted(range(len(group.trajectories)), key=lambda i: len(group.trajectories[i].text))
    return [float(order.index(i)) for i in range(len(order))]

async def judge(completion):
    return len(completion) + 0.5

def rank_badly(group, answer):
    return [behave(t.text) for t in group.trajectories]

def trl_badly(completions, log_extra, trainer_state, **kwargs):
    log_extra("step", [trainer_state.global_step])
    return [behave(c[0]["content"]) for c in completions]

async def judge_badly(completion, trajectory):
    return behave(completion)

def needs_column(completion, difficulty):
    return difficulty

def modules(completion):
    return {name: float(name in sys.modules) for name in ("torch", "ray", "numpy", "rlft.reward.worker")}

def hashed(completion):
    return hash(completion) % 1000

def late(completion):
    """A good answer; the process dies of it afterwards."""
    threading.Timer(0.05, os._exit, (1,)).start()
    return 1.0

def talk(completion):
    print("to stdout"), print("to stderr", file=sys.stderr)
    return 1.0

def grow(messages):
    messages.append(1)
    return len(messages)
'''


@pytest.fixture
def reward(tmp_path: Path) -> Callable[..., RewardSpec]:
    """Spec of one of the functions above, by name."""
    path = tmp_path / "their_rewards.py"
    path.write_text(REWARDS)

    def spec(function: str, weight: float = 1.0, **args: object) -> RewardSpec:
        return RewardSpec(path=f"{path}:{function}", weight=weight, args=args)

    return spec


def make_group(*texts: str, name: str = "t", **columns: object) -> Group:
    task = Task(id=name, messages=({"role": "user", "content": "go"},), answer="4", columns=columns)
    completion = Completion(
        token_ids=(5,), logprobs=(float("nan"),), finish_reason="stop", adapter_version=0, adapter_hash=""
    )
    turns = (Turn(prompt_ids=(1,), completion=completion),)
    return Group(
        task=task,
        trajectories=tuple(
            Trajectory(task=task, sample_index=i, seed=i, turns=turns, text=text) for i, text in enumerate(texts)
        ),
    )


def outcomes(group: Group) -> list[Outcome | None]:
    return [trajectory.outcome for trajectory in group.trajectories]


def kinds(group: Group) -> list[str]:
    return [o.kind if isinstance(o, Failed) else type(o).__name__ for o in outcomes(group)]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


BEHAVIOURS = {
    "fine": "Score",
    "raise": "error",
    "sys.exit": "error",
    "nan": "not_finite",
    "inf": "not_finite",
    "str": "type",
    "list": "type",
    "lambda": "type",
    "module": "type",
    "none": "Abstain",
    "dict": "Score",
}


def test_every_misbehaviour_is_typed_and_siblings_are_scored(reward: Callable[..., RewardSpec]) -> None:
    replies = {
        **BEHAVIOURS,
        "exit": "crash",
        "segfault": "crash",
        "fork": "Score",
        "sleep": "timeout",
        "last": "Score",
    }
    with Scorer([reward("behave")], workers=2, deadline_s=0.5, log_dir=None) as scorer:
        (group,) = scorer.score([make_group(*replies)])
        assert dict(zip(replies, kinds(group), strict=True)) == replies
        assert group.scores == [4.0, 1.5, 4.0, 4.0]  # fine, dict, fork, last
        failures = {o.kind: o for o in outcomes(group) if isinstance(o, Failed)}
        assert failures["error"].message.startswith("behave: ")
        assert failures["timeout"].message == "behave: no result within 0.5 s"
        assert "killed by SIGSEGV" in failures["crash"].message
        for trajectory in group.trajectories:  # the outcome says whose failure it is, the part whose name it has
            assert [f"behave: {failure.message}" for failure in trajectory.failed_parts.values()] == [
                o.message for o in [trajectory.outcome] if isinstance(o, Failed)
            ]
        stats = scorer.stats
        assert stats.restarts == 3
        assert stats.slowest is not None
        assert (stats.slowest.task_id, stats.slowest.sample_index) == ("t", list(replies).index("sleep"))
        assert stats.slowest.seconds == pytest.approx(0.5, abs=0.3)
        # The processes that replaced the dead ones are as good.
        assert kinds(scorer.score([make_group("fine")])[0]) == ["Score"]
        assert scorer.stats.restarts == 0


def test_in_the_driver_the_same_without_processes(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("behave")], workers=0, deadline_s=0.5, log_dir=None) as scorer:
        before = psutil.Process().children()
        (group,) = scorer.score([make_group(*BEHAVIOURS)])
        assert psutil.Process().children() == before
    assert kinds(group) == list(BEHAVIOURS.values())


def test_a_process_that_dies_while_idle_costs_no_sample(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("late")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        for _ in range(2):
            assert kinds(scorer.score([make_group("x")])[0]) == ["Score"]
            time.sleep(0.2)


def test_results_do_not_depend_on_the_number_of_workers(reward: Callable[..., RewardSpec]) -> None:
    specs = [
        reward("behave"),
        reward("trl", weight=0.5),
        reward("rank", weight=2.0),
        reward("judge", weight=-1.0),
        reward("hashed", weight=0.0),
    ]
    groups = [make_group(*("x" * (i * j % 7) for j in range(4)), name=f"t{i}") for i in range(5)]
    groups.append(make_group("raise", "nan", "none", "exit", "sleep", "fine", name="bad"))
    groups.insert(2, make_group(name="empty"))
    results = []
    for workers in (1, 2, 3):
        with Scorer(specs, workers=workers, deadline_s=0.4, log_dir=None, columns=()) as scorer:
            results.append(scorer.score(groups))
    assert results[0] == results[1] == results[2]
    scored = results[0]
    assert [group.task.id for group in scored] == [group.task.id for group in groups]
    first = outcomes(scored[1])  # group t1, replies "", "x", "xx", "xxx"
    hashes = [o.parts["hashed"] for o in first if isinstance(o, Score)]
    assert first == [
        # behave j + trl j/2 + rank 2j - judge (j + 0.5)
        Score(
            value=j + 0.5 * j + 2.0 * j - (j + 0.5),
            parts={"behave": j, "trl": j, "rank": j, "judge": j + 0.5, "hashed": hashes[j]},
        )
        for j in range(4)
    ]


def test_nothing_but_the_outcome_changes(reward: Callable[..., RewardSpec]) -> None:
    groups = [make_group("a", "bb", name="one"), make_group("ccc", name="two")]
    with Scorer([reward("length")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        scored = scorer.score(groups)
        assert scorer.score([]) == []
    stripped = [
        replace(group, trajectories=tuple(replace(t, outcome=None) for t in group.trajectories)) for group in scored
    ]
    assert stripped == groups
    assert [group.scores for group in scored] == [[1.0, 2.0], [3.0]]


def test_a_list_of_length_one_fails_all_eight(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("short_list")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        (group,) = scorer.score([make_group(*"abcdefgh")])
    assert kinds(group) == ["length"] * 8
    outcome = outcomes(group)[0]
    assert isinstance(outcome, Failed)
    assert "short_list: expected 8 values, got 1" in outcome.message


def test_the_deadline_of_a_group_grows_with_its_size(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("slow_list")], workers=1, deadline_s=0.3, log_dir=None) as scorer:
        (group,) = scorer.score([make_group(*"abcde")])  # sleeps 0.5 s of 5 * 0.3 s
        assert group.scores == [1.0] * 5
        assert scorer.stats.slowest is not None
        assert scorer.stats.slowest.sample_index is None


def test_the_failure_of_an_observing_reward_is_beside_the_score(reward: Callable[..., RewardSpec]) -> None:
    specs = [reward("length"), reward("behave", weight=0.0)]
    with Scorer(specs, workers=1, deadline_s=5.0, log_dir=None) as scorer:
        (group,) = scorer.score([make_group("fine", "raise", "none")])
        assert outcomes(group) == [
            Score(value=4.0, parts={"length": 4.0, "behave": 4.0}),
            Score(value=5.0, parts={"length": 5.0}),
            Score(value=4.0, parts={"length": 4.0}),
        ]
        assert [list(t.failed_parts) for t in group.trajectories] == [[], ["behave"], []]
        failure = group.trajectories[1].failed_parts["behave"]
        assert failure.kind == "error"
        assert "KeyError" in failure.message
        assert "their_rewards.py:behave" in failure.reproduce


def test_the_failure_of_an_observing_reward_is_beside_an_abstention_and_a_failure(
    reward: Callable[..., RewardSpec],
) -> None:
    specs = [reward("behave"), reward("short_list", weight=0.0)]
    with Scorer(specs, workers=1, deadline_s=5.0, log_dir=None) as scorer:
        (group,) = scorer.score([make_group("none", "raise")])
    assert kinds(group) == ["Abstain", "error"]
    assert [sorted(t.failed_parts) for t in group.trajectories] == [["short_list"], ["behave", "short_list"]]


def test_processes_import_neither_torch_nor_ray(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("modules")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        (outcome,) = outcomes(scorer.score([make_group("x")])[0])
    assert isinstance(outcome, Score)
    assert outcome.parts == {
        "modules": 1.0,
        "modules/torch": 0.0,
        "modules/ray": 0.0,
        "modules/numpy": 0.0,
        "modules/rlft.reward.worker": 1.0,
    }


def test_what_rewards_print_goes_to_a_log(
    reward: Callable[..., RewardSpec], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    with Scorer([reward("talk")], workers=2, deadline_s=5.0, log_dir=logs) as scorer:
        scorer.score([make_group("a", "b", "c", "d")])
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in logs.iterdir()) == ["scoring-0.log", "scoring-1.log"]
    text = "".join(path.read_text() for path in logs.iterdir())
    assert (text.count("to stdout"), text.count("to stderr")) == (4, 4)


def test_moved_logs_lose_no_line(tmp_path: Path) -> None:
    path, first, second = tmp_path / "talks.py", tmp_path / "first", tmp_path / "second" / "logs"
    path.write_text(
        "import os\nprint('imported')\ndef talk(completion):\n    print(completion)\n    "
        "os._exit(1) if completion == 'die' else None\n    return 1\n"
    )
    with Scorer([RewardSpec(path=f"{path}:talk")], workers=1, deadline_s=5.0, log_dir=first) as scorer:
        scorer.score([make_group("one")])
        scorer.move_logs(second)
        scorer.score([make_group("two", "die", "three")])
    assert list(first.iterdir()) == []
    # The calls of the message in which one died are made again, but for that one.
    printed = ["imported", "one", "two", "die", "imported", "two", "three"]
    assert (second / "scoring-0.log").read_text().split() == printed


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_that_changes_its_arguments_changes_them_for_nobody(
    reward: Callable[..., RewardSpec], workers: int
) -> None:
    with Scorer([reward("grow")], workers=workers, deadline_s=5.0, log_dir=None) as scorer:
        for _ in range(2):
            assert scorer.score([make_group("a", "b")])[0].scores == [3.0, 3.0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_reward_is_refused_at_construction(
    reward: Callable[..., RewardSpec], tmp_path: Path, workers: int
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_library_xyz\n")
    for spec, said in (
        (reward("lenght"), "Did you mean 'length'"),
        (RewardSpec(path=f"{broken}:reward", weight=1.0), "No module named 'no_such_library_xyz'"),
        (reward("length", unknown=1), "args.unknown is not a parameter"),
        (reward("needs_column"), "nothing supplies its parameter 'difficulty'"),
    ):
        with pytest.raises(ValueError, match=said):
            Scorer([reward("behave"), spec], workers=workers, deadline_s=5.0, log_dir=None, columns={"level"})


def test_a_module_that_kills_its_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dies.py"
    path.write_text("import os\nos._exit(5)\n")
    with pytest.raises(ValueError, match="ended with exit code 5 while it imported the rewards"):
        Scorer([RewardSpec(path=f"{path}:r", weight=1.0)], workers=1, deadline_s=5.0, log_dir=None)
    path.write_text("import os\nprint('no licence found')\nos._exit(5)\n")
    with pytest.raises(ValueError, match=r"imported the rewards\. The last that it printed:\nno licence found"):
        Scorer([RewardSpec(path=f"{path}:r", weight=1.0)], workers=1, deadline_s=5.0, log_dir=tmp_path)


def test_rewards_on_a_learner_need_one() -> None:
    spec = RewardSpec(path="adapter:some/folder", weight=1.0)
    with pytest.raises(ValueError, match="adapter:some/folder is scored on a learner, which is not there"):
        Scorer([spec], workers=0, deadline_s=5.0, log_dir=None)
    scores = LearnerScores()
    scorer = Scorer([spec], workers=0, deadline_s=5.0, log_dir=None, learner=scores)
    with pytest.raises(ValueError, match="before there is a learner"):
        scorer.score([make_group("a")])
    scores.bind(lambda groups: [[[2.0] for _ in groups]])
    assert scorer.score([make_group("a")])[0].scores == [2.0]


def test_columns_are_checked_with_the_first_groups_at_the_latest(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("needs_column")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        with pytest.raises(ValueError, match="nothing supplies its parameter 'difficulty'"):
            scorer.score([make_group("a", level=1)])
        scored = scorer.score([make_group("a", difficulty=7), make_group("b", level=1)])
        assert scored[0].scores == [7.0]
        (outcome,) = outcomes(scored[1])  # only this task lacks it
        assert isinstance(outcome, Failed)
        assert "nothing supplies its parameter 'difficulty'" in outcome.message


def test_a_value_that_cannot_be_sent_fails_its_sample_only(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("needs_column")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        scored = scorer.score([make_group("a", difficulty=lambda: 1), make_group("b", difficulty=2)])
    assert [kinds(group) for group in scored] == [["error"], ["Score"]]


def test_settings_that_make_no_sense_are_refused(reward: Callable[..., RewardSpec]) -> None:
    for specs, workers, deadline_s, said in (
        ([reward("length"), reward("length")], 1, 1.0, "two rewards are named 'length'"),
        ([reward("length", weight=0.0)], 1, 1.0, "no reward has a weight"),
        ([reward("length")], -1, 1.0, "workers"),
        ([reward("length")], 1, 0.0, "deadline_s"),
    ):
        with pytest.raises(ValueError, match=said):
            Scorer(specs, workers=workers, deadline_s=deadline_s, log_dir=None)


def test_relative_paths_survive_a_change_of_folder(
    reward: Callable[..., RewardSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward("behave")
    monkeypatch.chdir(tmp_path)
    spec = RewardSpec(path="their_rewards.py:behave", weight=1.0)
    with Scorer([spec], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        monkeypatch.chdir("/")
        (group,) = scorer.score([make_group("exit", "fine", "raise")])
    assert kinds(group) == ["crash", "Score", "error"]
    assert str(tmp_path) in getattr(outcomes(group)[2], "reproduce", "")


@pytest.mark.parametrize("edited", ["their_rewards.py", "their_helper.py"])
def test_a_reward_edited_under_way_is_not_mixed_in(
    reward: Callable[..., RewardSpec], tmp_path: Path, edited: str
) -> None:
    spec = reward("behave")
    (tmp_path / "their_rewards.py").write_text(REWARDS + "\nimport their_helper\n")
    (tmp_path / "their_helper.py").write_text("")
    with Scorer([spec], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        assert list(scorer.sources["behave"]) == ["their_rewards.py", "their_helper.py"]
        with (tmp_path / edited).open("a") as file:
            file.write("# edited\n")
        with pytest.raises(ValueError, match="changed while the run used it"):
            scorer.score([make_group("exit", "fine")])
        with pytest.raises(ValueError, match="closed"):
            scorer.score([make_group("fine")])


def test_a_scorer_can_be_left_by_an_interrupt_and_used_again(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("behave")], workers=2, deadline_s=30.0, log_dir=None) as scorer:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                scorer.score([make_group("sleep", "fine")])
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert outcomes(scorer.score([make_group("abc")])[0]) == [Score(value=3.0, parts={"behave": 3.0})]


@pytest.mark.parametrize(
    ("function", "reply"),
    [
        ("behave", "raise"),
        ("behave", "nan"),
        ("behave", "sleep"),
        ("rank_badly", "nan"),
        ("judge_badly", "raise"),
        ("judge_badly", "nan"),
        ("trl_badly", "nan"),
    ],
)
def test_reproduce_runs(reward: Callable[..., RewardSpec], function: str, reply: str) -> None:
    spec = reward(function)
    with Scorer([spec], workers=1, deadline_s=0.3, log_dir=None) as scorer:
        (outcome,) = outcomes(scorer.score([make_group(reply, level="it's")])[0])
    assert isinstance(outcome, Failed)
    command = [sys.executable, "-c", outcome.reproduce]
    if reply == "sleep":
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=ROOT, timeout=0.5)
        return
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if reply == "raise":
        assert done.stderr.rstrip().endswith("KeyError: 'the reply is bad'")
    else:
        assert done.stdout.strip() == ("[nan]" if function in ("rank_badly", "trl_badly") else "nan")


DRIVER = """
import sys, threading
sys.path.insert(0, {root!r})
from rlft.reward.scoring import Scorer
from rlft.types import RewardSpec
from tests.test_scoring import make_group
scorer = Scorer([RewardSpec(path={path!r}, weight=1.0)], workers=2, deadline_s=60.0, log_dir=None)
print(*(p._child.pid for p in scorer._pool._processes), flush=True)
if {reply!r}:
    scorer.score([make_group({reply!r})])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stuck process outlives a killed driver")
@pytest.mark.parametrize("reply", ["regex", "sleep"])
def test_a_killed_driver_leaves_no_orphan(reward: Callable[..., RewardSpec], reply: str) -> None:
    code = DRIVER.format(root=str(ROOT), path=reward("behave").path, reply=reply)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        time.sleep(0.3)  # one is stuck by now, the other idle
        driver.kill()
    assert len(pids) == 2
    assert [gone(pid) for pid in pids] == [True, True]


def test_a_driver_that_just_ends_leaves_no_orphan(reward: Callable[..., RewardSpec]) -> None:
    code = DRIVER.format(root=str(ROOT), path=reward("behave").path, reply="")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert [gone(int(pid)) for pid in done.stdout.split()] == [True, True]


def test_a_fork_of_the_driver_leaves_the_processes_alone(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("length")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        pid = os.fork()
        if pid == 0:
            scorer.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert scorer.score([make_group("abc")])[0].scores == [3.0]
        assert scorer.stats.restarts == 0


def test_the_thread_that_started_it_may_end(reward: Callable[..., RewardSpec]) -> None:
    made: list[Scorer] = []
    thread = threading.Thread(
        target=lambda: made.append(Scorer([reward("length")], workers=1, deadline_s=5.0, log_dir=None))
    )
    thread.start()
    thread.join()
    with made[0] as scorer:
        assert scorer.score([make_group("abc")])[0].scores == [3.0]
        assert scorer.stats.restarts == 0


def test_abstaining_everywhere_abstains(reward: Callable[..., RewardSpec]) -> None:
    with Scorer([reward("behave")], workers=1, deadline_s=5.0, log_dir=None) as scorer:
        (group,) = scorer.score([make_group("none", "none")])
        assert outcomes(group) == [Abstain(reason="behave: returned None")] * 2
        assert group.scores == []


# Many calls in one message, and many at once


CROWDED = """
import asyncio, os, time

waiting = most = 0

async def wait(completion, log_metric):
    global waiting, most
    waiting += 1
    most = max(most, waiting)
    await asyncio.sleep(1.0)
    waiting -= 1
    log_metric("together", most)
    return 1.0

async def odd(completion, log_dir):
    if completion == "late":
        try:
            await asyncio.sleep(60)
        finally:
            open(log_dir + "/cleaned", "w").close()
    if completion == "blocks":
        time.sleep(60)
    if completion == "dies":
        await asyncio.sleep(0.1)
        os._exit(3)
    if completion == "down":
        raise ConnectionError("nobody listens")
    if completion == "leaves a task":
        asyncio.ensure_future(asyncio.sleep(60))
    return 2.0

async def greedy(completion):
    if completion == "blocks":
        time.sleep(2.5)
    await asyncio.sleep(0.5)
    return 1.0

async def busy(completion):
    time.sleep(0.1)
    return 1.0

def heavy(completion, megabytes=0, _kept=[]):
    _kept.append(bytearray(b"x") * (megabytes * 2**20))
    return 1.0

class Large:
    def __init__(self):
        self.kept = bytearray(b"x") * (300 * 2**20)
    def __call__(self, completion):
        return 1.0

def quick(completion):
    if completion == "sleep":
        time.sleep(60)
    if completion == "die":
        os._exit(3)
    return float(len(completion))

class Counting:
    def __init__(self, start, folder):
        self.value, self.folder = start, folder
    async def setup(self):
        self.value += 100
    def __call__(self, completion, log_metric, log_extra, trainer_state):
        self.value += 1
        log_metric("value", self.value)
        log_extra("seen", {"text": completion, "step": trainer_state.global_step})
        return self.value
    def close(self):
        open(self.folder + "/closed", "w").close()

def penalty_of(words):
    def penalty(completions, **kwargs):
        return [-float(len(c[0]["content"].split()) > words) for c in completions]
    return penalty

def turns(completion):
    return {"turns": [1.0, 2.0], "style": 5.0} if completion == "two" else {"turns": [4.0]}

def plain(completion):
    return 0.5
"""


@pytest.fixture
def crowded(tmp_path: Path) -> Callable[..., RewardSpec]:
    path = tmp_path / "crowded.py"
    path.write_text(CROWDED)
    return lambda name, weight=1.0, **args: RewardSpec(path=f"{path}:{name}", weight=weight, args=args)


def test_coroutines_wait_together(crowded: Callable[..., RewardSpec]) -> None:
    with Scorer([crowded("wait")], workers=1, deadline_s=30.0, log_dir=None) as scorer:
        scored = scorer.score([make_group(*["x"] * 8, name=f"t{i}") for i in range(8)])
        assert scorer.stats.logged["wait/together"] == 64  # all of them at the same time
        assert scorer.stats.seconds < 20
    assert all(outcome == Score(value=1.0, parts={"wait": 1.0}) for group in scored for outcome in outcomes(group))


def test_one_bad_coroutine_harms_no_other(crowded: Callable[..., RewardSpec], tmp_path: Path) -> None:
    texts = ("fine", "late", "down", "leaves a task", "blocks", "dies", "fine")
    with Scorer([crowded("odd", log_dir=str(tmp_path))], workers=1, deadline_s=1.0, log_dir=None) as scorer:
        (scored,) = scorer.score([make_group(*texts)])
    assert kinds(scored) == ["Score", "timeout", "server", "Score", "timeout", "crash", "Score"]
    assert (tmp_path / "cleaned").exists()  # it was cancelled, not killed
    down = outcomes(scored)[2]
    assert isinstance(down, Failed)
    assert down.fault == "server"
    assert down.where.endswith("crowded.py:27")


def test_a_coroutine_that_holds_the_others_up_is_blamed_alone(crowded: Callable[..., RewardSpec]) -> None:
    with Scorer([crowded("greedy")], workers=1, deadline_s=2.0, log_dir=None) as scorer:
        (scored,) = scorer.score([make_group("x", "x", "blocks", "x", "x")])
    assert kinds(scored) == ["Score", "Score", "timeout", "Score", "Score"]


def test_coroutines_that_compute_take_turns(crowded: Callable[..., RewardSpec]) -> None:
    with Scorer([crowded("busy")], workers=1, deadline_s=1.5, log_dir=None) as scorer:
        (scored,) = scorer.score([make_group(*["x"] * 30)])  # three seconds of work in all
        assert scorer.stats.restarts == 0
    assert kinds(scored) == ["Score"] * 30


def test_a_process_that_has_grown_is_replaced_and_one_that_begins_too_large_refused(
    crowded: Callable[..., RewardSpec],
) -> None:
    with Scorer([crowded("heavy", megabytes=60)], workers=1, deadline_s=30.0, log_dir=None, memory_mb=400) as scorer:
        for _ in range(3):  # what is left of earlier calls harms no later ones
            (scored,) = scorer.score([make_group(*["x"] * 4)])
            time.sleep(0.3)
            assert kinds(scored).count("Score") >= 3
    with pytest.raises(ValueError, match=r"loading the rewards takes \d+ MB, more than scoring.memory_mb=200"):
        Scorer([crowded("Large")], workers=1, deadline_s=30.0, log_dir=None, memory_mb=200)


def test_of_many_calls_in_a_message_only_the_culprit_fails(crowded: Callable[..., RewardSpec]) -> None:
    texts = ["x" * (i % 7) for i in range(300)]
    texts[150], texts[250] = "sleep", "die"
    with Scorer([crowded("quick")], workers=1, deadline_s=1.0, log_dir=None) as scorer:
        (scored,) = scorer.score([make_group(*texts)])
        assert scorer.stats.restarts == 2
    expected = ["Score"] * 300
    expected[150], expected[250] = "timeout", "crash"
    assert kinds(scored) == expected
    assert all(o.value == len(t) for o, t in zip(outcomes(scored), texts, strict=True) if isinstance(o, Score))


def test_scoring_stops_when_too_many_have_failed(crowded: Callable[..., RewardSpec]) -> None:
    with Scorer([crowded("quick")], workers=1, deadline_s=0.5, log_dir=None, max_failed=0.1) as scorer:
        (scored,) = scorer.score([make_group(*["sleep"] * 20)])
        assert scorer.stats.seconds < 9  # 10 seconds for all
        assert kinds(scored) == ["timeout"] * 3 + ["not_run"] * 17
        assert kinds(scorer.score([make_group("fine")])[0]) == ["Score"]
    last = outcomes(scored)[-1]
    assert isinstance(last, Failed)
    assert last.message.endswith("3 of 20 samples had failed by then, more than scoring.max_failed=0.1 allows")


@pytest.mark.parametrize("workers", [0, 1])
def test_objects_and_notes(crowded: Callable[..., RewardSpec], tmp_path: Path, workers: int) -> None:
    specs = [crowded("Counting", start=5, folder=str(tmp_path)), crowded("penalty_of", words=1)]
    with Scorer(specs, workers=workers, deadline_s=30.0, log_dir=None, columns=()) as scorer:
        (scored,) = scorer.score([make_group("a b", "c")], step=7)
        assert scorer.stats.logged == {"Counting/value": 106.5}
    assert [o.value for o in outcomes(scored) if isinstance(o, Score)] == [105.0, 107.0]
    assert [t.extras for t in scored.trajectories] == [
        {"Counting/seen": {"text": "a b", "step": 7}},
        {"Counting/seen": {"text": "c", "step": 7}},
    ]
    assert (tmp_path / "closed").exists()


def test_values_of_turns_are_the_episodes(crowded: Callable[..., RewardSpec]) -> None:
    group = make_group("two", "one")
    long = replace(group.trajectories[0], turns=group.trajectories[0].turns * 2)
    group = replace(group, trajectories=(long, group.trajectories[1], replace(long, text="one")))
    with Scorer([crowded("turns", weight=2.0), crowded("plain")], workers=0, deadline_s=1.0, log_dir=None) as scorer:
        first, second, third = outcomes(scorer.score([group])[0])
    assert first == Score(value=6.5, parts={"turns": 3.0, "turns/style": 5.0, "plain": 0.5}, turns=(2.0, 4.5))
    assert second == Score(value=8.5, parts={"turns": 4.0, "plain": 0.5}, turns=(8.5,))
    assert isinstance(third, Failed)
    assert third.message == "turns: turns: expected a number for each of 2 actions, got 1"


HANGING = """
import asyncio, re, signal, time

def loops(completion):
    while True:
        helps()

def helps():
    return 1

def backtracks(completion):
    return bool(re.match(r"(a+)+$", "a" * 40 + "!"))

async def waits(completion):
    await asyncio.sleep(60)

def deaf(completion):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("name", "lines"), [("loops", (5, 6, 8, 9)), ("backtracks", (12,)), ("waits", (15,)), ("deaf", ())]
)
def test_of_what_hangs_the_line_is_told(tmp_path: Path, name: str, lines: tuple[int, ...]) -> None:
    file = tmp_path / "hanging.py"
    file.write_text(HANGING)
    with Scorer([RewardSpec(path=f"{file}:{name}")], workers=1, deadline_s=0.3, log_dir=None) as scorer:
        (outcome,) = outcomes(scorer.score([make_group("a")])[0])
    assert isinstance(outcome, Failed)
    assert outcome.message == f"{name}: no result within 0.3 s"
    assert outcome.where in ([f"{file}:{line}" for line in lines] or [""])


def test_a_process_that_is_not_its_own_is_not_asked_where_it_is(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as shared, subprocess.Popen(["sleep", "60"]) as other:
        try:  # a signal would end it
            assert users_line(other.pid, shared.fileno(), start=0, parent=1) == ""
            assert other.poll() is None
        finally:
            other.kill()
