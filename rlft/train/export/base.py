"""The base model of an export, as others may get it: its name, its licence, and where these weights are from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rlft.curves.model_card import Base
from rlft.model.sources import CATALOGUE
from rlft.train.export.policy import Policy

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def describe_base(policy: Policy) -> Base:
    """What is known of the policy's base model; what is not known is empty."""
    named, _, revision = policy.config.model.source.partition("@")
    record = _source_record(policy.model_folder)
    if named in CATALOGUE:
        model = CATALOGUE[named]
        from_hub = record.get("origin") == "hub"
        return Base(
            source=policy.config.model.source,
            reference=model.hub_id if from_hub else str(policy.model_folder),
            hub_id=model.hub_id,
            revision=str(record.get("revision", "")),
            license=str(record.get("license", model.license)),
            weights="" if from_hub else f"{record.get('package', model.package)}: {record.get('weights', '')}",
        )
    is_path = Path(policy.config.model.source).expanduser().exists()
    hub_id = named if not is_path and _HUB_ID.fullmatch(named) else ""
    return Base(
        source=policy.config.model.source,
        reference=hub_id or str(policy.model_folder),
        hub_id=hub_id,
        revision=revision if hub_id else "",
        license=_license_of(policy.model_folder),
        weights=f"converted from {record['file']}, sha256 {record['sha256']}" if "file" in record else "",
    )


def _source_record(folder: Path) -> dict[str, Any]:
    path = folder / "source.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _license_of(folder: Path) -> str:
    """What the model's own card says; empty where there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    head = card.read_text(encoding="utf-8", errors="replace").partition("---\n")[2].partition("\n---")[0]
    found = re.search(r"^license:\s*[\"']?([\w.-]+)[\"']?\s*$", head, re.MULTILINE)
    return found[1] if found else ""
