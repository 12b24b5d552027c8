"""The model card of an exported policy: README.md and its curve, from a run directory.

Everything that a user, a model or a data set wrote is escaped for Markdown, and with that for the HTML that it becomes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.curves import reading
from rlft.curves.evaluation_sets import HEADINGS
from rlft.curves.pages import FOLDER
from rlft.curves.passes import passes
from rlft.curves.png import draw
from rlft.curves.text import interval_text, visible
from rlft.curves.verdict import verdict_of
from rlft.run import logs
from rlft.run.records import Evaluation

CARD, CURVE = "README.md", "curve.png"
VLLM_RANK = 16
"""Largest rank of an adapter that vLLM takes by default."""
_LONGEST_VALUE = 300
_MARKUP = re.compile(r"([\\`*_\[\]#|~<>&$@]|:(?=//)|(?<=www)\.)")
"""What Markdown, HTML, formulas, mentions and addresses that become links by themselves begin with."""
_SETTINGS = (
    "steps",
    "epochs",
    "batch_size",
    "data",
    "tasks_per_step",
    "samples_per_task",
    "updates_per_step",
    "max_staleness",
    "seed",
    "adapter",
    "learner.lr",
    "learner.schedule",
    "learner.warmup_steps",
    "learner.weight_decay",
    "learner.max_grad_norm",
    "sampling",
    "sft",
    "reference",
    "model.dtype",
    "model.special_tokens_in_text",
    "evaluation",
)
"""Settings that decide what is learnt and how it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model of an export; what is not known is empty."""

    source: str
    """What the run's config calls it."""
    reference: str
    """Where others find it: a hub id, or the folder here."""
    hub_id: str
    """Its id on the hub, also where these weights came another way."""
    revision: str
    """Commit or branch there."""
    license: str
    """Identifier of its licence."""
    weights: str
    """In which way these weights are not those of the hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was exported, as far as the run's records do not say it."""

    name: str
    """Run and adapter."""
    title: str
    """Name of the folder."""
    adapter: str
    """Name of the adapter in the run."""
    adapter_hash: str
    """sha256 over its tensors."""
    is_adapter: bool
    """A PEFT adapter; else a whole model."""
    kind: str
    """`adapter.kind` of the config."""
    dtype: str
    """Type of the stored weights."""
    vllm_rank: int
    """`--max-lora-rank` that vLLM takes this adapter with; 0 where it takes no such adapter."""
    base: Base
    proof: str
    """What a fresh process found."""
    root: str
    """Root hash of the run's manifest; empty without one."""
    is_chat: bool = True
    """Whether the tokenizer has a chat template; else the model continues plain text."""


def write_card(folder: Path, run: Path, exported: Exported) -> None:
    """Write README.md and curve.png into an existing folder.

    Raises:
        ValueError: a file of the run is damaged.
    """
    config, evals = reading.read_config(run), reading.read_evals(run)
    rows = reading.read_metrics(run, [])
    has_curve = bool(rows or evals)
    if has_curve:
        (folder / CURVE).write_bytes(draw(str(config.get("name") or run.name), rows, evals))
    (folder / CARD).write_text(_card(run, config, evals, exported, has_curve), encoding="utf-8", errors="replace")


def markdown(value: object) -> str:
    """A text as one line that reads as it is, whatever it holds: nothing in it is markup, a link or a tag."""
    text = " ".join(visible(str(value)).split())
    return _MARKUP.sub(r"\\\1", text)


