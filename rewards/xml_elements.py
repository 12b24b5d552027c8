"""XML: the reply is one well-formed element, and holds the elements that it should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.parsers import expat

from rlft.reward.extract import code_block


def xml_elements(completion: str, root: str = "", elements: Sequence[str] = ()) -> dict[str, float]:
    """1 for well-formed XML with every one of the elements, which have to hold text; `well_formed` is observed.

    The XML is the whole reply or its block between triple backticks. Nothing else may stand around it.

    Elements without a letter or a number do not count, nor does XML that has none at all, but what stands in them is
    not judged: use it as the condition of another reward. An entity of its own, with which a few lines become
    gigabytes, makes the reply no XML.

    Args:
        root: name of the outermost element; "" for any.
        elements: names that have to occur, anywhere inside.
    """
    text = completion.strip()
    if text.startswith("```"):
        text = (code_block(text, "xml") or "").strip() if text.endswith("```") else ""
    opened: list[str] = []
    filled: set[str] = set()
    outermost: list[str] = []

    def start(name: str, attributes: Any) -> None:
        outermost.extend([] if opened or outermost else [name])
        opened.append(name)

    def data(text: str) -> None:
        filled.update(opened[-1:] if any(map(str.isalnum, text)) else [])

    def refuse(*_: Any) -> None:
        raise ValueError("entities are refused")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler = start, data
    parser.EndElementHandler = lambda name: opened.pop()
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError):
        return {"score": 0.0, "well_formed": 0.0}
    right = bool(filled) and (not root or outermost == [root]) and set(elements) <= filled
    return {"score": float(right), "well_formed": 1.0}
