"""A preference that the tiny model learns in a second, and the config that trains a reward model on it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rlft.train.reward_model.config import RewardModelConfig

PAIRS = 160
LIKED, DISLIKED = "ACEGIKMO", "BDFHJLNP"


def write_pairs(path: Path, count: int = PAIRS) -> Path:
    """Replies of letters, of which those are chosen that end with a liked one: before training that is chance."""
    random_ = random.Random(0)

    def reply(last: str) -> list[dict[str, str]]:
        return [
            {
                "role": "assistant",
                "content": "".join(random_.choices(LIKED + DISLIKED, k=random_.randint(0, 6))) + random_.choice(last),
            }
        ]

    rows = [
        {
            "prompt": [{"role": "user", "content": f"q{index}"}],
            "chosen": reply(LIKED),
            "rejected": reply(DISLIKED),
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reward_model_config(folder: Path, source: Path, **changes: Any) -> RewardModelConfig:
    """A config whose run goes to folder/runs/rm; `changes` replace top-level keys, mappings are merged in."""
    pairs = folder / "pairs.jsonl"
    tree: dict[str, Any] = {
        "name": "rm",
        "output_dir": str(folder / "runs"),
        "model": {"source": str(source), "dtype": "float32"},
        "adapter": {"rank": 4},
        "data": {"source": str(pairs if pairs.exists() else write_pairs(pairs)), "heldout": 0.4},
        "epochs": 3,
        "batch_size": 8,
        "lr": 5e-3,
        "threads": 1,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return RewardModelConfig.model_validate(tree)
