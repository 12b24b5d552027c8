"""Strict JSON on 300 published prompts: base and trained policies, by the published criterion and by what was asked.

    python -m benchmarks.strict_json --prompts FILE --base configs/strict_json.yaml --run runs/strict_json ...

One sample per prompt at T = 0.7 and top-p 0.95, of at most 1,024 tokens, as published. The published criterion is
`environments.observed.json_syntax`, the strict one the part `all` of `rewards.strict_json`. Intervals of 95 % are
Wilson's, those of several runs together are clustered by prompt. `RUN@sft` or `RUN@v40` names another adapter of a run
than its result.
The prompts are not part of this project; that none of them is trained on is checked for every run. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from benchmarks.strict_json_prompts import LEVELS, Published, overlap, read_published
from rlft.cli.run_config import load, load_run
from rlft.config import RunConfig
from rlft.curves.reading import adapter_of
from rlft.curves.statistics import mean_interval
from rlft.environment import loading
from rlft.train.rl.measure import answers
from rlft.types import Group

CRITERIA = {"published": "json_syntax", "strict": "strict_json/all"}
"""What a criterion is called, and the reward or part that decides it."""
SETTINGS = (
    "rewards=[{path: 'environments.observed.json_syntax:json_syntax'}, {path: 'rewards.strict_json:strict_json'}]",
    "evaluation={temperature: 0.7, top_p: 0.95, samples_per_task: 1, metric: json_syntax}",
    "sampling.max_new_tokens=1024",
    "evaluations=[]",
    "backend=inline",
)
Values = Mapping[str, float]
"""Task id -> 0 or 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A policy's answers to the prompts, judged."""

    name: str
    values: Mapping[str, Values]
    """By criterion; the published model's has the published one alone."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Mean length in tokens, share of answers that were cut, mean of each part, seconds."""
    trained_on: Sequence[str] = ()
    """Published prompts that were trained on."""


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", required=True, metavar="FILE", help="the published prompts, JSON lines")
    parser.add_argument("--base", metavar="CONFIG", help="a config, whose base model is measured")
    parser.add_argument("--run", nargs="*", default=[], metavar="RUN", help="run directories, whose result is measured")
    parser.add_argument("--samples", type=Path, metavar="FOLDER", help="keep all answers there, NAME.jsonl each")
    parser.add_argument("--first", type=int, default=300, metavar="N", help="only the first N prompts")
    arguments = parser.parse_args(given)
    if not arguments.base and not arguments.run:
        parser.error("there is nothing to measure: give --base CONFIG, --run RUN, or both")
    try:
        rows = read_published(arguments.prompts)[: arguments.first]
        subjects = [(Path(arguments.base), "")] if arguments.base else []
        subjects += [(Path(path), name) for path, _, name in (run.partition("@") for run in arguments.run)]
        found = [_measure(*subject, rows, arguments.prompts, arguments.samples) for subject in subjects]
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    report(rows, [*_published(rows), *found])


