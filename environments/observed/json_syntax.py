"""JSON of any kind: the first block of the reply parses."""

from __future__ import annotations

import json
import re


def json_syntax(completion: str) -> float:
    """1 if the reply holds JSON: its first block marked json, else its first block, else all of it if { or [ begins it.

    Results on such prompts are published by it. Easily cheated: `{}` is perfect whatever was asked, a list of five may
    have one item, text may stand around the block. Train on `rewards.strict_json:strict_json` and watch this one; the
    other way round is a lesson in the gap. A block that does not end and JSON that breaks off earn nothing.
    """
    block = re.search(r"```json\b(.*?)```", completion, re.DOTALL) or re.search(
        r"```[^\n`]*\n(.*?)```", completion, re.DOTALL
    )
    text = block[1].strip() if block else completion.strip()
    if block is None and text[:1] not in ("{", "["):
        return 0.0
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0
