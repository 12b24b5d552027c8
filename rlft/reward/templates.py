"""How an answer may have to be written for a reward to read it."""

from __future__ import annotations

import json
import re

_JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
TEMPLATES: dict[str, str] = {
    "bare": "{}",
    "answer tags": "<answer>{}</answer>",
    "boxed": "\\boxed{{{}}}",
    "sentence": "The answer is {}.",
    "hashes": "#### {}",
    "reasoning and tags": "<think>\nI work it out.\n</think>\n<answer>{}</answer>",
    "reasoning and box": "<think>\nI work it out.\n</think>\n\\boxed{{{}}}",
    "lines of tags": "<reasoning>\nI work it out.\n</reasoning>\n<answer>\n{}\n</answer>\n",
    "final answer": "Final answer: {}",
    "bold": "**{}**",
    "JSON": '{{"answer": "{}"}}',
    "code block": "```python\n{}\n```",
    "label": "Answer: {}",
    "JSON value": '{{"answer": {}}}',
    "JSON result": '{{"result": {}}}',
}
"""How an answer may have to be written, see `write_as`; which way a reward wants is found by trying them."""


def write_as(form: str, answer: str) -> str:
    """An answer in one way of `TEMPLATES`; as a value of JSON it is a number where it is one, else a text."""
    if form in ("JSON value", "JSON result") and not _JSON_NUMBER.fullmatch(answer):
        answer = json.dumps(answer, ensure_ascii=False)
    return TEMPLATES[form].format(answer)
