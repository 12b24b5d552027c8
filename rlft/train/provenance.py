"""What makes a run's numbers, as it is here and now: for the records of a new run, and to resume an earlier one by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlft.common.files import folder_sha256
from rlft.config import BaseRunConfig, EnvironmentConfig
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.model.base import default_device, resolve_dtype
from rlft.model.kernels import library
from rlft.model.starting_point import reference_source
from rlft.run import provenance
from rlft.run.records import Provenance


def present(
    config: BaseRunConfig,
    model_folder: str,
    *,
    sha256: Mapping[str, str],
    tasks: str,
    start: str = "",
    reference: str = "",
) -> Provenance:
    """What makes the numbers of a run of this config.

    Args:
        sha256: of the files that the config names, by their path in it; the folders of `start` and of the reference
            are added.
        tasks: hash of the tasks or preferences.
        start: the config's `adapter.start`, if it has one.
        reference: the config's `reference`, if it has one.
    """
    folders = {start: start}
    if (source := reference_source(reference)) is not None:
        folders[reference] = source.folder
    hashes = {name: folder_sha256(Path(folder).expanduser()) for name, folder in folders.items() if name}
    dtype = str(resolve_dtype(config.model)).removeprefix("torch.")
    return provenance.describe(
        config,
        sha256={**sha256, **hashes},
        tasks=tasks,
        model=folder_sha256(Path(model_folder)),
        kernels=library.description(),
        operations=library.operations(),
        device=f"{default_device().type}, {dtype}",
    )


def environment_record(config: EnvironmentConfig) -> dict[str, Any]:
    """What makes a run's tasks, see `records.SOURCES`; a mix has the record of each of its environments as an argument.

    Raises:
        ValueError: see `loading.sources`.
    """
    if not config.mix:
        return provenance.source_record(config.path, config.args, loading.sources(config.path))
    records: dict[str, Any] = {}
    files: dict[str, str] = {}
    for each in config.mix:
        of_each = loading.sources(each.path)
        record = provenance.source_record(each.path, each.args, of_each)
        records[each.name] = {"path": record["path"], "args": record["args"], "weight": each.weight}
        files |= {f"{each.name}/{file}": digest for file, digest in of_each.items()}
    return provenance.source_record("mix", records, files)


def tasks_sha256(environment: Environment) -> str:
    """Hash of everything that an environment gives to train, to measure and to show, in order."""
    digest = hashlib.sha256()
    for part in (environment.train, environment.heldout):
        for task in part:
            row = [task.id, list(task.messages), task.answer, dict(task.columns)]
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    for messages in environment.demonstrations:
        digest.update(json.dumps(list(messages), sort_keys=True, default=str).encode())
    return digest.hexdigest()
