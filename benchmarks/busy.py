"""What a machine that also does something else costs: rollouts and updates beside programs that want the same cores.

    python -m benchmarks.busy [--programs 0 1 2] [--rounds 3]

Work: a batch of rollouts (8 prompts x 8 completions of up to 64 tokens) and one update (the shape `grpo` of
benchmarks/learner.py), each in two processes that take turns: with the threads waiting for one another as OpenMP's
library does by itself, 300,000 looks before they sleep, and as rlft sets it (`GOMP_SPINCOUNT` in `rlft/__init__.py`).
The other programs only count. Medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rlft
from benchmarks import learner, rollout
from benchmarks.peers import Peer

WORK: dict[str, Callable[..., Peer]] = {
    "rollout": lambda folder, **more: rollout.start("rlft", folder, "64", **more),
    "update": lambda folder, **more: learner.start_rlft(folder, "grpo", **more),
}
SETTINGS = {"its own": "300000", "rlft's": os.environ["GOMP_SPINCOUNT"]}
"""How often a thread looks whether the others are done, before it sleeps."""


@contextmanager
def programs(count: int) -> Iterator[None]:
    """So many processes that keep a core busy each."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    """Take turns, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from rlft.model import sources

    folder, lines = str(sources.resolve("smollm2-135m-instruct")), []
    for name, start in WORK.items():
        peers = {setting: start(folder, variables={"GOMP_SPINCOUNT": count}) for setting, count in SETTINGS.items()}
        for peer in peers.values():
            peer.step()
        for count in options.programs:
            seconds: dict[str, list[float]] = {setting: [] for setting in peers}
            with programs(count):
                for _ in range(options.rounds):
                    for setting, peer in peers.items():
                        seconds[setting].append(peer.step()["seconds"])
            medians = {setting: round(statistics.median(each), 2) for setting, each in seconds.items()}
            lines.append({"work": name, "programs": count, **medians})
        for peer in peers.values():
            peer.stop()
    print(f"\nrlft {rlft.__version__}\n| work | other programs | {' | '.join(SETTINGS)} |\n| --- | --- | --- | --- |")
    for line in lines:
        print(f"| {' | '.join(str(value) for value in line.values())} |")
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
