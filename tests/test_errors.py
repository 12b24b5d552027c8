"""What can be wrong with a run: refused before it starts, or counted and visible as it goes on. Never a silent zero."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from rlft.config import RunConfig
from rlft.curves.reading import read_evals
from rlft.model.adapter import bare_base, make_adapter, read_folder
from rlft.reward.outcomes import LARGEST
from rlft.rollout import worker
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.pool import InlinePool
from rlft.run.checkpoint import load_latest
from rlft.train.rl import launch
from rlft.train.rl.evaluate import evaluation
from rlft.train.rl.loop import refuse_mismatch
from rlft.train.rl.measure import measure
from rlft.train.rl.rollouts import refuse_wrong_stamps
from rlft.types import Adapter, Failed, Group, Score
from tests.conftest import MakeConfig
from tests.fakes import made_up_group, read_lines, read_metrics, read_result, read_rollouts
from tests.test_report import Page

pytestmark = pytest.mark.timeout(60)

QUICK = ("evaluation.tasks=2", "steps=2")


# Refused before anything is started or written: the name of the run stays free for the mended config.


def refused(config: RunConfig, says: str) -> str:
    """Train, which must be refused with this message and leave nothing behind; the whole message."""
    with pytest.raises(ValueError, match=says) as caught:
        launch.train(config)
    assert not (config.run_dir / "config.yaml").exists(), "the run was started, so the mended config needs --restart"
    return str(caught.value)


ENVIRONMENT = """
from rlft.environment.contract import Environment
from rlft.types import Task

def ask(id, text="what?", role="user"):
    return Task(id=id, messages=({{"role": role, "content": text}},))

def good(split, count):
    return [ask(f"{{split}}{{i}}", f"{{split}} {{i}}") for i in range(count)]

def load():
    return {0}
