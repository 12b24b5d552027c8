"""The whole page of a run as plain data; `page/page.schema.json` says what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlft.curves import digest, main_chart, reading
from rlft.curves.charts import Chart, sections, step_range
from rlft.curves.page_data import decision, tables
from rlft.curves.page_data.health import health
from rlft.curves.page_data.heldout import heldout
from rlft.curves.page_data.moved import moved
from rlft.curves.page_data.why import why
from rlft.curves.samples import failure_kinds, observed_failures, read_groups, read_light
from rlft.curves.sampling_of_groups import OF_GROUP, SAMPLES, Chosen, choose
from rlft.curves.state import state_of
from rlft.curves.text import percent, shortened
from rlft.curves.verdict import Verdict, verdict_of
from rlft.run import damage, logs
from rlft.run.records import CONFIG, SUMMARY, Evaluation, Event, Provenance

FORMAT = 1
"""Number of the page's JSON form."""
_EVENTS, _CONFIG = 500, 200_000


def page_data(run: Path, *, samples: int = SAMPLES, verdict: Verdict | None = None) -> dict[str, Any]:
    """Everything that the page of a run shows, ended or not; all that is computed is computed here.

    Args:
        run: run directory.
        samples: how many rollouts are shown with their texts; 0 for a page that asks a server for them.
        verdict: that of `verdict_of`, where it is known already.

    A file that is damaged is left out, and the notes say so.

    Raises:
        ValueError: this is not a run directory, or its config is damaged.
    """
    config = reading.read_config(run)  # first: it says whether this is a run directory at all
    with damage.left_out() as damaged:
        data = _read(run, config, samples, verdict or verdict_of(run))
    return {**data, "notes": [*data["notes"], *(note for note in damaged if note not in data["notes"])]}


def _read(run: Path, config: Mapping[str, Any], samples: int, found: Verdict) -> dict[str, Any]:
    notes: list[str] = []
    rows, evals, events = reading.read_metrics(run, notes), reading.read_evals(run), reading.read_events(run, notes)
    summary, provenance = logs.read_json(run / SUMMARY), logs.read_provenance(run, notes)
    light = read_light(run)
    waste = digest.waste(light) if light is not None else None
    failures = failure_kinds(light) if light is not None else None
    found_health, measured, shadows, width = found.health, found.sets, found.shadows, reading.window(rows)
    assert found_health is not None  # `verdict_of` looks at it
    result = reading.evals_of_result(run)
    charts = main_chart.result_charts(rows, evals, shadows, config)
    rail = main_chart.rail(run, events, found_health.alarms)
    observed = {spec.label for spec in reading.reward_specs(config) if spec.weight == 0}
    marked = [(s.step, s.task, f"alarm {alarm.name}") for alarm in found_health.alarms for s in alarm.samples]
    state = state_of(run, rows, events, provenance)
    measurements: Sequence[Evaluation] = [*evals, *(e for each in measured for e in each.evals)]
    back = reading.rolled_back_to(run)
    done = back if back is not None else int(rows[-1]["step"]) if rows else 0
    return {
        "format": FORMAT,
        "name": str(config.get("name") or run.name),
        "run": str(run),
        "facts": decision.facts(config, provenance),
        "state": state.sentence,
        "notes": notes,
        "verdict": decision.verdict(found),
        "bar": decision.bar(found),
        "chips": decision.chips(found, found_health, config, result, done, failures, len(light) if light else 0),
        "tiles": decision.tiles(rows, config.get("steps") or summary.get("steps"), state, waste),
        "gate": decision.gate(run, found),
        "steps": list(step_range(rows, measurements)),
        "result": [{**chart.as_dict(), **({"rail": rail} if at == 0 else {})} for at, chart in enumerate(charts)],
        "why": why(rows, config),
        "moved": moved(run, config, result),
        "shadows": [tables.shadow(each) for each in shadows],
        "health": health(found_health, sections(rows, evals), rows, besides={each.metrics for each in charts}),
        "waste": _waste(waste, rows),
        "evaluations": [
            each
            for each in (
                tables.evaluations(evals, observed, result),
                tables.every_reward(result, {shadow.name for shadow in shadows}),
                tables.trends(rows, width),
            )
            if each is not None
        ],
        "sets": _sets(tables.sets(measured), [c for each in measured for c in main_chart.of_set(each, config)]),
        "observed": _observed(light, observed, evals),
        "failures": {"kinds": failures, "groups": _failed_groups(run, light, failures)} if failures else None,
        "samples": _samples(run, light, choose(light, marked, samples)) if light is not None else None,
        "heldout": heldout(run, result),
        "behind": _behind(run, events, provenance),
    }


