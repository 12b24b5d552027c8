"""What engines can do, asked of their traits: before anything is loaded, with file and line, and nowhere by name."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from ruamel.yaml import YAML

from rlft.cli.main import app
from rlft.cli.run_config import load, schema
from rlft.config import AdapterConfig, RolloutConfig
from rlft.rollout.engines import vllm
from rlft.rollout.engines.by_name import check_engine, read_arguments, traits_of
from rlft.rollout.engines.traits import ENGINES, OpenAIArguments, TransformersArguments, VllmArguments
from tests.fakes import tiny_config
from tests.test_architecture import ROOT, sources

CONFIG = """\
name: r
steps: 1
model: {source: m}
environment: {path: "e:load"}
rewards: [{path: "m:r"}]
"""
SERVED = {"base_url": "http://localhost:1/v1", "model": "m"}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(more: str = "") -> Path:
        (tmp_path / "run.yaml").write_text(CONFIG + more)
        return tmp_path / "run.yaml"

    return write


# Problems.


@pytest.mark.parametrize(
    ("more", "line", "says"),
    [
        ("rollout:\n  engine: vlm\n", 7, r"rollout\.engine: 'vlm' is none; one of transformers, .*mean 'vllm'\?"),
        ("rollout:\n  engine: openai\n  engine_args: {base_url: u, model: m}\n", 7, "openai cannot train: .*evaluate"),
        ("rollout:\n  engine_args:\n    max_row: 3\n", 8, r"args\.max_row: unknown key\. Did you mean 'max_rows'\?"),
        ("rollout:\n  engine_args:\n    cache_mb: 0\n", 8, r"rollout\.engine_args\.cache_mb: .*greater than 0"),
        (
            "rollout:\n  engine: vllm\n  engine_args:\n    sleep: true\n    gpu_memory: 0.5\n",
            *(10, r"gpu_memory: unknown key\. Did you mean 'gpu_memory_utilization'\? \(the vllm engine has sleep, "),
        ),
        ("rollout:\n  engine: vllm\n  engine_args:\n    max_model_len: long\n", 9, "max_model_len: .*valid integer"),
        ("rollout:\n  engine: vllm\n  engine_args:\n    dtype: half\n", 9, r"args\.dtype: follows from model, adapter"),
        (
            "rollout:\n  engine: vllm\n  engine_args:\n    extra_args: {trust_remote_code: true}\n",
            *(9, "trust_remote_code is refused: no code"),
        ),
        (
            "rollout:\n  engine: vllm\n  engine_args:\n    extra_args: {logprobs_mode: raw_logits}\n",
            *(9, r"engine_args\.extra_args: logprobs_mode follows from"),
        ),
        (
            "rollout:\n  engine: vllm\n  engine_args:\n    extra_args: {block_size: 8}\n",
            *(9, r"block_size is an argument of its own: rollout\.engine_args\.block_size"),
        ),
        ("adapter:\n  kind: dora\nrollout: {engine: vllm}\n", 7, r"adapter\.kind: dora .* use lora or rslora"),
        ("adapter:\n  rank: 513\nrollout: {engine: vllm}\n", 7, r"adapter\.rank: .* up to rank 512, this is 513"),
        (
            "rollout: {engine: vllm}\nsampling:\n  top_k: 5\n  temperature: 0.7\n",
            *(9, r"sampling\.temperature: .* at temperature 0\.7 before top_p, top_k and min_p"),
        ),
    ],
)
def test_what_an_engine_cannot_do_is_refused_with_file_and_line(write: Any, more: str, line: int, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        load(write(more), [])
    assert str(caught.value).startswith(f"{write(more)}:{line}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_all_problems_come_at_once(write: Any) -> None:
    path = write("rollout:\n  engine: openai\n  engine_args:\n    api_key: secret\n    retires: 1\n    model: m\n")
    with pytest.raises(ValueError, match="api_key") as caught:
        load(path, [])
    places = [line.split(": ", 2)[:2] for line in str(caught.value).splitlines()]
    assert places == [
        [f"{path}:9", "rollout.engine_args.api_key"],
        [f"{path}:8", "rollout.engine_args.base_url"],
        [f"{path}:10", "rollout.engine_args.retires"],
        [f"{path}:7", "rollout.engine"],
    ]
    assert "secret" not in str(caught.value)


def test_what_only_measures_may_use_an_engine_that_cannot_train(write: Any) -> None:
    path = write("rollout: {engine: openai, engine_args: {base_url: u, model: m}}\n")
    assert load(path, [], is_trained=False).rollout.engine == "openai"
    with pytest.raises(ValueError, match=r"^override rollout\.engine_args\.modle=x: unknown key"):
        load(path, ["rollout.engine_args.modle=x"], is_trained=False)


def test_a_config_that_was_not_read_from_a_file_is_checked_too() -> None:
    for more, says in [
        ({"rollout": {"engine": "vlm"}}, "^rollout.engine: 'vlm' is none"),
        ({"rollout": {"engine": "openai", "engine_args": SERVED}}, "^rollout.engine: openai cannot train"),
        ({"rollout": {"engine_args": {"max_row": 1}}}, "^rollout.engine_args.max_row: unknown key"),
    ]:
        with pytest.raises(ValueError, match=says):
            check_engine(tiny_config("m", **more), is_trained=True)
    with pytest.raises(ValueError, match=r"^rollout\.engine: 'vlm' is none"):
        traits_of(RolloutConfig(engine="vlm"))


@pytest.mark.parametrize("kind", get_args(AdapterConfig.model_fields["kind"].annotation))
def test_each_adapter_kind_has_an_engine(kind: str) -> None:
    assert not ENGINES["transformers"].adapter_kinds
    config = tiny_config("m", rollout={"engine": "vllm"}).model_copy(update={"adapter": AdapterConfig(kind=kind)})
    if kind in ("lora", "rslora"):
        check_engine(config, is_trained=True)
    else:
        with pytest.raises(ValueError, match=f"adapter.kind: {kind} is no kind"):
            check_engine(config, is_trained=True)


# Arguments.


def test_arguments_have_the_type_of_the_engine() -> None:
    read = [
        read_arguments(RolloutConfig(engine_args={"max_rows": 3})),
        read_arguments(RolloutConfig(engine="vllm", engine_args={"max_model_len": 20})),
        read_arguments(RolloutConfig(engine="openai", engine_args=SERVED)),
    ]
    assert read == [TransformersArguments(max_rows=3), VllmArguments(max_model_len=20), OpenAIArguments(**SERVED)]


def test_vllm_gets_what_was_said_and_nothing_else() -> None:
    said = VllmArguments(sleep=True, block_size=16, enforce_eager=False, extra_args={"seed": 3})
    assert said.for_llm() == {"block_size": 16, "enforce_eager": False, "seed": 3}
    assert VllmArguments().for_llm() == {}


def test_the_largest_rank_is_one_that_vllm_can_be_started_with() -> None:
    assert ENGINES["vllm"].max_rank == vllm.RANKS[-1] == max(vllm.RANKS)


def test_every_argument_is_documented() -> None:
    page = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
    for traits in ENGINES.values():
        for name, field in traits.arguments.model_fields.items():
            assert field.description, name
            assert f"`{name}`" in page, f"docs/rollouts.md does not have {name}"


def test_the_schema_has_the_engines_and_their_arguments() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    for rollout, is_right in [
        ({}, True),
        ({"engine": "vllm", "engine_args": {"max_model_len": 5}}, True),
        ({"engine": "openai", "engine_args": SERVED}, True),
        ({"engine": "vlm"}, False),
        ({"engine_args": {"max_row": 5}}, False),
    ]:
        assert validator.is_valid({**YAML(typ="safe").load(CONFIG), "rollout": rollout}) == is_right, rollout


def test_the_engines_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    app(["list", "engines"], standalone_mode=False)
    printed = capsys.readouterr().out
    for name, traits in ENGINES.items():
        assert re.search(rf"^ *{name} +{re.escape(traits.summary[:20])}", printed, re.MULTILINE)


# Names.


def names_asked(source: str) -> list[str]:
    """Engines' names that a source compares, looks up, or matches."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            found += [each for part in parts for each in [part, *(getattr(part, "elts", []))]]
        elif isinstance(node, ast.Subscript):
            found.append(node.slice)
        elif isinstance(node, ast.Dict):
            found += node.keys
        elif isinstance(node, ast.MatchValue):
            found.append(node.value)
    return [each.value for each in found if isinstance(each, ast.Constant) and each.value in list(ENGINES)]


