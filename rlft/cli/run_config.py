"""The config of an RL run together with its engine's part, which the engines define."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlft import config_file
from rlft.config import RunConfig
from rlft.rollout.engines.by_name import engine_problems
from rlft.rollout.engines.traits import ENGINES


def load(path: Path, overrides: Sequence[str] | None, *, is_trained: bool = True) -> RunConfig:
    """Read a config file, and refuse what its engine cannot do.

    Args:
        overrides: `key.sub=value`.
        is_trained: whether a policy is trained with it, else it is only measured.

    Raises:
        ValueError: the problems, each with file, line, key and what to do instead.
    """
    return config_file.load(path, overrides or [], check=partial(engine_problems, is_trained=is_trained))


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
