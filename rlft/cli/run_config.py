"""Configs as the commands read them: of an RL run together with its engine's part, and told from other commands'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from rlft import config_file
from rlft.config import BaseRunConfig, RunConfig
from rlft.rollout.engines.by_name import engine_problems
from rlft.rollout.engines.traits import ENGINES

C = TypeVar("C", bound=BaseModel)


def load(path: Path, overrides: Sequence[str] | None, *, is_trained: bool = True, instead: str = "") -> RunConfig:
    """Read a config file, and refuse what its engine cannot do.

    Args:
        overrides: `key.sub=value`.
        is_trained: whether a policy is trained with it, else it is only measured.
        instead: what to do with the config of another command, for the error.

    Raises:
        ValueError: the problems, each with file, line, key and what to do instead.
    """
    return load_kind(path, overrides, RunConfig, check=partial(engine_problems, is_trained=is_trained), instead=instead)


def load_kind(
    path: Path,
    overrides: Sequence[str] | None,
    kind: type[C],
    *,
    check: Callable[[C], Iterable[config_file.Problem]] | None = None,
    instead: str = "",
) -> C:
    """Read a config file of one command; arguments and errors as of `config_file.load` and `load`.

    Raises:
        ValueError: also if it looks like the config of another command, which then is all that is said.
    """
    try:
        return config_file.load(path, overrides or [], kind, check=check)
    except ValueError:
        if command := _other_command(path, kind):
            told = f"{path}: this looks like a config of `rlft {command}`"
            raise ValueError(f"{told}; {instead}" if instead else told) from None
        raise


def load_any(path: Path, overrides: Sequence[str] | None) -> BaseRunConfig:
    """Read the config of whichever command its keys fit best; errors as of `load`."""
    command = _other_command(path, RunConfig)
    return load_kind(path, overrides, _kinds()[command]) if command else load(path, overrides)


def _kinds() -> dict[str, type[BaseRunConfig]]:
    """The config of each command; of those that a file fits alike the first one counts."""
    from rlft.train.head.config import HeadConfig
    from rlft.train.preference.config import PreferenceConfig
    from rlft.train.reward_model.config import RewardModelConfig
    from rlft.train.supervised.config import SupervisedConfig

    return {
        "train": RunConfig,
        "sft": SupervisedConfig,
        "dpo": PreferenceConfig,
        "reward-model": RewardModelConfig,
        "head": HeadConfig,
    }


def _other_command(path: Path, kind: type[BaseModel]) -> str:
    """The command whose config has the keys of a file, if they do not fit `kind`; else empty."""
    keys, kinds = config_file.keys(path), _kinds()

    def misfits(other: type[BaseModel]) -> int:
        fields = other.model_fields
        return len(keys - fields.keys()) + sum(
            field.is_required() and name not in keys for name, field in fields.items()
        )

    best = min(kinds, key=lambda command: misfits(kinds[command]))
    return best if keys and misfits(kinds[best]) < misfits(kind) else ""


def load_run(run: Path, overrides: Sequence[str] | None, *, is_trained: bool = True) -> RunConfig:
    """Read the config of a run directory, and refuse what its engine cannot do; arguments and errors as of `load`."""
    from rlft.run.directory import read_config

    return read_config(run, RunConfig, overrides or [], check=partial(engine_problems, is_trained=is_trained))


def schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors, with the engines and their arguments."""
    tree = config_file.schema()
    rollout = tree["$defs"]["RolloutConfig"]["properties"]
    rollout["engine"]["enum"] = list(ENGINES)
    kinds = [traits.arguments for traits in ENGINES.values()]
    tree["$defs"] |= {kind.__name__: kind.model_json_schema() for kind in kinds}
    documented = {key: rollout["engine_args"][key] for key in ("title", "description")}
    rollout["engine_args"] = {**documented, "anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds]}
    return tree
