"""`write_report`: one HTML file that shows a run. `write_reward_png`: its main curve as a picture.

The HTML file works offline and from anywhere: plotly.js, data and styles are in it, and its content security
policy forbids every other origin and every script but the ones whose hashes it names. Whatever a model, a
data set or a config wrote is text: the template escapes it, and it stays text even if that failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft.curves import charts, digest, pages, reading
from rlft.curves.evaluation_sets import HEADINGS as SET_HEADINGS
from rlft.curves.evaluation_sets import EvaluationSet, read_sets
from rlft.curves.passes import passes
from rlft.curves.samples import ObservedFailure, Showcase, observed_failures, showcase
from rlft.curves.shadow import Shadow, measure_shadows, shadow_names
from rlft.curves.state import State, state_of
from rlft.curves.text import duration, percent
from rlft.curves.verdict import Verdict, verdict_of
from rlft.run import damage, logs
from rlft.run.records import CONFIG, SUMMARY, Evaluation, Event, Interval, Provenance, word_for

if TYPE_CHECKING:
    from rlft.curves.alarms import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Everything of a run directory that the page shows."""

    folder: Path
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]
    evals: Sequence[Evaluation]
    of_result: Sequence[Evaluation]
    events: Sequence[Event]
    state: State
    summary: Mapping[str, Any]
    provenance: Provenance
    waste: digest.Waste | None
    samples: Showcase | None
    observed: Sequence[ObservedFailure]
    verdict: Verdict
    health: Health
    shadows: Sequence[Shadow]
    sets: Sequence[EvaluationSet]
    notes: Sequence[str]


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write `report.html` into the run directory, or into `out`, and return its path.

    A running run can be reported, too. A file that is damaged is left out, and the page says so. Raises ValueError if
    this is not a run directory or its config is damaged, and OSError if the report cannot be written.
    """
    import plotly.offline
    from markupsafe import Markup

    data = _load(Path(run))
    library, script = plotly.offline.get_plotlyjs(), (pages.FOLDER / "report.js").read_text(encoding="utf-8")
    sections = charts.sections(data.rows, data.evals, data.events, data.shadows, data.config, data.sets)
    html = pages.render(
        "report.html.j2",
        run=data,
        title=str(data.config.get("name") or data.folder.name),
        facts=_facts(data),
        verdict=data.verdict,
        tiles=_tiles(data),
        trends=digest.trends(data.rows),
        steps_text="step" if (width := reading.window(data.rows)) == 1 else f"{width} steps",
        uses=_uses(data.waste),
        word=word_for(data.evals),
        heldout=_heldout(data.of_result, {shadow.name for shadow in data.shadows}),
        observed_in_evals=_observed_in_evals(data.config, data.evals),
        unscored={e.name: _unscored(e, _observed_rewards(data.config) - {e.metric}) for e in data.evals},
        set_headings=SET_HEADINGS,
        sections=sections,
        figures=Markup(
            _figures(
                sections, charts.step_range(data.rows, [*data.evals, *(e for each in data.sets for e in each.evals)])
            )
        ),
        provenance=_shown(data.provenance),
        config_text=(data.folder / CONFIG).read_text(encoding="utf-8"),
        style=Markup((pages.FOLDER / "report.css").read_text(encoding="utf-8")),
        library=Markup(library),
        script=Markup(script),
        hashes=[_script_hash(library), _script_hash(script)],
    )
    return _replace((out or data.folder) / "report.html", html)


def write_reward_png(run: Path, out: Path | None = None) -> Path:
    """Write `reward.png` (1350 x 900 pixels) into the run directory, or into `out`, and return its path.

    Above, the train reward with its 95 % band; below, the held-out accuracy with 95 % intervals and base and
    SFT as reference lines; a panel without data is left out. Raises ValueError and OSError as `write_report`
    does.
    """
    from rlft.curves.png import draw

    run = Path(run)
    config = reading.read_config(run)
    with damage.left_out():  # the page says what
        rows, evals = reading.read_metrics(run), reading.read_evals(run)
    return _replace((out or run) / "reward.png", draw(str(config.get("name") or run.name), rows, evals))


def _load(run: Path) -> _Run:
    config = reading.read_config(run)  # first: it says whether this is a run directory at all
    with damage.left_out() as damaged:
        data = _read(run, config)
    return replace(data, notes=[*data.notes, *(note for note in damaged if note not in data.notes)])


def _read(run: Path, config: Mapping[str, Any]) -> _Run:
    from rlft.curves.alarms import alarms_of  # needs numpy, which a report that is only imported does not

    notes: list[str] = []
    stored = bool(reading.rollout_steps(run))
    rows, evals, health = reading.read_metrics(run, notes), reading.read_evals(run), alarms_of(run)
    events, provenance = reading.read_events(run, notes), logs.read_provenance(run, notes)
    return _Run(
        folder=run,
        config=config,
        rows=rows,
        evals=evals,
        of_result=reading.evals_of_result(run),
        events=events,
        state=state_of(run, rows, events, provenance),
        summary=logs.read_json(run / SUMMARY),
        provenance=provenance,
        waste=digest.waste(reading.read_rollouts(run, digest.WASTE_COLUMNS)) if stored else None,
        samples=showcase(run) if stored else None,
        observed=observed_failures(run, _observed_rewards(config)) if stored else (),
        verdict=verdict_of(run, health),
        health=health,
        shadows=measure_shadows(run, shadow_names(reading.reward_specs(config)), width=reading.window(rows)),
        sets=read_sets(run, config),
        notes=notes,
    )


def _shown(provenance: Provenance) -> str:
    """What the page prints of it: all that is known, but the config, which has a place of its own."""
    known = {name: value for name, value in provenance.as_dict().items() if value and name not in ("config", "format")}
    return json.dumps(known, indent=2, ensure_ascii=False) if known else ""


def _observed_rewards(config: Mapping[str, Any]) -> set[str]:
    """Names of the rewards that have no weight."""
    return {reward.label for reward in reading.reward_specs(config) if reward.weight == 0}


def _observed_in_evals(config: Mapping[str, Any], evals: Sequence[Evaluation]) -> list[tuple[str, int, str]]:
    """(observed reward, held-out samples on which it failed, evaluation), where there are any."""
    rewards = sorted(_observed_rewards(config))
    return [(name, count, e.label) for e in evals for name in rewards if (count := e.failed_parts.get(name, 0))]


def _heldout(
    evals: Sequence[Evaluation], shadows: Collection[str]
) -> tuple[list[str], list[tuple[str, list[Interval | None]]]]:
    """(policies, the mean of each reward and part under each of them, then pass@k and pass^k); empty where there is
    only the headline."""
    shown = [e for e in evals if e.is_before] + [e for e in evals if not e.is_before][-1:]
    names = dict.fromkeys(name for evaluation in shown for name in evaluation.rewards)
    labels = {name: f"{name}, shadow (not trained on)" if name in shadows else name for name in names}
    rows = [(labels[name], [e.rewards.get(name) for e in shown]) for name in names]
    by_k = [{each.k: each for each in passes(e.by_task)} for e in shown]
    for k in sorted({k for known in by_k for k in known}):
        rows.append((f"pass@{k}: one of {k} is right", [known[k].any_right if k in known else None for known in by_k]))
        rows.append((f"pass^{k}: all {k} are right", [known[k].all_right if k in known else None for known in by_k]))
    return ([e.label for e in shown], rows) if len(rows) > 1 else ([], [])


def _facts(run: _Run) -> list[tuple[str, str]]:
    """What was run, for the header; what the config does not say is left out."""

    def value(*path: str) -> Any:
        node: Any = run.config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    rewards = [
        f"{reward.get('name') or reward.get('path')}"
        + (" (shadow)" if reward.get("role") == "shadow" else _factor(reward.get("weight", 1)))
        for reward in value("rewards") or []
        if isinstance(reward, dict)
    ]
    facts = {
        "Model": value("model", "source"),
        "Algorithm": value("algorithm", "preset"),
        "Environment": value("environment", "path"),
        "Rewards": ", ".join(rewards),
        "Loss": value("preference", "loss"),
        "Preferences": value("data", "source"),
        "Seed": value("seed"),
        "Continues": "; ".join(f"{origin['run']}, after step {origin['step']}" for origin in run.provenance.lineage),
    }
    return [(label, str(fact)) for label, fact in facts.items() if fact not in (None, "")]


def _factor(weight: object) -> str:
    return f" \N{MULTIPLICATION SIGN} {weight}" if weight != 1 else ""


def _tiles(run: _Run) -> list[tuple[str, str, str]]:
    """(label, number, remark) of the numbers that are read first."""
    done = int(run.rows[-1]["step"]) if run.rows else 0
    planned = run.config.get("steps") or run.summary.get("steps")
    seconds = [row["time/step"] for row in run.rows if "time/step" in row]
    tiles = [("Steps", f"{done} of {planned}" if planned else str(done), run.state.sentence)]
    if seconds:
        tiles.append(("Training time", duration(run.state.training_s), f"{duration(seconds[-1])} for the last step"))
    if math.isfinite(run.state.wall_s):
        tiles.append(("Wall time", duration(run.state.wall_s), f"{duration(run.state.paused_s)} of it stopped"))
    if run.waste is not None and run.waste.tokens:
        tiles.append(("Sampled", f"{run.waste.tokens:,}", "rollout tokens"))
        tiles.append(("Gave no gradient", percent(run.waste.share), "of the rollout tokens"))
    if run.samples is not None:
        failed = sum(run.samples.failures.values())
        tiles.append(("Not scored", f"{failed:,}", "rollouts whose reward failed"))
    return tiles


def _unscored(evaluation: Evaluation, observed: Collection[str]) -> str:
    """How many samples have no value of the metric, and of each observed reward that failed."""
    parts = [f"{name} {n}" for name, n in evaluation.failed_parts.items() if name in observed]
    return ", ".join([str(evaluation.failed), *parts])


def _uses(waste: digest.Waste | None) -> list[tuple[str, float]]:
    """(what for, share of the rollout tokens), the useful ones first."""
    if waste is None or not waste.tokens:
        return []
    shares = [(cause, count / waste.tokens) for cause, count in waste.causes.items()]
    return [("gave a gradient", 1 - waste.share), *shares]


def _figures(sections: Sequence[charts.Section], steps: tuple[float, float]) -> str:
    """The charts as JSON that can stand in a script element: no tag can begin in it, and it holds no nan."""
    figures = [
        {"data": chart.traces, "layout": chart.layout, "wide": section.wide}
        for section in sections
        for chart in section.charts
    ]
    text = json.dumps({"steps": steps, "figures": figures}, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _replace(path: Path, content: bytes) -> Path:
    """Write a file in one step, so that a reader never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
    return path
