"""The environment: questions about prices, and a tool that knows them.

The prices are made up, so no model has ever seen them: without the tool they can only be guessed. Two demonstrations of
each shown article (the call, then the answer) teach the format in the warm start; RL makes the calls reliable.
"""

from __future__ import annotations

import random

from rlft.environment.contract import Environment
from rlft.environment.tools import ToolEpisode, make_tools, schemas
from rlft.types import Message, Task

THINGS = (
    *("lamp", "chair", "kettle", "blanket", "notebook", "bottle", "candle", "umbrella", "knife", "mirror"),
    *("towel", "basket", "keyboard", "curtain", "hammer", "brush", "clock", "map", "bowl", "pencil"),
)
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
ARTICLES = tuple(f"{colour} {thing}" for thing in THINGS for colour in COLOURS)
PRICES = dict(zip(ARTICLES, random.Random(7).choices(range(2, 100), k=len(ARTICLES)), strict=True))


def price_of(article: str) -> str:
    """
    Looks up the price of an article.

    Args:
        article: colour and thing, such as "red lamp"
    """
    return str(PRICES[article]) if article in PRICES else f"There is no {article!r}."


TOOLS = make_tools(price_of)


def load(heldout: int = 50, demonstrations: int = 14, seed: int = 0) -> Environment:
    """Questions about one article each; held-out, shown and training articles are three disjoint sets.

    The same arguments have to give the same tasks: every worker and every resumed run calls this again.

    Args:
        heldout: articles that are only measured on.
        demonstrations: articles that the warm start shows; the others are trained on.
    """
    articles = list(ARTICLES)
    random.Random(seed).shuffle(articles)
    shown = articles[heldout : heldout + demonstrations]
    return Environment(
        heldout=[task(article) for article in articles[:heldout]],
        demonstrations=[conversation for article in shown for conversation in demonstrate(article)],
        train=[task(article) for article in articles[heldout + demonstrations :]],
        episode=lambda: ToolEpisode(TOOLS),  # ends with the first reply that calls no tool
        tools=schemas(TOOLS),
        max_turns=2,  # the call and the answer
    )


def task(article: str) -> Task:
    """One question."""
    question = f"What does a {article} cost? Look it up, then answer with the price."
    return Task(id=article, messages=({"role": "user", "content": question},), answer=str(PRICES[article]))


def demonstrate(article: str) -> tuple[tuple[Message, ...], ...]:
    """Two conversations, of which the last message is learnt: the call, and the answer to what the tool said."""
    asked = task(article)
    call = f'<tool_call>{{"name": "price_of", "arguments": {{"article": "{article}"}}}}</tool_call>'
    called = (*asked.messages, Message(role="assistant", content=call))
    result = Message(role="tool", name="price_of", content=price_of(article))
    return called, (*called, result, Message(role="assistant", content=f"It costs {asked.answer}."))
