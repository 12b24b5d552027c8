"""Stored rollouts under another reward, and a sample explained: numbers by hand, and by the learner's own bits."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import random
import re
import runpy
import shlex
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from rlft.cli import main
from rlft.cli.reward_replay import _sentences, rewards_of, show_explained, steps_of
from rlft.cli.run_config import load_run
from rlft.curves.alarms.health import Sample
from rlft.curves.statistics import mean_interval
from rlft.learner.batch import collate
from rlft.objectives.algorithm import PolicyObjective
from rlft.objectives.batch_advantages import batch_advantages
from rlft.objectives.presets import PRESETS
from rlft.reward.explain import explain
from rlft.reward.recompute import kl_coefs, recompute, used_groups
from rlft.reward.replay import MOVED, Replay, _Collected, replay
from rlft.reward.stored import StoredTasks, parse_sample, read_step, unscored
from rlft.run.rollout_table import to_parquet
from rlft.run.stored_task import StoredTask
from rlft.train.rl.loop import learned_columns
from rlft.types import Abstain, Completion, Failed, Group, RewardSpec, Score, Task, Trajectory, Turn
from tests.fakes import made_up_group, read_rollouts, tiny_config

OLD_RUN = Path(__file__).parent / "data" / "run_of_format_1"
FAILED = Failed(kind="error", message="odd: x", reproduce="1 / 0")


def write(folder: Path, groups: list[Group], step: int = 1, **learned: Any) -> StoredTasks:
    """Store groups as a run does; the tasks that it keeps."""
    (folder / "rollouts").mkdir(exist_ok=True)
    data = to_parquet(groups, step=step, **learned)
    (folder / "rollouts" / f"step-{step:06d}.parquet").write_bytes(data)
    tasks = [StoredTask(task_id=g.task.id, step=1, answer=g.task.answer, columns=g.task.columns) for g in groups]
    return StoredTasks(lines={t.task_id: [StoredTask.from_dict(json.loads(t.line()))] for t in tasks})


def replayed(run: Path, *rewards: RewardSpec, **changes: Any) -> Replay:
    return replay(run, load_run(run, []), rewards, workers=0, **changes)


# Advantages.


def test_intervals_of_a_step_stay_within_the_values_that_all_steps_show(tmp_path: Path) -> None:
    collected = _Collected(tiny_config("model"))
    for step, right in ((1, 0.1), (2, 1.0)):  # nothing is right in the first step but one sample
        rewards = [[0.0, 0.1, 0.1, right if number < 4 else 0.1] for number in range(15)] + [[0.1, 0.1, 1.0, 1.0]]
        groups = [made_up_group(each, task_id=f"{step}-{number}") for number, each in enumerate(rewards)]
        stored = read_step(tmp_path, step, write(tmp_path, groups, step))
        collected.add(stored, stored.groups, None, kl_coef=0.0)
    first = collected.result([]).steps[0].new
    assert 0 <= first.low < first.mean < first.high < 0.4
    assert first == mean_interval([*[[0.0, 0.1, 0.1, 0.1]] * 15, [0.1, 0.1, 1.0, 1.0]], bounds=(0.0, 1.0))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_advantages_of_stored_rollouts_are_those_of_the_learner_to_the_bit(tmp_path: Path, preset: str) -> None:
    reference = {"reference": "teacher"} if preset == "opd" else {}
    config = tiny_config("model", algorithm={"preset": preset}, tasks_per_step=4, **reference)
    algorithm = config.algorithm
    outcomes = [[0.1, 0.1, 0.1], [0.7, FAILED, 0.1, 1 / 3], [FAILED, FAILED], [Abstain(reason="x"), 0.2, 0.9, 0.4]]
    groups = [
        replace(
            made_up_group(each, task_id=f"t{number}", lengths=[1 + (number + i) % 7 for i in range(len(each))]),
            baseline_score=1 / 7 if algorithm.needs_greedy else None,
        )
        for number, each in enumerate(outcomes)
    ]
    if algorithm.max_refills:  # the learner does not get what has no signal
        groups = [groups[1], groups[3], groups[0], groups[2]]
    used = groups[:2] if algorithm.max_refills else groups
    batch = collate(used)
    generator = torch.Generator().manual_seed(0)
    made_up = {
        name: torch.randn(len(batch.sequence_index), generator=generator)
        for name, is_needed in (
            ("old_logprobs", algorithm.has_kl_in_reward),
            ("ref_logprobs", algorithm.needs_reference),
            ("values", algorithm.needs_critic),
        )
        if is_needed
    }
    batch = replace(batch, **made_up)
    limit = config.sampling.max_new_tokens
    advantages, returns = batch_advantages(algorithm, batch, kl_coef=0.3, max_new_tokens=limit)
    tasks = write(tmp_path, groups, learned=learned_columns(replace(batch, advantages=advantages)))
    stored = read_step(tmp_path, 1, tasks)
    again = recompute(config, stored.groups, stored.rows, kl_coef=0.3)
    assert again.reason == ""
    assert again.batch is not None
    assert again.batch.advantages is not None
    assert torch.equal(again.batch.advantages, advantages)
    assert returns is None or (again.batch.returns is not None and torch.equal(again.batch.returns, returns))
    means = {(g, m): row["advantage"] for g, rows in enumerate(stored.rows) for m, row in enumerate(rows)}
    assert again.advantages == {place: mean for place, mean in means.items() if mean is not None}
    assert len(again.advantages) == batch.num_sequences


def test_the_kl_coefficient_of_a_step_is_the_one_that_the_step_before_left() -> None:
    algorithm = {"preset": "rloo", "kl_coef": 0.05, "kl_target": 0.1}
    config = tiny_config("model", algorithm=algorithm)
    rows = [{"step": 1, "policy/kl_coef": 0.04}, {"step": 2}, {"step": 3, "policy/kl_coef": 0.03}, {"step": 4}]
    assert kl_coefs(config, rows) == {1: 0.05, 2: 0.04, 3: 0.04, 4: 0.03}


def test_what_the_learner_computed_is_asked_for(tmp_path: Path) -> None:
    tasks = write(tmp_path, [made_up_group([0.0, 1.0])])
    stored = read_step(tmp_path, 1, tasks)
    again = recompute(tiny_config("model", algorithm="ppo"), stored.groups, stored.rows, kl_coef=0.0)
    assert again.advantages == {}
    assert "lack learner_logprobs and reference_logprobs and values" in again.reason
    negative = [made_up_group([-1.0, 1.0])]
    again = recompute(tiny_config("model", algorithm="maxrl"), negative, stored.rows, kl_coef=0.0)
    assert "needs rewards of at least 0" in again.reason


# Stored samples as rewards get them.


def test_an_episode_comes_back_as_rewards_get_it(tmp_path: Path) -> None:
    task = Task(id="e", messages=({"role": "user", "content": "go"},), answer=(1, 2), columns={"when": b"x", "n": 3})
    actions = [Completion(**_completion((5, 6), "stop")), Completion(**_completion((7,), "length"))]
    between = ({"role": "tool", "content": "4"}, {"role": "user", "content": "and?"})
    turns = (
        Turn(prompt_ids=(1, 2), completion=actions[0], observation=between, reward=0.25),
        Turn(prompt_ids=(8, 9, 10), completion=actions[1], reward=0.75),
    )
    said = [{"role": "assistant", "content": text} for text in ("a", "b")]
    messages = (*task.messages, said[0], *between, said[1])
    common: dict[str, Any] = {"task": task, "seed": 1, "turns": turns, "text": "b", "messages": messages}
    broken = Failed(kind="error", message="it raised", reproduce="", fault="environment", where="game.py:3")
    whole = [
        Trajectory(
            **common,
            sample_index=0,
            outcome=Score(value=0.5, parts={"x": 0.5}, turns=(0.2, 0.3)),
            extras={"x/note": ["n", 1]},
        ),
        Trajectory(**common, sample_index=1, outcome=broken),
        Trajectory(**common, sample_index=2, outcome=FAILED, failed_parts={"odd": FAILED}),
    ]
    tasks = write(tmp_path, [Group(task=task, trajectories=tuple(whole))])
    (group,) = read_step(tmp_path, 1, tasks).groups
    assert group.task == task
    for stored, original in zip(group.trajectories, whole, strict=True):
        first = replace(original.turns[0], prompt_ids=())  # which is not stored
        assert stored == replace(original, turns=(first, original.turns[1]))
    assert [t.outcome for t in unscored(group).trajectories] == [None, broken, None]


def _completion(ids: tuple[int, ...], finish_reason: str) -> dict[str, Any]:
    logprobs = tuple(-0.5 * i for i in ids)
    return {
        "token_ids": ids,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "adapter_version": 2,
        "adapter_hash": "h",
    }


def test_empty_and_adjoining_actions_keep_their_turns(tmp_path: Path) -> None:
    task = Task(id="e", messages=({"role": "user", "content": "go"},))
    tokens: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((1,), (5, 6)), ((), (7,)), ((8, 9), ()), ((4,), (3,))]
    turns = tuple(
        Turn(prompt_ids=between, completion=Completion(**_completion(ids, "stop")), reward=float(number))
        for number, (between, ids) in enumerate(tokens)
    )
    outcome = Score(value=6.0, turns=(0.0, 1.0, 2.0, 3.0))
    whole = Trajectory(task=task, sample_index=0, seed=1, turns=turns, text="", outcome=outcome)
    tasks = write(tmp_path, [Group(task=task, trajectories=(whole,))])
    (group,) = read_step(tmp_path, 1, tasks).groups
    assert group.trajectories[0].turns == (replace(turns[0], prompt_ids=()), *turns[1:])
    path = tmp_path / "rollouts" / "step-000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action_ends"]), path)  # as an older rlft wrote it
    (older,) = read_step(tmp_path, 1, tasks).groups
    assert [turn.reward for turn in older.trajectories[0].turns] == [0.0, 1.0, 2.0, 3.0]
    assert older.trajectories[0].token_ids == whole.token_ids
    assert torch.equal(collate([older]).rewards, collate([Group(task=task, trajectories=(whole,))]).rewards)


def test_a_sum_that_is_too_large_is_no_failure_of_the_environment(tmp_path: Path) -> None:
    large = Failed(kind="too_large", message="weighted sum", reproduce="print(2e9)", parts={"r": 1e9})
    broken = Failed(kind="error", message="it raised", reproduce="", fault="environment")
    tasks = write(tmp_path, [made_up_group([large, broken])])
    (group,) = read_step(tmp_path, 1, tasks).groups
    assert [t.outcome for t in group.trajectories] == [large, broken]
    assert [t.outcome for t in unscored(group).trajectories] == [None, broken]
    path = tmp_path / "rollouts" / "step-000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["failure_fault"]), path)  # where nothing says whose it is
    (older,) = read_step(tmp_path, 1, tasks).groups
    assert None not in [t.outcome for t in unscored(older).trajectories]


def test_a_step_has_its_tasks_as_they_were_then() -> None:
    first = StoredTask(task_id="t", step=1, answer="wrong", columns={"old": 1})
    tasks = StoredTasks(lines={"t": [first, replace(first, step=5, answer="right", columns={"new": 1})]})
    answers = [(task := tasks.of_step("t", step)) and task.answer for step in (0, 1, 4, 5, 9)]
    assert answers == [None, "wrong", "wrong", "right", "right"]
    assert tasks.columns == ["new", "old"]


def test_turns_are_a_signal_where_the_algorithm_judges_them() -> None:
    even, turned = (
        made_up_group([Score(value=1.0, turns=turns) for turns in both], task_id="t")
        for both in ([(1.0, 0.0), (1.0, 0.0)], [(1.0, 0.0), (0.0, 1.0)])
    )
    by_turn, by_sum = (
        tiny_config("m", algorithm={"preset": "dapo", "credit": credit}).algorithm for credit in ("turn", "episode")
    )
    assert by_turn.max_refills
    assert used_groups(by_turn, [even, turned]) == [1]
    assert used_groups(by_sum, [even, turned]) == [0, 1]


def test_a_repeated_task_counts_once_and_nothing_stored_is_said(tmp_path: Path, others: Path) -> None:
    for step, scores in ((1, ([0.0], [1.0])), (2, ([0.5], [1.0]))):
        groups = [made_up_group(each, task_id=f"t{number}") for number, each in enumerate(scores)]
        write(tmp_path, groups, step=step)
    config = tiny_config("m")
    total = replay(tmp_path, config, [RewardSpec(path=f"{others}:constant")], workers=0).total
    assert str(total.old) == str(mean_interval([[0.0, 0.5], [1.0, 1.0]]))  # nan is no equal of nan
    assert total.old.n == total.new.n == 2
    assert _sentences(total)[0] == "No advantage is stored, so none is computed again."


def test_rollouts_of_an_older_rlft_are_replayed_and_what_they_lack_is_said() -> None:
    result = replayed(OLD_RUN, RewardSpec(path=f"{OLD_RUN}/reward.py:odd"))
    assert result.total.counts["reproduced"] == result.total.counts["stored_advantages"] > 0
    assert result.total.counts["sign_flips"] == 0
    assert any("no tasks.jsonl" in note for note in result.notes)


# Comparisons.


def test_the_runs_own_reward_changes_nothing(finished_run: Path) -> None:
    config = load_run(finished_run, [])
    result = replay(finished_run, config, config.rewards, workers=0)
    counts = result.total.counts
    stored = [row for step in range(1, 5) for row in read_rollouts(finished_run, step)]
    assert counts["stored_advantages"] == counts["reproduced"] == counts["advantages"] == len(stored) == 64
    assert not any(counts[name] for name in ("flipped", "tied", "untied", "sign_flips", "to_zero", "gained", "lost"))
    assert str(result.total.old) == str(result.total.new)  # nan is no equal of nan
    assert result.moved == []
    assert result.notes == []
    metrics = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    for step, row in zip(result.steps, metrics, strict=True):
        assert (step.old.mean, step.old.bounded) == (row["reward/mean"], "reward/low" in row)


OTHERS = """
def negated(completion, answer, difficulty):
    assert answer == "a"
    value = sum(ord(character) % 2 for character in completion) / max(1, len(completion))
    return {"score": -value, "difficulty": difficulty}

