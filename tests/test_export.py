"""`rlft export`: what other software loads is what was trained, and what is not is found out by a fresh process."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlft.curves import model_card, reading
from rlft.curves.model_card import Base, Exported, block, code, markdown, write_card
from rlft.learner.roles import make_policy, read_role
from rlft.model.starting_point import save_adapter
from rlft.train.export import export as exporting
from rlft.train.export.export import export
from rlft.train.export.folder import write_adapter, write_merged
from rlft.train.export.policy import Policy, find_policy
from rlft.train.export.proof import Expected, FreshProcess, ProofError, expect, prove
from tests.fakes_run import make_run

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshProcess]:
    with closing(FreshProcess()) as process:
        yield process


@pytest.fixture(scope="module")
def policy(finished_run: Path) -> Policy:
    return find_policy(finished_run)


@pytest.fixture(scope="module")
def expected(policy: Policy) -> Expected:
    return expect(policy)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy, which a test may damage and write into."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


# Which adapter.


def test_the_result_of_a_run_is_its_last_adapter_or_the_one_it_was_rolled_back_to(run: Path) -> None:
    assert reading.adapter_of(run).name == "v000004"
    assert reading.adapter_of(run, "v2") == reading.adapter_of(run, "v000002") == run / "adapters" / "v000002"
    with pytest.raises(ValueError, match="no adapter 'v9'; there are: v000001, v000002, v000003, v000004"):
        reading.adapter_of(run, "v9")
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"time": "", "kind": "rolled_back", "message": "", "step": 3}) + "\n")
    assert reading.adapter_of(run).name == "v000003"


def test_an_adapter_that_was_swapped_in_its_run_is_refused(run: Path) -> None:
    shutil.copyfile(run / "adapters" / "v000002" / ADAPTER, run / "adapters" / "v000004" / ADAPTER)
    with pytest.raises(ValueError, match=r"evals/step-000004\.json says .* swapped or changed"):
        find_policy(run)
    # Step 3 was not evaluated, but its adapter sampled step 4.
    shutil.copyfile(run / "adapters" / "v000002" / ADAPTER, run / "adapters" / "v000003" / ADAPTER)
    with pytest.raises(ValueError, match=r"rollouts/step-000004\.parquet says"):
        find_policy(run, "v3")


# The proof.


def test_both_folders_give_the_learners_logprobs_without_code_of_rlft(
    policy: Policy, expected: Expected, fresh: FreshProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[str] = []
    ask = fresh.ask

    def listening(question: Any) -> dict[str, Any]:
        answer = ask(question)
        modules.extend(answer["modules"])
        return answer

    monkeypatch.setattr(fresh, "ask", listening)
    for is_adapter in (True, False):
        folder = tmp_path / str(is_adapter)
        folder.mkdir()
        write = write_adapter if is_adapter else write_merged
        dtype = write(folder, policy, str(policy.model_folder) if is_adapter else "auto")  # type: ignore[arg-type]
        proof = prove(folder, policy, expected, fresh, is_adapter=is_adapter, dtype=dtype)
        assert proof.difference < 1e-5 < 0.05 < proof.moved
        assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".py")]
    heavy = ("rlft.model", "rlft.learner", "rlft.rollout", "rlft.config")
    assert "rlft.train.export.plain_loading" in modules
    assert [name for name in modules if name.startswith(heavy)] == []


def test_the_proof_of_a_template_with_the_date_holds_on_every_day(
    policy: Policy, fresh: FreshProcess, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(policy.model_folder, tmp_path / "model"))
    path = model / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}\n" + path.read_text())
    dated = replace(policy, model_folder=model)
    folder = tmp_path / "adapter"
    folder.mkdir()
    dtype = write_adapter(folder, dated, str(model))
    prove(folder, dated, expect(dated), fresh, is_adapter=True, dtype=dtype)


@pytest.mark.parametrize("kind", ["dora", "rslora", "full"])
def test_every_kind_of_training_is_exported_as_what_it_is(
    kind: str, policy: Policy, fresh: FreshProcess, tmp_path: Path
) -> None:
    config = policy.config.model_copy(update={"adapter": policy.config.adapter.model_copy(update={"kind": kind})})
    role = make_policy(
        policy.model_folder, config.model, config.adapter, device=torch.device("cpu"), seed=1, start=None
    )
    generator = torch.Generator().manual_seed(1)
    moved = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in read_role(role).items()
    }
    save_adapter(tmp_path / "trained", config, str(policy.model_folder), moved)
    own = replace(policy, config=config, tensors=moved, folder=tmp_path / "trained")
    expected = expect(own)
    for name, write in {"adapter": write_adapter, "merged": write_merged}.items():
        if (kind, name) == ("full", "adapter"):
            continue
        (folder := tmp_path / name).mkdir()
        dtype = write(folder, own, "base" if name == "adapter" else "auto")  # type: ignore[operator]
        proof = prove(folder, own, expected, fresh, is_adapter=name == "adapter", dtype=dtype)
        assert proof.difference < 1e-5 < 0.01 < proof.moved


def test_a_base_without_a_chat_template_is_exported_and_proven_by_plain_text(
    run: Path, policy: Policy, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(policy.model_folder, tmp_path / "base"))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}))
    config = (run / "config.yaml").read_text()
    assert str(policy.model_folder) in config
    (run / "config.yaml").write_text(config.replace(str(policy.model_folder), str(base)))
    for merged in (False, True):
        done = export(run, merged=merged, to=tmp_path / f"merged-{merged}")
        assert done.proof.difference < 1e-5 < 0.05 < done.proof.moved
        card = (done.folder / "README.md").read_text(encoding="utf-8")
        assert 'prompt = tokenizer("...", return_tensors="pt")' in card
        assert "apply_chat_template" not in card


Fault = Callable[[Path, Policy], None]


def change_tensors(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Fault:
    def plant(folder: Path, policy: Policy) -> None:
        changed = {name: change(name, tensor) for name, tensor in load_file(folder / ADAPTER).items()}
        kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
        save_file(kept, folder / ADAPTER, metadata={"format": "pt"})

    return plant


def other_alpha(folder: Path, policy: Policy) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 40.0}))


def earlier_adapter(folder: Path, policy: Policy) -> None:
    shutil.copyfile(policy.run / "adapters" / "v000001" / ADAPTER, folder / ADAPTER)


def other_template(folder: Path, policy: Policy) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|assistant|>", "<|assistant|>\n"))


FAULTS: dict[str, tuple[Fault, str]] = {
    "an adapter of zeros": (change_tensors(lambda name, tensor: torch.zeros_like(tensor)), "equal to the base model"),
    "a swapped adapter": (earlier_adapter, "different from the learner, and looks like v000001"),
    "a missing layer": (
        change_tensors(lambda name, tensor: None if "layers.1." in name else tensor),
        "different from the learner.*a part of it is missing",
    ),
    "one missing matrix": (
        change_tensors(lambda name, tensor: None if "layers.0.mlp.up_proj.lora_B" in name else tensor),
        "different from the learner.*a part of it is missing",
    ),
    "another alpha": (other_alpha, "different from the learner.*scaled otherwise"),
    "another chat template": (other_template, "chat template makes other tokens"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_of_an_adapter_is_found(
    name: str, policy: Policy, expected: Expected, fresh: FreshProcess, tmp_path: Path
) -> None:
    fault, told = FAULTS[name]
    write_adapter(tmp_path, policy, str(policy.model_folder))
    fault(tmp_path, policy)
    with pytest.raises(ProofError, match=re.compile(told, re.DOTALL)):
        prove(tmp_path, policy, expected, fresh, is_adapter=True, dtype="float32")


def test_the_base_saved_as_the_merged_model_is_found_and_nothing_is_deleted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlft.rollout.engines.merging.merged_weight", lambda weight, *rest, **more: weight.clone())
    kept = run / "exports" / "tiny-v000004-merged.unproven"
    kept.mkdir(parents=True)  # of an earlier try
    before = {path.name for path in run.rglob("*")}
    with pytest.raises(ProofError, match=re.compile(r"equal to the base model.*\.unproven-1, and", re.DOTALL)):
        export(run, merged=True)
    assert (kept.with_name(f"{kept.name}-1") / "model.safetensors").is_file()
    assert not (run / "exports" / "tiny-v000004-merged").exists()
    assert before <= {path.name for path in run.rglob("*")}


class Answering(FreshProcess):
    """Gives log-probs that a test makes up."""

    def __init__(self, expected: Expected, logprobs: tuple[float, ...]) -> None:
        self._answer = {"prompt_ids": list(expected.prompt_ids), "logprobs": list(logprobs)}

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer


@pytest.mark.parametrize(
    ("away", "moved", "told"),
    [
        (0.05, 0.6, ""),  # rounded, and twelve times nearer to the learner than the base is
        (0.05, 0.06, "bfloat16 rounds a good part of so small an update away"),
        (0.29, 0.3, "rounds a good part"),
        (0.6, 0.6, "equal to the base model"),
        (0.9, 2.4, "different from the learner"),  # more than rounding explains
        (math.nan, 0.6, "different from the learner"),
    ],
)
def test_what_is_said_of_a_merged_model_in_bfloat16(
    policy: Policy, expected: Expected, away: float, moved: float, told: str
) -> None:
    # The reply has log-probs of -6 nats, so that rounding may take 5 % of that, 0.3.
    flat = replace(expected, learner=(-6.0,) * 5, base=(-6.0 - moved,) * 5, token_ids=(1,) * 5)
    fresh = Answering(flat, (-6.0 - away,) * 5)
    if not told:
        assert prove(
            policy.folder, policy, flat, fresh, is_adapter=False, dtype="bfloat16"
        ).difference == pytest.approx(0.05)
        return
    with pytest.raises(ProofError, match=told):
        prove(policy.folder, policy, flat, fresh, is_adapter=False, dtype="bfloat16")


def test_an_adapter_that_learnt_nothing_is_not_exported(run: Path) -> None:
    folder = run / "adapters" / "v000000"
    shutil.copytree(run / "adapters" / "v000001", folder)
    tensors = load_file(folder / ADAPTER)
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / ADAPTER)
    shutil.rmtree(run / "rollouts")  # which say another hash
    with pytest.raises(ProofError, match="is equal to the base model: it moves the canary's log-probs by 0 nats"):
        export(run, adapter="v0")


# The command's target.


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_computed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "expect", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already and not empty"):
        export(run, to=tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="an adapter is stored as it was trained"):
        export(run, dtype="bfloat16")


# The card.


def exported(**changes: Any) -> Exported:
    base = Base(source="mine", reference="org/mine", hub_id="org/mine", revision="", license="MIT", weights="")
    facts = {
        "name": "r-v000012",
        "title": "r-v000012",
        "adapter": "v000012",
        "adapter_hash": "ab" * 32,
        "is_adapter": True,
        "kind": "lora",
        "dtype": "float32",
        "vllm_rank": 16,
        "base": base,
        "proof": "the same",
        "root": "",
    }
    return Exported(**{**facts, **changes})


def card_of(run: Path, folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    write_card(folder, run, exported(**changes))
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_the_report_says(tmp_path: Path) -> None:
    from rlft.curves.verdict import verdict_of

    run = make_run(tmp_path / "r")
    last = reading.read_evals(run)[-1]
    text = card_of(run, tmp_path / "card", adapter_hash=last.adapter_hash)
    verdict = verdict_of(run)
    assert f"**{verdict.word}**: {markdown(verdict.sentence)}" in text
    for reason in verdict.reasons:
        assert markdown(reason.says) in text
    assert f"{last.accuracy.mean:.2f} \\[" in text
    for words in ("`math_answer` | 1 |", "`brevity` | 0.1 |", "`environments.arithmetic:sums`", "MIT", "`grpo`"):
        assert words in text
    assert 'base_model: "org/mine"' in text.partition("---\n")[2]
    assert (tmp_path / "card" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "was not measured itself" not in text


def test_the_card_of_another_adapter_does_not_take_the_verdict_for_its_own(tmp_path: Path) -> None:
    text = card_of(make_run(tmp_path / "r"), tmp_path / "card")
    assert "What lies here was not measured itself." in text
    assert "That is the verdict on RL, step 12 of the run, which is not what lies here." in text


def test_the_card_serves_an_adapter_only_by_what_takes_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    serving = "vllm serve org/mine --enable-lora --lora-modules r-v000012=r-v000012"
    assert serving in card_of(run, tmp_path / "16")
    assert "--enable-lora --max-lora-rank 64 " in card_of(run, tmp_path / "64", vllm_rank=64)
    other = card_of(run, tmp_path / "dora", vllm_rank=0, kind="dora")
    assert "vllm serve" not in other
    assert "`rlft export --merged`" in other
    for text in (other, card_of(run, tmp_path / "merged", is_adapter=False)):
        compile(text.partition("```python\n")[2].partition("```")[0], "card", "exec")
    assert "supervised fine-tuning" in card_of(run, tmp_path / "sft", adapter="sft")


HOSTILE = "`<b>code<td><script src=x> ![x](javascript:p) | **b** \x1b[31m\n# h\n```\nwww.evil.example"


def test_foreign_text_in_a_card_is_only_text(tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    run = make_run(tmp_path / "r")
    path = run / "config.yaml"
    quoted = json.dumps(HOSTILE)
    text = path.read_text().replace("environments.arithmetic:sums", quoted)
    path.write_text(text.replace("name: brevity", f"name: {quoted}"))
    for file in (run / "evals").glob("*.json"):
        file.write_text(file.read_text().replace('"metric": "math_answer"', f'"metric": {quoted}'))
    base = Base(source=HOSTILE, reference=HOSTILE, hub_id="", revision=HOSTILE, license=HOSTILE, weights=HOSTILE)
    text = card_of(run, tmp_path / "card", base=base)
    assert "\x1b" not in text
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text.partition("\n---\n")[2])
    assert "<script" not in html
    assert re.findall(r"<img src=\"([^\"]*)\"", html) == ["curve.png"]
    assert "<a " not in html
    assert html.count("<h1>") == 1
    assert html.count("<pre>") == 2
    widths = [len(re.findall("<t[dh]", row)) for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)]
    assert set(widths) <= {2, 3, 4}


def test_code_and_blocks_are_not_ended_by_their_text() -> None:
    assert code("a`b``c") == "``` a`b``c ```"
    assert block("x\n```\ny", "bash") == "````bash\nx\n```\ny\n````"
    assert model_card.markdown("a_b <i> [x](y)") == "a\\_b \\<i\\> \\[x\\](y)"
