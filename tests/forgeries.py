"""Changing a finished run as somebody would who wants it to say something else, for the tests of `rlft verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from rlft.config import RunConfig
from rlft.curves.reading import read_evals
from rlft.model.adapter import adapter_hash, read_folder
from rlft.reward.recompute import recompute
from rlft.reward.stored import read_samples
from rlft.run.directory import read_config
from rlft.run.manifest import RecordHashes
from rlft.train.rl.evaluate import evaluation
from rlft.train.rl.verify.arithmetic import expected_metrics
from rlft.train.rl.verify.material import read_material
from rlft.types import Adapter

STEP = 3
"""The step that is forged."""


def rewrite_manifest(run: Path) -> None:
    """Give a changed run a manifest that fits."""
    RecordHashes(run).write(4)


def change_rows(file: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the rows of a file of samples; its schema and its metadata stay."""
    table = pq.read_table(file, partitioning=None)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file, compression="zstd")


def raise_reward(rows: list[dict[str, Any]]) -> None:
    """Let the last sample of the file have a higher reward."""
    parts = json.loads(rows[-1]["parts"])
    rows[-1] |= {"reward": rows[-1]["reward"] + 0.25, "parts": json.dumps({n: v + 0.25 for n, v in parts.items()})}


def swap_samples(rows: list[dict[str, Any]]) -> None:
    """Let two samples of one task change places: tokens that the policy may well have drawn, but not with that seed."""
    kept = ("sample_index", "seed", "group_index", "task_id")
    one, other = rows[-1], rows[-2]
    rows[-1], rows[-2] = {**other, **{n: one[n] for n in kept}}, {**one, **{n: other[n] for n in kept}}


def fit_step(run: Path) -> None:
    """Make advantages and metrics of the forged step what its rewards say."""
    material = read_material(run, read_config(run, RunConfig))
    file = run / "rollouts" / f"step-{STEP:06d}.parquet"
    stored = read_samples(file, STEP, material.tasks)
    again = recompute(material.config, stored.groups, stored.rows, kl_coef=material.kl_coefs[STEP])
    fitted = iter(again.advantages.get((g, m)) for g, rows in enumerate(stored.rows) for m in range(len(rows)))
    change_rows(file, lambda rows: [row.update(advantage=next(fitted)) for row in rows] and None)
    change_line(run, **expected_metrics(material.config, stored))


def change_line(run: Path, **metrics: float) -> None:
    """Change numbers of the forged step's metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[STEP - 1] = json.dumps({**json.loads(lines[STEP - 1]), **metrics})
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def flip_adapter_byte(run: Path, version: int = STEP - 1) -> str:
    """Change the lowest byte of one number of an adapter; the hash that it has then."""
    file = run / "adapters" / f"v{version:06d}" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    return adapter_hash(read_folder(file.parent))


def double_adapter(run: Path, version: int = STEP - 1) -> str:
    """Change all numbers of an adapter; the hash that it has then."""
    file = run / "adapters" / f"v{version:06d}" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return adapter_hash(read_folder(file.parent))


def restamp(run: Path, content_hash: str, version: int = STEP - 1) -> None:
    """Let all samples of an adapter name another hash."""

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["adapter_version"] == version:
                row["adapter_hash"] = content_hash

    for file in [*run.glob("rollouts/*.parquet"), *run.glob("evals/*.parquet")]:
        change_rows(file, change)


def fit_evaluation(run: Path, name: str) -> None:
    """Make an evaluation, and the result where it is the last one, what its samples say."""
    material = read_material(run, read_config(run, RunConfig))
    known = next(each for each in read_evals(run) if each.name == name)
    groups = read_samples(run / "evals" / f"{name}.parquet", known.step, material.tasks).groups
    adapter = Adapter(version=known.adapter_version, hash=known.adapter_hash, tensors={})
    again = evaluation(material.config, groups, adapter=adapter, name=name, step=known.step, samples_file=None)
    (run / "evals" / f"{name}.json").write_text(json.dumps(again.as_dict(), indent=1))
    summary = json.loads((run / "summary.json").read_text())
    key = "base" if name == "base" else "rl"
    rewards = {each: interval.as_dict() for each, interval in again.rewards.items()}
    summary |= {f"accuracy_{key}": again.accuracy.as_dict(), f"rewards_{key}": rewards}
    (run / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