def _waste(waste: digest.Waste | None, rows: reading.Rows) -> dict[str, Any] | None:
    """What the rollout tokens that can be read were for, the useful ones first; and how many were sampled in all."""
    if waste is None or not waste.tokens:
        return None
    shares = [("gave a gradient", 1 - waste.share)]
    shares += [(cause, count / waste.tokens) for cause, count in waste.causes.items()]
    uses = [[label, round(share, 6), percent(share)] for label, share in shares]
    return {"tokens": waste.tokens, "sampled": digest.sampled_tokens(rows, waste), "uses": uses}


def _sets(table: Mapping[str, Any] | None, charts: Sequence[Chart]) -> dict[str, Any] | None:
    return {"table": table, "charts": [chart.as_dict() for chart in charts]} if table else None


def _observed(light: Any, observed: set[str], evals: Sequence[Evaluation]) -> dict[str, Any]:
    """Where rewards of weight 0 failed, in training and on held-out samples."""
    failures = observed_failures(light, observed) if light is not None else []
    held = [
        f"observed reward {name} failed on {count} samples of {e.label}"
        for e in evals
        for name in sorted(observed)
        if (count := e.failed_parts.get(name, 0))
    ]
    shown = [
        {**asdict(each), "message": shortened(each.message), "reproduce": shortened(each.reproduce, 20_000)}
        for each in failures
    ]
    return {"training": shown, "heldout": held}


def _failed_groups(run: Path, light: Any, failures: Mapping[str, int]) -> list[dict[str, Any]]:
    """The latest samples that could not be scored, each with its prompt."""
    import pyarrow.compute as pc

    failed = light.filter(pc.equal(light["outcome"], "failed"))
    keys = list(zip(failed["step"].to_pylist(), failed["group_index"].to_pylist(), strict=True))
    latest = list(dict.fromkeys(reversed(keys)))[: max(3, 2 * len(failures))]
    groups = read_groups(run, latest)
    for group in groups:
        group["samples"] = [each for each in group["samples"] if each["outcome"] == "failed"][:3]
    return groups


def _samples(run: Path, light: Any, chosen: Chosen) -> dict[str, Any]:
    """The chosen groups with their texts, the latest first, and out of how many."""
    groups = read_groups(run, sorted(chosen.keys, key=lambda key: (-key[0], key[1])), most=OF_GROUP)
    for group in groups:
        group["why"] = chosen.keys[group["step"], group["group"]]
    shown = sum(len(group["samples"]) for group in groups)
    steps = reading.rollout_steps(run)
    return {"total": len(light), "shown": shown, "steps": [steps[0], steps[-1]], "groups": groups}


def _behind(run: Path, events: Sequence[Event], provenance: Provenance) -> dict[str, Any]:
    """Events, config and provenance."""
    known = {name: value for name, value in provenance.as_dict().items() if value and name not in ("config", "format")}
    told = [[e.time, "" if e.step is None else str(e.step), e.kind, shortened(e.message)] for e in events[-_EVENTS:]]
    return {
        "events": told,
        "event_count": len(events),
        "config": shortened((run / CONFIG).read_text(encoding="utf-8"), _CONFIG),
        "provenance": shortened(json.dumps(known, indent=2, ensure_ascii=False), _CONFIG) if known else "",
    }
