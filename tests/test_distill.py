"""`rlft distill`: the best samples of a run, counted by hand, and what is left out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rlft import config_file
from rlft.cli import main
from rlft.config import RunConfig
from rlft.curves.alarms import Alarm
from rlft.train.rl import launch
from rlft.train.supervised import distill
from rlft.train.supervised.config import SupervisedConfig
from tests.fakes import read_rollouts, tiny_config, write_config


def rlft(*arguments: str | Path) -> Any:
    """What a command printed and left."""
    return CliRunner().invoke(main.app, [str(a) for a in arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


def sample(
    task: str, index: int, reward: float | None, completion: str, *, step: int = 1, **more: Any
) -> dict[str, Any]:
    """A stored sample of a task that is asked by its name."""
    row = {
        "step": step,
        "task_id": task,
        "sample_index": index,
        "messages": json.dumps([{"role": "user", "content": task}]),
        "completion": completion,
        "conversation": None,
        "outcome": "failed" if reward is None else "score",
        "reward": reward,
        "finish_reason": "stop",
    }
    return {**row, **more}


def stored_run(folder: Path, samples: list[dict[str, Any]]) -> Path:
    """A run directory with these samples and one held-out task, called `measured`."""
    run = folder / "run"
    for name in ("rollouts", "evals"):
        (run / name).mkdir(parents=True)
    (run / "config.yaml").write_text(config_file.dump(tiny_config("model")), encoding="utf-8")
    schema = pa.Table.from_pylist(samples).schema
    for step in {row["step"] for row in samples}:
        rows = [row for row in samples if row["step"] == step]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), run / "rollouts" / f"step-{step:06d}.parquet")
    measured = [sample("measured", 0, 1.0, "x")]
    pq.write_table(pa.Table.from_pylist(measured), run / "evals" / "base.parquet")
    return run


SAMPLES = [
    sample("a", 0, 0.2, "low"),
    sample("a", 1, 0.9, "best"),
    sample("a", 2, 0.8, "good"),
    sample("a", 0, 0.9, "best ", step=2),  # the same but for white space, and later
    sample("b", 0, 0.1, "bad"),
    sample("c", 0, 1.0, "cut", finish_reason="length"),
    sample("d", 0, 1.0, "  "),
    sample("measured", 0, 1.0, "leak"),
    sample("e", 0, None, "failed"),
    sample("f", 0, 0.7, "fine", step=2),
]


def choose(run: Path, **settings: Any) -> distill.Chosen:
    return distill.choose(run, tiny_config("model"), **{"top": 1, "min_reward": None, **settings})


def taken(chosen: distill.Chosen) -> list[tuple[str, int, str]]:
    return [(row["task_id"], row["step"], row["messages"][-1]["content"].strip()) for row in chosen.rows]


def test_the_best_samples_of_each_task_are_taken(tmp_path: Path) -> None:
    run = stored_run(tmp_path, SAMPLES)
    chosen = choose(run, min_reward=0.5)
    assert taken(chosen) == [("a", 2, "best"), ("f", 2, "fine")]
    assert (chosen.tasks, chosen.good, chosen.samples) == (7, 2, 10)
    # (0.2 + 0.9 + 0.8 + 0.9 + 0.1 + 1 + 1 + 1 + 0.7) / 9
    assert chosen.mean == pytest.approx(6.6 / 9)
    assert chosen.left_out == {
        "repeat another one": 1,
        "are not among the best 1 of their task": 1,
        "were cut at the length limit": 1,
        "say nothing": 1,
        "answer a held-out task": 1,
    }
    assert taken(choose(run, top=2, min_reward=0.5)) == [("a", 2, "best"), ("a", 1, "good"), ("f", 2, "fine")]
    # Without a bound what is above the mean of all, 0.73, is good.
    assert taken(choose(run, top=2)) == [("a", 2, "best"), ("a", 1, "good")]
    with pytest.raises(ValueError, match="the highest reward is 1 and the least that is taken 2; lower"):
        choose(run, min_reward=2.0)


def test_steps_after_a_critical_alarm_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stored_run(tmp_path, SAMPLES)
    alarm = Alarm(name="reward_collapse", severity="critical", onset=2, seen=2, evidence="", numbers={}, samples=())
    health = distill.alarms_of(run)
    monkeypatch.setattr(distill, "alarms_of", lambda run: type(health)(steps=2, alarms=(alarm,), unable=()))
    chosen = choose(run, min_reward=0.5)
    assert taken(chosen) == [("a", 1, "best")]
    assert (chosen.until, chosen.why) == (1, "reward_collapse since step 2")
    assert len(choose(run, min_reward=0.5, all_steps=True).rows) == 2


def test_an_episode_is_learnt_up_to_the_policys_last_word(tmp_path: Path) -> None:
    turns = [("user", "measured"), ("assistant", "1"), ("user", "higher"), ("assistant", "2"), ("user", "right")]
    conversation = json.dumps([{"role": role, "content": content} for role, content in turns])
    run = stored_run(tmp_path, [sample("measured", 0, 1.0, "2", conversation=conversation), sample("b", 0, 0.0, "x")])
    (row,) = choose(run, min_reward=1.0).rows  # episodes open alike, so the prompt does not tell a held-out one
    assert [message["content"] for message in row["messages"]] == ["measured", "1", "higher", "2"]


def test_in_a_mix_a_sample_has_the_tools_of_its_own_environment(tmp_path: Path) -> None:
    said = json.dumps([{"role": "user", "content": "?"}, {"role": "assistant", "content": "1"}])
    rows = [sample(task, 0, 1.0, "1", conversation=said) for task in ("calculator/a", "sums/b")]
    mixed = [{"name": name, "path": f"environments.{name}:load"} for name in ("calculator", "sums")]
    config = tiny_config("model", environment={"path": "", "mix": mixed})
    chosen = distill.choose(stored_run(tmp_path, rows), config, top=1, min_reward=0.5)
    tools = {row["task_id"]: [tool["function"]["name"] for tool in row.get("tools", ())] for row in chosen.rows}
    assert tools == {"calculator/a": ["calculate"], "sums/b": []}


@pytest.mark.timeout(120)
def test_from_a_run_to_sft_and_back_to_rl(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path, tiny_model)
    run = tmp_path / "runs" / "tiny"
    ends = f"sampling.stop={[*'abcdefghijklmnopqrstuvwxyz']}"  # the random model never ends a reply by itself
    launch.train(config_file.load(file, ["steps=2", "tasks_per_step=8", ends], RunConfig))
    done = rlft("distill", run, "--top", "2", "--out", "best")
    rows = [json.loads(line) for line in (tmp_path / "best" / "samples.jsonl").read_text().splitlines()]
    stored = {(row["task_id"], row["step"], row["sample_index"]): row for s in (1, 2) for row in read_rollouts(run, s)}
    mean = sum(row["reward"] for row in stored.values()) / len(stored)
    assert rows
    for row in rows:
        origin = stored[row["task_id"], row["step"], row["sample_index"]]
        assert row["messages"][-1]["content"] == origin["completion"]
        assert row["reward"] == origin["reward"] > mean
    good = len({row["task_id"] for row in rows})
    assert f"{good} of 8 sampled tasks have a good sample, {8 - good} have none" in done.output

    settings = config_file.load("best/sft.yaml", (), SupervisedConfig)
    assert (settings.seed, settings.evaluation.tasks) == (0, str(run / "config.yaml"))
    assert rlft("sft", "best/sft.yaml", "learner.lr=1e-2").exit_code == 0
    summary = json.loads((tmp_path / "runs" / "tiny-distilled" / "summary.json").read_text())
    assert summary["train_examples"] == len(rows)
    assert summary["tasks"]["base"]["n"] == 8
    start = f"adapter.start=runs/tiny-distilled/{summary['adapter']}"
    assert launch.train(config_file.load(file, ["steps=1", "name=on", start], RunConfig))["steps"] == 1

    with pytest.raises(ValueError, match=r"samples\.jsonl exists already; name another folder with --out"):
        rlft("distill", run, "--out", "best")
    with pytest.raises(ValueError, match="is a run of kind sft, which has no samples with rewards"):
        rlft("distill", tmp_path / "runs" / "tiny-distilled")
