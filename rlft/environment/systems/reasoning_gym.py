"""Tasks of reasoning-gym (https://github.com/open-thought/reasoning-gym): over a hundred generators with scorers.

Single-turn data. `rewards.reasoning_gym_score:reasoning_gym_score` scores it with the data set's own scorer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.environment.contract import Environment
from rlft.environment.systems.common import EpisodeRandom, require
from rlft.types import Message, Task

EXTRA = "environments"
_DRAWS = 20
"""Draws for each wanted problem before there are held to be no more: small data sets repeat themselves."""


def load(
    name: str,
    size: int = 500,
    heldout: int = 100,
    demonstrations: int = 0,
    seed: int = 0,
    prompt: str = "{question}",
    reply: str = "{answer}",
    system: str = "",
    **config: Any,
) -> Environment:
    """Distinct problems of the data set `name`; held-out, demonstrated and training problems are disjoint.

    Args:
        size: training problems.
        heldout: held-out problems.
        demonstrations: problems with the right reply for the SFT stage.
        seed: of the generator.
        prompt: template of the user's message over `question`.
        reply: template of a demonstration over `answer`.
        system: system message; "" leaves it out.
        **config: the data set's own settings, such as `max_terms`.

    Raises:
        ValueError: there is no such data set or setting, it refuses the settings, or has fewer distinct problems.
    """
    factory = require("reasoning_gym.factory", EXTRA)
    _check(name, config, factory.DATASETS)
    wanted = size + heldout + demonstrations
    if "{question}" not in prompt:
        raise ValueError(f"prompt: {prompt!r} does not contain {{question}}")
    try:
        dataset = factory.create_dataset(name, seed=seed, size=_DRAWS * wanted, **_typed(name, config))
    except AssertionError as error:
        raise ValueError(f"reasoning_gym:{name} refuses its settings: {error}") from None
    found = list(_distinct(dataset, wanted, seed))
    if len(found) < wanted:
        raise ValueError(
            f"reasoning_gym:{name} with these settings has no more than {len(found)} distinct problems in "
            f"{_DRAWS * wanted} draws, but size, heldout and demonstrations ask for {wanted}; ask for fewer, or widen "
            "its settings"
        )
    messages = [_messages(prompt, system, item["question"]) for _, item in found]
    tasks = [
        Task(
            id=f"{name}-{index}",
            messages=prompt_,
            answer=item["answer"],
            columns={
                "dataset": name,
                "dataset_config": config,
                "question": item["question"],
                "metadata": item["metadata"],
            },
        )
        for (index, item), prompt_ in zip(found, messages, strict=True)
    ]
    shown = slice(heldout, heldout + demonstrations)
    if any(task.answer is None for task in tasks[shown]):
        raise ValueError(f"demonstrations: reasoning_gym:{name} has problems without a written answer; set 0")
    return Environment(
        heldout=tasks[:heldout],
        demonstrations=[
            (*task.messages, Message(role="assistant", content=reply.replace("{answer}", task.answer)))
            for task in tasks[shown]
        ],
        train=tasks[heldout + demonstrations :],
    )


def _distinct(dataset: Any, wanted: int, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Items that ask something new, with their numbers. A few generators draw from the global random numbers."""
    seen: set[str] = set()
    with EpisodeRandom(seed):
        for index in range(len(dataset)):
            item = dataset[index]
            if item["question"] in seen:
                continue
            seen.add(item["question"])
            yield index, item
            if len(seen) == wanted:
                return


def _messages(prompt: str, system: str, question: str) -> tuple[Message, ...]:
    user = Message(role="user", content=prompt.replace("{question}", question))
    return (Message(role="system", content=system), user) if system else (user,)


def _check(name: str, config: dict[str, Any], datasets: Any) -> None:
    if name not in datasets:
        raise ValueError(
            f"reasoning_gym has no data set {name!r}.{did_you_mean(name, datasets)} "
            f"It has: {', '.join(sorted(datasets))}."
        )
    settings = [field.name for field in dataclasses.fields(datasets[name][1]) if field.name not in ("seed", "size")]
    for key in config:
        if key not in settings:
            raise ValueError(
                f"reasoning_gym:{name} has no setting {key!r}.{did_you_mean(key, settings)} "
                f"It has: {', '.join(settings)}."
            )


def _typed(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The settings as the data set wants them: a composite's parts are objects of its own."""
    if name != "composite":
        return config
    spec = require("reasoning_gym.composite", EXTRA).DatasetSpec
    return {**config, "datasets": [spec(**part) for part in config.get("datasets", ())]}
