"""The trials of a sweep: every combination of the values that `key=a,b` and `key=0..4` name, as checked configs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rlft.config import BaseRunConfig

SEED = "seed"
MOST = 1000
"""Most trials of a sweep, and most values of a range."""
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    config: BaseRunConfig
    """Its whole config; `config.run_dir` is its run directory."""
    command: str
    """The command that trains it: train, sft or dpo."""
    values: Mapping[str, str]
    """What the sweep gives it, by key, as written: those settings that have several values."""
    overrides: Sequence[str]
    """What the command line gets beside the config file."""

    @property
    def path(self) -> Path:
        """Its run directory."""
        return self.config.run_dir

    @property
    def label(self) -> str:
        """Its configuration in words, without the seed."""
        return label_of({key: value for key, value in self.values.items() if key != SEED})


def label_of(values: Mapping[str, str]) -> str:
    """`lr=1e-4 clip_high=0.2`; `config` where nothing but the seed varies."""
    names = short_names(list(values))
    return " ".join(f"{names[key]}={value}" for key, value in values.items()) or "config"


def values_of(setting: str) -> tuple[str, list[str]]:
    """Key and values of `key=a,b`, of `key=0..4` (both ends count), or of `key=a`, which is the same for all trials.

    Commas within brackets, braces and quotes separate nothing.

    Raises:
        ValueError: it has no key, an empty or repeated value, or a range that runs backwards or is too long.
    """
    key, equals, text = setting.partition("=")
    if not key or not equals:
        raise ValueError(f"{setting!r}: expected key.sub=value, key.sub=value,value or key.sub=first..last")
    values = []
    for part in _split(text):
        if found := _RANGE.fullmatch(part):
            first, last = int(found[1]), int(found[2])
            if last < first:
                raise ValueError(f"{setting!r}: the range {part} runs backwards; write {last}..{first}")
            if last - first >= MOST:
                raise ValueError(f"{setting!r}: the range {part} has more than {MOST} values")
            values += [str(value) for value in range(first, last + 1)]
        else:
            values.append(part)
    if len(values) > 1 and "" in values:
        raise ValueError(f"{setting!r}: a value is empty; take out the comma that is too many")
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise ValueError(f"{setting!r}: the value {twice} stands twice")
    return key, values


def trials_of(
    file: Path, settings: Sequence[str], *, name: str, load: Callable[[Path, Sequence[str]], BaseRunConfig]
) -> list[Trial]:
    """Every trial of a sweep, in the order of the command line, the last setting varying fastest.

    Args:
        file: the config file.
        settings: `key=values`, see `values_of`; `name` is no setting of them.
        name: the sweep's name; the config's with `-sweep` where empty. It is the folder of the runs.
        load: reads the config with overrides, and refuses what is wrong in it.

    Raises:
        ValueError: a setting is wrong in itself or for its key, two trials are the same, or there are too many.
    """
    given: dict[str, list[str]] = {}
    for setting in settings:
        key, values = values_of(setting)
        if key == "name":
            raise ValueError(
                f"{setting!r}: trials are named by their settings; the sweep has a name of its own: --name"
            )
        if key in given:
            raise ValueError(f"{setting!r}: {key} stands twice; write its values into one: {key}=A,B")
        given[key] = values
    swept = [key for key, values in given.items() if len(values) > 1]
    if not swept:
        raise ValueError(
            "nothing varies: give a setting several values, such as learner.lr=1e-4,3e-4 or seed=0..4; a single run is "
            "what `rlft train` is for"
        )
    number = 1
    for key in swept:
        number *= len(given[key])
    if number > MOST:
        raise ValueError(f"{number} trials are more than the {MOST} that a sweep may have")
    first = load(file, [f"{key}={values[0]}" for key, values in given.items()])
    folder = Path(first.output_dir) / (name or f"{first.name}-sweep")
    names, trials = short_names(swept), list[Trial]()
    for chosen in product(*given.values()):
        each = dict(zip(given, chosen, strict=True))
        own = "-".join(f"{names[key]}_{_plain(each[key])}" for key in swept)
        place = [f"name={json.dumps(own)}", f"output_dir={json.dumps(str(folder))}"]
        overrides = [*(f"{key}={value}" for key, value in each.items() if key != "output_dir"), *place]
        config = load(file, overrides)
        command = str(getattr(config, "kind", "train"))
        kept = {key: each[key] for key in swept}
        trials.append(Trial(config=config, command=command, values=kept, overrides=overrides))
    _refuse_same(trials)
    return trials


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where another one ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def _refuse_same(trials: Sequence[Trial]) -> None:
    seen: dict[str, Trial] = {}
    for trial in trials:
        text = json.dumps(trial.config.model_dump(mode="json") | {"name": ""}, sort_keys=True)
        if other := seen.get(text):
            raise ValueError(f"{dict(other.values)} and {dict(trial.values)} are the same settings; leave one out")
        seen[text] = trial
    paths = [trial.path for trial in trials]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ValueError(
            f"two trials would both be {twice}; give the values other names, such as files instead of lists"
        )


def _plain(value: str) -> str:
    """The value as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", value).replace("+", "").strip("_") or "none"


def _split(text: str) -> list[str]:
    """Parts between commas that stand in no brackets, braces or quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts]
