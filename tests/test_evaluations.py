"""Evaluation sets (`evaluations:`): measured beside `evaluation`, shown, and never more than a doubt in the verdict."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rlft import config_file
from rlft.cli import main
from rlft.config import RunConfig
from rlft.curves import report
from rlft.curves.differences import paired
from rlft.curves.statistics import mean_interval
from rlft.curves.verdict import verdict_of
from rlft.environment import loading
from rlft.environment.contract import Environment, Step
from rlft.run.directory import read_config
from rlft.run.records import Evaluation, evaluations_folder
from rlft.run.resume import How
from rlft.train.preference.config import PreferenceConfig
from rlft.train.rl import evaluations, launch
from rlft.train.rl.verify.verify import verify
from rlft.types import Message, Task
from tests import forgeries
from tests.conftest import MakeConfig
from tests.fakes import read_lines, read_metrics, read_result, tiny_config
from tests.test_interrupts import stop_in
from tests.test_report import Page

HERE = Path(__file__)
WRITE_REPORT = report.write_report  # the real one, see `no_pages`
HOT = {"name": "hot", "temperature": 1.0, "samples_per_task": 4, "every": 2, "tasks": 3}
HARD = {"name": "math-500", "every": 3, "tasks": 3, "environment": {"path": f"{HERE}:others"}}
GAME = {"name": "game", "tasks": 2, "environment": {"path": f"{HERE}:game"}}
SETS = ("evaluation.tasks=2", f"evaluations={json.dumps([HOT, HARD, GAME])}")


def others(heldout: int = 5, twin: str = "", columns: bool = True) -> Environment:
    """Other held-out tasks under the ids that those of `letters` have; one asks what `letters` trains on."""

    def task(split: str, index: int) -> Task:
        asked = twin if twin and index == 0 else f"other {split} {index}"
        row = {"difficulty": index} if columns else {}
        return Task(id=f"{split}-{index}", messages=({"role": "user", "content": asked},), answer="b", columns=row)

    return Environment(train=[task("own", 9)], heldout=[task("heldout", i) for i in range(heldout)])


class Echo:
    """Answers once, then is over."""

    def start(self, task: Task, seed: int) -> list[Message]:
        self.is_over = False
        return [{"role": "user", "content": f"{task.id} {seed % 7}"}]

    def step(self, message: Message) -> Step:
        is_over, self.is_over = self.is_over, True
        return Step(reward=1.0, done=True) if is_over else Step(messages=({"role": "user", "content": "again"},))


def game() -> Environment:
    made = others()
    return Environment(train=made.train, heldout=made.heldout, episode=Echo)


@contextmanager
def no_pages() -> Iterator[None]:
    """Runs write no report within this block; it takes longer than they do."""
    with mock.patch.object(report, "write_report"), mock.patch.object(report, "write_reward_png"):
        yield


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with no_pages():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished run of four steps with three evaluation sets; nobody changes it."""
    from tests.fakes import write_config

    folder = tmp_path_factory.mktemp("sets")
    config = config_file.load(write_config(folder, tiny_model), SETS)
    with no_pages():
        launch.train(config)
    return config.run_dir


def samples(run: Path, name: str, file: str) -> list[dict[str, Any]]:
    return pq.read_table(run / "evals" / "sets" / name / f"{file}.parquet").to_pylist()


# Measuring


def test_each_set_is_measured_at_the_start_at_its_own_steps_and_at_the_end(run: Path) -> None:
    made = {folder.name: sorted(p.stem for p in folder.glob("*.json")) for folder in (run / "evals/sets").iterdir()}
    assert made == {
        "hot": ["base", "step-000002", "step-000004"],
        "math-500": ["base", "step-000003", "step-000004"],
        "game": ["base", "step-000004"],
    }
    assert sorted(path.stem for path in (run / "evals").glob("*.json")) == ["base", "step-000004"]
    hot = json.loads((run / "evals/sets/hot/step-000002.json").read_text())
    assert (hot["set_name"], hot["name"], hot["step"], hot["samples"]) == ("hot", "step-000002", 2, 12)
    assert {len(values) for values in hot["by_task"].values()} == {4}


