"""summary.json: the result of a run that has ended well, of each kind of run."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class RLSummary(TypedDict):
    """summary.json of `rlft train`; it is there once the run has ended well.

    Accuracies are means of `metric` as `Interval.as_dict`, also where its values are not only 0 and 1: then `word` is
    `mean` instead of `accuracy`. `failed_` counts the samples that are missing in them, and `rewards_` has the mean of
    every reward and named part. None where nothing was evaluated.

    `shadow` is there where the config has shadow rewards. It has, by name, the means `base`, `sft` and `rl`, the `gap`,
    in standard deviations, and `sentence`, which says what it means.

    `evaluations` is there where the config has some. It has, by name, `metric`, `word`, and the means `base`, `sft` and
    `rl`, None where there is none.
    """

    name: str
    metric: str
    steps: int
    accuracy_base: dict[str, float | int | None] | None
    accuracy_sft: dict[str, float | int | None] | None
    accuracy_rl: dict[str, float | int | None] | None
    failed_base: int | None
    failed_sft: int | None
    failed_rl: int | None
    word: str
    rewards_base: dict[str, dict[str, float | int | None]] | None
    rewards_sft: dict[str, dict[str, float | int | None]] | None
    rewards_rl: dict[str, dict[str, float | int | None]] | None
    adapter: str
    shadow: NotRequired[dict[str, dict[str, Any]]]
    evaluations: NotRequired[dict[str, dict[str, Any]]]


class PreferenceSummary(TypedDict):
    """summary.json of `rlft dpo`: held-out preferences before and after; losses in nats, margins in units of beta."""

    name: str
    stage: str
    metric: str
    steps: int
    train_examples: int
    heldout_examples: int
    dropped_rows: int
    adapter: str
    accuracy_base: dict[str, float | int | None] | None
    loss_base: float | None
    margin_base: float | None
    accuracy_trained: dict[str, float | int | None] | None
    loss_trained: float | None
    margin_trained: float | None


class SupervisedSummary(TypedDict):
    """summary.json of `rlft sft` on a table: held-out rows before and after.

    Accuracies are mean log-probabilities per token, nats, and losses their negatives. `steps` updates were made, and
    `result_step` is that of `adapter`: an earlier one where the run was stopped early. `tasks` is there where the
    config has `evaluation.tasks`: the accuracy on them, `base` and `trained`.
    """

    name: str
    stage: str
    metric: str
    word: str
    steps: int
    result_step: int
    train_examples: int
    heldout_examples: int
    dropped_rows: int
    duplicate_rows: int
    adapter: str
    accuracy_base: dict[str, float | int | None] | None
    loss_base: float | None
    perplexity_base: float | None
    accuracy_trained: dict[str, float | int | None] | None
    loss_trained: float | None
    perplexity_trained: float | None
    tasks: NotRequired[dict[str, dict[str, float | int | None] | None]]


class RewardModelSummary(TypedDict):
    """summary.json of `rlft reward-model`: held-out pairs in the right order before and after."""

    name: str
    accuracy_before: dict[str, float | int | None]
    accuracy_after: dict[str, float | int | None]
    n: int
    reward_model: str


class HeadSummary(TypedDict):
    """summary.json of `rlft head`: new layers on a trunk, beside what they have to beat, on held-out texts.

    `predictors` has by name (majority, bag_of_words, head) every measure as `Interval.as_dict`, among them `metric`.
    `difference` is the paired difference of `metric` between the head and the bag of words, positive where the head is
    better, `verdict` better, worse or cannot_tell, and `sentence` says both.
    """

    name: str
    task: str
    metric: str
    labels: list[str]
    texts: dict[str, int]
    features: dict[str, int] | None
    epochs: int
    best_epoch: int
    temperature: float
    penalty: float
    predictors: dict[str, dict[str, dict[str, float | int | None]]]
    difference: dict[str, float | int | None]
    verdict: str
    sentence: str
    per_label: list[dict[str, Any]]
    reliability: list[dict[str, Any]]
    head: str
