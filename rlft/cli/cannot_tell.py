"""Commands that decide about runs: what they print and exit with where they cannot, because something cannot be read.

Exit code 1 is an answer of theirs (worse, an alarm, something differs), so an error must not end in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from rlft.common.files import describe_os_error
from rlft.curves.text import visible

CANNOT_TELL = 2
"""Their exit code where nothing can be told."""


@contextmanager
def refusals(*, as_json: bool, also: Callable[[str], None] | None = None, **told: Any) -> Iterator[None]:
    """Let what cannot be read within the block end the command with `CANNOT_TELL`; stderr says it, and JSON on stdout.

    Args:
        as_json: whether the command was to print JSON.
        also: called with the error's text before the command ends.
        told: further keys of the JSON object.
    """
    try:
        yield
    except typer.Exit:  # is a RuntimeError
        raise
    except (ValueError, RuntimeError, OSError) as error:
        is_of_files = isinstance(error, OSError) and not isinstance(error, ConnectionError)
        text = describe_os_error(error) if is_of_files else str(error)  # type: ignore[arg-type]
        Console(stderr=True).print(Text(visible(f"error: {text}"), style="red"), soft_wrap=True)
        if as_json:
            answer = {"verdict": "cant_tell", "exit_code": CANNOT_TELL, "sentence": f"CAN'T TELL: {text}"}
            print(json.dumps({**told, **answer, "reasons": [text]}, indent=1))
        if also is not None:
            also(text)
        raise typer.Exit(CANNOT_TELL) from None
