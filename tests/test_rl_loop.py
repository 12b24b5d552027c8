"""The loop: rounds of rollouts, the greedy baseline, updates that are not finite, and every preset end to end."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rlft.config_file import load
from rlft.learner.batch import collate
from rlft.learner.rl import Learner
from rlft.learner.update import Update, step_metrics
from rlft.objectives.presets import PRESETS
from rlft.train.rl import launch
from rlft.types import Batch
from tests.conftest import MakeConfig
from tests.fakes import read_lines, read_metrics, read_result, read_rollouts
from tests.observables import requested_chunks
from tests.sweeps import swept

pytestmark = pytest.mark.timeout(120)

QUICK = ("evaluation.tasks=2", "steps=2")

# A reward that is constant on the tasks whose number is even, so that half of the groups have no signal.
HALF = """
def odd(completion, task_id):
    if int(task_id.rpartition("-")[2]) % 2 == 0:
        return 0.5
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
"""


def signal(rows: list[dict[str, object]]) -> dict[int, bool]:
    """Whether each stored group's rewards differ."""
    groups = {row["group_index"] for row in rows}
    return {group: len({row["reward"] for row in rows if row["group_index"] == group}) > 1 for group in groups}


# Dynamic sampling


@pytest.mark.parametrize("max_failed", [0.5, 0.01])
def test_failures_of_a_refill_are_judged_with_the_whole_step(make_config: MakeConfig, max_failed: float) -> None:
    broken = HALF.replace("    if", "    if rollout_seen(task_id):\n        raise ValueError('broken')\n    if", 1)
    counted = "SEEN = []\n\ndef rollout_seen(task_id):\n    SEEN.append(task_id)\n    return len(SEEN) > FIRST\n"
    settings = (f"scoring={{workers: 0, check: off, max_failed: {max_failed}}}", "steps=1")
    config = make_config(*QUICK, *settings, "algorithm={preset: dapo, max_refills: 1}", reward=counted + broken)
    first = config.evaluation.tasks + config.tasks_per_step * config.samples_per_task
    source = Path(config.rewards[0].path.rpartition(":")[0])
    source.write_text(f"FIRST = {first}\n" + source.read_text())
    with pytest.raises(RuntimeError, match="could not be scored" if max_failed < 0.1 else "evaluation step-000001"):
        launch.train(config)  # all of the refill's samples fail; the evaluation after the step, too
    outcomes = Counter(row["outcome"] for row in read_rollouts(config.run_dir, 1))
    assert outcomes["score"] == config.tasks_per_step * config.samples_per_task
    assert outcomes["failed"] > 0


def test_groups_without_signal_are_replaced(make_config: MakeConfig) -> None:
    config = make_config(*QUICK, "algorithm={preset: dapo, max_refills: 4}", reward=HALF)
    launch.train(config)
    for row in read_metrics(config.run_dir):
        stored = read_rollouts(config.run_dir, int(row["step"]))
        has_signal = signal(stored)
        assert row["groups/used"] == 4 == sum(has_signal.values())
        assert row["groups/total"] == len(has_signal) > 4
        # Only groups that were trained on have advantages; all samples are in the metrics and in the table.
        trained = {r["group_index"] for r in stored if r["advantage"] is not None}
        assert trained == {group for group, differs in has_signal.items() if differs}
        rewards = [r["reward"] for r in stored]
        assert row["reward/mean"] == pytest.approx(sum(rewards) / len(rewards))


def test_a_refill_draws_tasks_and_seeds_of_its_own(make_config: MakeConfig) -> None:
    config = make_config(*QUICK, "algorithm={preset: dapo, max_refills: 4}", reward=HALF)
    launch.train(config)
    for step in (1, 2):
        stored = read_rollouts(config.run_dir, step)
        assert max(Counter(r["seed"] for r in stored).values()) == 1


def test_without_refills_groups_without_signal_stay(make_config: MakeConfig) -> None:
    config = make_config(*QUICK, "algorithm={preset: dapo, max_refills: 0}", reward=HALF)
    launch.train(config)
    for row in read_metrics(config.run_dir):
        assert row["groups/used"] == row["groups/total"] == 4


def test_when_no_group_ever_has_signal_no_update_is_made(make_config: MakeConfig) -> None:
    config = make_config(
        *QUICK,
        "algorithm={preset: dapo, max_refills: 2, overlong: count}",
        reward="def odd(completion):\n    return 0.5\n",
    )
    launch.train(config)
    rows = read_metrics(config.run_dir)
    assert [row["policy/updates"] for row in rows] == [0, 0]
    assert [row["groups/total"] for row in rows] == [12, 12]  # 3 rounds of 4
    assert {event["kind"] for event in read_lines(config.run_dir / "events.jsonl")} >= {"no_signal"}


