"""How many planted reward bugs `rlft reward attack` finds with its whole budget, and what it says of right rewards.

    python -m tests.planted_recall [--seconds 20] [NAME ...]

Each reward is attacked in a process of its own, as the command does; exit code 1 if recall is below 0.9 or a right
reward is accused.
"""

from __future__ import annotations

import argparse
import sys

from rlft.reward.attack import SECONDS, Attacked, attack
from rlft.types import RewardSpec
from tests.test_reward_attack import BUGS, RIGHT


def main() -> int:
    """Attack the planted rewards and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    asked = parser.parse_args()
    options = {name: given for name, (_, given) in BUGS.items()} | RIGHT
    names = asked.names or list(options)
    found = accused = 0
    for name in names:
        spec = RewardSpec(path=f"tests.planted:{name}")
        report = attack(Attacked(specs=[spec], seconds=asked.seconds, **options[name]))
        families = {exploit.family for exploit in report.exploits}
        is_right = name in RIGHT
        found += not is_right and bool(families & BUGS[name][0])
        accused += is_right and bool(families)
        told = ", ".join(sorted(families)) or "survives"
        print(
            f"{'right' if is_right else 'bug':6} {name:18} {report.replies:6} replies {report.seconds:5.1f} s  {told}"
        )
    bugs = sum(name in BUGS for name in names)
    print(f"found {found} of {bugs} bugs; accused {accused} of {len(names) - bugs} right rewards")
    return int(found < 0.9 * bugs or accused > 0)


if __name__ == "__main__":
    sys.exit(main())
