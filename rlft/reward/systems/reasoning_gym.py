"""Scorers of reasoning-gym (https://github.com/open-thought/reasoning-gym): each data set scores its answers.

Tasks need the columns `question` and `metadata` of its entries. `args.extract` says what of the reply is scored: all of
it, what stands in its `<answer>` tags (`answer_tag`), or its last number; other `args` are settings of the data set.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.reward.contract import RewardFunction
from rlft.reward.systems.common import adapt

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?")


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

    def arguments(offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        entry = {key: offered[key] for key in ("question", "answer", "metadata")}
        return [take(offered["completion"]), entry], {}

    return adapt(scorer, arguments, takes=("completion", "answer", "question", "metadata"))


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


def _last_number(completion: str) -> str | None:
    found = _NUMBER.findall(completion)
    return found[-1] if found else None


def _tagged(completion: str) -> str | None:
    found = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return found[0].strip() if len(found) == 1 else None


_EXTRACT: Mapping[str, Callable[[str], str | None]] = {
    "strict": str.strip,
    "answer_tag": _tagged,
    "last_number": _last_number,
}
