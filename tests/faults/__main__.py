"""`make faults`: run the tests behind the table, and print each fault with pass or fail."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.table import ALL, SECTIONS


def results(file: Path) -> dict[str, set[str]]:
    """What became of the tests in pytest's report, by node without parameters: passed, failed or skipped."""
    found: dict[str, set[str]] = {}
    for case in ElementTree.parse(file).iter("testcase"):
        node = f"{str(case.get('classname')).replace('.', '/')}.py::{str(case.get('name')).partition('[')[0]}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found.setdefault(node, set()).add(outcome)
    return found


def verdict(outcomes: set[str]) -> str:
    """Of several tests: failed if any is; passed if at least one is; else skipped."""
    return next((kind for kind in ("failed", "passed") if kind in outcomes), "skipped")


def main() -> int:
    """Exit code 1 if a fault is not handled as the table says."""
    nodes = sorted({node for fault in ALL for node in fault.nodes})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={file}", *nodes], check=False)
        found = results(file)
    failed = 0
    for title, faults in SECTIONS.items():
        table = Table(title=title, title_justify="left")
        for heading in ("what goes wrong", "what happens", "result"):
            table.add_column(heading)
        for fault in faults:
            outcomes = set[str]().union(*(found.get(node, {"failed"}) for node in fault.nodes))
            result = f"no test: {fault.missing}" if fault.missing else verdict(outcomes)
            failed += result == "failed"
            table.add_row(fault.what, fault.expected, result)
        Console().print(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
