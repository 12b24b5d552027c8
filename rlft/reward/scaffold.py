"""A new reward and its cases, as files to start from: `rlft reward init`."""

from __future__ import annotations

import json
import keyword
from pathlib import Path
from typing import Any

from rlft.reward.cases import SUFFIX

_REWARD = '''"""The right answer in `<answer>` tags, and no more words than it needs.

Try it:      rlft reward try {name}.py:{name} --completion "<answer>42</answer>" --answer 42
Check it:    rlft reward check {name}.py:{name}
Train on it: rewards: [{{path: {name}.py:{name}}}]

What a reward takes, it takes by name: `completion` (the reply's text), `prompt` (the last user message), `answer` and
every other column of the task, `messages`, `trajectory`. Further parameters are set by `args` in the config.
"""

from __future__ import annotations

import re
from typing import Any


def {name}(completion: str, answer: Any, max_words: int = 50) -> dict[str, float] | None:
    """1 for the right answer in the only answer tags, of which half is lost bit by bit beyond `max_words`.

    The reward is the sum of the parts, and each part gets a curve of its own. A task without an answer has no reward.
    """
    if answer is None:
        return None  # abstains: a sample without a reward is left out of its group's baseline, and is no zero
    tagged = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    # Only one pair of tags, and all that stands in it: a policy that lists several answers earns nothing.
    is_right = len(tagged) == 1 and tagged[0].strip() == str(answer).strip()
    # Words cost only where the answer is right: a policy that says nothing gains nothing over one that is wrong.
    excess = max(0, len(completion.split()) - max_words) / max_words
    return {{"correct": float(is_right), "length": -0.5 * min(1.0, excess) if is_right and excess else 0.0}}
'''

_QUESTION = "What is 17 + 25?"
_CASES: tuple[tuple[str, str, str | None, Any], ...] = (
    ("right", "<answer>42</answer>", "42", 1.0),
    ("reasoned", "17 + 25 = 42, so <answer> 42 </answer>", "42", 1.0),
    ("wrong", "<answer>43</answer>", "42", 0.0),
    ("without tags", "42", "42", 0.0),
    ("many answers", "<answer>41</answer> <answer>42</answer>", "42", 0.0),
    ("wordy", f"{' '.join(['well'] * 79)} <answer>42</answer>", "42", {"at_least": 0.5, "at_most": 0.9}),
    ("short", "It is <answer>42</answer>", "42", {"above": "wordy"}),
    ("a part", "<answer>43</answer>", "42", {"part": "correct", "equals": 0.0}),
    ("no answer known", "<answer>42</answer>", None, "abstain"),
)
"""Name, completion, answer, and what is expected."""


def write_reward(name: str, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.py` with a documented reward, and its cases beside it.

    Returns:
        The two files.

    Raises:
        ValueError: `name` is no name of a function, or one of the files is there already.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} cannot name a function: use letters, digits and _, as in brevity")
    files = folder / f"{name}.py", folder / f"{name}{SUFFIX}"
    for file in files:
        if file.exists():
            raise ValueError(f"{file} exists already and is left as it is; choose another name, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in zip(files, (_REWARD.format(name=name), "".join(map(_line, _CASES))), strict=True):
        with file.open("x", encoding="utf-8") as opened:  # never over one that has just appeared
            opened.write(text)
    return files


def _line(case: tuple[str, str, str | None, Any]) -> str:
    name, completion, answer, expect = case
    row = {"name": name, "prompt": _QUESTION, "completion": completion, "answer": answer, "expect": expect}
    return json.dumps({key: value for key, value in row.items() if value is not None}) + "\n"
