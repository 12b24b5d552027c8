"""What makes a run's numbers is compared when it is resumed: refused, forked with lineage, or marked on the curve."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors.torch import load_file, save_file

from rlft import config_file
from rlft.config import RunConfig
from rlft.curves.reading import read_evals, read_events
from rlft.curves.report import write_report
from rlft.reward.judge_cache import Budget
from rlft.run import logs, manifest
from rlft.run.directory import Run, read_config
from rlft.run.provenance import NO_NUMBERS, changed_computing, changed_numbers, code_sha256
from rlft.run.records import FORMAT, Provenance
from rlft.run.resume import How, config_of, continued, way_on
from rlft.train.preference import launch as launch_dpo
from rlft.train.preference.config import PreferenceConfig
from rlft.train.rl import launch
from rlft.train.rl.rollouts import StepRollouts
from tests.conftest import MakeConfig
from tests.fakes import read_lines, read_metrics, read_result, save_tiny_model, write_config
from tests.test_report import Page

OLD = Path(__file__).parent / "data" / "run_of_format_1"
SETTINGS = ("steps=2", "checkpoint.every=1", "evaluation.tasks=2", "tasks_per_step=2", "samples_per_task=2")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a reward, tasks, and a finished run of two steps, all by relative paths."""
    folder = tmp_path_factory.mktemp("original")
    save_tiny_model(folder / "model")
    shutil.copy(OLD / "letters.py", folder)
    write_config(folder, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch.train(config_file.load("run.yaml", PATHS + list(SETTINGS)))
    return folder


PATHS = ["output_dir=runs", "model.source=model", "rewards.0.path=reward.py:odd", "environment.path=letters.py:letters"]


@pytest.fixture
def here(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and the working directory; its run is at `runs/tiny`."""
    folder = shutil.copytree(original, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return folder


RUN = Path("runs/tiny")


def set_config(key: str, value: str) -> Callable[[], None]:
    def change() -> None:
        config = read_config(RUN, RunConfig, [f"{key}={value}"])
        (RUN / "config.yaml").write_text(config_file.dump(config))

    return change


def append_to(file: str) -> Callable[[], None]:
    return lambda: Path(file).write_text(Path(file).read_text() + "\n# another comment\n")


def another_answer() -> None:
    text = Path("letters.py").read_text()
    Path("letters.py").write_text(text.replace("range(8)", "range(9)"))


def other_weights() -> None:
    file = Path("model/model.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] * 1.001}, file, metadata={"format": "pt"})


CHANGES = {
    "learning rate": (set_config("learner.lr", "0.1"), "learner.lr: 0.01 -> 0.1"),
    "seed": (set_config("seed", "7"), "seed: 0 -> 7"),
    "alpha": (set_config("adapter.alpha", "64"), "adapter.alpha: 32.0 -> 64.0"),
    "a weight of a reward": (set_config("rewards.0.weight", "2"), "rewards: "),
    "reward file": (append_to("reward.py"), "reward.py:odd: sha256 "),
    "environment file": (append_to("letters.py"), "letters.py:letters: sha256 "),
    "tasks": (another_answer, "the tasks: sha256 "),
    "model": (other_weights, "the model's files: sha256 "),
    "fewer steps of a falling rate": (set_config("learner.schedule", "linear"), "learner.schedule: constant -> linear"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_the_numbers_may_not_change(here: Path, name: str) -> None:
    change, line = CHANGES[name]
    change()
    before = read_result(RUN)
    with pytest.raises(ValueError, match="cannot be resumed as the same run") as caught:
        launch.resume(RUN)
    assert f"  {line}" in str(caught.value)
    assert "rlft resume runs/tiny --fork NAME" in str(caught.value)
    assert read_result(RUN) == before
    assert [event.kind for event in read_events(RUN)] == ["ended"]


def test_what_only_computes_may_change_and_is_marked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_config("learner.tokens_per_microbatch", "64")()
    provenance = json.loads((RUN / "provenance.json").read_text())
    provenance["packages"]["torch"] = "2.0"
    provenance["kernels"] = "made up"
    provenance["operations"] = ["made_up float32"]
    (RUN / "provenance.json").write_text(json.dumps(provenance))
    shutil.rmtree(RUN / "checkpoints" / "step-000002")
    launch.resume(RUN)
    (event,) = [event for event in read_lines(RUN / "events.jsonl") if event["kind"] == "computing_changed"]
    assert event["step"] == 1
    parts = ("kernels: made up -> ", "operations no longer compiled: made_up float32")
    for part in (*parts, "torch: 2.0 -> ", "learner.tokens_per_microbatch: None -> 64"):
        assert part in event["message"]
    assert "computing_changed" in Page(write_report(RUN)).text
    now = logs.read_provenance(RUN)
    assert now.packages["torch"] != "2.0"
    assert now.earlier[0]["packages"]["torch"] == "2.0"
    launch.resume(RUN)  # it is compared with the last start, so nothing has changed since
    assert len([event for event in read_lines(RUN / "events.jsonl") if event["kind"] == "computing_changed"]) == 1


def test_another_state_of_the_code_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert re.fullmatch("[0-9a-f]{64}", code_sha256())
    root = tmp_path / "rlft"
    for file in ("run/provenance.py", "model/kernels/native/kernels.cpp", "a.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)
    monkeypatch.setattr("rlft.run.provenance.__file__", str(root / "run" / "provenance.py"))
    told = code_sha256.__wrapped__()
    for file in ("model/kernels/native/kernels.cpp", "a.py"):
        (root / file).write_text("changed")
        told, before = code_sha256.__wrapped__(), told
        assert told != before
    (root / "notes.txt").write_text("no source")
    assert code_sha256.__wrapped__() == told
    then, now = (Provenance(packages={"rlft": name}) for name in ("0.1.0", "0.1.0+abc"))
    assert changed_computing(then, now) == ["rlft: 0.1.0 -> 0.1.0+abc"]


def test_a_run_of_an_earlier_code_goes_on_and_says_so(here: Path) -> None:
    set_config("steps", "3")()
    provenance = json.loads((RUN / "provenance.json").read_text())
    hashed = provenance["packages"]["rlft"]
    assert hashed.endswith(f"+{code_sha256()[:12]}")
    provenance["packages"]["rlft"] = "0.1.0"
    (RUN / "provenance.json").write_text(json.dumps(provenance))
    launch.resume(RUN)
    (event,) = [event for event in read_lines(RUN / "events.jsonl") if event["kind"] == "computing_changed"]
    assert f"rlft: 0.1.0 -> {hashed}" in event["message"]


def test_more_steps_go_on_as_the_same_run(here: Path) -> None:
    whole = config_file.load("run.yaml", [*PATHS, *SETTINGS, "steps=3", "name=whole"])
    launch.train(whole)
    set_config("steps", "3")()
    launch.resume(RUN)
    assert read_metrics(RUN) == read_metrics(whole.run_dir)


def test_a_fork_goes_on_under_another_config_and_says_where_from(here: Path) -> None:
    before = read_result(RUN)
    path, summary = launch.resume(RUN, How(fork="faster", overrides=("learner.lr=0.1", "steps=4")))
    assert path == Path("runs/faster")
    assert summary["name"] == "faster"
    assert read_result(RUN) == before
    rows, earlier = read_metrics(path), read_metrics(RUN)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[:2] == earlier
    assert [row["policy/lr"] for row in rows] == [0.01, 0.01, 0.1, 0.1]
    assert config_file.load(path / "config.yaml").learner.lr == 0.1
    (origin,) = logs.read_provenance(path).lineage
    assert (origin["run"], origin["step"]) == ("runs/tiny", 2)
    assert "learner.lr: 0.01 -> 0.1" in origin["changes"]
    (event,) = [event for event in read_lines(path / "events.jsonl") if event["kind"] == "forked"]
    assert event["step"] == 2
    assert "continues runs/tiny after step 2" in event["message"]
    page = Page(write_report(path)).text
    assert "runs/tiny, after step 2" in page
    assert [evaluation.name for evaluation in read_evals(path)] == ["base", "step-000002", "step-000004"]
    with pytest.raises(ValueError, match=r"runs/faster exists already"):
        launch.resume(RUN, How(fork="faster"))
    second, _ = launch.resume(path, How(fork="faster-still", overrides=("learner.lr=0.2",)))
    assert [each["run"] for each in logs.read_provenance(second).lineage] == ["runs/faster", "runs/tiny"]


def test_settings_need_a_fork(here: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)learner.lr: 0.01 -> 0.1\nRestore it, or .* --fork NAME"):
        launch.resume(RUN, How(overrides=("learner.lr=0.1",)))
    with pytest.raises(ValueError, match="'name=other' would be another run; to continue as one: --fork NAME"):
        launch.resume(RUN, How(overrides=("name=other",)))
    with pytest.raises(ValueError, match="a fork needs a name: --fork NAME"):
        launch.resume(RUN, How(step=2))


def test_settings_that_decide_no_numbers_may_change_within_a_run(here: Path) -> None:
    launch.resume(RUN, How(overrides=("guards.stop=[]", "checkpoint.every=2")))
    assert config_file.load(RUN / "config.yaml").guards.stop == ()
    (event,) = [event for event in read_events(RUN) if event.kind == "computing_changed"]
    assert "checkpoint.every: 1 -> 2" in event.message


def test_a_run_that_goes_on_leaves_no_manifest_that_it_does_not_fit(here: Path) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    (RUN / "summary.json").unlink()  # as of a run that was stopped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRollouts, "collect", stopped)
        with pytest.raises(KeyboardInterrupt):
            launch.resume(RUN, How(overrides=("steps=3", "evaluation.every=1")))
    assert manifest.compare(RUN) is None
    assert [path.parent.name for path in RUN.glob("aside/*/manifest.json")] == ["after-step-000002"]
    launch.resume(RUN)
    (compared,) = [manifest.compare(RUN)]
    assert compared is not None
    assert compared.problems == []


def test_more_frequent_checkpoints_strand_no_run(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("checkpoint.every=3", "steps=3", "evaluation.tasks=2")
    log = Run.log

    def killed(run: Run, step: int, metrics: Any) -> None:
        log(run, step, metrics)
        if step == 2:
            monkeypatch.setattr(Run, "checkpoint", lambda *_, **__: None)  # a killed run saves nothing more
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            launch.train(config)
    monkeypatch.undo()
    launch.resume(config.run_dir, How(overrides=("checkpoint.every=1",)))
    assert [row["step"] for row in read_metrics(config.run_dir)] == [1, 2, 3]


def test_a_run_is_resumed_where_none_may_be_made(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.create(make_config(), provenance=Provenance()) as run:
        pass
    monkeypatch.setattr("rlft.run.directory.os.access", lambda *_: False)
    with Run.reopen(run.path):
        pass
    with pytest.raises(ValueError, match="no run can be made"):
        Run.create(make_config("name=other"), provenance=Provenance())


def test_commands_name_a_path_as_a_shell_takes_it(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(f"output_dir={tmp_path / 'my runs'}")
    with Run.create(config, provenance=Provenance()) as run:
        pass
    quoted = f"rlft resume '{run.path}'"
    assert quoted in way_on(run)
    with pytest.raises(ValueError, match=re.escape(quoted)):
        Run.create(config, provenance=Provenance())
    (run.path / "metrics.jsonl").write_text("no line\n{}\n")
    with pytest.raises(ValueError, match=re.escape(quoted)):
        logs.read_metrics(run.path)


def test_a_resumed_run_has_the_judges_budget_that_it_began_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = str(RUN.absolute())
    monkeypatch.chdir(here.parent)
    monkeypatch.setattr(launch, "resolve_model", mock.Mock(side_effect=KeyboardInterrupt))
    for name in ("letters.py", "reward.py"):
        shutil.copy(here / name, here.parent)
    with pytest.raises(KeyboardInterrupt):
        launch.resume(here / RUN)
    assert Budget.here().scope == began


def test_fewer_steps_than_there_are_need_a_fork(here: Path) -> None:
    before = read_result(RUN)
    with pytest.raises(ValueError, match=r"has 2 steps behind it, more than steps=1; .*--fork NAME --step N"):
        launch.resume(RUN, How(overrides=("steps=1",)))
    assert read_result(RUN) == before
    assert config_file.load(RUN / "config.yaml").steps == 2


def test_a_resume_that_is_refused_has_changed_nothing(here: Path) -> None:
    (RUN / "checkpoints" / "step-000002" / "state.json").write_text("{}")
    names = ("config.yaml", "provenance.json", "metrics.jsonl", "summary.json")
    before = [(RUN / name).read_bytes() for name in names]
    with pytest.raises(ValueError, match="without --strict"):
        launch.resume(RUN, How(strict=True, overrides=("guards.stop=[]",)))
    assert [(RUN / name).read_bytes() for name in names] == before
    assert [event.kind for event in read_events(RUN)] == ["ended"]


def test_a_fork_says_that_it_passes_over_a_damaged_checkpoint(here: Path) -> None:
    (RUN / "checkpoints" / "step-000002" / "state.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"step-000002: state\.json .*; without --strict the fork continues from step 1"
    ):
        launch.resume(RUN, How(fork="other", strict=True))
    path, _ = launch.resume(RUN, How(fork="other"))
    assert [event.kind for event in read_events(path)].count("checkpoint_skipped") == 1


def test_a_fork_can_begin_at_an_earlier_checkpoint(here: Path) -> None:
    with pytest.raises(ValueError, match=r"no whole checkpoint of step 7 \(there are: 1, 2\)"):
        launch.resume(RUN, How(fork="other", step=7))
    path, _ = launch.resume(RUN, How(fork="other", step=1))
    assert logs.read_provenance(path).lineage[0]["step"] == 1


def test_a_fork_needs_a_whole_checkpoint(here: Path) -> None:
    shutil.rmtree(RUN / "checkpoints")
    with pytest.raises(ValueError, match="has no whole checkpoint to fork from"):
        launch.resume(RUN, How(fork="other"))
    assert [path.name for path in Path("runs").iterdir()] == ["tiny"]


def test_before_the_first_checkpoint_a_changed_run_is_started_over(make_config: MakeConfig) -> None:
    with pytest.raises(RuntimeError), Run.create(make_config(), provenance=Provenance(tasks="a")) as run:
        raise RuntimeError("every sample failed")
    again = "`rlft train CONFIG --restart` starts over (this run is moved aside)"
    assert "before its first checkpoint" in way_on(run)
    assert again in way_on(run)
    before = (run.path / "events.jsonl").read_bytes()
    for how in (How(), How(fork="other")):
        with (
            pytest.raises(ValueError, match=f"no checkpoint yet.*{re.escape(again)}"),
            Run.reopen(run.path) as stopped,
            continued(stopped, config_of(stopped, how), Provenance(tasks="b"), how, every=1),
        ):
            pass
    assert (run.path / "events.jsonl").read_bytes() == before  # a refusal is no event of the run


def test_a_changed_reward_can_be_forked(here: Path) -> None:
    append_to("reward.py")()
    path, _ = launch.resume(RUN, How(fork="other", overrides=("steps=3",)))
    changes = logs.read_provenance(path).lineage[0]["changes"]
    assert any(line.startswith("reward.py:odd: sha256 ") for line in changes)


TWO_MEASURES = """
def odd(completion):
    return float(len(completion) % 2)


def plus_two(completion):
    return 2.0 + len(completion) % 2
"""


@pytest.mark.parametrize("is_by_metric", [True, False])
def test_a_fork_that_measures_something_else_measures_base_again(here: Path, is_by_metric: bool) -> None:
    Path("reward.py").write_text(TWO_MEASURES)
    both = [{"path": "reward.py:odd", "name": "x"}, {"path": "reward.py:plus_two", "weight": 0}]
    rewards = both if is_by_metric else both[:1]
    config = config_file.load("run.yaml", [*PATHS[:2], PATHS[3], *SETTINGS, f"rewards={json.dumps(rewards)}"])
    launch.train(config.model_copy(update={"name": "one"}))
    change = "evaluation.metric=plus_two" if is_by_metric else "rewards.0.path=reward.py:plus_two"
    path, summary = launch.resume(Path("runs/one"), How(fork="other", overrides=(change, "steps=3")))
    assert summary["accuracy_base"]["mean"] >= 2
    assert {evaluation.metric for evaluation in read_evals(path)} == {"plus_two" if is_by_metric else "x"}
    assert [evaluation.name for evaluation in read_evals(path)] == ["base", "step-000003"]
    base = Path("evals/base.json")
    longer, _ = launch.resume(Path("runs/one"), How(fork="longer", overrides=("learner.lr=0.1", "steps=3")))
    assert (longer / base).samefile("runs/one" / base)
    assert (longer / "evals/step-000002.json").exists()


def test_preferences_are_guarded_by_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(Path("model"))
    rows = [{"prompt": f"p{i}", "chosen": "a" * (1 + i % 3), "rejected": "b"} for i in range(12)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PreferenceConfig.model_validate(
        {
            "name": "tiny",
            "model": {"source": "model", "dtype": "float32"},
            "data": {"source": "pairs.jsonl", "heldout": 0.2},
            "batch_size": 2,
            "learner": {"threads": 1},
            "checkpoint": {"every": 1},
        }
    )
    launch_dpo.train(config)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"prompt": "new"}]))
    with pytest.raises(ValueError, match=r"(?s)cannot be resumed.*pairs.jsonl: sha256"):
        launch_dpo.resume(RUN)
    path, _ = launch_dpo.resume(RUN, How(fork="longer", overrides=("epochs=2",)))
    assert len(read_metrics(path)) > len(read_metrics(RUN))
    assert logs.read_provenance(path).lineage[0]["step"] == len(read_metrics(RUN))
    base = next(evaluation for evaluation in read_evals(path) if evaluation.name == "base")
    assert base.margin == 0  # of the policy that training began with, though its pairs are others now


def test_the_settings_that_decide_no_numbers_exist() -> None:
    for key in NO_NUMBERS:
        node: Any = RunConfig
        for part in key.split("."):
            field = node.model_fields[part]
            node = field.annotation


def test_what_was_not_written_down_is_not_compared() -> None:
    full = Provenance(config={"seed": 1}, sha256={"r": "a"}, tasks="t", model="m", packages={"torch": "1"}, kernels="k")
    empty = Provenance()
    assert changed_numbers(empty, full) == changed_computing(empty, full) == []
    assert changed_computing(full, replace(full, operations=["rms_norm float32"])) == []
    small, large = (replace(full, config={"evaluation": {"min_effect": each}}) for each in (0.01, 0.05))
    assert changed_numbers(small, large) == []
    assert changed_numbers(full, replace(full, model="other")) == ["the model's files: sha256 m -> other"]


def test_other_compiled_operations_are_a_change() -> None:
    then = Provenance(operations=["a", "b", "c", "d", "e", "f"])
    assert changed_computing(then, then) == []
    assert changed_computing(then, Provenance(operations=["a", "g"])) == [
        "operations no longer compiled: b, c, d, e and 1 more",
        "operations compiled now: g",
    ]
    assert changed_computing(then, Provenance(operations=[])) == [
        "operations no longer compiled: a, b, c, d and 2 more"
    ]


# Runs of earlier formats


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of format 1 that was stopped after step 3 of 4, with a checkpoint of step 2; the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, RUN)
    for file in ("reward.py", "letters.py"):
        (RUN / file).rename(file)
    save_tiny_model(Path("model"))
    return RUN


def test_an_old_run_is_read_and_reported(old: Path) -> None:
    assert [row["step"] for row in read_metrics(old)] == [1, 2, 3]
    assert logs.read_provenance(old).format == 1
    assert "Train reward" in Page(write_report(old)).text


def test_an_old_run_is_resumed(old: Path) -> None:
    expected = read_lines(old / "expected_metrics.jsonl")
    launch.resume(old)
    rows = read_metrics(old)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, other in zip(rows, expected, strict=True):
        # Of another kind of processor, maybe: there a token may be another one, which moves the mean reward a little.
        assert row["reward/mean"] == pytest.approx(other["reward/mean"], abs=0.1)
    assert logs.read_provenance(old).format == FORMAT
    set_config("seed", "3")()
    with pytest.raises(ValueError, match="seed: 0 -> 3"):  # from now on its config is known
        launch.resume(old)


def test_an_old_runs_reward_is_compared(old: Path) -> None:
    append_to("reward.py")()
    with pytest.raises(ValueError, match=r"reward.py:odd: sha256"):
        launch.resume(old)


def test_a_newer_format_is_said_and_passed_through(old: Path) -> None:
    provenance = json.loads((old / "provenance.json").read_text()) | {"format": FORMAT + 1, "novel": {"a": 1}}
    (old / "provenance.json").write_text(json.dumps(provenance))
    evaluation = json.loads((old / "evals" / "base.json").read_text()) | {"novel": 2}
    (old / "evals" / "base.json").write_text(json.dumps(evaluation))
    notes: list[str] = []
    read = logs.read_provenance(old, notes)
    assert notes == [
        f"{old} was written by a newer rlft (format {FORMAT + 1}, this one knows {FORMAT}): what it has "
        "besides is passed over"
    ]
    assert read.extra == {"novel": {"a": 1}}
    assert read_evals(old)[0].extra == {"novel": 2}
    assert read_evals(old)[0].as_dict() == evaluation
    assert "written by a newer rlft" in Page(write_report(old)).text
