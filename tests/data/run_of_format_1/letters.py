"""Tasks of a run from before the rooms: reply with the letter a."""

from rlft.environment.contract import Environment
from rlft.types import Task


def letters() -> Environment:
    def task(split: str, index: int) -> Task:
        return Task(id=f"{split}-{index}", messages=({"role": "user", "content": f"{split}{index}"},), answer="a")

    return Environment(
        train=[task("train", i) for i in range(8)], heldout=[task("heldout", i) for i in range(8)], demonstrations=[]
    )
