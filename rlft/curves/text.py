"""Numbers and foreign text as a reader should see them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from rlft.run.records import Interval


def number(value: float) -> str:
    """Three significant digits, large ones with separators; a dash for nan."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:#.3g}".rstrip(".")


def percent(value: float) -> str:
    """A share as a percentage; a dash for nan."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{100 * value:.1f} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 reply`, `2 replies`: a number with its noun, whose plural is the noun and an s where none is given."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def interval_text(interval: Interval, sign: str = "") -> str:
    """`0.78 [0.72, 0.83]`; a third decimal where two would hide the width; no brackets without bounds."""
    digits = 3 if interval.bounded and interval.high - interval.low < 0.02 else 2
    show = f"{{:{sign}.{digits}f}}".format
    if not math.isfinite(interval.mean):
        return "\N{EN DASH}"
    if not interval.bounded:
        return show(interval.mean)
    return f"{show(interval.mean)} [{show(interval.low)}, {show(interval.high)}]"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`; a dash for nan."""
    if not math.isfinite(seconds):
        return "\N{EN DASH}"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def visible(text: str) -> str:
    """Text in which nothing acts on the reader's screen: control characters, terminal escapes, text-direction
    overrides and lone surrogates are replaced by something that can be seen. Tabs and line breaks stay."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(char if char in "\n\t" or char.isprintable() else _shown(char) for char in text)


def shortened(text: str, limit: int = 4000) -> str:
    """The text, or its beginning and end with the number of characters left out between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    gap = f"\N{HORIZONTAL ELLIPSIS} {len(text) - 2 * half:,} characters left out \N{HORIZONTAL ELLIPSIS}"
    return f"{text[:half]}\n{gap}\n{text[-half:]}"


def _shown(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # the symbol for this control character, such as the one for escape
    if unicodedata.category(char) == "Zs":
        return char  # wide and narrow spaces count as not printable, and do no harm
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"<U+{code:04X}>"


def format_accuracy(accuracy: Interval, missing: str = "") -> str:
    """`0.412 [0.345, 0.482]  n=200`, and what is missing in it, as `Evaluation.missing` says."""
    bounds = f" [{accuracy.low:.3f}, {accuracy.high:.3f}]" if accuracy.bounded else ""
    return f"{accuracy.mean:.3f}{bounds}  n={accuracy.n}{f', {missing}' if missing else ''}"


def sampled(settings: Any, default: float) -> str:
    """How the completions behind a number were sampled."""
    given = settings if isinstance(settings, Mapping) else {}
    temperature, top_p = given.get("temperature", default), given.get("top_p", 1.0)
    if temperature == 0:
        return "greedy"
    return f"T = {temperature:g}" + (f", top-p {top_p:g}" if top_p < 1 else "")
