"""A user's folder of texts as passages: plain text, Markdown, and PDF by pypdf (the extra `pdf`).

What a text says is data: it is cut, never interpreted, but for Markdown's headings, at which passages begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.common.rows import FORMATS
from rlft.types import whole_text

KINDS = (".txt", ".md", ".markdown", ".pdf")
_HEADING = re.compile(r"#{1,6}\s")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A stretch of a text, short enough to be read as an answer to a search."""

    text: str
    """What it says; paragraphs are apart by an empty line."""
    source: str
    """The text's path within the folder, with `/`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a folder holds."""

    passages: tuple[Passage, ...]
    """In the order of the paths, then of the text."""
    notes: tuple[str, ...]
    """What was left out, in words."""


def names_a_folder(source: str) -> bool:
    """Whether a name means a folder of this machine, there or not; else a table of `rows.read_rows`.

    A hub id, `OWNER/NAME`, has the form of a path too: it is taken for one where the folder OWNER is there.
    """
    path = Path(source)
    if path.is_dir():
        return True
    is_hub_id = source.count("/") == 1 and not source.startswith((".", "~", "/")) and not path.parent.is_dir()
    return not is_hub_id and path.suffix not in FORMATS and ":" not in source


def read_folder(folder: str, *, words: int, besides: str = "", name: str = "corpus", otherwise: str = "") -> Texts:
    """Read every text of a folder and of the folders in it, and cut each into passages.

    Paragraphs, which are apart by empty lines, are joined while they have no more than `words` words together; a longer
    one is cut between words. A heading of Markdown begins a new passage. Files and folders whose names begin with a dot
    are left out; other kinds of files are, too, and counted.

    Args:
        besides: a file that may lie in it and is no text, nor told as left out.
        name: what the folder is called in errors.
        otherwise: a sentence for the error where there is no such folder.

    Raises:
        ValueError: no such folder, no text in it, or one that cannot be read: its file and line, or page.
    """
    root = Path(folder)
    if words < 10:
        raise ValueError(f"a passage of {words} words says too little; use 10 or more")
    if not root.is_dir():
        raise ValueError(f"{name}: {_no_folder(root)}{f' {otherwise}' if otherwise else ''}")
    files = sorted(
        (file.relative_to(root).as_posix(), file)
        for file in root.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    texts = [(path, file) for path, file in files if file.suffix.lower() in KINDS]
    if not texts:
        raise ValueError(f"{name}: {folder} has no file that ends with {', '.join(KINDS)}")
    passages: list[Passage] = []
    empty: list[str] = []
    for path, file in texts:
        read = _pdf if file.suffix.lower() == ".pdf" else _plain
        cut = [Passage(text=text, source=path) for text in cut_text(read(file), words, file.suffix.lower() != ".txt")]
        passages += cut
        empty += [] if cut else [path]
    if not passages:
        raise ValueError(f"{name}: the {len(texts)} texts in {folder} are empty")
    known = Path(besides).absolute() if besides else None
    others = [path for path, file in files if file.suffix.lower() not in KINDS and file.absolute() != known]
    return Texts(passages=tuple(passages), notes=tuple(_notes(folder, empty, others)))


def cut_text(text: str, words: int, has_headings: bool) -> list[str]:
    """The passages of a text, see `read_folder`."""
    found: list[str] = []
    parts: list[str] = []
    count = 0

    def close() -> None:
        nonlocal count
        if parts:
            found.append("\n\n".join(parts))
        parts.clear()
        count = 0

    for paragraph in re.split(r"\n[ \t]*\n", text):
        stripped = paragraph.strip()
        if has_headings and _HEADING.match(stripped):
            close()
        length = len(stripped.split())
        if count and count + length > words:
            close()
        if length > words:
            of_paragraph = stripped.split()
            found += [" ".join(of_paragraph[at : at + words]) for at in range(0, length, words)]
        elif length:
            parts.append(stripped)
            count += length
    close()
    return found


def _plain(file: Path) -> str:
    data = file.read_bytes()
    try:
        return _clean(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}); convert the file, perhaps with: "
            f"iconv -f latin1 -t utf-8 {file.name}"
        ) from None


def _pdf(file: Path) -> str:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise ValueError(f"{file}: reading PDF needs pypdf; pip install 'rlft[pdf]', or save it as text") from None
    try:
        reader = PdfReader(file)
        is_locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if is_locked else list(reader.pages)
    except Exception as error:  # pypdf raises many kinds on damaged files
        raise ValueError(f"{file}: not a PDF that can be read: {error}") from None
    if is_locked:
        raise ValueError(f"{file}: it is protected by a password; save it without one")
    texts = [_clean(text) for text in _of_pages(file, pages)]
    if not any(text.strip() for text in texts):
        raise ValueError(
            f"{file}: none of its {len(pages)} pages has text; scanned pages need OCR first, for example by ocrmypdf"
        )
    return "\n\n".join(texts)


def _of_pages(file: Path, pages: list[Any]) -> Iterator[str]:
    for number, page in enumerate(pages, start=1):
        try:
            yield page.extract_text() or ""
        except Exception as error:  # as above
            raise ValueError(f"{file}, page {number}: its text cannot be read: {error}") from None


def _clean(text: str) -> str:
    """The text without control characters, which no tokenizer was trained on, and with one kind of line break."""
    return _CONTROLS.sub(" ", whole_text(text).replace("\r\n", "\n").replace("\r", "\n"))


def _no_folder(path: Path) -> str:
    """That a folder is not there, with one that is called nearly so, at the first part of the path that is missing."""
    if path.exists():
        return f"{path} is a file, not a folder."
    lost = next(part for part in (*reversed(path.parents), path) if not part.is_dir())
    near = did_you_mean(str(lost), [str(each) for each in sorted(lost.parent.glob("*")) if each.is_dir()])
    return f"no folder {path}{'' if lost == path else f', nor {lost}'}.{near}"


def _notes(folder: str, empty: list[str], others: list[str]) -> Iterator[str]:
    for what, files in (("texts that are empty", empty), (f"files that are not {', '.join(KINDS)}", others)):
        if files:
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            yield f"{folder}: left out {len(files)} {what}: {', '.join(files[:3])}{more}"
