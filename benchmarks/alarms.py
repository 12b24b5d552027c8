"""Alarms on made-up runs with known faults, and on healthy ones: which are named, how far off the onset is.

    python -m benchmarks.alarms --peers DIR [--run RUN ...]

DIR is an environment of its own with rlprobe 0.1.0 and rldoctor 0.2.0, whose generators make the runs with faults: 14
kinds of one, 12 of the other. Each is written as a run directory in rlft's format and read by `alarms_of`. RUN is a
real run that is healthy. The healthy runs that are made up come from `benchmarks/healthy_runs.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.healthy_runs import healthy_rows
from rlft.curves.alarms import Health, alarms_from, alarms_of
from rlft.curves.alarms.watch import is_looked_at, lasting
from rlft.run.records import MetricsLine, step_name
from rlft.run.rollout_table import SCHEMA

Row = dict[str, float]

INSTALL = (
    "rlprobe and rldoctor are missing in {folder}; make an environment for them:\n"
    "  python -m venv .venv-alarms && .venv-alarms/bin/pip install rlprobe==0.1.0 rldoctor==0.2.0"
)
SEEDS = range(5)
LENGTHS = (30, 60, 100, 300, 1000)
HEALTHY_RUNS = 200
NEAR = 0.1
"""Largest error of an onset that counts as right, as a share of the run."""

RLPROBE = {
    # fault: alarms that name it
    "kl_blowup": {"kl_without_reward"},
    "entropy_collapse": {"entropy_collapse"},
    "reward_hack_length": {"length_with_reward"},
    "format_gaming": {"part_against_part"},
    "clip_saturation": {"clip_saturation"},
    "degenerate_groups": {"no_signal"},
    "adv_collapse": {"no_signal"},
    "value_divergence": {"critic_diverges"},
    "grad_pathology": {"gradient_spikes", "not_finite"},
    "truncation_starve": {"truncation"},
    "repetition_spiral": {"repetition"},
    "reward_std_death": {"no_signal"},
    "ref_drift_asymmetry": {"kl_without_reward"},
    "throughput_rot": {"throughput"},
}
RLDOCTOR: dict[str, tuple[set[str], str]] = {
    # fault: (alarms that name it, the metric that shows it)
    "healthy": (set(), ""),
    "entropy_collapse": ({"entropy_collapse"}, "policy/entropy"),
    "saturated_groups": ({"no_signal"}, "groups/with_signal"),
    "too_hard": ({"no_signal"}, ""),  # from its first step on
    "reward_hacking": ({"shadow_gap"}, "reward/part/heldout"),
    "length_hacking": ({"length_with_reward", "shadow_gap"}, "rollout/length"),
    "truncation": ({"truncation"}, "rollout/truncated"),
    "kl_blowup": ({"kl_without_reward"}, "reward/mean"),
    "clip_saturation": ({"clip_saturation"}, "policy/clip_fraction"),
    "grad_spikes": ({"gradient_spikes"}, "policy/grad_norm"),
    "plateau": ({"kl_without_reward"}, "reward/mean"),
    "format_domination": ({"part_against_part"}, "reward/part/correctness"),
}

_GENERATE = """
import json, sys, tempfile
from pathlib import Path
import pyarrow.parquet as pq
from rlprobe.testing.synth import PATHOLOGIES, generate_run
from rl_doctor.simulate import SCENARIOS, simulate
for seed in map(int, sys.argv[1:]):
    for name in [None, *PATHOLOGIES]:
        with tempfile.TemporaryDirectory() as folder:
            run = generate_run(Path(folder) / "run", name, seed=seed)
            rows = pq.read_table(run / "steps.parquet").to_pylist()
            shards = sorted((run / "samples").glob("*.parquet"))
            samples = [row for path in shards for row in pq.read_table(path).to_pylist()]
        print(json.dumps(["rlprobe", name or "healthy", seed, rows, samples]))
    for name in SCENARIOS:
        print(json.dumps(["rldoctor", name, seed, simulate(name, seed=seed)[0], []]))