def constant(completion):
    return 0.5

def half(completion, task_id, trajectory):
    if trajectory.sample_index == 0:
        raise RuntimeError("no")
    return None if trajectory.sample_index == 1 else len(completion)
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("others") / "others.py"
    file.write_text(OTHERS)
    return file


def test_the_opposite_reward_flips_every_rank_and_sign(finished_run: Path, others: Path) -> None:
    result = replayed(finished_run, RewardSpec(path=f"{others}:negated", name="odd"), steps=[2, 4])
    counts = result.total.counts
    rows = [row for step in (2, 4) for row in read_rollouts(finished_run, step)]
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault((row["step"], row["group_index"]), []).append(row["reward"])
    different = sum(a != b for g in groups.values() for i, a in enumerate(g) for b in g[:i])
    assert counts["flipped"] == counts["pairs"] == different > 0
    assert counts["sign_flips"] == sum(row["advantage"] != 0 for row in rows) > 0
    assert (counts["gained"], counts["lost"], counts["groups"]) == (0, 0, 8)
    assert result.total.new.mean == pytest.approx(-result.total.old.mean)
    assert result.only_new == ["odd/difficulty"]
    part = result.total.parts["odd"]
    assert part.differ == sum(row["reward"] != 0 for row in rows)
    assert part.total == pytest.approx(2 * sum(abs(row["reward"]) for row in rows))
    distances = sorted((2 * abs(row["advantage"]) for row in rows), reverse=True)[:MOVED]
    assert [moved.distance for moved in result.moved] == pytest.approx(distances)
    top = result.moved[0]
    (row,) = [r for r in rows if f"{r['step']}/{r['task_id']}/{r['sample_index']}" == top.sample]
    assert (top.old_advantage, top.old_reward) == (row["advantage"], row["reward"])
    assert top.new_reward == -row["reward"]


