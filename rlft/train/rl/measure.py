"""`rlft evaluate`: a held-out measurement outside of a run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.environment import loading
from rlft.learner import reward_model
from rlft.learner.rl import Learner
from rlft.model.adapter import bare_base, make_adapter, read_folder
from rlft.model.starting_point import refuse_other_scale, resolve_model
from rlft.reward.scoring import LearnerScores
from rlft.rollout.context import fit
from rlft.rollout.engines.by_name import check_engine, traits_of
from rlft.run.records import Evaluation
from rlft.train.rl.evaluate import answer_heldout, evaluation, headline
from rlft.train.rl.evaluations import heldout_only, set_config
from rlft.train.rl.observed import observed_sentences
from rlft.train.rl.services import make_scorer, services
from rlft.types import Adapter, Group


def measure(
    config: RunConfig, adapter_folder: Path | None, *, set_name: str = "", view: View | None = None
) -> Evaluation:
    """The rewards of the base model, or of an adapter folder, on held-out tasks; nothing is written.

    Args:
        set_name: name of an evaluation set, to measure that instead of `evaluation`.
        view: shows how far it is; a view of its own if not given.

    Raises:
        ValueError: see `train`; or there is no such set.
        RuntimeError: too many samples could not be scored, see `evaluation`.
    """
    config = set_config(config, set_name) if set_name else config
    headline(config, f"evaluations.{set_name}" if set_name else "evaluation")
    groups, adapter = answers(config, adapter_folder, heldout_alone=bool(set_name), view=view)
    result = evaluation(config, groups, adapter=adapter, name="measure", step=0, samples_file=None, set_name=set_name)
    if names := traits_of(config.rollout).says_what_is_measured:  # not the result's adapter_hash
        return replace(result, extra={"served": {name: config.rollout.engine_args[name] for name in names}})
    return result


def answers(
    config: RunConfig, adapter_folder: Path | None, *, heldout_alone: bool = False, view: View | None = None
) -> tuple[list[Group], Adapter]:
    """Scored answers of the base model, or of an adapter folder, to the held-out tasks of `evaluation`.

    Args:
        heldout_alone: whether nothing but the held-out tasks has to fit the model.
        view: shows how far it is; a view of its own if not given.

    Returns:
        (a group for each task, the adapter that gave them)

    Raises:
        ValueError: see `train`.
    """
    check_engine(config, is_trained=False)
    environment = loading.load(config.environment)
    environment = heldout_only(environment) if heldout_alone else environment
    model_folder = str(resolve_model(config))
    environment, _ = fit(config, environment, model_folder, is_trained=False)
    adapter = bare_base()
    if adapter_folder is not None:
        refuse_other_scale(adapter_folder, config)
        adapter = make_adapter(0, read_folder(adapter_folder))
    learner_scores = LearnerScores()
    scorer = make_scorer(config, environment, log_dir=None, learner=learner_scores)
    with (
        View(config.name, steps=0) if view is None else nullcontext(view) as view,
        services(config, model_folder, scorer, None, view) as pool,
    ):
        if config.learner_rewards:
            reward_model.check(config, model_folder)
            learner_scores.bind(partial(Learner(config, model_folder).scores, tools=environment.tools))
        pool.publish(adapter)
        view.stage("held-out evaluation")
        groups = answer_heldout(
            config, pool, scorer, environment.heldout, version=adapter.version, on_chunk=view.progress
        )
        for text in observed_sentences(config, groups):
            view.note(text)
    return groups, adapter