"""

WRONG_ENVIRONMENTS = {
    "empty prompt": ('Environment(train=[ask("t0", "  ")], heldout=good("h", 4))', "train task 0.*prompt is empty"),
    "no messages": ('Environment(train=[Task(id="x", messages=())], heldout=[])', "'x'.*prompt has no messages"),
    "no text": ('Environment(train=[ask("t0", None)], heldout=[])', "content must be text, got NoneType"),
    "ends with a reply": (
        'Environment(train=[ask("t0", role="assistant")], heldout=good("h", 4))',
        "ends with an assistant message",
    ),
    "duplicate id": ('Environment(train=[*good("t", 3), ask("t1", "?")], heldout=[])', "train task 3.*'t1'.*twice"),
    "id in both sets": ('Environment(train=good("t", 8), heldout=[ask("t1", "?")])', "heldout task 0.*'t1'.*twice"),
    "overlap": (
        'Environment(train=[*good("t", 8), ask("x", "h 2")], heldout=good("h", 4))',
        "'x' asks the same as held-out task 'h2'",
    ),
    "overlap with a demonstration": (
        'Environment(train=good("t", 8), heldout=good("h", 4), demonstrations=[('
        '{"role": "user", "content": "h 3"}, {"role": "assistant", "content": "a"})])',
        "demonstration 0 answers held-out task 'h3'",
    ),
    "no training tasks": ('Environment(train=[], heldout=good("h", 4))', "no training tasks"),
    "no held-out tasks": ('Environment(train=good("t", 8), heldout=[])', "no held-out tasks"),
    "too few tasks": (
        'Environment(train=good("t", 3), heldout=good("h", 4))',
        "tasks_per_step is 4, but the environment has 3 training tasks",
    ),
    "prompt too long": (
        'Environment(train=[*good("t", 8), ask("long", "x" * 250)], heldout=good("h", 4))',
        r"1 of \d+ prompts are too long: task 'long' has \d+ tokens.*context of 256",
    ),
    "demonstration too long": (
        'Environment(train=good("t", 8), heldout=good("h", 4), demonstrations=[('
        '{"role": "user", "content": "d"}, {"role": "assistant", "content": "a" * 300})])',
        "demonstration 0.*256",
    ),
    "no environment": ("[1, 2]", "returned list; return rlft.environment.contract.Environment"),
    "it raises": ("{}['missing']", r"env\.py:load.*KeyError"),
}


@pytest.mark.parametrize("name", WRONG_ENVIRONMENTS)
def test_an_environment_that_cannot_work_is_refused(make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    source, says = WRONG_ENVIRONMENTS[name]
    (tmp_path / "env.py").write_text(ENVIRONMENT.format(source))
    sft = ("sft.examples=1",) if name == "demonstration too long" else ()
    message = refused(make_config(f"environment.path={tmp_path}/env.py:load", *sft, *QUICK), f"(?s){says}")
    if name in ("empty prompt", "duplicate id", "overlap"):
        assert f"{tmp_path}/env.py:load" in message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("environment.path=environments.sumz:load",), r"environments\.sumz.*Did you mean 'environments\.sums:load'"),
        (("environment.path=environments.sums:laod",), r"no function 'laod'.*Did you mean 'load'"),
        (("environment.path=nowhere.py:load",), "there is no Python file .*nowhere.py"),
        (("environment.args.num_trian=4",), r"environment\.args\.num_trian.*[Dd]id you mean 'num_train'"),
        (("rewards.0.path=rewards.exact_anser:exact_answer",), r"Did you mean 'rewards\.exact_answer:exact_answer'"),
        (
            ("rewards.0.path=rewards.exact_answer:exact_anser",),
            "no function 'exact_anser'.*Did you mean 'exact_answer'",
        ),
        (("rewards.0.path=exact_answer",), "must be package.module:function.*'rewards.exact_answer:exact_answer'"),
        (("rewards.0.args.letter=a",), "args.letter is not a parameter"),
        (("rewards.0.weight=0",), "no reward has a weight other than 0"),
        (("model.source=/no/such/model",), "/no/such/model"),
        (("model.source=smollm2-135m-instrct",), "[Dd]id you mean 'smollm2-135m-instruct'"),
        (("sft.examples=17",), "sft.examples is 17, but the environment offers 16 demonstrations"),
        (("sampling.max_new_tokens=256",), "exceeds the model's context of 256"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_setting_that_cannot_work_is_refused(make_config: MakeConfig, overrides: tuple[str, ...], says: str) -> None:
    refused(make_config(*QUICK, *overrides), f"(?s){says}")


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("def odd(completion, dificulty):\n    return 1.0", "parameter 'dificulty'.*Did you mean 'difficulty'"),
        ("def odd(completion, completions):\n    return 1.0", "parameters mix completion with completions"),
        ("import no_such_module\ndef odd(completion):\n    return 1.0", "(?s)importing it failed.*no_such_module"),
        ("def odd(completion)\n    return 1.0", "(?s)importing it failed.*SyntaxError"),
        ("odd = 3", "'odd' is a int, neither a function nor a class"),
    ],
    ids=["missing column", "mixed names", "missing module", "syntax", "no function"],
)
def test_a_reward_that_cannot_be_called_is_refused(make_config: MakeConfig, reward: str, says: str) -> None:
    refused(make_config(*QUICK, reward=reward), says)


# The scoring processes: started once, before the run exists, and ended on every way out.

COUNTED_REWARD = """
import os
from pathlib import Path

with open(Path(__file__).with_name("imports"), "a") as file:
    file.write(f"{os.getpid()}\\n")
print("imported", flush=True)

