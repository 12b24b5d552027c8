"""`rlft verify` of a supervised run: hashes, rows, adapters, and held-out numbers made again with a stored adapter."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

from transformers.utils import logging as transformers_logging

from rlft.curves import reading
from rlft.curves.contents import merged
from rlft.curves.live_panel import View
from rlft.curves.statistics import mean_interval
from rlft.model.adapter import adapter_hash, read_folder
from rlft.run import logs, manifest
from rlft.run.records import ADAPTERS, EVALS, Evaluation, adapter_folder
from rlft.train.rl.verify.findings import Check, Verification
from rlft.train.rl.verify.verify import check_manifest
from rlft.train.supervised.config import SupervisedConfig
from rlft.train.supervised.data import SupervisedData
from rlft.train.supervised.launch import read_rows
from rlft.train.supervised.learner import SupervisedLearner
from rlft.train.supervised.loop import measure

CLOSE = 1e-3
"""Nats per token that a mean may differ by where it is computed again: other machines round otherwise."""


def verify(run: Path, config: SupervisedConfig, *, root: str = "") -> Verification:
    """Check a supervised run's records against each other, and against the rows and the model that are here.

    Args:
        root: sha256 that the manifest has to have, as somebody signed it; empty asks for none.

    Raises:
        ValueError: a record, the rows or the model cannot be read.
    """
    hashes = Check(what="hashes in the manifest", unit="files", is_needed=False)
    rows = Check(what="rows are those of the run", unit="rows")
    adapters = Check(what="stored adapters are those that were measured", unit="adapters")
    means = Check(what="held-out means from their rows", unit="numbers")
    again = Check(what="held-out rows measured again", unit="rows")
    transformers_logging.disable_progress_bar()
    with View(f"verify {config.name}", steps=0) as view:
        view.stage("hashes")
        notes = check_manifest(run, config.checkpoint, root, hashes)
        evals = reading.read_evals(run, is_checked=False)
        for each in evals:
            file = f"{EVALS}/{each.name}.json"
            mean = mean_interval(merged(each.by_task, each.same)).mean
            means.compare(file, "accuracy.mean", each.accuracy.mean, mean)
            means.compare(file, "loss", each.loss, -mean)
            _check_adapter(run, each, adapters)
        data, model_folder = read_rows(config, view)
        then = logs.read_provenance(run)
        if then.tasks == data.hash:
            rows.agree(len(data.train) + len(data.heldout))
        else:
            rows.differ(config.data.source, f"its rows have hash {data.hash[:12]}, those of the run {then.tasks[:12]}")
        stored = [each for each in evals if each.step and (run / adapter_folder(each.step)).is_dir()]
        if stored and data.heldout:
            view.stage(f"held-out rows: {stored[-1].name}")
            _measure_again(run, config, data, model_folder, stored[-1], again)
        else:
            again.skip("no measured adapter is stored, or nothing is held out", 0)
    actual = manifest.root_hash(run)
    return Verification(
        run=str(run),
        share=1.0,
        seed=0,
        root=actual,
        is_signed=bool(root) and root == actual,
        is_exact=False,
        checks=[hashes, rows, adapters, means, again],
        odds=[],
        notes=[
            *notes,
            "The updates themselves are not repeated: a rerun of the config on this kind of machine does that.",
        ],
    )


def _check_adapter(run: Path, evaluation: Evaluation, check: Check) -> None:
    folder = run / adapter_folder(evaluation.step)
    if not evaluation.step or not folder.is_dir():
        if evaluation.step:
            check.skip(f"not stored any more (checkpoint.adapters), or never: of {evaluation.name}")
        return
    check.compare(f"{ADAPTERS}/{folder.name}", "its hash", evaluation.adapter_hash, adapter_hash(read_folder(folder)))


def _measure_again(
    run: Path, config: SupervisedConfig, data: SupervisedData, model_folder: str, told: Evaluation, check: Check
) -> None:
    start = read_folder(run / adapter_folder(told.step))
    alone = config.model_copy(
        update={"learner": config.learner.model_copy(update={"workers": 1, "gpus_per_worker": 0})}
    )
    with closing(SupervisedLearner(alone, model_folder, start=start)) as learner:
        found = measure(learner, alone, data, name=told.name, step=told.step, on_chunk=None)
    file = f"{EVALS}/{told.name}.json"
    largest = 0.0
    for row, values in found.by_task.items():
        said = told.by_task.get(row)
        if said is None or len(said) != len(values):
            check.differ(file, f"row {row} is missing, or has another number of values")
            continue
        off = max(abs(one - other) for one, other in zip(said, values, strict=True))
        largest = max(largest, off)
        if math.isfinite(off) and off <= 100 * CLOSE:
            check.agree()
        else:
            check.differ(file, f"row {row} is {list(said)}, computed again {values}")
    if abs(found.accuracy.mean - told.accuracy.mean) > CLOSE:
        check.differ(file, f"the mean is {told.accuracy.mean:.4f}, computed again {found.accuracy.mean:.4f}")
    check.remark(f"the largest difference of a row is {largest:.1e} nats per token")
