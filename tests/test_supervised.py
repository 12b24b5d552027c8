"""Supervised runs: their numbers are TRL's, an interruption changes nothing, and they stop when nothing gets better."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rlft.cli import main
from rlft.config import LearnerConfig, ModelConfig, PolicyAdapterConfig
from rlft.curves.evaluation_sets import TASKS, read_sets
from rlft.curves.verdict import verdict_of
from rlft.learner.rl import Learner
from rlft.model.adapter import adapter_hash, read_folder
from rlft.model.starting_point import start_tensors
from rlft.run.directory import Run
from rlft.run.resume import How
from rlft.train.rl import launch as launch_rl
from rlft.train.supervised import launch
from rlft.train.supervised.config import SupervisedConfig, SupervisedDataConfig
from rlft.train.supervised.data import SupervisedData, load, make_batch
from rlft.train.supervised.learner import SupervisedLearner
from rlft.train.supervised.loop import measure
from rlft.train.supervised.stopping import standing
from tests.fakes import read_lines, read_metrics, read_result, tiny_config, write_config
from tests.test_report import Page
from tests.test_supervised_data import END, assistant, chat, user, write

ROOT = Path(__file__).parents[1]
MakeSft = Callable[..., SupervisedConfig]


@pytest.fixture
def make_sft(tmp_path: Path, tiny_model: Path) -> MakeSft:
    """`make_sft(epochs=2, data={...})`: a run of a second; mappings are merged in."""
    rows = [chat(f"say {i}", "a" * (2 + i % 3)) for i in range(60)]
    source = write(tmp_path / "rows.jsonl", rows)

    def make(**changes: Any) -> SupervisedConfig:
        tree: dict[str, Any] = {
            "name": "tiny",
            "output_dir": str(tmp_path / "runs"),
            "model": {"source": str(tiny_model), "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"source": str(source), "heldout": 20},
            "batch_size": 8,
            "learner": {"lr": 1e-2, "threads": 1},
            "checkpoint": {"every": 2},
        }
        for key, value in changes.items():
            both_are_mappings = isinstance(value, dict) and isinstance(tree.get(key), dict)
            tree[key] = {**tree[key], **value} if both_are_mappings else value
        return SupervisedConfig.model_validate(tree)

    return make


# Against TRL


@pytest.fixture
def trl_is_quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def own_learner(folder: Path, **settings: Any) -> SupervisedLearner:
    """A learner of all weights in float32."""
    config = SupervisedConfig(
        name="tiny",
        model=ModelConfig(source="", dtype="float32"),
        adapter=PolicyAdapterConfig(kind="full"),
        data=SupervisedDataConfig(source=""),  # type: ignore[call-arg]
        learner=LearnerConfig(threads=1, max_grad_norm=1e9, **settings),
    )
    return SupervisedLearner(config, folder)


MESSAGES = [{"prompt": [user(f"say {i}")], "completion": [assistant("ab" * (1 + i % 4))]} for i in range(5)] + [
    {"prompt": [user("x"), assistant("y"), user("z")], "completion": [assistant("no")]}
]
PLAIN = [{"prompt": f"{i} is", "completion": " even" if i % 2 else " so odd"} for i in range(6)]
TEXTS = [{"text": f"the number {i} is " + "odd " * i} for i in range(5)]


@pytest.mark.usefixtures("trl_is_quiet")
@pytest.mark.parametrize(
    ("rows", "loss_on"),
    [(MESSAGES, "replies"), (MESSAGES, "all"), (PLAIN, "replies"), (TEXTS, "replies")],
    ids=["messages", "messages, all", "plain text", "text"],
)
def test_an_update_is_that_of_sfttrainer(tmp_path: Path, tiny_model: Path, rows: Any, loss_on: str) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=SFTConfig(
            output_dir=str(tmp_path),
            completion_only_loss=loss_on == "replies" and "text" not in rows[0],
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    model = trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    loss = trainer.compute_loss(model, batch)
    loss.backward()

    settings = SupervisedDataConfig.model_validate(
        {"source": str(write(tmp_path / "rows.jsonl", rows)), "heldout": 0, "loss_on": loss_on}
    )
    data = load(settings, tokenizer, END, context=256)
    for example, theirs in zip(data.train, trainer.train_dataset, strict=True):
        assert [*example.prompt_ids, *example.token_ids] == theirs["input_ids"]
    learner = own_learner(tiny_model, tokens_per_microbatch=60)
    metrics = learner.update(make_batch(data.train), 1.0).metrics
    assert metrics["sft/loss"] == pytest.approx(loss.item(), abs=1e-5)
    own = {name: p.grad for name, p in learner.roles.model.named_parameters() if p.grad is not None}
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert own.keys() == theirs.keys()
    for name, gradient in own.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_the_microbatch_budget_does_not_change_the_update(make_sft: MakeSft, tiny_model: Path) -> None:
    found = []
    for tokens in (1, 50, 10_000):
        config = make_sft(learner={"tokens_per_microbatch": tokens})
        learner = SupervisedLearner(config, tiny_model)
        data = rows_of(config, tiny_model)
        for _ in range(2):
            metrics = learner.update(make_batch(data.train[:8]), 1.0).metrics
        found.append(metrics)
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def rows_of(config: SupervisedConfig, model: Path) -> SupervisedData:
    return load(config.data, AutoTokenizer.from_pretrained(model), END, context=256)


def test_the_heldout_loss_is_the_mean_over_rows_of_their_means_over_tokens(make_sft: MakeSft, tiny_model: Path) -> None:
    config = make_sft()
    data = rows_of(config, tiny_model)
    result = measure(SupervisedLearner(config, tiny_model), config, data, name="base", step=0, on_chunk=None)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    losses = []
    for example in data.heldout:  # no two rows have a prompt in common
        ids = torch.tensor([[*example.prompt_ids, *example.token_ids]])
        labels = ids.clone()
        labels[0, : len(example.prompt_ids)] = -100
        losses.append(model(ids, labels=labels).loss.item())
    assert len({len(example.token_ids) for example in data.heldout}) > 1
    assert result.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert result.accuracy.mean == -result.loss
    assert result.accuracy.low < result.accuracy.mean < result.accuracy.high
    assert result.extra["perplexity"] == pytest.approx(np.exp(result.loss))


# What must not matter


class InterruptError(Exception):
    """What the test raises in the middle of a run."""


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stop the next run while it logs this update."""
    log = Run.log

    def stop(self: Any, number: int, metrics: Any) -> None:
        if number == step:
            monkeypatch.setattr(Run, "log", log)
            raise InterruptError
        log(self, number, metrics)

    monkeypatch.setattr(Run, "log", stop)