def odd(completion):
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
"""


def importers(folder: Path) -> list[int]:
    """The processes that have imported COUNTED_REWARD, all of which have to be gone."""
    pids = [int(pid) for pid in (folder / "imports").read_text().split()]
    assert os.getpid() not in pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    (folder / "imports").unlink()
    return pids


def test_scoring_processes_are_started_once(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(*QUICK, "scoring.workers=2", "checkpoint.every=1", reward=COUNTED_REWARD)
    launch.train(config)
    assert len(importers(tmp_path)) == 2
    logs = sorted((config.run_dir / "logs").iterdir())
    assert [(log.name, log.read_text()) for log in logs] == [
        ("scoring-0.log", "imported\n"),
        ("scoring-1.log", "imported\n"),
    ]
    assert [path.name for path in config.run_dir.parent.iterdir()] == ["tiny"]
    launch.resume(config.run_dir)
    assert len(importers(tmp_path)) == 2
    assert logs[0].read_text() == "imported\n" * 2
    measure(config, None)
    assert len(importers(tmp_path)) == 2


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("resolve_model", KeyboardInterrupt),
        ("Run.create", ValueError),
        ("Run.create", KeyboardInterrupt),
        ("View", KeyboardInterrupt),
        ("make_learner", RuntimeError),
    ],
)
def test_scoring_processes_end_whatever_happens(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    config = make_config(*QUICK, reward=COUNTED_REWARD)
    monkeypatch.setattr(f"rlft.train.rl.launch.{place}", fail)
    with pytest.raises(error):
        launch.train(config)
    assert len(importers(tmp_path)) == 1
    assert not [path.name for path in config.run_dir.parent.iterdir() if path.name != "tiny"]


def test_a_reward_whose_import_crashes_is_refused_and_the_driver_lives(make_config: MakeConfig) -> None:
    crash = "import ctypes\nprint('loading the library')\nctypes.string_at(0)\ndef odd(completion):\n    return 1.0"
    message = refused(make_config(*QUICK, reward=crash), "killed by SIGSEGV while it imported the rewards")
    assert "loading the library" in message
    assert "reward.py" in message  # where, as faulthandler printed it


def test_modules_that_the_model_lacks_are_named(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="q_projj"):
        launch.train(make_config(*QUICK, "adapter.target_modules=[q_projj]"))


# A reward that misbehaves on some samples: the run goes on without them, and they are seen.

FAULTY_REWARD = """
import os, time

def odd(completion, trajectory, task_id):
    if task_id.startswith("train") and trajectory.sample_index == 1:
        match int(task_id.removeprefix("train-")):
            case 0:
                raise KeyError("no such reply")
            case 1:
                time.sleep(60)
            case 2:
                return float("nan")
            case 3:
                return "0.5"
            case 4:
                os._exit(7)
            case 5:
                return float("inf")
            case 6:
                return 1e308
            case 7:
                return None
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
"""

KINDS = {
    "train-0": "error",
    "train-1": "timeout",
    "train-2": "not_finite",
    "train-3": "type",
    "train-4": "crash",
    "train-5": "not_finite",
    "train-6": "too_large",
}


@pytest.fixture(scope="module")
def faulty_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A step on all eight tasks with four samples each, one of which the reward fails on (or abstains from)."""
    from rlft.config_file import load
    from tests.fakes import write_config

    file = write_config(tmp_path_factory.mktemp("faulty"), tiny_model, reward=FAULTY_REWARD)
    config = load(
        file,
        ["steps=1", "tasks_per_step=8", "evaluation.tasks=2", "scoring.max_failed=0.22", "scoring.deadline_s=1"],
    )
    launch.train(config)
    return config.run_dir


def test_each_failure_is_a_row_with_its_kind_and_a_way_to_see_it(faulty_run: Path) -> None:
    rows = read_rollouts(faulty_run, 1)
    assert len(rows) == 32
    failed = {row["task_id"]: row for row in rows if row["outcome"] == "failed"}
    assert {task: row["failure_kind"] for task, row in failed.items()} == KINDS
    for task, row in failed.items():
        assert row["sample_index"] == 1
        assert row["failure_message"].startswith("odd: "), task
        assert row["reward"] is None
        assert row["advantage"] is None
        assert "reward.py:odd" in row["reproduce"]
        assert row["completion_tokens"] > 0
    assert "no such reply" in failed["train-0"]["failure_message"]
    assert "no result within 1 s" in failed["train-1"]["failure_message"]
    assert "'0.5'" in failed["train-3"]["failure_message"]
    assert "exit code 7" in failed["train-4"]["failure_message"]
    assert "returned 1e+308, beyond what a reward may be" in failed["train-6"]["failure_message"]
    assert [row["task_id"] for row in rows if row["outcome"] == "abstain"] == ["train-7"]


def test_failures_are_counted_and_enter_no_mean(faulty_run: Path) -> None:
    (metrics,) = read_metrics(faulty_run)
    assert (metrics["reward/failed"], metrics["reward/abstained"]) == (7, 1)
    scored = [row["reward"] for row in read_rollouts(faulty_run, 1) if row["outcome"] == "score"]
    assert len(scored) == 24
    assert metrics["reward/mean"] == pytest.approx(fmean(scored))
    (event,) = [event for event in read_lines(faulty_run / "events.jsonl") if event["kind"] == "reward_failed"]
    assert event["step"] == 1
    assert "7 of 32 samples" in event["message"]


