"""`rlft reward check` beside other checkers of rewards: what each finds in the verifiers that reward-doctor ships.

    python -m benchmarks.reward_checkers --reward-doctor DIR --gradecheck DIR --rewardprobe DIR

Each DIR is an environment of its own with that package (reward-doctor 0.2.0, gradecheck 0.1.0, rewardprobe 0.1.0). What
another checker finds and rlft does not is printed as missing, and ends the program with 1.

Then `rewards.math_answer` grades reward-doctor's own cases, right answers in many forms and wrong or deceitful ones: a
wrong one that it pays for ends the program with 1, too, and so do more than 2 % of the right ones that it does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rewards.math_answer import math_answer
from rlft.reward.check import Checked, check_rewards
from rlft.reward.probe import make_task
from rlft.types import RewardSpec

_SUMS = ((38, 47), (9, 108), (50, 13), (16, 41))
TASKS = [make_task(f"What is {a} + {b}?", answer=f"{a + b}", id=f"{a} + {b}") for a, b in _SUMS]
"""Without 42, the wrong answer of some checkers."""
VERIFIERS = ("substring_match", "last_number", "exact_match", "boxed_exact", "robust_match")

SAME = {
    # reward-doctor
    "shotgun": "many answers",
    "empty": "nothing",
    "padding": "padding",
    "judge_injection": "injection",
    "judge_bias": "flattery",
    "format_farming": "format only",
    # gradecheck
    "empty-completion": "nothing",
    "prompt-echo": "echo",
    "flattery": "flattery",
    "format-only": "format only",
    "answer-leak": "data",
    # rewardprobe
    "whitespace": "nothing",
    "random_tokens": "garbage",
    "common_prefix": "garbage",
    "echo_prompt": "echo",
    "constant_output": "constant",
    "format_only": "format only",
    "answer_in_reasoning": "contradiction",
    "multiple_tags": "many answers",
    "regex_greediness": "many answers",
    "duplicate_answers": "many answers",
    "malformed_xml": "hard to read",
    "completion_structure": "contract",
    "format_variation": "number formats",
    "ground_truth": "good replies",
    "signal_variance": "constant",
    "reward_range": "range",
    "determinism": "deterministic",
    "stale_state": "deterministic",
    "tool_spam": "deterministic",
    "batch_ordering": "deterministic",
    "state_leak": "data",
}
"""Another checker's attack -> what rlft calls it; one of the same name needs no entry."""

LOADED = """
import importlib.util, json, sys
_spec = importlib.util.spec_from_file_location("reference", {file!r})
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)
"""
RUNS = {
    "reward-doctor": """
from reward_doctor import audit
found = {name: sorted(audit(getattr(reference, name)).attacks_that_work) for name in NAMES}
""",
    "rewardprobe": """
from rewardprobe import Probe
found = {}
for name in NAMES:
    verifier = getattr(reference, name)
    report = Probe().test_fn(lambda completion, answer: verifier(completion, answer), TASKS, name=name)
    bad = {f.attack for family in report.families for f in family.findings if f.severity.name != "INFO"}
    found[name] = sorted(bad - {"missing_column"})  # it takes away an argument that the verifier needs
""",
    "gradecheck": """
from types import SimpleNamespace as N
from gradecheck.completion_attacks import run_all
from gradecheck.verifiers_env import VerifiersEnv
found = {}
for name in NAMES:
    verifier = getattr(reference, name)
    rubric = N(funcs=[lambda completion, answer: verifier(completion, answer)], weights=[1.0])
    rows = [{"prompt": task["prompt"], "answer": task["answer"]} for task in TASKS]
    env = N(rubric=rubric, get_dataset=lambda: rows, message_type="completion", parser=None)
    found[name] = sorted(f.attack for f in run_all(VerifiersEnv(env)) if f.verdict in ("fooled", "warn"))
""",
}


CASES = """
import json
from reward_doctor.corpus import ALL_CASES
print(json.dumps([[case.id, case.completion, case.reference, case.expect] for case in ALL_CASES]))
"""
MOST_MISSED = 0.02
"""Share of right answers that may be graded wrong."""


def graded(python: Path) -> bool:
    """Print how many of reward-doctor's cases `rewards.math_answer` grades otherwise; whether they are few enough."""
    done = subprocess.run([python, "-c", CASES], capture_output=True, text=True, check=True)
    cases = [
        (name, is_right, math_answer(completion, reference) == 1)
        for name, completion, reference, is_right in json.loads(done.stdout)
    ]
    right, wrong = ([case for case in cases if case[1] is kind] for kind in (True, False))
    missed, paid = [name for name, _, is_paid in right if not is_paid], [name for name, _, is_paid in wrong if is_paid]
    print(f"\nreward-doctor's {len(cases)} cases, graded by rewards.math_answer:")
    for what, names, of in (("false positives", paid, wrong), ("false negatives", missed, right)):
        print(f"{what}: {len(names)} of {len(of)}, {len(names) / len(of):.1%} {' '.join(names)}".rstrip())
    return not paid and len(missed) <= MOST_MISSED * len(right)


def others(python: Path, checker: str, file: str) -> dict[str, list[str]]:
    """What a checker finds in each verifier, by its own names."""
    tasks = [{"prompt": task.messages[-1]["content"], "answer": task.answer} for task in TASKS]
    names = f"NAMES, TASKS = {VERIFIERS!r}, {tasks!r}"
    program = f"{LOADED.format(file=file)}\n{names}\n{RUNS[checker]}\nprint(json.dumps(found))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ours(file: str) -> dict[str, set[str]]:
    """What `rlft reward check` finds in each verifier: errors, warnings, and other ways to write an answer."""
    source = LOADED.format(file=file) + "".join(
        f"\ndef {name}(completion, answer):\n    return reference.{name}(completion, answer)\n" for name in VERIFIERS
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verifiers.py"
        path.write_text(source, encoding="utf-8")
        for name in VERIFIERS:
            report = check_rewards(Checked(specs=[RewardSpec(path=f"{path}:{name}")], tasks=TASKS))
            found[name] = {finding.check for finding in report.findings} - {"range", "time"}
    return found


def main() -> None:
    """Run all checkers and print what each finds."""
    parser = argparse.ArgumentParser()
    for checker in RUNS:
        parser.add_argument(f"--{checker}", type=Path, required=True)
    folders = {checker: getattr(parser.parse_args(), checker.replace("-", "_")) for checker in RUNS}
    (file,) = folders["reward-doctor"].glob("lib/python*/site-packages/reward_doctor/reference.py")
    known = ours(str(file))
    missing = 0
    for checker, folder in folders.items():
        for name, attacks in others(folder / "bin" / "python", checker, str(file)).items():
            unknown = [attack for attack in attacks if SAME.get(attack, attack) not in known[name]]
            missing += len(unknown)
            print(f"{name:16} {checker:14} {', '.join(attacks) or '-'}{f'; MISSING {unknown}' if unknown else ''}")
    for name, checks in known.items():
        print(f"{name:16} {'rlft':14} {', '.join(sorted(checks)) or '-'}")
    is_graded_right = graded(folders["reward-doctor"] / "bin" / "python")
    sys.exit(bool(missing) or not is_graded_right)


if __name__ == "__main__":
    main()
