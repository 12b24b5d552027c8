"""How large a config's data and model are, without loading the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlft.config import RunConfig
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.environment.prompt_lengths import evenly_spread, prompt_ids
from rlft.learner.batch import shared_prefix
from rlft.learner.microbatches import default_tokens
from rlft.model import chat
from rlft.model.base import resolve_dtype
from rlft.model.pretrained import load_config, load_generation_config
from rlft.model.starting_point import resolve_model
from rlft.train.rl.evaluations import load_measurements
from rlft.train.rl.launch import refuse_unfit
from rlft.train.rl.plan.arithmetic import Counts, Lengths, count
from rlft.train.rl.task_choice import TaskChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a config names, in numbers."""

    train: int
    """Training tasks."""
    heldout: Mapping[str, int]
    """Held-out tasks of each evaluation set; of the headline under the empty name."""
    longest: Lengths
    """Prompts as they are, completions of the most tokens that a rollout may have."""
    demonstration: float
    """Mean tokens of the demonstrations that the warm start learns, with their prompts; 0 without one."""
    prefix: int
    """Tokens that all prompts begin with, and that the learner computes once; 0 where they are few."""
    parameters: int
    """Weights of the model."""
    config: PretrainedConfig
    """The model's configuration, of its text part."""
    dtype: torch.dtype
    """Of its frozen weights."""

    def counts(self, config: RunConfig, lengths: Lengths) -> Counts:
        """The config's arithmetic with completions of these lengths."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        samples = config.samples_per_task
        group = (lengths.prompt, lengths.prompt + lengths.read(samples))
        return count(
            config,
            train=self.train,
            heldout=self.heldout,
            lengths=lengths,
            default_microbatch=default_tokens(device, self.prefix, [group] if samples > 1 else []),
            prefix=self.prefix,
        )


def sizes_of(config: RunConfig) -> Sizes:
    """Look at the data, the tokenizer and the header of the weights.

    Raises:
        ValueError: the environment or the model cannot be loaded, or the run could not start with them.
    """
    environment = loading.load(config.environment)
    measurements = load_measurements(config, environment)
    refuse_unfit(config, environment)
    TaskChoice(config, environment.train).of_step(1)  # a run does so behind `fit`, which may drop tasks
    folder = resolve_model(config)
    tokenizer = chat.load_tokenizer(folder, special_tokens_in_text=config.model.special_tokens_in_text)
    prompts = [prompt_ids(environment, tokenizer, task) for task in evenly_spread(environment.train)]
    longest = config.sampling.max_new_tokens
    if environment.episode is not None:
        longest = environment.max_tokens or longest
    return Sizes(
        train=len(environment.train),
        heldout={each.set_name: len(each.environment.heldout) for each in measurements},
        longest=Lengths(
            prompt=fmean(map(len, prompts)),
            completion=longest,
            is_measured=False,
        ),
        demonstration=_demonstration(config, environment, tokenizer, folder),
        prefix=shared_prefix(prompts),
        parameters=_parameters(folder),
        config=load_config(folder).get_text_config(),
        dtype=resolve_dtype(config.model),
    )


def _demonstration(
    config: RunConfig, environment: Environment, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> float:
    """Mean tokens of a demonstration, prompt and reply; 0 without any."""
    shown = environment.demonstrations[: config.sft.examples] if config.sft else ()
    rows, tools = evenly_spread(range(len(shown))), environment.tools_shown
    end_ids = chat.end_token_ids(tokenizer, load_generation_config(folder))
    texts = [chat.demonstration(tokenizer, shown[row], end_ids, tools=tools[row] if tools else ()) for row in rows]
    return fmean(len(prompt) + len(reply) for prompt, reply in texts) if texts else 0.0


def _parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a model; tied weights are stored once."""
    total = 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    return total
