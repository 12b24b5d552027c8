"""The config of a head's training (`rlft head`) as one frozen tree."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlft.config import AdapterConfig, BaseRunConfig, Strict

Task = Literal["classification", "multilabel", "regression"]
Pooling = Literal["last", "mean", "max", "attention"]


class HeadDataConfig(Strict):
    """Where the labelled texts come from, and which of them are measured on."""

    source: str
    """A .jsonl, .json, .csv or .parquet file, a folder of such files, a data set's hub id, or a function that returns
    rows, as in environments.sarcasm:rows."""
    subset: str = ""
    """Which of the data sets under a hub id; empty is its only or default one."""
    split: str = "train"
    """Which split of a hub id or folder."""
    text: str = "text"
    """Column with the text, or with a conversation as a list of messages."""
    label: str = "label"
    """Column with the label: a text, a list of texts for multilabel, a number for regression."""
    limit: int = Field(0, ge=0)
    """Most texts that are used, the same ones in whatever order the rows stand; 0 uses all."""
    heldout: float = Field(0.2, gt=0, lt=1)
    """Share of the texts that is only measured on. A hash of the text decides."""
    validation: float = Field(0.15, gt=0, lt=1)
    """Share of the other texts that decides when training stops, the temperature, and how strongly the baseline is
    regularised."""
    max_length: int = Field(0, ge=0)
    """Most tokens of a text; 0 is the model's context."""
    overlong: Literal["error", "drop"] = "error"
    """What a longer text is: an error, or left out and counted."""


class HeadAdapterConfig(AdapterConfig):
    """What is trained of the trunk, the model below the new layers."""

    kind: Literal["lora", "dora", "rslora", "full", "head"] = "head"
    """head: nothing, the trunk is frozen and its features are computed once; lora, dora, rslora: an adapter on it;
    full: all of its weights."""


class HeadConfig(BaseRunConfig):
    """New layers on a pretrained trunk: a classifier, several labels, or a number."""

    kind: Literal["head"] = "head"
    """Tells the run directory of a head from others."""
    adapter: HeadAdapterConfig = HeadAdapterConfig()  # type: ignore[call-arg]
    """What is trained of the trunk."""
    data: HeadDataConfig
    """The labelled texts."""
    task: Task = "classification"
    """classification: one label of several; multilabel: any number of labels; regression: a number."""
    labels: tuple[str, ...] = ()
    """The labels, in the order of the outputs; empty takes those that the data has, sorted."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a text counts in the loss as one over how frequent its label is (for multilabel: labels that a text has
    count as much as those that it has not)."""
    trunk_layers: int = Field(0, ge=0)
    """How many of the model's decoder layers the trunk has, from the first on; 0 is all. The last layers are made for
    predicting the next token: features from the middle are often better, and cheaper."""
    pooling: Pooling = "mean"
    """How the tokens' hidden states become one: the last token's, their mean, their maximum, or a mean with learned
    weights."""
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((), max_length=3)
    """Sizes of the hidden layers of the head, with ReLU; none is a linear head."""
    epochs: int = Field(30, ge=1)
    """Most passes over the training texts."""
    patience: int = Field(4, ge=1)
    """Passes without a lower validation loss after which training stops; the best pass is kept."""
    batch_size: int = Field(32, ge=1)
    """Texts per optimizer update."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the head (AdamW)."""
    trunk_lr: float = Field(1e-4, gt=0)
    """Learning rate of what is trained of the trunk."""
    threads: int = Field(2, ge=1)
    """CPU threads."""

    @model_validator(mode="after")
    def _check(self) -> HeadConfig:
        if self.task == "regression" and self.labels:
            raise ValueError("labels are for classification and multilabel; a regression has none, leave them out")
        if self.task == "regression" and self.class_weights != "none":
            raise ValueError("class_weights are for classification and multilabel; leave them out for a regression")
        if self.task == "classification" and len(self.labels) == 1:
            raise ValueError("labels has one label, and a classification needs two or more")
        if doubled := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            raise ValueError(f"labels: {doubled[0]!r} stands twice")
        return self

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of the trunk is trained."""
        return self.adapter.kind == "head"
