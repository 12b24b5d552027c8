"""Naming rewards: what is found, what shadows what, and what the errors say."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from rlft.common import user_folder
from rlft.common.by_path import available, did_you_mean
from rlft.common.user_folder import combined
from rlft.reward.loading import build, load, reproduce, reward_sources
from rlft.types import Abstain

ROOT = Path(__file__).parents[1]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(path)
    return str(caught.value)


def sources_of(path: str) -> dict[str, str]:
    return reward_sources(path, build(load(path), path, {})[0])


def test_shipped_rewards_load_by_import_path_and_by_file() -> None:
    by_name = load("rewards.exact_answer:exact_answer")
    assert by_name("<answer>4</answer>", "4") == 1.0
    assert load(f"{ROOT}/rewards/exact_answer.py:exact_answer") is by_name


def test_what_lies_beside_a_shipped_reward_is_hashed_too() -> None:
    assert set(sources_of("rewards.instructions:instructions")) == {"instructions.py", "constraints.py"}
    assert set(sources_of("rewards.exact_answer:exact_answer")) == {"exact_answer.py"}


def test_available_lists_every_shipped_reward_with_its_docstring() -> None:
    found = available("rewards")
    beside = {"constraints", "reward_model_folder"}  # what rewards are made of, and is none
    files = {path.stem for path in (ROOT / "rewards").glob("*.py")} - {"__init__"} - beside
    assert {path.partition(":")[0] for path in found} == {f"rewards.{name}" for name in files}
    assert len(found) == len(files), "one function a file"
    assert all(line and "\n" not in line for line in found.values())
    assert all(callable(load(path)) for path in found)


def test_a_users_folder_called_rewards_neither_shadows_nor_is_shadowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = "def exact_answer(completion):\n    return -7.0\n"
    write(tmp_path / "rewards/__init__.py", "")
    write(tmp_path / "rewards/exact_answer.py", mine)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # even when it comes first on the import path
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    monkeypatch.delitem(sys.modules, "rewards.exact_answer", raising=False)
    assert load("rewards/exact_answer.py:exact_answer")("x") == -7.0
    assert load("rewards.exact_answer:exact_answer")("<answer>4</answer>", "4") == 1.0
    assert load("rewards/exact_answer.py:exact_answer")("x") == -7.0


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "mine.py", f"def reward(completion):\n    return {folder!r}\n")
    assert load(f"{tmp_path}/a/mine.py:reward")("") == "a"
    assert load(f"{tmp_path}/b/mine.py:reward")("") == "b"


def test_a_file_named_like_a_library_module_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path / "json.py", "def reward(completion):\n    return 3\n")
    assert load(f"{tmp_path}/json.py:reward")("") == 3
    import json

    assert json.loads("1") == 1


def test_dataclasses_work_in_a_reward_file(tmp_path: Path) -> None:
    text = """
        from __future__ import annotations
        from dataclasses import dataclass
        @dataclass
        class Rule:
            value: float
        def reward(completion):
            return Rule(2.0).value
    """
    write(tmp_path / "mine.py", "\n".join(line[8:] for line in text.splitlines()))
    assert load(f"{tmp_path}/mine.py:reward")("") == 2.0


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("exact_mach", "'rewards.exact_match:exact_match'"),
        ("last_nubmer", "'rewards.last_number:last_number'"),
        ("rewards.last_number", "'rewards.last_number:last_number'"),
        ("rewards.last_number:last_nubmer", "'last_number'"),
        ("rewards.lastnumber:last_number", "'rewards.last_number:last_number'"),
    ],
)
def test_a_misspelt_shipped_reward_is_suggested(word: str, suggestion: str) -> None:
    assert f"Did you mean {suggestion}?" in refusal(word)


def test_errors_say_what_is_there_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "brevity.py",
        "from json import dumps\nLIMIT = 3\nclass Terse: pass\ndef brevity(completion): ...\n",
    )
    monkeypatch.chdir(tmp_path)
    assert "brevity.py:FUNCTION" in refusal("brevity.py")
    assert "Did you mean 'brevity.py'?" in refusal("brevty.py:brevity")
    missing = refusal("brevity.py:brevty")
    assert "Did you mean 'brevity'?" in missing
    assert missing.endswith("It defines: Terse, brevity.")  # neither what it imports nor its constants
    assert "Did you mean 'Terse'?" in refusal("brevity.py:Tersee")
    assert "is a int, neither a function nor a class" in refusal("brevity.py:LIMIT")
    assert f"{tmp_path}/nowhere holds no .py file" in refusal("nowhere/brevity.py:brevity")
    assert "brevity.py exists: write brevity.py:brevity" in refusal("brevity:brevity")
    assert "no module 'jsom'" in refusal("jsom:loads")
    assert "Did you mean 'json'?" in refusal("jsom:loads")
    assert "Did you mean 'decoder'?" in refusal("json.decodr:loads")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def reward(:", "SyntaxError"),
        ("import no_such_library_xyz", "No module named 'no_such_library_xyz'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise RuntimeError('x' * 10)", "line 1"),
    ],
)
def test_a_file_that_cannot_be_imported_is_a_value_error(tmp_path: Path, text: str, said: str) -> None:
    path = f"{write(tmp_path / 'broken.py', text)}:reward"
    for _ in range(2):  # a failed import leaves nothing behind
        message = refusal(path)
        assert path in message
        assert said in message


USES_ITS_FOLDER = """
import json
import helper
from tools.words import count
from .relative import TEN
def reward(completion):
    import late
    assert json.dumps(1) == "1"  # json.py beside it is not meant
    return helper.base() + count(completion) + TEN + late.HALF
