"""Scored by reasoning-gym: each of its data sets knows which answers are right, and how nearly so."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Literal

from rlft.reward.extract import last_number, tagged


def reasoning_gym_score(
    completion: str,
    answer: Any,
    question: str,
    metadata: Mapping[str, Any],
    dataset: str,
    dataset_config: Mapping[str, Any],
    extract: Literal["strict", "last_number", "answer_tag"] = "strict",
) -> float:
    """The data set's own score, 0 to 1, of what `extract` takes from the reply.

    `strict` takes the whole reply, `answer_tag` what its `<answer>` tags agree on, `last_number` its last number.
    Many scorers want the bare answer, which a small model hardly ever writes: with `strict` all samples of a group may
    score 0 and nothing is learnt, where the right number stands at the end of a fifth of them.

    It is as hard to cheat as the data set's scorer: some give a little for any number, or for the answer within a
    longer text, so look at what a wrong reply gets (`rlft reward try`). `extract` settles on one answer before the
    scorer is asked: tags that differ are none, and of several numbers the last one counts.
    """
    found = _EXTRACT[extract](completion)
    if found is None:
        return 0.0
    entry = {"question": question, "answer": answer, "metadata": dict(metadata)}
    return float(_scorer(dataset, json.dumps(dataset_config, sort_keys=True))(found, entry))


@functools.cache
def _scorer(dataset: str, config: str) -> Any:
    """A scorer may depend on the settings that the problem was made with."""
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import create_dataset

    settings = json.loads(config)
    if dataset == "composite":
        settings["datasets"] = [DatasetSpec(**part) for part in settings["datasets"]]
    return create_dataset(dataset, seed=0, size=1, **settings).score_answer


def _whole(completion: str) -> str:
    return completion.strip()


_EXTRACT = {"strict": _whole, "last_number": last_number, "answer_tag": tagged}
