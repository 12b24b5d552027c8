"""The examples of docs/head.md, run from the first to the last with a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from tests.fakes_head import head_config

PAGE = (Path(__file__).parents[1] / "docs" / "head.md").read_text(encoding="utf-8")


def test_the_examples_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path / "cache"))
    source = Path(head_config(tmp_path, tiny_model, count=80).data.source)
    source.rename("tickets.jsonl").write_text(source.with_name("tickets.jsonl").read_text().replace("label", "team"))
    shown = re.search(r"```yaml\n# head\.yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    Path("head.yaml").write_text(shown[1])
    overrides = [f"model.source={tiny_model}", "model.dtype=float32", "trunk_layers=1", "name=head", "threads=1"]
    result = CliRunner().invoke(app, ["head", "head.yaml", *overrides])
    assert result.exit_code == 0, result.output
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = []
    for program in (first, second):
        text = re.sub(r'"area man[^"]*"', '"ABCDEA"', program)
        assert text != program
        exec(text, {})
        printed.append(capsys.readouterr().out.strip().splitlines()[-1])
    one = re.findall(r"0\.\d+", printed[0])
    other = re.findall(r"0\.\d+", printed[1])
    assert [float(value) for value in one] == pytest.approx([float(value) for value in other], abs=1e-3)
    assert len(one) == 2