def test_failures_enter_no_baseline(faulty_run: Path) -> None:
    rows = read_rollouts(faulty_run, 1)
    for task in {row["task_id"] for row in rows}:
        scored = [row for row in rows if row["task_id"] == task and row["outcome"] == "score"]
        rewards = [row["reward"] for row in scored]
        assert len(rewards) == 3
        for row in scored:  # GRPO: (reward - mean) / (std + 1e-4), over those that have a reward
            expected = (row["reward"] - fmean(rewards)) / (stdev(rewards) + 1e-4)
            assert row["advantage"] == pytest.approx(expected, abs=1e-3)


def test_a_failure_is_reproduced_by_its_program(faulty_run: Path) -> None:
    (row,) = [row for row in read_rollouts(faulty_run, 1) if row["failure_kind"] == "error"]
    done = subprocess.run([sys.executable, "-c", row["reproduce"]], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError: 'no such reply'" in done.stderr


def test_a_wrong_number_of_values_fails_the_group_and_no_other(make_config: MakeConfig) -> None:
    config = make_config(
        *("steps=1", "tasks_per_step=8", "evaluation.tasks=2", "scoring.max_failed=0.2"),
        reward="""
def odd(completions, task_id):
    scores = [sum(map(ord, c[0]["content"])) % 7 / 7 for c in completions]
    return scores[:1] if task_id[0] == "train-3" else scores
""",
    )
    launch.train(config)
    rows = read_rollouts(config.run_dir, 1)
    assert Counter((row["task_id"], row["failure_kind"]) for row in rows if row["outcome"] == "failed") == {
        ("train-3", "length"): 4
    }
    (metrics,) = read_metrics(config.run_dir)
    assert metrics["reward/failed"] == 4
    assert metrics["policy/updates"] == 1
    assert "expected 4 values, got 1" in next(row["failure_message"] for row in rows if row["failure_message"])


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "ppo"])
def test_the_largest_rewards_that_are_accepted_can_be_trained_on(make_config: MakeConfig, algorithm: str) -> None:
    config = make_config(
        *("steps=2", "evaluation.tasks=2", f"algorithm={algorithm}"),
        reward=f"""
def odd(completion):
    return {LARGEST} * (1 if sum(map(ord, completion)) % 2 else -1)
""",
    )
    launch.train(config)
    metrics = read_metrics(config.run_dir)
    assert [row["policy/updates"] for row in metrics] == [1, 2]
    assert [row["reward/failed"] for row in metrics] == [0, 0]
    events = config.run_dir / "events.jsonl"
    assert not [event for event in (read_lines(events) if events.exists() else []) if event["kind"] == "not_finite"]
    rewards = [row["reward"] for row in read_rollouts(config.run_dir, 1)]
    assert set(rewards) == {LARGEST, -LARGEST}
    assert metrics[0]["reward/mean"] == pytest.approx(fmean(rewards))


# A reward of weight 0 that fails: it stops nothing, and it is told.

OBSERVED_REWARD = """
def odd(completion):
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))

def style(completion, trajectory, task_id):
    if trajectory.sample_index == 0 and task_id != "train-0":
        raise KeyError(f"no style in {task_id}")
    return 1.0
"""