"""


def generated(folder: Path) -> list[tuple[str, str, int, list[Row], list[dict[str, Any]]]]:
    """(package, fault, seed, its rows, its samples) of everything that the two packages make up."""
    python = folder / "bin" / "python"
    check = [str(python), "-c", "import rlprobe, rl_doctor"]
    if not python.is_file() or subprocess.run(check, capture_output=True, check=False).returncode:
        sys.exit(INSTALL.format(folder=folder))
    command = [str(python), "-c", _GENERATE, *map(str, SEEDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]  # type: ignore[misc]


def of_rlprobe(row: Mapping[str, Any]) -> Row:
    """A step of rlprobe in our metrics.

    A sample without an advantage teaches as little as a group without variance, so the larger share counts. Tokens per
    second are proportional to length over time.
    """
    ours = {
        "reward/mean": row["reward_mean"],
        "reward/std": row["reward_std"],
        "policy/kl_ref": row["kl_mean"],
        "policy/entropy": row["entropy_mean"],
        "policy/clip_fraction": row["clip_fraction"],
        "policy/grad_norm": row["grad_norm"],
        "policy/skipped": float(row["nan_count"] > 0),
        "groups/with_signal": 1 - max(row["zero_variance_group_frac"], row["adv_zero_frac"]),
        "rollout/length": row["completion_len_mean"],
        "rollout/truncated": row["truncation_rate"],
        "rollout/repetition": row["repetition_rate"],
        "time/step": row["step_time_s"],
        "time/tokens_per_s": row["completion_len_mean"] * 64 / row["step_time_s"],
        **{
            f"reward/part/{name.removeprefix('reward_component.')}": value
            for name, value in row.items()
            if name.startswith("reward_component.")
        },
    }
    if row.get("value_explained_variance") is not None:
        ours["critic/explained_variance"] = row["value_explained_variance"]
    return {"step": int(row["step"]) + 1, **ours}


def of_rldoctor(row: Mapping[str, Any]) -> Row:
    """A step of rldoctor in our metrics. Its held-out score is a reward that is not trained on: a shadow."""
    ours = {
        "reward/mean": row["reward"],
        "reward/std": row["reward_std"],
        "policy/kl_ref": row["kl"],
        "policy/entropy": row["entropy"],
        "policy/clip_fraction": row["clip_ratio/region_mean"],
        "policy/grad_norm": row["grad_norm"],
        "groups/with_signal": 1 - row["frac_reward_zero_std"],
        "rollout/length": row["completions/mean_length"],
        "rollout/truncated": row["completions/clipped_ratio"],
        "time/step": row["step_time"],
        "time/tokens_per_s": row["perf/throughput"],
        "reward/part/correctness": row["rewards/correctness/mean"],
        "reward/part/format": row["rewards/format/mean"],
    }
    if "eval/accuracy" in row:
        ours["reward/part/heldout"] = row["eval/accuracy"]
    return {"step": int(row["step"]) + 1, **ours}


def write_run(folder: Path, rows: Sequence[Row], samples: Sequence[Mapping[str, Any]], *, shadow: bool) -> Path:
    """A run directory with these metrics and rollouts."""
    folder.mkdir(parents=True)
    rewards = [{"path": "rewards.exact_answer:exact_answer", "name": "correctness"}]
    if shadow:
        rewards.append({"path": "rewards.exact_answer:exact_answer", "name": "heldout", "role": "shadow"})
    (folder / "config.yaml").write_text(json.dumps({"name": folder.name, "rewards": rewards, "steps": len(rows)}))
    lines = [MetricsLine(step=int(row["step"]), metrics={k: v for k, v in row.items() if k != "step"}) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(f"{line.line()}\n" for line in lines))
    by_step: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_step.setdefault(int(sample["step"]) + 1, []).append(_sample(sample))
    (folder / "rollouts").mkdir()
    for step, stored in by_step.items():
        filled = [{name: row.get(name) for name in SCHEMA.names} for row in stored]
        pq.write_table(pa.Table.from_pylist(filled, SCHEMA), folder / "rollouts" / f"{step_name(step)}.parquet")
    return folder


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    parts = {k.removeprefix("reward_component."): v for k, v in sample.items() if k.startswith("reward_component.")}
    return {
        "step": int(sample["step"]) + 1,
        "task_id": sample["prompt_id"],
        "sample_index": int(sample["sample_id"].rpartition("_")[2]),
        "outcome": "score",
        "reward": sample["reward_total"],
        "parts": json.dumps(parts),
        "completion": sample["completion_text"],
        "completion_tokens": sample["completion_len"],
        "finish_reason": "length" if sample["truncated"] else "stop",
        "advantage": sample["advantage"],
        "prompt": sample["prompt_text"],
    }


def true_onset(rows: Sequence[Row], metric: str) -> int:
    """The step at which a fault's metric has gone a tenth of its way from its start, or the reward all but a tenth.

    The held-out score turns after a third of the run.
    """
    if metric == "reward/part/heldout":
        return len(rows) // 3
    pairs = [(row["step"], row[metric]) for row in rows if metric in row]
    steps, values = (np.array(column) for column in zip(*pairs, strict=True))
    if metric == "policy/grad_norm":  # single steps
        return int(steps[np.flatnonzero(values > 10 * np.median(values))[0]])
    width = 15 if len(values) > 100 else 1
    smooth = np.convolve(np.pad(values, width // 2, mode="edge"), np.ones(width) / width, mode="valid")
    if metric == "reward/mean":
        way = (smooth - smooth[0]) / (np.median(smooth[-width:]) - smooth[0])
        return int(steps[np.flatnonzero(way >= 0.9)[0]])
    way = np.abs(smooth - smooth[0])
    return int(steps[np.flatnonzero(way >= 0.1 * way.max())[0]])


class Result(NamedTuple):
    """What was told of one run with a fault."""

    named: bool
    """Whether an alarm that fits was raised, with an onset that is `NEAR`; of a healthy one: none."""
    onset: int
    told: int
    """0 where none was."""
    error: float
    """Of the onset, as a share of the run."""
    others: tuple[str, ...]
    """Alarms besides the expected ones."""


def judged(run: Path, rows: Sequence[Row], wanted: Collection[str], onset: int) -> Result:
    """What `alarms_of` tells of a run."""
    alarms = alarms_of(run).alarms
    nearest = min((a for a in alarms if a.name in wanted), key=lambda a: abs(a.onset - onset), default=None)
    error = abs(nearest.onset - onset) / len(rows) if nearest else 1.0
    return Result(
        named=error <= NEAR if wanted else not alarms,
        onset=onset,
        told=nearest.onset if nearest else 0,
        error=error,
        others=tuple(sorted({alarm.name for alarm in alarms} - set(wanted))),
    )


def scenarios(folder: Path) -> None:
    """The table of faults: of seed 0 the onset and what was told, of all seeds how many were named."""
    table: dict[tuple[str, str], list[Result]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for package, name, seed, raw, samples in generated(folder):
            is_rlprobe = package == "rlprobe"
            rows = [(of_rlprobe if is_rlprobe else of_rldoctor)(row) for row in raw]
            run = write_run(Path(temporary) / f"{package}-{name}-{seed}", rows, samples, shadow=not is_rlprobe)
            wanted, metric = _expected(package, name)
            onset = len(rows) // 2 + 1 if is_rlprobe else true_onset(rows, metric) if metric else 1
            table.setdefault((package, name), []).append(judged(run, rows, wanted, onset))
    print(f"{'fault':28} {'expected':34} {'named':>5} {'onset':>5} {'told':>5} {'error':>6}  other alarms: runs")
    counted: Counter[str] = Counter()
    for (package, name), results in table.items():
        wanted, first = _expected(package, name)[0], results[0]
        others = Counter(other for result in results for other in result.others)
        named = sum(result.named for result in results)
        numbers = f"{first.onset:5} {first.told or '-':>5} {first.error:6.1%}" if wanted else " " * 18
        print(
            f"{package} {name:{27 - len(package)}} {' or '.join(sorted(wanted)) or 'nothing':34} "
            f"{named}/{len(results):<3} {numbers}  {', '.join(f'{other} {count}' for other, count in others.items())}"
        )
        if not (package == "rlprobe" and name == "healthy"):
            counted[package] += first.named
            counted[f"{package}, {len(SEEDS)} seeds"] += named
    print(dict(counted))


def _expected(package: str, name: str) -> tuple[set[str], str]:
    return (RLPROBE.get(name, set()), "") if package == "rlprobe" else RLDOCTOR[name]


def false_alarms() -> None:
    """The table of healthy runs that are made up."""
    print(f"{'steps':>6} {'runs':>5} {'alarm at the end':>17} {'told while it goes on':>21}  which")
    for steps in LENGTHS:
        runs = HEALTHY_RUNS if steps < 1000 else HEALTHY_RUNS // 4
        at_end, ever, which = 0, 0, Counter[str]()
        for seed in range(runs):
            rows = healthy_rows(steps, seed)
            at_end += bool(alarms_from(rows, shadows=["observed"]).alarms)
            told: set[str] = set()
            before: set[str] = set()
            for end in looks(steps):
                alarms = alarms_from(rows[:end], shadows=["observed"]).alarms
                told |= {alarm.name for alarm in lasting(alarms, before)}
                before = {alarm.name for alarm in alarms}
            ever += bool(told)
            which.update(told)
        print(f"{steps:6} {runs:5} {at_end / runs:17.1%} {ever / runs:21.1%}  {dict(which)}")


def looks(steps: int) -> list[int]:
    """Steps at which a run is looked at, as `rlft train` does."""
    return [step for step in range(1, steps + 1) if is_looked_at(step) or step == steps]


def real(run: Path) -> Health:
    """What is told of a real run."""
    start = time.process_time()
    health = alarms_of(run)
    told = "; ".join(alarm.line for alarm in health.alarms) or "none"
    print(f"{run}: {health.state}, {health.steps} steps, {time.process_time() - start:.2f} s; alarms: {told}")
    return health


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(".venv-alarms"))
    parser.add_argument("--run", type=Path, action="append", default=[])
    given = parser.parse_args()
    scenarios(given.peers)
    false_alarms()
    for run in given.run:
        real(run)


if __name__ == "__main__":
    main()
