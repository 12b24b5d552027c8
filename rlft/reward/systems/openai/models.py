"""Graders that ask a model: `score_model` and `label_model`, of the chat server that `args.base_url` names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from rlft.reward.judge import ask_judge
from rlft.reward.systems.openai.grade import Grade, or_zero, with_threshold
from rlft.reward.systems.openai.templates import fill
from rlft.types import Abstain, Message

_SCORE = re.compile(r"(?:\bscore\b|\"result\")\W{0,10}?(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_LABEL = re.compile(r"\blabel\b\s*[:=]\s*[\"'*]*([^\"'*\n]+)", re.IGNORECASE)
JUDGE_ARGS = ("base_url", "api_key_env", "deadline_s", "attempts", "retries")
"""Arguments of the reward that `ask_judge` gets."""


def score_model(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    """The number within `range` that the model ends with."""
    low, high = written.get("range") or (0, 1)

    def parse(reply: str) -> float | None:
        found = _SCORE.findall(reply)
        value = float(found[-1]) if found else None
        return value if value is not None and low <= value <= high else None

    form = f"End with a line `Score: N`, where N is a number from {low:g} to {high:g}."
    return with_threshold(written, _asker(written, args, form, parse))


def label_model(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    """1 where the label that the model ends with is one of `passing_labels`."""
    labels, passing = written["labels"], set(written["passing_labels"])

    def parse(reply: str) -> float | None:
        found = [label.strip() for label in _LABEL.findall(reply)]
        return float(found[-1] in passing) if found and found[-1] in labels else None

    form = f"End with a line `Label: L`, where L is one of: {', '.join(labels)}."
    return or_zero(_asker(written, args, form, parse))


def _asker(
    written: Mapping[str, Any], args: Mapping[str, Any], form: str, parse: Callable[[str], float | None]
) -> Grade:
    """A grade that asks the served model, with a sentence more on how to end; it abstains where that is not kept."""
    if not args.get("base_url"):
        raise ValueError(f"{written['type']} asks a model: give args.base_url, the address of a chat server with it")
    sampling = dict(written.get("sampling_params") or {})
    settings: dict[str, Any] = {key: args[key] for key in JUDGE_ARGS if key in args}
    settings["model"] = args.get("model") or written["model"]
    settings["temperature"] = sampling.pop("temperature", None) or 0.0
    if limit := sampling.pop("max_completions_tokens", None):
        settings["max_tokens"] = limit
    extra = {key: value for key, value in sampling.items() if value is not None}
    messages = [_message(each) for each in written["input"]]

    async def ask(spaces: Mapping[str, Any]) -> float | Abstain:
        filled = [Message(role=each["role"], content=fill(each["content"], spaces)) for each in messages]
        filled[-1] = Message(role=filled[-1]["role"], content=f"{filled[-1]['content']}\n\n{form}")
        verdict = await ask_judge(filled, parse, extra=extra, **settings)
        verdict.note(spaces["log_metric"], spaces["log_extra"])
        return verdict.abstention if verdict.value is None else verdict.value

    return ask


def _message(written: Mapping[str, Any]) -> Message:
    content = written["content"]
    pieces = content if isinstance(content, list) else [content]
    texts = [piece if isinstance(piece, str) else piece.get("text") for piece in pieces]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a model grader's messages can only hold text here, no images or audio")
    role = written.get("role", "user")
    return Message(role="system" if role == "developer" else role, content="\n".join(map(str, texts)))
