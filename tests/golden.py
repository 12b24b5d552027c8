"""Whether a change of the code changes a run: every debug config under an earlier revision and under this tree.

    python -m tests.golden REVISION [NAME ...]      also `make golden BASE=REVISION`

Each config runs three steps in float32 on the CPU in one process. What it measured, generated and learnt has to be the
same bytes; `--ignore` names metrics that a change is meant to change. The earlier revision's runs are kept in
`runs/golden/`, so that only the first call pays for them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlft.train.rl.metrics import is_of_the_machine

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "debug"
STEPS = 3
COMMANDS = {"dpo": "dpo", "reward_model": "reward-model"}
"""Of the configs that are not for `rlft train`."""


def run(tree: Path, name: str, output: Path) -> str:
    """Run a config with the code of `tree`; what it printed if it failed, else the empty text."""
    module, _, function = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]["rlft"].partition(
        ":"
    )
    command = COMMANDS.get(name, "train")
    # One thread each: two runs whose threads wait for one another on the same cores take ten times as long.
    overrides = [f"output_dir={output}", f"name={name}", "model.dtype=float32"]
    if command != "reward-model":
        overrides.append("learner.threads=1")
    if command == "train":
        overrides += [f"steps={STEPS}", "rollout.threads=1"]
    done = subprocess.run(
        [
            sys.executable,
            *("-c", f"import sys; sys.argv[0] = 'rlft'; from {module} import {function} as run; run()"),
            *(command, f"configs/debug/{name}.yaml", *overrides, "--restart"),
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout[-3000:] if done.returncode else ""


def differences(one: Path, other: Path, ignore: Sequence[str] = ()) -> Iterator[str]:
    """What differs between two runs, in words; metrics whose names begin as `ignore` says are left out."""
    rows = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (one, other)]
    if len(rows[0]) != len(rows[1]):
        yield f"{len(rows[0])} and {len(rows[1])} lines of metrics"
    for mine, theirs in zip(*rows, strict=False):
        for metric in sorted({*mine, *theirs}):
            if is_of_the_machine(metric) or metric.startswith(tuple(ignore)):
                continue
            if mine.get(metric) != theirs.get(metric):
                yield f"step {mine['step']}: {metric} is {mine.get(metric)} and {theirs.get(metric)}"
    for pattern in ("**/*.parquet", "**/*.safetensors", "evals/*.json"):
        for file in sorted({str(path.relative_to(run)) for run in (one, other) for path in run.glob(pattern)}):
            if _content(one / file, like=one / file) != _content(other / file, like=one / file):
                yield file


def _content(path: Path, *, like: Path) -> Any:
    """A file's bytes, its table or its JSON object, without columns and fields that the earlier one (`like`) lacks."""
    if not path.is_file():
        return None
    if path.suffix == ".json":
        known = json.loads(like.read_text()) if like.is_file() else {}
        return {name: value for name, value in json.loads(path.read_text()).items() if name in known}
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.read_table(path)
    known = pq.read_schema(like).names if like.is_file() else table.column_names
    return table.select([name for name in table.column_names if name in known])


def main() -> None:
    """Print each config's differences; exit code 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("names", nargs="*", help="names of files in configs/debug; all if none is given")
    parser.add_argument("--ignore", action="append", default=[], help="beginning of metrics' names that may differ")
    parser.add_argument("--record", action="store_true", help="only run the earlier revision")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    sha = _git("rev-parse", arguments.revision)
    golden, present = ROOT / "runs" / "golden" / sha, ROOT / "runs" / "golden" / "present"

    def earlier(name: str) -> str:
        return "" if (golden / name / "metrics.jsonl").is_file() else run(tree, name, golden)

    def compared(name: str) -> list[str]:
        problem = run(ROOT, name, present)
        return [f"this tree fails: {problem}"] if problem else list(differences(golden / name, present / name, ignore))

    ignore, different = arguments.ignore, 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as executor:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), sha)
        try:
            for name, problem in zip(names, executor.map(earlier, names), strict=True):
                print(f"{name:24} {problem or 'recorded'}", flush=True)
        finally:
            _git("worktree", "remove", "--force", str(tree))
        for name, found in zip(names, [] if arguments.record else executor.map(compared, names), strict=False):
            different += bool(found)
            print(f"{name:24} {f'{len(found)} differences' if found else 'same'}", flush=True)
            for line in found[:8]:
                print(f"    {line}", flush=True)
    sys.exit(different > 0)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
