"""How near `rlft plan` comes: its forecast of ten steps beside those ten steps, on twelve configs of different shape.

    python -m benchmarks.plan                 # all; half an hour on two cores
    python -m benchmarks.plan --only long dapo

Each row plans a config with a probe and then runs it, both in processes of their own, nothing else beside them. Time is
from the start of the process to its end, memory that of all its processes together at its peak. The last line is JSON:
the median and the largest error of both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rlft.train.rl.plan.probe import LOOK_S, Memory

ROOT = Path(__file__).parents[1]
QUICKSTART = "configs/quickstart.yaml"
SHORT = ("steps=10", "evaluation.every=5")
SHAPES: dict[str, tuple[str, ...]] = {
    "quickstart": (QUICKSTART, "evaluation.tasks=100"),
    "no warm start": (QUICKSTART, "sft=null", "evaluation.tasks=60", "sampling.max_new_tokens=32"),
    "long": (QUICKSTART, "sft=null", "tasks_per_step=4", "sampling.max_new_tokens=128", "evaluation.tasks=16"),
    "wide groups": (QUICKSTART, "tasks_per_step=4", "samples_per_task=32", "evaluation.tasks=40"),
    "many tasks": (QUICKSTART, "tasks_per_step=64", "samples_per_task=2", "evaluation.tasks=40"),
    "four updates": (QUICKSTART, "algorithm=grpo", "updates_per_step=4", "evaluation.tasks=40"),
    "two workers": (QUICKSTART, "rollout.workers=2", "rollout.threads=1", "rollout.tasks_per_chunk=8"),
    "one process": (QUICKSTART, "backend=inline", "evaluation.tasks=40"),
    "critic": (QUICKSTART, "algorithm=ppo", "evaluation.tasks=40"),
    "refills": (QUICKSTART, "algorithm=dapo", "tasks_per_step=8", "evaluation.tasks=40"),
    "all weights": (QUICKSTART, "adapter.kind=full", "learner.lr=1e-5", "tasks_per_step=4", "evaluation.tasks=40"),
    "tools": ("configs/debug/env_calculator.yaml", "evaluation.every=0"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    print(f"{'config':15} {'time':>22} {'error':>7} {'memory':>20} {'error':>7}")
    errors: dict[str, list[float]] = {"time": [], "memory": []}
    for name in parser.parse_args().only:
        path, *own = SHAPES[name]
        arguments = [path, *SHORT, *own]
        with tempfile.TemporaryDirectory() as folder:
            told = planned([*arguments, f"output_dir={folder}"])
            seconds, peak = ran([*arguments, f"output_dir={folder}"])
        off = told["seconds"] / seconds - 1, told["memory_bytes_together"] / peak - 1
        errors["time"].append(abs(off[0]))
        errors["memory"].append(abs(off[1]))
        print(
            f"{name:15} {told['seconds']:8.0f} s for {seconds:5.0f} s {off[0]:+7.0%} "
            f"{told['memory_bytes_together'] / 1e9:6.2f} for {peak / 1e9:5.2f} GB {off[1]:+7.0%}",
            flush=True,
        )
    summary = {
        what: {"median": round(median(found), 3), "worst": round(max(found), 3)} for what, found in errors.items()
    }
    print(json.dumps(summary))


def planned(arguments: list[str]) -> dict[str, Any]:
    """What `rlft plan` says."""
    command = [sys.executable, "-m", "rlft", "plan", *arguments, "--anyway", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ran(arguments: list[str]) -> tuple[float, float]:
    """(seconds, bytes of all processes together at their peak) of the run itself."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "rlft", "train", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
    ) as run:
        memory = Memory(run.pid)
        while run.poll() is None:
            memory.look()
            time.sleep(LOOK_S)
        if run.returncode:
            assert run.stderr is not None
            raise RuntimeError(f"the run of {arguments} failed:\n{run.stderr.read().decode()}")
        return time.monotonic() - began, memory.peak


if __name__ == "__main__":
    main()