STOPS = {"learner": {"lr": 1e-9}, "evaluation": {"every": 2, "patience": 2}, "epochs": 3}
"""Nothing is learnt, so that nothing gets better."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"every": 3}, "epochs": 1.6},
        {"adapter": {"kind": "full"}, "learner": {"lr": 1e-3}, "epochs": 1.6},
        STOPS,
    ],
    ids=["lora", "full", "stopped early"],
)
def test_an_interruption_changes_nothing(
    make_sft: MakeSft, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    whole = make_sft(name="whole", **changes)
    launch.train(whole)
    broken = make_sft(name="broken", **changes)
    interrupt(monkeypatch, 1)  # before the first checkpoint
    with pytest.raises(InterruptError):
        launch.train(broken)
    interrupt(monkeypatch, 4)  # after one
    with pytest.raises(InterruptError):
        launch.resume(broken.run_dir)
    launch.resume(broken.run_dir)
    result, expected = read_result(broken.run_dir), read_result(whole.run_dir)
    assert {**result.pop("summary.json"), "name": "whole"} == expected.pop("summary.json")
    assert result == expected
    assert len(result["metrics.jsonl"]) == (4 if changes is STOPS else 8)


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("ray_cluster")
def test_several_processes_give_the_run_of_one(make_sft: MakeSft) -> None:
    settings = {"tokens_per_microbatch": 40, "lr": 1e-3}
    alone = make_sft(name="alone", learner=settings)
    shared = make_sft(name="shared", learner={**settings, "workers": 2})
    summary, expected = launch.train(shared), launch.train(alone)
    for row, row_alone in zip(read_metrics(shared.run_dir), read_metrics(alone.run_dir), strict=True):
        assert row == pytest.approx(row_alone, rel=1e-4, abs=1e-5)
    assert summary["loss_trained"] == pytest.approx(expected["loss_trained"], rel=1e-4)


def test_changed_rows_are_not_resumed_on_but_forked(
    make_sft: MakeSft, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_sft()
    interrupt(monkeypatch, 3)
    with pytest.raises(InterruptError):
        launch.train(config)
    write(tmp_path / "rows.jsonl", [chat(f"say {i}", "a" * (2 + i % 3)) for i in range(61)])
    with pytest.raises(ValueError, match=r"(?s)rows\.jsonl: sha256 .*Restore it, or .* --fork NAME"):
        launch.resume(config.run_dir)
    path, summary = launch.resume(config.run_dir, How(fork="longer", overrides=("epochs=2",)))
    assert path.name == "longer"
    assert summary["steps"] == 10


# Early stopping


def jittering(generator: np.random.Generator, gains: list[float], rows: int) -> list[dict[str, list[float]]]:
    """Measurements of rows of very different difficulty, whose mean rises by `gains`; every row jitters by itself."""
    difficulty = -generator.gamma(1.5, 2.0, rows)
    means = np.cumsum([0.0, *gains])
    noise = 0.05 * generator.standard_t(4, (len(means), rows))
    return [
        {str(row): [float(v)] for row, v in enumerate(difficulty + m + n)} for m, n in zip(means, noise, strict=True)
    ]


def test_where_nothing_changes_no_measurement_is_better() -> None:
    generator = np.random.default_rng(0)
    looks, runs = 10, 400
    wrong = sum(standing(jittering(generator, [0.0] * looks, 40), planned=looks).best > 0 for _ in range(runs))
    # 2.5 % promised; 3.1 standard deviations of 400 runs more are 20.
    assert wrong <= 20
    # Whoever takes the highest mean so far for better is nearly always wrong.
    naive = 0
    for _ in range(50):
        means = [np.mean([v for (v,) in each.values()]) for each in jittering(generator, [0.0] * looks, 40)]
        naive += max(means[1:]) > means[0]
    assert naive > 40


def test_what_rises_and_falls_is_stopped_at_its_top() -> None:
    generator = np.random.default_rng(1)
    gains = [0.1, 0.1, 0.1, -0.05, -0.05, -0.05]
    found = [standing(jittering(generator, gains, 80), planned=6) for _ in range(100)]
    assert sum(each.best == 3 and each.since == 3 for each in found) >= 95
    assert found[0].is_over(3)
    assert not found[0].is_over(4)
    assert not found[0].is_over(0)


def test_an_overfitted_run_stops_and_ends_with_its_best_adapter(make_sft: MakeSft, tmp_path: Path) -> None:
    # Replies of random letters: first it is learnt which letters there are, then noise.
    generator = np.random.default_rng(0)
    rows = [chat(f"{i}", "".join(generator.choice(list("abcdefgh"), 6))) for i in range(60)]
    config = make_sft(
        data={"source": str(write(tmp_path / "noise.jsonl", rows)), "heldout": 40},
        adapter={"kind": "full"},
        learner={"lr": 1e-2},
        epochs=60,
        evaluation={"every": 10, "patience": 2},
    )
    summary = launch.train(config)
    assert 0 < summary["result_step"] < summary["steps"] < 120
    assert summary["result_step"] == summary["steps"] - 20
    assert summary["adapter"] == f"adapters/v{summary['result_step']:06d}"
    best, last = (summary["loss_trained"], read_evaluation(config, summary["steps"])["loss"])
    assert best < min(last, summary["loss_base"])
    told = next(event for event in read_lines(config.run_dir / "events.jsonl") if event["kind"] == "stopped_early")
    assert told["step"] == summary["result_step"]
    page = Page(config.run_dir / "report.html").text
    assert f"Training was stopped early: its result is the adapter of step {summary['result_step']}" in page
    # Nothing is left to do, although not all updates were made.
    assert launch.resume(config.run_dir)[1] == summary
    # The summary is held against the evaluation of the result, which is not the last one.
    run, result = config.run_dir, summary["result_step"]

    def lost() -> list[str]:
        return [each.says for each in verdict_of(run).reasons if each.code == "lost"]

    assert lost() == []
    changed = {**summary, "accuracy_trained": {**summary["accuracy_trained"], "mean": -0.01}}
    (run / "summary.json").write_text(json.dumps(changed))
    assert lost()[0].startswith(f"summary.json says -0.01 of the evaluation after step {result}, and the evaluation -")
    for file in (run / "evals").glob(f"step-{result:06d}.*"):
        file.unlink()
    assert f"an evaluation after step {result}, which is not there; the last one is of step {result - 10}" in lost()[0]
    for file in (run / "evals").glob("step-*"):
        file.unlink()
    assert lost()[0].endswith(f"an evaluation after step {result}, which is not there. Restore it from a copy.")
    assert verdict_of(run).kind == "cant_tell"


def read_evaluation(config: SupervisedConfig, step: int) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((config.run_dir / "evals" / f"step-{step:06d}.json").read_text())
    return result


# Adapters and tasks


def test_the_adapter_loads_in_peft_and_starts_rl_and_further_supervised_runs(
    make_sft: MakeSft, tiny_model: Path, tmp_path: Path
) -> None:
    first = make_sft(name="first")
    summary = launch.train(first)
    assert summary["loss_trained"] < summary["loss_base"] - 0.1
    folder = first.run_dir / summary["adapter"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), loaded.disable_adapter():
        base = loaded(ids).logits
    assert (loaded(ids).logits - base).abs().max() > 1e-3

    rl = tiny_config(tiny_model, adapter={"start": str(folder)}, output_dir=str(tmp_path / "rl"), steps=1)
    learner = Learner(rl, tiny_model, warm_start=start_tensors(rl))
    assert learner.adapter(0).hash == adapter_hash(read_folder(folder))
    assert launch_rl.train(rl)["steps"] == 1
    again = launch.train(make_sft(name="second", adapter={"start": str(folder)}))
    assert again["loss_base"] == pytest.approx(summary["loss_trained"], abs=1e-6)


def test_heldout_tasks_are_answered_before_and_after(make_sft: MakeSft, tiny_model: Path, tmp_path: Path) -> None:
    tasks = write_config(tmp_path, tiny_model)
    config = make_sft(epochs=6, evaluation={"tasks": str(tasks)})
    summary = launch.train(config)
    before, after = summary["tasks"]["base"], summary["tasks"]["trained"]
    # `a` has an odd code, and the base model writes bytes at random.
    assert after["mean"] == 1.0 > before["mean"]
    found = json.loads((config.run_dir / "evals" / "sets" / TASKS / "base.json").read_text())
    assert found["set_name"] == TASKS
    page = Page(config.run_dir / "report.html").text
    assert "letters" in page
    (tasks_read,) = read_sets(config.run_dir, config.model_dump())
    assert [row[1] for row in tasks_read.rows] == ["base", f"SFT, step {summary['steps']}"]
    assert tasks_read.evals[-1].word == "accuracy"
    change = verdict_of(config.run_dir).effect
    assert change is not None
    assert change.change.interval.low < change.change.interval.mean < change.change.interval.high
    assert launch.resume(config.run_dir)[1] == summary


def test_another_reward_of_the_tasks_is_seen_when_resuming(make_sft: MakeSft, tiny_model: Path, tmp_path: Path) -> None:
    config = make_sft(evaluation={"tasks": str(write_config(tmp_path, tiny_model))})
    launch.train(config)
    (reward,) = tmp_path.glob("*reward*.py")
    assert str(reward) in str(json.loads((config.run_dir / "provenance.json").read_text())["sha256"])
    written = reward.read_text()
    reward.write_text(written + "# changed\n")
    with pytest.raises(ValueError, match=rf"(?s){re.escape(reward.name)}.*--fork"):
        launch.resume(config.run_dir)
    reward.write_text(written)
    tasks = Path(config.evaluation.tasks)
    tasks.write_text(tasks.read_text().replace("max_new_tokens: 12", "max_new_tokens: 11"))
    with pytest.raises(ValueError, match=r"(?s)rewards and sampling of evaluation\.tasks.*--fork"):
        launch.resume(config.run_dir)


def test_rows_that_give_heldout_tasks_away_are_refused(make_sft: MakeSft, tiny_model: Path, tmp_path: Path) -> None:
    rows = [chat(f"say {i}", "a") for i in range(30)] + [chat("heldout3", "a")]
    source = write(tmp_path / "leak.jsonl", rows)
    config = make_sft(
        data={"source": str(source), "heldout": 0}, evaluation={"tasks": str(write_config(tmp_path, tiny_model))}
    )
    with pytest.raises(
        ValueError, match=r"leak\.jsonl:31: its prompt is that of held-out task 'heldout-3' of .*letters"
    ):
        launch.train(config)
    assert not config.run_dir.exists()


# Config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": {"kind": "head"}}, "head trains no policy"),
        ({"ray_address": "10.0.0.1:6379"}, "one process trains alone"),
        ({"evaluation": {"patience": 2}}, "set evaluation.every and data.heldout too"),
        ({"evaluation": {"patience": 2, "every": 1}, "checkpoint": {"adapters": "last 1"}}, "use all"),
        ({"data": {"columns": {"promt": "x"}}}, "promt"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(make_sft: MakeSft, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_sft(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 64}, r"batch_size is 64, but .*rows\.jsonl has 40 rows to train on"),
        ({"data": {"heldout": 5}, "evaluation": {"patience": 1, "every": 1}}, "needs 16 of them, and there are 5"),
        ({"evaluation": {"tasks": "gone.yaml"}}, r"evaluation\.tasks: no config file gone\.yaml"),
    ],
)
def test_what_the_data_do_not_allow_is_refused_before_a_run_exists(
    make_sft: MakeSft, changes: dict[str, Any], words: str
) -> None:
    config = make_sft(**changes)
    with pytest.raises(ValueError, match=words):
        launch.train(config)
    assert not config.run_dir.exists()


def test_every_setting_is_documented_and_the_schema_is_valid() -> None:
    schema = json.loads(rlft("schema", "--kind", "sft").output)
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = {"": schema, **schema["$defs"]}
    bare = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section["properties"].items()
        if not value.get("description")
    ]
    assert bare == []


# The command line


def rlft(*arguments: str | Path) -> Any:
    """What a command printed and left."""
    return CliRunner().invoke(main.app, [str(a) for a in arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


def test_the_command_ends_with_a_table_and_every_command_reads_its_run(
    make_sft: MakeSft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from rlft import config_file

    (tmp_path / "sft.yaml").write_text(config_file.dump(make_sft(output_dir="runs", epochs=2)), encoding="utf-8")
    done = rlft("sft", "sft.yaml", "name=one")
    run = Path("runs/one")
    summary = json.loads((run / "summary.json").read_text())
    assert re.search(
        rf"base model\W+{summary['loss_base']:.3f}\W+[\d.]+ to [\d.]+\W+{summary['perplexity_base']:.2f}", done.output
    )
    assert re.search(rf"after SFT, update 10\W+{summary['loss_trained']:.3f}", done.output)
    assert "SHIP" in done.output
    assert f"adapter: {{start: {run}/adapters/v000010}}" in done.output
    assert "adapter_config.json" in {path.name for path in (run / "adapters/v000010").iterdir()}

    assert "SHIP" in rlft("report", run).output
    text = Page(run / "report.html").text
    for words in ("rows.jsonl", "10 of 10", "(SFT, step 10)", "nats per token"):
        assert words in text
    rlft("sft", "sft.yaml", "name=two", "epochs=1")
    assert "held-out mean of logprob" in rlft("compare", "runs/two", "runs/one").output
    assert "10 steps are too few to call a run healthy" in rlft("health", run).output
    checked = rlft("verify", run)
    assert (checked.exit_code, "AGREES" in checked.output) == (0, True), checked.output
    evaluation = run / "evals" / "step-000010.json"
    text = evaluation.read_text()
    found = json.loads(text)
    found["by_task"] = {row: [value + 1.0 for value in values] for row, values in found["by_task"].items()}
    evaluation.write_text(json.dumps(found, indent=1))
    checked = rlft("verify", run)
    assert checked.exit_code == 1
    for what in ("hashes in the manifest", "held-out means from their rows", "held-out rows measured again"):
        assert re.search(rf"{what}\W+\d+ \w+\W+\d+\W+[1-9]", checked.output), what
    evaluation.write_text(text)

    before = read_result(run)
    assert "has ended after 10 steps" in " ".join(rlft("resume", run).stdout.split())
    assert read_result(run) == before
    with pytest.raises(ValueError, match=r"is a supervised run.*--adapter .*v000010"):
        rlft("evaluate", run)
    with pytest.raises(ValueError, match="this looks like a config of `rlft sft`"):
        rlft("train", "sft.yaml")
