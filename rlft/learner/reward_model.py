"""A reward model's folder, and the model in it as one more adapter on the learner's base.

A reward model is a language model whose output layer is replaced by one with a single output; its score of a
conversation is that output at the last token that is no padding. `rlft reward-model` writes

    adapter_model.safetensors  adapter_config.json   an adapter and the output layer, in PEFT's layout (for `full`:
                                                     model.safetensors  config.json)
    tokenizer files                                  with the padding token that the model was trained with
    reward_model.json                                base, type of its weights, mean and deviation of held-out scores,
                                                     whether tools are shown
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlft.common.beginnings import alike
from rlft.common.files import sha256
from rlft.config import RunConfig
from rlft.learner.roles import Role, write_role
from rlft.model import chat, special_tokens
from rlft.model.adapter import POLICY, is_adapter_folder, read_folder
from rlft.model.base import quiet_libraries
from rlft.model.layers.lora import use_lean_lora
from rlft.types import Batch, Message, RewardSpec

FACTS = "reward_model.json"
HEAD = "base_model.model.score.weight"
"""Name of the output layer's tensor among an adapter's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A trained reward model as one more adapter on the learner's base, with its output layer."""

    role: Role
    """Its adapter, or the bare base where only the output layer was trained."""
    head: nn.Linear
    """hidden_size to 1, float32."""
    tokenizer: PreTrainedTokenizerBase
    """The one that it was trained with."""
    mean: float
    """Subtracted from every score."""
    std: float
    """What that is divided by."""
    shows_tools: bool
    """Whether it was trained on conversations that show the environment's tools."""


def check(config: RunConfig, model_folder: str) -> None:
    """Refuse reward models that were trained on another base than the learner's.

    Args:
        model_folder: what `model.source` resolved to.

    Raises:
        ValueError: no folder, another kind of folder, or another base; what to do instead.
    """
    for reward in config.learner_rewards:
        if problem := _problem(reward, config.model.source, model_folder):
            raise ValueError(f"reward {reward.path}: {problem}")


def _problem(reward: RewardSpec, source: str, model_folder: str) -> str:
    folder = Path(reward.folder)
    if not folder.is_dir():
        return "there is no such folder; make one with `rlft reward-model`"
    if not is_adapter_folder(folder):
        return (
            "there is no adapter in this folder; a model of its own is a reward as rewards.reward_model:reward_model "
            "with args.folder"
        )
    saved = json.loads((folder / "adapter_config.json").read_text())
    if saved["task_type"] != "SEQ_CLS":
        return f"holds an adapter for {saved['task_type']}, not a reward model; make one with `rlft reward-model`"
    facts = read_facts(folder)
    base = saved["base_model_name_or_path"]
    if source != facts.get("source") and Path(base).resolve() != Path(model_folder).resolve():
        return (
            f"its base is {facts.get('source', base)}, but model.source is {source}; train a reward model on that, or "
            "use rewards.reward_model:reward_model with args.folder, which loads a base of its own"
        )
    if reward.args.get("normalize") and "std" not in facts:
        return f"args.normalize needs the mean and deviation of its scores, and it has no {FACTS}"
    return ""


def read_facts(folder: Path) -> dict[str, Any]:
    """Read reward_model.json, which `rlft reward-model` writes; empty for a reward model that was made elsewhere."""
    path = folder / FACTS
    return json.loads(path.read_text()) if path.is_file() else {}


def folder_hash(folder: str) -> str:
    """sha256 of an adapter folder's tensors."""
    return sha256(Path(folder) / "adapter_model.safetensors")


def add_reward_model(policy: Role, reward: RewardSpec, *, name: str, device: torch.device) -> RewardModel:
    """Put the adapter of a checked folder on the policy's base, under `name`; `policy` stays active.

    Args:
        device: where the scores are computed.

    Raises:
        ValueError: its tensors do not fit the base.
    """
    assert isinstance(policy.model, PeftModel)
    folder, normalize = Path(reward.folder), reward.args.get("normalize", False)
    tensors = read_folder(folder)
    weight = tensors.pop(HEAD)
    role = Role(model=policy.model, adapter=None)
    if tensors:
        config = LoraConfig.from_pretrained(str(folder))
        # The base is a language model here, which has no such output layer: `head` is that.
        config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
        with quiet_libraries():
            policy.model.add_adapter(name, config)
        use_lean_lora(policy.model)
        role = Role(model=policy.model, adapter=name)
        write_role(role, tensors)
        policy.model.set_adapter(POLICY)
    head = nn.Linear(weight.shape[1], 1, bias=False).requires_grad_(False)
    head.weight.copy_(weight)
    facts = read_facts(folder)
    return RewardModel(
        role=role,
        head=head.to(device),
        tokenizer=chat.load_tokenizer(folder),
        mean=facts["mean"] if normalize else 0.0,
        std=facts["std"] if normalize else 1.0,
        shows_tools=facts.get("tools", False),
    )


def conversations(
    model: RewardModel, groups: Sequence[Sequence[Sequence[Message]]], *, tools: Sequence[Mapping[str, Any]] = ()
) -> Batch:
    """A batch of conversations to score; what all conversations of a group begin with is computed once.

    Args:
        tools: the environment's, for models that were trained on conversations that show them.
    """
    tokenizer, tools = model.tokenizer, tools if model.shows_tools else ()
    prompts: list[tuple[int, ...]] = []
    rests: list[tuple[int, ...]] = []
    for group in groups:
        if not group:  # all of its samples failed
            continue
        rows = [
            special_tokens.without_padding(chat.conversation(tokenizer, m, tools=tools), tokenizer.pad_token_id)
            for m in group
        ]
        shared = min(alike(min(rows), max(rows)), *(len(row) - 1 for row in rows))  # what these two share, all do
        prompts += [rows[0][:shared]] * len(rows)
        rests += [row[shared:] for row in rows]
    return Batch(
        prompt_ids=tuple(prompts),
        token_ids=tuple(rests),
        action_mask=tuple((False,) * len(rest) for rest in rests),
        group_index=torch.tensor([index for index, group in enumerate(groups) for _ in group]),
        rewards=torch.zeros(len(rests)),
        sequence_index=torch.zeros(0, dtype=torch.int64),
        rollout_logprobs=torch.zeros(0),
        is_truncated=torch.zeros(len(rests), dtype=torch.bool),
    )