def test_no_other_room_asks_for_an_engine_by_name() -> None:
    # Tables of packages, systems with rewards, and servers, some of which are named like an engine.
    servers = {"rlft.cli.serve", "rlft.train.export.server", "rlft.train.export.export"}
    others = {"rlft.common.private_names", "rlft.reward.systems", *servers}
    for name, source in sources("rlft").items():
        assert not names_asked(source) or "engines" in name.split(".") or name in others, name


def test_a_name_that_is_asked_for_would_be_found() -> None:
    source = """
if config.engine != "vllm" or config.engine in ("openai",): ...
limits = {"transformers": 1}["vllm"]
match engine:
    case "openai": ...
"""
    assert sorted(names_asked(source)) == ["openai", "openai", "transformers", "vllm", "vllm"]


def test_measuring_with_top_p_needs_an_engine_that_can() -> None:
    measured = {"temperature": 0.7, "top_p": 0.95}
    config = tiny_config("m", evaluation=measured, evaluations=[{"name": "hot", **measured}])
    check_engine(config, is_trained=False)
    vllm = tiny_config("m", evaluation=measured, evaluations=[{"name": "hot", **measured}], rollout={"engine": "vllm"})
    with pytest.raises(ValueError, match=r"evaluation\.top_p: .* at temperature 1 only, this is 0\.7") as error:
        check_engine(vllm, is_trained=False)
    assert "evaluations.0.top_p: " in str(error.value)
    for fine in ({"temperature": 0.0, "top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 0.7}):
        check_engine(tiny_config("m", evaluation=fine, rollout={"engine": "vllm"}), is_trained=False)
