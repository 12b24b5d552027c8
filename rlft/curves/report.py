"""`write_report`: one HTML file that shows a run. `write_reward_png`: its main curve as a picture.

The HTML file works offline and from anywhere: data, scripts and styles are in it, and its content security policy
forbids every origin and every script but the one whose hash it names. Whatever a model, a data set or a config wrote is
in a block of data that no browser runs, and is set as text where it is shown.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft.curves import pages, reading
from rlft.run import damage

if TYPE_CHECKING:
    from rlft.curves.verdict import Verdict

STYLES = ("base.css", "page.css", "print.css")
"""Style sheets of the page."""


def write_report(run: Path, out: Path | None = None, verdict: Verdict | None = None) -> Path:
    """Write `report.html` into the run directory, or into `out`, and return its path; `verdict` as for `page_data`.

    A running run can be reported, too. A file that is damaged is left out, and the page says so. Raises ValueError if
    this is not a run directory or its config is damaged, and OSError if the report cannot be written.
    """
    from rlft.curves.page_data import page_data

    return _replace((out or Path(run)) / "report.html", offline_page(page_data(Path(run), verdict=verdict)))


def offline_page(data: dict[str, Any]) -> bytes:
    """The page with its data in it."""
    return page(data, pages.packed(pages.as_json(data)), live=False)


def page(data: dict[str, Any], block: str, *, live: bool) -> bytes:
    """The HTML of a run's page.

    Args:
        data: its data, of which the verdict is also readable without scripts.
        block: the data as `pages.packed` makes it; empty where the page asks its server for it.
        live: whether there is a server to ask.
    """
    from markupsafe import Markup

    style, script = pages.styles(*STYLES), pages.script("main.js")
    return pages.render(
        "report.html.j2",
        title=data["name"],
        verdict=data["verdict"],
        style=Markup(style),
        style_hash=pages.source_hash(style),
        script=Markup(script),
        script_hash=pages.source_hash(script),
        data=Markup(block),
        live=live,
    )


def write_reward_png(run: Path, out: Path | None = None) -> Path:
    """Write `reward.png` (1350 x 900 pixels) into the run directory, or into `out`, and return its path.

    Above, the train reward with its 95 % band; below, the held-out accuracy with 95 % intervals and base and
    SFT as reference lines; in both, shadow rewards. A panel without data is left out. Raises ValueError and
    OSError as `write_report` does.
    """
    from rlft.curves.png import draw
    from rlft.curves.shadow import shadow_names

    run = Path(run)
    config = reading.read_config(run)
    with damage.left_out():  # the page says what
        rows, evals = reading.read_metrics(run, []), reading.read_evals(run)
    shadows = shadow_names(reading.reward_specs(config))
    return _replace((out or run) / "reward.png", draw(str(config.get("name") or run.name), rows, evals, shadows))


def _replace(path: Path, content: bytes) -> Path:
    """Write a file in one step, so that a reader never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
    return path