def _measure(path: Path, adapter: str, rows: Sequence[Published], prompts: str, samples: Path | None) -> Measured:
    """A config's base model, or an adapter of a run directory."""
    is_run = path.is_dir()
    folder = adapter_of(path, adapter) if is_run else None
    trained = load_run(path, [], is_trained=False) if is_run else load(path, [], is_trained=False)
    learnt = overlap(loading.load(trained.environment), rows)
    began = time.monotonic()
    groups, _ = answers(measuring(path, prompts, len(rows)), folder)
    seconds = time.monotonic() - began
    name = f"{path.name}{f'@{adapter}' if adapter else ''}" if is_run else "base"
    if samples is not None:
        samples.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(_answer(group), ensure_ascii=False) + "\n" for group in groups]
        (samples / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return judged(name, groups, seconds, learnt)


def measuring(path: Path, prompts: str, count: int) -> RunConfig:
    """The config of a run, or of a config file, with the published prompts and sampling in place of its own."""
    # JSON is YAML, too, so that a path with odd characters stays one text.
    source = json.dumps({"path": "benchmarks.strict_json_prompts:load_published", "args": {"path": prompts}})
    overrides = [*SETTINGS, f"environment={source}", f"evaluation.tasks={count}"]
    read = load_run if path.is_dir() else load
    return read(path, overrides, is_trained=False)


def judged(name: str, groups: Sequence[Group], seconds: float, learnt: Sequence[str] = ()) -> Measured:
    """What the criteria say of the scored answers, one to each prompt."""
    trajectories = {group.task.id: group.trajectories[0] for group in groups}
    parts = [each.parts for each in trajectories.values()]
    facts = {
        "length": sum(each.num_actions for each in trajectories.values()) / len(trajectories),
        "cut": sum(each.finish_reason == "length" for each in trajectories.values()) / len(trajectories),
        **{key: sum(each[key] for each in parts) / len(parts) for key in parts[0] if key.startswith("strict_json/")},
        "seconds": round(seconds, 1),
    }
    values = {
        criterion: {key: each.parts[part] for key, each in trajectories.items()} for criterion, part in CRITERIA.items()
    }
    return Measured(name=name, values=values, facts=facts, trained_on=learnt)


def _published(rows: Sequence[Published]) -> list[Measured]:
    """The verdicts that stand in the file."""
    base = {each.task.id: float(each.base_valid) for each in rows}
    trained = {each.task.id: float(each.trained_valid) for each in rows}
    return [
        Measured(name="published base", values={"published": base}),
        Measured(name="published trained", values={"published": trained}),
    ]


def _answer(group: Group) -> dict[str, Any]:
    trajectory = group.trajectories[0]
    return {
        "id": group.task.id,
        "level": group.task.columns["level"],
        "prompt": group.task.messages[-1]["content"],
        "completion": trajectory.text,
        **trajectory.parts,
    }


def share(values: Sequence[float]) -> dict[str, float]:
    """How many are 1, the share in percent, and its Wilson interval of 95 %."""
    right = round(sum(values))
    bounds = binomtest(right, len(values)).proportion_ci(method="wilson")
    return {
        "right": right,
        "of": len(values),
        "percent": 100 * right / len(values),
        "low": 100 * float(bounds.low),
        "high": 100 * float(bounds.high),
    }


def report(rows: Sequence[Published], found: Sequence[Measured]) -> None:
    """Print the table and the line of JSON."""
    levels = {each.task.id: str(each.task.columns["level"]) for each in rows}
    shown = [level for level in LEVELS if level in levels.values()]
    table = Table(title=f"{len(rows)} published prompts: share of answers in %, with intervals of 95 %")
    for column in ("policy", "criterion", "all", *shown):
        table.add_column(column)
    told: dict[str, Any] = {}
    for each in found:
        for criterion, values in each.values.items():
            groups = {"all": list(values.values())}
            groups |= {level: [value for key, value in values.items() if levels[key] == level] for level in shown}
            shares = {name: share(group) for name, group in groups.items()}
            table.add_row(each.name, criterion, *map(_shown, shares.values()))
            told.setdefault(each.name, dict(each.facts))[criterion] = shares
    runs = [each for each in found if each.facts and each.name != "base"]
    if len(runs) > 1:
        together = told["together"] = {"runs": len(runs)}
        for criterion in CRITERIA:
            interval = mean_interval([[each.values[criterion][key] for each in runs] for key in levels])
            bounds = {"percent": interval.mean, "low": interval.low, "high": interval.high}
            together[criterion] = {name: 100 * value for name, value in bounds.items()}
            table.add_row(f"{len(runs)} runs", criterion, _shown(together[criterion]), *("" for _ in shown))
    Console(width=120).print(table)
    for each in found:
        if each.facts:
            print(
                f"{each.name}: {each.facts['length']:.0f} tokens an answer, {100 * each.facts['cut']:.1f} % cut at the "
                f"limit, {each.facts['seconds']:.0f} s; published prompts trained on: {len(each.trained_on)}"
            )
            told[each.name]["trained_on"] = list(each.trained_on)
    print(json.dumps({"prompts": len(rows), **told}))


def _shown(found: Mapping[str, float]) -> str:
    return f"{found['percent']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"


if __name__ == "__main__":
    main()
