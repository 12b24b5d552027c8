"""A run directory as rlft writes it, made up from a seed: the same learning curve every time, no model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlft.curves.statistics import mean_interval
from rlft.run.rollout_table import SCHEMA

CONFIG = """\
name: {name}
seed: 7
steps: {steps}
model:
  source: SmolLM2-135M-Instruct
environment:
  path: environments.arithmetic:sums
rewards:
- path: rewards.math_answer:math_answer
  name: math_answer
  weight: 1.0
- path: rewards.brevity:brevity
  name: brevity
  weight: 0.1
algorithm:
  preset: grpo
"""


def make_run(
    folder: Path,
    *,
    steps: int = 12,
    sft: bool = True,
    failures: bool = False,
    critic: bool = False,
    seed: int = 0,
) -> Path:
    """Write a whole run: `steps` RL steps, evaluations of base, SFT, every fifth step, rollouts, events."""
    random_ = random.Random(seed)
    write_config(folder, steps)
    evaluations = {"base": write_eval(folder, "base", 0.04, random_)}
    if sft:
        evaluations["sft"] = write_eval(folder, "sft", 0.3, random_)
    events = [event("sft_done", "SFT finished: loss 2.10 to 0.84")] if sft else []
    for step in range(1, steps + 1):
        skill = (0.3 if sft else 0.05) + 0.55 * (1 - 0.96**step) * 60 / 55
        rows = step_rollouts(step, skill, random_, failures=failures and step % 4 == 0)
        write_rollouts(folder / "rollouts" / f"step-{step:06d}.parquet", rows)
        append(folder / "metrics.jsonl", step_metrics(step, rows, random_, critic=critic))
        if step % 5 == 0 or step == steps:
            evaluations["rl"] = write_eval(folder, f"step-{step:06d}", skill, random_)
    if failures:
        events.append(event("worker_restarted", "rollout worker 1 was killed; 2 chunks redone", step=steps // 2))
    for record in events:
        append(folder / "events.jsonl", record)
    write_json(folder / "provenance.json", {"rlft": "0.1.0", "python": "3.11", "rewards": {"math_answer": "ab12"}})
    write_json(folder / "summary.json", {f"accuracy_{name}": value for name, value in evaluations.items()})
    return folder


def write_config(folder: Path, steps: int = 12) -> None:
    """The only file that every run directory has."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(name=folder.name, steps=steps), encoding="utf-8")


def write_eval(folder: Path, name: str, skill: float, random_: random.Random, tasks: int = 120) -> dict[str, Any]:
    """Write evals/NAME.json and return its accuracy."""
    by_task = {f"held-out-{i:03d}": [float(random_.random() < skill)] for i in range(tasks)}
    accuracy = mean_interval(by_task).as_dict()
    step = int(name[5:]) if name.startswith("step-") else 0
    record = {
        "name": name,
        "step": step,
        "adapter_version": -1 if name == "base" else step,
        "adapter_hash": f"{random_.getrandbits(64):016x}",
        "metric": "math_answer",
        "accuracy": accuracy,
        "failed": 0,
        "length": 40 - 20 * skill,
        "truncated": 0.3 * (1 - skill),
        "by_task": by_task,
    }
    write_json(folder / "evals" / f"{name}.json", record)
    return accuracy


def rollout(step: int = 1, group: int = 0, sample: int = 0, **changes: Any) -> dict[str, Any]:
    """One row of a rollouts file: a scored, right answer unless changed."""
    prompt = changes.pop("prompt", "What is 17 + 25? Answer with the number in <answer> tags.")
    row = {
        **{
            "step": step,
            "task_id": f"sum-{group:03d}",
            "group_index": group,
            "sample_index": sample,
            "seed": 2**63 + 1,
        },
        **{"prompt": prompt, "completion": "17 + 25 = 42\n<answer>42</answer>", "answer": '"42"'},
        "messages": json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]),
        **{"outcome": "score", "reward": 1.0, "parts": '{"math_answer": 1.0, "brevity": 0.8}'},
        **{"failure_kind": None, "failure_message": None, "reproduce": None, "failed_parts": None, "advantage": 0.5},
        **{"finish_reason": "stop", "prompt_tokens": 30, "completion_tokens": 12, "token_ids": [1, 2, 3]},
        **{"turns": 1, "conversation": None, "stop_reason": "done", "environment_reward": None},
        **{"action_mask": [True, True, True]},
        **{"logprobs": [-0.1, -0.2, -0.3], "adapter_version": step - 1, "adapter_hash": "5f3a9c0e1b2d4c6f"},
    }
    return {**row, **changes}


