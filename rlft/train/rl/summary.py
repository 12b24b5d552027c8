"""The result of an RL run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlft.curves.shadow import shadow_names
from rlft.curves.verdict import verdict_of
from rlft.run.directory import Run
from rlft.run.records import Evaluation, adapter_folder, step_name, word_for
from rlft.run.summaries import RLSummary
from rlft.train.rl.evaluate import headline


def summarize(run: Run, step: int | None = None) -> RLSummary:
    """Write the result, the report and the picture of a run that has ended; the result, as `summary.json` holds it.

    Args:
        step: whose adapter is the result; the last one if not given.
    """
    from rlft.curves.report import write_report, write_reward_png

    config = run.config
    step = config.steps if step is None else step
    names = {"base": "base", "sft": "sft", "rl": step_name(step)}
    base, sft, trained = (run.evaluation(name) for name in names.values())
    summary: RLSummary = {
        "name": config.name,
        "metric": headline(config),
        "steps": step,
        "accuracy_base": base.accuracy.as_dict() if base else None,
        "accuracy_sft": sft.accuracy.as_dict() if sft else None,
        "accuracy_rl": trained.accuracy.as_dict() if trained else None,
        "failed_base": base.failed if base else None,
        "failed_sft": sft.failed if sft else None,
        "failed_rl": trained.failed if trained else None,
        "word": word_for(each for each in (base, sft, trained) if each),
        "rewards_base": _rewards(base),
        "rewards_sft": _rewards(sft),
        "rewards_rl": _rewards(trained),
        "adapter": adapter_folder(step),
    }
    if config.evaluations:
        summary["evaluations"] = {
            each.name: _of_set({key: run.evaluation(name, each.name) for key, name in names.items()})
            for each in config.evaluations
        }
    if shadow_names(config.rewards):
        stages = {"base": base, "sft": sft, "rl": trained}
        summary["shadow"] = {
            each.name: {
                **{key: _mean(evaluation, each.name) for key, evaluation in stages.items()},
                "gap": each.moved[-1][1].gap.interval.as_dict() if each.moved else None,
                "sentence": each.sentence,
            }
            for each in verdict_of(run.path).shadows
        }
    run.write_summary(summary)
    write_report(run.path)
    write_reward_png(run.path)
    return summary


def _of_set(policies: Mapping[str, Evaluation | None]) -> dict[str, Any]:
    known = [each for each in policies.values() if each]
    means = {key: each.accuracy.as_dict() if each else None for key, each in policies.items()}
    return {"metric": known[0].metric, "word": word_for(known), **means}


def _mean(evaluation: Evaluation | None, name: str) -> dict[str, float | int | None] | None:
    mean = evaluation.rewards.get(name) if evaluation else None
    return mean.as_dict() if mean else None


def _rewards(evaluation: Evaluation | None) -> dict[str, dict[str, float | int | None]] | None:
    return {name: mean.as_dict() for name, mean in evaluation.rewards.items()} if evaluation else None
