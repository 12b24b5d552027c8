"""Talking to policies: the base model and a trained one answer the same messages, sampled as in rollouts.

One engine serves all of them, which carries one adapter at a time; each has a conversation of its own, since their
replies differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging as transformers_logging

from rlft.config import AdapterConfig, ModelConfig, RunConfig, SamplingConfig
from rlft.curves import reading
from rlft.environment import loading
from rlft.model import chat, sources
from rlft.model.adapter import bare_base, make_adapter
from rlft.model.memory import keep_freed_memory
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.contract import Request
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.generate import run_chunk
from rlft.rollout.seeds import sample_seed
from rlft.run.records import step_of
from rlft.train.export.policy import find_policy
from rlft.train.rl.services import make_scorer
from rlft.types import Adapter, FinishReason, Message, SamplingParams, Task, Trajectory

STREAM = "chat"
"""What the samples are for: keeps their randomness apart from that of runs."""
DEFAULT = SamplingConfig(max_new_tokens=256)  # type: ignore[call-arg]
"""How replies are sampled where no run says it."""


class StopReply(Exception):  # noqa: N818  nothing went wrong
    """Ends a reply where it is; what it has so far counts."""


@dataclass(slots=True, kw_only=True)
class Speaker:
    """A policy and its conversation."""

    label: str
    """`base`, or `trained` with the adapter's name."""
    adapter: Adapter
    messages: list[Message] = field(default_factory=list)
    """From the system message, if there is one, to the last reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a speaker answered."""

    text: str
    tokens: int
    ended: FinishReason | Literal["stopped"]
    """`length`: cut at the most tokens that it may have; `stopped`: by a person."""


class Talk:
    """Conversations with several policies on one base."""

    def __init__(
        self,
        speakers: Sequence[Speaker],
        model_folder: Path | str,
        *,
        model: ModelConfig,
        adapter: AdapterConfig,
        params: SamplingParams,
        seed: int,
        system: str = "",
    ) -> None:
        """Load the model.

        Args:
            seed: decides all replies; speakers draw with the same random numbers.
            system: a system message that every conversation begins with.
        """
        transformers_logging.disable_progress_bar()
        keep_freed_memory()
        self.speakers, self.params, self.seed = list(speakers), params, seed
        self._tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=model.special_tokens_in_text)
        self._engine = TransformersEngine(
            model_folder, self._tokenizer, model=model, adapter=adapter, threads=torch.get_num_threads()
        )
        self._system, self._turn = system, 0
        self.begin()

    def begin(self) -> None:
        """Begin new conversations."""
        for speaker in self.speakers:
            speaker.messages = [Message(role="system", content=self._system)] if self._system else []

    def say(self, text: str) -> None:
        """A user's message to all."""
        self._turn += 1
        for speaker in self.speakers:
            speaker.messages.append(Message(role="user", content=text))

    def take_back(self) -> None:
        """Forget the last message, and the replies to it that there are."""
        for speaker in self.speakers:
            last = max(at for at, message in enumerate(speaker.messages) if message["role"] == "user")
            del speaker.messages[last:]

    def reply(self, speaker: Speaker, on_text: Callable[[str], None] = lambda text: None) -> Reply:
        """Let a speaker answer.

        Args:
            on_text: called after each token with the whole text so far; may raise `StopReply`.

        Raises:
            ValueError: the conversation has become longer than the model can read, or the template refuses it.
        """
        self._load(speaker)
        request = Request(
            prompt_ids=chat.render(self._tokenizer, speaker.messages),
            seeds=(sample_seed(self.seed, STREAM, self._turn, "", 0),),
            messages=tuple(speaker.messages),
        )
        drawn: list[int] = []

        def on_token(token_ids: Sequence[int]) -> None:
            drawn[:] = token_ids
            on_text(chat.decode(self._tokenizer, drawn))

        ended: FinishReason | Literal["stopped"] = "stopped"
        try:
            completions = self._engine.generate(
                [request], self.params, version=speaker.adapter.version, on_token=on_token
            )
            ended = completions[0][0].finish_reason
        except StopReply:
            pass
        text = chat.decode(self._tokenizer, drawn)
        speaker.messages.append(Message(role="assistant", content=text))
        return Reply(text=text, tokens=len(drawn), ended=ended)

    def answer(self, config: RunConfig, task_id: str) -> list[tuple[Speaker, Trajectory]]:
        """Every speaker's answer to a task of a run, scored by the run's rewards.

        Raises:
            ValueError: there is no such task, or a reward is scored on the learner's base, which is not here.
        """
        if config.learner_rewards:
            raise ValueError(
                f"reward {config.learner_rewards[0].label} is scored on the learner's base, which a chat does not "
                "load; `rlft evaluate` measures it"
            )
        environment = loading.load(config.environment)
        task = _find([*environment.heldout, *environment.train], task_id)
        answers = []
        for speaker in self.speakers:
            self._load(speaker)
            chunk = Chunk(
                tasks=(task,),
                samples_per_task=1,
                params=self.params,
                run_seed=self.seed,
                stream=STREAM,
                step=0,
                version=speaker.adapter.version,
            )
            answers += run_chunk(self._engine, self._tokenizer, chunk, environment)
        with make_scorer(config, environment, log_dir=None) as scorer:
            scored = scorer.score(answers)
        return [(speaker, group.trajectories[0]) for speaker, group in zip(self.speakers, scored, strict=True)]

    def _load(self, speaker: Speaker) -> None:
        if self._engine.version != speaker.adapter.version:
            self._engine.load_adapter(speaker.adapter)


