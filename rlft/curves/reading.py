"""What a person looks at of a run directory: config, metrics by step, evaluations in order, stored rollouts.

`rlft.run.logs` reads the records themselves.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rlft.curves.contents import COLUMNS, EPISODE, contents_of, merged
from rlft.run import damage, logs
from rlft.run.records import (
    ADAPTERS,
    CONFIG,
    ROLLOUT_COLUMNS,
    ROLLOUTS,
    Evaluation,
    Event,
    adapter_folder,
    evaluations_folder,
    numbered,
    step_name,
    step_of,
)
from rlft.types import RewardSpec

_FILES_AT_ONCE = 256
Rows: TypeAlias = Sequence[Mapping[str, float]]
"""Metrics of each step, ascending, each with its `step`."""
ROLLED_BACK, STOPPED_EARLY = "rolled_back", "stopped_early"
"""Kinds of the events whose step is that of the result, which then need not be the last one."""
FEWEST_STEPS = 3
"""Fewest steps whose mean says anything about training before or after them."""
ALARM = "alarm"
"""Kind of the event with which a run tells an alarm, at the step of its onset."""


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config. Raises ValueError if this is no run directory or the file is no YAML mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(run) / CONFIG
    if not path.is_file():
        raise ValueError(f"{run} is not a run directory: it has no config.yaml; give the folder that a run made")
    try:
        config = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping, not {type(config).__name__}")
    return config


def reward_specs(config: Mapping[str, Any]) -> list[RewardSpec]:
    """The rewards that a resolved config names."""
    return [
        RewardSpec(
            path=str(reward.get("path")),
            name=str(reward.get("name") or ""),
            weight=float(reward.get("weight", 1)),
            role="shadow" if reward.get("role") == "shadow" else "train",
        )
        for reward in config.get("rewards") or []
        if isinstance(reward, dict)
    ]


def read_metrics(run: Path, notes: list[str] | None = None) -> list[dict[str, float]]:
    """The metrics of each step, by ascending step, with the step itself as `step`, an int.

    A repeated step (a resumed run redoes the steps after its checkpoint) counts as its last line; that and a torn last
    line are said in `notes` if that is given, else logged as a warning. Empty while no step has been logged. Raises
    ValueError with file and line for any other bad line.
    """
    lines = logs.read_metrics(run, notes).rows
    rows = {line.step: {"step": line.step, **line.metrics} for line in lines}
    if repeated := len(lines) - len(rows):
        again = sum(count > 1 for count in Counter(line.step for line in lines).values())
        times = f" ({repeated} lines)" if repeated > again else ""
        told = "step was" if again == 1 else "steps were"
        logs.say(f"{run}: {again} {told} logged more than once{times}; the last line of each counts", notes)
    return [rows[step] for step in sorted(rows)]


def read_events(run: Path, notes: list[str] | None = None) -> list[Event]:
    """The events in the order they were written; torn last line and errors as in `read_metrics`."""
    return logs.read_events(run, notes).rows


def rolled_back_to(run: Path) -> int | None:
    """The step whose adapter is the result of a run that an alarm rolled back or that was stopped early; None where it
    is that of the last step.

    Raises ValueError with file and line for a damaged file of events.
    """
    kinds = (ROLLED_BACK, STOPPED_EARLY, "resumed", "forked")
    last = next((event for event in reversed(read_events(run, [])) if event.kind in kinds), None)
    return last.step if last is not None and last.kind in (ROLLED_BACK, STOPPED_EARLY) else None


def adapter_of(run: Path, name: str = "") -> Path:
    """Folder of the policy that a run has made: `name` as in `v12` or `sft`, or without one the run's result.

    The result is the last adapter, or that of the step that the run was rolled back to. Raises ValueError if there is
    no such adapter, naming those that there are.
    """
    run = Path(run)
    folders = {folder.name: folder for _, folder in numbered(run / ADAPTERS)}
    if (sft := run / adapter_folder(None)).is_dir():
        folders = {sft.name: sft, **folders}
    if not folders:
        raise ValueError(
            f"{run} has no adapter yet, as one is kept at its first checkpoint; a config file names its base model"
        )
    if not name and (step := rolled_back_to(run)) is not None:
        name = f"v{step}"
    step = step_of(name)
    wanted = list(folders)[-1] if not name else name if step is None else Path(adapter_folder(step)).name
    if wanted not in folders:
        raise ValueError(f"{run} has no adapter {name!r}; there are: {', '.join(folders)}")
    return folders[wanted]


def read_evals(run: Path, set_name: str = "", *, is_checked: bool = True) -> list[Evaluation]:
    """Every evaluation, or every one of an evaluation set, ordered base, sft, then by step; empty if there is none.

    Raises ValueError naming the file if one cannot be read, lacks a field, or (`is_checked`) has a mean that is not
    that of its tasks or lies outside of its own interval, but see `damage.left_out`.
    """
    folder, evals = Path(run) / evaluations_folder(set_name), []
    for path in sorted(folder.glob("*.json")):
        try:
            found = logs.read_evaluation(path)
            if is_checked and (wrong := _wrong_mean(found)):
                raise ValueError(f"{path}: {wrong}; rlft verify {run} finds what was changed")
            evals.append(found)
        except ValueError as error:
            damage.refuse(error)
    return in_order(evals)


def _wrong_mean(found: Evaluation) -> str:
    """What an evaluation says of its mean that cannot be; empty where nothing is."""
    mean, low, high = found.accuracy.mean, found.accuracy.low, found.accuracy.high
    rounding = 1e-9 * max(1.0, abs(mean))
    if mean < low - rounding or mean > high + rounding:
        return f"its mean {mean} lies outside of its own interval [{low}, {high}]"
    by_task = merged(found.by_task, found.same)
    tasks = [math.fsum(values) / len(values) for values in by_task.values() if values]
    own = math.fsum(tasks) / len(tasks) if tasks else mean
    if math.isfinite(own) and math.isfinite(mean) and not math.isclose(own, mean, rel_tol=1e-6, abs_tol=1e-9):
        return f"its mean {mean} is not that of its tasks (by_task), {own}"
    return ""


def in_order(evals: Iterable[Evaluation]) -> list[Evaluation]:
    """Evaluations in the order of training: base, sft, then by step."""
    order = {"base": 0, "sft": 1}
    return sorted(evals, key=lambda e: (order.get(e.name, 2), e.step, e.name))


def evals_of_result(run: Path, set_name: str = "") -> list[Evaluation]:
    """`read_evals` up to the policy that is the run's result (`rolled_back_to`). Raises as both do."""
    back = rolled_back_to(run)
    return [e for e in read_evals(run, set_name) if back is None or e.step <= back]


