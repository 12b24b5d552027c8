"""Configs of run directories that an earlier rlft wrote, in the form of today.

Only records are translated: in a user's own file an outdated key is an error that says what to write instead.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import asdict
from typing import Any, get_args

from rlft.objectives.algorithm import Loss, PreferenceObjective


def modernise(tree: MutableMapping[str, Any]) -> None:
    """Rewrite, in place, what an earlier version wrote otherwise; a config of today stays as it is.

    `algorithm` once held preference losses too, as a `surrogate` whose beta was `kl_coef`. Every kind of run had
    `learner.critic_lr` and `adapter.start`. There was one environment, and every reward was for it.

    Args:
        tree: the whole config as plain data, or as `config_file` parsed it.
    """
    algorithm = tree.get("algorithm")
    if isinstance(algorithm, MutableMapping) and "surrogate" in algorithm:
        if algorithm["surrogate"] in get_args(Loss):
            tree["algorithm"] = asdict(
                PreferenceObjective(
                    preset="online_dpo",
                    loss=algorithm["surrogate"],
                    beta=algorithm.get("kl_coef", 0.1),
                    label_smoothing=algorithm.get("label_smoothing", 0.0),
                    overlong=algorithm.get("overlong", "count"),
                    max_refills=algorithm.get("max_refills", 0),
                )
            )
        else:
            algorithm.pop("label_smoothing", None)
    environment, rewards = tree.get("environment"), tree.get("rewards")
    if isinstance(environment, MutableMapping):
        environment.setdefault("mix", [])
    for reward in rewards if isinstance(rewards, list) else ():
        if isinstance(reward, MutableMapping):
            reward.setdefault("only", [])
    for kind, section, key in (("dpo", "learner", "critic_lr"), ("reward-model", "adapter", "start")):
        if tree.get("kind") == kind and isinstance(tree.get(section), MutableMapping):
            tree[section].pop(key, None)
