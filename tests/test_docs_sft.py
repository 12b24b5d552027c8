"""The commands of docs/sft.md, run from the first to the last with a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rlft.cli.main import app
from tests.fakes import write_config
from tests.test_supervised_data import chat, write

PAGE = (Path(__file__).parents[1] / "docs" / "sft.md").read_text(encoding="utf-8")


def commands(block: str) -> list[str]:
    """The `rlft` lines of a block of bash, without their comments."""
    return [line.partition("#")[0].strip() for line in block.splitlines() if line.startswith("rlft ")]


def test_the_commands_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tickets.jsonl", [chat(f"say {i} {i * 7}", "a" * (2 + i % 3)) for i in range(120)])
    shown = re.search(r"```yaml\n# support\.yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    tree = yaml.safe_load(shown[1])
    tree |= {"model": {"source": str(tiny_model), "dtype": "float32"}, "batch_size": 8}
    tree["learner"] = {"lr": 1e-2, "threads": 1}
    Path("support.yaml").write_text(yaml.safe_dump(tree))
    first, second = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    assert len(commands(first)) == 4
    for command in commands(first):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
    summary = json.loads(Path("runs/support/summary.json").read_text())
    assert summary["loss_trained"] < summary["loss_base"]
    assert Path("runs/support/report.html").exists()

    config = write_config(tmp_path, tiny_model)
    overrides = ["name=quickstart", "output_dir=runs", "steps=3", "sampling.max_new_tokens=3"]
    assert CliRunner().invoke(app, ["train", str(config), *overrides]).exit_code == 0
    assert len(commands(second)) == 2
    for command in commands(second):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
    rows = [json.loads(line) for line in Path("best/samples.jsonl").read_text().splitlines()]
    assert rows
    assert min(row["reward"] for row in rows) >= 1
