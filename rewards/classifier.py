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
) -> list[float]:
    """Probability of a label, 0 to 1, or the number that a regression predicts.

    A head that was trained on texts reads the reply alone, one that was trained on conversations prompt and reply. An
    empty reply has the probability 0. The first call of every scoring process loads the model: `scoring.deadline_s` has
    to leave time for that.

    A policy learns what the head likes, not what the label means: replies unlike all that it was trained on may get
    probabilities near 1. So train it on replies of the policy, too, keep another reward or a judge as a shadow
    (`role: shadow`), and look at the samples with the highest values.

    Args:
        folder: what `rlft head` wrote, such as runs/head/head.
        label: which label is wanted; of a regression empty.
        threads: CPU threads of each scoring process.
        device: where the model computes; empty is the first GPU, or the CPU.

    Raises:
        ValueError: there is no such head or label, or a reply is longer than the head reads.
    """
    torch.set_num_threads(threads)
    head = Classifier.load(folder, device)
    column = head.column(label)
    contents = [
        [*prompt, *reply] if head.facts.conversations else reply[-1]["content"]
        for prompt, reply in zip(prompts, completions, strict=True)
    ]
    spoken = [row for row, reply in enumerate(completions) if reply[-1]["content"].strip()]
    if not head.facts.labels and len(spoken) < len(contents):
        raise ValueError("a reply is empty, of which a regression says nothing")
    values = [0.0] * len(contents)
    for row, found in zip(spoken, head.predict([contents[row] for row in spoken])[:, column].tolist(), strict=True):
        values[row] = found
    return values
