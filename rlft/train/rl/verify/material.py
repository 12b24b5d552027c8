"""What a verification has to work with: the run's records, and what is here to compute them again with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlft.config import RunConfig
from rlft.curves.reading import read_metrics, rollout_steps
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.learner.roles import make_policy, read_role
from rlft.model import chat
from rlft.model.adapter import BASE_VERSION, bare_base, make_adapter, read_folder
from rlft.model.base import default_device
from rlft.model.starting_point import resolve_model, start_tensors
from rlft.reward.recompute import kl_coefs
from rlft.reward.stored import StoredTasks, read_tasks
from rlft.rollout.context import fit
from rlft.rollout.engines.by_name import traits_of
from rlft.run import logs
from rlft.run.checkpoint import load_latest
from rlft.run.provenance import changed_computing
from rlft.run.records import ADAPTERS, CHECKPOINTS, adapter_folder, numbered
from rlft.train import provenance
from rlft.train.rl.state import PUBLISHED
from rlft.types import Adapter, Group, Turn

ELSEWHERE = "what a fork has from a run of other settings, rewards or tasks: verify that run"
"""Why its steps up to there are not checked."""
_LEARNERS = ("learner.", "steps:", "guards.", "checkpoint.")
"""How the changes of a fork begin that nothing rests on which can be computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The records of a run that are small enough to be held; rollouts are read step by step."""

    run: Path
    """The run's directory."""
    config: RunConfig
    tasks: StoredTasks
    steps: Sequence[int]
    """Steps with rollouts, ascending."""
    metrics: Mapping[int, Mapping[str, float]]
    """By step."""
    kl_coefs: Mapping[int, float]
    """Weight of the KL before each step."""
    made_elsewhere: int = 0
    """Last step that a fork has from a run with other settings, rewards or tasks: they are not here to check it by."""
    is_measured_elsewhere: bool = False
    """Whether the evaluations up to there may come from that run, too."""


def read_material(run: Path, config: RunConfig) -> Material:
    """Read a run's records.

    Raises:
        ValueError: one is damaged, or there are no rollouts yet.
    """
    rows = read_metrics(run, [])
    steps = rollout_steps(run)
    if not steps:
        raise ValueError(f"{run} has no rollouts yet, so there is nothing to check; give a run with steps behind it")
    lineage = logs.read_provenance(run).lineage
    elsewhere, is_measured = _made_elsewhere(lineage)
    # A fork goes on with the weight of the KL that its origin had steered to, unless it begins with one of its own.
    changes = [line for origin in lineage for line in origin.get("changes", ())]
    is_steered_on = getattr(config.algorithm, "kl_target", 0.0) and not any(
        line.startswith("algorithm.kl_coef:") for line in changes
    )
    return Material(
        run=run,
        config=config,
        tasks=read_tasks(run),
        steps=steps,
        metrics={int(row["step"]): {name: value for name, value in row.items() if name != "step"} for row in rows},
        kl_coefs=kl_coefs(config, rows if is_steered_on else [row for row in rows if row["step"] > elsewhere]),
        made_elsewhere=elsewhere,
        is_measured_elsewhere=is_measured,
    )


def _made_elsewhere(lineage: Sequence[Mapping[str, Any]]) -> tuple[int, bool]:
    """What a run's lineage, the nearest origin first, says of `Material.made_elsewhere` and what follows it."""
    last, until, is_measured = 0, math.inf, False
    for origin in lineage:
        until = min(until, int(origin["step"]))
        # Without `numbers` an earlier rlft wrote it, which told no change from another and kept all evaluations.
        changes = origin.get("numbers", origin.get("changes", ()))
        if any(not line.startswith(_LEARNERS) for line in changes):
            last = max(last, int(until))
            is_measured = is_measured or "numbers" not in origin
    return last, is_measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The model and the tasks of a run, as they are on this machine."""

    environment: Environment | None
    """None where it cannot be loaded, or gives other tasks now."""
    model_folder: str
    """Empty where the model is not here, or is another one."""
    tokenizer: PreTrainedTokenizerBase | None
    """None where the model is not here."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why, by `environment` and `model`."""
    inexact: str = ""
    """Why samples and sums may come out otherwise in their last bits; empty where they may not."""