def test_an_observed_reward_that_fails_is_told_and_stops_nothing(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = f"rewards=[{{path: {tmp_path}/reward.py:odd}}, {{path: {tmp_path}/reward.py:style, weight: 0}}]"
    plain = make_config(*QUICK, "checkpoint.every=1", "name=plain", reward=OBSERVED_REWARD)
    config = make_config(*QUICK, "checkpoint.every=1", rewards, reward=OBSERVED_REWARD)
    launch.train(plain)
    launch.train(config)
    told = "observed reward style failed on 2 of 2 samples"
    assert capsys.readouterr().out.count(told) == 1  # of all steps and evaluations
    assert measure(config, None).failed_parts == {"style": 2}
    assert told in capsys.readouterr().err  # stdout is for its result
    own = [name for name in read_metrics(config.run_dir)[0] if name.endswith("style")]
    assert own == ["reward/failed/style", "reward/part/style"]
    assert [
        {name: value for name, value in row.items() if name not in own} for row in read_metrics(config.run_dir)
    ] == read_metrics(plain.run_dir)
    for step, metrics in enumerate(read_metrics(config.run_dir), start=1):
        rows = read_rollouts(config.run_dir, step)
        failed = {row["task_id"]: json.loads(row["failed_parts"])["style"] for row in rows if row["failed_parts"]}
        assert failed.keys() == {row["task_id"] for row in rows} - {"train-0"}
        assert metrics["reward/failed/style"] == len(failed)
        assert {row["outcome"] for row in rows} == {"score"}
        for task, failure in failed.items():
            assert failure["kind"] == "error"
            assert f"no style in {task}" in failure["message"]
            assert "reward.py:style" in failure["reproduce"]
    for name in ("base", "step-000002"):
        assert json.loads((config.run_dir / "evals" / f"{name}.json").read_text())["failed_parts"] == {"style": 2}
    assert "failed_parts" not in json.loads((plain.run_dir / "evals" / "base.json").read_text())

    shutil.rmtree(config.run_dir / "checkpoints" / "step-000002")
    launch.resume(config.run_dir)
    events = read_lines(config.run_dir / "events.jsonl")
    (event,) = [event for event in events if event["kind"] == "observed_reward_failed"]
    assert event["step"] == 0  # in the base evaluation
    said = event["message"]
    assert said.startswith("observed reward style failed on 2 of 2 samples")
    assert "no style in heldout-" in said
    program = said.partition("Reproduce it with:\n")[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "KeyError: 'no style in heldout-" in done.stderr
    assert "observed reward style failed on" in Page(config.run_dir / "report.html").text


# Too many failures: the run stops, everything that it made is on the disk, and it goes on once the reward is mended.

BREAKABLE_REWARD = """
from pathlib import Path

def odd(completion, trajectory):
    if (Path(__file__).parent / "broken").exists() and trajectory.turns[0].completion.adapter_version == 2:
        {0}
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
"""


def test_too_many_failures_stop_the_run_and_nothing_is_lost(
    make_config: MakeConfig, tmp_path: Path, finished_run: Path
) -> None:
    config = make_config("checkpoint.every=1", reward=BREAKABLE_REWARD.format('raise OSError("service is down")'))
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match=r"step 3: 16 of 16 samples could not be scored.*max_failed=0\.1") as caught:
        launch.train(config)
    assert "service is down" in str(caught.value)
    assert "Reproduce it with:" in str(caught.value)
    rows = read_rollouts(config.run_dir, 3)
    assert [row["outcome"] for row in rows] == ["failed"] * 16
    assert {row["failure_kind"] for row in rows} == {"error", "not_run"}  # those that were not waited for
    events = read_lines(config.run_dir / "events.jsonl")
    assert [(event["kind"], event.get("step")) for event in events] == [("reward_failed", 3), ("stopped", None)]
    assert len(read_metrics(config.run_dir)) == 2

    (tmp_path / "broken").unlink()
    launch.resume(config.run_dir)
    # The other run's reward is another file, which its checkpoints name.
    result, expected = (
        {name: value for name, value in read_result(run).items() if not fnmatch(name, "checkpoints/*.json")}
        for run in (config.run_dir, finished_run)
    )
    assert result == expected


@pytest.mark.parametrize("behaviour", ["return None", 'raise OSError("down")'])
def test_a_step_without_any_score_is_a_clear_end_and_nothing_is_lost(
    make_config: MakeConfig, tmp_path: Path, behaviour: str
) -> None:
    config = make_config("scoring.max_failed=1", "checkpoint.every=1", reward=BREAKABLE_REWARD.format(behaviour))
    (tmp_path / "broken").touch()
    with pytest.raises((ValueError, RuntimeError), match="score"):
        launch.train(config)
    rows = read_rollouts(config.run_dir, 3)
    assert len(rows) == 16
    assert {row["outcome"] for row in rows} <= {"failed", "abstain"}


def test_an_evaluation_without_any_score_names_the_failure(make_config: MakeConfig) -> None:
    config = make_config(*QUICK, reward="def odd(completion):\n    raise OSError('service is down')")
    with pytest.raises(RuntimeError, match=r"(?s)evaluation base: 2 of 2 samples could not be scored.*service is down"):
        launch.train(config)


# Nothing to learn from: no update, not even by the optimizer's momentum.

NO_KL = ("algorithm.kl=none", "algorithm.kl_coef=0", "checkpoint.every=1", "evaluation.tasks=2")


def _hashes(run: Path) -> list[str]:
    """Of the adapter before each step."""
    return [read_rollouts(run, step)[0]["adapter_hash"] for step in (1, 2, 3, 4)]


def test_equal_rewards_change_nothing(make_config: MakeConfig) -> None:
    config = make_config(*NO_KL, "updates_per_step=2", reward="def odd(completion):\n    return 0.25")
    launch.train(config)
    assert len(set(_hashes(config.run_dir))) == 1
    rows = read_metrics(config.run_dir)
    assert [(row["groups/with_signal"], row["policy/updates"]) for row in rows] == [(0, 0)] * 4
    events = read_lines(config.run_dir / "events.jsonl")
    of_steps = [(event["kind"], event["step"]) for event in events[:-1]]
    assert of_steps == [("no_signal", step) for step in (1, 2, 3, 4)]
    assert events[-1]["kind"] == "ended"
    saved, _ = load_latest(config.run_dir / "checkpoints")
    assert saved is not None
    assert not [name for name in saved.tensors if name.startswith("optimizer/")]


def test_equal_rewards_after_a_step_with_signal_change_nothing(make_config: MakeConfig) -> None:
    reward = """
def odd(completion, trajectory):
    if trajectory.turns[0].completion.adapter_version > 0:
        return 0.25
    return sum(map(ord, completion)) % 7 / 7
"""
    config = make_config(*NO_KL, reward=reward)
    launch.train(config)
    before_1, before_2, *later = _hashes(config.run_dir)
    assert before_1 != before_2
    assert set(later) == {before_2}
    assert [row["policy/updates"] for row in read_metrics(config.run_dir)] == [1, 1, 1, 1]


# The engine must run the adapter that the learner published.


def _groups(pool: InlinePool, config: RunConfig, adapter: Adapter) -> list[Group]:
    from rlft.rollout.chunk import make_chunks
    from rlft.types import SamplingParams
    from tests.fakes import letters

    pool.publish(adapter)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=4)
    return pool.run(
        make_chunks(
            letters().train[:2],
            tasks_per_chunk=2,
            samples_per_task=2,
            params=params,
            run_seed=0,
            stream="train",
            step=1,
            version=adapter.version,
        )
    )


