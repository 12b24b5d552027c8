"""Texts and questions about the Python packages that are installed here, for configs/retrieval.yaml.

    python configs/data/packages.py FOLDER

writes a text for each package, made of what the package says about itself, and `questions.jsonl` beside them: its
version, the least Python that it needs, and its licence where that is a short name. All questions about a package are
one `fact`, so that none of them is trained on where another one is held out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path


def write(folder: Path) -> tuple[int, int]:
    """Write the texts and the questions; how many of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {each.name.lower(): each for each in distributions() if each.name}
    questions: list[dict[str, str]] = []
    for _, each in sorted(found.items()):
        facts = list(_facts(each))
        summary = " ".join((each.metadata.get("Summary") or "").split())
        said = [
            f"# {each.name}",
            f"{each.name} is a Python package: {summary}" if summary else "",
            " ".join(f[0] for f in facts),
        ]
        file = f"{each.name.lower()}.md"
        (folder / file).write_text("\n\n".join(part for part in said if part) + "\n", encoding="utf-8")
        questions += [
            {"question": question, "answer": answer, "source": file, "fact": each.name} for _, question, answer in facts
        ]
    lines = "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    return len(found), len(questions)


def _facts(package: Distribution) -> Iterator[tuple[str, str, str]]:
    """(a sentence of the text, a question, its answer)"""
    name, metadata = package.name, package.metadata
    version = package.version
    yield f"The version of {name} that is installed is {version}.", f"Which version of {name} is installed?", version
    if least := re.search(r">=?\s*(\d+(?:\.\d+)*)", metadata.get("Requires-Python") or ""):
        yield f"{name} needs Python {least[1]} or newer.", f"Which Python does {name} need at least?", least[1]
    licence = metadata.get("License-Expression") or metadata.get("License") or ""
    if re.fullmatch(r"[\w.+-]+( [\w.+-]+){0,2}", licence.strip()):
        said = licence.strip()
        yield f"The licence of {name} is {said}.", f"What is the licence of {name}?", said


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    texts, asked = write(Path(sys.argv[1]))
    print(f"{texts} texts and {asked} questions are in {sys.argv[1]}")
