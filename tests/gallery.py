"""Run directories of every kind that a page has to show, made up from a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from rlft.curves.compare import compare
from rlft.curves.compare_page import write_page
from rlft.curves.scored_run import read_groups
from tests.fakes_run import (
    append,
    event,
    make_run,
    rollout,
    step_metrics,
    step_rollouts,
    write_config,
    write_eval,
    write_rollouts,
)
from tests.hostile_texts import TEXTS
from tests.synthetic_runs import write_run


def whole(folder: Path, steps: int = 40) -> Path:
    """A run that is over, with held-out samples before and after training, failures, a critic and checkpoints."""
    make_run(folder, steps=steps, failures=True, critic=True)
    for name in ("sft", f"step-{steps:06d}"):
        _held_out(folder, name)
    for step in range(10, steps + 1, 10):
        (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    return folder


def hacked(folder: Path, steps: int = 40) -> Path:
    """A run whose trained reward rises while the shadow reward falls, with the alarms that this raises."""
    random_ = random.Random(3)
    write_config(folder, steps)
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    shadow = "- path: rewards.judge:judge\n  name: quality\n  weight: 0\n  role: shadow\nalgorithm:"
    (folder / "config.yaml").write_text(config.replace("algorithm:", shadow), encoding="utf-8")
    for step in range(steps + 1):
        skill, quality = 0.2 + 0.7 * step / steps, 0.7 - 0.5 * step / steps
        rows = step_rollouts(step, skill, random_)
        for row in rows:
            good = float(random_.random() < quality)
            row["parts"] = json.dumps({**json.loads(row["parts"]), "quality": good})
            if not good and row["reward"]:
                row["completion"] = "<answer>42</answer>" * random_.randint(3, 9)
                row["completion_tokens"] *= 3
        if step:
            write_rollouts(folder / "rollouts" / f"step-{step:06d}.parquet", rows)
            metrics = step_metrics(step, rows, random_)
            part = sum(json.loads(row["parts"])["quality"] for row in rows) / len(rows)
            bounds = {"low/reward/part/quality": part - 0.08, "high/reward/part/quality": part + 0.08}
            append(folder / "metrics.jsonl", {**metrics, "reward/part/quality": part, **bounds})
        if step % 20 == 0:
            name = f"step-{step:06d}" if step else "base"
            write_eval(folder, name, skill, random_)
            held = [{**row, "task_id": f"held-out-{row['group_index']:03d}", "advantage": None} for row in rows]
            write_rollouts(folder / "evals" / f"{name}.parquet", held)
    return folder


def running(folder: Path) -> Path:
    """A run that goes on after an interruption."""
    make_run(folder, steps=7)
    (folder / "summary.json").unlink()
    for kind, message in (("stopped", "by SIGTERM"), ("resumed", "continuing after step 5")):
        append(folder / "events.jsonl", event(kind, message, step=5))
    return folder


def one_step(folder: Path) -> Path:
    """A run of one step."""
    return make_run(folder, steps=1, sft=False)


def empty(folder: Path) -> Path:
    """A run that has only begun."""
    write_config(folder)
    return folder


def hostile(folder: Path) -> Path:
    """A run in which every name and every text tries to do harm, one of a megabyte among them."""
    make_run(folder, steps=2, sft=False)
    texts: list[str] = [*(text for text in TEXTS.values() if len(text) < 10_000), "long " * 200_000]
    rows: list[dict[str, Any]] = []
    for group, text in enumerate(texts):
        usable = text.encode("utf-8", "replace").decode("utf-8")
        told = {"task_id": usable[:2000] or "nothing", "prompt": usable, "completion": usable}
        rows.append(rollout(3, group, 0, **told, answer=json.dumps(text), parts=json.dumps({usable[:200]: 1.0})))
        failure = {"failure_kind": usable[:100], "failure_message": usable, "reproduce": usable}
        rows.append(rollout(3, group, 1, **told, outcome="failed", reward=None, advantage=None, **failure))
        append(folder / "events.jsonl", event(text[:50], text[:2000], step=group % 3))
        append(folder / "metrics.jsonl", {"step": 3, "reward/mean": 0.5, f"reward/part/{text[:300]}": 0.25})
    write_rollouts(folder / "rollouts" / "step-000003.parquet", rows)
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    name = json.dumps(TEXTS["script"] + TEXTS["attributes"])
    (folder / "config.yaml").write_text(config.replace(f"name: {folder.name}", f"name: {name}"), encoding="utf-8")
    return folder


def large(folder: Path, steps: int, groups: int = 8, size: int = 8) -> Path:
    """A long run of `groups` times `size` rollouts a step; the texts are those of one step."""
    random_ = random.Random(0)
    write_config(folder, steps)
    rows = step_rollouts(1, 0.4, random_, groups=groups, size=size)
    tokens = {"token_ids": list(range(200)), "action_mask": [True] * 200, "logprobs": [-0.5] * 200}
    metrics = step_metrics(1, rows, random_)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            noisy = {name: value * (1 + random_.gauss(0, 0.1)) for name, value in metrics.items() if name != "step"}
            file.write(json.dumps({"step": step, **noisy, "reward/failed": 0, "reward/abstained": 0}) + "\n")
            for row in rows:
                row |= {"step": step, "task_id": f"sum-{(8 * step + row['group_index']) % 3000}", **tokens}
            write_rollouts(folder / "rollouts" / f"step-{step:06d}.parquet", rows)
    for name in ("base", f"step-{steps // 2:06d}", f"step-{steps:06d}"):
        write_eval(folder, name, 0.3 if name == "base" else 0.5, random_)
    return folder


def _held_out(folder: Path, name: str) -> None:
    made = json.loads((folder / "evals" / f"{name}.json").read_text(encoding="utf-8"))
    policy = {key: made[key] for key in ("adapter_version", "adapter_hash")}
    wrong = {"completion": "I think it is about 40.", "reward": 0.0, "parts": '{"math_answer": 0.0, "brevity": 0.8}'}
    rows = [
        rollout(
            0,
            at,
            0,
            task_id=task,
            prompt=f"What is {at} + 25? Answer with the number in <answer> tags.",
            **{
                **{"advantage": None, "completion": f"<answer>{at + 25}</answer>", "answer": f'"{at + 25}"'},
                **({} if values[0] else wrong),
                **policy,
            },
        )
        for at, (task, values) in enumerate(made["by_task"].items())
    ]
    write_rollouts(folder / "evals" / f"{name}.parquet", rows)


def compared(folder: Path, prompt: str = "What is") -> Path:
    """The page of a comparison of two configs, each with three seeds."""
    generator = np.random.default_rng(0)
    for label, chance in (("base", 0.4), ("new", 0.55)):
        for seed in range(3):
            values: dict[str, list[float | None]] = {f"t{i}": [float(generator.random() < chance)] for i in range(60)}
            rewards = np.linspace(0.2, chance, 40) + generator.normal(0, 0.05, 40)
            run, prompts = folder / f"{label}-{seed}", {task: f"{prompt} {task}?" for task in values}
            write_run(run, values, seed=seed, lr=2e-4 * chance, prompts=prompts, rewards=list(map(float, rewards)))
    before, after, remarks = read_groups([f"{folder}/base-*", "vs", f"{folder}/new-*"])
    write_page(compare(before, after, min_effect=0.01, remarks=remarks), folder / "compare.html")
    return folder / "compare.html"


GALLERY = {"whole": whole, "hacked": hacked, "running": running, "one": one_step, "empty": empty, "hostile": hostile}
"""Each kind of run by name."""
