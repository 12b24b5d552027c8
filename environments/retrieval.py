"""Questions whose answers stand in a corpus that the model has never read: a search tool is its memory.

Retrieval-augmented generation with a non-parametric memory (https://arxiv.org/abs/2005.11401); the index is BM25
(`bm25s`). By default the corpus is made up from a seed, so that no model can know the answers; with `corpus` and
`questions` it is yours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlft.common.rows import is_heldout, read_rows, refuse_negative, row_hash
from rlft.environment.contract import Environment
from rlft.environment.tools import ToolEpisode, make_tools, schemas
from rlft.types import Message, Task

_NAMES = ("Ada", "Bruno", "Clara", "Dario", "Edda", "Falk", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Luis")
_FAMILIES = ("Arnholt", "Bellweg", "Corvin", "Drostan", "Elmsford", "Farrow", "Grindel", "Haldane", "Ivery", "Jessop")
_TOWNS = ("Kelham", "Lorwick", "Marsten", "Norbury", "Ostrand", "Pellham", "Quenby", "Rosswell", "Stavern", "Tarnby")
_TRADES = (
    "baker",
    "clockmaker",
    "glazier",
    "gardener",
    "printer",
    "carpenter",
    "teacher",
    "sailor",
    "weaver",
    "painter",
)
_FACTS = (
    ("In which town was {name} born?", "{name} was born in {town} in the year {year}.", "town"),
    ("In which year was {name} born?", "{name} was born in {town} in the year {year}.", "year"),
    ("What was the trade of {name}?", "For most of a long life {name} worked as a {trade}.", "trade"),
)


def load(
    corpus: str = "",
    questions: str = "",
    passages: int = 2,
    people: int = 100,
    heldout: float = 0.2,
    demonstrations: int = 60,
    max_turns: int = 4,
    seed: int = 0,
) -> Environment:
    """Questions about a corpus, with a tool that searches it.

    Args:
        corpus: a table with a column `text`, in any form that `environments.dataset` reads; "" makes one up.
        questions: a table with `question` and `answer`, for a corpus of your own.
        passages: how many the tool returns.
        people: whom a made-up corpus is about; two passages and three questions each.
        heldout: share of the people of a made-up corpus whose questions are held out, or of your questions. Of those a
            hash of question and seed decides, so that further ones move none of the others.
        demonstrations: made-up questions that are shown solved, in two conversations each; they are no tasks.

    Raises:
        ValueError: a table lacks a column, or only one of the two is given.
    """
    refuse_negative(heldout=heldout, demonstrations=demonstrations)
    random_ = random.Random(seed)
    if bool(corpus) != bool(questions):
        raise ValueError("give both `corpus` and `questions`, or neither")
    if corpus:
        texts = [_column(row, "text", where) for where, row in read_rows(corpus, name="corpus")]
        sides: tuple[list[Task], list[Task]] = ([], [])
        for where, row in read_rows(questions, name="questions"):
            task = _task(_column(row, "question", where), _column(row, "answer", where))
            sides[is_heldout(row_hash(task.id, seed), heldout)].append(task)
        train, held_out = sides
        demonstrations = 0
    else:
        texts, asked = _made_up(people, random_)
        random_.shuffle(asked)
        border = round(heldout * len(asked))
        held_out, train = (
            [_task(question, answer) for group in groups for question, answer in group]
            for groups in (asked[:border], asked[border:])
        )
    tools = make_tools(_searcher(texts, passages))
    if demonstrations >= len(train):
        raise ValueError(f"{demonstrations} demonstrations leave none of {len(train)} questions to train on")
    return Environment(
        heldout=held_out,
        demonstrations=[shown for task in train[:demonstrations] for shown in _demonstrations(task, tools[0].function)],
        train=train[demonstrations:],
        episode=lambda: ToolEpisode(tools, _answered),
        tools=schemas(tools),
        max_turns=max_turns,
    )


def _answered(task: Task, reply: str) -> float:
    """1 if the short reply holds the answer as whole words, else 0; ten words more than the answer are short."""
    said, wanted = _words(reply), _words(str(task.answer))
    spans = (said[start : start + len(wanted)] for start in range(len(said)))
    return float(len(said) <= len(wanted) + 10 and wanted in spans)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _searcher(texts: Sequence[str], passages: int) -> Callable[[str], str]:
    import bm25s

    if not texts:
        raise ValueError("the corpus is empty")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)

    def search(query: str) -> str:
        """
        Finds passages about something.

        Args:
            query: a few words that the passages should hold
        """
        words = bm25s.tokenize([query], stopwords="en", show_progress=False, return_ids=False)
        scores = index.get_scores(words[0]) if words[0] else []
        # Best first, and in the corpus's order where equal: nothing depends on how the library sorts.
        ranked = sorted((-score, row) for row, score in enumerate(scores) if score > 0)[:passages]
        return "\n".join(texts[row] for _, row in ranked) or "Nothing was found."

    return search


def _column(row: Mapping[str, Any], name: str, where: str) -> str:
    if row.get(name) in (None, ""):
        raise ValueError(f"{where}: no column {name!r}; it has {', '.join(map(str, row))}")
    return str(row[name])


def _made_up(people: int, random_: random.Random) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """(the passages, each person's questions with their answers)."""
    names = [f"{name} {family}" for name in _NAMES for family in _FAMILIES]
    if not 1 <= people <= len(names):
        raise ValueError(f"people is {people}; a made-up corpus knows 1 to {len(names)}")
    texts: dict[str, None] = {}
    asked = []
    for name in random_.sample(names, people):
        facts = {
            **{"name": name, "town": random_.choice(_TOWNS), "trade": random_.choice(_TRADES)},
            "year": str(random_.randint(1850, 1949)),
        }
        asked.append([(question.format(**facts), facts[key]) for question, _, key in _FACTS])
        texts |= dict.fromkeys(text.format(**facts) for _, text, _ in _FACTS)
    shuffled = list(texts)
    random_.shuffle(shuffled)
    return shuffled, asked


def _task(question: str, answer: str) -> Task:
    text = f"{question} Search first, then answer in a few words."
    return Task(id=question, messages=(Message(role="user", content=text),), answer=answer)


def _demonstrations(task: Task, search: Callable[[str], str]) -> tuple[tuple[Message, ...], ...]:
    found = re.search(r"[A-Z]\w+ [A-Z]\w+", task.id)
    assert found
    query = f"{found[0]} {'trade worked' if 'trade' in task.id else 'born'}"
    call = f'<tool_call>{{"name": "search", "arguments": {{"query": "{query}"}}}}</tool_call>'
    called = (*task.messages, Message(role="assistant", content=call))
    result = Message(role="tool", name="search", content=search(query))
    return called, (*called, result, Message(role="assistant", content=str(task.answer)))