def look_around(run: Path, config: RunConfig) -> Here:
    """Find the model and the tasks of a run and compare them with what the run wrote down of them."""
    then = logs.read_provenance(run)
    missing: dict[str, str] = {}
    hint = f"; the run was started in {then.cwd}, which relative paths begin at" if then.cwd else ""
    environment, model_folder, tokenizer, inexact = None, "", None, ""
    try:
        model_folder = str(resolve_model(config))
        tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
    except ValueError as error:
        missing["model"] = f"the model cannot be loaded: {error}"
    try:
        environment = loading.load(config.environment)
        if model_folder:
            environment, _ = fit(config, environment, model_folder)
    except ValueError as error:
        missing["environment"] = f"the tasks cannot be loaded: {error}{hint}"
        environment = None
    if environment is not None and model_folder:
        tasks = provenance.tasks_sha256(environment)
        if then.tasks and tasks != then.tasks:
            missing["environment"] = (
                f"environment {config.environment.told} gives other tasks now: sha256 {then.tasks[:12]} then, "
                f"{tasks[:12]} here"
            )
            environment = None
    if model_folder:
        now = provenance.present(config, model_folder, sha256={}, tasks="")
        if then.model and now.model != then.model:
            missing["model"] = f"the model's files are others: sha256 {then.model[:12]} then, {now.model[:12]} here"
            model_folder, tokenizer = "", None
        inexact = "; ".join(changed_computing(replace(then, config={}), replace(now, config={})))
        if not then.processor:
            inexact = inexact or "the run has not written down which processor it ran on"
        if then.earlier:
            inexact = inexact or "the run was resumed on another machine, or with other versions"
    if not traits_of(config.rollout).is_exact:
        inexact = f"rollout.engine: {config.rollout.engine} may round otherwise in another batch"
    if default_device().type != "cpu" or config.rollout.gpus_per_worker:
        inexact = "on a GPU sums may come out in another order"
    return Here(
        environment=environment, model_folder=model_folder, tokenizer=tokenizer, missing=missing, inexact=inexact
    )


class StoredAdapters:
    """The policy's adapters that a run has kept, by version."""

    def __init__(self, run: Path, config: RunConfig, model_folder: str) -> None:
        """Find what there is; nothing is read yet but the newest checkpoint, of a run with `max_staleness`."""
        self._run, self._config, self._model_folder = run, config, model_folder
        self._folders = dict(numbered(run / ADAPTERS))
        self._published: dict[int, Adapter] = {}
        if config.max_staleness:  # rollouts in flight come from adapters that only the checkpoint holds
            snapshot, _ = load_latest(run / CHECKPOINTS)
            for version in snapshot.state.get("published", {}) if snapshot else {}:
                prefix = f"{PUBLISHED}{version}/"
                held = snapshot.tensors.items() if snapshot else ()
                tensors = {name.removeprefix(prefix): t for name, t in held if name.startswith(prefix)}
                self._published[int(version)] = make_adapter(int(version), tensors)

    @property
    def folders(self) -> Mapping[int, Path]:
        """Folder of each adapter in `adapters/` by version; that of the warm start is 0."""
        sft = self._run / adapter_folder(None)
        return {**({0: sft} if sft.is_dir() else {}), **self._folders}

    def has(self, version: int) -> bool:
        """Whether `get` knows the version."""
        if version in (BASE_VERSION, *self._folders, *self._published):
            return True
        is_made = self._config.sft is None or (self._run / adapter_folder(None)).is_dir()
        return version == 0 and is_made and bool(self._model_folder)

    def get(self, version: int) -> Adapter:
        """The adapter of a version.

        Raises:
            ValueError: its folder is damaged.
        """
        if version == BASE_VERSION:
            return bare_base()
        if version in self.folders:
            return make_adapter(version, read_folder(self.folders[version]))
        if version in self._published:
            return self._published[version]
        assert version == 0
        config = self._config
        return start_adapter(config, self._model_folder)


def start_adapter(config: RunConfig, model_folder: str) -> Adapter:
    """The adapter that RL starts with without a warm start: `adapter.start`, or a fresh one of the run's seed."""
    policy = make_policy(
        model_folder,
        config.model,
        config.adapter,
        device=torch.device("cpu"),
        seed=config.seed,
        start=start_tensors(config),
    )
    return make_adapter(0, read_role(policy))


def with_prompt(here: Here, group: Group) -> Group:
    """A stored group with the tokens of its first prompts, which runs do not store.

    Raises:
        ValueError: the chat template refuses the messages.
    """
    assert here.tokenizer is not None
    tools = here.environment.of(group.task).tools if here.environment is not None else ()
    prompts: dict[str, tuple[int, ...]] = {}
    trajectories = []
    for trajectory in group.trajectories:
        messages = trajectory.messages
        actions = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        first = messages[: actions[-len(trajectory.turns)]] if messages else group.task.messages
        key = repr(first)
        if key not in prompts:
            prompts[key] = chat.render(here.tokenizer, first, tools=tools if messages else ())
        turns: tuple[Turn, ...] = (replace(trajectory.turns[0], prompt_ids=prompts[key]), *trajectory.turns[1:])
        trajectories.append(replace(trajectory, turns=turns))
    return replace(group, trajectories=tuple(trajectories))
