"""The runs of docs/gallery.md: what their records say is what the page says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlft.curves.alarms import alarms_of
from rlft.curves.verdict import verdict_of

RUNS = Path(__file__).parent / "kept_runs"
PAGE = (Path(__file__).parents[1] / "docs" / "gallery.md").read_text()
NAMES = sorted(path.name for path in RUNS.iterdir())


def section(name: str) -> str:
    """What the page says of a run, as one line."""
    found = re.search(rf"^## .*?\n(.*?configs/\S*{name}\.yaml.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert found, f"docs/gallery.md has no section with the config of {name}"
    return " ".join(found[0].split())


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_records_say(name: str) -> None:
    verdict, text = verdict_of(RUNS / name), section(name)
    assert f"**{verdict.word}** {verdict.sentence}" in text
    assert verdict.health is not None
    for alarm in verdict.health.alarms:
        assert f"`{alarm.name}` since step {alarm.onset}" in text
    if not verdict.health.alarms:
        assert "no alarm" in text
    assert f"(gallery/{name}.png)" in text
    assert (Path(__file__).parents[1] / "docs" / "gallery" / f"{name}.png").stat().st_size < 60_000


def test_the_healthy_ones_are_healthy_and_the_broken_ones_are_not() -> None:
    told = {name: {alarm.name for alarm in alarms_of(RUNS / name).alarms} for name in NAMES}
    assert {name for name in NAMES if told[name]} == {"collapse", "strict_json_syntax", "ten_words"}
