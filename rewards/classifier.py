"""A trained head as a reward: the probability that it gives a label, or its number. `rlft head` trains one."""

from __future__ import annotations

import torch

from rlft.model.head import Classifier
from rlft.types import Message


def classifier(
    prompts: list[list[Message]],
    completions: list[list[Message]],
    folder: str,
    label: str = "",
    threads: int = 1,
    device: str = "",
) -> list[float | ValueError]:
    """Probability of a label, 0 to 1, or the number that a regression predicts.

    A head that was trained on texts reads the reply alone, one that was trained on conversations prompt and reply. An
    empty reply has the probability 0. A reply that the head cannot read (one that is too long; an empty one, of which a
    regression says nothing) fails alone: keep `sampling.max_new_tokens` below what it reads. The first call of every
    scoring process loads the model: `scoring.deadline_s` has to leave time for that.

    A policy learns what the head likes, not what the label means: replies unlike all that it was trained on may get
    probabilities near 1. So train it on replies of the policy, too, keep another reward or a judge as a shadow
    (`role: shadow`), and look at the samples with the highest values. The cases beside this file hold for every label
    of every head; a regression needs cases of its own, and so does what your label means.

    Args:
        folder: what `rlft head` wrote, such as runs/head/head.
        label: which label is wanted; of a regression empty.
        threads: CPU threads of each scoring process.
        device: where the model computes; empty is the first GPU, or the CPU.

    Raises:
        ValueError: there is no such head or label.
    """
    torch.set_num_threads(threads)
    head = Classifier.load(folder, device)
    column = head.column(label)
    values: list[float | ValueError] = [0.0] * len(completions)
    read: dict[int, str | list[Message]] = {}
    for row, (prompt, reply) in enumerate(zip(prompts, completions, strict=True)):
        text = reply[-1]["content"]
        content = [*prompt, *reply] if head.facts.conversations else text
        try:
            if text.strip() and head.token_ids(content):
                read[row] = content
            elif not head.facts.labels:
                raise ValueError("the reply is empty, of which a regression says nothing")
        except ValueError as error:
            values[row] = error
    for row, found in zip(read, head.predict([*read.values()])[:, column].tolist() if read else [], strict=True):
        values[row] = found
    return values
