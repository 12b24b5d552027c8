"""The runs of docs/gallery.md: make them again, and keep their pictures and small records.

    python -m benchmarks.gallery                   # all, one after another; two and a half hours on two cores
    python -m benchmarks.gallery ten_words         # one of them
    python -m benchmarks.gallery ten_words --made  # only keep what lies in runs/ already

The picture of a run goes to docs/gallery/, its config, metrics, events and evaluations to tests/kept_runs/, where
tests/test_gallery_runs.py reads them.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES, RECORDS = ROOT / "docs" / "gallery", ROOT / "tests" / "kept_runs"
RUNS = {
    "quickstart": "configs/quickstart.yaml",
    "tools": "configs/gallery/tools.yaml",
    "strict_json": "configs/strict_json.yaml",
    "strict_json_syntax": "configs/gallery/strict_json_syntax.yaml",
    "retrieval": "configs/retrieval.yaml",
    "guessing": "configs/gallery/guessing.yaml",
    "ten_words": "configs/gallery/ten_words.yaml",
    "collapse": "configs/gallery/collapse.yaml",
}
"""Config of each run, which has its name; a run that a guard stops ends with an error, and that is kept as well."""
DATA = {"retrieval": ("configs/data/packages.py", "runs/packages")}
"""The program, with its arguments, that makes a run's data."""
COLOURS = 64
"""Of a picture: a quarter of its bytes, and no difference that is seen."""


def main() -> None:
    """Run and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--made", action="store_true", help="run nothing")
    options = parser.parse_args()
    for name in options.names or RUNS:
        run, began = ROOT / "runs" / name, time.time()
        if not options.made:
            if name in DATA:
                subprocess.run([sys.executable, *DATA[name]], cwd=ROOT, check=True)
            train = [sys.executable, "-m", "rlft", "train", RUNS[name], "--restart"]
            code = subprocess.run(train, cwd=ROOT, check=False).returncode
            print(f"{name}: exit code {code}", flush=True)
            if code and (run / "config.yaml").stat().st_mtime < began:
                raise SystemExit(f"{name} did not begin, so nothing is kept")
        keep(run, name)


def keep(run: Path, name: str) -> None:
    """Copy the picture and the small records of a run."""
    PICTURES.mkdir(exist_ok=True)
    picture, small = Image.open(run / "reward.png").convert("RGB"), io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    (PICTURES / f"{name}.png").write_bytes(small.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        for file in ("config.yaml", "metrics.jsonl", "events.jsonl"):
            _write(made / file, (run / file).read_text())
        for path in sorted((run / "evals").rglob("*.json")):
            _write(made / path.relative_to(run), json.dumps(json.loads(path.read_text())) + "\n")  # on one line
        for path in sorted((run / "evals").rglob("*.parquet")):  # shadow rewards are read from these samples
            shutil.copy(path, made / path.relative_to(run))
        shutil.rmtree(RECORDS / name, ignore_errors=True)
        shutil.copytree(made, RECORDS / name)


def _write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


if __name__ == "__main__":
    main()
