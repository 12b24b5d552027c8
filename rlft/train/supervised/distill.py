"""Rejection sampling: a run's best own samples as rows to learn from, and the config that learns them.

A run has sampled and scored thousands of replies. Those that earned most are demonstrations of its tasks in the
policy's own words, and supervised fine-tuning on them is the cheapest use of few data
(https://arxiv.org/abs/2308.01825, https://arxiv.org/abs/2304.06767).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.common.files import write_file
from rlft.common.rows import canonical_text
from rlft.config import RunConfig
from rlft.curves import reading
from rlft.curves.alarms import alarms_of
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.run.records import CONFIG, EVALS
from rlft.train.supervised.rows import Row

SAMPLES, SETTINGS = "samples.jsonl", "sft.yaml"
"""Files of a distillation."""
HELDOUT_FROM = 20
"""Fewest rows of which some are held out."""
_COLUMNS = ("step", "task_id", "sample_index", "messages", "completion", "outcome", "reward", "finish_reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a run's samples offer."""

    rows: Sequence[Mapping[str, Any]]
    """Rows with `messages`, and of which sample each is, in the order of the tasks."""
    tasks: int
    """Tasks that the run has sampled."""
    good: int
    """Of these, tasks with at least one row."""
    samples: int
    """Samples that the run has stored."""
    mean: float
    """Mean reward of those that have one."""
    min_reward: float
    """Least reward of a row."""
    left_out: Mapping[str, int]
    """Samples that earned enough and are no row, by the reason."""
    until: int | None
    """Last step that was looked at because of an alarm; None where all were."""
    why: str
    """The alarm."""


def choose(run: Path, config: RunConfig, *, top: int, min_reward: float | None, all_steps: bool = False) -> Chosen:
    """Choose the samples of each task that earned most.

    Only training tasks are looked at, and of these none that asks what a held-out task asks. Steps from the onset of a
    critical alarm on are left out: what a policy learnt there to earn is not what its rewards mean.

    Args:
        top: most samples of a task; the highest rewards first, of equal ones the latest.
        min_reward: least reward of a sample; None takes what is above the mean of all of the run's samples.
        all_steps: look at steps after an alarm, too.

    Raises:
        ValueError: the run has no rollouts, no sample has a reward, or none is good enough; what to do.
    """
    alarms = [] if all_steps else [each for each in alarms_of(run).alarms if each.severity == "critical"]
    first = min(alarms, key=lambda each: each.onset) if alarms else None
    steps = [step for step in reading.rollout_steps(run) if first is None or step < first.onset]
    if first is not None and not steps:
        raise ValueError(
            f"{run}: {first.name} has been raised since step {first.onset}, and no step lies before it; to take "
            "samples in spite of that: --all-steps"
        )
    found = reading.read_rollouts(run, _COLUMNS, steps or None, optional=("conversation",)).to_pylist()
    scored = [row for row in found if row["outcome"] == "score"]
    if not scored:
        raise ValueError(f"{run}: no sample has a reward, so none can be chosen")
    mean = math.fsum(row["reward"] for row in scored) / len(scored)
    least = min_reward if min_reward is not None else math.nextafter(mean, math.inf)
    heldout, environment = _heldout(run), _environment(config, scored)
    best: dict[str, list[dict[str, Any]]] = {}
    left_out: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for row in sorted(scored, key=lambda row: (-row["reward"], -row["step"], row["sample_index"])):
        if row["reward"] < least:
            break
        messages = _messages(row)
        key = (row["task_id"], _said(messages))
        if why := _unfit(row, messages, heldout):
            left_out[why] += 1
        elif key in seen:
            left_out["repeat another one"] += 1
        elif len(best.setdefault(row["task_id"], [])) < top:
            seen.add(key)
            best[row["task_id"]].append(_row(run, row, messages, _tools(environment, row)))
        else:
            left_out[f"are not among the best {top} of their task"] += 1
    tasks = dict.fromkeys(row["task_id"] for row in found)
    rows = [row for task in tasks for row in best.get(task, ())]
    if not rows:
        highest = max(row["reward"] for row in scored)
        why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(
            f"{run}: no sample is good enough: the highest reward is {highest:g} and the least that is taken {least:g}"
            f"{f' ({why})' if why else ''}; lower --min-reward, or let it train for longer"
        )
    return Chosen(
        rows=rows,
        tasks=len(tasks),
        good=sum(bool(each) for each in best.values()),
        samples=len(found),
        mean=mean,
        min_reward=least,
        left_out=left_out,
        until=steps[-1] if first is not None else None,
        why=f"{first.name} since step {first.onset}" if first is not None else "",
    )


