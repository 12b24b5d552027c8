"""`rlft reward replay` and `rlft reward explain`: which rewards and steps are asked for, and the tables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rlft.cli.blocks import GAP, show_table
from rlft.cli.run_config import load, load_run
from rlft.config_file import read_section
from rlft.curves.reading import read_config, rollout_steps
from rlft.curves.text import counted, interval_text, number, shortened, visible
from rlft.reward.explain import as_json as explained_json
from rlft.reward.explain import explain
from rlft.reward.replay import COUNTS, Compared, Moved, Replay, replay
from rlft.types import RewardSpec

STEPS_SHOWN = 40
"""Rows of the table of steps at most; of more every n-th is shown."""
DASH = "\N{EN DASH}"


def run_replay(run: Path, rewards: Sequence[str], steps: str, *, workers: int | None, as_json: bool) -> None:
    """Replay a run and print what came of it.

    Args:
        rewards: as `rewards_of` takes them; empty are the run's own.
        steps: as `steps_of` takes them.

    Raises:
        ValueError: `run` is no RL run or has no such rollouts, or a reward cannot be replayed.
    """
    _refuse_other_kinds(run)
    config = load_run(run, [])
    specs = rewards_of(rewards) if rewards else list(config.rewards)
    wanted = steps_of(steps, rollout_steps(run))
    processes = workers if workers is not None else max(1, min(8, os.cpu_count() or 1))
    result = replay(run, config, specs, steps=wanted, workers=processes)
    if as_json:
        print(json.dumps(result.as_dict(), indent=1, allow_nan=False))
    else:
        show_replay(Console(), result)


def run_explain(run: Path, sample: str, *, as_json: bool) -> None:
    """Explain a sample; errors as of `explain`."""
    _refuse_other_kinds(run)
    facts = explain(run, load_run(run, []), sample)
    if as_json:
        print(explained_json(facts))
    else:
        show_explained(Console(), facts)


def rewards_of(texts: Sequence[str]) -> list[RewardSpec]:
    """The rewards that a user names, each by its path, as a mapping as in a config, or as a config that has them.

    Raises:
        ValueError: one is none of these.
    """
    found: list[RewardSpec] = []
    for text in texts:
        if text.endswith((".yaml", ".yml")):
            found += load(Path(text), []).rewards
        elif text.lstrip().startswith("{"):
            try:
                found.append(read_section(YAML(typ="safe", pure=True).load(text), RewardSpec))
            except (YAMLError, ValueError) as error:
                what = "is no reward's settings, such as {path: mine.py:mine, weight: 0.5, args: {most: 3}}"
                raise ValueError(f"--reward {text!r} {what}: {error}") from error
        else:
            found.append(RewardSpec(path=text))
    return found


def steps_of(text: str, stored: Sequence[int]) -> list[int]:
    """The steps in `all` or `3,5-8`; of a range those that are stored.

    Raises:
        ValueError: it is neither, or names a step without rollouts.
    """
    if text == "all":
        return list(stored)
    wanted: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(f"--steps {text!r}: write all, or numbers and ranges such as 3,5-8")
        first, last = int(match[1]), int(match[2] or match[1])
        within = [step for step in stored if first <= step <= last]
        if not within:
            known = f"{stored[0]} to {stored[-1]}" if stored else "none"
            raise ValueError(f"--steps {text!r}: there are no rollouts of {part}; stored: {known}")
        wanted.update(within)
    return sorted(wanted)


def _refuse_other_kinds(run: Path) -> None:
    if (kind := str(read_config(run).get("kind", "rl"))) != "rl":
        raise ValueError(f"{run} is a run of kind {kind}, which has no rewards; give one of `rlft train`")


def show_replay(console: Console, result: Replay) -> None:
    """Print the tables of a replay."""
    _show_steps(console, result)
    for line in _sentences(result.total):
        console.print(Text(line), soft_wrap=True)
    _show_parts(console, result)
    for name, names in (("old", result.only_old), ("new", result.only_new)):
        if names:
            console.print(Text(visible(f"Only the {name} rewards have: {', '.join(names)}")), soft_wrap=True)
    if result.moved:
        _show_moved(console, result.moved)
    for note in result.notes:
        console.print(Text(visible(f"note: {note}"), style="yellow"), soft_wrap=True)


def _show_steps(console: Console, result: Replay) -> None:
    every = -(-len(result.steps) // STEPS_SHOWN)
    rows = [
        (
            "all" if step.step is None else str(step.step),
            interval_text(step.old),
            interval_text(step.new),
            _of(step.counts["flipped"], step.counts["pairs"]),
            _of(step.counts["sign_flips"], step.counts["advantages"]),
            f"{step.counts['gained']} / {step.counts['lost']}",
        )
        for step in [*result.steps[::every], result.total]
    ]
    title = (
        "The stored rollouts under both rewards: means with 95 % intervals, pairs and signs of advantages that flip, "
        "groups that gain / lose their signal"
    )
    show_table(console, title, ("step", "old", "new", "pairs", "signs", "signal"), rows)


def _sentences(total: Compared) -> list[str]:
    """What the counts of all steps say, a line each."""
    counts = total.counts
    if not counts["stored_advantages"]:
        lines = ["No advantage is stored, so none is computed again."]
    elif counts["reproduced"] == counts["stored_advantages"]:
        lines = [f"The {counts['stored_advantages']} stored advantages are computed again to the bit."]
    else:
        differ = counts["stored_advantages"] - counts["reproduced"]
        lines = [f"{differ} of {counts['stored_advantages']} stored advantages are NOT what is computed again."]
    shown = ("failed_old", "failed_new", "abstained_old", "abstained_new", "tied", "untied", "to_zero", "from_zero")
    lines += [f"{counts[name]} {COUNTS[name]}." for name in shown if counts[name]]
    return lines


def _show_parts(console: Console, result: Replay) -> None:
    rows = [
        (
            name,
            str(part.samples),
            _of(part.differ, part.samples),
            number(part.total / part.samples),
            number(part.largest),
        )
        for name, part in sorted(result.total.parts.items())
        if part.differ
    ]
    if rows:
        headings = ("part", "samples", "differ", "mean difference", "largest")
        show_table(console, "Parts that old and new disagree on", headings, rows, left=("part",))


def _show_moved(console: Console, moved: Sequence[Moved]) -> None:
    arrow = "\N{RIGHTWARDS ARROW}"
    rows = [
        (
            each.sample,
            f"{number(each.old_reward)} {arrow} {number(each.new_reward)}",
            f"{_number(each.old_advantage)} {arrow} {_number(each.new_advantage)}",
            " ".join(each.completion.split()),
        )
        for each in moved
    ]
    headings = ("sample", "reward", "advantage", "completion")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = max(20, console.width - sum(widths[:3]) - GAP * 3)
    shown = [(*row, text if len(text) <= room else f"{text[: room - 1]}\N{HORIZONTAL ELLIPSIS}") for *row, text in rows]
    title = f"The {len(moved)} samples that moved most (rlft reward explain RUN SAMPLE)"
    show_table(console, title, headings, shown, left=("sample", "completion"))


def show_explained(console: Console, facts: Mapping[str, Any]) -> None:
    """Print what is known of a sample."""
    sample, reward, group = facts["sample"], facts["reward"], facts["group"]
    advantage, loss = facts["advantage"], facts["loss"]
    name = f"{sample['step']}/{sample['task_id']}/{sample['sample_index']}"
    parts = [
        (part["name"], *(_number(part[key]) for key in ("value", "weight", "contribution"))) for part in reward["parts"]
    ]
    headings = ("part", "value", "weight", "in the sum")
    show_table(console, f"{name}: reward {_number(reward['value'])}", headings, parts, left=("part",))
    lines = [
        f"reply: {counted(sample['actions'], 'token')} in {counted(sample['turns'], 'turn')}, "
        f"ended by {sample['finish_reason']}, adapter "
        f"{sample['adapter_version']}",
        f"outcome: {reward['outcome']}{': ' + reward['failure'] if reward['failure'] else ''}",
        *(f"failed: {name}: {message}" for name, message in reward["failed_parts"].items()),
        f"group: {group['scored']} of {group['samples']} samples scored, mean {_number(group['mean'])}, std "
        f"{_number(group['std'])}; rank {_number(group['rank'])}, {_number(group['ties'])} others equal",
        f"advantage: {_number(advantage['stored'])} stored, {_number(advantage['recomputed'])} recomputed; baseline "
        f"{_number(advantage['baseline'])}, divided by {_number(advantage['scale'])}, penalty "
        f"{_number(advantage['penalty'])}",
        f"loss: update {_number(loss['update'])} of {loss['updates']}, {'in' if loss['included'] else 'left out of'} "
        f"the loss; ratio {_number(loss['ratio'])}, clip {_range(loss['clip'])}, correction "
        f"{_number((loss['correction'] or {}).get('mean'))}, tokens masked {_number(loss['masked'])}",
    ]
    if loss["gradient_share"] is not None:
        of_step = f", {100 * loss['step_gradient_share']:.2f} % of its step's" if loss["updates"] > 1 else ""
        lines.append(
            f"share of the gradient: {100 * loss['gradient_share']:.2f} %{of_step} ({loss['gradient_share_is']})"
        )
    lines += [f"not known: {each}" for each in facts["unknown"]]
    for line in lines:
        console.print(Text(visible(line)), soft_wrap=True)
    console.print(Text(visible(shortened(sample["completion"])), style="dim"), soft_wrap=True)


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}" if whole else DASH


def _number(value: float | None) -> str:
    return DASH if value is None else str(value) if isinstance(value, int) else number(value)


def _range(bounds: Sequence[float] | None) -> str:
    return DASH if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"
