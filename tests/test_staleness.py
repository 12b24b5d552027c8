"""Rollouts ahead of the learner: who generates which step follows from the config, after a resume and on Ray too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlft.common.files import sha256
from rlft.config_file import load
from rlft.learner.rl import Learner
from rlft.model.adapter import adapter_hash, bare_base, make_adapter
from rlft.objectives.presets import PRESETS
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.pool import InlinePool
from rlft.rollout.worker import RolloutWorker
from rlft.run.checkpoint import load_latest
from rlft.train.rl import launch, services
from rlft.train.rl import loop as train_rl
from rlft.train.rl.metrics import describe_dropped, describe_staleness
from rlft.train.rl.rollouts import refuse_wrong_stamps
from rlft.train.rl.state import restore, snapshot
from rlft.types import Abstain, Failed, Group, Trajectory
from tests.conftest import MakeConfig
from tests.fakes import made_up_group, read_lines, read_metrics, read_result, read_rollouts, write_config
from tests.fakes_pool import LentPool
from tests.sweeps import swept
from tests.test_backends import base_chunks
from tests.test_rl_loop import HALF

pytestmark = pytest.mark.timeout(120)

CORRECTED = "algorithm={preset: grpo, correction: token_truncate}"
STALE = ("steps=5", "max_staleness=2", "checkpoint.every=1", "evaluation.tasks=4", "evaluation.every=2", CORRECTED)
REMAX = "algorithm={preset: remax, correction: token_truncate}"
DAPO = "algorithm={preset: dapo, max_refills: 4, correction: token_truncate}"


@pytest.fixture(scope="module")
def stale_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An inline run whose samples are up to two versions old; nobody changes it."""
    config = load(write_config(tmp_path_factory.mktemp("stale"), tiny_model), STALE)
    launch.train(config)
    return config.run_dir


def versions(run: Path, step: int, kind: str = "step") -> set[int]:
    rows = pq.read_table(run / "rollouts" / f"{kind}-{step:06d}.parquet").to_pylist()
    return {row["adapter_version"] for row in rows}


def test_the_version_that_generates_is_a_function_of_the_step(stale_run: Path) -> None:
    assert [versions(stale_run, step) for step in (1, 2, 3, 4, 5)] == [{0}, {0}, {0}, {1}, {2}]
    rows = read_metrics(stale_run)
    assert [row["rollout/staleness_mean"] for row in rows] == [0, 1, 2, 2, 2]
    assert [row["rollout/staleness_max"] for row in rows] == [0, 1, 2, 2, 2]
    assert [row.get("rollout/staleness/2") for row in rows] == [None, None, 1, 1, 1]
    assert rows[0]["policy/ess"] == pytest.approx(1, abs=1e-4)
    assert all(row["policy/ess"] < 1 - 1e-4 for row in rows[1:])  # the samples are off-policy, and that is seen


def test_evaluations_measure_the_present_adapter(stale_run: Path) -> None:
    for step in (2, 4, 5):
        rows = pq.read_table(stale_run / "evals" / f"step-{step:06d}.parquet").to_pylist()
        assert {row["adapter_version"] for row in rows} == {step}


def test_staleness_changes_the_curve(stale_run: Path, make_config: MakeConfig) -> None:
    # Otherwise the comparisons below would say nothing.
    config = make_config(*STALE, "max_staleness=0")
    launch.train(config)
    mine, other = read_metrics(config.run_dir), read_metrics(stale_run)
    assert mine[0]["reward/mean"] == other[0]["reward/mean"]
    assert [row["reward/mean"] for row in mine[1:]] != [row["reward/mean"] for row in other[1:]]


