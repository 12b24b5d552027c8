"""Reading a run directory: config, metrics, rollouts, evaluations, events.

    runs/NAME/  config.yaml  provenance.json  summary.json  metrics.jsonl  events.jsonl
                rollouts/step-000012.parquet   evals/base.json, sft.json, step-000010.json, each with a
                .parquet

A run that is still going, or that was killed, has to be readable: what does not exist yet is empty, and the
last line of a log may be torn. Everything else that is not as expected is a ValueError that says where it is
and what to do.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlft.curves.statistics import Interval

_LOG = logging.getLogger(__name__)
_STEP_FILE = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation on the held-out tasks."""

    name: str
    """`base`, `sft` or `step-000010`."""
    step: int
    """RL steps behind the evaluated policy; 0 for `base` and `sft`."""
    adapter_version: int
    """Version of the evaluated adapter."""
    adapter_hash: str
    """Content hash of the evaluated adapter."""
    metric: str
    """Name of the reward or part that `accuracy` is the mean of."""
    accuracy: Interval
    """Mean over tasks, with its 95 % interval."""
    failed: int
    """Samples that could not be scored and are in no number."""
    length: float
    """Mean completion length in tokens; nan if there was none."""
    truncated: float
    """Share of completions that were cut at the length limit."""
    by_task: dict[str, list[float]]
    """Values of each task's scored samples."""
    stage: str = "RL"
    """What trains the policy: RL, or a preference loss such as DPO."""
    loss: float = math.nan
    """Mean loss of held-out preferences; nan in RL."""
    margin: float = math.nan
    """Mean margin of held-out preferences; nan in RL."""
    failed_parts: Mapping[str, int] = field(default_factory=dict)
    """Samples on which each reward failed, whatever its weight; rewards that never failed are absent."""

    @property
    def label(self) -> str:
        """What to call it in a sentence or a table."""
        return {"base": "base", "sft": "SFT"}.get(self.name, f"{self.stage}, step {self.step}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of events.jsonl: something that happened to the run."""

    time: str
    """ISO 8601."""
    kind: str
    """Short name, such as `resumed`."""
    message: str
    """One sentence."""
    step: int | None
    """Step it belongs to, where it has one."""


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config. Raises ValueError if this is no run directory or the file is no YAML mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is not a run directory: it has no config.yaml; give the folder that a run made")
    try:
        config = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping, not {type(config).__name__}")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, `{}` if there is no such file. Raises ValueError with the path if it is no object."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def read_metrics(run: Path, notes: list[str] | None = None) -> list[dict[str, float]]:
    """The metrics of each step, by ascending step; a metric that was null is absent, `step` is an int.

    A torn last line is left out and a repeated step (a resumed run redoes the steps after its checkpoint)
    counts as its last line; both are said in `notes` if that is given, else logged as a warning. Empty while
    no step has been logged. Raises ValueError with file and line for any other bad line.
    """
    path = Path(run) / "metrics.jsonl"
    rows: dict[int, dict[str, float]] = {}
    repeated = 0
    for where, record in _read_lines(path, notes):
        step = record.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise ValueError(f"{where}: expected an integer 'step', got {step!r}")
        row = {key: value for key, value in record.items() if value is not None}
        for key, value in row.items():
            if not isinstance(value, int | float):
                raise ValueError(f"{where}: metric {key!r} is not a number but {value!r}")
        repeated += step in rows
        rows[step] = row
    if repeated:
        _say(f"{path}: {repeated} steps were logged more than once; the last line of each counts", notes)
    return [rows[step] for step in sorted(rows)]


def read_events(run: Path, notes: list[str] | None = None) -> list[Event]:
    """The events in the order they were written; torn last line and errors as in `read_metrics`."""
    events = []
    for _, record in _read_lines(Path(run) / "events.jsonl", notes):
        step = record.get("step")
        texts = {key: str(record.get(key, "")) for key in ("time", "kind", "message")}
        events.append(Event(**texts, step=step if isinstance(step, int) else None))
    return events


def read_evals(run: Path) -> list[Evaluation]:
    """Every evaluation, ordered base, sft, then by step; empty if there is none.

    Raises ValueError naming the file if one cannot be read or lacks a field.
    """
    evals = [_evaluation(path) for path in sorted((Path(run) / "evals").glob("*.json"))]
    order = {"base": 0, "sft": 1}
    return sorted(evals, key=lambda e: (order.get(e.name, 2), e.step, e.name))


def rollout_steps(run: Path) -> list[int]:
    """Steps that have stored rollouts, ascending."""
    names = [_STEP_FILE.fullmatch(path.stem) for path in (Path(run) / "rollouts").glob("*.parquet")]
    return sorted(int(match[1]) for match in names if match)


def read_rollouts(
    run: Path,
    columns: Sequence[str] | None = None,
    steps: Iterable[int] | None = None,
    *,
    optional: Sequence[str] = (),
) -> Any:
    """Stored rollouts as one pyarrow table (`.to_pylist()` makes dicts), by ascending step.

    `columns` and `steps` limit what is read from the disk at all: token ids and log-probabilities are most of it.
    `optional` columns come along where a file has them, as those of older runs may not. Raises ValueError if the run
    has no rollouts, not those of a wanted step, not a wanted column, or a broken file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = rollout_steps(run)
    if not stored:
        raise ValueError(f"{run} has no rollouts yet: they are written after each step to rollouts/step-*.parquet")
    wanted = stored if steps is None else sorted(set(steps))
    if missing := sorted(set(wanted) - set(stored)):
        raise ValueError(f"{run} has no rollouts of step {missing[0]}; stored: {stored[0]} to {stored[-1]}")
    paths = {int(path.stem[5:]): path for path in (Path(run) / "rollouts").glob("step-*.parquet")}
    tables = []
    for step in wanted:
        try:
            # partitioning=None: a run folder called "lr=0.1" is a name, not a partition column.
            schema = pq.read_schema(paths[step])
            if absent := sorted(set(columns or ()) - set(schema.names)):
                raise ValueError(f"{paths[step]} has no column {absent[0]!r}; it has {', '.join(schema.names)}")
            names = None if columns is None else [*columns, *(name for name in optional if name in schema.names)]
            tables.append(pq.read_table(paths[step], columns=names, partitioning=None))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{paths[step]} cannot be read ({error}); remove it to read the rest") from error
    # "permissive": a column that was all null in one step has no type there.
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def _evaluation(path: Path) -> Evaluation:
    data = read_json(path)
    try:
        return Evaluation(
            name=str(data["name"]),
            step=int(data["step"]),
            adapter_version=int(data["adapter_version"]),
            adapter_hash=str(data["adapter_hash"]),
            metric=str(data["metric"]),
            accuracy=Interval.from_dict(data["accuracy"]),
            failed=int(data["failed"]),
            length=_number(data["length"]),
            truncated=_number(data["truncated"]),
            by_task={str(task): [float(v) for v in values] for task, values in data["by_task"].items()},
            stage=str(data.get("stage", "RL")),
            loss=_number(data.get("loss")),
            margin=_number(data.get("margin")),
            failed_parts={str(name): int(count) for name, count in data.get("failed_parts", {}).items()},
        )
    except KeyError as error:
        raise ValueError(f"{path} has no field {error.args[0]!r}; run the evaluation again") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not an evaluation: {error}") from error


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _read_lines(path: Path, notes: list[str] | None) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield (file:line, object) of a JSON-lines file; nothing if it does not exist."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{where}: not readable as JSON ({error}); the file was edited or damaged") from error
            _say(f"{where}: the last line is torn, as after a crash, and was left out", notes)
            return
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
        yield where, record


def _say(message: str, notes: list[str] | None) -> None:
    if notes is None:
        _LOG.warning("%s", message)
    else:
        notes.append(message)
