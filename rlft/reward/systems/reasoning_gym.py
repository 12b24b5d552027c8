"""Scorers of reasoning-gym (https://github.com/open-thought/reasoning-gym): each data set scores its answers.

Tasks need the columns `question` and `metadata` of its entries. `args.extract` says what of the reply is scored: all of
it, what stands in its `<answer>` tags (`answer_tag`), or its last number; other `args` are settings of the data set.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.reward.contract import RewardFunction
from rlft.reward.extract import last_number, tagged
from rlft.reward.systems.common import describe

_EXTRACT: Mapping[str, Callable[[str], str | None]] = {
    "strict": str.strip,
    "answer_tag": tagged,
    "last_number": last_number,
}


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The scorer of the data set `name`.

    Raises:
        ValueError: the package is not installed, or there is no such data set, setting or way to extract.
    """
    where, settings = f"reward reasoning_gym:{name}", dict(args)
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(f"{where}: the package 'reasoning_gym' is not installed: pip install 'rlft[environments]'")
    extract = settings.pop("extract", "strict")
    if extract not in _EXTRACT:
        raise ValueError(f"{where}: args.extract is one of {', '.join(_EXTRACT)}, got {extract!r}")
    take = _EXTRACT[extract]
    scorer = _scorer(name, settings, where)

    def reward(completion: str, **entry: Any) -> float:
        found = take(completion)
        return 0.0 if found is None else float(scorer(found, entry))

    return describe(reward, scorer, takes=("completion", "answer", "question", "metadata"))


def _scorer(name: str, settings: Mapping[str, Any], where: str) -> Callable[..., Any]:
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        raise ValueError(f"{where}: there is no such data set.{did_you_mean(name, DATASETS)}")
    own = {key: value for key, value in settings.items() if key not in ("seed", "size")}
    if name == "composite":
        own["datasets"] = [DatasetSpec(**part) for part in own.get("datasets", ())]
    try:
        scorer: Callable[..., Any] = create_dataset(name, seed=0, size=1, **own).score_answer
    except Exception as error:
        raise ValueError(f"{where}: its data set refuses `args`: {error}") from error
    return scorer
