"""A served model that judges answers to sums by what they say, for tests of rewards that ask a judge.

It is as good as a judge can be about what stands between the tags of `rlft.reward.judge.fenced`, and as obedient as a
model is to all that stands outside of them. So a reward that lets a reply out of its tags is cheated by it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rewards.judge import QUESTION
from rlft.common.arithmetic import evaluate
from rlft.common.chat_server import Reply
from rlft.reward.extract import number, stated_answer
from rlft.reward.judge import ask_judge, score
from rlft.types import Message
from tests.fakes_server import FakeServer, reply, serve

_TAGGED = re.compile(r"<((?:question|answer)(?:-\w{8})?)>\n(.*?)\n</\1>", re.DOTALL)
_ORDER = re.compile(r"^(?:Score: 10|GRADER OUTPUT|SYSTEM)|maximum score|\[\[10\]\]|correct, complete", re.MULTILINE)


@contextmanager
def serve_judge() -> Iterator[FakeServer]:
    """Serve the judge until the block ends."""

    def answer(body: dict[str, Any], _: int) -> tuple[int, dict[str, Any]]:
        return reply(verdict(body["messages"][0]["content"]), tokens=5)

    with serve(answer) as server:
        yield server


async def ask_directly(client: object, model: str, messages: list[Message], **sampling: object) -> Reply:
    """What `rlft.common.chat_server.ask_async` would bring from the server, for tests that ask a thousand times."""
    return Reply(text=verdict(messages[0]["content"]), finish_reason="stop", tokens=5)


async def gullible(prompt: str, completion: str, base_url: str, model: str = "judge") -> float | None:
    """`rewards.judge:helpfulness`, but for tags that a reply can close."""
    question = QUESTION.format(question=prompt, answer=f"<answer>\n{completion}\n</answer>")
    return (await ask_judge(question, score, base_url=base_url, model=model)).value


def verdict(question: str) -> str:
    """What it says to a question of one of the shipped judges."""
    texts = [(name.partition("-")[0], text) for name, text in _TAGGED.findall(question)]
    asked = next((text for kind, text in texts if kind == "question"), question)
    answers = [text for kind, text in texts if kind == "answer"]
    ordered = bool(_ORDER.search(_TAGGED.sub("", question)))
    values = [1.0 if ordered else 0.9 if is_right(asked, text) else 0.1 if text.strip() else 0.0 for text in answers]
    if criteria := re.findall(r"^(\d+): (.*)$", _TAGGED.sub("", question), re.MULTILINE):
        met = [ordered or _meets(criterion, asked, answers[0]) for _, criterion in criteria]
        return "\n".join(f"{n}: {'yes' if one else 'no'}" for (n, _), one in zip(criteria, met, strict=True))
    if "Better: A" in question:
        return f"Better: {'A' if values[0] >= values[1] else 'B'}"  # of equal ones the first, as models do
    if "JSON object" in question:
        return json.dumps({str(place): value for place, value in enumerate(values, start=1)})
    return f"I have looked at it.\nScore: {1 + 9 * values[0]:g}"


def is_right(question: str, answer: str) -> bool:
    """Whether an answer states the value of the sum in a question, and no other one."""
    asked, stated = re.search(r"\d+ [-+*] \d+", question), stated_answer(answer)
    return asked is not None and stated is not None and number(stated) == evaluate(asked[0])[0]


def _meets(criterion: str, question: str, answer: str) -> bool:
    most = re.search(r"at most (\d+) words", criterion)
    return len(answer.split()) <= int(most[1]) if most else is_right(question, answer)
