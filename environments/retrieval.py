"""Questions whose answers stand in a corpus that the model has never read: a search tool is its memory.

Retrieval-augmented generation with a non-parametric memory (https://arxiv.org/abs/2005.11401). By default the corpus is
made up from a seed, so that no model can know the answers; with `corpus` and `questions` it is yours.
"""

from __future__ import annotations

import json
import os.path
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlft.common.rows import is_heldout, read_rows, refuse_negative, row_hash
from rlft.common.text_files import Passage, names_a_folder, read_folder
from rlft.environment.contract import Environment
from rlft.environment.search import Search, by_meaning, by_words, query_of
from rlft.environment.tools import Tool, ToolEpisode, make_tools, schemas
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
    search: Literal["bm25", "embeddings", "none"] = "bm25",
    encoder: str = "",
    passages: int = 2,
    passage_words: int = 100,
    people: int = 100,
    heldout: float = 0.2,
    demonstrations: int = 60,
    max_turns: int = 4,
    seed: int = 0,
) -> Environment:
    """Questions about a corpus, with a tool that searches it.

    Args:
        corpus: a folder of texts (.txt, .md, .pdf), or a table with a column `text`, in any form that
            `environments.dataset` reads (of the hub, `OWNER/NAME`); "" makes one up.
        questions: a table with `question` and `answer`, for a corpus of your own; `source`, if there, names the text
            that has the answer, and rows with the same `fact` are held out together.
        search: what the tool finds passages by; `none` gives no tool, which measures what the model knows by itself.
        encoder: folder of a model of sentences, for `search: embeddings`.
        passages: how many the tool returns.
        passage_words: of a folder's texts, the longest passage in words.
        people: whom a made-up corpus is about; two passages and three questions each.
        heldout: share of the people of a made-up corpus whose questions are held out, or of your questions. Of those a
            hash of fact and seed decides, so that further ones move none of the others.
        demonstrations: questions that are shown solved, a search and an answer; they are no tasks. Of your own at most
            half of the training questions, those whose answer a search by the question's own words finds.

    Raises:
        ValueError: a table lacks a column, a text cannot be read, or only one of the two is given.
    """
    refuse_negative(heldout=heldout, demonstrations=demonstrations)
    if bool(corpus) != bool(questions):
        raise ValueError("give both `corpus` and `questions`, or neither")
    if (search == "embeddings") != bool(encoder):
        raise ValueError("`search: embeddings` needs `encoder`, the folder of a model of sentences; others have none")
    notes: list[str] = []
    corpus, questions = os.path.expanduser(corpus), os.path.expanduser(questions)
    if corpus:
        texts, notes = _texts(corpus, passage_words, questions)
        train, held_out = _split(_questions(questions, texts, notes), heldout, seed)
    else:
        random_ = random.Random(seed)
        made_up, asked = _made_up(people, random_)
        texts = [Passage(text=text, source="") for text in made_up]
        random_.shuffle(asked)
        border = round(heldout * len(asked))
        held_out, train = (
            [_Question(text=question, answer=answer) for group in groups for question, answer in group]
            for groups in (asked[:border], asked[border:])
        )
        if demonstrations >= len(train):
            raise ValueError(f"{demonstrations} demonstrations leave none of {len(train)} questions to train on")
    written = [passage.text for passage in texts]
    tools: tuple[Tool, ...] = ()
    find: Callable[[str], str] | None = None
    if search != "none":
        find = _searcher(written, by_words(written) if search == "bm25" else by_meaning(written, encoder), passages)
        tools = make_tools(find)
    most = min(demonstrations, len(train) // 2) if corpus else demonstrations
    shown = [each for each in train if find is None or _finds(find, each)][:most]
    if len(shown) < most:
        notes.append(
            f"{len(shown)} demonstrations instead of {most}: of {len(train)} training questions only those are shown "
            "whose answer stands in what a search by the question's words finds"
        )
    left = {each.text for each in shown}
    return Environment(
        heldout=[_task(each, find is not None) for each in held_out],
        demonstrations=[messages for each in shown for messages in _demonstrations(each, find)],
        train=[_task(each, find is not None) for each in train if each.text not in left],
        episode=lambda: ToolEpisode(tools, _answered),
        tools=schemas(tools),
        max_turns=max_turns,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    text: str
    answer: str
    fact: str = ""
    """What is held out as a whole; the question itself where it says nothing."""
    source: str = ""


def _texts(corpus: str, words: int, questions: str) -> tuple[list[Passage], list[str]]:
    """The passages of a folder or a table, and what was left out."""
    path, beside = Path(corpus), Path(questions)
    if names_a_folder(corpus) or beside.is_relative_to(path):
        made = (
            f"`python configs/data/packages.py {corpus}` writes texts and questions about the packages installed here"
        )
        hint = made if beside == path / "questions.jsonl" else "A data set of the hub is written OWNER/NAME"
        found = read_folder(corpus, words=words, besides=questions, name="args.corpus", otherwise=hint)
        return list(found.passages), list(found.notes)
    rows = read_rows(corpus, name="args.corpus")
    return [Passage(text=_column(row, "text", where), source="") for where, row in rows], []


def _questions(table: str, texts: Sequence[Passage], notes: list[str]) -> list[_Question]:
    """The questions of a table; what no text answers is added to the notes."""
    sources = {passage.source for passage in texts}
    found: dict[str, tuple[str, _Question]] = {}
    unanswered: list[str] = []
    spoken = [f" {' '.join(_words(passage.text))} " for passage in texts]
    for where, row in read_rows(table, name="args.questions"):
        text, answer = _column(row, "question", where), _column(row, "answer", where)
        source = str(row.get("source") or "")
        if source and source not in sources:
            some = ", ".join(sorted(sources)[:3])
            raise ValueError(f"{where}: its source {source!r} is no text of the corpus, whose first ones are {some}")
        if text in found:
            raise ValueError(f"{where}: the question of {found[text][0]} again; leave one of them out")
        found[text] = where, _Question(text=text, answer=answer, fact=str(row.get("fact") or text), source=source)
        wanted = f" {' '.join(_words(answer))} "
        own = (said for said, passage in zip(spoken, texts, strict=True) if not source or passage.source == source)
        if not any(wanted in said for said in own):
            unanswered.append(where)
    if unanswered:
        notes.append(
            f"{len(unanswered)} of {len(found)} answers stand in no passage, or not in one of their source; the first "
            f"is that of {unanswered[0]}"
        )
    return [question for _, question in found.values()]


def _split(questions: Sequence[_Question], heldout: float, seed: int) -> tuple[list[_Question], list[_Question]]:
    sides: tuple[list[_Question], list[_Question]] = ([], [])
    for question in questions:
        sides[is_heldout(row_hash(question.fact, seed), heldout)].append(question)
    return sides


def _answered(task: Task, reply: str) -> float:
    """1 if the short reply holds the answer as whole words, else 0; ten words more than the answer are short."""
    said, wanted = _words(reply), _words(str(task.answer))
    spans = (said[start : start + len(wanted)] for start in range(len(said)))
    return float(len(said) <= len(wanted) + 10 and wanted in spans)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _searcher(texts: Sequence[str], index: Search, passages: int) -> Callable[[str], str]:
    def search(query: str) -> str:
        """
        Finds passages about something.

        Args:
            query: a few words that the passages should hold
        """
        return "\n".join(texts[row] for row in index(query, passages)) or "Nothing was found."

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


def _task(question: _Question, has_tool: bool) -> Task:
    how = "Search first, then answer in a few words." if has_tool else "Answer in a few words."
    columns = {"source": question.source} if question.source else {}
    messages = (Message(role="user", content=f"{question.text} {how}"),)
    return Task(id=question.text, messages=messages, answer=question.answer, columns=columns)


def _query(question: _Question) -> str:
    """What a demonstration searches for."""
    if question.fact:
        return query_of(question.text)
    name = re.search(r"[A-Z]\w+ [A-Z]\w+", question.text)
    assert name
    return f"{name[0]} {'trade worked' if 'trade' in question.text else 'born'}"


def _finds(search: Callable[[str], str], question: _Question) -> bool:
    said, wanted = (f" {' '.join(_words(text))} " for text in (search(_query(question)), question.answer))
    return wanted in said


def _demonstrations(question: _Question, search: Callable[[str], str] | None) -> list[tuple[Message, ...]]:
    asked, answer = _task(question, search is not None).messages, Message(role="assistant", content=question.answer)
    if search is None:
        return [(*asked, answer)]
    arguments = json.dumps({"query": _query(question)}, ensure_ascii=False)
    call = f'<tool_call>{{"name": "search", "arguments": {arguments}}}</tool_call>'
    called = (*asked, Message(role="assistant", content=call))
    result = Message(role="tool", name="search", content=search(_query(question)))
    return [called, (*called, result, answer)]
