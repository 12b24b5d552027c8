"""Stored failed calls made again: `rlft reward try --failed`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from rlft.cli import main
from rlft.reward.scoring import Scorer
from rlft.reward.stored import read_step, read_tasks, unscored
from rlft.run.rollout_table import to_parquet
from rlft.types import Failed, Group, RewardSpec

REWARDS = '''
import json
import time

def bad(completion, difficulty, trajectory, trainer_state):
    """Fails in another way on each of the first samples, in a package's code on the first."""
    place = trajectory.sample_index
    if place == 0:
        found = json.loads("no JSON at all")
    if place == 1:
        time.sleep(60)
    return float("nan") if place == 2 else trainer_state.global_step

def pairs(group):
    """A group reward that cannot rank more than two."""
    ranks = []
    for index, _ in enumerate(group.trajectories):
        ranks.append(1.0 / (2 - index))
    return ranks
'''


@pytest.fixture(scope="module")
def failed_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rewards have failed in its third step; the environment has failed on the last sample, too."""
    folder = tmp_path_factory.mktemp("failed")
    file, run = folder / "bad.py", folder / "run"
    file.write_text(REWARDS)
    shutil.copytree(finished_run, run)
    yaml = YAML()
    config = yaml.load((run / "config.yaml").read_text())
    config["rewards"] = [{"path": f"{file}:bad"}, {"path": f"{file}:pairs", "weight": 0.0}]
    with (run / "config.yaml").open("w") as out:
        yaml.dump(config, out)
    groups = [unscored(group) for group in read_step(run, 3, read_tasks(run)).groups]
    groups = [_with_a_failed_episode(groups[0]), *groups[1:]]
    specs = [RewardSpec(path=str(each["path"]), weight=each.get("weight", 1.0)) for each in config["rewards"]]
    with Scorer(specs, workers=1, deadline_s=0.2, log_dir=None, max_failed=1.0) as scorer:
        scored = scorer.score(groups[:1], step=3)
    (run / "rollouts" / "step-000003.parquet").write_bytes(to_parquet(scored, step=3))
    return run


def _with_a_failed_episode(group: Group) -> Group:
    failure = Failed(kind="error", fault="environment", message="the environment raised: x", reproduce="# play it")
    *others, last = group.trajectories
    return replace(group, trajectories=(*others, replace(last, outcome=failure)))


def tried(run: Path, sample: str = "", *options: str, typed: str = "") -> Result:
    arguments = ["reward", "try", "--failed", str(run), *([sample] if sample else []), *options]
    return CliRunner().invoke(main.app, arguments, input=typed, env={"COLUMNS": "300", "TERM": "dumb"})


@pytest.fixture(scope="module")
def task(failed_run: Path) -> str:
    """Step and task whose samples failed."""
    return f"3/{read_step(failed_run, 3, read_tasks(failed_run)).groups[0].task.id}"


def test_a_stored_failure_is_repeated_with_its_line(failed_run: Path, task: str) -> None:
    told = tried(failed_run, f"{task}/0", "--json")
    assert told.exit_code == 1, told.output
    rows = {row["reward"]: row for row in json.loads(told.output)}
    bad = failed_run.parent / "bad.py"
    assert rows["bad"]["kind"] == "error"
    assert rows["bad"]["where"] == f"{bad}:9"
    assert "JSONDecodeError" in rows["bad"]["message"]
    assert rows["pairs"]["where"] == f"{bad}:18"  # of the whole group
    step, _, name = task.partition("/")
    told = tried(failed_run, f"step-{int(step):06d}/{name}/1", "--deadline-s", "0.2")  # as `rlft health` names it
    assert told.exit_code == 1
    assert "bad failed in the run (timeout)" in told.output
    assert "no result within 0.2 s" in told.output
    assert f"failed (error) at {bad}:18" in told.output


def test_the_debugger_opens_at_the_users_line(failed_run: Path, task: str) -> None:
    told = tried(failed_run, f"{task}/0", "--pdb", typed="p ('seen', place, difficulty)\nq\np ('index', index)\nq\n")
    assert told.exit_code == 1, told.output
    assert 'found = json.loads("no JSON at all")' in told.output
    assert "('seen', 0," in told.output
    assert "('index', 2)" in told.output
    told = tried(failed_run, f"{task}/2", "--pdb", typed="q\nq\n")
    assert "it raises nothing, and what it returns is no reward (not_finite)" in told.output


def test_a_mended_reward_no_longer_fails(failed_run: Path, task: str, tmp_path: Path) -> None:
    run = shutil.copytree(failed_run, tmp_path / "run")
    mended = tmp_path / "mended.py"
    mended.write_text("def bad(completion, trainer_state):\n    return trainer_state.global_step\n")
    text = (run / "config.yaml").read_text()
    text = text.replace(str(failed_run.parent / "bad.py") + ":bad", f"{mended}:bad")
    (run / "config.yaml").write_text(
        text.replace(str(failed_run.parent / "bad.py") + ":pairs", "rewards.last_number:last_number\n  name: pairs")
    )
    assert tried(run, f"{task}/0", "--json").exit_code == 0
    told = tried(run, f"{task}/0", "--pdb")
    assert told.exit_code == 0, told.output
    assert "it does not fail here: Score(value=3.0" in told.output


def test_where_nothing_failed_the_samples_that_did_are_named(finished_run: Path, failed_run: Path, task: str) -> None:
    listed = tried(failed_run)
    assert listed.exit_code == 0, listed.output
    size = len(read_step(failed_run, 3, read_tasks(failed_run)).groups[0].trajectories)
    *lines, last = listed.output.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"{task}/{i}" for i in range(size)]
    assert last == f"{size} samples failed; to repeat one: rlft reward try --failed {failed_run} SAMPLE"
    assert next(row["sample"] for row in json.loads(tried(failed_run, "", "--json").output)) == f"{task}/0"
    assert f"{task}/1  timeout: bad: no result within 0.2 s" in listed.output
    other = read_step(failed_run, 1, read_tasks(failed_run)).groups[0].task.id
    told = tried(failed_run, f"1/{other}/0")
    assert f"nothing failed on sample 1/{other}/0" in str(told.exception)
    assert f"what failed is {task}/0, {task}/1" in str(told.exception)
    none = tried(finished_run)
    assert (none.exit_code, "no stored sample of this run has failed" in none.output) == (0, True)
    assert "takes only SAMPLE" in str(tried(failed_run, f"{task}/0", "--completion", "x").exception)


def test_a_failed_episode_has_no_call_to_repeat(failed_run: Path, task: str) -> None:
    size = len(read_step(failed_run, 3, read_tasks(failed_run)).groups[0].trajectories)
    told = tried(failed_run, f"{task}/{size - 1}")
    assert "the environment raised: x" in told.output
    assert "no call of a reward to repeat; to repeat the episode:\n# play it" in str(told.exception)
