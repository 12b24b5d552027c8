"""Which evaluations of a run its fork may keep: those that the fork would measure the same.

An evaluation of the base model or of an adapter rests on what is asked, how it is answered and what scores it, not on
how the policy was trained. Where any of that changed, the numbers of before would be compared with those of something
else, so the fork measures base and start again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlft.run.provenance import by_name, decides_nothing, differences, tasks_of_set
from rlft.run.records import Provenance

_TRAINING = ("learner", "steps", "epochs", "guards", "checkpoint")
"""Settings that change what becomes of a policy, but not how it is measured."""
_TRAINING_BY_REWARDS = (
    "algorithm",
    "reference",
    "tasks_per_step",
    "updates_per_step",
    "max_staleness",
    "environment.order",
    "sampling.temperature",
    "sampling.top_p",
    "sampling.top_k",
    "sampling.min_p",
    "rollout.update_in_flight",
    "sft",
    "adapter.start",
)
"""More of them where rewards measure; with preferences the evaluation's loss rests on the algorithm, too."""
_START = ("sft", "adapter.start")
"""What makes the adapter that RL starts from."""


def same_evaluations(then: Provenance, now: Provenance) -> list[str]:
    """Names of the evaluation sets that measure the same as before, if perhaps not as often; `evaluation` is "".

    Of hashes that were not written down nothing is known, and they count as equal.
    """
    keys = [key for key in _changed_keys(then, now) if not _is_below(key, _only_train(now.config))]
    files, of_tasks = _changed_files(then, now), _task_files(then.config, now.config)
    elsewhere = [key for key in keys if not _is_below(key, ("environment", "evaluation", "evaluations"))]
    if elsewhere or files - of_tasks - _start_files(then, now) or _differ(then.model, now.model):
        return []
    environments = {path for each in (then, now) for path in _paths(each.config.get("environment"))}
    has_own_tasks = not (
        any(_is_below(key, ("environment",)) for key in keys) or files & environments or _differ(then.tasks, now.tasks)
    )
    is_evaluation = has_own_tasks and not any(_is_below(key, ("evaluation",)) for key in keys)
    old, new = _sets(then.config), _sets(now.config)
    return [
        *([""] if is_evaluation else []),
        *(
            name
            for name, each in new.items()
            if old.get(name) == each
            and not files & {*_paths(each["environment"]), tasks_of_set(name)}
            and (has_own_tasks or each["environment"])
        ),
    ]


def is_same_start(then: Provenance, now: Provenance) -> bool:
    """Whether RL starts from the same adapter, so that its evaluations are those of the start."""
    keys = [key for key in _changed_keys(then, now) if _is_below(key, _START)]
    return not keys and (now.config.get("adapter") or {}).get("start", "") not in _changed_files(then, now)


def _changed_keys(then: Provenance, now: Provenance) -> list[str]:
    return [key for key, _, _ in differences(then.config, now.config) if not decides_nothing(key)]


def _changed_files(then: Provenance, now: Provenance) -> set[str]:
    return {name for name in {*then.sha256} & {*now.sha256} if then.sha256[name] != now.sha256[name]}


def _differ(old: str, new: str) -> bool:
    return bool(old and new and old != new)


def _only_train(config: Mapping[str, Any]) -> tuple[str, ...]:
    return (*_TRAINING, *_TRAINING_BY_REWARDS) if "rewards" in config else _TRAINING


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _paths(environment: Mapping[str, Any] | None) -> Iterator[str]:
    """What the config calls the sources of an environment's tasks, as `Provenance.sha256` names them."""
    for each in (environment, *environment.get("mix", ())) if environment else ():
        if each.get("path"):
            yield each["path"]


def _task_files(*configs: Mapping[str, Any]) -> set[str]:
    """Names in `Provenance.sha256` of all that makes tasks, the run's and those of sets."""
    found = {path for config in configs for path in _paths(config.get("environment"))}
    for config in configs:
        for name, each in by_name(config.get("evaluations")).items():
            found |= {*_paths(each.get("environment")), tasks_of_set(name)}
    return found


def _start_files(*made: Provenance) -> set[str]:
    """Names in `Provenance.sha256` of folders that a policy trained by rewards begins at or is held to."""
    configs = [each.config for each in made if "rewards" in each.config]
    return {name for c in configs for name in ((c.get("adapter") or {}).get("start", ""), c.get("reference", ""))}


def _sets(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The evaluation sets with the metric that they measure, however often."""
    default = (config.get("evaluation") or {}).get("metric", "")
    return {
        name: {**each, "every": 0, "metric": each.get("metric") or default, "environment": each.get("environment")}
        for name, each in by_name(config.get("evaluations")).items()
    }
