"""The page in a real browser: clicks, keys, fingers, paper, darkness, and texts that want to do harm."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from rlft.curves.report import write_report
from tests import gallery
from tests.browser import chromium, executable, open_page
from tests.fakes_run import append, step_metrics, step_rollouts, write_config, write_rollouts
from tests.hostile_texts import acting

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="needs Chromium and playwright"),
    # playwright drives its browser by an event loop that it leaves to be collected
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page of a run that is over."""
    return write_report(gallery.whole(tmp_path_factory.mktemp("whole") / "run", steps=20)).as_uri()


def state_of(page: Any) -> dict[str, str]:
    """What the address says is looked at."""
    fields = page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
    return dict(fields)


def wait_until(page: Any, condition: str) -> None:
    """Wait until something is true; playwright's own way needs `eval`, which the page forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def middle_of(page: Any, selector: str) -> tuple[float, float]:
    box = page.locator(selector).first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_first_screen_decides_and_chips_open_their_evidence(browser: Any, whole: str) -> None:
    with open_page(browser, whole, **DESKTOP) as page:
        for selector in (".word", ".effect svg", ".chip >> nth=3", "#result .plot svg"):
            box = page.locator(selector).first.bounding_box()
            assert box["y"] + box["height"] <= 800, f"{selector} is below the first screen"
        assert page.locator(".word").inner_text() == "SHIP"
        for chip in ("healthy", "hacked", "age", "missing"):
            page.click(f"[data-chip={chip}]")
            assert page.locator("#evidence li").count() >= 1
            assert state_of(page)["chip"] == chip
        page.click("[data-chip=missing]")
        assert page.locator("#evidence").is_hidden()
        page.hover("#result .plot", position={"x": 600, "y": 100})
        assert "train reward" in page.locator("#tip").inner_text()
        assert "[" in page.locator("#tip").inner_text()  # its interval
        page.hover(".term >> nth=0")
        assert page.locator("#tip p").inner_text()
        page.mouse.move(1, 1)
        page.wait_for_selector("#tip", state="hidden")
        page.locator("#result .plot").focus()
        for _ in range(20):  # by the keyboard
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('.term')"):
                break
        assert page.evaluate("document.activeElement.matches('.term')")
        told = page.evaluate("document.activeElement.getAttribute('aria-description')")
        assert page.locator("#tip").is_visible()
        assert page.locator("#tip p").inner_text() == told
        page.keyboard.press("Tab")
        assert not page.locator(f"#tip p >> text={told}").is_visible()
        page.click("#result .tools button:has-text('table')")
        assert page.locator("#result .values tbody tr").count() == 21  # a line for step 0, too
        page.click(".gate summary")
        assert "rlft gate" in page.locator(".gate code").inner_text()


def test_from_a_point_to_a_sample_by_mouse_and_by_keyboard(browser: Any, whole: str) -> None:
    with open_page(browser, whole, **DESKTOP) as page:
        x, y = middle_of(page, "#result .plot")
        page.mouse.click(x, y)  # the first action: a step
        assert abs(int(state_of(page)["step"]) - 10) <= 1
        wait_until(page, "document.querySelector('#samples').getBoundingClientRect().top < 200")
        page.locator("#samples .list > button").nth(1).click()  # the second: a group, whose samples are there
        assert page.locator("#samples .detail .sample pre").first.is_visible()
        assert state_of(page)["group"]
    with open_page(browser, whole, **DESKTOP) as page:
        page.locator("#result .plot").focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        assert state_of(page)["step"] == "19"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        chosen = page.locator("#samples .sample.chosen")
        assert chosen.count() == 1
        assert state_of(page)["sample"] == chosen.get_attribute("data-index")
        address, shown = page.url, page.locator("#samples .detail").inner_text()
    with open_page(browser, address, **DESKTOP) as page:  # a copied address shows the same
        page.wait_for_selector("#samples .sample.chosen")
        assert page.locator("#samples .detail").inner_text() == shown


def test_samples_are_searched_and_a_task_is_followed(browser: Any, whole: str) -> None:
    with open_page(browser, whole, **DESKTOP) as page:
        told = page.locator("#samples > .hint").inner_text()
        assert "of 1,920 rollouts" in told
        page.keyboard.press("/")
        page.keyboard.type("<answer>42")
        wait_until(page, "location.hash.includes('q=')")
        assert page.locator("#samples mark").first.inner_text() == "<answer>42"
        page.fill("#samples input[type=search]", "there is no such text")
        page.wait_for_selector("text=No group of samples fits")
        page.click("text=clear")
        page.locator("#samples .list > button").first.click()
        page.click("text=this task through time")
        tasks = page.locator("#samples .list .task").all_inner_texts()
        assert len(tasks) > 1
        assert len(set(tasks)) == 1
        page.locator("#heldout .filter >> nth=0").click()
        assert "got worse" in page.locator("#heldout .list").inner_text()
        assert page.locator("#heldout .detail .sample").count() == 2


def test_zoom_is_shared_and_taken_back(browser: Any, whole: str) -> None:
    def labels() -> list[str]:
        """The steps that stand below the second chart."""
        texts = "document.querySelector('#why .plot').querySelectorAll('.axes text[text-anchor=middle]')"
        found: list[str] = page.evaluate(f"[...{texts}].map(each => each.textContent)")
        return found

    with open_page(browser, whole, **DESKTOP) as page:
        page.locator("#why .plot").first.scroll_into_view_if_needed()
        page.wait_for_selector("#why .plot svg")
        page.evaluate("scrollTo(0, 0)")
        before = labels()
        x, y = middle_of(page, "#result .plot")
        page.mouse.move(x - 200, y)
        page.mouse.down()
        page.mouse.move(x + 100, y, steps=4)
        page.mouse.up()
        assert ".." in state_of(page)["zoom"]
        assert labels() != before
        page.click("text=from the zoomed steps")
        asked, told = state_of(page)["from"], page.locator(".moved > .hint")
        assert f"shown from {asked}, the nearest window that is in this file" in told.inner_text()
        assert page.locator(".moved select").first.input_value() == asked
        assert f"({asked})" in page.locator(".moved > div > p").inner_text()
        page.locator(".moved select").first.select_option(index=1)
        assert told.is_hidden()
        page.locator("#result .plot").focus()
        page.keyboard.press("Escape")
        assert "zoom" not in state_of(page)
        assert labels() == before


def test_a_finger_scrolls_over_a_chart_and_nothing_is_wider_than_a_phone(browser: Any, whole: str) -> None:
    with open_page(browser, whole, **PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("getComputedStyle(document.querySelector('#result .plot')).touchAction") == "pan-y"
        page.locator("#result .plot").scroll_into_view_if_needed()
        x, y = middle_of(page, "#result .plot")
        before = page.evaluate("scrollY")
        fingers = page.context.new_cdp_session(page)
        for kind, at in (("touchStart", y), *(("touchMove", y - d) for d in range(20, 201, 20)), ("touchEnd", None)):
            points = [] if at is None else [{"x": x, "y": at}]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        wait_until(page, f"scrollY > {before} + 100")
        page.locator("#result .plot").scroll_into_view_if_needed()
        x, y = middle_of(page, "#result .plot")
        page.touchscreen.tap(x, y)
        assert page.locator("#tip").is_visible()
        step = page.locator("#tip b").inner_text()
        assert "train reward" in page.locator("#tip").inner_text()
        assert "tap again: the samples of this step" in page.locator("#tip").inner_text()
        page.touchscreen.tap(x + 80, y)  # another step is read as well
        assert page.locator("#tip b").inner_text() != step
        assert "step" not in state_of(page)
        page.touchscreen.tap(x, y)
        page.touchscreen.tap(x + 2, y)
        assert f"step {state_of(page)['step']}" == step
        wait_until(page, "document.querySelector('#samples').getBoundingClientRect().top < 200")
        assert page.locator("#tip").is_hidden()


def test_a_copied_address_shows_zoom_windows_filters_and_folds(browser: Any, whole: str) -> None:
    with open_page(browser, whole, **DESKTOP) as page:
        page.click(".decision .reasons summary")
        page.click("#result .tools button:has-text('table')")
        page.click("#health .more > summary")
        page.locator("#health .more .tools button:has-text('table')").first.click()
        page.locator(".moved select").nth(0).select_option(index=1)
        page.locator(".moved select").nth(1).select_option(index=1)
        page.select_option("#samples select", "differ")
        page.fill("#samples input[type=search]", "answer")
        page.fill("#samples input[type=number]", "7")
        page.locator("#samples input[type=number]").blur()
        page.locator("#result .plot").scroll_into_view_if_needed()
        x, y = middle_of(page, "#result .plot")
        page.mouse.move(x - 200, y)
        page.mouse.down()
        page.mouse.move(x + 100, y, steps=4)
        page.mouse.up()
        wait_until(page, "(location.hash.match(/table/g) ?? []).length === 2 && location.hash.includes('q=')")
        asked, shown, address = state_of(page), _looked_at(page), page.url
        assert {"open", "zoom", "from", "to", "q", "kind", "step"} <= asked.keys()
    with open_page(browser, address, **DESKTOP) as page:
        page.wait_for_selector("#samples mark")
        assert _looked_at(page) == shown
        assert state_of(page) == asked
    with open_page(browser, whole, **DESKTOP) as page:
        assert _looked_at(page) != shown
        page.evaluate(f"location.hash = {json.dumps(address.partition('#')[2])}")  # as one who goes back and forth
        page.wait_for_selector("#samples mark")
        assert _looked_at(page) == shown


def _looked_at(page: Any) -> dict[str, Any]:
    """What of a page can be opened, chosen, searched and zoomed, and what it shows then."""
    page.wait_for_selector("#samples .list > button")
    page.locator("#result .plot").scroll_into_view_if_needed()
    return {
        "open": page.locator("details[open] > summary").all_inner_texts(),
        "tables": page.locator("button[aria-expanded=true]").evaluate_all("all => all.map(e => e.ariaLabel)"),
        "values": page.locator(".values:visible tbody").all_inner_texts(),
        "windows": page.locator(".moved select").evaluate_all("all => all.map(e => e.value)"),
        "moved": page.locator(".moved > div > p").first.inner_text(),
        "filters": page.locator("#samples .filters > *").evaluate_all("all => all.map(e => e.value ?? e.innerText)"),
        "groups": page.locator("#samples .rowhead").all_inner_texts(),
        "steps": page.locator("#result .axes text[text-anchor=middle]").all_inner_texts(),
    }


def test_paper_and_darkness(browser: Any, whole: str, tmp_path: Path) -> None:
    with open_page(browser, whole, **DESKTOP, color_scheme="dark") as page:
        light = "getComputedStyle(document.body).backgroundColor"
        red, green, blue = json.loads(page.evaluate(light).replace("rgb(", "[").replace(")", "]"))
        assert red + green + blue < 100
        pdf = page.pdf(prefer_css_page_size=True)
        assert pdf.count(b"/Type /Page\n") in (1, 2)
        page.emulate_media(media="print")
        shown = [each for each in page.locator("main > section, main > .pair").all() if each.is_visible()]
        boxes = [each.bounding_box() for each in shown]
        ends = [box["y"] + box["height"] for box in boxes]
        assert all(end <= box["y"] + 1 for end, box in zip(ends, boxes[1:], strict=False)), "something overlaps"
        assert page.locator("#samples").is_hidden()


def test_hostile_texts_are_inert_and_visible(browser: Any, tmp_path: Path) -> None:
    path = write_report(gallery.hostile(tmp_path / "run"))
    loaded: list[str] = []
    with open_page(browser, path.as_uri(), **DESKTOP) as page:  # raises on a dialog, an error or a refused script
        page.on("request", lambda request: loaded.append(request.url))
        page.evaluate("document.querySelectorAll('#samples .list > button').forEach(each => each.click())")
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        text = page.evaluate("document.body.innerText")
        assert "<script>alert(1)</script>" in text
        assert not acting(text.replace("\r", ""))
        assert page.evaluate("document.scripts.length") == 2
        assert page.locator("img, iframe, link, object, embed").count() == 0
        attributes = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.name))"
        assert not [name for name in page.evaluate(attributes) if name.startswith("on")]
    assert loaded == []
    with open_page(browser, path.as_uri(), **PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_band_of_one_step_is_seen(browser: Any, tmp_path: Path) -> None:
    with open_page(browser, write_report(gallery.one_step(tmp_path / "run")).as_uri(), **DESKTOP) as page:
        band, dot = (page.locator(f"#result .{name}").first.bounding_box() for name in ("band", "dot"))
        assert band["width"] >= 10
        assert band["y"] < dot["y"] < band["y"] + band["height"]


def test_a_comparison_fits_a_phone_and_is_inert(browser: Any, tmp_path: Path) -> None:
    page_of = gallery.compared(
        tmp_path, prompt="<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m"
    ).as_uri()
    for screen in (PHONE, {**DESKTOP, "color_scheme": "dark"}):
        with open_page(browser, page_of, built=".drawn .dot", **screen) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= screen["viewport"]["width"]
            assert "<script>alert(1)</script>" in page.locator("table").nth(1).inner_text()
            assert page.locator("script, img, [style]").count() == 0
            # The style sheet is not refused: what is drawn has its colour, and a line lies where its numbers say.
            assert page.evaluate("getComputedStyle(document.querySelector('.dot')).fill") != "rgb(0, 0, 0)"
            bar, dot = (page.locator(f".drawn {name}").first.bounding_box() for name in (".bar, .told", ".dot"))
            assert bar["x"] < dot["x"] < bar["x"] + bar["width"]


def test_ten_thousand_parts_do_not_hang_the_page(browser: Any, tmp_path: Path) -> None:
    write_config(tmp_path)
    for step in range(1, 7):
        parts = {f"reward/part/judge/p{i:05d}": 0.5 + 0.01 * step * (i == 777) for i in range(10_000)}
        append(tmp_path / "metrics.jsonl", {"step": step, "reward/mean": 0.5, "reward/part/judge": 0.4, **parts})
    with open_page(browser, write_report(tmp_path).as_uri(), **DESKTOP) as page:
        assert page.locator("#why tbody tr").count() == 60
        assert "60 of 10,001 parts" in page.locator("#why").inner_text()
        page.fill("#why input[type=search]", "p09876")
        assert page.locator("#why td").first.inner_text() == "judge/p09876"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of the runs in a folder."""
    from rlft.cli.view import _listening
    from rlft.curves.view_server import create_app

    with _listening("127.0.0.1", 0) as listening:
        config = uvicorn.Config(create_app([folder], poll_s=0.1), log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(30)


def test_the_page_of_an_unreadable_run_says_why(browser: Any, tmp_path: Path) -> None:
    write_config(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("name: [", encoding="utf-8")
    with served(tmp_path) as address:
        page = browser.new_page()
        page.goto(f"{address}runs/run/")
        page.wait_for_selector("#page .note")
        told = page.locator("#page .note").inner_text()
        page.close()
    assert "config.yaml is not readable YAML" in told
    assert "Unexpected token" not in told


def test_a_live_page_follows_its_run_and_runs_are_ticked(browser: Any, tmp_path: Path) -> None:
    first, _ = gallery.running(tmp_path / "first"), gallery.one_step(tmp_path / "second")
    with served(tmp_path) as address:
        with open_page(browser, address, **DESKTOP) as page:
            assert page.locator(".verdictchip").count() == 2
            page.check("input[name=b][value=first]")
            page.check("input[name=b][value=second]")
            assert page.locator("button[type=submit]").is_disabled()
            page.check("input[name=a][value=first]")  # which takes it out of the other side
            assert page.locator("#ticked").inner_text() == "second against first"
            page.click("button[type=submit]")
            assert "second against first" in page.locator("h1").inner_text()
        with open_page(browser, f"{address}runs/first/", **DESKTOP) as page:
            assert page.locator(".tiles strong").first.inner_text() == "7 of 7"
            page.fill("#samples input[type=number]", "2")
            page.locator("#samples input[type=number]").blur()
            wait_until(
                page,
                "[...document.querySelectorAll('#samples .rowhead')].every(e => e.innerText.startsWith('step 2'))",
            )
            append(first / "metrics.jsonl", {"step": 8, "reward/mean": 0.9})
            page.wait_for_selector("text=8 of 7", timeout=20_000)
            # What was looked at is still looked at.
            wait_until(page, "document.querySelectorAll('#samples .list > button').length > 1")
            assert state_of(page)["step"] == "2"


def test_nothing_closes_and_nobody_is_interrupted_while_a_run_grows(browser: Any, tmp_path: Path) -> None:
    run = gallery.whole(tmp_path / "run", steps=10)
    steps = iter(range(11, 99))

    def grow() -> None:
        step = next(steps)
        rows = step_rollouts(step, 0.5, random.Random(step))
        write_rollouts(run / "rollouts" / f"step-{step:06d}.parquet", rows)
        append(run / "metrics.jsonl", step_metrics(step, rows, random.Random(step)))
        page.wait_for_selector(f"text={step} of 10", timeout=20_000)

    def focused(selector: str) -> bool:
        return bool(page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"))

    with served(tmp_path) as address, open_page(browser, f"{address}runs/run/", **DESKTOP) as page:
        folds = (".decision .reasons", ".decision .gate", "#health .more", "#failures .panel details >> nth=0")
        for fold in folds:
            page.locator(fold).locator("> summary").click()
        program = page.locator("#failures details:has-text('program that repeats it')").first
        program.locator("> summary").click()
        for chart in ("#result", "#health .more"):
            page.locator(f"{chart} .tools button:has-text('table')").first.click()
        charts = page.locator("#health h3").all_inner_texts()
        page.locator("#heldout .list > button").nth(3).click()
        page.evaluate("document.querySelector('#heldout .list').scrollTop = 40")
        page.evaluate("document.querySelector('#samples').dataset.mine = 'yes'")
        search, text = "#samples input[type=search]", "answer>42"
        page.focus(search)
        page.keyboard.type(text[:4])
        place = page.locator(search).bounding_box()["y"]
        above = page.evaluate("document.querySelector('#result').offsetTop")
        with (run / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write("{ damaged\n")  # which a new line at the top of the page says
        grow()
        assert page.evaluate("document.querySelector('#result').offsetTop") > above
        assert focused(search)
        assert abs(page.locator(search).bounding_box()["y"] - place) <= 2
        page.keyboard.type(text[4:])
        page.keyboard.press("ArrowLeft")
        grow()
        assert page.input_value(search) == text
        assert page.evaluate("document.activeElement.selectionStart") == len(text) - 1
        wait_until(page, "location.hash.includes('q=answer%3E42')")
        assert page.locator("#samples[data-mine]").count() == 1
        page.wait_for_selector("#samples .rowhead:has-text('step 12')")
        grow()
        assert not page.locator("#samples .rowhead:has-text('step 13')").count()
        page.click("text=96 newer rollouts: list them")
        page.wait_for_selector("#samples .rowhead:has-text('step 13')")
        for fold in folds:
            assert page.locator(fold).get_attribute("open") is not None, fold
        assert program.get_attribute("open") is not None
        for chart in ("#result", "#health .more"):
            assert page.locator(f"{chart} .values:visible").count() == 1, (chart, state_of(page)["open"])
        assert page.evaluate("document.querySelector('#heldout .list').scrollTop") == 40
        assert page.locator("#health h3").all_inner_texts()[-len(charts) :] == charts
        page.focus("#result .plot")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        grow()
        assert focused("#result .plot")
        page.keyboard.press("ArrowRight")
        assert page.locator("#tip b").inner_text() == "step 2"
        for stop in ("[data-chip=healthy]", ".moved select >> nth=1", "#health .panel .term >> nth=0"):
            page.locator(stop).focus()
            grow()
            assert page.locator(stop).evaluate("node => node === document.activeElement"), stop
        page.locator("#result .plot").scroll_into_view_if_needed()
        page.wait_for_selector("#result .plot svg")
        x, y = middle_of(page, "#result .plot")
        page.mouse.move(x - 200, y)
        page.mouse.down()
        page.mouse.move(x - 50, y, steps=2)
        step = next(steps)
        append(run / "metrics.jsonl", {"step": step, "reward/mean": 0.9})
        page.wait_for_timeout(1000)
        page.mouse.move(x + 100, y, steps=2)
        page.mouse.up()
        assert ".." in state_of(page)["zoom"]  # what is drawn with the mouse is finished first
        page.wait_for_selector(f"text={step} of 10", timeout=20_000)