"""


def write_folder(folder: Path, base: int) -> Path:
    write(folder / "helper.py", f"import deeper\ndef base():\n    return deeper.BASE + {base}\n")
    write(folder / "deeper.py", "BASE = 1000\n")
    write(folder / "json.py", "raise RuntimeError\n")
    write(folder / "relative.py", "TEN = 10\n")
    write(folder / "late.py", "HALF = 0.5\n")
    write(folder / "tools/__init__.py", "")
    write(folder / "tools/words.py", "import deeper\nfrom .split import split\ndef count(t): return len(split(t))\n")
    write(folder / "tools/split.py", "def split(text): return text.split()\n")
    write(folder / "unused.py", "")
    return write(folder / "mine.py", USES_ITS_FOLDER)


def test_a_file_imports_what_lies_beside_it_and_another_folders_modules_stay_apart(tmp_path: Path) -> None:
    one, other = (write_folder(tmp_path / name, base) for name, base in (("a", 100), ("b", 200)))
    names = set(sys.modules)
    assert load(f"{one}:reward")("x y") == 1112.5
    assert load(f"{other}:reward")("x y") == 1212.5
    assert not {name for name in set(sys.modules) - names if not name.startswith("rlft_user_")}
    assert "helper" not in sys.modules


def test_a_helper_that_raises_is_named(tmp_path: Path) -> None:
    write(tmp_path / "broken.py", "\n\n1 / 0\n")
    message = refusal(f"{write(tmp_path / 'mine.py', 'import broken')}:reward")
    assert "ZeroDivisionError" in message
    assert f'{tmp_path}/broken.py", line 3' in message


def test_a_functions_sources_are_its_file_and_what_it_imports_of_its_folder(tmp_path: Path) -> None:
    path = write_folder(tmp_path, 100)
    expected = {"mine.py", "helper.py", "deeper.py", "relative.py", "late.py"}
    expected |= {"tools/__init__.py", "tools/words.py", "tools/split.py"}
    before = sources_of(f"{path}:reward")
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in expected} == before
    write(tmp_path / "unused.py", "x = 1")
    assert combined(sources_of(f"{path}:reward")) == combined(before)
    write(tmp_path / "tools/split.py", "def split(text): return [text]\n")
    assert combined(sources_of(f"{path}:reward")) != combined(before)
    assert list(sources_of("rewards.countdown:countdown")) == ["countdown.py"]


def test_a_packages_modules_count_by_their_full_name_and_other_packages_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "rlft_test_own/helper.py", "import pytest\nX = 1\n")
    write(tmp_path / "rlft_test_own/sub/mine.py", "from rlft_test_own import helper\ndef reward(completion): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(sources_of("rlft_test_own.sub.mine:reward")) == ["mine.py", "../helper.py"]


def test_the_hash_is_of_the_defining_file_and_of_the_one_that_the_path_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def reward(completion):\n    return 1\n"
    defining = write(tmp_path / "rlft_test_package/inner.py", text)
    write(tmp_path / "rlft_test_package/__init__.py", "from rlft_test_package.inner import reward\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert combined(sources_of(f"{defining}:reward")) == expected
    re_exported = sources_of("rlft_test_package:reward")
    assert list(re_exported) == ["__init__.py", "inner.py"]
    assert re_exported["inner.py"] == expected
    wrapped = "import functools\n@functools.cache\ndef reward(completion): ...\npart = functools.partial(reward)\n"
    path = write(tmp_path / "wrapped.py", wrapped)
    assert (
        combined(sources_of(f"{path}:reward"))
        == combined(sources_of(f"{path}:part"))
        == hashlib.sha256(wrapped.encode()).hexdigest()
    )


COMPOSED = """
from rlft.reward.compose import clip
from {helper} import make
def inner(completion): return 5.0
clipped = clip(inner, 0, {high})
made = make()
"""


def test_a_reward_that_a_helper_makes_counts_with_the_file_that_makes_it(tmp_path: Path) -> None:
    write(tmp_path / "made.py", "def make():\n    return lambda completion, **kwargs: 0.0\n")
    path, sources = tmp_path / "comp.py", []
    for high in (1, 2):
        write(path, COMPOSED.format(helper="made", high=high))
        sources += [sources_of(f"{path}:clipped"), sources_of(f"{path}:made"), sources_of(f"trl:{path}:made")]
    clipped, made, of_trl, *edited = sources
    assert list(clipped) == ["comp.py", "made.py", "rlft/reward/compose.py"]
    assert list(made) == list(of_trl) == ["comp.py", "made.py"]
    for before, after in zip((clipped, made, of_trl), edited, strict=True):
        assert {name for name in before if before[name] != after[name]} == {"comp.py"}


def test_the_running_rlft_is_not_loaded_again_from_beside(tmp_path: Path) -> None:
    namespace = {"rewards": "exact_answer", "own": "words"}
    for folder, module in namespace.items():
        write(tmp_path / folder / "__init__.py", "")
        write(tmp_path / folder / f"{module}.py", "MINE = True\n")
    write(tmp_path / "rlft/__init__.py", "raise RuntimeError\n")
    text = "from rlft.types import Abstain\nfrom rewards.exact_answer import MINE\nfrom own.words import MINE\n"
    path = write(tmp_path / "mine.py", f"{text}def reward(completion): return Abstain(reason='x')\n")
    assert isinstance(load(f"{path}:reward")(""), Abstain)
    assert [*sources_of(f"{path}:reward")][1:] == [
        "own/__init__.py",
        "own/words.py",
        "rewards/__init__.py",
        "rewards/exact_answer.py",
    ]  # a user's own `rewards` is what lies beside
    in_root = ROOT / "mine.py"  # which need not be there
    beside = {
        name: user_folder._is_beside(in_root, name, ROOT) for name in ("rlft", "rewards", "environments", "tests")
    }
    assert beside == {"rlft": False, "rewards": False, "environments": False, "tests": True}


def test_folders_without_init_are_packages_unless_one_is_installed(tmp_path: Path) -> None:
    write(tmp_path / "helpers/u.py", "import importlib\nfrom helpers.deep import v\nX = v.X\n")
    write(tmp_path / "helpers/deep/v.py", "X = 4\n")
    write(tmp_path / "pytest/data.json", "")  # a folder of data
    write(tmp_path / "hh.py", "Y = 1\n")
    text = "import importlib\nfrom helpers.u import X\nimport pytest\ndef reward(completion):\n"
    path = write(tmp_path / "mine.py", f"{text}    return X + importlib.import_module('.hh', __package__).Y, pytest\n")
    assert load(f"{path}:reward")("") == (5, pytest)
    assert list(sources_of(f"{path}:reward")) == ["mine.py", "helpers/deep/v.py", "helpers/u.py"]


def test_files_whose_names_have_dots_do_not_meet(tmp_path: Path) -> None:
    for number, name in enumerate(("v1.2", "v1_2", "v1.2.x")):
        write(tmp_path / f"{name}.py", f"def reward(completion):\n    return {number}\n")
    assert [load(f"{tmp_path}/{name}.py:reward")("") for name in ("v1.2", "v1_2", "v1.2.x")] == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [
        'it\'s "quoted"\n\u2212\x00\ud800',
        [1, -2.5, float("inf"), None, True, (), {"k": {1}}],
    ],
)
def test_reproduce_writes_plain_data(tmp_path: Path, value: object) -> None:
    path = write(tmp_path / "mine.py", "def reward(x, **kwargs):\n    return ascii((x, kwargs))\n")
    for arguments in ({"x": value}, {"x": value, "a column": 1, "class": 2}):
        program = reproduce(f"{path}:reward", arguments, is_async=False)
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        rest = {name: value for name, value in arguments.items() if name != "x"}
        assert done.stdout.strip() == ascii((value, rest))


@pytest.mark.parametrize(
    ("value", "why"),
    [(object(), "are not all plain data"), (Path("x"), "PosixPath(...)"), ("x" * 200_000, "are too long")],
)
def test_reproduce_says_when_it_cannot(value: object, why: str) -> None:
    program = reproduce("rewards.exact_answer:exact_answer", {"completion": value}, is_async=False)
    with pytest.raises(SystemExit, match="take the sample from the rollouts") as caught:
        exec(program, {})
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("anwser", ["answer", "prompt"], "answer"),
        ("rnu.yaml", ["run.yaml"], "run.yaml"),
        ("odd/shape", ["odd", "length"], "odd"),
        ("ans", ["answer"], "answer"),
        ("solution", ["completion", "answer"], ""),
        ("question", ["completion"], ""),
        ("lr", ["seed"], ""),
        ("x", [], ""),
        # A package, folder or ending that all share makes none of them near.
        ("rewards.brevity:brevity", ["rewards.rubric:rubric", "rewards.ranking:ranking"], ""),
        ("rewards.maths:maths", ["rewards.math_answer:math_answer", "rewards.rubric:rubric"], "rewards.math_answer:"),
        ("configs/debug/foo.yaml", ["configs/debug/grpo.yaml", "configs/debug/dapo.yaml"], ""),
        ("configs/debug/gpro.yaml", ["configs/debug/grpo.yaml", "configs/debug/dapo.yaml"], "configs/debug/grpo"),
    ],
)
def test_a_suggestion_is_near_or_none(word: str, known: list[str], near: str) -> None:
    assert did_you_mean(word, known).startswith(f" Did you mean '{near}" if near else "")
    assert bool(did_you_mean(word, known)) == bool(near)


def test_the_name_of_a_file_here_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brief.py").write_text("def brief(completion):\n    return 1.0\n")
    with pytest.raises(ValueError, match=r"'brief' must be .*Did you mean 'brief\.py:brief'\?"):
        load("brief")
    with pytest.raises(
        ValueError, match=r"'exact_answr' must be .*Did you mean 'rewards\.exact_answer:exact_answer'\?"
    ):
        load("exact_answr")