def test_samples_of_a_stale_adapter_are_refused(make_config: MakeConfig, finished_run: Path) -> None:
    config = make_config()
    pool = InlinePool(config, config.model.source)
    old, new = (make_adapter(step, read_folder(finished_run / "adapters" / f"v{step:06d}")) for step in (1, 2))
    refuse_wrong_stamps(_groups(pool, config, new), {new.version: new.hash})
    planted = replace(old, version=2)  # it says that it is version 2, and it is not
    with pytest.raises(
        RuntimeError, match=r"'train-0' was made by adapter 2 .*the rollout worker holds the wrong weights"
    ):
        refuse_wrong_stamps(_groups(pool, config, planted), {new.version: new.hash})


def test_a_damaged_adapter_is_refused_by_the_worker(make_config: MakeConfig, finished_run: Path) -> None:
    config = make_config()
    good = make_adapter(1, read_folder(finished_run / "adapters" / "v000001"))
    name = next(iter(good.tensors))
    damaged = {**good.tensors, name: good.tensors[name] + 1e-6}
    pool = InlinePool(config, config.model.source)
    with pytest.raises(ValueError, match=r"claims hash .* but its tensors have"):
        pool.publish(replace(good, tensors=damaged))


def test_a_worker_that_missed_a_publication_stops_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_publish = InlinePool.publish

    def publish(pool: InlinePool, adapter: Adapter) -> None:
        if adapter.version != 1:
            real_publish(pool, adapter)

    monkeypatch.setattr(InlinePool, "publish", publish)
    with pytest.raises(ValueError, match="asked to generate with adapter version 1 while 0 is loaded"):
        launch.train(make_config(*QUICK))


