"""What made a run's numbers, and whether it is still there when the run is resumed.

What decides the numbers (config, reward and environment files, tasks or preferences, the model's weights) may not
change within a run: resuming it then is refused, and `fork` continues as a run of its own. What only rounds otherwise
(kernels, device, versions of packages, another machine) may change, and is said at the step where it did.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlft.common.machine import processor_name
from rlft.config import BaseRunConfig
from rlft.run.records import Provenance

PACKAGES = ("rlft", "torch", "transformers", "peft", "trl", "datasets", "ray")
"""Those whose versions are written down, rlft's own with a hash of its source files behind it; a tokenizer's or a
kernel's change comes with them."""

NO_NUMBERS = (
    "name",
    "output_dir",
    "trackers",
    "backend",
    "ray_address",
    "scoring.workers",
    "scoring.deadline_s",
    "scoring.max_failed",
    "scoring.check",
    "scoring.max_concurrent",
    "scoring.memory_mb",
    "scoring.judge_calls",
    "scoring.judge_tokens",
    "guards.max_kl",
    "guards.min_entropy",
    "guards.steps_without_signal",
    "guards.stop",
    "guards.alarms",
    "rollout.workers",
    "rollout.threads",
    "rollout.gpus_per_worker",
    "rollout.max_restarts",
    "rollout.deadline_s",
    "rollout.hedge_after",
    "rollout.max_mismatch",
    "learner.workers",
    "learner.gpus_per_worker",
    "learner.threads",
    "learner.tokens_per_microbatch",
    "learner.activations",
    "evaluation.every",
    "evaluation.min_effect",
    "checkpoint.every",
    "checkpoint.adapters",
)
"""Settings that decide where and how fast a run computes, what it keeps and when it stops, but not what is learnt."""

_EVERY_OF_SET = re.compile(r"evaluations\.[^.]+\.every")
"""The one setting of an evaluation set that may change within a run."""
_ARGUMENTS = ("args", "engine_args", "alarms")
"""Settings that hold keys of the user's own."""
_MACHINE = ("kernels", "device", "python", "machine", "processor", "system")


def describe(
    config: BaseRunConfig,
    *,
    sha256: Mapping[str, str],
    tasks: str,
    model: str,
    kernels: str,
    operations: Sequence[str],
    device: str,
) -> Provenance:
    """What makes the numbers of a run that starts here and now; the arguments are fields of `Provenance`."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    packages["rlft"] = f"{packages['rlft']}+{code_sha256()[:12]}"
    return Provenance(
        config=config.model_dump(mode="json"),
        sha256=sha256,
        tasks=tasks,
        model=model,
        kernels=kernels,
        operations=list(operations),
        device=device,
        packages=packages,
        python=platform.python_version(),
        machine=platform.machine(),
        processor=processor_name(),
        system=platform.system(),
        cpus=os.cpu_count() or 0,
        cwd=os.getcwd(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@cache
def code_sha256() -> str:
    """Hash of rlft's own source files: two states of one version need not round alike."""
    root = Path(__file__).parents[1]
    native = (path for path in (root / "model" / "kernels" / "native").iterdir() if path.is_file())
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in (*root.rglob("*.py"), *native)):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def source_record(path: str, args: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """A reward or an environment in `records.SOURCES`.

    Of a file's path only the name counts: the same run in another folder is the same run.
    """
    name = path.rpartition("/")[2] if ".py:" in path else path
    # As it reads back: YAML knows dates, and JSON does not.
    return {"path": name, "args": json.loads(json.dumps(dict(args), default=str)), "files": dict(files)}


def changed_numbers(then: Provenance, now: Provenance) -> list[str]:
    """What decides the numbers and is another than when the run began: a line each, empty where nothing is.

    What format 1 did not write down cannot be compared.
    """
    lines = [
        f"{key}: {_shown(old)} -> {_shown(new)}"
        for key, old, new in differences(then.config, now.config)
        if then.config and not decides_nothing(key) and not _extends(key, then.config, now.config)
    ]
    for path in sorted({*then.sha256} & {*now.sha256}):
        if then.sha256[path] != now.sha256[path]:
            lines.append(f"{path}: sha256 {then.sha256[path][:12]} -> {now.sha256[path][:12]}")
    for name, what in (("tasks", "the tasks"), ("model", "the model's files")):
        old, new = getattr(then, name), getattr(now, name)
        if old and new and old != new:
            lines.append(f"{what}: sha256 {old[:12]} -> {new[:12]}")
    return lines


def changed_computing(then: Provenance, now: Provenance) -> list[str]:
    """What computes the numbers and is another than when the run was last started: a line each."""
    lines = [
        f"{name}: {old} -> {new}"
        for name in _MACHINE
        if (old := getattr(then, name)) and (new := getattr(now, name)) and old != new
    ]
    if then.operations is not None and now.operations is not None:
        gone, new = {*then.operations} - {*now.operations}, {*now.operations} - {*then.operations}
        lines += [f"operations no longer compiled: {_listed(gone)}"] if gone else []
        lines += [f"operations compiled now: {_listed(new)}"] if new else []
    lines += [
        f"{name}: {then.packages[name]} -> {now.packages[name]}"
        for name in sorted({*then.packages} & {*now.packages})
        if then.packages[name] != now.packages[name]
    ]
    if then.config:
        lines += [
            f"{key}: {_shown(old)} -> {_shown(new)}"
            for key, old, new in differences(then.config, now.config)
            if decides_nothing(key) or _extends(key, then.config, now.config)
        ]
    return lines


def succeeded_by(then: Provenance, now: Provenance) -> Provenance:
    """The provenance of a run that goes on under what `now` says, with what it was before among `earlier`."""
    kept = {name: getattr(then, name) for name in (*_MACHINE, "operations", "packages", "cpus", "started")}
    return replace(
        now, lineage=then.lineage, earlier=[{**kept, "packages": dict(then.packages)}, *then.earlier], extra=then.extra
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every setting that differs; a key that one lacks is None there."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*then, *now}):
        old, new = then.get(key), now.get(key)
        if (prefix, key) == ("", "evaluations"):
            old, new = by_name(old), by_name(new)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and key not in _ARGUMENTS:
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found


def tasks_of_set(name: str) -> str:
    """The name under which `Provenance.sha256` has the hash of an evaluation set's own tasks."""
    return f"the tasks of evaluation {name}"


def decides_nothing(key: str) -> bool:
    """Whether the number of no step rests on this setting, such as `guards.alarms.grad_norm` of a flattened config."""
    return key in NO_NUMBERS or key.startswith("guards.alarms.") or _EVERY_OF_SET.fullmatch(key) is not None


def by_name(sets: Sequence[Mapping[str, Any]] | None) -> Mapping[str, Mapping[str, Any]]:
    """The config's `evaluations` by name, so that each is compared with itself whatever their order."""
    return {each["name"]: each for each in sets or ()}


def _extends(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether it is the number of steps, and steps that are done come out the same under another one."""
    schedules = (config.get("learner", {}).get("schedule") for config in (then, now))
    return key == "steps" and all(schedule == "constant" for schedule in schedules)


def _listed(names: set[str]) -> str:
    few = sorted(names)[:4]
    return ", ".join(few) + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refuse_changed(path: object, changes: Sequence[str], instead: str) -> None:
    """Refuse to resume a run whose numbers would be others from here on.

    Args:
        instead: what to do if the changes are wanted.

    Raises:
        ValueError: lists the changes and what to do.
    """
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        raise ValueError(
            f"{path} cannot be resumed as the same run, since what makes its numbers has changed:\n{listed}\n"
            f"Restore it, or {instead}"
        )