def code(value: object) -> str:
    """A short text as a code span, which no backtick in it ends; cells of tables need `|` escaped."""
    text = " ".join(visible(str(value)).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    edge = " " if "`" in text else ""
    return f"{fence}{edge}{text}{edge}{fence}".replace("|", "\\|") if text else ""


def block(text: str, language: str) -> str:
    """A fenced block of code, which nothing in the text ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{visible(text).strip()}\n{fence}"


def _card(
    run: Path, config: Mapping[str, Any], evals: Sequence[Evaluation], exported: Exported, has_curve: bool
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else markdown(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(code=lambda value: Markup(code(value)), interval=interval_text)
    provenance, verdict = logs.read_provenance(run, []), verdict_of(run)
    shown = [e for e in evals if e.is_before or e.adapter_hash == exported.adapter_hash]
    judged = verdict.effect.after if verdict.effect is not None else None
    text: str = environment.get_template("model_card.md.j2").render(
        front=Markup(_front_matter(exported)),
        exported=exported,
        base=exported.base,
        model_sha256=provenance.model,
        run=str(config.get("name") or run.name),
        method="supervised fine-tuning" if exported.adapter == "sft" else _method(config),
        verdict=verdict,
        other="" if judged is None or judged.adapter_hash == exported.adapter_hash else judged.label,
        is_measured=any(e.adapter_hash == exported.adapter_hash for e in evals),
        reasons=[each.says for each in verdict.reasons if each.says != verdict.sentence],
        shown=shown,
        heldout=_heldout(shown),
        solved=[f"{e.label}: {each.sentence}" for e in shown[-1:] for each in passes(e.by_task, e.same)],
        set_headings=HEADINGS,
        set_rows=[row for each in verdict.sets for row in each.rows],
        set_sentences=[each.sentence for each in verdict.sets],
        curve=CURVE if has_curve else "",
        loading=Markup(block(_loading(exported), "python")),
        serving=Markup(block(_serving(exported), "bash")) if exported.vllm_rank or not exported.is_adapter else "",
        data=_data(config, provenance.sha256, provenance.tasks),
        rewards=_rewards(config, provenance.sha256),
        algorithm=_choices(config.get("algorithm") or config.get("preference")),
        settings_special=str(_at(config, "model.special_tokens_in_text") or "encode"),
        settings=[(key, _value(found)) for key in _SETTINGS if (found := _at(config, key)) not in (None, "", {})],
        packages=", ".join(f"{name} {found}" for name, found in provenance.packages.items()),
        computed=", ".join(filter(None, (provenance.device, provenance.processor))),
        lineage=[f"{each.get('run')}, after step {each.get('step')}" for each in provenance.lineage],
    )
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text)).strip() + "\n"


def _front_matter(exported: Exported) -> str:
    """The card's metadata, as YAML that is JSON in each value."""
    base = exported.base
    fields: dict[str, Any] = {
        "library_name": "peft" if exported.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlft", "lora" if exported.is_adapter else "merged"],
    }
    if base.hub_id:
        fields["base_model"] = base.hub_id
        fields["base_model_relation"] = "adapter" if exported.is_adapter else "finetune"
    if base.license:
        fields["license"] = base.license.lower()
    return "\n".join(["---", *(f"{key}: {json.dumps(_plain(value))}" for key, value in fields.items()), "---"])


def _plain(value: Any) -> Any:
    """Plain data whose texts have no control characters."""
    return [visible(each) for each in value] if isinstance(value, list) else visible(str(value))


def _method(config: Mapping[str, Any]) -> str:
    """How the policy was trained, in a few words."""
    if loss := _at(config, "preference.loss"):
        return f"learning from preferences ({loss} loss)"
    preset = _at(config, "algorithm.preset") or config.get("algorithm") or config.get("kind") or "rl"
    warm = " after an SFT warm start" if config.get("sft") else ""
    named = {"sft": "supervised fine-tuning"}.get(str(preset), str(preset))
    return f"reinforcement learning ({preset}){warm}" if config.get("kind", "rl") == "rl" else named


def _heldout(shown: Sequence[Evaluation]) -> list[tuple[str, list[str]]]:
    """(a reward or part, its mean under each policy); the headline first."""
    names = dict.fromkeys([*(e.metric for e in shown), *(name for e in shown for name in e.rewards)])
    return [
        (
            name,
            [
                interval_text(e.accuracy if name == e.metric else e.rewards[name])
                if name == e.metric or name in e.rewards
                else ""
                for e in shown
            ],
        )
        for name in names
    ]


def _loading(exported: Exported) -> str:
    """Python that loads the folder."""
    if not exported.is_adapter:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"folder = {exported.title!r}  # where this README lies\n"
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
            'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")\n'
            f"{_asking(exported)}{_GENERATING}"
        )
    base, is_quantized = exported.base, exported.kind == "qlora"
    revision = f", revision={base.revision!r}" if base.revision and _is_of_hub(base) else ""
    bits = f", quantization_config={_FOUR_BITS}" if is_quantized else ""
    names = f"AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if is_quantized else ''}"
    return (
        "from peft import PeftModel\n"
        f"from transformers import {names}\n\n"
        f"folder = {exported.title!r}  # where this README lies\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "base = AutoModelForCausalLM.from_pretrained(\n"
        f'    {base.reference!r}{revision}{bits}, dtype="auto"\n'
        ")\n"
        f"model = PeftModel.from_pretrained(base, folder)\n{_asking(exported)}{_GENERATING}"
    )


def _asking(exported: Exported) -> str:
    """Python that makes a prompt, of messages where the model takes them."""
    if not exported.is_chat:
        return '\nprompt = tokenizer("...", return_tensors="pt")  # plain text, which the model goes on with\n'
    return (
        '\nmessages = [{"role": "user", "content": "..."}]\n'
        "prompt = tokenizer.apply_chat_template("
        'messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")\n'
    )


_FOUR_BITS = 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)'
_GENERATING = """\
reply = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(reply, skip_special_tokens=True))
"""


