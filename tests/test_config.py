"""The config: every mistake is named with its place, and everything that may stand in it is documented."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from rlft import config_file as configs
from rlft.common.by_path import import_function
from rlft.config import EnvironmentConfig, RunConfig
from rlft.config_file import dump, load
from rlft.objectives.presets import PRESETS
from rlft.train.head.config import HeadConfig
from rlft.train.preference.config import PreferenceConfig
from rlft.train.reward_model.config import RewardModelConfig
from rlft.train.supervised.config import SupervisedConfig

ROOT = Path(__file__).parents[1]

BASE = """\
name: run
steps: 3
model:
  source: some-model
environment:
  path: environments.sums:load
rewards:
  - path: rewards.exact_answer:exact_answer
  - path: rewards.last_number:last_number
    weight: 0.5
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write the base config with lines added, and return its path."""

    def write(more: str = "", *, base: str = BASE) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(base + more, encoding="utf-8")
        return path

    return write


# Mistakes.


@pytest.mark.parametrize(
    ("more", "line", "key", "meant"),
    [
        ("stepps: 4\n", 11, "stepps", "steps"),
        ("learner:\n  lr: 0.1\n  warmup_step: 3\n", 13, "learner.warmup_step", "warmup_steps"),
        ("algorithm:\n  preset: grpo\n  kl_coeff: 0.1\n", 13, "algorithm.kl_coeff", "kl_coef"),
        ("sft:\n  example: 4\n", 12, "sft.example", "examples"),
        ("    wieght: 1\n", 11, "rewards.1.wieght", "weight"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_what_was_meant(
    write: Any, more: str, line: int, key: str, meant: str
) -> None:
    path = write(more)
    with pytest.raises(ValueError, match="unknown key") as caught:
        load(path)
    place = re.escape(f"{path}:{line}: {key}: ")
    assert re.search(rf"{place}unknown key.*[Dd]id you mean '{meant}'\?", str(caught.value))


def test_all_mistakes_are_reported_at_once(write: Any) -> None:
    with pytest.raises(ValueError, match="unknown key") as caught:
        load(write("stepps: 4\nseed: -1\nlearner:\n  lr: fast\n"))
    lines = str(caught.value).splitlines()
    assert [re.search(r":(\d+): ([\w.]+):", line).groups() for line in lines] == [
        ("12", "seed"),
        ("14", "learner.lr"),
        ("11", "stepps"),
    ]
    assert "-1" in lines[0]
    assert "'fast'" in lines[1]


def test_a_missing_key_is_named(write: Any) -> None:
    with pytest.raises(ValueError, match=r"steps: this key is required"):
        load(write(base=BASE.replace("steps: 3\n", "")))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: run\nsteps: [1\nseed: 0\n", 3),  # the list is still open when the next key comes
        ("name: run\n\tsteps: 1\n", 2),  # YAML forbids tabs
        ("name: run\nsteps: 1\nname: again\n", 3),  # a key that stands twice
    ],
)
def test_bad_yaml_names_file_and_line(write: Any, text: str, line: int) -> None:
    path = write(base=text)
    with pytest.raises(ValueError, match=re.escape(f"{path}:{line}: not valid YAML")):
        load(path)


@pytest.mark.parametrize("content", [b"name: caf\xe9\n", b"name: a\x07b\n"])
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load(path)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))} is a folder, and a config is a file"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just a line\n"])
def test_a_file_that_is_no_mapping_is_refused(write: Any, text: str) -> None:
    with pytest.raises(ValueError, match="expected a mapping"):
        load(write(base=text))


def test_a_missing_file_suggests_its_neighbour(write: Any, tmp_path: Path) -> None:
    write()
    with pytest.raises(ValueError, match=r"no config file .*rnu.yaml.*[Dd]id you mean '.*run.yaml'\?"):
        load(tmp_path / "rnu.yaml")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("samples_per_task: 1\n", "samples_per_task is 1.*use at least 2"),
        ("tasks_per_step: 8\nupdates_per_step: 3\n", r"updates_per_step \(3\) must divide tasks_per_step \(8\)"),
        ("    name: exact_answer\n", "'exact_answer' stands twice"),
        ("    name: a/b\n", "rewards.1: reward name 'a/b' contains '/'"),
        ("algorithm: {kl: none, kl_coef: 0.1}\n", "algorithm.kl_coef is set but algorithm.kl is 'none'"),
        ("algorithm: {kl: k1}\n", "expected gradient of 0"),  # grpo's row has its KL in the loss
        ("algorithm: {ratio: sequence, surrogate: score_function}\n", "needs a ratio"),
        ("algorithm: {ratio: sequence, aggregate: token_mean}\n", "aggregate: sequence_mean"),
        ("algorithm: {preset: ppo, scale: group_std}\n", "with a critic use batch_std"),
        ("algorithm: {clip_low: -0.1}\n", "must not be negative"),
        ("algorithm: {gamma: 1.5}\n", "between 0 and 1"),
        ("algorithm: {preset: gppo}\n", "unknown preset 'gppo'.*[Dd]id you mean"),
        ("algorithm: gppo\n", "unknown preset 'gppo'.*[Dd]id you mean"),
        ("algorithm: {baseline: group_meen}\n", "algorithm.baseline"),
        ("algorithm: {preset: grpo, gae_lambda: 0.9}\n", "algorithm.gae_lambda is 0.9, .* goes with baseline: critic"),
        ("algorithm: {preset: grpo, gamma: 0.9}\n", "goes with baseline: critic or kl_in: reward_to_go"),
        ("algorithm: {preset: rloo, clip_high: 0.3}\n", "goes with surrogate: clipped"),
        ("algorithm: {preset: online_dpo, loss: kto}\ntasks_per_step: 1\n", "kto estimates its KL from other"),
        (
            "algorithm: {preset: online_dpo, loss: simpo}\nreference: x\n",
            "loss: simpo compares with none; leave it out",
        ),
        ("algorithm: {preset: online_dpo, beta: 0}\n", "algorithm: beta must be above 0, got 0.0; 0.1 is usual"),
        ("algorithm: {preset: online_dpo, loss: kto, label_smoothing: 0.1}\n", "goes with loss: sigmoid, not kto"),
        ("algorithm: {preset: online_dpo, overlong: mask}\n", "algorithm.overlong: .*'count' or 'penalize'"),
        ("algorithm: {preset: online_dpo, loss: sigmoyd}\n", "algorithm.loss: .*'sigmoid', 'ipo', .*got 'sigmoyd'"),
        ("algorithm: {surrogate: kto, kl: none}\n", "write {preset: online_dpo, loss: kto}"),
        ("algorithm: {preset: [grpo]}\n", r"unknown preset \['grpo'\]"),
        ("algorithm: {preset: dapo, kl_in: reward}\n", "goes with kl: k1, k2 or k3"),
        ("algorithm: {preset: grpo, correction_range: [0.5, 5]}\n", "goes with a `correction`"),
        ("algorithm: rloo\nupdates_per_step: 2\n", "use algorithm.surrogate: clipped, or updates_per_step: 1"),
        ("backend: inline\nlearner: {workers: 2}\n", "learner.workers above 1 .* use backend: ray"),
        ("backend: inline\nlearner: {gpus_per_worker: 1}\n", "learner.gpus_per_worker need .* use backend: ray"),
        ("learner: {workers: 2, gpus_per_worker: 0.5}\n", "the same GPU, .* use more than 0.5, or 0 for CPUs"),
    ],
)
def test_contradictions_are_refused_with_a_way_out(write: Any, more: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        load(write(more))
    assert re.match(r".*run\.yaml:\d+: ", str(caught.value))


def test_the_only_reward_being_wrong_is_one_problem(write: Any) -> None:
    with pytest.raises(ValueError, match="reward name 'a/b' contains '/'") as caught:
        load(write(), ["rewards=[{path: 'm:r', name: a/b}]"])
    assert str(caught.value).count("rewards=") == 1


def test_one_sample_per_task_is_fine_with_a_critic(write: Any) -> None:
    assert load(write("samples_per_task: 1\nalgorithm: ppo\n")).samples_per_task == 1


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_plain_folder_is_refused(write: Any, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        load(write(), [f"name={name!r}"])


# Overrides.


def test_overrides_reach_every_depth(write: Any) -> None:
    config = load(
        write("learner: {lr: 0.1}\n"),
        ["steps=7", "learner.lr=1e-3", "rewards.1.weight=0.25", "sft.examples=5", "environment.args.low=2", "name=b"],
    )
    assert (config.steps, config.learner.lr, config.rewards[1].weight) == (7, 1e-3, 0.25)
    assert config.rewards[0].weight == 1.0
    assert config.sft is not None
    assert config.sft.examples == 5  # a section that the file does not have
    assert config.environment.args == {"low": 2}
    assert config.name == "b"


def test_an_override_takes_yaml(write: Any) -> None:
    config = load(
        write("sft: {examples: 3}\n"), ["sft=null", "adapter.target_modules=[q_proj, v_proj]", "algorithm=ppo"]
    )
    assert config.sft is None
    assert config.adapter.target_modules == ("q_proj", "v_proj")
    assert config.algorithm == PRESETS["ppo"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("steps", "expected key.sub=value"),
        ("=3", "expected key.sub=value"),
        ("rewards.2.weight=1", "'2' is not a position in a list of 2"),
        ("rewards.first.weight=1", "'first' is not a position"),
        ("learner.lrr=1", "^override learner.lrr=1: unknown key.*[Dd]id you mean 'lr'"),
        ("learner.learning_rate=1", "unknown key. Did you mean 'lr'"),
        ("num_generations=3", "unknown key. Did you mean 'samples_per_task'"),
        ("learner.batch_size=3", "unknown key. It is tasks_per_step in this config"),
        ("beta=0.1", "unknown key. It is algorithm.kl_coef in this config"),
        ("max_completion_length=3", "unknown key. It is sampling.max_new_tokens in this config"),
        ("rewards=order.py:order", "rewards=order.py:order: expected a list: `- path: order.py:order`$"),
        ("steps=many", "^override steps=many: .*'many'"),
        ("smaples_per_task=3", "^override smaples_per_task=3: unknown key.*[Dd]id you mean 'samples_per_task'"),
        ("rewards.0.weight=abc", "^override rewards.0.weight=abc: .*'abc'"),
        ("learner={lrr: 1}", "^override learner={lrr: 1}: learner.lrr: unknown key"),
        ("adapter.target_modules=[q_proj", r"adapter.target_modules=\[q_proj"),
    ],
)
def test_a_wrong_override_is_named(write: Any, override: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(write(), [override])


def test_what_other_systems_call_a_key_is_a_key_here(write: Any) -> None:
    for place in configs._ALIASES.values():
        node = load(write())
        for name in place.split("."):
            node = getattr(node, name)


# Presets.


def test_a_preset_is_named_by_a_bare_word_or_changed_in_part(write: Any) -> None:
    assert load(write()).algorithm == PRESETS["grpo"]
    assert load(write("algorithm: ppo\n")).algorithm == PRESETS["ppo"]
    assert load(write("algorithm: {kl: none}\n")).algorithm == replace(PRESETS["grpo"], kl="none", kl_coef=0.0)
    changed = load(write("algorithm: {preset: ppo, kl_coef: 0.2}\n")).algorithm
    assert changed == replace(PRESETS["ppo"], kl_coef=0.2)


@pytest.mark.parametrize(
    ("algorithm", "key", "says"),
    [
        # Of the objective that the preset names, and of no other.
        ("{preset: online_dpo, betta: 0.2}", "betta", "unknown key. Did you mean 'beta'?"),
        ("{preset: online_dpo, clip_hihg: 0.3}", "clip_hihg", "unknown key."),
        ("{preset: grpo, clip_hihg: 0.3}", "clip_hihg", "unknown key. Did you mean 'clip_high'?"),
        # Of the other one: what to write instead.
        (
            "{preset: online_dpo, kl_coef: 0.2}",
            "kl_coef",
            "this key has no place here: a preference loss has no KL term; how strongly it holds to the reference is "
            "`beta`",
        ),
        (
            "{preset: online_dpo, surrogate: kto}",
            "surrogate",
            "this key has no place here: a preference loss is named by `loss`: sigmoid, ipo, hinge, simpo, orpo or kto",
        ),
        (
            "{preset: online_dpo, baseline: none}",
            "baseline",
            "this key has no place here: a preference loss compares whole samples and has no such choice; leave it out",
        ),
        (
            "{preset: grpo, beta: 0.2}",
            "beta",
            "this key has no place here: it belongs to {preset: online_dpo}; the weight of a KL term is `kl_coef`",
        ),
        (
            "{loss: kto}",
            "loss",
            "this key has no place here: a preference loss is chosen by {preset: online_dpo, loss: sigmoid}",
        ),
        (
            "{preset: ppo, margin: 0.5}",
            "margin",
            "this key has no place here: it is a choice of preference losses; use it with {preset: online_dpo}",
        ),
    ],
)
def test_a_key_of_another_objective_is_one_mistake(write: Any, algorithm: str, key: str, says: str) -> None:
    path = write(f"algorithm: {algorithm}\n")
    with pytest.raises(ValueError, match="algorithm") as caught:
        load(path)
    assert str(caught.value) == f"{path}:11: algorithm.{key}: {says}"


def test_a_name_alone_takes_settings_on_the_command_line(write: Any) -> None:
    (tracker,) = load(write("trackers: [tensorboard]\n"), ["trackers.0.to=/tmp/x"]).trackers
    assert (tracker.name, tracker.to) == ("tensorboard", "/tmp/x")
    with pytest.raises(ValueError, match=r"rewards\.0 is 'a\.py:b', which has no .*; write `- path: a\.py:b` in"):
        load(write(), ["rewards=['a.py:b']", "rewards.0.weight=2"])


def test_a_choice_on_the_command_line_keeps_the_preset_of_the_file(write: Any) -> None:
    config = load(write("algorithm: online_dpo\n"), ["algorithm.beta=0.2", "algorithm.loss=ipo"])
    assert config.algorithm == replace(PRESETS["online_dpo"], beta=0.2, loss="ipo")
    with pytest.raises(ValueError, match=r"'name.first=x': name is 'run', which has no settings of its own"):
        load(write(), ["name.first=x"])


# The resolved config.


def test_a_preference_objective_is_dumped_whole(write: Any, tmp_path: Path) -> None:
    config = load(write("algorithm: {preset: online_dpo, loss: kto, undesirable_weight: 2}\n"))
    again = tmp_path / "config.yaml"
    again.write_text(dump(config), encoding="utf-8")
    assert load(again) == config
    assert YAML(typ="safe").load(again.read_text())["algorithm"] == asdict(config.algorithm)


def test_what_is_dumped_loads_to_the_same_config(write: Any, tmp_path: Path) -> None:
    config = load(
        write(
            "sft: {examples: 3}\nalgorithm: {preset: ppo, gamma: 0.5}\nadapter: {target_modules: [q_proj]}\n"
            "output_dir: 'a: b # c'\n"
        ),
        ["environment.args={seed: 3, words: [a, 'on', '1e3'], deep: {x: null}}"],
    )
    again = tmp_path / "config.yaml"
    again.write_text(dump(config), encoding="utf-8")
    assert load(again) == config
    assert load(again).environment.args == {"seed": 3, "words": ["a", "on", "1e3"], "deep": {"x": None}}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (".inf", "inf is not a number"),
        ("{a: [1, {b: .nan}]}", "nan is not a number"),
        ("2024-01-02", "is read as a date; write it in quotes"),
        ("2024-01-02 10:00:00", "is read as a date"),
        ("!!binary aGVsbG8=", "a value of the type bytes"),
        ("!!set {a, b}", "a value"),
        ("!mine 3", "not valid YAML"),
        ("{1: x}", "the key 1 is not text; write it in quotes: '1'"),
    ],
)
def test_an_argument_that_a_config_yaml_would_not_give_back_is_refused(write: Any, value: str, says: str) -> None:
    """A resumed run reads config.yaml, where these would have become null, text or a list."""
    with pytest.raises(ValueError, match=says):
        load(write(), [f"environment.args={{x: {value}}}"])
    if "!mine" in value:  # in a file, a tag that nothing knows can be read
        says = "a value with a YAML tag"
    path = write(base=BASE.replace("environment:", f"environment:\n  args: {{x: {value}}}"))
    with pytest.raises(ValueError, match=rf"{path}:\d+: environment\.args\.x.*: .*{says}"):
        load(path)


@pytest.mark.parametrize("value", [float("inf"), {1, 2}, b"bytes", (1, 2), {3: "x"}, date(2024, 1, 2), object()])
def test_a_config_made_in_python_is_not_kept_in_a_form_that_reads_otherwise(write: Any, value: object) -> None:
    config = load(write())
    changed = config.model_copy(update={"environment": EnvironmentConfig(path="a:b", args={"x": value})})
    with pytest.raises(ValueError, match=r"config\.yaml.*Arguments are texts, finite numbers"):
        dump(changed)


@pytest.mark.parametrize("setting", ["sampling.temperature=.inf", "learner.lr=.nan", "sampling.stop=['']"])
def test_settings_that_mean_nothing_are_refused(write: Any, setting: str) -> None:
    with pytest.raises(ValueError, match=setting.partition("=")[0].replace(".", r"\.")):
        load(write(), [setting])


def test_a_config_is_frozen(write: Any) -> None:
    config = load(write())
    with pytest.raises(Exception, match="frozen"):
        config.steps = 9
    with pytest.raises(Exception, match="cannot assign"):
        config.algorithm.kl_coef = 9.0


# Its documentation.


def leaves(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    """The settings below `node`: dotted name -> its schema. A list of sections counts its section once."""
    found = {}
    for name, value in node["properties"].items():
        where = f"{path}{name}"
        sections = list(_sections(schema, value))
        for section in sections:
            found |= leaves(schema, section, f"{where}.")
        if not sections:
            found[where] = value
    return found


def _sections(schema: dict[str, Any], node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sections that a setting may hold, also where it may be null or is a list of sections."""
    for candidate in (node, node.get("items", {}), *node.get("anyOf", ()), *node.get("allOf", ())):
        if "$ref" in candidate:
            candidate = schema["$defs"][candidate["$ref"].rpartition("/")[2]]
        if "properties" in candidate:
            yield candidate


