"""A headless Chromium for tests and pictures, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """Path of an installed Chromium; None without one, or without playwright."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return None
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox refuses to start as root, which containers run as.
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, url: str, *, built: str = "html[data-ready]", **context: Any) -> Iterator[Any]:
    """A page that has been built; whatever it complains about, or tries to load from elsewhere, is an error.

    Args:
        browser: see `chromium`.
        url: what to open.
        built: selects what is there once the page has been built.
        context: settings of playwright's context, such as `viewport`.
    """
    opened = browser.new_context(**context)
    page = opened.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(url)
    page.wait_for_selector(built)
    yield page
    opened.close()
    assert not wrong, wrong