@pytest.mark.parametrize(
    ("algorithm", "streams"),
    [("remax", {"train", "greedy"}), ("{preset: dapo, max_refills: 2}", {"train", "refill-1", "refill-2"})],
)
def test_all_samples_of_a_task_meet_the_same_environment(
    make_config: MakeConfig, algorithm: str, streams: set[str]
) -> None:
    chunks = requested_chunks(make_config(*QUICK, f"algorithm={algorithm}"))
    assert {chunk.stream for chunk in chunks} == streams
    for chunk in chunks:
        for task in chunk.tasks:
            assert chunk.environment_seed(task) == replace(chunk, stream="train").environment_seed(task)


# The greedy baseline


def test_the_greedy_answer_is_the_baseline(make_config: MakeConfig) -> None:
    algorithm = "algorithm={preset: remax, kl: none, kl_coef: 0, kl_in: loss}"
    config = make_config(*QUICK, algorithm)
    launch.train(config)
    for step in (1, 2):
        stored = read_rollouts(config.run_dir, step)
        path = config.run_dir / "rollouts" / f"greedy-{step:06d}.parquet"
        greedy = {row["task_id"]: row["reward"] for row in _read(path)}
        assert len(greedy) == 4
        for row in stored:
            assert row["advantage"] == pytest.approx(row["reward"] - greedy[row["task_id"]], abs=1e-6)


def test_a_group_whose_greedy_answer_fails_is_left_out(make_config: MakeConfig) -> None:
    reward = '''
def odd(completion, trajectory, task_id):
    # The greedy answer is the only one whose group has one sample; its seed differs from the samples'.
    value = sum(ord(character) % 2 for character in completion) / max(1, len(completion))
    if trajectory.sample_index == 0 and task_id.endswith(("1", "3", "5", "7")) and repeated(trajectory):
        raise ValueError("no score for this one")
    return value

seen = set()

def repeated(trajectory):
    """Whether this task's first sample came before: the greedy one is scored after the others."""
    key = trajectory.task.id
    if key in seen:
        seen.discard(key)
        return True
    seen.add(key)
    return False
'''
    config = make_config(
        *QUICK, "steps=1", "evaluation.tasks=2", "algorithm=remax", "scoring.max_failed=0.9", reward=reward
    )
    launch.train(config)
    [row] = read_metrics(config.run_dir)
    greedy = _read(config.run_dir / "rollouts" / "greedy-000001.parquet")
    failed = [r["task_id"] for r in greedy if r["outcome"] == "failed"]
    assert 0 < len(failed) < 4
    assert row["groups/used"] == 4 - len(failed)
    advantages = {r["task_id"]: r["advantage"] for r in read_rollouts(config.run_dir, 1)}
    assert {task for task, advantage in advantages.items() if advantage is None} == set(failed)


# Several updates in a step