def test_samples_come_from_the_sets_own_environment_and_its_seeds_from_no_step(run: Path) -> None:
    rows = [samples(run, "math-500", file) for file in ("base", "step-000003", "step-000004")]
    assert [row["prompt"] for row in rows[0]] == [f"other heldout {index}" for index in range(3)]
    assert len({tuple(row["seed"] for row in part) for part in rows}) == 1
    assert [{row["adapter_version"] for row in part} for part in rows] == [{-1}, {3}, {4}]
    assert len({row["completion"] for row in samples(run, "hot", "base")}) > 3  # temperature 1
    sources = json.loads(pq.read_schema(run / "evals/sets/math-500/base.parquet").metadata[b"rlft:sources"])
    assert sources["environment"]["path"] == "test_evaluations.py:others"
    # Episodes of another environment, though the run's own tasks are single turns.
    opened = [json.loads(row["conversation"])[0]["content"].split()[0] for row in samples(run, "game", "base")]
    assert opened == ["heldout-0", "heldout-1"]


def test_tasks_of_a_set_stay_apart_from_those_of_the_run(run: Path) -> None:
    own = {task["task_id"]: task["answer"] for task in read_lines(run / "tasks.jsonl")}
    assert own["heldout-0"] == '"a"'
    kept = read_lines(run / "evals/sets/math-500/tasks.jsonl")
    assert [(task["task_id"], task["answer"]) for task in kept] == [(f"heldout-{i}", '"b"') for i in range(3)]


def test_training_does_not_depend_on_what_is_measured(run: Path, finished_run: Path) -> None:
    assert read_metrics(run) == read_metrics(finished_run)


def test_evaluate_measures_one_set(run: Path) -> None:
    def told(*arguments: str) -> Any:
        return CliRunner().invoke(main.app, ["evaluate", *arguments], catch_exceptions=False).stdout

    for name in ("hot", "game"):
        stored = json.loads((run / f"evals/sets/{name}/step-000004.json").read_text())
        found = json.loads(told(str(run), "--set", name))
        assert [found[key] for key in ("set_name", "rewards")] == [name, stored["rewards"]]
    with pytest.raises(ValueError, match=r"no evaluation set is named 'hott'\. Did you mean 'hot'\? There are: hot, "):
        told(str(run), "--set", "hott")


