"""What scoring costs: a trivial reward of 20,000 samples, and 64 samples that wait a second for a server.

    python -m benchmarks.scoring [--verifiers PYTHON]

Beside rlft in processes of its own and in the driver stand TRL, which calls a function with lists in the trainer's
process, and verifiers' rubric (0.3), which calls it once for each sample, in the environment whose interpreter is
named. All call the same function; rlft's also gives each sample a deadline, an outcome and its parts. Systems take
turns, medians of the rounds count. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlft.reward.probe import made_up
from rlft.reward.scoring import Scorer
from rlft.types import Group, RewardSpec, Task

TASKS, SAMPLES, ROUNDS = 2500, 8, 5
REWARD = """
def right(completion, answer, **kwargs):
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return float(text == answer)

def right_trl(completions, answer, **kwargs):
    return [right(c, a) for c, a in zip(completions, answer)]

async def waits(completion):
    import asyncio
    await asyncio.sleep(1.0)
    return 1.0
"""
VERIFIERS = """
import asyncio, importlib.util, json, logging, statistics, sys, time
import verifiers as vf
spec = importlib.util.spec_from_file_location("reward", sys.argv[1])
reward = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reward)
rubric = vf.Rubric(funcs=[reward.right])

def prompt(i):
    return [{"role": "user", "content": f"task {i}"}]

def states():
    return [
        vf.State(
            input={"prompt": prompt(i), "answer": "3", "example_id": i, "task": "t"}, prompt=prompt(i), answer="3",
            completion=[{"role": "assistant", "content": str(j)}], task="t", info={}, trajectory=[], timing={},
        )
        for i in range(TASKS) for j in range(SAMPLES)
    ]

async def score(all_of_them):
    for state in all_of_them:
        await rubric.score_rollout(state)

seconds = []
for _ in range(ROUNDS + 1):
    made = states()
    began = time.perf_counter()
    asyncio.run(score(made))
    seconds.append(time.perf_counter() - began)
assert sum(state["reward"] for state in made) == TASKS
print(json.dumps(statistics.median(seconds[1:])))
"""


def groups(tasks: int = TASKS, samples: int = SAMPLES) -> list[Group]:
    """Made-up samples, one of each group right."""
    return [
        made_up(
            Task(id=f"t{i}", messages=({"role": "user", "content": f"task {i}"},), answer="3"),
            [str(j) for j in range(samples)],
        )
        for i in range(tasks)
    ]


def in_rlft(path: Path, workers: int) -> Callable[[], float]:
    """Seconds that rlft takes for all samples; its processes stay."""
    made = groups()
    scorer = Scorer([RewardSpec(path=f"{path}:right")], workers=workers, deadline_s=10.0, log_dir=None, columns=())

    def measure() -> float:
        began = time.perf_counter()
        scored = scorer.score(made)
        seconds = time.perf_counter() - began
        assert sum(sum(group.scores) for group in scored) == TASKS
        return seconds

    return measure


def in_trl(path: Path) -> Callable[[], float]:
    """Seconds that a call as TRL's trainer makes it takes for all samples, batch by batch of 64."""
    made: dict[str, Callable[..., list[float]]] = {}
    exec(path.read_text(), made)
    prompts = [[{"role": "user", "content": f"task {i}"}] for i in range(TASKS) for _ in range(SAMPLES)]
    completions = [[{"role": "assistant", "content": str(j)}] for _ in range(TASKS) for j in range(SAMPLES)]

    def measure() -> float:
        began, total = time.perf_counter(), 0.0
        for i in range(0, len(prompts), 64):
            rows = slice(i, i + 64)
            own = completions[rows]
            values = made["right_trl"](
                prompts=prompts[rows], completions=own, completion_ids=[[1]] * len(own), answer=["3"] * len(own)
            )
            total += sum(values)
        seconds = time.perf_counter() - began
        assert total == TASKS
        return seconds

    return measure


def waiting(path: Path) -> float:
    """Seconds for 64 samples that wait a second each, with one process."""
    with Scorer([RewardSpec(path=f"{path}:waits")], workers=1, deadline_s=10.0, log_dir=None, columns=()) as scorer:
        made = groups(8, 8)
        scorer.score(made[:1])
        scorer.score(made)
        return scorer.stats.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verifiers", help="interpreter of an environment with verifiers 0.3")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reward.py"
        path.write_text(REWARD)
        systems = {
            "rlft, one process": in_rlft(path, 1),
            "rlft, two processes": in_rlft(path, 2),
            "rlft, in the driver": in_rlft(path, 0),
            "TRL's call": in_trl(path),
        }
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for number in range(ROUNDS + 1):
            for name, measure in systems.items():
                taken = measure()
                if number:
                    seconds[name].append(taken)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        if options.verifiers:
            program = VERIFIERS.replace("TASKS", str(TASKS)).replace("SAMPLES", str(SAMPLES))
            program = program.replace("ROUNDS", str(ROUNDS))
            done = subprocess.run(
                [options.verifiers, "-c", program, str(path)], check=True, stdout=subprocess.PIPE, text=True
            )
            medians["verifiers' rubric"] = float(json.loads(done.stdout.splitlines()[-1]))
        asynchronous = waiting(path)
    table = Table("", "samples/s", "us a sample")
    for name, median in medians.items():
        table.add_row(name, f"{TASKS * SAMPLES / median:,.0f}", f"{median / TASKS / SAMPLES * 1e6:.1f}")
    console = Console()
    console.print(table)
    console.print(f"64 samples that wait 1 s each, one process: {asynchronous:.2f} s")
    rates = {name: round(TASKS * SAMPLES / median) for name, median in medians.items()}
    print(json.dumps({"samples_per_s": rates, "waiting_s": round(asynchronous, 2)}))


if __name__ == "__main__":
    main()
