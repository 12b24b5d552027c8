"""Headlines, and whether they are meant seriously: 28,614 labelled rows for `rlft head`.

They are in the package evals (MIT), which is downloaded by pip, not installed, when they are first read (46 MB). The
texts are headlines of a satirical newspaper and of a serious one, in lower case; rlft knows no further terms of theirs.
"""

from __future__ import annotations

import json
from typing import Any

from rlft.common.wheel import packaged_file

_LABELS = {"0": "serious", "1": "sarcastic"}


def rows() -> list[dict[str, Any]]:
    """Rows with `text`, a headline, and `label`: serious or sarcastic.

    Raises:
        ValueError: the package cannot be had.
    """
    path = packaged_file(
        "evals==3.0.1.post1",
        "evals/registry/data/sarcasm/samples.jsonl",
        digest="4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46",
        size=46_322_659,
        instead="use a table of your own with the columns text and label",
    )
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"text": row["input"][-1]["content"], "label": _LABELS[row["ideal"]]} for row in found]
