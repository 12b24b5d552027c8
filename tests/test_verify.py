"""`rlft verify`: an honest run agrees, a changed one is found as often as is said; what cannot be checked is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.config import RunConfig
from rlft.curves.reading import read_evals
from rlft.reward import judge_cache
from rlft.reward.stored import read_samples, read_tasks
from rlft.run import manifest
from rlft.run.directory import read_config
from rlft.run.resume import How
from rlft.train.rl import launch
from rlft.train.rl.verify.arithmetic import check_evaluation
from rlft.train.rl.verify.findings import Check, Verification
from rlft.train.rl.verify.material import ELSEWHERE
from rlft.train.rl.verify.odds import choose
from rlft.train.rl.verify.verify import verify
from rlft.types import RewardSpec
from tests import forgeries
from tests.conftest import WIDE
from tests.forgeries import STEP

SEEDS = 6
ROLLOUTS = f"rollouts/step-{STEP:06d}.parquet"


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "copy")


def check(run: Path, share: float = 1.0, seed: int = 0, root: str = "") -> Verification:
    """Verify in this process, without scoring processes."""
    return verify(run, read_config(run, RunConfig), share=share, seed=seed, root=root, workers=0)


def found(result: Verification) -> dict[str, list[str]]:
    """Differences by what was checked."""
    return {each.what: each.differences for each in result.checks if each.different}


def probability(result: Verification, change: str, kind: str = "fitted") -> float:
    """What is printed for a change whose description begins so."""
    return next(getattr(odds, kind) for odds in result.odds if odds.change.startswith(change))


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["verify", *arguments], env=WIDE)


def test_an_honest_run_agrees_to_the_bit(finished_run: Path) -> None:
    root = manifest.root_hash(finished_run)
    result = invoke(str(finished_run), "--share", "1", "--seed", "3", "--root", root, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["verdict"], told["is_exact"], told["is_signed"], told["root"]) == ("agrees", True, True, root)
    checked = {each["what"]: (each["checked"], each["different"]) for each in told["checks"]}
    samples = 4 * 4 * 4 + 2 * 8  # steps, tasks and samples; two evaluations of eight tasks
    assert checked["samples generated again"] == checked["samples scored again"] == (samples, 0)
    assert checked["advantages computed again"] == (4 * 4 * 4, 0)
    assert all(number for number, _ in checked.values())
    only_learner = "one number of a metrics line that only the learner knows"
    assert {each["change"] for each in told["odds"] if each["fitted"] < 1} == {only_learner}


def forge_reward(run: Path) -> None:
    forgeries.change_rows(run / ROLLOUTS, forgeries.raise_reward)


def forge_line(run: Path) -> None:
    forgeries.change_line(run, **{"reward/mean": 0.9})


def forge_evaluation(run: Path) -> None:
    file = run / "evals" / "step-000004.json"
    file.write_text(file.read_text().replace('"mean": 0.', '"mean": 0.9', 1))


def test_an_altered_evaluation_is_named_by_task_and_sample(copy: Path) -> None:
    file = copy / "evals" / "step-000004.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    task = list(told["by_task"])[-1]
    [value] = told["by_task"][task]
    told["by_task"][task] = [value + 0.25]
    told["rewards"]["odd"]["mean"] = 0.125
    mean = read_evals(copy)[-1].rewards["odd"].mean
    file.write_text(json.dumps(told), encoding="utf-8")
    config = read_config(copy, RunConfig)
    groups = read_samples(file.with_suffix(".parquet"), 4, read_tasks(copy)).groups
    found = Check(what="evaluations", unit="numbers")
    check_evaluation(config, file, "evals/step-000004.json", groups, found)
    where = "evals/step-000004.json, step 4"
    assert sorted(found.differences) == [
        f"{where}, task {task}, sample 0: odd is {value + 0.25}, computed again {value}",
        f"{where}: rewards.odd.mean is 0.125, computed again {mean}",
    ]
    del told["by_task"][task]
    told["by_task"]["gone"] = [1.0]
    file.write_text(json.dumps(told), encoding="utf-8")
    found = Check(what="evaluations", unit="numbers")
    check_evaluation(config, file, "evals/step-000004.json", groups, found)
    assert f"{where}, task {task}: its values are None, computed again [{value}]" in found.differences
    assert f"{where}, task gone: its values are [1.0], and there is no sample of it" in found.differences


def forge_adapter(run: Path) -> None:
    forgeries.flip_adapter_byte(run)


@pytest.mark.parametrize(
    ("forge", "file", "recomputed"),
    [
        (forge_reward, ROLLOUTS, {"advantages computed again", "metrics that follow from rollouts"}),
        (forge_line, f"metrics.jsonl:{STEP}", {"metrics that follow from rollouts"}),
        (forge_evaluation, "evals/step-000004.json", {"evaluations computed again"}),
        (
            forge_adapter,
            f"adapters/v{STEP - 1:06d}/adapter_model.safetensors",
            {"stored adapters are those that samples name"},
        ),
    ],
)
def test_one_change_is_found_by_the_hashes_and_without_them(
    copy: Path, forge: Callable[[Path], None], file: str, recomputed: set[str]
) -> None:
    root = manifest.root_hash(copy)
    forge(copy)
    by_hash = found(check(copy, share=0.05))["hashes in the manifest"]
    assert [difference.partition(": ")[0] for difference in by_hash] == [file]
    forgeries.rewrite_manifest(copy)
    for seed in range(2):  # whatever is drawn
        result = check(copy, share=0.05, seed=seed)
        assert result.exit_code == 1
        assert recomputed <= found(result).keys()
        assert "hashes in the manifest" not in found(result)
    signed = check(copy, share=0.05, root=root)
    assert "not the given" in found(signed)["hashes in the manifest"][0]
    assert not signed.is_signed


def forge_rewards_to_fit(run: Path) -> None:
    forge_reward(run)
    forgeries.fit_step(run)
    forgeries.change_rows(run / "evals" / "step-000004.parquet", forgeries.raise_reward)
    forgeries.fit_evaluation(run, "step-000004")


def forge_sample_to_fit(run: Path) -> None:
    forgeries.change_rows(run / ROLLOUTS, forgeries.swap_samples)
    forgeries.fit_step(run)


def forge_adapter_to_fit(run: Path) -> None:
    forgeries.restamp(run, forgeries.double_adapter(run))


@pytest.mark.parametrize(
    ("forge", "changes", "what"),
    [
        (
            forge_rewards_to_fit,
            {"the reward of one sample": ROLLOUTS, "one number of an evaluation": "evals/step-000004.parquet"},
            "samples scored again",
        ),
        (forge_sample_to_fit, {"one sample": ROLLOUTS}, "samples generated again"),
        (forge_adapter_to_fit, {"one byte of an adapter": ROLLOUTS}, "samples generated again"),
    ],
)
def test_what_was_made_to_fit_is_found_as_often_as_is_said(
    copy: Path, forge: Callable[[Path], None], changes: dict[str, str], what: str
) -> None:
    forge(copy)
    forgeries.rewrite_manifest(copy)
    everything = check(copy)
    assert found(everything).keys() == {what}, found(everything)  # nothing else gives it away, and this always does
    assert all(any(file in each for each in found(everything)[what]) for file in changes.values())
    results = [check(copy, share=0.3, seed=seed) for seed in range(SEEDS)]
    for change, file in changes.items():
        caught = sum(any(file in each for each in found(result).get(what, [])) for result in results)
        said = probability(results[0], change)
        assert 0 < said < 1
        assert 0 < caught < SEEDS, change
        # Within four standard deviations of what is said.
        assert abs(caught - SEEDS * said) < 4 * (SEEDS * said * (1 - said)) ** 0.5


def test_everything_is_drawn_as_often() -> None:
    drawn = [choose(20, 0.15, seed, stream=0) for seed in range(2000)]
    assert {len(each) for each in drawn} == {3}
    for index in range(20):
        assert abs(sum(index in each for each in drawn) / 2000 - 0.15) < 4 * (0.15 * 0.85 / 2000) ** 0.5
    assert choose(20, 0.0, 0, stream=0)
    assert choose(7, 1.0, 0, stream=1) == list(range(7))


def test_on_another_machine_tokens_are_put_through_the_model(copy: Path) -> None:
    provenance = json.loads((copy / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps({**provenance, "processor": "another"}))
    forgeries.rewrite_manifest(copy)
    honest = check(copy)
    assert honest.verdict == "agrees"
    assert not honest.is_exact
    assert "within bounds" in honest.checks[-1].remarks[0]
    forge_sample_to_fit(copy)
    forgeries.rewrite_manifest(copy)
    differences = found(check(copy))["samples generated again"]
    assert len(differences) == 2  # both of those that changed places
    assert "is not the one that its seed draws" in differences[0]
    forgeries.restamp(copy, forgeries.double_adapter(copy))
    forgeries.rewrite_manifest(copy)
    assert any("nats per token" in each for each in found(check(copy))["samples generated again"])


def test_a_run_of_which_less_is_kept(copy: Path) -> None:
    shutil.rmtree(copy / "adapters" / "v000001")
    shutil.rmtree(copy / "adapters" / "v000003")
    (copy / "manifest.json").unlink()
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert all(row.pop("groups/total") for row in rows)  # as an rlft that did not measure it
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke(str(copy), "--share", "1")
    assert result.exit_code == 0, result.output
    assert "4 numbers that this rlft computes and the run's did not" in result.output
    assert "no manifest.json" in result.output
    assert "Of 4 steps 2 can be generated again" in result.output
    assert "32 samples whose adapter is not stored" in result.output  # steps 2 and 4
    assert probability(check(copy), "one sample") == pytest.approx((80 - 32) / 80)


def test_what_is_not_there_any_more_is_said_and_accuses_nobody(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("def odd(completion):\n    return 0.5\n")
    config = (copy / "config.yaml").read_text()
    before = read_config(copy, RunConfig).rewards[0].path
    (copy / "config.yaml").write_text(config.replace(before, f"{tmp_path}/other.py:odd"))
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["sha256"] = {f"{tmp_path}/other.py:odd": "0" * 64}
    (copy / "provenance.json").write_text(json.dumps(provenance))
    (copy / "manifest.json").unlink()
    result = invoke(str(copy))
    assert result.exit_code == 2, result.output
    assert "has changed since" in result.output
    assert "COULD NOT CHECK: samples scored again" in result.output


def test_a_reward_that_is_not_deterministic_accuses_nobody(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "dice.py").write_text(
        "import itertools\nN = itertools.count()\ndef odd(completion):\n    return next(N) / 1000\n"
    )
    config = read_config(copy, RunConfig)
    dice = config.model_copy(update={"rewards": (RewardSpec(path=f"{tmp_path}/dice.py:odd"),)})
    result = verify(copy, dice, share=1.0, seed=0, workers=0)
    rewards = next(each for each in result.checks if each.what == "samples scored again")
    assert (rewards.checked, rewards.different) == (0, 0)
    assert rewards.unchecked == {"the reward gives another value each time it is called": 80}
    assert result.exit_code == 2


def test_a_fork_is_checked_from_where_its_own_settings_begin(copy: Path) -> None:
    other = copy.parent / "reward.py"
    other.write_text("def odd(completion):\n    return float(len(completion) % 3)\n")
    changes = (f"rewards.0.path={other}:odd", "samples_per_task=2", "algorithm=rloo", "guards.min_entropy=0")
    steps = read_config(copy, RunConfig).steps
    fork, _ = launch.resume(copy, How(fork="other", overrides=(*changes, f"steps={steps + 2}")))
    result = check(fork)
    assert (result.verdict, found(result)) == ("agrees", {})
    advantages = next(each for each in result.checks if each.what.startswith("advantages"))
    assert advantages.checked == 2 * 4 * 2
    assert advantages.unchecked == {ELSEWHERE: steps * 16}
    same, _ = launch.resume(copy, How(fork="same", overrides=("learner.lr=0.001", f"steps={steps + 1}")))
    assert not any(ELSEWHERE in each.unchecked for each in check(same).checks)


def test_a_run_that_failures_stopped_agrees(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "summary.json").unlink()
    last = read_config(copy, RunConfig).steps
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]))
    (copy / "evals" / f"step-{last:06d}.json").unlink()
    file = copy / "rollouts" / f"step-{last:06d}.parquet"
    forgeries.change_rows(file, lambda rows: [row.update(advantage=None) for row in rows] and None)
    assert found(check(copy)) == {}
    forgeries.change_rows(copy / ROLLOUTS, lambda rows: [row.update(advantage=None) for row in rows] and None)
    assert "advantages computed again" in found(check(copy))


def test_altered_seeds_of_an_evaluation_are_told(copy: Path) -> None:
    (file, *_) = sorted((copy / "evals").glob("step-*.parquet"))
    forgeries.change_rows(file, lambda rows: rows[0].update(seed=rows[0]["seed"] + 1))
    result = check(copy)
    (told,) = found(result)["tasks, seeds, adapter versions of all samples"]
    assert "its seed is not that of the run's seed and the task" in told


def test_no_judge_is_asked() -> None:
    with pytest.raises(judge_cache.BudgetSpentError, match="no judge is asked here"):
        judge_cache.take(judge_cache.Budget(scope="x", calls=-1))


def test_what_is_no_run_is_refused(tmp_path: Path, finished_run: Path) -> None:
    assert invoke(str(tmp_path)).exit_code == 2
    result = invoke(str(finished_run), "--root", "abc")
    assert result.exit_code == 2
    assert "is no sha256" in result.output


def test_the_manifest_names_the_line(copy: Path) -> None:
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    compared = manifest.compare(copy)
    assert compared is not None
    assert compared.problems == ["metrics.jsonl ends after line 2 of 4"]
    (copy / "metrics.jsonl").write_bytes(b"".join([*lines, lines[-1]]))  # a later line is none of its business
    (copy / "rollouts" / "step-000009.parquet").touch()
    (copy / "rollouts" / "step-000000.parquet").touch()
    compared = manifest.compare(copy)
    assert compared is not None
    assert list(compared.newer) == ["metrics.jsonl", "rollouts/step-000009.parquet"]
    assert compared.problems == ["rollouts/step-000000.parquet is not in the manifest"]


def test_a_manifest_leads_nowhere_else(copy: Path) -> None:
    written = json.loads((copy / "manifest.json").read_text())
    written["files"]["../secret"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="no file below the run's directory"):
        manifest.compare(copy)


def test_only_what_is_new_is_hashed(copy: Path) -> None:
    hashes = manifest.RecordHashes(copy)
    first = hashes.write(4)
    assert first == manifest.root_hash(copy) == hashes.write(4)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5}\n{"step": 6')  # half a line does not count
    assert hashes.write(5) != first
    assert manifest.RecordHashes(copy).write(5) == manifest.root_hash(copy)
    entry = json.loads((copy / "manifest.json").read_text())["logs"]["metrics.jsonl"]
    assert len(entry["lines"]) == 5
