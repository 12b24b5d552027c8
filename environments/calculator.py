"""Products that are too long for the head, and a calculator: the shortest example of a tool.

The episode ends with the first reply that calls no tool; it is scored here, 1 for the right number. A model that has
never called a tool needs the demonstrations: one shows the call, one the answer.
"""

from __future__ import annotations

import random
import re

from rlft.common.arithmetic import evaluate, show
from rlft.common.rows import refuse_negative
from rlft.environment.contract import Environment
from rlft.environment.tools import ToolEpisode, make_tools, schemas
from rlft.types import Message, Task


def load(
    low: int = 11, high: int = 99, tasks: int = 600, heldout: int = 100, demonstrations: int = 100, seed: int = 0
) -> Environment:
    """Expressions of three numbers from low to high.

    Args:
        tasks: problems in all.
        demonstrations: problems that are shown solved, in two conversations each; they are no tasks.

    Raises:
        ValueError: too few problems.
    """
    refuse_negative(tasks=tasks, heldout=heldout, demonstrations=demonstrations)
    if heldout + demonstrations >= tasks or tasks > (high - low + 1) ** 3:
        raise ValueError(
            f"{tasks} problems from {low} to {high} do not leave any beside {heldout} and {demonstrations}"
        )
    random_ = random.Random(seed)
    expressions: dict[str, None] = {}
    while len(expressions) < tasks:
        a, b, c = (random_.randint(low, high) for _ in range(3))
        expressions[f"{a} {random_.choice('+-')} {b} * {c}"] = None
    listed = list(expressions)

    def calculate(expression: str) -> str:
        """
        Computes an arithmetic expression.

        Args:
            expression: numbers, + - * / and brackets, such as 12 * (3 + 4)
        """
        return show(evaluate(expression)[0])

    tools = make_tools(calculate)
    return Environment(
        heldout=[_task(expression) for expression in listed[:heldout]],
        demonstrations=[
            shown for expression in listed[heldout : heldout + demonstrations] for shown in _demonstrations(expression)
        ],
        train=[_task(expression) for expression in listed[heldout + demonstrations :]],
        episode=lambda: ToolEpisode(tools, _score),
        tools=schemas(tools),
        max_turns=4,
    )


def _task(expression: str) -> Task:
    question = f"What is {expression}? Use the calculator, then answer with the number only."
    return Task(id=expression, messages=({"role": "user", "content": question},), answer=show(evaluate(expression)[0]))


def _score(task: Task, reply: str) -> float:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", reply)
    return float(len(numbers) == 1 and numbers[0] == task.answer)


def _demonstrations(expression: str) -> tuple[tuple[Message, ...], ...]:
    task = _task(expression)
    call = Message(
        role="assistant",
        content=f'<tool_call>{{"name": "calculate", "arguments": {{"expression": "{expression}"}}}}</tool_call>',
    )
    result = Message(role="tool", name="calculate", content=task.answer)
    called = (*task.messages, call)
    return called, (*called, result, Message(role="assistant", content=task.answer))