def test_lost_signal_failures_and_abstentions_are_counted(finished_run: Path, others: Path) -> None:
    counts = replayed(finished_run, RewardSpec(path=f"{others}:constant"), steps=[1]).total.counts
    assert counts["lost"] == counts["groups"] == 4
    assert counts["tied"] == counts["pairs"] > 0
    assert counts["to_zero"] > 0
    result = replayed(finished_run, RewardSpec(path=f"{others}:half"), steps=[1])
    counts = result.total.counts
    assert (counts["samples"], counts["failed_new"], counts["abstained_new"], counts["compared"]) == (16, 4, 4, 8)
    assert counts["advantages"] == 8
    (told,) = [note for note in result.notes if "fails" in note]
    assert told.startswith("step 1: the first that fails (error): half: ")
    assert ", at " in told
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["total"]["failed_new"] == 4


def test_what_cannot_be_replayed_is_said(finished_run: Path, tmp_path: Path) -> None:
    needy = tmp_path / "needy.py"
    needy.write_text("def needy(completion, photo): return 1.0\n")
    with pytest.raises(ValueError, match="nothing supplies its parameter 'photo'"):
        replayed(finished_run, RewardSpec(path=f"{needy}:needy"))
    with pytest.raises(ValueError, match=r"needs the learner.*rewards.reward_model:reward_model"):
        replayed(finished_run, RewardSpec(path="adapter:runs/x/reward-model"))
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    lines = (copy / "tasks.jsonl").read_text().splitlines()
    lost = [json.dumps({**json.loads(line), "lost": ["photo"]}) + "\n" for line in lines]
    (copy / "tasks.jsonl").write_text("".join(lost))
    with pytest.raises(ValueError, match="photo could not be kept"):
        replayed(copy, RewardSpec(path=f"{needy}:needy"))