@pytest.mark.parametrize("workers", swept([1, 3], always=lambda workers: workers == 3))
def test_ray_gives_the_run_that_inline_gives(
    stale_run: Path, make_config: MakeConfig, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(services, "make_pool", LentPool)
    config = make_config(*STALE, "backend=ray", f"rollout.workers={workers}")
    launch.train(config)
    assert read_metrics(config.run_dir) == read_metrics(stale_run)
    assert read_result(config.run_dir) == read_result(stale_run)
    assert all(row["time/overlap"] > 0 for row in read_lines(config.run_dir / "metrics.jsonl")[1:-2])
    assert all("rollout/worker_rss_mb" in row for row in read_lines(config.run_dir / "metrics.jsonl"))


@pytest.mark.parametrize("step", swept([1, 2, 3, 4], always=lambda step: step in (2, 3)))
def test_a_resumed_run_generates_again_what_was_in_flight(
    stale_run: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = make_config(*STALE)

    real = train_rl.StepRollouts.publish
    with monkeypatch.context() as patch:
        patch.setattr(
            train_rl.StepRollouts,
            "publish",
            lambda self, adapter: stop_at(adapter.version, step) or real(self, adapter),
        )
        with pytest.raises(KeyboardInterrupt):
            launch.train(config)
    assert len(read_metrics(config.run_dir)) == step
    launch.resume(config.run_dir)
    result, expected = read_result(config.run_dir), read_result(stale_run)
    assert result == expected
    name = f"checkpoints/step-{5:06d}/tensors.safetensors"
    assert name in result
    with safe_open(config.run_dir / name, "pt") as file:
        assert {key.split("/")[1] for key in file.keys() if key.startswith("published/")} == {"3", "4"}  # noqa: SIM118


def stop_at(version: int, step: int) -> None:
    if version == step + 1:
        raise KeyboardInterrupt


def test_a_checkpoint_whose_earlier_adapter_is_another_one_is_refused(
    stale_run: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    copy = shutil.copytree(stale_run, tmp_path / "copy")
    folder = copy / "checkpoints" / "step-000005"
    tensors = load_file(folder / "tensors.safetensors")
    name = next(name for name in tensors if name.startswith("published/4/"))
    tensors[name] = tensors[name] + 1
    save_file(tensors, folder / "tensors.safetensors")
    manifest = {p.name: sha256(p) for p in folder.iterdir() if p.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (copy / "summary.json").unlink()  # a finished run would not be continued
    with pytest.raises(ValueError, match="holds another adapter 4 than it names"):
        launch.resume(copy)


def test_earlier_adapters_keep_their_canary_in_a_checkpoint(stale_run: Path) -> None:
    saved, _ = load_latest(stale_run / "checkpoints")
    assert saved is not None
    learner = Learner(load(stale_run / "config.yaml"), load(stale_run / "config.yaml").model.source)
    earlier = restore(learner, saved)
    assert [adapter.version for adapter in earlier] == [3, 4]
    assert all(adapter.canary is not None and len(adapter.canary.logprobs) > 10 for adapter in earlier)
    again = snapshot(learner, saved.step, earlier)
    of_learner = {name: part for name, part in saved.state.items() if name != "sources"}  # which the launch adds
    assert json.loads(json.dumps(again.state)) == of_learner
    assert again.tensors.keys() == saved.tensors.keys()


def test_refills_come_from_the_present_adapter(make_config: MakeConfig) -> None:
    config = make_config("steps=3", "max_staleness=1", "evaluation.tasks=2", DAPO, "checkpoint.every=1", reward=HALF)
    launch.train(config)
    assert [versions(config.run_dir, step) for step in (1, 2, 3)] == [{0}, {0, 1}, {1, 2}]
    rows = read_metrics(config.run_dir)
    assert rows[1]["rollout/staleness/0"] + rows[1]["rollout/staleness/1"] == 1
    assert all(row["groups/used"] == 4 for row in rows)
    for row in rows:
        stored = read_rollouts(config.run_dir, int(row["step"]))
        unused = [r for r in stored if r["advantage"] is None]
        assert row["rollout/dropped/unused"] == len(unused) > 0
        mean = sum(r["completion_tokens"] for r in unused) / len(unused)
        assert row["rollout/length_dropped"] == pytest.approx(mean)


def test_the_greedy_answers_are_of_the_adapter_of_the_samples(make_config: MakeConfig) -> None:
    config = make_config("steps=3", "max_staleness=1", "evaluation.tasks=2", REMAX)
    launch.train(config)
    for step, version in ((1, 0), (2, 0), (3, 1)):
        assert versions(config.run_dir, step) == versions(config.run_dir, step, "greedy") == {version}


def test_stamps_outside_the_fence_are_refused(make_config: MakeConfig, stale_run: Path) -> None:
    group = made_up_group([1.0, 0.0])  # made by version 0 with the hash ""
    refuse_wrong_stamps([group], {0: "", 1: "one"})
    with pytest.raises(RuntimeError, match=r"made by adapter 0 .*expected 1 \(one\) or 2 \(two\)"):
        refuse_wrong_stamps([group], {1: "one", 2: "two"})
    with pytest.raises(RuntimeError, match=r"made by adapter 0 .*expected 0 \(other\)"):
        refuse_wrong_stamps([group], {0: "other"})


def test_a_worker_with_the_wrong_weights_stops_an_asynchronous_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TransformersEngine.load_adapter

    def load(engine: TransformersEngine, adapter: Any) -> None:
        if adapter.version == 1:  # the merge is missed, and the engine does not notice
            engine.version = 1
            return
        real(engine, adapter)

    monkeypatch.setattr(TransformersEngine, "load_adapter", load)
    config = make_config("steps=4", "max_staleness=1", "evaluation.tasks=2", CORRECTED)
    with pytest.raises(RuntimeError, match=r"does not compute with adapter version 1.*They look like version 0"):
        launch.train(config)
    # Without the canary it is the stamp, when the first samples of that version come, in step 3.
    monkeypatch.setattr("rlft.rollout.worker.Prover", lambda engine: lambda adapter: None)
    with pytest.raises(RuntimeError, match=r"was made by adapter 1 .*the rollout worker holds the wrong weights"):
        launch.train(config, restart=True)
    assert len(read_metrics(config.run_dir)) == 2


def test_a_published_adapter_that_is_not_the_samples_own_is_refused_too(
    stale_run: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Step 5 belongs to version 2. Version 3 is known and its hash is right, but it would be a question of timing.
    newer = adapter_hash(load_file(stale_run / "adapters" / "v000003" / "adapter_model.safetensors"))
    real = RolloutWorker.run_chunk

    def run_chunk(worker: RolloutWorker, chunk: Chunk) -> list[Group]:
        groups = real(worker, chunk)
        return [restamped(group, 3, newer) for group in groups] if chunk.step == 5 else groups

    monkeypatch.setattr(RolloutWorker, "run_chunk", run_chunk)
    config = make_config(*STALE)
    with pytest.raises(RuntimeError, match=r"made by adapter 3 .*expected 2 \("):
        launch.train(config)
    assert len(read_metrics(config.run_dir)) == 4


def restamped(group: Group, version: int, name: str) -> Group:
    def stamp(trajectory: Trajectory) -> Trajectory:
        (turn,) = trajectory.turns
        completion = replace(turn.completion, adapter_version=version, adapter_hash=name)
        return replace(trajectory, turns=(replace(turn, completion=completion),))

    return replace(group, trajectories=tuple(map(stamp, group.trajectories)))


def test_the_policys_own_motion_is_no_mismatch(make_config: MakeConfig) -> None:
    # Steps so large that old samples differ by more than the bound: the guard is for engines, not for staleness.
    config = make_config("steps=3", "max_staleness=1", "evaluation.tasks=2", CORRECTED, "rollout.max_mismatch=1.0e-3")
    launch.train(config)
    assert read_metrics(config.run_dir)[-1]["policy/mismatch"] > 1e-3


def test_inline_work_is_done_before_another_adapter_is_loaded(make_config: MakeConfig) -> None:
    config = make_config()
    pool = InlinePool(config, config.model.source)
    pool.publish(bare_base())
    pending = pool.submit(base_chunks(config))
    pool.publish(make_adapter(3, {}))
    assert {t.turns[0].completion.adapter_version for group in pending.collect() for t in group.trajectories} == {-1}


# Configs that make no sense.


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("max_staleness=1",), r"algorithm\.correction to one of token_truncate, token_mask, sequence_truncate"),
        (("max_staleness=1", "algorithm=online_dpo"), "compares whole samples.*use max_staleness: 0"),
        (("rollout.update_in_flight=true",), "set max_staleness to at least 1"),
        (("rollout.update_in_flight=true", "max_staleness=1", CORRECTED), "and backend: ray"),
    ],
)
def test_contradictions_are_refused_with_a_way_out(
    make_config: MakeConfig, overrides: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make_config(*overrides)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "online_dpo"])
def test_every_other_preset_takes_a_correction(make_config: MakeConfig, preset: str) -> None:
    extra = ["reference=somewhere"] if preset == "opd" else []
    config = make_config(f"algorithm={{preset: {preset}, correction: token_mask}}", "max_staleness=1", *extra)
    assert config.max_staleness == 1


# Metrics.


def test_staleness_of_several_turns_is_that_of_the_oldest() -> None:
    group = made_up_group([1.0, 0.0])
    assert describe_staleness([group], version=3) == {
        "rollout/staleness_mean": 3.0,
        "rollout/staleness_max": 3.0,
        "rollout/staleness/3": 1.0,
    }
    assert describe_staleness([], version=3) == {}


def test_dropped_samples_are_counted_by_cause_with_their_length() -> None:
    failed = Failed(kind="error", message="", reproduce="")
    used = [made_up_group([1.0, failed, Abstain(reason="")], lengths=[2, 7, 4])]
    unused: list[Group] = [made_up_group([0.0, 0.0], lengths=[6, 3])]
    assert describe_dropped(used, unused) == {
        "rollout/dropped/failed": 1,
        "rollout/dropped/abstained": 1,
        "rollout/dropped/unused": 2,
        "rollout/length_dropped": 5,  # (7 + 4 + 6 + 3) / 4
        "rollout/length_kept": 2,
    }
