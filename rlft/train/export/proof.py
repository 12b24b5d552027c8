"""The proof of an export: a fresh process with plain transformers and peft computes what the learner computes.

Both sides compute a fixed reply's log-probs in float32, so that the weights decide and not the arithmetic. The
learner's side puts the run's own adapter on the run's own base by rlft's code, as it was trained; the other side knows
the exported folder alone (and, for an adapter, the base). They have to agree, and to differ from the base model.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from rlft.common.child_process import ChildProcess
from rlft.config import LearnerConfig
from rlft.learner.batch import single
from rlft.learner.core import Roles
from rlft.learner.roles import Role, write_role
from rlft.model import chat, templates
from rlft.model.adapter import read_folder
from rlft.model.base import load_base, quiet_libraries
from rlft.rollout.weight_proof import canary_text, distance
from rlft.run.records import ADAPTERS, numbered
from rlft.train.export import plain_loading
from rlft.train.export.policy import Policy, canary_messages
from rlft.types import Message

TOLERANCE = {"float32": (1e-4, 0.0), "bfloat16": (0.1, 0.05)}
"""Largest mean |difference| in nats per token by the type that the folder's weights are stored in: at least the first
number, and this share of the reply's mean |log-prob|. Adapters are float32 on an untouched base, so that only the order
of sums differs, seen 0.00001; merged weights in bfloat16 are rounded once, seen 0.08, as in rollouts."""
SMALLEST = 4 * TOLERANCE["float32"][0]
"""What training has to have moved the reply by, nats per token, to be told from rounding."""
NEARER = 4.0
"""How many times nearer to the learner than the learner is to the base the folder has to be. Where rounding takes more
than that, the stored weights have lost a good part of what was learnt."""
LIMIT_S = 3600.0
"""Time that loading and one forward pass may take in the fresh process."""
KEPT = 6
"""Other adapters of the run that a folder is compared with where it is not what was trained."""


class ProofError(RuntimeError):
    """An exported folder does not compute what was trained. The message says what it looks like instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the learner and the base compute."""

    messages: tuple[Message, ...]
    """The canary's prompt; without a chat template the last one's text is."""
    is_chat: bool
    """Whether there is a chat template."""
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The canary's reply."""
    learner: tuple[float, ...]
    """Log-probs of the reply under the learner's own adapter, nats."""
    base: tuple[float, ...]
    """The same under the base model."""

    @property
    def moved(self) -> float:
        """How far training has moved them, mean |difference| in nats per token."""
        return distance(self.learner, self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the fresh process found, once it is accepted."""

    difference: float
    """From the learner, mean |difference| in nats per token."""
    tolerance: float
    """What is allowed."""
    moved: float
    """From the base to the learner."""
    tokens: int
    """Tokens of the canary's reply."""

    @property
    def sentence(self) -> str:
        """The result in words."""
        return (
            f"a fresh process without rlft gives the log-probs of {self.tokens} tokens as the learner does: mean "
            f"difference {self.difference:.2g} nats (allowed {self.tolerance:.2g}); the base model is {self.moved:.2g} "
            "away"
        )


def expect(policy: Policy) -> Expected:
    """Compute what the folder has to give, by the learner's own code.

    Raises:
        ProofError: the adapter changes nothing that could be told from the base.
    """
    tokenizer = chat.load_tokenizer(
        policy.model_folder,
        for_chat=False,  # a base model that has learnt plain text has no template
        special_tokens_in_text=policy.config.model.special_tokens_in_text,
    )
    messages = canary_messages(policy.run)
    prompt_ids, token_ids = canary_text(tokenizer, messages)
    learner, base = _learner_logprobs(policy, [policy.tensors, None], prompt_ids, token_ids)
    expected = Expected(
        messages=messages,
        is_chat=bool(tokenizer.chat_template),
        prompt_ids=prompt_ids,
        token_ids=token_ids,
        learner=learner,
        base=base,
    )
    if not math.isfinite(expected.moved):
        raise ProofError(
            f"{policy.folder} gives log-probs that are no numbers: it has diverged; choose another adapter"
        )
    if expected.moved <= SMALLEST:
        raise ProofError(
            f"{policy.folder} is equal to the base model: it moves the canary's log-probs by {expected.moved:.2g} nats "
            f"per token, where less than {SMALLEST:.2g} cannot be told from rounding. Nothing was "
            "learnt up to this adapter, or its tensors are zero; choose a later one with --adapter"
        )
    return expected


class FreshProcess:
    """A process that loads folders with plain transformers and peft."""

    def __init__(self) -> None:
        """Start it; its imports take the seconds that the learner's side needs anyway."""
        self._child = ChildProcess(plain_loading.main)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """What it finds in a folder, see `plain_loading`.

        Raises:
            ProofError: it cannot load the folder, or has died over it.
        """
        self._child.send(dict(question))
        try:
            answer: dict[str, Any] = self._child.receive(LIMIT_S)
        except TimeoutError:
            raise ProofError(f"a fresh process could not load the folder within {LIMIT_S:g} s") from None
        except EOFError:
            how = self._child.kill()
            printed = self._child.printed() or "nothing"
            raise ProofError(f"the fresh process that loaded the folder {how} and printed:\n{printed}") from None
        if "error" in answer:
            raise ProofError(f"plain transformers and peft cannot load the folder: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it."""
        self._child.kill()


def prove(
    folder: Path, policy: Policy, expected: Expected, fresh: FreshProcess, *, is_adapter: bool, dtype: str
) -> Proof:
    """Have a fresh process load an exported folder, and compare.

    Args:
        is_adapter: whether the folder has an adapter for the base, else it is a model.
        dtype: what its weights are stored in, a key of `TOLERANCE`.

    Raises:
        ProofError: it cannot be loaded, or computes something else, and what that looks like. Nothing is deleted.
    """
    config = policy.config
    found = fresh.ask(
        {
            "folder": str(folder.absolute()),
            "base": str(policy.model_folder) if is_adapter else "",
            "messages": [dict(message) for message in expected.messages],
            "clock": templates.FIXED_CLOCK,
            "prompt_ids": expected.prompt_ids,
            "token_ids": expected.token_ids,
            "four_bits": is_adapter and config.adapter.kind == "qlora",
        }
    )
    if tuple(found["prompt_ids"]) != expected.prompt_ids:
        raise ProofError(
            "the folder's tokenizer or chat template makes other tokens of the canary's prompt than in training: "
            f"{len(found['prompt_ids'])} tokens instead of {len(expected.prompt_ids)}"
        )
    logprobs = tuple(found["logprobs"])
    difference, to_base = distance(logprobs, expected.learner), distance(logprobs, expected.base)
    absolute, relative = TOLERANCE[dtype]
    rounding = max(absolute, relative * distance(expected.learner, (0.0,) * len(logprobs)))
    proof = Proof(
        difference=difference,
        tolerance=min(rounding, expected.moved / NEARER),
        moved=expected.moved,
        tokens=len(expected.token_ids),
    )
    if difference <= proof.tolerance:  # false, too, where one is no number
        return proof
    told = f"the log-probs of the canary differ from the learner's by {difference:.3g} nats per token"
    told += f", and {proof.tolerance:.2g} is allowed. "
    if to_base <= max(TOLERANCE["float32"][0], expected.moved / 100):
        raise ProofError(
            f"{told}The folder is equal to the base model: what was trained is not in it, or has no effect"
        )
    if dtype != "float32" and difference <= rounding:
        raise ProofError(
            f"{told}The base is only {expected.moved:.3g} away: {dtype} rounds a good part of so small an update away. "
            "Store float32 (--dtype float32), or export the adapter instead"
        )
    raise ProofError(f"{told}{_likeness(policy, expected, logprobs, near=proof.tolerance)}")


def _likeness(policy: Policy, expected: Expected, found: Sequence[float], *, near: float) -> str:
    """What a folder that is not the learner's looks like, in a sentence."""
    others = [folder for _, folder in numbered(policy.run / ADAPTERS) if folder != policy.folder]
    others = [*others[:1], *others[1:][1 - KEPT :]]
    known: dict[str, Sequence[float]] = {}
    if others:
        tensors = [read_folder(folder) for folder in others]
        computed = _learner_logprobs(policy, tensors, expected.prompt_ids, expected.token_ids)
        known = {folder.name: logprobs for folder, logprobs in zip(others, computed, strict=True)}
    name = min(known, key=lambda each: distance(known[each], found), default="")
    if name and distance(known[name], found) <= near:
        return f"The folder is different from the learner, and looks like {name} of the run"
    to_base = distance(found, expected.base)
    return (
        f"The folder is different from the learner and from every adapter of the run, and {to_base:.3g} away from the "
        "base: a part of it is missing, or it is scaled otherwise than it was trained"
    )


def _learner_logprobs(
    policy: Policy, adapters: Sequence[Any], prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> list[tuple[float, ...]]:
    """The reply's log-probs under adapters of the policy on its base, in float32; None is the base itself."""
    config = policy.config
    model = config.model.model_copy(update={"dtype": "float32"})
    batch, results = single(prompt_ids, token_ids), list[tuple[float, ...]]()
    transformers_logging.disable_progress_bar()
    with quiet_libraries():
        threads = LearnerConfig(threads=torch.get_num_threads())  # type: ignore[call-arg]
        roles = Roles(policy.model_folder, model, config.adapter, threads, seed=config.seed)
    for tensors in adapters:
        role = roles.policy
        if tensors is not None:
            write_role(role, tensors)
        elif policy.is_full:
            role = Role(model=load_base(policy.model_folder, torch.float32, roles.device), adapter=None)
        else:
            role = Role(model=roles.model, adapter=None)
        results.append(tuple(roles.logprobs(batch, role, temperature=1.0).tolist()))
    del roles, role
    gc.collect()  # before another process loads the model
    return results
