"""The examples of docs/rewards.md that need no run: files are written, commands are run, judges are asked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.reward.scoring import Scorer
from rlft.types import RewardSpec, Score
from tests.fakes_server import reply, serve
from tests.test_scoring import make_group, outcomes

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page."""
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLFT_JUDGE_CACHE", str(tmp_path / "judge.sqlite"))
    return tmp_path


def test_the_first_functions_run(page: Path) -> None:
    section = SECTIONS["From the first function on"]
    commands = [line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 5
    printed = []
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
        printed.append(result.output)
    rewards = [re.findall(r'(?:reward |"reward": )([-\d.]+)', text) for text in printed]
    assert rewards == [["1.2"], ["1.0"], ["0.5", "1", "0"], ["1", "0"], ["0"]]


def test_the_polite_judge_judges(page: Path) -> None:
    with serve(lambda body, number: reply("Verdict: " + ("pass" if "please" in str(body) else "fail"))) as server:
        spec = RewardSpec(path="polite.py:polite", args={"base_url": server.base_url})
        with Scorer([spec], workers=1, deadline_s=60.0, log_dir=None) as scorer:
            (scored,) = scorer.score([make_group("please", "now")])
            assert scorer.stats.logged == {"polite/tokens": 0.0, "polite/known": 0.0}
    assert [o.value for o in outcomes(scored) if isinstance(o, Score)] == [1.0, 0.0]
    assert scored.trajectories[0].extras == {"polite/reply": "Verdict: pass"}