def write(folder: Path, run: Path, config: RunConfig, chosen: Chosen) -> tuple[Path, Path]:
    """Write the rows, and the config of a supervised run on them that starts where the run started.

    Returns:
        (the rows, the config).

    Raises:
        ValueError: there are files of a distillation already.
    """
    rows, settings = folder / SAMPLES, folder / SETTINGS
    if taken := next((path for path in (rows, settings) if path.exists()), None):
        raise ValueError(f"{taken} exists already; name another folder with --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(rows, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in chosen.rows))
    heldout = 0.1 if len(chosen.rows) >= HELDOUT_FROM else 0
    tree: dict[str, Any] = {
        "name": f"{config.name}-distilled",
        "output_dir": config.output_dir,
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "adapter": config.adapter.model_dump(mode="json"),
        "data": {"source": str(rows), "heldout": heldout},
        "epochs": 3,
        "batch_size": max(1, min(16, len(chosen.rows) // 4)),
        "learner": {"lr": 2e-4, "schedule": "linear", "threads": config.learner.threads},
        "evaluation": {"tasks": str(run / CONFIG)},
    }
    write_file(settings, _yaml(tree))
    return rows, settings


def _yaml(tree: Mapping[str, Any]) -> str:
    import io

    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(tree), stream)
    return "# SFT on the best samples of a run, see samples.jsonl; rlft distill wrote both.\n" + stream.getvalue()


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sample as a conversation that ends with the policy's last reply."""
    if not row.get("conversation"):
        return [*json.loads(row["messages"]), {"role": "assistant", "content": row["completion"]}]
    messages: list[dict[str, Any]] = json.loads(row["conversation"])
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    return canonical_text(json.dumps([{**m, "content": str(m["content"]).strip()} for m in messages], sort_keys=True))


def _unfit(row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], heldout: set[str]) -> str:
    """Why a sample is nothing to learn from, whatever it earned; empty where it is."""
    if row["finish_reason"] == "length":
        return "were cut at the length limit"
    if not messages or not (str(messages[-1]["content"]).strip() or messages[-1].get("tool_calls")):
        return "say nothing"
    if not row.get("conversation") and Row(json.loads(row["messages"]), "").id in heldout:  # episodes open alike
        return "answer a held-out task"
    return ""


def _row(
    run: Path, row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    origin = {name: row[name] for name in ("task_id", "step", "sample_index", "reward")}
    return {"messages": list(messages), **({"tools": list(tools)} if tools else {}), **origin, "run": str(run)}


def _heldout(run: Path) -> set[str]:
    """Ids of the prompts of all tasks that the run has measured."""
    return {Row(json.loads(text), "").id for text in _measured(run)}


def _measured(run: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    for path in sorted((run / EVALS).rglob("[!.]*.parquet")):
        yield from dict.fromkeys(pq.read_table(path, columns=["messages"], partitioning=None)["messages"].to_pylist())


def _environment(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> Environment | None:
    """What knows the tools that the samples were shown; only episodes have some."""
    return loading.load(config.environment) if any(row.get("conversation") for row in rows) else None


def _tools(environment: Environment | None, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Schemas of the tools that a sample was shown: in a mix those of the environment that its id names."""
    if environment is None:
        return ()
    return environment.sources.get(row["task_id"].partition("/")[0], environment).tools
