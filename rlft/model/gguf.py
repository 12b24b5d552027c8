"""From a GGUF file to a folder that transformers, and every library built on it, reads.

What a plain `save_pretrained` of the loaded file would get wrong is mended here: the weights' claim to be quantised,
the
tie of the embeddings, junk in the configs, SmolLM's pre-tokenizer, and names that transformers 4 does not know.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def convert(gguf: Path, folder: Path, config: Mapping[str, object]) -> str:
    """Write a GGUF file to `folder` as a bfloat16 model.

    Args:
        gguf: the file, of a family that transformers reads.
        folder: an existing folder.
        config: values that the model's config must have whatever the file says.

    Returns:
        What its tokenizer is, for the record.

    Raises:
        ValueError: transformers cannot read the file.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        # Alone in a folder: transformers would also read a config or tokenizer that lies beside it.
        link = Path(work, "model.gguf")
        link.symlink_to(gguf)
        try:
            _convert_weights(link, folder)
            tokenizer = _convert_tokenizer(link, folder)
        except Exception as error:  # whatever a converter meets in a foreign file
            raise ValueError(
                f"transformers cannot convert {gguf.name} ({type(error).__name__}: {brief(error)}): use the "
                "model's original folder or hub id, or another release of transformers"
            ) from error
    edit_json(folder / "config.json", config, drop=("_model_name_or_path", "unk_token_id"))
    junk = ("_from_model_config", "output_attentions", "output_hidden_states")
    edit_json(folder / "generation_config.json", {}, drop=junk)
    return tokenizer


def _convert_weights(gguf: Path, folder: Path) -> None:
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):  # older releases always dequantise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, trust_remote_code=False, **options)
    # What was loaded may remember that it was quantised and refuse to be saved. A model built from the config
    # alone does not: it takes over the tensors, without a copy. That unties the embeddings: tie them again.
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)


def _convert_tokenizer(gguf: Path, folder: Path) -> str:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    fields = GGUFReader(gguf).fields
    facts = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    pre = facts.get("tokenizer.ggml.pre", "default")
    if pre == "smollm":
        tokenizer = _smollm_tokenizer(facts)
    else:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    length = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    tokenizer.model_max_length = length or tokenizer.model_max_length
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    # Left: the prompts of a batch then end together. save_pretrained leaves it out.
    values: dict[str, object] = {"padding_side": "left"}
    if json.loads(path.read_text()).get("tokenizer_class") == "TokenizersBackend":
        # transformers 4 has no TokenizersBackend; its PreTrainedTokenizerFast would add token_type_ids.
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
        values["model_input_names"] = ["input_ids", "attention_mask"]
    edit_json(path, values, drop=("backend", "is_local", "local_files_only"))
    return f"pre-tokenizer {pre!r}"


def _smollm_tokenizer(facts: Mapping[str, Any]) -> Any:
    """Build the tokenizer of the SmolLM family from the lists in a GGUF file.

    transformers does not know its pre-tokenizer. Depending on the release it takes plain ByteLevel, which
    differs at white space before a digit, or the tokenizer of another family.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
    control = 3  # llama.cpp's type of tokens that stand for no text
    backend.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == control])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: tokens[facts[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()}
    template = facts.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


def brief(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def edit_json(path: Path, values: Mapping[str, object], drop: tuple[str, ...] = ()) -> None:
    """Set values in a JSON file and remove keys from it."""
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    path.write_text(json.dumps({**kept, **values}, indent=2, ensure_ascii=False) + "\n")
