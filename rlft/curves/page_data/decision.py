"""What is read first: the decision with its interval, four chips with their evidence, facts and numbers."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft.curves import digest
from rlft.curves.doubts import OF_HACKING
from rlft.curves.marks import short
from rlft.curves.reading import reward_specs
from rlft.curves.shadow import shadow_names
from rlft.curves.state import State
from rlft.curves.text import counted, duration, interval_text, percent
from rlft.curves.verdict import Verdict
from rlft.run.records import BEFORE_TRAINING, Evaluation, Provenance

if TYPE_CHECKING:
    from rlft.curves.alarms import Health

Chip = dict[str, Any]
"""`id`, `label`, `value`, `tone` (good, bad, unsure, none), `evidence` (sentences), `section` (where there is more)."""


def verdict(found: Verdict) -> dict[str, Any]:
    """The verdict for the page, with the interval of its effect in words."""
    told = {**found.as_dict(), "kind": found.kind, "word": found.word}
    told["reasons"] = [each for each in told["reasons"] if each["says"] != found.sentence]
    if found.effect is not None:
        change, level = found.effect.change.interval, found.effect.change.level
        told["effect"]["text"] = interval_text(change, "+")
        told["effect"]["level_text"] = f"{100 * level:.4g} % interval"
        told["effect"]["stage"] = found.effect.after.stage
        told["effect"]["labels"] = [found.effect.before.label, found.effect.after.label]
        told["effect"]["why_none"] = found.effect.change.why_none
    return told


def chips(
    found: Verdict,
    health: Health,
    config: Mapping[str, Any],
    evals: Sequence[Evaluation],
    done: int,
    failures: Mapping[str, int] | None,
    rollouts: int,
) -> list[Chip]:
    """Healthy, hacked, age of the evaluation, missing scores; each says what it rests on.

    Args:
        found: the verdict.
        health: what the alarms say, of all steps.
        config: the resolved config.
        evals: all evaluations.
        done: the last step.
        failures: rollouts that could not be scored, by kind; None where no rollouts are stored.
        rollouts: how many are stored.
    """
    return [
        _healthy(health),
        _hacked(found, found.of_result or health, config),
        _age(found, evals, done),
        _missing(found, evals, failures, rollouts),
    ]


def _chip(name: str, label: str, value: str, tone: str, evidence: Iterable[str], section: str) -> Chip:
    return {
        "id": name,
        "label": label,
        "value": value,
        "tone": tone,
        "evidence": [each for each in evidence if each],
        "section": section,
    }


def _healthy(health: Health) -> Chip:
    alarms = health.alarms
    critical = sum(alarm.severity == "critical" for alarm in alarms)
    if alarms:
        value = f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}" + (f", {critical} critical" if critical else "")
        evidence = [f"{a.severity.capitalize()}: {a.line}. {a.meaning} {a.advice}" for a in alarms]
        return _chip("healthy", "Healthy", value, "bad" if critical else "unsure", evidence, "health")
    if health.state == "cant_tell":
        if health.steps >= 20:
            says = "Files of samples that a shadow reward is read from are damaged; no alarm is raised."
            return _chip("healthy", "Healthy", "can't tell", "unsure", [says, *health.notes], "health")
        few = f"{counted(health.steps, 'step')} {'is' if health.steps == 1 else 'are'}"
        says = f"{few} too few to say that nothing is wrong; no alarm is raised."
        return _chip("healthy", "Healthy", "too short to tell", "none", [says], "health")
    unable = [f"{each.name} cannot be told: {each.reason}" for each in health.unable]
    return _chip(
        "healthy", "Healthy", "yes", "good", [f"No alarm in {counted(health.steps, 'step')}.", *unable], "health"
    )


def _hacked(found: Verdict, health: Health, config: Mapping[str, Any]) -> Chip:
    about = [each for each in found.reasons if each.code in ("shadow", "observed")]
    alarms = [alarm for alarm in health.alarms if alarm.name in OF_HACKING]
    evidence = [*(each.says for each in about), *(f"Alarm: {alarm.line}. {alarm.meaning}" for alarm in alarms)]
    specs = reward_specs(config)
    if any(each.weight == "against" for each in about) or any(
        alarm.name == "shadow_gap" and alarm.severity == "critical" for alarm in alarms
    ):
        return _chip("hacked", "Hacked?", "likely", "bad", evidence, "shadows")
    is_cleared = any(each.weight == "for" for each in about)
    is_alarming = any(alarm.severity == "critical" or not is_cleared for alarm in alarms)
    if is_alarming or any(each.weight == "doubt" for each in about):
        return _chip("hacked", "Hacked?", "maybe", "unsure", evidence, "shadows")
    if is_cleared:
        return _chip("hacked", "Hacked?", "no sign", "good", evidence, "shadows")
    if shadow_names(specs):
        says = "A shadow reward watches, and what it says is not conclusive."
        return _chip("hacked", "Hacked?", "can't tell", "unsure", [*evidence, says], "shadows")
    if observed := [each.label for each in specs if each.weight == 0]:
        says = f"Observed and not trained on: {', '.join(observed)}; none of them fell beyond chance."
        return _chip("hacked", "Hacked?", "no sign", "good", [*evidence, says], "why")
    says = (
        "No reward watches that is not trained on, so nothing can show that the reward is earned without what is "
        "wanted. Give a reward `role: shadow`, or read the samples below."
    )
    return _chip("hacked", "Hacked?", "nobody watches", "none", [says], "samples")


def _age(found: Verdict, evals: Sequence[Evaluation], done: int) -> Chip:
    trained = [each for each in evals if not each.is_before]
    if not trained:
        says = "Nothing has been measured on held-out tasks after training began."
        return _chip("age", "Last evaluation", "none yet", "unsure", [says], "evaluations")
    last, late = trained[-1], [each.says for each in found.reasons if each.code in ("age", "collapse", "rolled_back")]
    behind = max(0, done - last.step)
    value = f"step {last.step} of {done}" if behind else f"step {last.step}, the last"
    says = f"The last evaluation is {last.label}: {interval_text(last.accuracy)} over {last.accuracy.n} tasks."
    is_late = any(each.code in ("age", "collapse") for each in found.reasons)
    return _chip("age", "Last evaluation", value, "unsure" if is_late else "good", [says, *late], "evaluations")


def _missing(found: Verdict, evals: Sequence[Evaluation], failures: Mapping[str, int] | None, rollouts: int) -> Chip:
    heldout = [f"{each.label}: {each.missing}." for each in evals if each.missing]
    about = [each for each in found.reasons if each.code == "missing"]
    evidence = [*(each.says for each in about), *heldout]
    failed = sum((failures or {}).values())
    if failures is not None:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in failures.items())
        told = f"{failed:,} of {rollouts:,} rollouts could not be scored{f' ({kinds})' if kinds else ''}"
        evidence.append(f"{told}; they are in no number.")
    if any(each.weight == "doubt" for each in about):
        return _chip("missing", "Missing scores", "too many held out", "bad", evidence, "failures")
    if heldout or failed:
        value = f"{failed:,} rollouts" if failed else f"{evals[-1].failed or max(e.failed for e in evals)} held out"
        return _chip("missing", "Missing scores", value, "unsure", evidence, "failures")
    if failures is None and not evals:
        return _chip("missing", "Missing scores", "nothing scored yet", "none", ["No samples are stored."], "failures")
    return _chip(
        "missing", "Missing scores", "none", "good", evidence or ["Every held-out sample has a score."], "failures"
    )


def facts(config: Mapping[str, Any], provenance: Provenance) -> list[list[str]]:
    """What was run; what the config does not say is left out."""

    def value(*path: str) -> Any:
        node: Any = config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    rewards = [
        f"{reward.get('name') or reward.get('path')}"
        + (" (shadow)" if reward.get("role") == "shadow" else _factor(reward.get("weight", 1)))
        for reward in value("rewards") or []
        if isinstance(reward, dict)
    ]
    told = {
        "Model": value("model", "source"),
        "Algorithm": value("algorithm", "preset"),
        "Environment": value("environment", "path"),
        "Rewards": ", ".join(rewards[:12]) + (f" and {len(rewards) - 12} more" if len(rewards) > 12 else ""),
        "Loss": value("preference", "loss"),
        "Preferences": value("data", "source"),
        "Seed": value("seed"),
        "Continues": "; ".join(f"{origin['run']}, after step {origin['step']}" for origin in provenance.lineage),
    }
    return [[label, str(fact)] for label, fact in told.items() if fact not in (None, "")]


def tiles(
    rows: Sequence[Mapping[str, float]], planned: Any, state: State, waste: digest.Waste | None
) -> list[dict[str, str]]:
    """Numbers of the run as a whole: `label`, `value`, `remark`."""
    done = int(rows[-1]["step"]) if rows else 0
    seconds = [row["time/step"] for row in rows if "time/step" in row]
    found = [("Steps", f"{done} of {planned}" if planned else str(done), state.sentence)]
    if seconds:
        found.append(("Training time", duration(state.training_s), f"{duration(seconds[-1])} for the last step"))
    if math.isfinite(state.wall_s):
        found.append(("Wall time", duration(state.wall_s), f"{duration(state.paused_s)} of it stopped"))
    if waste is not None and waste.tokens:
        tokens = digest.sampled_tokens(rows, waste)
        is_all = tokens == waste.tokens
        of_all = "of the rollout tokens" if is_all else f"of the {waste.tokens:,} tokens that can be read"
        found.append(("Sampled", f"{tokens:,}", "rollout tokens"))
        found.append(("Gave no gradient", percent(waste.share), of_all))
    return [{"label": label, "value": value, "remark": remark} for label, value, remark in found]


def gate(run: Path, found: Verdict) -> dict[str, str] | None:
    """The command that makes the decision a check of a script; None where there is nothing to compare."""
    if found.effect is None:
        return None
    start, last, least = found.effect.before, found.effect.after, found.effect.min_effect
    before = f"{run}@{start.name}" if start.name in BEFORE_TRAINING else str(run)
    margin = least if least > 0 else 0.01
    command = f"rlft gate {shlex.quote(before)} {shlex.quote(str(run))} --min-effect {margin:g}"
    says = (
        f"Exits with 0 if the run did not lose {margin:g} or more against {start.label}, with 1 if it got worse, with "
        f"2 if that cannot be told (evaluation of step {last.step}). Put the run that is in use in the first place to "
        f"gate a candidate against it. It asks for no loss; the verdict above asks for a gain of more than {least:g}."
    )
    return {"command": command, "says": says}


def bar(found: Verdict) -> dict[str, Any] | None:
    """The effect on a line: bounds, mean, the smallest effect of interest and the ends of the axis."""
    if found.effect is None or not math.isfinite(found.effect.change.interval.mean):
        return None
    change, least = found.effect.change.interval, found.effect.min_effect
    ends = [v for v in (change.low, change.mean, change.high, -least, least, 0.0) if math.isfinite(v)]
    air = 0.12 * (max(ends) - min(ends) or 1.0)
    return {
        "mean": short(change.mean),
        "low": short(change.low),
        "high": short(change.high),
        "min_effect": least,
        "ends": [short(min(ends) - air), short(max(ends) + air)],
    }


def _factor(weight: object) -> str:
    return f" \N{MULTIPLICATION SIGN} {weight}" if weight != 1 else ""
