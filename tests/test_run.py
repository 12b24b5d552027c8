"""The run directory: what is in it, who may write to it, and that its adapters are what the learner trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.json
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlft.config_file import load
from rlft.learner.batch import collate, pack
from rlft.learner.rl import Learner
from rlft.model import base as models
from rlft.model import chat
from rlft.model.kernels import library
from rlft.run.checkpoint import Snapshot, load_latest
from rlft.run.directory import Run
from rlft.run.logs import read_tasks
from rlft.run.records import SOURCES, Provenance
from rlft.train.rl.state import restore
from rlft.types import Abstain, Completion, Failed, Group, Outcome, Score, Task, Trajectory, Turn
from tests.conftest import MakeConfig
from tests.fakes import read_lines, read_metrics, read_rollouts


def group(outcomes: Sequence[Outcome], task_id: str = "t") -> Group:
    task = Task(id=task_id, messages=({"role": "user", "content": "2 < 3?"},), answer={"b": 1}, columns={})
    return Group(
        task=task,
        trajectories=tuple(
            Trajectory(
                task=task,
                sample_index=index,
                seed=2**64 - 1 - index,  # the largest seeds there are
                turns=(
                    Turn(
                        prompt_ids=(1, 2, 3),
                        completion=Completion(
                            token_ids=(7, 8),
                            logprobs=(-0.25, -0.5),
                            finish_reason="stop",
                            adapter_version=4,
                            adapter_hash="abc",
                        ),
                    ),
                ),
                text=f"réponse\x00\x1b[31m {index}",
                outcome=outcome,
            )
            for index, outcome in enumerate(outcomes)
        ),
    )


OUTCOMES: tuple[Outcome, ...] = (
    Score(value=1.5, parts={"odd": 1.5, "odd/part": 0.5}),
    Failed(kind="timeout", message="odd: no result within 1 s", reproduce="print('again')"),
    Abstain(reason="returned None"),
    Score(value=-1.0, parts={"odd": -1.0}),
)


@pytest.fixture
def run(make_config: MakeConfig) -> Any:
    with Run.create(make_config(), provenance=Provenance()) as opened:
        yield opened


# Rollouts.


def test_every_sample_is_kept_failed_ones_too(run: Run) -> None:
    run.write_rollouts(3, [group(OUTCOMES), group(OUTCOMES[:1], "u")], {"advantage": [0.5, -0.5, 0.0]})
    rows = read_rollouts(run.path, 3)
    assert [(row["task_id"], row["group_index"], row["sample_index"]) for row in rows] == [
        ("t", 0, 0),
        ("t", 0, 1),
        ("t", 0, 2),
        ("t", 0, 3),
        ("u", 1, 0),
    ]
    assert [row["outcome"] for row in rows] == ["score", "failed", "abstain", "score", "score"]
    assert [row["reward"] for row in rows] == [1.5, None, None, -1.0, 1.5]
    assert [row["advantage"] for row in rows] == [0.5, None, None, -0.5, 0.0]
    failed = rows[1]
    assert failed["failure_kind"] == "timeout"
    assert failed["failure_message"] == "odd: no result within 1 s"
    assert failed["reproduce"] == "print('again')"
    assert json.loads(rows[0]["parts"]) == {"odd": 1.5, "odd/part": 0.5}
    assert json.loads(rows[0]["answer"]) == {"b": 1}
    assert [row["seed"] for row in rows[:2]] == [2**64 - 1, 2**64 - 2]
    assert [row["completion"] for row in rows[:2]] == ["réponse\x00\x1b[31m 0", "réponse\x00\x1b[31m 1"]
    assert rows[0]["token_ids"] == [7, 8]
    assert rows[0]["logprobs"] == [-0.25, -0.5]
    assert (rows[0]["adapter_version"], rows[0]["adapter_hash"]) == (4, "abc")


def test_text_that_is_no_unicode_costs_no_samples(run: Run) -> None:
    # Half a surrogate pair, as JSON data sets with cut strings have them; parquet takes only whole characters.
    message = "unknown reply \ud83d"
    run.write_rollouts(1, [group([*OUTCOMES[:1], Failed(kind="error", message=message, reproduce=f"f({message!r})")])])
    rows = read_rollouts(run.path, 1)
    assert [row["outcome"] for row in rows] == ["score", "failed"]
    assert rows[1]["failure_message"].startswith("unknown reply ")


def test_a_sample_that_was_never_scored_is_not_written_as_if_it_had_been(run: Run) -> None:
    unscored = group(OUTCOMES[:1])
    broken = Group(
        task=unscored.task,
        trajectories=tuple(
            Trajectory(task=t.task, sample_index=0, seed=0, turns=t.turns, text="") for t in unscored.trajectories
        ),
    )
    with pytest.raises(ValueError, match="never scored"):
        run.write_rollouts(1, [broken])
    assert not list(run.path.glob("rollouts/*.parquet"))


def test_a_task_is_kept_once_as_rewards_get_it(run: Run) -> None:
    columns = {
        "plain": [1, {"a": None, "\u00e9": "\ud83d"}],
        "python": {1: (2, b"3")},
        "image": object(),
        "missing": math.nan,
    }
    rich = replace(group(OUTCOMES), task=replace(group(OUTCOMES).task, id="rich", answer=("x",), columns=columns))
    run.write_rollouts(3, [group(OUTCOMES), rich])
    run.write_rollouts(4, [rich, group(OUTCOMES)])
    run.write_evaluation_samples("step-000004", 4, [group(OUTCOMES, "u")])
    with_step = [(task.task_id, task.step) for task in read_tasks(run.path).rows]
    assert with_step == [("t", 3), ("rich", 3), ("u", 4)]
    plain, kept, _ = read_tasks(run.path).rows
    assert (plain.answer, plain.columns, plain.lost) == ({"b": 1}, {}, ())
    assert kept.answer == ("x",)
    assert kept.columns == {"plain": columns["plain"], "python": columns["python"]}
    assert kept.lost == ("image", "missing")
    again = Run.__new__(Run)
    again.__dict__ = {**run.__dict__, "_kept_tasks": None}  # as after a resume
    again.write_rollouts(5, [rich])
    assert len(read_tasks(run.path).rows) == 3
    corrected = replace(rich, task=replace(rich.task, answer=("y",)))
    for step, each in ((6, corrected), (7, corrected), (8, rich)):
        again.write_rollouts(step, [each])
    assert [(task.answer, task.step) for task in read_tasks(run.path).rows[3:]] == [(("y",), 6), (("x",), 8)]
    table = pyarrow.json.read_json(run.path / "tasks.jsonl").to_pylist()
    assert json.loads(table[1]["columns"]) == {"plain": columns["plain"]}


def test_rollouts_and_checkpoints_name_the_sources_of_rewards_and_tasks(run: Run) -> None:
    run.sources = {"rewards": {"odd": {"path": "a.py:odd", "args": {"x": 1}, "files": {"a.py": "12"}}}}
    run.write_rollouts(3, [group(OUTCOMES)])
    metadata = pq.read_schema(run.path / "rollouts/step-000003.parquet").metadata
    assert json.loads(metadata[SOURCES.encode()]) == run.sources
    run.checkpoint(Snapshot(step=3, tensors={"x": torch.zeros(1)}, state={"learner": {}}), every=1)
    (saved, _) = load_latest(run.path / "checkpoints")
    assert saved is not None
    assert saved.state == {"learner": {}, "sources": run.sources}


# Metrics and events.


def test_what_is_not_finite_is_left_out_and_noted(run: Run) -> None:
    run.log(1, {"reward/mean": 0.5, "policy/loss": math.nan, "critic/loss": -math.inf, "policy/lr": 0.0})
    assert read_lines(run.path / "metrics.jsonl") == [{"step": 1, "policy/lr": 0.0, "reward/mean": 0.5}]
    (event,) = read_lines(run.path / "events.jsonl")
    assert (event["kind"], event["step"]) == ("not_finite", 1)
    assert "critic/loss, policy/loss" in event["message"]


def test_a_number_is_read_back_as_it_was(run: Run) -> None:
    numbers = {"a/tenth": 0.1 + 0.2, "a/tiny": 5e-324, "a/huge": 1.7976931348623157e308}
    run.log(2, numbers)
    assert read_metrics(run.path) == [{"step": 2, **numbers}]


def test_an_error_is_an_event(make_config: MakeConfig) -> None:
    with pytest.raises(RuntimeError, match="on fire"), Run.create(make_config(), provenance=Provenance()) as run:
        raise RuntimeError("on fire")
    (event,) = read_lines(run.path / "events.jsonl")
    assert (event["kind"], event["message"]) == ("stopped", "RuntimeError: on fire")


# Who may open it.


def test_one_driver_at_a_time(run: Run) -> None:
    with pytest.raises(ValueError, match="in use by another rlft process"):
        Run.reopen(run.path)


def test_the_lock_goes_with_its_holder(make_config: MakeConfig) -> None:
    with Run.create(make_config(), provenance=Provenance()) as run:
        pass
    with Run.reopen(run.path) as again:
        assert again.config == run.config


def test_a_run_in_use_is_not_moved_from_under_its_driver(run: Run) -> None:
    with pytest.raises(ValueError, match="in use by another rlft process"):
        Run.create(run.config, provenance=Provenance(), restart=True)
    assert (run.path / "config.yaml").is_file()
    assert [path.name for path in run.path.parent.iterdir()] == ["tiny"]


def test_an_existing_run_is_refused_with_three_ways_out(make_config: MakeConfig) -> None:
    config = make_config()
    with Run.create(config, provenance=Provenance()) as run:
        run.log(1, {"reward/mean": 1.0})
    with pytest.raises(ValueError, match="holds a run already") as caught:
        Run.create(config, provenance=Provenance())
    for way_out in (f"rlft resume {run.path}", "--restart", "name="):
        assert way_out in str(caught.value)
    assert len(read_metrics(run.path)) == 1


def test_restart_moves_the_old_run_aside_as_often_as_asked(make_config: MakeConfig) -> None:
    config = make_config()
    for value in range(4):  # within one second
        with Run.create(config, provenance=Provenance(), restart=True) as run:
            run.log(1, {"value": value})
    runs = sorted(path for path in run.path.parent.iterdir() if path != run.path)
    assert sorted(read_metrics(path)[0]["value"] for path in runs) == [0, 1, 2]
    assert read_metrics(run.path) == [{"step": 1, "value": 3}]


def test_an_output_folder_that_cannot_be_made_is_named_with_its_key(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"^output_dir: no run can be made in .*/file/runs \(Not a directory.*output_dir=runs"
    ):
        Run.create(make_config(f"output_dir={tmp_path / 'file' / 'runs'}"), provenance=Provenance())


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run directory: it has no config"):
        Run.reopen(tmp_path)


# A whole run.


def test_a_run_leaves_what_its_documentation_names(finished_run: Path) -> None:
    here = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    expected = {"config.yaml", "provenance.json", "metrics.jsonl", "summary.json", "report.html", "reward.png"}
    expected |= {f"rollouts/step-{step:06d}.parquet" for step in (1, 2, 3, 4)}
    expected |= {f"evals/{name}.{kind}" for name in ("base", "step-000004") for kind in ("json", "parquet")}
    expected |= {f"adapters/v{step:06d}/adapter_model.safetensors" for step in (1, 2, 3, 4)}
    expected |= {f"checkpoints/step-{step:06d}/manifest.json" for step in (3, 4)}
    assert expected <= here
    assert not [name for name in here if name.endswith(".tmp")]


def test_a_run_says_what_it_was_made_with(finished_run: Path) -> None:
    provenance = json.loads((finished_run / "provenance.json").read_text())
    config = load(finished_run / "config.yaml")
    assert provenance["sha256"].keys() == {config.environment.path, config.rewards[0].path}
    assert all(len(digest) == 64 for digest in provenance["sha256"].values())
    assert {"torch", "transformers", "peft", "trl", "ray"} <= provenance["packages"].keys()
    assert provenance["kernels"].startswith(("compiled by ", "torch ("))
    assert provenance["operations"] == library.operations()


def test_the_summary_holds_both_accuracies(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    for key in ("accuracy_base", "accuracy_rl"):
        accuracy = summary[key]
        assert accuracy["n"] == 8
        if accuracy["low"] is None:  # eight tasks that all have one value have no interval
            assert accuracy["high"] is None
            assert accuracy["mean"] in (0, 1)
        else:
            assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]
    assert summary["accuracy_sft"] is None  # this run had no such stage


def test_metrics_agree_with_the_rollouts(finished_run: Path) -> None:
    for row in read_metrics(finished_run):
        samples = read_rollouts(finished_run, int(row["step"]))
        assert len(samples) == 16
        assert row["reward/mean"] == pytest.approx(sum(s["reward"] for s in samples) / 16)
        assert row["rollout/tokens"] == sum(s["completion_tokens"] for s in samples)
        assert row["rollout/truncated"] == sum(s["finish_reason"] == "length" for s in samples) / 16
        for sample in samples:
            assert len(sample["token_ids"]) == len(sample["logprobs"]) == sample["completion_tokens"]
            assert max(sample["logprobs"]) < 0


def test_plain_peft_loads_an_adapter_and_gives_the_logprobs_that_were_sampled(finished_run: Path) -> None:
    # The samples of step 4 were made with version 3; what was exported as version 3 must explain them.
    config = load(finished_run / "config.yaml")
    base = AutoModelForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
    tokenizer = chat.load_tokenizer(config.model.source)
    peft = PeftModel.from_pretrained(base, finished_run / "adapters" / "v000003").eval()
    largest_shift = 0.0
    for row in read_rollouts(finished_run, 4):
        prompt = chat.render(tokenizer, json.loads(row["messages"]))
        assert len(prompt) == row["prompt_tokens"]
        ids = torch.tensor([[*prompt, *row["token_ids"]]])
        expected = torch.tensor(row["logprobs"])
        with torch.no_grad():
            torch.testing.assert_close(_logprobs(peft, ids, len(prompt)), expected, atol=1e-5, rtol=0)
            with peft.disable_adapter():
                shift = (_logprobs(peft, ids, len(prompt)) - expected).abs().max()
        largest_shift = max(largest_shift, float(shift))
    assert largest_shift > 1e-3  # the adapter changes something, or this test could not fail


def test_plain_peft_gives_the_learners_logprobs(finished_run: Path) -> None:
    config = load(finished_run / "config.yaml")
    learner = Learner(config, config.model.source)
    saved, problems = load_latest(finished_run / "checkpoints")
    assert saved is not None
    assert (saved.step, problems) == (4, [])
    restore(learner, saved)
    task = Task(id="t", messages=({"role": "user", "content": "x"},))
    completion = Completion(
        token_ids=(70, 71, 0), logprobs=(0.0, 0.0, 0.0), finish_reason="stop", adapter_version=4, adapter_hash=""
    )
    turn = Turn(prompt_ids=(1, 90, 0, 2), completion=completion)
    sample = Trajectory(task=task, sample_index=0, seed=0, turns=(turn,), text="", outcome=Score(value=1.0))
    batch = collate([Group(task=task, trajectories=(sample,))])
    with torch.no_grad():
        learners, _ = models.token_logprobs(learner.roles.model, pack(batch), 1.0)
        base = AutoModelForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
        peft = PeftModel.from_pretrained(base, finished_run / "adapters" / "v000004").eval()
        plain = _logprobs(peft, torch.tensor([[1, 90, 0, 2, 70, 71, 0]]), 4)
    torch.testing.assert_close(plain, learners, atol=1e-5, rtol=0)


def test_the_final_adapter_is_the_checkpointed_one(finished_run: Path) -> None:
    exported = load_file(finished_run / "adapters" / "v000004" / "adapter_model.safetensors")
    saved, _ = load_latest(finished_run / "checkpoints")
    assert saved is not None
    policy = {
        name.removeprefix("parameter/").replace(".policy.", "."): tensor
        for name, tensor in saved.tensors.items()
        if name.startswith("parameter/")
    }
    assert policy.keys() == exported.keys()
    assert all(torch.equal(policy[name], exported[name]) for name in policy)


def _logprobs(model: Any, ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Log-probs of the tokens after the prompt, by the textbook."""
    logits = model(input_ids=ids).logits[0, prompt_length - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, prompt_length:, None]).squeeze(1)