def compared(evals: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations that are compared: of the policy that training began with, and the last one."""
    return [*[e for e in evals if e.is_before][-1:], *[e for e in evals if not e.is_before][-1:]]


def read_contents(run: Path, evals: Iterable[Evaluation]) -> dict[str, str]:
    """Content of each task of some evaluations by its id, see `contents`, as their files and stored samples have it.

    Ids without one are tasks of their own. Raises ValueError if a file of samples is damaged or an id stands for two
    contents, but see `damage.left_out`.
    """
    same: dict[str, str] = {}
    stored: dict[str, str] = {}
    for each in evals:
        same |= each.same
        table = read_eval_samples(run, each.name, COLUMNS[:1], optional=(*COLUMNS[1:], EPISODE), set_name=each.set_name)
        try:
            stored |= contents_of(table)
        except ValueError as error:
            damage.refuse(ValueError(f"the samples of {each.name}: {error}"))
    return same | stored


def read_eval_samples(
    run: Path, name: str, columns: Sequence[str], *, optional: Sequence[str] = (), set_name: str = ""
) -> Any:
    """The samples of an evaluation, or one of an evaluation set, as a pyarrow table with `columns`; None where they are
    not stored.

    `optional` columns come along where the file has them. Raises ValueError if the file is broken or lacks a column,
    but see `damage.left_out`.
    """
    path = Path(run) / evaluations_folder(set_name) / f"{name}.parquet"
    return _read_table(path, columns, optional) if path.is_file() else None


def read_eval_parts(run: Path, name: str) -> dict[str, dict[str, list[float]]]:
    """The values of each reward and named part in an evaluation's stored samples, by task; empty where none are stored.

    Raises ValueError if the file is broken.
    """
    table = read_eval_samples(run, name, ("task_id", "parts"))
    found: dict[str, dict[str, list[float]]] = {}
    for row in table.to_pylist() if table is not None else ():
        for part, value in json.loads(row["parts"] or "{}").items():
            found.setdefault(part, {}).setdefault(row["task_id"], []).append(float(value))
    return found


def window(rows: Sequence[Mapping[str, float]]) -> int:
    """How many steps `trends` averages at each end: a tenth of the run, 1 to 20."""
    return max(1, min(20, len(rows) // 10))


def deciding_window(steps: int) -> int:
    """How many steps stand at each end of training where the two ends decide something: a quarter, at most 20.

    0 where that is fewer than `FEWEST_STEPS`: so few are not compared at all.
    """
    width = min(20, steps // 4)
    return width if width >= FEWEST_STEPS else 0


def rollout_steps(run: Path) -> list[int]:
    """Steps that have stored rollouts, ascending."""
    return [step for step, path in numbered(Path(run) / ROLLOUTS) if path.stem == step_name(step)]


def readable_steps(run: Path) -> list[int]:
    """Steps whose stored rollouts can be read, ascending; those whose files are damaged are noted (`damage`)."""
    stored = rollout_steps(run)
    return sorted(set(read_rollouts(run, ("step",))["step"].to_pylist())) if stored else []


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
    has no rollouts, not those of a wanted step, not a wanted column, or a broken file, but see `damage.left_out`.
    """
    import pyarrow as pa

    wanted = rollout_steps(run) if steps is None else sorted(set(steps))
    paths = [Path(run) / ROLLOUTS / f"{step_name(step)}.parquet" for step in wanted]
    # Listing the folder of a long run takes longer than reading some of its files.
    missing = [step for step, path in zip(wanted, paths, strict=True) if steps is not None and not path.is_file()]
    if missing or not wanted:
        stored = rollout_steps(run)
        if not stored:
            raise ValueError(f"{run} has no rollouts yet: they are written after each step to rollouts/step-*.parquet")
        if missing:
            raise ValueError(f"{run} has no rollouts of step {missing[0]}; stored: {stored[0]} to {stored[-1]}")
    joined: list[Any] = []
    for start in range(0, len(paths), _FILES_AT_ONCE):
        part = paths[start : start + _FILES_AT_ONCE]
        tables = [table for path in part if (table := _read_table(path, columns, optional)) is not None]
        # "permissive": a column that was all null in one step has no type there. Many small chunks take much memory.
        joined += [pa.concat_tables(tables, promote_options="permissive").combine_chunks()] if tables else []
    return pa.concat_tables(joined, promote_options="permissive") if joined else _no_rows([*(columns or ()), *optional])


def _no_rows(columns: Sequence[str]) -> Any:
    """A table of rollouts without rows: what remains where every file is damaged and left out."""
    import pyarrow as pa

    def type_of(name: str) -> Any:
        told = ROLLOUT_COLUMNS[name].type
        inner = pa.type_for_alias(told.removeprefix("list<").removesuffix(">"))
        return pa.list_(inner) if told.startswith("list<") else inner

    known = [name for name in columns or ROLLOUT_COLUMNS if name in ROLLOUT_COLUMNS]
    return pa.schema([(name, type_of(name)) for name in known]).empty_table()


def _read_table(path: Path, columns: Sequence[str] | None, optional: Sequence[str] = ()) -> Any:
    """A parquet file; None where it is damaged and that is left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # not pq.read_table, which imports pandas
            # Columns that are not there are left out. Files are small, and threads cost more than they save.
            table = file.read(None if columns is None else [*columns, *optional], use_threads=False)
            if absent := sorted(set(columns or ()) - set(table.column_names)):
                known = ", ".join(file.schema_arrow.names)
                damage.refuse(ValueError(f"{path} has no column {absent[0]!r}; it has {known}"))
                return None
            return table
    except (pa.ArrowException, OSError) as error:
        damage.refuse(ValueError(f"{path} cannot be read ({error})"), instead="remove it to read the rest")
        return None
