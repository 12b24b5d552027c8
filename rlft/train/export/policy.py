"""The policy that a run has made, and whether its adapter is the one that the run recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlft.config import PolicyRunConfig
from rlft.curves import reading
from rlft.model.adapter import adapter_hash, read_folder
from rlft.model.starting_point import refuse_other_scale, resolve_model
from rlft.run.records import HEAD, REWARD_MODEL, step_name, step_of
from rlft.types import Message

NO_POLICY = (REWARD_MODEL, HEAD)
"""Kinds of runs that train something else, in a folder of the same name."""
NEUTRAL = (Message(role="user", content="What is six times seven? Explain your answer."),)
"""The canary's prompt where a run has no rollouts to take one from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One of a run's adapters with what it belongs to."""

    run: Path
    """The run's directory."""
    config: PolicyRunConfig
    """The model and the adapter's settings; what else the run's config says is not needed here."""
    model_folder: Path
    """Folder of the base model."""
    folder: Path
    """The adapter's own folder, or the trained model's for `full`."""
    tensors: dict[str, Tensor]
    hash: str
    """Content hash of the tensors, as samples and evaluations of the run name it."""

    @property
    def name(self) -> str:
        """`NAME-v000012`: what the exported folder is called."""
        return f"{self.config.name}-{self.folder.name}"

    @property
    def is_full(self) -> bool:
        """Whether all weights were trained, so that there is a model and no adapter."""
        return self.config.adapter.kind == "full"


def find_policy(run: Path, adapter: str = "") -> Policy:
    """Read an adapter of a run, by default its result.

    Args:
        adapter: its name, see `reading.adapter_of`.

    Raises:
        ValueError: this is no run of a policy; there is no such adapter; or it is damaged, scaled otherwise than the
            config says, or another one than the run evaluated and signed under its name.
    """
    tree = reading.read_config(run)
    if (kind := tree.get("kind", "rl")) in NO_POLICY:
        raise ValueError(
            f"{run} is a run of kind {kind} and has no policy; plain peft and transformers load its folder as it is: "
            f"{run / kind}"
        )
    known = {key: tree[key] for key in PolicyRunConfig.model_fields if key in tree}
    try:
        config = PolicyRunConfig.model_validate(known)
    except ValueError as error:
        raise ValueError(f"{run / 'config.yaml'} is not the config of a run of a policy ({kind}): {error}") from error
    folder = reading.adapter_of(run, adapter)
    refuse_other_scale(folder, config)
    tensors = read_folder(folder)
    found = adapter_hash(tensors)
    _refuse_unrecorded(run, folder, found)
    return Policy(
        run=run,
        config=config,
        model_folder=resolve_model(config),
        folder=folder,
        tensors=tensors,
        hash=found,
    )


def canary_messages(run: Path) -> tuple[Message, ...]:
    """The prompt that the canary replies to: that of the run's first stored sample, where policies change most."""
    steps = reading.rollout_steps(run)
    rows = reading.read_rollouts(run, ["messages"], steps[:1]).slice(0, 1).to_pylist() if steps else []
    messages = json.loads(rows[0]["messages"] or "[]") if rows else []
    plain = all(isinstance(each.get("content"), str) for each in messages)
    return tuple(messages) if messages and plain else NEUTRAL


def _refuse_unrecorded(run: Path, folder: Path, found: str) -> None:
    """Refuse an adapter that is not the one that the run's records name.

    Raises:
        ValueError: which record says otherwise.
    """
    for where, expected in _recorded(run, folder).items():
        if found != expected:
            raise ValueError(
                f"{folder} is not the adapter that the run made under this name: its hash is {found[:12]}, and {where} "
                f"says {expected[:12]}. It was swapped or changed since; restore it from a copy"
            )


def _recorded(run: Path, folder: Path) -> dict[str, str]:
    """Content hashes of an adapter by the record that names it; empty where none does."""
    step = step_of(folder.name)
    found = {}
    for evaluation in reading.read_evals(run):
        is_its = evaluation.name == "sft" if step is None else evaluation.name == step_name(step)
        if is_its and evaluation.adapter_hash:
            found[f"evals/{evaluation.name}.json"] = evaluation.adapter_hash
    following = (step or 0) + 1
    if following in reading.rollout_steps(run):
        columns = ("adapter_version", "adapter_hash")
        for row in reading.read_rollouts(run, columns, [following]).to_pylist():
            if row["adapter_version"] == (step or 0):
                found[f"rollouts/{step_name(following)}.parquet"] = row["adapter_hash"]
    return found