def step_rollouts(
    step: int,
    skill: float,
    random_: random.Random,
    *,
    failures: bool = False,
    groups: int = 16,
    size: int = 6,
) -> list[dict[str, Any]]:
    """The rollouts of one step: groups of unequal difficulty, group-relative advantages."""
    rows = []
    for group in range(groups):
        chance = min(1.0, max(0.0, skill + random_.gauss(0, 0.3)))
        for sample in range(size):
            right, tokens = random_.random() < chance, random_.randint(8, 60)
            brevity = round(1 - tokens / 64, 3)
            wrong = {"completion": f"17 + 25 is about {random_.randint(30, 60)}.\nI am not sure, let me think"}
            rows.append(
                rollout(
                    step,
                    group,
                    sample,
                    reward=float(right),
                    parts=json.dumps({"math_answer": float(right), "brevity": brevity}),
                    completion_tokens=tokens,
                    finish_reason="length" if tokens > 55 and not right else "stop",
                    **({} if right else wrong),
                )
            )
    if failures:
        failed = {
            "outcome": "failed",
            "reward": None,
            "parts": "{}",
            "advantage": None,
            "failure_kind": "timeout",
        }
        message = "math_answer did not return within 10 s"
        rows[0].update(failed, failure_message=message, reproduce="math_answer(completion='17 + 25')")
    for group in range(groups):
        members = [row for row in rows if row["group_index"] == group and row["outcome"] == "score"]
        mean = sum(row["reward"] for row in members) / len(members)
        for row in members:
            row["advantage"] = row["reward"] - mean
    return rows


def step_metrics(
    step: int, rows: list[dict[str, Any]], random_: random.Random, *, critic: bool = False
) -> dict[str, float]:
    """The line of metrics.jsonl that belongs to these rollouts; the learner's numbers are made up."""
    groups: dict[int, list[float]] = {}
    for row in rows:
        if row["outcome"] == "score":
            groups.setdefault(row["group_index"], []).append(row["reward"])
    interval = mean_interval(list(groups.values()))
    scored = [row for row in rows if row["outcome"] == "score"]
    tokens = sum(row["completion_tokens"] for row in rows)
    noise = random_.gauss
    metrics = {
        **{"reward/mean": interval.mean, "reward/low": interval.low, "reward/high": interval.high},
        "reward/part/math_answer": interval.mean,
        "reward/part/brevity": sum(json.loads(row["parts"])["brevity"] for row in scored) / len(scored),
        **{"reward/failed": len(rows) - len(scored), "reward/abstained": 0},
        "groups/with_signal": sum(min(g) < max(g) for g in groups.values()) / len(groups),
        "groups/solved_all": sum(min(g) == 1 for g in groups.values()) / len(groups),
        "groups/solved_none": sum(max(g) == 0 for g in groups.values()) / len(groups),
        **{
            "policy/kl_ref": 0.002 * step + abs(noise(0, 0.004)),
            "policy/entropy": 0.9 * 0.985**step + noise(0, 0.02),
        },
        **{"policy/clip_fraction": abs(noise(0.01, 0.004)), "policy/grad_norm": abs(noise(0.6, 0.12))},
        **{
            "policy/mismatch": 1e-3,
            "policy/mismatch_kl": abs(noise(0, 2e-5)),
            "policy/loss": noise(0, 0.02),
            "policy/lr": 2e-4,
        },
        "rollout/length": tokens / len(rows),
        "rollout/truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        **{"rollout/repetition": 0.02 + 0.001 * (step % 5), "rollout/duplicates": 0.1},
        **{
            "time/rollout": 6 + noise(0, 0.3),
            "time/score": 0.4,
            "time/learn": 3 + noise(0, 0.2),
            "time/step": 9.6,
        },
        "time/tokens_per_s": tokens / 6,
    }
    if critic:
        metrics |= {"critic/loss": 0.2 * 0.97**step, "critic/explained_variance": 1 - 0.95**step}
    return {"step": step, **metrics}


def event(kind: str, message: str, **more: Any) -> dict[str, Any]:
    """One line of events.jsonl."""
    return {"time": "2030-01-01T12:00:00+00:00", "kind": kind, "message": message, **more}


def write_rollouts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one rollouts file, in the schema that runs use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
