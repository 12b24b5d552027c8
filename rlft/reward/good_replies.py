"""Good replies to tasks: those that somebody wrote, and the tasks' answers as they may have to be written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.reward.cases import Case, Expect
from rlft.reward.contract import prompt_text
from rlft.reward.templates import TEMPLATES, write_as
from rlft.reward.transcript import calls_of, parted
from rlft.reward.transforms import Good, other_answers, same_answer
from rlft.types import Message, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A good reply to a task."""

    task: Task
    good: Good
    form: str
    """Name of its template; empty for a reply that somebody wrote."""


def answer_text(answer: Any) -> str | None:
    """The answer as it stands in a reply; None if it is none that can be written into one."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return str(answer) if isinstance(answer, bool) else None
    return str(answer).strip() or None


def answer_names(tasks: Sequence[Task]) -> list[str]:
    """Names by which a reward may take the answer: `answer`, and columns that hold it in all tasks."""
    answered = [task for task in tasks if task.answer is not None]
    columns = answered[0].columns if answered else {}
    return ["answer", *(name for name in columns if all(t.columns.get(name) == t.answer for t in answered))]


def written(tasks: Sequence[Task]) -> dict[str, list[Source]]:
    """The tasks' answers in every way of `TEMPLATES`, by its name."""
    answers = {task.id: text for task in tasks if (text := answer_text(task.answer))}
    found: dict[str, list[Source]] = defaultdict(list)
    for name in TEMPLATES:
        for task in tasks:
            if answer := answers.get(task.id):
                write = _writer(name)
                others = _others(answer, answers.values())
                good = Good(text=write(answer), prompt=prompt_text(task), answer=answer, write=write, others=others)
                found[name].append(Source(task=task, good=good, form=name))
    return found


def shown(pairs: Iterable[tuple[Task, str]], tasks: Sequence[Task]) -> list[Source]:
    """Good replies, or `Transcript`s of good episodes, that somebody wrote."""
    episodes = [(task, *parted(whole)) for task, whole in pairs]
    answers = [text for task in tasks if (text := answer_text(task.answer))]
    found = []
    for task, turns, reply, rewards in episodes:
        others_turns = [message for _, other, *_ in episodes if other != turns for message in other]
        answer = answer_text(task.answer)
        known = answer if answer and answer in reply else None
        good = Good(
            text=reply,
            prompt=prompt_text(task),
            answer=known,
            write=_replacer(reply, known) if known else _same,
            others=_others(known, answers) if known else (),
            turns=turns,
            rewards=rewards,
            other_calls=tuple(call for call in calls_of(others_turns) if call not in calls_of(turns)),
            other_results=tuple(message["content"] for message in others_turns if message["role"] != "assistant"),
        )
        found.append(Source(task=task, good=good, form=""))
    return found


def demonstrated(
    tasks: Sequence[Task], demonstrations: Sequence[Sequence[Message]], most: int
) -> list[tuple[Task, str]]:
    """Up to `most` tasks with the replies that demonstrations give to them; those of no task are passed over."""
    by_prompt = {messages_key(task.messages): task for task in tasks}
    found: list[tuple[Task, str]] = []
    for messages in demonstrations:
        if len(found) == most:
            break
        if task := by_prompt.get(messages_key(messages[:-1])):
            found.append((task, messages[-1]["content"]))
    return found


def messages_key(messages: Sequence[Message]) -> str:
    """Messages as a text that is the same for the same messages."""
    return json.dumps([dict(message) for message in messages], sort_keys=True)


def good_cases(cases: Sequence[Case]) -> list[tuple[Task, str]]:
    """The cases that have to score highest, where others have to score lower; `at_most` asks for no score."""
    wanted = [(case, wish) for case in cases if (wish := _wish(case.expect)) is not None]
    if not wanted:
        return []
    highest, lowest = max(wish for _, wish in wanted), min(wish for _, wish in wanted)
    return [(case.task, case.reply) for case, wish in wanted if wish == highest and (wish > lowest or wish > 0)]


def _wish(expect: Expect) -> float | None:
    """The score that a case asks for; None where it asks for none."""
    if expect.part or expect.abstain:
        return None
    return expect.at_least if expect.equals is None else expect.equals


def _writer(form: str) -> Callable[[str], str]:
    return lambda answer: write_as(form, answer)


def _replacer(reply: str, answer: str) -> Callable[[str], str]:
    return lambda other: reply.replace(answer, other)


def _same(text: str) -> str:
    return text


def _others(answer: str, answers: Iterable[str]) -> tuple[str, ...]:
    of_tasks = [other for other in dict.fromkeys(answers) if not same_answer(other, answer)]
    return tuple(dict.fromkeys([*of_tasks[:6], *other_answers(answer)]))
