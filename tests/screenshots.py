"""Screenshots of the pages of the gallery's runs, or of real ones, to be looked at: `python -m tests.screenshots OUT`.

python -m tests.screenshots /tmp/shots                  # desktop, phone, dark and print of each kind of run
python -m tests.screenshots /tmp/shots runs/quickstart  # of this run
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlft.curves.report import write_report
from tests.browser import chromium, open_page
from tests.gallery import GALLERY, compared

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}


@contextmanager
def reports(runs: list[str]) -> Iterator[dict[str, Path]]:
    """The page of each run, of the gallery's where none is named."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: make(Path(folder) / name) for name, make in GALLERY.items()} if not runs else {}
        found |= {Path(run).name: Path(run) for run in runs}
        out = Path(folder) / "pages"
        for name, run in found.items():
            (out / name).mkdir(parents=True)
            write_report(run, out / name)
        yield {name: out / name / "report.html" for name in found}


def main() -> None:
    """Write the pictures, and a PDF of what is printed."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with reports(sys.argv[2:]) as pages, chromium() as browser:
        for name, path in pages.items():
            url = path.as_uri()
            with open_page(browser, url, **DESKTOP) as page:
                page.screenshot(path=out / f"{name}-first.png")
                _scroll_through(page)
                page.screenshot(path=out / f"{name}-whole.png", full_page=True)
                page.pdf(path=out / f"{name}.pdf", prefer_css_page_size=True)
            with open_page(browser, url, **DESKTOP, color_scheme="dark") as page:
                page.screenshot(path=out / f"{name}-dark.png")
            with open_page(browser, url, **PHONE) as page:
                _scroll_through(page)
                page.screenshot(path=out / f"{name}-phone.png", full_page=True)
            print(f"{out}/{name}-*.png")
        if not sys.argv[2:]:
            _pictures_of_comparison(browser, out)


def _scroll_through(page: Any) -> None:
    """Charts are drawn when they are seen."""
    for top in range(0, min(20_000, page.evaluate("document.body.scrollHeight")), 600):
        page.evaluate(f"scrollTo(0, {top})")
        page.wait_for_timeout(30)
    page.evaluate("scrollTo(0, 0)")


def _pictures_of_comparison(browser: Any, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = compared(Path(folder)).as_uri()
        for name, screen in (("whole", DESKTOP), ("dark", {**DESKTOP, "color_scheme": "dark"}), ("phone", PHONE)):
            with open_page(browser, url, built=".drawn .dot", **screen) as page:
                page.screenshot(path=out / f"compare-{name}.png", full_page=True)
    print(f"{out}/compare-*.png")


if __name__ == "__main__":
    main()