def undocumented(schema: dict[str, Any]) -> list[str]:
    """Settings and sections without a description; one that only repeats its section's stands there."""
    sections = {"": schema, **schema.get("$defs", {})}
    missing = [name for name, section in sections.items() if not section.get("description")]
    for name, section in sections.items():
        for key, value in section["properties"].items():
            if not value.get("description") and "$ref" not in value:
                missing.append(f"{name}.{key}")
    return missing


def test_every_setting_is_documented() -> None:
    assert undocumented(configs.schema()) == []
    assert [name for name, field in RunConfig.model_fields.items() if not field.description] == []


def test_a_setting_without_documentation_would_be_found() -> None:
    class Section(BaseModel):
        """Has a docstring."""

        model_config = ConfigDict(use_attribute_docstrings=True)
        known: int = 1
        """Documented."""
        bare: int = 2

    assert undocumented(Section.model_json_schema()) == [".bare"]


def test_what_a_preset_brings_may_be_without_effect(write: Any, tmp_path: Path) -> None:
    # Only what a user sets has to have one: PPO's lambda is no obstacle to PPO's clip with a group baseline.
    config = load(write("algorithm: {preset: ppo, baseline: group_mean, scale: group_std}\n"))
    assert config.algorithm.gae_lambda == PRESETS["ppo"].gae_lambda != 1
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load(again) == config


