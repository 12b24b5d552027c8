"""Which files of a folder travel to another machine: what git would not ignore, up to a size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

IGNORE_FILES = (".gitignore", ".rayignore")
"""Files of patterns, in git's syntax, in the folder and any folder below it; the second kind is Ray's."""
NEVER = frozenset({".git", ".venv", "venv", "__pycache__"})
MOST_BYTES = 200 * 2**20
"""Most bytes that travel: code and configs, no data sets or models."""
_NAMED = 5


def travelling(folder: Path) -> list[Path]:
    """The files below a folder that travel, relative to it, sorted; links to folders are not followed.

    Raises:
        ValueError: they are larger together than `MOST_BYTES`; the biggest are named. Or a package is missing.
    """
    files = sorted(_walk(folder, Path(), ()))
    sizes = {file: (folder / file).stat().st_size for file in files}
    if (total := sum(sizes.values())) > MOST_BYTES:
        biggest = sorted(files, key=lambda file: -sizes[file])[:_NAMED]
        named = ", ".join(f"{file} ({_megabytes(sizes[file])})" for file in biggest)
        raise ValueError(
            f"{folder} is {_megabytes(total)} without what git ignores, and {_megabytes(MOST_BYTES)} may travel. The "
            f"biggest files: {named}. Put what the run does not need into .gitignore or .rayignore, and data sets and "
            "models where the cluster reaches them"
        )
    return files


def copy_files(folder: Path, files: Sequence[Path], to: Path) -> None:
    """Copy files of a folder to the same places below another one, with their modes."""
    for file in files:
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / file, to / file)


def _walk(root: Path, inner: Path, above: tuple[tuple[Path, Any], ...]) -> Iterator[Path]:
    """Files below `root / inner`; `above` holds the patterns of the folders around it, the outermost first."""
    rules = above
    for name in IGNORE_FILES:
        file = root / inner / name
        if file.is_file():
            rules = (*rules, (inner, _patterns(file)))
    for entry in sorted(os.scandir(root / inner), key=lambda entry: entry.name):
        path = inner / entry.name
        if entry.name in NEVER or (entry.is_symlink() and not entry.is_file()):
            continue
        if _is_ignored(path, rules, is_folder=entry.is_dir()):
            continue
        if entry.is_dir():
            yield from _walk(root, path, rules)
        elif entry.is_file():
            yield path


def _is_ignored(path: Path, rules: Sequence[tuple[Path, Any]], *, is_folder: bool) -> bool:
    """Whether the last pattern that is about a path, of the innermost file that has one, ignores it."""
    for base, patterns in reversed(rules):
        text = path.relative_to(base).as_posix() + ("/" if is_folder else "")
        decision = patterns.check_file(text).include
        if decision is not None:
            return bool(decision)
    return False


def _patterns(file: Path) -> Any:
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as error:
        raise ValueError(f"reading {file} needs the package pathspec: pip install 'rlft[submit]'") from error
    return GitIgnoreSpec.from_lines(file.read_text(encoding="utf-8", errors="replace").splitlines())


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} kB"
