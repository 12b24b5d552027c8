"""Labelled texts that the tiny model tells apart and a bag of words does not, and the config for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rlft.train.head.config import HeadConfig
from tests.fakes_reward import DISLIKED, LIKED


def write_texts(path: Path, count: int = 240, *, task: str = "classification", chat: bool = False) -> Path:
    """Made-up words: the label says whether the last letter is a liked one, the number is that letter's place."""
    random_ = random.Random(0)
    rows = []
    for number in range(count):
        letter = random_.choice((LIKED, DISLIKED)[number % 2])
        word = "".join(random_.choices(LIKED + DISLIKED, k=5)) + letter
        place = float((LIKED + DISLIKED).index(letter))
        names = ["liked"] * (letter in LIKED) + ["early"] * (letter < "H")
        label = {"classification": ("disliked", "liked")[letter in LIKED], "multilabel": names, "regression": place}
        text = [{"role": "user", "content": word}] if chat else word
        rows.append({"text": text, "label": label[task]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def head_config(folder: Path, model: Path, *, count: int = 240, chat: bool = False, **changes: Any) -> HeadConfig:
    """A config whose run goes to folder/runs/head; `changes` replace top-level keys, mappings are merged in."""
    task = changes.get("task", "classification")
    source = write_texts(folder / f"{task}-{count}-{chat}.jsonl", count, task=task, chat=chat)
    tree: dict[str, Any] = {
        "name": "head",
        "output_dir": str(folder / "runs"),
        "model": {"source": str(model), "dtype": "float32"},
        "adapter": {"rank": 4},
        "data": {"source": str(source), "heldout": 0.4},
        "pooling": "last",
        "lr": 0.02,
        "threads": 1,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return HeadConfig.model_validate(tree)