FURTHER = {
    "about evaluation sets": """evaluations.name evaluations.tasks evaluations.every evaluations.samples_per_task
        evaluations.temperature evaluations.top_p evaluations.metric evaluations.environment.path
        evaluations.environment.args""",
    "about rewards that are asked, checked and bounded in processes of their own": """scoring.environment scoring.check
        scoring.max_concurrent scoring.memory_mb scoring.judge_calls scoring.judge_tokens""",
    "about several environments in one run": """environment.mix.name environment.mix.path environment.mix.args
        environment.mix.weight rewards.only""",
    "about what the verdict rests on": "evaluation.metric evaluation.min_effect evaluation.top_p",
    "about trackers": "trackers.name trackers.project trackers.to",
    "about credit for single turns, roles of rewards, and alarms": "algorithm.credit rewards.role guards.alarms",
}
"""What the settings beyond the first 100 are for. A further one needs its reason here and in docs/config.md, which has
the same sentence below its table: a setting that nobody can give a reason for is none."""


def test_each_setting_beyond_100_has_a_reason() -> None:
    found = leaves(configs.schema(), configs.schema())
    found.pop("extends")  # names a file, and is in no config
    assert {
        "steps",
        "learner.lr",
        "rewards.weight",
        "sft.epochs",
        "algorithm.kl_coef",
        "algorithm.beta",
    } <= found.keys()
    further = set(" ".join(FURTHER.values()).split())
    assert further <= found.keys()
    assert 40 < len(found) - len(further) <= 100, sorted(found.keys() - further)
    page = " ".join((Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8").split())
    for what, names in FURTHER.items():
        assert f"{len(names.split())} {what}" in page


# The JSON Schema.


def test_the_schema_is_valid_and_refuses_what_load_refuses() -> None:
    schema = configs.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    tree = YAML(typ="safe").load(BASE)
    assert list(validator.iter_errors(tree)) == []
    assert [error.validator for error in validator.iter_errors({**tree, "stepps": 3})] == ["additionalProperties"]
    assert [error.validator for error in validator.iter_errors({**tree, "steps": 0})] == ["minimum"]


@pytest.mark.parametrize(
    ("algorithm", "is_right"),
    [
        ("ppo", True),
        ("online_dpo", True),
        ("gppo", False),
        ({"preset": "ppo"}, True),
        ({"preset": "grpo", "kl_coef": 0.1}, True),
        ({"kl_coef": 0.1}, True),
        ({"preset": "grpo", "beta": 0.1}, False),
        ({"preset": "online_dpo", "loss": "kto", "beta": 0.2}, True),
        ({"loss": "kto"}, False),
        ({"preset": "online_dpo", "kl_coef": 0.2}, False),
    ],
    ids=str,
)
def test_the_schema_accepts_an_algorithm_as_users_write_it(write: Any, algorithm: Any, is_right: bool) -> None:
    tree = {**YAML(typ="safe").load(BASE), "algorithm": algorithm}
    assert jsonschema.Draft202012Validator(configs.schema()).is_valid(tree) == is_right
    with nullcontext() if is_right else pytest.raises(ValueError, match="algorithm"):
        load(write(), [f"algorithm={json.dumps(algorithm)}"])


KINDS = {
    "dpo": PreferenceConfig,
    "reward_model": RewardModelConfig,
    "head": HeadConfig,
    "sft": SupervisedConfig,
    "sft_full": SupervisedConfig,
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_fits_the_schema(path: Path) -> None:
    kind = KINDS.get(path.stem, RunConfig)
    assert isinstance(load(path, (), kind), kind)
    schema = configs.schema(kind)
    tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(tree)] == []


def missing_of_header(text: str) -> list[str]:
    """What the comment at the beginning of a config does not say: how long the run takes, what it ends with."""
    header = " ".join(
        line.lstrip("# ") for line in itertools.takewhile(lambda line: line[:1] == "#", text.splitlines())
    )
    ends = r"\d\.\d\d|learnt nothing yet"
    wanted = {"time": r"\b(\d+ s|seconds?|minutes?|hours?)\b", "end": ends}
    return [name for name, pattern in wanted.items() if not re.search(pattern, header)]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_config_says_how_long_it_takes_and_what_it_ends_with(path: Path) -> None:
    assert missing_of_header(path.read_text(encoding="utf-8")) == []


def test_what_a_header_does_not_say_would_be_found() -> None:
    assert missing_of_header("# A run.\nname: a # 5 minutes, 0.50\n") == ["time", "end"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_no_line_of_a_shipped_config_says_what_holds_anyway(path: Path, tmp_path: Path) -> None:
    # Lines that tell a config from that of another command.
    telling = {"reward_model": {"lr"}, "dpo": {"preference", "preference.loss"}}
    found = needless(path, KINDS.get(path.stem, RunConfig), tmp_path)
    assert set(found) <= telling.get(path.stem, set())


def test_a_needless_line_would_be_found(write: Any, tmp_path: Path) -> None:
    assert needless(write("seed: 0\nlearner: {lr: 0.1, threads: 2}\n"), RunConfig, tmp_path) == [
        "seed",
        "learner.threads",
    ]


def needless(path: Path, kind: type[BaseModel], folder: Path) -> list[str]:
    """The keys of a config file without which it would be the same config.

    So are arguments that are the function's defaults, and more held-out tasks than there are where that is the default.
    """
    yaml = YAML()
    meant = load(path, (), kind)
    tree = yaml.load(path.read_text(encoding="utf-8"))
    if "extends" in tree:
        tree["extends"] = str(path.parent / tree["extends"])
    found = []
    for section, key, name in list(_keys(tree)):
        value = section.pop(key)
        yaml.dump(tree, without := folder / "without.yaml")
        with suppress(ValueError):  # it is needed
            found += [name] if load(without, (), kind) == meant else []
        section[key] = value
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_no_argument_of_a_shipped_config_is_the_functions_own(path: Path) -> None:
    config = load(path, (), KINDS.get(path.stem, RunConfig))
    environment = getattr(config, "environment", None)
    named = [(each.path, each.args, "rewards") for each in getattr(config, "rewards", ())]
    if environment is not None:
        named += [(each.path, each.args, "environments") for each in (environment, *environment.mix)]
    for function, args, shipped in named:
        if args and function.startswith((shipped, "configs/")):
            defaults = inspect.signature(import_function(function, shipped=shipped)).parameters
            assert [name for name, value in args.items() if value == defaults[name].default] == [], function


def _keys(node: Any, path: str = "") -> Iterator[tuple[Any, str, str]]:
    """(section, key in it, dotted name) of everything that a config says."""
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from _keys(value, f"{path}{number}.")
    elif isinstance(node, dict):
        for key, value in node.items():
            yield node, key, f"{path}{key}"
            if key != "args":
                yield from _keys(value, f"{path}{key}.")
