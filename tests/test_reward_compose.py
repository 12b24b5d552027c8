"""Rewards made of rewards: signature, parts, abstentions, failures, coroutines."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlft.reward.compose import clip, gate, weighted
from rlft.reward.contract import plan_call
from rlft.types import RewardSpec

README = (Path(__file__).parents[1] / "rewards" / "README.md").read_text(encoding="utf-8")


def right(completion: str, answer: str | None) -> float | None:
    return None if answer is None else float(completion == answer)


def styled(completion: str, style: str = "plain", **columns: Any) -> dict[str, float]:
    return {"plain": float(style == "plain"), "columns": len(columns)}


async def slow(completion: str) -> float:
    await asyncio.sleep(0)
    return float(len(completion))


def grouped(group: Any) -> list[float]:
    return []


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE))
def test_the_examples_hold(block: str) -> None:
    assert "assert " in block
    exec(block, {"__name__": "example"})


def test_the_parameters_of_all_are_asked_for_by_name() -> None:
    made = weighted({"right": (1.0, right), "styled": (0.5, styled)})
    plan = plan_call(made, RewardSpec(path="mine.py:made", args={"style": "plain"}))
    assert plan.parameters == {"completion", "answer", "style"}
    assert plan.required == {"completion", "answer"}
    assert (plan.kind, plan.takes_any, plan.is_async) == ("sample", True, False)
    assert made.__module__ == __name__
    found = made(completion="4", answer="4", style="plain", other=1)
    # `styled` takes any column, so it gets the answer, too
    assert found == {"right": 1.0, "styled.plain": 1.0, "styled.columns": 2.0, "styled": 3.0, "score": 2.5}


def test_what_abstains_is_left_out() -> None:
    made = weighted({"right": (1.0, right), "styled": (1.0, styled)})
    assert "right" not in made(completion="4", answer=None)
    assert weighted({"right": (1.0, right)})(completion="4", answer=None) is None
    assert clip(right, 0, 1)(completion="4", answer=None) is None
    assert gate(right, styled)(completion="4", answer=None) is None
    assert gate(styled, right, least=0)(completion="4", answer=None) is None


def test_a_closed_gate_calls_nothing() -> None:
    def breaks(completion: str) -> float:
        raise RuntimeError("called")

    made = gate(right, breaks, closed=-1.0)
    assert made(completion="5", answer="4") == {"gate": 0.0, "score": -1.0}
    with pytest.raises(RuntimeError, match="called"):
        made(completion="4", answer="4")


def test_a_value_that_is_none_is_an_error_with_a_name() -> None:
    def broken(completion: str) -> Any:
        return "high"

    with pytest.raises(ValueError, match="broken: expected a number"):
        clip(broken, 0, 1)(completion="x")


def test_coroutines_are_awaited() -> None:
    made = gate(right, clip(slow, 0, 2))
    assert inspect.iscoroutinefunction(made)
    assert plan_call(made, RewardSpec(path="mine.py:made")).is_async
    assert asyncio.run(made(completion="four", answer="four")) == {"gate": 1.0, "score": 2.0}


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(ValueError, match="grouped is called for a whole group"):
        clip(grouped, 0, 1)
    with pytest.raises(ValueError, match=r"parameter 'style', with the defaults 'plain' and 'bold'"):
        weighted({"one": (1.0, styled), "two": (1.0, partial(styled, style="bold"))})
    with pytest.raises(ValueError, match="clip needs low <= high"):
        clip(right, 1, 0)
    with pytest.raises(ValueError, match="weighted needs rewards by name"):
        weighted({})
    for wrong, said in (
        ({"a": right}, "'a' has <function right"),
        ([(1.0, right)], "got \\[\\(1.0, "),
        ({"a": ("0.5", right)}, "the weight of 'a' is '0.5', and has to be a finite number"),
        ({"a": (math.nan, right)}, "the weight of 'a' is nan"),
        ({"a": (1.0, "right")}, "'a' has \\(1.0, 'right'\\)"),
    ):
        with pytest.raises(ValueError, match=f"weighted needs rewards by name, each with its weight.*{said}"):
            weighted(wrong)  # type: ignore[arg-type]