# Refusals


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([HOT, HOT], "the name 'hot' stands twice"),
        ([{**HOT, "name": "../x"}], r"evaluations\.0\.name: String should match"),
        ([{**HOT, "name": "Hot"}], r"evaluations\.0\.name: String should match"),
        ([{**HOT, "min_effect": 0.1}], r"evaluations\.0\.min_effect: unknown key"),
    ],
)
def test_names_are_safe_and_unique(make_config: MakeConfig, sets: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(f"evaluations={json.dumps(sets)}")


def test_preference_runs_have_no_sets(tmp_path: Path) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text("name: x\nmodel: {source: m}\ndata: {source: d}\nevaluations: []\n")
    with pytest.raises(ValueError, match="evaluations: unknown key"):
        config_file.load(file, [], PreferenceConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"environment": {"path": f"{HERE}:others", "args": {"twin": "train3"}}},
            r"^evaluations.hot: training task 'train-3' asks the same as held-out task 'heldout-0'; split by problem",
        ),
        (
            {"environment": {"path": f"{HERE}:others", "args": {"twin": "demo1"}}},
            r"^evaluations.hot: demonstration 1 answers held-out task 'heldout-0'",
        ),
        (
            {"environment": {"path": f"{HERE}:others", "args": {"heldout": 0}}},
            r"^evaluations.hot: .* no held-out tasks",
        ),
        ({"environment": {"path": f"{HERE}:gone"}}, r"^evaluations.hot: .*gone"),
        (
            {"environment": {"path": f"{HERE}:others", "args": {"columns": False}}},
            r"^evaluations.hot: reward .* nothing supplies its parameter 'difficulty'",
        ),
        ({"metric": "od"}, r"^evaluations.hot.metric: no reward is named 'od'. Did you mean 'odd'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_run(
    make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    config = make_config(
        f"evaluations={json.dumps([{**HOT, **changes}])}", reward="def odd(completion, difficulty):\n    return 1.0"
    )
    with pytest.raises(ValueError, match=message):
        launch.train(config)
    assert not config.run_dir.exists()


def test_too_many_failures_in_a_set_stop_the_run(make_config: MakeConfig) -> None:
    reward = "def odd(completion, answer):\n    return {'a': 1.0}[answer]"
    config = make_config(f"evaluations={json.dumps([HARD])}", reward=reward)
    with pytest.raises(
        RuntimeError, match=r"(?s)evaluation math-500, base: 3 of 3 samples could not be scored.*'b'"
    ) as stop:
        launch.train(config)
    assert "evals/sets/math-500/base.parquet" in str(stop.value)


# Checking and resuming


def test_verify_computes_sets_again(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")

    def told() -> dict[str, int]:
        found = verify(copy, read_config(copy, RunConfig), share=0.0, seed=0, root="", workers=0)
        return {check.what: check.different for check in found.checks if check.different}

    assert told() == {}
    everything = verify(copy, read_config(copy, RunConfig), share=1.0, seed=0, root="", workers=0)
    counted = {check.what: (check.checked, check.different, check.unchecked) for check in everything.checks}
    # Four steps of four tasks and samples; two tasks twice; hot 3 x 4 and math-500 3 x 1 three times, game 2 twice.
    samples = 4 * 4 * 4 + 2 * 2 + 3 * 12 + 3 * 3 + 2 * 2
    assert counted["samples scored again"] == (samples, 0, {})
    lost = 2 * 4 * 4 + 3  # of steps 2 and 4, and of math-500 after step 3: adapters 1 and 3 came between checkpoints
    told_of_lost = {"samples whose adapter is not stored": lost}
    assert counted["samples generated again"] == (samples - lost, 0, told_of_lost)
    forgeries.change_rows(copy / "evals/sets/game/base.parquet", forgeries.raise_reward)
    forgeries.change_rows(copy / "evals/sets/hot/step-000002.parquet", forgeries.swap_samples)
    of_set = verify(copy, read_config(copy, RunConfig), share=1.0, seed=0, root="", workers=0)
    found = {check.what: check.differences for check in of_set.checks}
    assert re.match(r"evals/sets/game/base.parquet, heldout-\d/0: outcome is", found["samples scored again"][0])
    assert re.match(r"evals/sets/hot/step-000002.parquet, heldout-\d/2: token \d", found["samples generated again"][0])
    for file in ("game/base", "hot/step-000002"):
        shutil.copy(run / f"evals/sets/{file}.parquet", copy / f"evals/sets/{file}.parquet")
    file = copy / "evals/sets/hot/step-000002.json"
    file.write_text(file.read_text().replace('"mean": 0.', '"mean": 0.9', 1))
    assert told() == {"hashes in the manifest": 1, "evaluations computed again": 1}
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["sha256"]["the tasks of evaluation math-500"] = "0" * 64
    (copy / "provenance.json").write_text(json.dumps(provenance))
    other = verify(copy, read_config(copy, RunConfig), share=1.0, seed=0, root="", workers=0)
    unchecked = next(check.unchecked for check in other.checks if check.what == "samples generated again")
    [why] = [each for each in unchecked if each.startswith("evaluation set math-500: its tasks cannot be loaded: they")]
    assert unchecked == {why: 3 * 3, "samples whose adapter is not stored": 2 * 4 * 4}


def test_a_run_that_is_stopped_in_its_sets_ends_the_same(
    run: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*SETS)
    with monkeypatch.context() as patch:
        stop_in(patch, evaluations, "answer_heldout", call=3, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            launch.train(config)
    folder = config.run_dir / "evals/sets"
    assert [(folder / name / "base.json").exists() for name in ("hot", "math-500")] == [True, False]
    with monkeypatch.context() as patch:
        stop_in(patch, evaluations, "answer_heldout", call=7, error=KeyboardInterrupt())  # after the last step
        with pytest.raises(KeyboardInterrupt):
            launch.resume(config.run_dir)
    assert [(folder / name / "step-000004.json").exists() for name in ("hot", "math-500")] == [True, False]
    # Back to the checkpoint of step 2: what was measured after it is moved aside and made again.
    shutil.rmtree(config.run_dir / "checkpoints/step-000004", ignore_errors=True)
    launch.resume(config.run_dir)
    assert read_result(config.run_dir) == read_result(run)
    aside = {
        str(path.relative_to(config.run_dir / "aside")) for path in config.run_dir.glob("aside/*/evals/sets/*/*.json")
    }
    assert aside == {
        f"after-step-000002/evals/sets/{name}.json" for name in ("hot/step-000004", "math-500/step-000003")
    }


def test_only_how_often_a_set_is_measured_may_change_within_a_run(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"evaluations\.hot\.temperature: 1\.0 -> 0\.5"):
        launch.resume(copy, How(overrides=("evaluations.0.temperature=0.5",)))
    with pytest.raises(ValueError, match=r"evaluations\.hot: .* -> None"):
        launch.resume(copy, How(overrides=(f"evaluations={json.dumps([HARD, GAME])}",)))
    launch.resume(copy, How(overrides=("evaluations.0.every=1", "steps=5")))
    assert {path.stem for path in copy.glob("evals/sets/hot/*.json")} == {
        *("base", "step-000002", "step-000004", "step-000005"),
    }
    changed = [event["message"] for event in read_lines(copy / "events.jsonl") if event["kind"] == "computing_changed"]
    assert changed == ["evaluations.hot.every: 2 -> 1; steps: 4 -> 5"]


def test_a_fork_keeps_what_still_measures_the_same(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    how = How(fork="fork", overrides=("evaluations.0.temperature=0.5", "evaluations.0.every=0"), step=2)
    fork, _ = launch.resume(copy, how)
    same = [
        path.read_bytes() == (run / path.relative_to(fork)).read_bytes() for path in fork.glob("evals/sets/game/b*")
    ]
    assert same == [True, True]
    assert {path.stem for path in fork.glob("evals/sets/hot/*.json")} == {"base", "step-000004"}
    assert samples(fork, "hot", "base") != samples(run, "hot", "base")


def test_tasks_that_change_are_noticed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    provenance = json.loads((copy / "provenance.json").read_text())
    assert "the tasks of evaluation hot" not in provenance["sha256"]
    provenance["sha256"]["the tasks of evaluation math-500"] = "0" * 64
    (copy / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ValueError, match="the tasks of evaluation math-500: sha256 000000000000 -> "):
        launch.resume(copy)


def test_a_set_takes_from_the_run_what_it_does_not_say() -> None:
    config = tiny_config("m", evaluation={"metric": "share_of_a/x", "min_effect": 0.2}, evaluations=[HOT, HARD])
    hot, hard = map(config.for_set, config.evaluations)
    assert (hot.evaluation.metric, hot.evaluation.min_effect) == ("share_of_a/x", 0.2)
    assert (hot.evaluation.temperature, hot.environment, hot.evaluations) == (1.0, config.environment, ())
    assert (hard.environment.path, hard.environment.order) == (f"{HERE}:others", "shuffle")
    assert RunConfig.model_validate(hard.model_dump()) == hard


# What they say


def values(shares: Sequence[float], seed: int, tasks: int = 60) -> list[dict[str, list[float]]]:
    """For each policy 0/1 values of two samples of each task; a task is as hard for all of them."""
    generator = np.random.default_rng(seed)
    hard = generator.beta(2, 2, tasks) - 0.5
    return [{f"t{i}": list(map(float, generator.random(2) < p + h)) for i, h in enumerate(hard)} for p in shares]


def write_evals(run: Path, name: str, by_step: dict[int, dict[str, list[float]]]) -> None:
    """Evaluations of a set, or of the run for an empty name; step 0 is the base."""
    for step, by_task in by_step.items():
        policy = "base" if step == 0 else f"step-{step:06d}"
        record = Evaluation(
            name=policy,
            step=step,
            adapter_version=step - 1,
            adapter_hash="",
            metric="odd",
            accuracy=mean_interval(list(by_task.values())),
            failed=0,
            length=1.0,
            truncated=0.0,
            samples=2 * len(by_task),
            by_task=by_task,
            set_name=name,
        )
        path = run / evaluations_folder(name) / f"{policy}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record.as_dict()))


@pytest.fixture
def told_run(tmp_path: Path) -> Path:
    """A run that got better, with a set that got worse and one that did not change."""
    config = {
        "name": "told",
        "steps": 2,
        "evaluation": {"every": 0},
        "evaluations": [
            {"name": "hard", "every": 1, "samples_per_task": 2, "environment": {"path": "mine.py:hard", "args": {}}},
            {"name": "same", "every": 0, "samples_per_task": 2, "temperature": 0.7},
        ],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    write_evals(tmp_path, "", dict(zip((0, 2), values([0.2, 0.7], 0), strict=True)))
    write_evals(tmp_path, "hard", dict(enumerate(values([0.7, 0.6, 0.3], 1))))
    [same] = values([0.5], 2)
    write_evals(tmp_path, "same", {0: same, 2: same})
    return tmp_path


def test_a_set_that_got_worse_leaves_doubt_and_never_decides(told_run: Path) -> None:
    verdict = verdict_of(told_run)
    doubt = verdict.reasons[0]
    assert (verdict.kind, doubt.code, doubt.weight) == ("cant_tell", "evaluation_set", "doubt")
    # Half of 5 % for the last look of two, shared by two sets: 98.75 %.
    assert re.fullmatch(
        r"Evaluation hard got worse: -0\.\d\d \[-0\.\d\d, -0\.\d\d\] since base \(98\.75 % interval, 60 tasks, "
        r"look 2 of 2; odd, greedy, 2 samples of each task, tasks of mine\.py:hard\)\.",
        doubt.says,
    )
    shutil.rmtree(told_run / "evals/sets/hard")
    assert verdict_of(told_run).kind == "ship"  # a set that got no better is no doubt
    write_evals(told_run, "hard", dict(enumerate(values([0.1, 0.5, 0.9], 1))))
    assert verdict_of(told_run).kind == "ship"
    write_evals(told_run, "", dict(zip((0, 2), values([0.7, 0.2], 0), strict=True)))
    assert verdict_of(told_run).kind == "dont"  # nor does one that got better make a verdict better


def test_a_null_run_is_seldom_in_doubt_and_a_fall_is_found() -> None:
    def share_in_doubt(shares: Sequence[float], runs: int) -> float:
        found = 0
        for seed in range(runs):
            changes = [paired(*values(shares, 3 * seed + number), 1 - 0.05 / 3) for number in range(3)]
            found += any(change.interval.high < 0 for change in changes)
        return found / runs

    assert share_in_doubt([0.5, 0.5], 200) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 200)
    assert share_in_doubt([0.6, 0.35], 20) >= 0.9


def test_report_lists_the_sets(told_run: Path) -> None:
    def report_of(*arguments: str) -> str:
        return CliRunner().invoke(main.app, ["report", str(told_run), *arguments], catch_exceptions=False).stdout

    hard, same = json.loads(report_of("--json"))["evaluations"]
    assert (hard["name"], hard["settings"]["every"], hard["metric"], hard["word"]) == ("hard", 1, "odd", "accuracy")
    assert [policy["name"] for policy in hard["policies"]] == ["base", "step-000001", "step-000002"]
    assert [each["k"] for each in hard["policies"][0]["passes"]] == [2]
    assert (hard["change"]["conclusive"], hard["change"]["level"]) == (True, pytest.approx(0.9875))
    assert (same["change"]["mean"], same["change"]["conclusive"], same["change"]["look"]) == (0, False, 1)
    table = report_of()
    assert "pass@2" in table
    assert "same: odd, T = 0.7, 2 samples of each task; changed by +0.00 [" in table


def test_the_page_shows_the_sets(told_run: Path) -> None:
    page = Page(WRITE_REPORT(told_run))
    assert "hard: Held-out accuracy (odd)" in page.titles
    table = page.data["sets"]["table"]
    says = "hard: odd, greedy, 2 samples of each task, tasks of mine.py:hard; changed by -0."
    assert any(sentence.startswith(says) for sentence in table["sentences"])
    assert ["same", "base"] in [row[:2] for row in table["rows"]]
    assert table["caption"] == "Evaluation sets, which do not decide the verdict"
    assert any("Evaluation hard got worse" in reason["says"] for reason in page.data["verdict"]["reasons"])


def test_the_summary_has_the_sets(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())["evaluations"]
    assert list(summary) == ["hot", "math-500", "game"]
    last = json.loads((run / "evals/sets/hot/step-000004.json").read_text())
    assert summary["hot"] == {
        "metric": "odd",
        "word": "mean",
        "base": json.loads((run / "evals/sets/hot/base.json").read_text())["accuracy"],
        "sft": None,
        "rl": last["accuracy"],
    }


def test_the_example_of_the_docs_can_be_measured(tmp_path: Path) -> None:
    page = (HERE.parents[1] / "docs/evaluation.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "run.yaml").write_text(example)
    config = config_file.load(tmp_path / "run.yaml")
    found = evaluations.load_measurements(config, loading.load(config.environment))
    assert [(each.set_name, each.config.evaluation.every) for each in found] == [
        ("", 50),
        ("hot", 100),
        ("three-digits", 20),
    ]
    assert [each.is_due(40) for each in found] == [False, False, True]
    assert {len(task.answer) for task in found[2].environment.heldout} == {3}