# Explaining a sample.


def test_a_sample_is_named_as_replay_or_health_name_it() -> None:
    shown = Sample(step=12, task="a/b", index=3, reward=1.0, parts={}, tokens=1, excerpt="").id
    assert parse_sample("12/a/b/3") == parse_sample(shown) == (12, "a/b", 3)
    for wrong in ("step-/a/3", "step-x/a/3", "a/3", "12/a"):
        with pytest.raises(ValueError, match="names no sample"):
            parse_sample(wrong)


def test_a_sample_is_explained_by_its_row(finished_run: Path) -> None:
    config = load_run(finished_run, [])
    rows = read_rollouts(finished_run, 3)
    shares = []
    for row in rows:
        facts = explain(finished_run, config, f"3/{row['task_id']}/{row['sample_index']}")
        scores = [r["reward"] for r in rows if r["group_index"] == row["group_index"]]
        assert facts["reward"]["parts"] == [
            {"name": "odd", "value": row["reward"], "weight": 1.0, "contribution": row["reward"]}
        ]
        assert facts["group"]["mean"] == pytest.approx(statistics.fmean(scores))
        assert facts["group"]["rank"] == sorted(scores, reverse=True).index(row["reward"]) + 1
        advantage = facts["advantage"]
        assert advantage["stored"] == advantage["recomputed"] == row["advantage"]
        assert advantage["baseline"] == pytest.approx(statistics.fmean(scores))
        expected = (row["reward"] - statistics.fmean(scores)) / (statistics.stdev(scores) + 1e-4)
        assert advantage["stored"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert facts["loss"]["ratio"] == 1.0
        shares.append(facts["loss"]["gradient_share"])
        assert facts["loss"]["step_gradient_share"] == shares[-1]  # one update is the step
        assert facts["unknown"] == []
    assert sum(shares) == pytest.approx(1.0)
    total = sum(abs(row["advantage"]) for row in rows)  # sequence means: every sample weighs the same
    assert isinstance(config.algorithm, PolicyObjective)
    assert config.algorithm.aggregate == "sequence_mean"
    assert shares == pytest.approx([abs(row["advantage"]) / total for row in rows], rel=1e-4)


def test_the_shares_of_an_update_and_of_the_step_add_up(tmp_path: Path) -> None:
    algorithm = {"preset": "grpo", "scale": "none", "correction": "none"}
    config = tiny_config("model", algorithm=algorithm, updates_per_step=2, tasks_per_step=2)
    # The second update's advantages are four times the first's, so four fifths of the step are its own.
    groups = [made_up_group([0.0, 1.0], task_id="a"), made_up_group([0.0, 4.0], task_id="b")]
    batch = collate(groups)
    advantages, _ = batch_advantages(config.algorithm, batch, kl_coef=0.0, max_new_tokens=8)
    write(tmp_path, groups, learned=learned_columns(replace(batch, advantages=advantages)))
    losses = [explain(tmp_path, config, f"1/{name}")["loss"] for name in ("a/0", "a/1", "b/0", "b/1")]
    assert [loss["update"] for loss in losses] == [1, 1, 2, 2]
    assert [loss["gradient_share"] for loss in losses] == pytest.approx([0.5] * 4)
    assert [loss["step_gradient_share"] for loss in losses] == pytest.approx([0.1, 0.1, 0.4, 0.4])
    shown = Console(width=200, file=io.StringIO())
    show_explained(shown, explain(tmp_path, config, "1/b/1"))
    assert isinstance(shown.file, io.StringIO)
    assert "share of the gradient: 50.00 %, 40.00 % of its step's (weight times |advantage|" in shown.file.getvalue()


def test_what_stored_data_cannot_say_is_said(tmp_path: Path) -> None:
    config = tiny_config(
        "model",
        algorithm={"preset": "grpo", "correction": "token_mask", "overlong": "mask"},
        updates_per_step=2,
        tasks_per_step=2,
    )
    groups = [made_up_group([0.0, 1.0], task_id="a/b"), made_up_group([1.0, 3.0], task_id="c", finish_reason="length")]
    batch = collate(groups)
    batch = replace(batch, old_logprobs=batch.rollout_logprobs + math.log(1.5))
    advantages, _ = batch_advantages(config.algorithm, batch, kl_coef=0.0, max_new_tokens=8)
    write(tmp_path, groups, learned=learned_columns(replace(batch, advantages=advantages)))
    first = explain(tmp_path, config, "1/a/b/1")["loss"]
    assert (first["update"], first["ratio"], first["included"], first["masked"]) == (1, 1.0, True, 0)
    assert first["correction"]["mean"] == pytest.approx(1.5, rel=1e-5)
    assert first["gradient_share"] == pytest.approx(0.5, rel=1e-3)
    facts = explain(tmp_path, config, "1/c/0")
    assert (facts["loss"]["update"], facts["loss"]["ratio"], facts["loss"]["included"]) == (2, None, False)
    assert facts["loss"]["gradient_share"] == 0.0
    assert any("ratio and clip" in each for each in facts["unknown"])
    with pytest.raises(ValueError, match="samples 0 to 1"):
        explain(tmp_path, config, "1/c/7")
    with pytest.raises(ValueError, match="no task 'd'; it has a/b, c"):
        explain(tmp_path, config, "1/d/0")
    with pytest.raises(ValueError, match="STEP/TASK/INDEX"):
        explain(tmp_path, config, "c/0")


# The commands.


def test_the_commands_print_tables_without_anything_that_acts_on_a_terminal(
    finished_run: Path, others: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    path = run / "rollouts" / "step-000001.parquet"
    table = pq.read_table(path)
    rows = [{**row, "completion": "\x1b[31mred\u202e"} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    wide = {"COLUMNS": "200", "TERM": "dumb"}
    arguments = ["reward", "replay", str(run), "--reward", f"{{path: '{others}:constant', weight: 2.0}}", "--workers=0"]
    shown = CliRunner().invoke(main.app, [*arguments, "--steps", "1,3-9"], env=wide)
    assert shown.exit_code == 0, shown.output
    assert "48 stored advantages are computed again to the bit" in shown.output
    assert "\x1b" not in shown.output
    assert "\u202e" not in shown.output
    as_json = CliRunner().invoke(main.app, [*arguments, "--steps", "3", "--json"], env=wide)
    assert json.loads(as_json.output)["total"]["new"]["mean"] == 1.0
    for columns in ("80", "30"):  # nothing is cut that a user copies or compares
        narrow = CliRunner().invoke(main.app, [*arguments, "--steps", "3"], env={**wide, "COLUMNS": columns}).output
        (line,) = (line for line in narrow.splitlines() if line.lstrip().startswith("all "))
        assert re.search(r"2\.00\b|1\.00\b", line)
        assert line.count(" of ") == 2
        assert columns == "30" or max(map(len, narrow.partition("moved most")[2].splitlines())) <= 80
        for moved in json.loads(as_json.output)["moved"]:
            assert re.search(rf"^{re.escape(moved['sample'])} +\S+ \u2192 \S+ +\S+ \u2192 \S+ ", narrow, re.MULTILINE)
    sample = json.loads(as_json.output)["moved"][0]["sample"]
    explained = CliRunner().invoke(main.app, ["reward", "explain", str(run), sample], env=wide)
    assert explained.exit_code == 0, explained.output
    assert "share of the gradient" in explained.output
    row = random.Random(0).choice(rows)
    name = f"1/{row['task_id']}/{row['sample_index']}"
    explained = CliRunner().invoke(main.app, ["reward", "explain", str(run), name, "--json"], env=wide)
    assert json.loads(explained.output)["sample"]["completion"] == row["completion"]


def test_the_pages_examples_run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "runs" / "tiny")
    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text()
    section = page[page.index("## Change a reward with open eyes") :].partition("\n## ")[0]
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", section, re.DOTALL):
        (tmp_path / name).write_text(text)
    (commands,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    for line in commands.splitlines():
        command, *arguments = shlex.split(line)
        assert command == "rlft"
        done = CliRunner().invoke(main.app, [*arguments, "--workers=0"])
        assert done.exit_code == 0, done.output
    monkeypatch.setattr(sys, "argv", ["which_code.py", "runs/tiny/rollouts/step-000001.parquet"])
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        runpy.run_path("which_code.py")
    sources = json.loads(shown.getvalue())
    source = (finished_run.parents[1] / "reward.py").read_bytes()
    assert sources["rewards"]["odd"]["files"] == {"reward.py": hashlib.sha256(source).hexdigest()}
    assert list(sources["environment"]["files"]) == ["fakes.py"]


def test_rewards_and_steps_as_they_are_written(tmp_path: Path) -> None:
    stored = [1, 2, 4, 7]
    assert steps_of("all", stored) == stored
    assert steps_of("2, 4-9", stored) == [2, 4, 7]
    for wrong, said in (("x", "write all"), ("3", "no rollouts of 3; stored: 1 to 7"), ("5-6", "stored")):
        with pytest.raises(ValueError, match=said):
            steps_of(wrong, stored)
    assert rewards_of(["a.py:b", "{path: 'c.py:d', weight: 0.5, args: {most: 3}}"]) == [
        RewardSpec(path="a.py:b"),
        RewardSpec(path="c.py:d", weight=0.5, args={"most": 3}),
    ]
    for wrong, said in (
        ("{pth: 3}", "path: this key is required; pth: unknown key. Did you mean 'path'?"),
        ("{path: c.py:d, role: sahdow}", "role: Input should be 'train' or 'shadow' (got 'sahdow')"),
        ("{path: }", "path: Input should be a valid string (got None)"),
        ("{path: c.py:d, weight: two}", "weight: Input should be a valid number"),
        ("{path: c.py:d, args: 3}", "args: Input should be a valid dictionary (got 3)"),
        ("{path: c.py:d, role: shadow, weight: 2}", "reward 'd' is a shadow and not trained on; leave out its weight"),
        ("{path: [", "flow node"),
    ):
        with pytest.raises(ValueError, match=f"no reward's settings, such as .*{re.escape(said)}"):
            rewards_of([wrong])
