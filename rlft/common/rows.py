"""Rows of a table as their authors wrote them: a file, the hub, or a function; each with its place for error messages.

Nothing is guessed: `json` and `csv` are read by Python's own modules, since the readers that infer types turn text that
looks like a date or a number into one.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from rlft.common import json_text
from rlft.common.by_path import describe_error, did_you_mean, import_function

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
PROMPTS = ("messages", "prompt", "question", "instruction", "input", "text", "problem", "query")
"""Columns that are taken as the prompt where nothing else is said, the first that there is."""
ANSWERS = ("answer", "label", "completion", "response", "output", "solution")
"""Columns that are taken as the answer, likewise."""
MARKS = 100
"""Combining marks in a row that are brought into one order; those behind them are another row."""


def read_rows(
    source: str, *, subset: str = "", split: str = "train", name: str = "source"
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a table: every row with its place, `file:line` or `source, row number`.

    Args:
        source: a file of `FORMATS`; `package.module:function` or `file.py:function`, called without arguments; else a
            hub id, or a folder that `datasets` can load.
        subset: of a hub id, what `datasets` calls its configuration.
        split: of a hub id.
        name: what the source is called in error messages.

    Raises:
        ValueError: there is no such source, or it is not readable.
    """
    path = Path(source).expanduser()
    is_function = ":" in source and path.suffix not in FORMATS
    if is_function or path.suffix in FORMATS:
        if subset or split != "train":
            prefix = name.rpartition("source")[0]
            raise ValueError(
                f"{prefix}split and {prefix}subset are for hub ids and folders; {source} is read as a whole"
            )
        return _number(source, _call(source)) if is_function else _file(path, name)
    folder = str(path) if source.startswith("~") else source
    return _number(source, _from_hub(folder, subset, split, name))


def prompt_and_answer(names: Collection[str], prompt: str = "", answer: str = "") -> tuple[str, str]:
    """The columns that ask and that answer, by their names where none is given; empty where there is no such."""
    asked = prompt or next((name for name in PROMPTS if name in names), "")
    return asked, answer or next((name for name in ANSWERS if name in names and name != asked), "")


def taken(asked: str, replied: str) -> str:
    """Which columns were taken, as a sentence."""
    return f"column {asked!r} is taken as the prompt" + (f", {replied!r} as the answer" if replied else "")


def no_file(path: Path, name: str) -> str:
    """That there is no such file, with one that is called nearly so."""
    near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.*")] if path.parent.is_dir() else [])
    return f"{name}: no file {path}.{near}"


def canonical_text(text: str) -> str:
    """The text without differences that nobody sees: in Unicode form NFC, without white space at the ends of lines.

    Two prompts with equal canonical texts are the same prompt, and must not stand on both sides of a split.
    """
    normal = "".join(unicodedata.normalize("NFC", piece) for piece in _pieces(text))
    return "\n".join(line.rstrip() for line in normal.split("\n")).strip("\n")


def _pieces(text: str) -> Iterator[str]:
    """The text, cut within runs of combining marks that no language has: normalizing sorts each run, in time that grows
    with the square of its length."""
    start = run = 0
    for at, char in enumerate("" if text.isascii() else text):
        run = run + 1 if unicodedata.combining(char) else 0
        if run > MARKS:
            yield text[start:at]
            start, run = at, 1
    yield text[start:]


def row_hash(text: str, seed: int) -> str:
    """Hex digest of a row's identifying text (as `canonical_text`) and a seed: its id, and what `is_heldout` asks."""
    return hashlib.sha256(f"{seed}\x1f{canonical_text(text)}".encode(errors="surrogatepass")).hexdigest()


def is_heldout(digest: str, share: float) -> bool:
    """Whether a row with this `row_hash` is held out, when a share of the rows is: wherever it stands, and whatever
    other rows there are.

    Raises:
        ValueError: the share is not at least 0 and below 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"heldout is a share of the rows, at least 0 and below 1, got {share}")
    return int(digest[:8], 16) < share * 16**8


def refuse_negative(**counts: float) -> None:
    """Refuse arguments that count something and are below 0.

    Raises:
        ValueError: names the first one.
    """
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} is {value}, but counts something; use 0 or more")


def _file(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise ValueError(no_file(path, name))
    if path.suffix == ".jsonl":
        return _json_lines(path)
    return _csv(path) if path.suffix == ".csv" else _number(str(path), _whole_file(path))


def _number(source: str, rows: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        yield where, _object(where, row)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark; line breaks stay.

    Raises:
        ValueError: file and line of what is not UTF-8, and how to convert it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                is_wide = line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                raise ValueError(
                    f"{path}:{number}: not UTF-8 text (byte 0x{line[error.start]:02x} at position {error.start}); "
                    f"convert the file, perhaps with: iconv -f {'utf-16' if is_wide else 'latin1'} -t utf-8 "
                    f"{path.name} > utf8{path.suffix}"
                ) from None


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                row = json_text.parse(line)
            except ValueError as error:
                raise ValueError(f"{where}: not JSON: {_within_line(error)}") from None
            yield where, _object(where, row)


def _within_line(error: ValueError) -> str:
    """What is wrong in a line, with the column; the decoder's own number of the line is no file's."""
    if not isinstance(error, JSONDecodeError):
        return str(error)
    return f"{error.msg}: {f'column {error.colno}' if error.lineno == 1 else 'at the end of the line'}"


def _object(where: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with columns, found {type(row).__name__}")
    return row


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(_lines(path), strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            where = f"{path}, row {number}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{where}: it has another number of fields than the header, {len(reader.fieldnames or ())}"
                )
            yield where, row
    except csv.Error as error:
        raise ValueError(
            f"{path}:{reader.reader.line_num}: not readable as CSV: {error}; put texts in quotes and write a quote "
            "within them twice, or write the table as .jsonl, where a text may have any length"
        ) from None


def _whole_file(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(f"{path}: not readable as parquet: {error}") from None
    text = "".join(_lines(path))
    try:
        rows = json_text.parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; one object a line goes into a .jsonl file") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, found {type(rows).__name__}")
    return rows


def _call(source: str) -> list[Any]:
    function = import_function(source, shipped="environments")
    try:
        return list(function())
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"{source} raised:\n{describe_error(error)}") from error


def _from_hub(source: str, subset: str, split: str, name: str) -> Iterable[Any]:
    from datasets import disable_progress_bars, load_dataset  # takes a second, which a file does not need

    disable_progress_bars()
    try:
        return load_dataset(source, subset or None, split=split)
    except Exception as error:  # whatever the many loaders raise, it is about this source
        raise ValueError(
            f"{name}: {source!r} could not be loaded: {error}\nIt is read as a folder or a hub id; a file "
            f"must end in {', '.join(FORMATS)}"
        ) from error
