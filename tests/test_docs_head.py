"""The examples of docs/head.md, run from the first to the last with a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.config import EnvironmentConfig
from rlft.environment import loading
from rlft.model.head import Classifier
from tests.fakes_head import head_config
from tests.fakes_reward import DISLIKED, LIKED

PAGE = (Path(__file__).parents[1] / "docs" / "head.md").read_text(encoding="utf-8")


def test_the_examples_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path / "cache"))
    source = Path(head_config(tmp_path, tiny_model, count=160).data.source)
    source.rename("tickets.jsonl").write_text(source.with_name("tickets.jsonl").read_text().replace("label", "team"))
    shown = re.search(r"```yaml\n# head\.yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    Path("head.yaml").write_text(shown[1])
    overrides = [f"model.source={tiny_model}", "model.dtype=float32", "trunk_layers=1", "name=head", "threads=1"]
    result = CliRunner().invoke(app, ["head", "head.yaml", *overrides])
    assert result.exit_code == 0, result.output
    first, second, judged = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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

    Path("judged.py").write_text(judged.replace('"sarcastic")', '"liked")'))
    environment = loading.load(EnvironmentConfig(path="judged.py:load"))
    assert environment.episode is not None
    episode = environment.episode()
    assert episode.start(environment.train[0], 0)
    texts = sorted(LIKED + DISLIKED, key=lambda text: float(Classifier.load("runs/head/head").predict([text])[0, 1]))
    disliked, liked = ({"role": "assistant", "content": text} for text in (texts[0], texts[-1]))
    first_step = episode.step(disliked)  # type: ignore[arg-type]
    assert first_step.messages  # type: ignore[union-attr]
    last = episode.step(liked)  # type: ignore[arg-type]
    assert last.done  # type: ignore[union-attr]
    assert last.reward > 0.5  # type: ignore[union-attr, operator]
