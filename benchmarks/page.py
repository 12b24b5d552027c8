"""What the page of a long run costs: writing it (time, processor, memory), its size, and opening it in a browser.

    python -m benchmarks.page [--steps 10000] [--keep FOLDER]

The long run is made up (`tests.gallery.large`): 64 rollouts a step, and beside it a small one that is whole. `rlft
report` runs in a process of its own, once for each. A page is opened from its file in a headless Chromium of its own,
and is drawn once its main chart and its list of samples are painted; medians of three. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests import gallery
from tests.browser import chromium, executable, open_page

ROOT = Path(__file__).parents[1]
ROUNDS, SMALL = 3, 40
PAINTED = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
"""Milliseconds from the beginning of the navigation to the end of the next frame."""

REPORT = """
import json, resource, runpy, sys
from pathlib import Path
told = Path(sys.argv.pop(1))
try:
    runpy.run_module("rlft", run_name="__main__")
finally:
    used, status = resource.getrusage(resource.RUSAGE_SELF), Path("/proc/self/status")
    if status.exists():  # what getrusage gives there begins with the memory of the process that started this one
        peak = next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM:"))
    else:
        peak = used.ru_maxrss
    told.write_text(json.dumps([used.ru_utime + used.ru_stime, peak]))
"""
"""Runs rlft and writes what it took: [seconds of processor, bytes of memory at most]."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="of the long run")
    parser.add_argument("--keep", type=Path, help="make the long run here, or take it from here if it is there")
    asked = parser.parse_args()
    if executable() is None:
        raise SystemExit("a page is opened in an installed Chromium by playwright: install both (CONTRIBUTING.md)")
    with tempfile.TemporaryDirectory() as folder:
        long = asked.keep or Path(folder) / "long"
        if not long.exists():
            gallery.large(long, asked.steps)
        runs = {"small": gallery.whole(Path(folder) / "small", steps=SMALL), "long": long}
        found = {name: measured(run, Path(folder) / f"{name}-page") for name, run in runs.items()}
    table = Table("run", "steps", "rollouts", "report, s", "CPU, s", "peak, MB", "report.html, MB", "opened in, s")
    for name, told in found.items():
        texts = [f"{told[key]:,}" for key in ("steps", "rollouts")]
        texts += [f"{told[key]:.2f}" for key in ("report_s", "cpu_s")] + [str(told["peak_mb"])]
        texts += [f"{told[key]:.2f}" for key in ("page_mb", "opened_s")]
        table.add_row(name, *texts)
    Console(width=120).print(table)
    print(json.dumps(found))


def measured(run: Path, out: Path) -> dict[str, Any]:
    """The numbers of one run, whose page is written to `out`."""
    out.mkdir()
    seconds, cpu, peak = reported(run, out)
    page = out / "report.html"
    return {
        "steps": sum(1 for _ in (run / "metrics.jsonl").open("rb")),
        "rollouts": rollouts(run),
        "report_s": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "peak_mb": round(peak / 1e6),
        "page_mb": round(page.stat().st_size / 1e6, 3),
        "opened_s": round(statistics.median(opened(page) for _ in range(ROUNDS)), 3),
    }


def rollouts(run: Path) -> int:
    """How many rollouts a run has stored."""
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(path).metadata.num_rows for path in (run / "rollouts").glob("*.parquet"))


def reported(run: Path, out: Path) -> tuple[float, float, int]:
    """(seconds, seconds of processor, bytes of memory at most) of `rlft report`."""
    used = out / "used.json"
    command = [sys.executable, "-c", REPORT, str(used), "report", str(run), "--out", str(out)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"rlft report {run} ended with {done.returncode}")
    cpu, peak = json.loads(used.read_text(encoding="utf-8"))
    return seconds, cpu, peak


def opened(page: Path) -> float:
    """Seconds until a page is drawn, in a browser that has just been started."""
    with (
        chromium() as browser,
        open_page(browser, page.as_uri(), viewport={"width": 1280, "height": 800}) as tab,
    ):
        for part in ("#result .plot svg", "#samples .list > button"):
            tab.wait_for_selector(part)
        return float(tab.evaluate(PAINTED)) / 1000


if __name__ == "__main__":
    main()
