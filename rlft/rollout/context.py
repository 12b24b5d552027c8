"""Whether tasks, demonstrations and the canary fit what engine and learner can read, decided before a run starts."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlft.config import RunConfig
from rlft.environment.contract import Environment
from rlft.environment.prompt_lengths import fit_context
from rlft.environment.tools import unread_form
from rlft.model import chat, pretrained, special_tokens
from rlft.model.context import Context, max_positions, model_context
from rlft.rollout.engines.by_name import read_arguments, traits_of
from rlft.rollout.weight_proof import CANARY_TOKENS
from rlft.types import Task


def run_context(
    config: RunConfig, model_config: PretrainedConfig, *, is_trained: bool = True, is_canary: bool = False
) -> Context:
    """The context of a config's engine, and of the learner where there is one.

    Args:
        is_trained: whether the learner gets the samples too.
        is_canary: whether it is for the canary instead of samples.

    Raises:
        ValueError: see `by_name.read_arguments`.
    """
    traits, arguments = traits_of(config.rollout), read_arguments(config.rollout)
    learner, longest = model_context(model_config), max_positions(model_config)
    context = learner if traits.attends_like_learner else Context(longest, f"the model's context of {longest}")
    given = getattr(arguments, traits.context_argument) if traits.context_argument else None
    if given is not None and given < longest:
        context = Context(given, f"rollout.engine_args.{traits.context_argument}={given}")
    if traits.rereads_samples and (is_canary or config.sampling.is_truncating):
        context = Context(context.tokens - 1, f"{context.words}, of which {config.rollout.engine} keeps one token")
    return min(context, learner, key=lambda bound: bound.tokens) if is_trained else context


def fit(
    config: RunConfig, environment: Environment, model_folder: str, *, is_trained: bool = True
) -> tuple[Environment, str]:
    """Check that an environment's tasks, the SFT stage's demonstrations and the canary fit a config's model.

    Returns:
        See `fit_context`.

    Args:
        is_trained: whether training follows, else only a measurement.

    Raises:
        ValueError: see `fit_context`; or a demonstration or the canary is too long.
    """
    model_config = pretrained.load_config(model_folder)
    context = run_context(config, model_config, is_trained=is_trained)
    tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
    if config.sft is not None:
        shown = environment.demonstrations[: config.sft.examples]
        longest = max_positions(model_config)  # SFT runs the model with its window
        end_ids = chat.end_token_ids(tokenizer, pretrained.load_generation_config(model_folder))
        chat.check_conversations(tokenizer, shown, end_ids, context=longest, tools=environment.tools_shown)
    environment, note = fit_context(
        environment,
        tokenizer,
        max_new_tokens=config.sampling.max_new_tokens,
        context=context,
        overlong=config.environment.overlong,
    )
    asked = [*environment.train, *environment.heldout]
    spelled, token = special_tokens.as_text(
        tokenizer, [*(task.messages for task in asked), *environment.demonstrations]
    )
    if spelled:
        becomes = "act as those tokens" if config.model.special_tokens_in_text == "allow" else "stay text"
        remark = (
            f"{spelled} prompts and demonstrations spell special tokens, such as {token!r}; they {becomes} "
            "(model.special_tokens_in_text)"
        )
        environment = replace(environment, notes=(*environment.notes, remark))
    has_tools = any(each.tools for each in (environment, *environment.sources.values()))
    if has_tools and (form := unread_form(tokenizer)):
        remark = (
            f"the chat template tells the model to call tools as in {form[:200]!r}, and the episodes of "
            "rlft.environment.tools do not read that; show <tool_call>{...}</tool_call> in demonstrations, or use a "
            "chat_template.jinja that takes no tools, with which they are described in words"
        )
        environment = replace(environment, notes=(*environment.notes, remark))
    if is_trained:
        _check_canary(environment.train[0], tokenizer, run_context(config, model_config, is_canary=True))
    return environment, note


def _check_canary(task: Task, tokenizer: PreTrainedTokenizerBase, context: Context) -> None:
    length = len(chat.render(tokenizer, task.messages)) + CANARY_TOKENS
    if length > context.tokens:
        raise ValueError(
            f"the canary, which proves that the engine has the learner's weights, is a reply of {CANARY_TOKENS} tokens "
            f"to the first training task {task.id!r}, {length} tokens in all, and that exceeds {context.words}; "
            "shorten the prompts, or use a model or an engine with a larger context"
        )