def talk_to_run(
    run: Path, *, adapter: str = "", only: str = "", changes: dict[str, float], seed: int, system: str = ""
) -> Talk:
    """A talk with the base model and the policy of a run.

    Args:
        adapter: which of its adapters, see `reading.adapter_of`.
        only: `base` or `trained`, to leave the other out.
        changes: what replaces the run's sampling.

    Raises:
        ValueError: see `find_policy`.
    """
    policy = find_policy(run, adapter)
    trained = make_adapter(step_of(policy.folder.name) or 0, policy.tensors)
    speakers = [
        Speaker(label="base", adapter=bare_base()),
        Speaker(label=f"trained ({policy.folder.name})", adapter=trained),
    ]
    sampling = reading.read_config(run).get("sampling")
    params = sampling_params(SamplingConfig.model_validate(sampling) if sampling else DEFAULT, changes)
    return Talk(
        [each for each in speakers if each.label.startswith(only)],
        policy.model_folder,
        model=policy.config.model,
        adapter=policy.config.adapter,
        params=params,
        seed=seed,
        system=system,
    )


def talk_to_model(source: str, *, changes: dict[str, float], seed: int, system: str = "") -> Talk:
    """A talk with a model, named as in `model.source`.

    Raises:
        ValueError: it cannot be had, see `sources.resolve`.
    """
    return Talk(
        [Speaker(label="model", adapter=bare_base())],
        sources.resolve(source),
        model=ModelConfig(source=source),
        adapter=AdapterConfig(),  # type: ignore[call-arg]
        params=sampling_params(DEFAULT, changes),
        seed=seed,
        system=system,
    )


def sampling_params(sampling: SamplingConfig, changes: dict[str, float]) -> SamplingParams:
    """How replies are drawn: as in rollouts, but for what `changes` names."""
    fields = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "stop": sampling.stop,
        "max_new_tokens": sampling.max_new_tokens,
    }
    return SamplingParams(**{**fields, **changes})  # type: ignore[arg-type]


def _find(tasks: Sequence[Task], task_id: str) -> Task:
    by_id = {task.id: task for task in reversed(tasks)}
    if task_id not in by_id:
        some = ", ".join(task.id for task in tasks[:3])
        raise ValueError(f"the run has no task {task_id!r}; its held-out tasks begin with {some}")
    return by_id[task_id]
