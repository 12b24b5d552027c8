"""Small functions to write, judged by what they compute. Scored by `rewards.code_tests:code_tests`, in a sandbox.

With `source` the problems are yours. The cases that come along are for a first experiment.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from rlft.common.rows import is_heldout, read_rows, refuse_negative, row_hash
from rlft.environment.contract import Environment
from rlft.types import Message, Task

_Function = Callable[..., Any]


def load(source: str = "", heldout: float = 0.2, demonstrations: int = 0, cases: int = 6, seed: int = 0) -> Environment:
    """Problems that say what a function called `f` has to return.

    Args:
        source: a table with `prompt`, `function`, and `cases` as `[[arguments, expected], ...]`, in any form that
            `environments.dataset` reads; "" takes the built-in problems.
        heldout: share of the problems that is held out. In a table of yours a hash of prompt and seed decides, so that
            further rows move none of the others.
        demonstrations: built-in problems that are shown solved; they are no tasks.
        cases: calls of each built-in problem.

    Raises:
        ValueError: a row that cannot be used, with its place; or too few problems.
    """
    refuse_negative(heldout=heldout, demonstrations=demonstrations)
    random_ = random.Random(seed)
    if source and demonstrations:
        raise ValueError("demonstrations are for the built-in problems: the table holds no solutions")
    if source:
        sides: tuple[list[Task], list[Task]] = ([], [])
        for task in _read(source):
            sides[is_heldout(row_hash(task.messages[0]["content"], seed), heldout)].append(task)
        return Environment(train=sides[False], heldout=sides[True])
    problems = _built_in(cases, random_)
    random_.shuffle(problems)
    border = round(heldout * len(problems))
    rest = problems[border:]
    if demonstrations >= len(rest):
        raise ValueError(f"{demonstrations} demonstrations leave none of {len(rest)} problems to train on")
    return Environment(
        heldout=[task for task, _ in problems[:border]],
        demonstrations=[
            (*task.messages, Message(role="assistant", content=f"```python\n{solution}\n```"))
            for task, solution in rest[:demonstrations]
        ],
        train=[task for task, _ in rest[demonstrations:]],
    )


def _read(source: str) -> list[Task]:
    found = []
    for number, (where, row) in enumerate(read_rows(source)):
        tests = row.get("cases")
        if not all(isinstance(row.get(name), str) for name in ("prompt", "function")):
            raise ValueError(f"{where}: the columns `prompt` and `function` must hold text; it has {', '.join(row)}")
        if (
            not isinstance(tests, list)
            or not tests
            or any(not isinstance(case, list) or len(case) != 2 or not isinstance(case[0], list) for case in tests)
        ):
            raise ValueError(f"{where}: `cases` must be a list like [[[1, 2], 3]]: arguments, and what they give")
        found.append(_task(str(row.get("id", number)), row["prompt"], row["function"], tests))
    return found


def _task(name: str, prompt: str, function: str, cases: list[Any]) -> Task:
    return Task(id=name, messages=(Message(role="user", content=prompt),), answer=cases, columns={"function": function})


def _built_in(cases: int, random_: random.Random) -> list[tuple[Task, str]]:
    """One problem for each way to say (which items, what of each, how they are put together)."""
    chosen: dict[str, tuple[str, str, _Function]] = {
        "all": ("all numbers", "True", lambda x: True),
        "even": ("the even numbers", "x % 2 == 0", lambda x: x % 2 == 0),
        "odd": ("the odd numbers", "x % 2 == 1", lambda x: x % 2 == 1),
        "positive": ("the positive numbers", "x > 0", lambda x: x > 0),
        "above": ("the numbers above 5", "x > 5", lambda x: x > 5),
    }
    changed: dict[str, tuple[str, str, _Function]] = {
        "same": ("", "x", lambda x: x),
        "doubled": (", each doubled", "2 * x", lambda x: 2 * x),
        "squared": (", each squared", "x * x", lambda x: x * x),
        "next": (", each plus one", "x + 1", lambda x: x + 1),
    }
    joined: dict[str, tuple[str, str, _Function]] = {
        "sum": ("the sum", "sum", sum),
        "largest": ("the largest, or 0 if there is none,", "max", lambda values: max(values, default=0)),
        "count": ("the count", "len", len),
        "sorted": ("the sorted list", "sorted", sorted),
    }
    problems = []
    for which, (items, test, is_chosen) in chosen.items():
        for how, (change, expression, apply) in changed.items():
            for what, (result, call, join) in joined.items():
                inputs = [[random_.randint(-9, 20) for _ in range(random_.randint(0, 7))] for _ in range(cases)]
                expected = [join([apply(x) for x in values if is_chosen(x)]) for values in inputs]
                prompt = (
                    f"Write a Python function f(values) that returns {result} of {items} in the list values{change}."
                )
                tail = ", default=0" if call == "max" else ""
                body = f"{call}([{expression} for x in values if {test}]{tail})"
                tests = [[[values], value] for values, value in zip(inputs, expected, strict=True)]
                task = _task(f"{what}-{which}-{how}", prompt, "f", tests)
                problems.append((task, f"def f(values):\n    return {body}"))
    return problems