def test_a_step_has_the_metrics_of_all_its_updates(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    update, made = Learner.update, []

    def remember(self: Learner, batch: Batch) -> Update:
        made.append(update(self, batch))
        return made[-1]

    monkeypatch.setattr(Learner, "update", remember)
    config = make_config("steps=2", "updates_per_step=2", "evaluation.tasks=2")
    launch.train(config)
    rows = read_metrics(config.run_dir)
    assert len(made) == 4
    for row, updates in zip(rows, (made[:2], made[2:]), strict=True):
        expected = step_metrics(updates)
        assert {name: row[name] for name in expected} == expected
        for name in ("policy/loss", "policy/clip_fraction", "policy/grad_norm"):
            assert name in expected
        assert expected["policy/entropy"] not in [each.metrics["policy/entropy"] for each in updates]
    assert [row["policy/updates"] for row in rows] == [2, 4]


# Updates that are not finite


def test_a_batch_whose_update_is_not_finite_is_kept(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    annotate = Learner.annotate

    def poison(self: Learner, batch: Batch) -> Batch:
        annotated = annotate(self, batch)
        assert annotated.advantages is not None
        if self.num_updates == 1:
            annotated.advantages[0] = float("nan")
        return annotated

    monkeypatch.setattr(Learner, "annotate", poison)
    config = make_config("steps=6", "evaluation.tasks=2")
    with pytest.raises(RuntimeError, match="3 updates in a row had a loss or gradient that is not finite"):
        launch.train(config)
    rows = read_metrics(config.run_dir)
    assert [row["policy/skipped"] for row in rows] == [0, 1, 1]  # the third one stopped the run
    kept = sorted((config.run_dir / "skipped").iterdir())
    assert [path.name for path in kept] == [f"step-{s:06d}-{i}.safetensors" for i, s in enumerate((2, 3, 4))]
    with safe_open(kept[0], "pt") as file:
        assert torch.isnan(file.get_tensor("advantages")).any()
        prompts = json.loads(file.metadata()["prompt_ids"])
        assert len(prompts) == file.get_tensor("rewards").numel() == 16
        assert sum(map(sum, json.loads(file.metadata()["action_mask"]))) == file.get_tensor("advantages").numel()


# Every preset

STATEFUL = {"ppo", "dapo", "remax", "opd", "online_dpo"}
"""A critic, refills, greedy answers, a teacher, pairs: the others keep nothing else between steps than GRPO, which is
resumed in all ways elsewhere."""


def overrides(preset: str, teacher: Path) -> list[str]:
    extra = [f"reference={teacher}"] if preset == "opd" else []
    updates = 1 if getattr(PRESETS[preset], "surrogate", "") == "score_function" else 2
    return ["steps=4", "evaluation.tasks=2", f"algorithm={preset}", f"updates_per_step={updates}", *extra]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """An adapter that is not the policy."""
    folder = tmp_path_factory.mktemp("teacher") / "adapter"
    shutil.copytree(max(finished_run.glob("adapters/v*")), folder)
    return folder


@pytest.mark.parametrize("preset", swept(PRESETS, always=STATEFUL.__contains__))
def test_a_resumed_run_of_every_preset_ends_with_the_same_bytes(
    make_config: MakeConfig, teacher: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = overrides(preset, teacher)
    whole = make_config(*changes, "name=whole", "algorithm.preset=" + preset)
    launch.train(whole)
    cut = make_config(*changes, "name=cut")

    annotate = Learner.annotate

    def stop(self: Learner, batch: Batch) -> Batch:
        if self.num_updates > 2 * cut.updates_per_step:  # in step 4 of 4, after the checkpoint of step 2
            raise KeyboardInterrupt
        return annotate(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "annotate", stop)
        with pytest.raises(KeyboardInterrupt):
            launch.train(cut)
    assert len(read_metrics(cut.run_dir)) < 4
    launch.resume(cut.run_dir)
    one, other = read_result(whole.run_dir), read_result(cut.run_dir)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == ["summary.json"]  # it holds the run's name


DEBUG_CONFIGS = Path(__file__).parents[1] / "configs" / "debug"


def test_every_preset_has_a_debug_config() -> None:
    assert {path.stem for path in DEBUG_CONFIGS.glob("*.yaml")} >= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_debug_config_is_its_preset(preset: str) -> None:
    overrides = ["reference=somewhere"] if preset == "opd" else []
    assert load(DEBUG_CONFIGS / f"{preset}.yaml", overrides).algorithm == PRESETS[preset]


@pytest.mark.parametrize("preset", swept(PRESETS, always=STATEFUL.__contains__))
def test_every_debug_config_runs(tmp_path: Path, tiny_model: Path, preset: str) -> None:
    overrides = [f"output_dir={tmp_path}", f"model={{source: {tiny_model}, dtype: float32}}", "evaluation.tasks=2"]
    overrides += ["environment.args={high: 20, heldout: 4, demonstrations: 16}", "sft.epochs=0.5"]
    overrides += ["learner.threads=1", "rollout.threads=1"]
    if preset == "opd":
        overrides.append(f"reference={tiny_model}")
    config = load(DEBUG_CONFIGS / f"{preset}.yaml", overrides)
    launch.train(config)
    assert len(read_metrics(config.run_dir)) == 2


def test_an_adaptive_coefficient_is_steered(make_config: MakeConfig) -> None:
    config = make_config("steps=3", "evaluation.tasks=2", "algorithm={preset: grpo, kl_target: 1.0e-6}", "seed=3")
    launch.train(config)
    coefficients = [row["policy/kl_coef"] for row in read_metrics(config.run_dir)]
    # The first update starts on the reference, with a KL of 0 below the target: 10 % down. Then it is above: 10 % up.
    assert coefficients == pytest.approx([0.04 * 0.9, 0.04 * 0.9 * 1.1, 0.04 * 0.9 * 1.1 * 1.1])


def test_collate_keeps_the_baseline_scores(finished_run: Path) -> None:
    from tests.fakes import made_up_group

    groups = [made_up_group([1.0, 0.0], task_id="a", baseline_score=0.5), made_up_group([0.0], baseline_score=None)]
    assert collate(groups).baseline_rewards is None
    greedy = collate(groups[:1]).baseline_rewards
    assert greedy is not None
    assert greedy.tolist() == [0.5, 0.5]


def _read(path: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()