def _serving(exported: Exported) -> str:
    """The command that serves the folder by vLLM."""
    if not exported.is_adapter:
        return shlex.join(["vllm", "serve", exported.title, "--served-model-name", exported.name])
    rank = ["--max-lora-rank", str(exported.vllm_rank)] if exported.vllm_rank > VLLM_RANK else []
    modules = ["--lora-modules", f"{exported.name}={exported.title}"]
    return shlex.join(["vllm", "serve", exported.base.reference, "--enable-lora", *rank, *modules])


def _is_of_hub(base: Base) -> bool:
    return base.reference == base.hub_id


def _data(config: Mapping[str, Any], hashes: Mapping[str, str], tasks: str) -> list[tuple[str, str, str]]:
    """(what, path with its arguments, sha256) of where the tasks or preferences come from."""
    rows = []
    if path := _at(config, "environment.path"):
        rows.append(("environment", _called(path, _at(config, "environment.args")), hashes.get(path, "")))
    if source := _at(config, "data.source"):
        rows.append(("data", str(source), hashes.get(source, "")))
    for each in config.get("evaluations") or ():
        if isinstance(each, dict) and (path := _at(each, "environment.path")):
            rows.append((f"evaluation {each.get('name')}", _called(path, _at(each, "environment.args")), ""))
    if tasks:
        rows.append(("all tasks, training and held-out" if _at(config, "environment.path") else "all rows", "", tasks))
    return rows


def _rewards(config: Mapping[str, Any], hashes: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """(name, weight or role, path with its arguments, sha256) of each reward."""
    given = [each for each in config.get("rewards") or () if isinstance(each, dict)]
    specs = reading.reward_specs(config)
    return [
        (
            spec.label,
            "shadow, not trained on" if spec.role == "shadow" else f"{spec.weight:g}",
            _called(spec.path, each.get("args")),
            hashes.get(spec.path, ""),
        )
        for spec, each in zip(specs, given, strict=True)
    ]


def _choices(algorithm: Any) -> list[tuple[str, str]]:
    if not isinstance(algorithm, dict):
        return [("preset", str(algorithm))] if algorithm else []
    return [(str(key), _value(value)) for key, value in algorithm.items() if value not in (None, "")]


def _called(path: str, args: Any) -> str:
    return f"{path} {_value(args)}" if args else str(path)


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} \N{HORIZONTAL ELLIPSIS}"


def _at(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node
