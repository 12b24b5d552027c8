"""A config that extends another one: what it says is laid over it, and every mistake is named where it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from rlft import config_file
from rlft.cli.run_config import load_any, load_kind
from rlft.config_file import dump, load
from rlft.train.preference.config import PreferenceConfig
from rlft.train.reward_model.config import RewardModelConfig

BASE = """\
name: base
steps: 3
model:
  source: some-model
environment:
  path: environments.sums:load
  args: {high: 20, heldout: 100}
rewards:
  - path: rewards.exact_answer:exact_answer
  - path: rewards.last_number:last_number
algorithm: ppo
learner:
  lr: 0.1
  threads: 1
sft: {examples: 4}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write files by name, the base config always, and return the path of the last one."""
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")

    def write(**files: str) -> Path:
        path = tmp_path / "base.yaml"
        for name, text in files.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
        return path

    return write


def test_sections_are_merged_and_lists_are_replaced(write: Any) -> None:
    config = load(
        write(
            above="extends: base.yaml\nname: above\nlearner: {lr: 0.2}\nenvironment: {args: {high: 30, low: 2}}\n"
            "rewards: [{path: 'rewards.last_number:last_number'}]\n"
        )
    )
    assert (config.name, config.steps, config.model.source) == ("above", 3, "some-model")
    assert (config.learner.lr, config.learner.threads) == (0.2, 1)
    assert config.environment.path == "environments.sums:load"
    assert config.environment.args == {"high": 30, "heldout": 100, "low": 2}
    assert [reward.label for reward in config.rewards] == ["last_number"]


def test_null_takes_back_what_the_file_below_says(write: Any) -> None:
    config = load(
        write(above="extends: base.yaml\nlearner: {lr: null}\nsft: null\nenvironment: {args: {high: null, x: null}}\n")
    )
    default = type(config.learner).model_fields["lr"].default
    assert (config.learner.lr, config.learner.threads, config.sft) == (default, 1, None)
    assert config.environment.args == {"heldout": 100, "x": None}  # `x` is not below: null is its value
    with pytest.raises(ValueError, match=r"above\.yaml:2: model: this key is required"):
        load(write(above="extends: base.yaml\nmodel: null\n"))


def test_choices_are_laid_over_a_preset_and_a_preset_replaces_them(write: Any) -> None:
    above = "extends: base.yaml\nalgorithm: {gamma: 0.5}\n"
    algorithm = load(write(above=above)).algorithm
    assert (algorithm.preset, algorithm.gamma) == ("ppo", 0.5)
    assert load(write(above=above, top="extends: above.yaml\nalgorithm: grpo\n")).algorithm.preset == "grpo"


def test_files_are_found_beside_the_file_that_names_them(write: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "deep").mkdir()
    write(above="extends: base.yaml\nsteps: 4\n")
    (tmp_path / "deep" / "top.yaml").write_text("extends: ../above.yaml\nseed: 7\n", encoding="utf-8")
    monkeypatch.chdir("/")
    config = load(tmp_path / "deep" / "top.yaml", ["learner.threads=2"])
    assert (config.name, config.steps, config.seed, config.learner.threads) == ("base", 4, 7, 2)


def test_overrides_change_the_merged_tree_and_no_file(write: Any, tmp_path: Path) -> None:
    path = write(above="extends: base.yaml\n")
    assert load(path, ["rewards.1.weight=0.5", "algorithm.gamma=0.5"]).rewards[1].weight == 0.5
    assert (tmp_path / "base.yaml").read_text() == BASE
    with pytest.raises(ValueError, match="only a file can extend"):
        load(path, ["extends=base.yaml"])


def test_what_a_run_keeps_needs_no_other_file(write: Any, tmp_path: Path) -> None:
    config = load(write(above="extends: base.yaml\nsft: null\nalgorithm: {gamma: 0.5}\n"))
    (kept := tmp_path / "kept" / "config.yaml").parent.mkdir()
    kept.write_text(dump(config), encoding="utf-8")
    assert load(kept) == config
    assert "extends" not in YAML(typ="safe").load(kept.read_text())


@pytest.mark.parametrize(
    ("above", "place"),
    [
        ("extends: base.yaml\nlerner: {lr: 1}\n", r"above\.yaml:2: lerner: unknown key.*'learner'"),
        ("extends: base.yaml\nlearner:\n  lrr: 1\n", r"above\.yaml:3: learner\.lrr: unknown key.*'lr'"),
        ("extends: base.yaml\nlerner: null\n", r"above\.yaml:2: lerner: unknown key"),
        ("extends: base.yaml\nseed: 1\nsteps: 0\n", r"above\.yaml:3: steps: .*greater"),
        ("extends: base.yaml\nrewards:\n  - {wieght: 1}\n", r"above\.yaml:3: rewards\.0\.path: this key is required"),
        ("extends: base.yaml\nsft:\n  lr: .inf\n", r"above\.yaml:3: sft\.lr: inf is not"),
    ],
)
def test_a_mistake_above_is_named_with_its_file_and_line(write: Any, above: str, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        load(write(above=above))


@pytest.mark.parametrize(
    ("base", "place"),
    [
        (BASE.replace("  lr: 0.1", "  lr: -1"), r"base\.yaml:13: learner\.lr: "),
        (BASE.replace("threads", "thread"), r"base\.yaml:14: learner\.thread: unknown key.*'threads'"),
        (BASE.replace("  - path: rewards.l", "  - paht: rewards.l"), r"base\.yaml:10: rewards\.1\.paht: unknown key"),
        (BASE.replace("high: 20", "high: 2024-01-02"), r"base\.yaml:7: environment\.args\.high: .*a date"),
        (BASE.replace("steps: 3\n", ""), r"above\.yaml:1: steps: this key is required"),
        (BASE.replace("  source: some-model", "  dtype: auto"), r"base\.yaml:3: model\.source: this key is required"),
        (BASE.replace("steps: 3", "steps: [1"), r"base\.yaml:3: not valid YAML"),
    ],
)
def test_a_mistake_below_is_named_with_its_file_and_line(write: Any, base: str, place: str) -> None:
    above = write(base=base, above="extends: base.yaml\nlearner: {weight_decay: 0.1}\nenvironment: {args: {low: 2}}\n")
    with pytest.raises(ValueError, match=place):
        load(above)


def test_several_mistakes_of_several_files_are_told_at_once(write: Any) -> None:
    with pytest.raises(ValueError, match="unknown key") as caught:
        load(write(base=BASE + "stepps: 1\n", above="extends: base.yaml\nseeed: 1\n"))
    found = re.findall(r"(\w+\.yaml:\d+): (\w+): unknown key", str(caught.value))
    assert found == [("base.yaml:16", "stepps"), ("above.yaml:2", "seeed")]


def test_a_circle_is_refused_with_its_files(write: Any, tmp_path: Path) -> None:
    path = write(a="extends: b.yaml\n", b="seed: 1\nextends: c.yaml\n", c="extends: ./b.yaml\n")
    with pytest.raises(ValueError, match=r"b\.yaml:2: extends: .*circle: \S*c\.yaml -> \S*b\.yaml -> \S*c\.yaml"):
        load(path)
    with pytest.raises(
        ValueError, match=r"c\.yaml:1: extends: .*circle: \S*a\.yaml -> \S*b\.yaml -> \S*c\.yaml -> \S*b"
    ):
        load(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"circle: \S*self\.yaml -> \S*self\.yaml"):
        load(write(self="extends: self.yaml\n"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("bsae.yaml", r"above\.yaml:2: extends: no config file .*bsae\.yaml.*relative to this file.*'base\.yaml'"),
        ("[base.yaml]", r"above\.yaml:2: extends: expected the path of one config file"),
        ("''", r"above\.yaml:2: extends: expected the path"),
    ],
)
def test_extends_that_names_no_file_is_refused(write: Any, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(write(above=f"seed: 1\nextends: {value}\n"))


def test_a_file_without_extends_or_with_null_stands_alone(write: Any) -> None:
    assert load(write(alone=f"extends: null\n{BASE}")) == load(write())


PAIRS = "name: pairs\nmodel: {source: some-model}\ndata: {source: pairs.jsonl, heldout: 0.25}\n"


def test_configs_of_preferences_and_reward_models_extend_too(write: Any) -> None:
    dpo = write(pairs=PAIRS, above="extends: pairs.yaml\npreference: {loss: ipo}\ndata: {heldout: 0.5}\n")
    config = load(dpo, (), PreferenceConfig)
    assert (config.data.source, config.data.heldout, config.preference.loss) == ("pairs.jsonl", 0.5, "ipo")
    assert load_any(dpo, ()) == config  # told by the keys of both files
    model = load(write(model="extends: pairs.yaml\nlr: 0.5\n"), (), RewardModelConfig)
    assert (model.name, model.lr) == ("pairs", 0.5)
    with pytest.raises(ValueError, match=r"looks like a config of `rlft dpo`"):
        load_kind(dpo, (), RewardModelConfig)


def test_the_schema_asks_a_variation_for_nothing_and_a_whole_config_for_all() -> None:
    validator = jsonschema.Draft202012Validator(config_file.schema())
    yaml = YAML(typ="safe")
    assert validator.is_valid(yaml.load(BASE))
    assert validator.is_valid({"extends": "base.yaml", "environment": {"args": {"high": 3}}})
    assert not validator.is_valid({"extends": "base.yaml", "stepps": 3})
    assert not validator.is_valid({"extends": "base.yaml", "rewards": [{"weight": 1}]})
    assert not validator.is_valid(yaml.load(BASE.replace("steps: 3\n", "")))
    assert not validator.is_valid(yaml.load(BASE.replace("  source: some-model", "  dtype: auto")))


def test_the_variation_that_the_page_shows_varies_its_shortest_config(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")
    shortest, variation = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "config.yaml").write_text(shortest, encoding="utf-8")
    (tmp_path / "variation.yaml").write_text(variation, encoding="utf-8")
    config = load(tmp_path / "variation.yaml")
    assert (config.name, config.learner.lr, config.steps) == ("higher-lr", 1e-3, load(tmp_path / "config.yaml").steps)