def test_an_engine_that_runs_other_weights_stops_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_load = TransformersEngine.load_adapter

    def load(engine: TransformersEngine, adapter: Adapter) -> None:
        real_load(engine, adapter)
        if adapter.version == 1:  # as if merging had gone wrong: the right stamps, other weights
            norm = engine._model.base_model.norm
            # In the engine only: the parameter itself is the learner's, too.
            norm.weight = torch.nn.Parameter(40 * norm.weight.detach(), requires_grad=False)

    monkeypatch.setattr(TransformersEngine, "load_adapter", load)
    config = make_config(*QUICK)
    with pytest.raises(RuntimeError, match=r"does not compute with adapter version 1, though it has received it"):
        launch.train(config)
    # What the canary would miss is found in the samples themselves.
    monkeypatch.setattr(worker, "Prover", lambda engine: lambda adapter: None)
    with pytest.raises(RuntimeError, match=r"step 2: engine and learner differ by \d+\.\d+ nats per token"):
        launch.train(config, restart=True)
    assert len(read_metrics(config.run_dir)) == 1


@pytest.mark.parametrize(("mismatch", "top_p", "is_refused"), [(0.6, 1.0, True), (0.4, 1.0, False), (0.6, 0.9, True)])
def test_the_bound_on_the_mismatch(make_config: MakeConfig, mismatch: float, top_p: float, is_refused: bool) -> None:
    config = make_config(f"sampling.top_p={top_p}", "rollout.max_mismatch=0.5")
    if is_refused:
        with pytest.raises(RuntimeError, match=r"0\.600 nats.*rollout\.max_mismatch=0\.5"):
            refuse_mismatch(config, 1, mismatch)
    else:
        refuse_mismatch(config, 1, mismatch)


# Failures on held-out tasks

RAISES_ON_HELDOUT = """
def odd(completion, task_id):
    if task_id in {0}:
        raise KeyError("cannot read this answer")
    return 1.0
"""


def test_failures_on_heldout_tasks_are_in_every_number_a_reader_sees(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward that raises on what it does not understand would otherwise end as an accuracy of 1.000."""
    reward = RAISES_ON_HELDOUT.format(("heldout-1", "heldout-2", "heldout-3"))
    settings = ("steps=1", "evaluation.tasks=4")
    strict = make_config(*settings, "scoring.max_failed=0.7", reward=reward)
    with pytest.raises(
        RuntimeError, match=r"evaluation base: 3 of 4 samples could not be scored.*max_failed=0\.7"
    ) as caught:
        launch.train(strict)
    assert "cannot read this answer" in str(caught.value)
    assert len(pq.read_table(strict.run_dir / "evals" / "base.parquet")) == 4
    assert not (strict.run_dir / "evals" / "base.json").exists()

    lenient = make_config(*settings, "scoring.max_failed=0.75", "name=lenient", reward=reward)
    summary = launch.train(lenient)
    assert (summary["failed_base"], summary["failed_sft"], summary["failed_rl"]) == (3, None, 3)
    assert "n=1, 3 of 4 samples failed" in capsys.readouterr().out
    page = Page(lenient.run_dir / "report.html").text
    assert "(base; 3 of 4 samples failed and are missing)" in page
    assert read_evals(lenient.run_dir)[0].samples == 4


def test_an_observed_metric_that_fails_counts_as_failed_in_evaluations() -> None:
    """The accuracy is the first reward's mean, also where that reward has no weight."""
    config = RunConfig.model_validate(
        {
            "name": "n",
            "steps": 1,
            "model": {"source": "m"},
            "environment": {"path": "e"},
            "rewards": [{"path": "a:f", "weight": 0}, {"path": "b:g"}],
        }
    )
    group = made_up_group([1.0, 1.0])
    failed = Failed(kind="error", message="m", reproduce="r")
    good, bad = group.trajectories
    good = replace(good, outcome=Score(value=1.0, parts={"f": 0.5, "g": 1.0}))
    bad = replace(bad, outcome=Score(value=1.0, parts={"g": 1.0}), failed_parts={"f": failed})
    groups = [replace(group, trajectories=(good, bad))]
    with pytest.raises(RuntimeError, match=r"1 of 2 samples could not be scored"):
        evaluation(config, groups, adapter=bare_base(), name="base", step=0, samples_file=None)
    config = config.model_copy(update={"scoring": config.scoring.model_copy(update={"max_failed": 0.5})})
    result = evaluation(config, groups, adapter=bare_base(), name="base", step=0, samples_file=None)
    assert (result.failed, result.samples, result.accuracy.mean) == (1, 2, 0.5)
