"""The examples of docs/rewards.md that need no run: files are written, commands are run, judges are asked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.config_file import load as load_config
from rlft.reward.contract import plan_call
from rlft.reward.loading import load as load_reward
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


def run_commands(section: str) -> list[str]:
    """What the commands of a section print; every one has to succeed."""
    blocks = re.findall(r"```bash\n(.*?)```", SECTIONS[section], re.DOTALL)
    printed = []
    for command in (line for block in blocks for line in block.splitlines()):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
        printed.append(result.output)
    return printed


def rewards_in(text: str) -> list[str]:
    return re.findall(r'(?:reward |"reward": )([-\d.]+)', text)


def test_the_first_functions_run(page: Path) -> None:
    printed = run_commands("From the first function on")
    assert [rewards_in(text) for text in printed] == [["1.2"], ["1.0"], ["0.5", "1", "0"], ["1", "0"], ["0"]]


def test_the_gate_is_shut_without_the_format(page: Path) -> None:
    printed = run_commands("Composing")
    assert [rewards_in(text) for text in printed] == [["1.1"], ["0"]]
    assert "gate" in printed[1]


def test_every_config_on_the_page_is_one(page: Path) -> None:
    base = yaml.safe_load(
        "{name: x, steps: 1, model: {source: none}, environment: {path: 'environments.sums:load'}, "
        "rewards: [{path: 'rewards.exact_answer:exact_answer'}]}"
    )
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert sum("in_format.py:in_format" in block for block in blocks) == 1
    for block in blocks:
        (page / "run.yaml").write_text(yaml.safe_dump({**base, **yaml.safe_load(block)}))
        config = load_config("run.yaml")
        assert len(config.rewards) > 0
        for spec in config.rewards:
            plan_call(load_reward(spec.path), spec)  # it is there, and may be called with these arguments
    (page / "run.yaml").write_text(yaml.safe_dump({**base, "evaluation": {"metrics": "x"}}))
    with pytest.raises(ValueError, match="metrics"):
        load_config("run.yaml")


def test_the_polite_judge_judges(page: Path) -> None:
    with serve(lambda body, number: reply("Verdict: " + ("pass" if "please" in str(body) else "fail"))) as server:
        spec = RewardSpec(path="polite.py:polite", args={"base_url": server.base_url})
        with Scorer([spec], workers=1, deadline_s=60.0, log_dir=None) as scorer:
            (scored,) = scorer.score([make_group("please", "now")])
            assert scorer.stats.logged == {"polite/tokens": 0.0, "polite/known": 0.0}
    assert [o.value for o in outcomes(scored) if isinstance(o, Score)] == [1.0, 0.0]
    assert scored.trajectories[0].extras == {"polite/reply": "Verdict: pass"}
