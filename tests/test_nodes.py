"""Several machines, which are processes of this one: a node is killed during a run, another one joins it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlft.config_file import load
from tests.fakes import read_lines, read_metrics, read_result
from tests.two_nodes import QUICKSTART

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[1]


def test_a_killed_node_leaves_no_trace_in_the_curve(tmp_path: Path, tiny_model: Path, finished_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.several_nodes", str(tmp_path), str(tiny_model)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    assert read_metrics(run) == read_metrics(finished_run)
    assert read_result(run) == read_result(finished_run)
    events = read_lines(run / "events.jsonl")
    assert [event["kind"] for event in events] == ["worker_restarted", "ended"]
    # The nodes that had a worker at the end of each step. The killed one's is not replaced before another one joins.
    # (A worker that dies between two chunks is missed when it gets the next one, at the latest in step 3.)
    after_1, _, after_3, after_4 = json.loads(done.stdout.splitlines()[-1])
    assert len(after_1) == 2
    assert len(after_3) == 1
    assert set(after_3) < set(after_1)
    assert len(after_4) == 2
    assert set(after_3) < set(after_4)


OTHER_MODEL = {"model.source", "model.dtype"}
"""The tests' random model, in the dtype that all machines compute alike."""
OTHER_PLACE = {"output_dir", "ray_address"}
"""The test's folder, and its cluster instead of the run's own; on two nodes also a second of `rollout.workers`."""
SMALLER = {
    "steps",
    "tasks_per_step",
    "rollout.tasks_per_chunk",
    "rollout.threads",
    "learner.threads",
    "evaluation.tasks",
    "sft.examples",
}
"""Sizes alone, for seconds instead of minutes; no choice of environment, reward, algorithm, sampling or learner."""


def differing(one: Path, other: Path) -> set[str]:
    """Keys in which the configs of two run directories, or of a file, are not the same."""
    first, second = (
        settings(load(path / "config.yaml" if path.is_dir() else path).model_dump()) for path in (one, other)
    )
    return {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}


def settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@pytest.mark.timeout(300)
def test_the_quickstart_on_two_nodes_is_that_on_one(tmp_path: Path, tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.two_nodes", str(tmp_path), str(tiny_model)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone, both = json.loads(done.stdout.splitlines()[-1])
    assert len(alone) == 1
    assert len(both) == 2
    assert set(alone) < set(both)
    one, two = (tmp_path / name / "quickstart" for name in ("1", "2"))
    assert differing(one, two) == {"output_dir", "rollout.workers"}
    assert differing(one, QUICKSTART) == OTHER_MODEL | OTHER_PLACE | SMALLER
    assert len(read_metrics(one)) == 2
    assert read_metrics(one) == read_metrics(two)
    assert read_result(one) == read_result(two)


def test_a_client_without_the_token_is_refused(ray_cluster: None) -> None:
    import ray

    program = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('LET IN')"
    address = ray.get_runtime_context().gcs_address
    # It stays on loopback, as the cluster does: elsewhere it would find nobody to be refused by.
    loopback = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") or key == loopback}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, address],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in (
            stranger,
            {**stranger, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            {**os.environ},
        )
    ]
    without, wrong, right = [process.communicate(timeout=90) for process in processes]
    for output, errors in (without, wrong):
        assert "LET IN" not in output
        assert "uthenticat" in errors
    assert "LET IN" in right[0], right[1]
