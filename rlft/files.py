"""What all that keeps files asks of one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_root() -> Path:
    """Return rlft's cache folder: `$RLFT_CACHE`, else `rlft` in `$XDG_CACHE_HOME`, else `~/.cache/rlft`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rlft"
    return Path(os.environ.get("RLFT_CACHE") or default).expanduser().absolute()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
