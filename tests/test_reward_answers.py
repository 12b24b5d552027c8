"""What scoring processes send to the driver: plain data that arrives exactly, and nothing else."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from rlft.reward.answers import ANSWER_LIMIT, Invalid, Result, read_results, read_start, write_results, write_start
from rlft.reward.outcomes import LARGEST, MESSAGE_LIMIT, failed
from rlft.reward.scoring import Scorer
from rlft.reward.worker import open_rewards
from rlft.types import Abstain, Failed, RewardSpec, Score
from tests.test_scoring import kinds, make_group, outcomes

# Everything arrives as it was.

TEXTS = ["", 'é \u2028 \x00 \x1f "quoted"\n', "half \ud83d", "two halves \ud83d\ude00", "whole \U0001f600", "\udc80"]


def sent(*given: Any) -> list[Any]:
    answer = write_results(7, {2: Result(outcomes=list(given), seconds=0.25)}, is_last=True)
    return read_results(answer, message=7, sizes=[1, 1, len(given)]).results[2].outcomes


def test_notes_and_turns_arrive() -> None:
    given = {
        0: Result(
            outcomes=[Score(value=1.5, parts={}, turns=(0.5, 1.0))],
            seconds=0.5,
            metrics={"m": 0.1},
            extras={"e": [{"any": ["thing"]}]},
        ),
        1: Result(outcomes=[failed("server", "it is down", fault="server", where="judge.py:3")]),
    }
    answer = read_results(write_results(1, given, is_last=False), message=1, sizes=[1, 1])
    assert answer.results == given
    assert not answer.is_last


def test_floats_arrive_bit_for_bit() -> None:
    draw = random.Random(0)
    floats = [struct.unpack("!d", draw.randbytes(8))[0] for _ in range(5000)]
    floats = [value for value in floats if abs(value) <= LARGEST]
    floats += [0.0, -0.0, 5e-324, -5e-324, sys.float_info.min, 0.1, 1 / 3, LARGEST, -LARGEST]
    assert len(floats) > 2000
    arrived = sent(*(Score(value=value, parts={"part": -value}) for value in floats))
    bits = [struct.pack("!dd", value, -value) for value in floats]
    assert [struct.pack("!dd", score.value, score.parts["part"]) for score in arrived] == bits


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_arrive_with_halves_of_surrogate_pairs(text: str) -> None:
    given = [Score(value=1.0, parts={text: 2.0}), Abstain(reason=text), failed("error", text)]
    assert sent(*given) == given
    assert read_start(write_start(Invalid(message=text)), 1) == Invalid(message=text)


def test_the_longest_message_arrives_as_it_was_cut() -> None:
    given = failed("error", "x" * 10 * MESSAGE_LIMIT)
    assert sent(given) == [given]


def test_how_rewards_are_called_arrives() -> None:
    paths = ["rewards.exact_answer:exact_answer", "rewards.judge:helpfulness", "rewards.reward_model:reward_model"]
    loaded = [reward.loaded for reward in open_rewards([RewardSpec(path=path, args={}) for path in paths])]
    assert read_start(write_start(loaded), len(paths)) == (loaded, os.getpid())


def test_an_answer_that_is_too_long_is_a_failure_that_says_so() -> None:
    given = Score(value=1.0, parts={"x" * (ANSWER_LIMIT // 2): 1.0})
    assert sent(given) == [given]
    for failure in sent(given, given, given):
        assert failure.kind == "length"
        assert "bytes, more than is sent: return fewer parts" in failure.message


# Everything else is refused.

FINE = {"value": 1.0, "parts": {}}


def call(**fields: Any) -> dict[str, Any]:
    """An answer to message 7 with one call."""
    return {"message": 7, "is_last": True, "calls": [fields]}


GOOD = json.dumps(call(position=0, seconds=0.1, outcomes=[FINE])).encode()
STARTS = [{}, {"loaded": [], "pid": 1}, {"loaded": [{}], "pid": 1}, {"loaded": [1]}, {"invalid": 1}, [], "x"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "no JSON"),
        (b"\x80\x04K\x01.", "no JSON"),
        (b"\xff\xfe{", "no JSON"),
        (b"[" * 10**6, "no JSON"),
        (b'{"message": 7, "is_last": true, "calls": [' + b"9" * 10_000 + b"]}", "no JSON"),
        ([], "has no results"),
        ({"message": 7, "calls": []}, "has no results"),
        ({"message": "7", "is_last": True, "calls": []}, "has no results"),
        ({"message": 6, "is_last": True, "calls": []}, "answers message 6, but message 7 was sent"),
        (call(), "one of its results is none"),
        (call(position=0, seconds=0.1), "one of its results is none"),
        (call(position=1, seconds=0.1, outcomes=[FINE]), "answers call 1 of 1"),
        (call(position=-1, seconds=0.1, outcomes=[FINE]), "answers call -1 of 1"),
        (call(position=0, seconds=0.1, outcomes=[]), "has 0 outcomes for 1 samples"),
        (call(position=0, seconds=0.1, outcomes=[FINE, FINE]), "has 2 outcomes for 1 samples"),
        (call(position=0, seconds=-1.0, outcomes=[FINE]), "took -1.0 seconds"),
        (call(position=0, seconds=0.1, outcomes=[FINE], metrics={"a": "b"}), "a metric is no number"),
        (call(position=0, seconds=0.1, outcomes=[FINE], extras={"a": [1, 2]}), "an extra has no list of 1 values"),
        (
            b'{"message": 7, "is_last": true, "calls": [{"position": 0, "seconds": 1e999, "outcomes": [{}]}]}',
            "took inf",
        ),
        (json.dumps(call(position=0, seconds=0.1, outcomes=[FINE])).replace("1.0", "NaN").encode(), "NaN is no number"),
        (
            json.dumps(call(position=0, seconds=0.1, outcomes=[FINE])).replace("1.0", "1e999").encode(),
            "neither a score",
        ),
    ],
)
def test_what_is_no_answer_is_refused(answer: Any, said: str) -> None:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(ValueError, match=said):
        read_results(data, message=7, sizes=[1])


def test_a_call_is_answered_once() -> None:
    answer = call(position=0, seconds=0.1, outcomes=[FINE])
    answer["calls"] *= 2
    with pytest.raises(ValueError, match="answers a call twice"):
        read_results(json.dumps(answer).encode(), message=7, sizes=[1])


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        1.0,
        {},
        {"value": 1, "parts": {}},
        {"value": True, "parts": {}},
        {"value": "1.0", "parts": {}},
        {"value": 1.1e9, "parts": {}},
        {"value": 1.0},
        {"value": 1.0, "parts": []},
        {"value": 1.0, "parts": {"a": None}},
        {"value": 1.0, "parts": {"a": -1e308}},
        {"reason": 1},
        {"reason": "x" * 10**5},
        {"value": 1.0, "parts": {}, "turns": ["x"]},
        {"value": 1.0, "parts": {}, "turns": 1.0},
        {"kind": "error", "message": "x"},
        *(
            {"kind": "error", "message": "x", "fault": "reward", "where": "", **wrong}
            for wrong in (
                {"kind": "fine"},
                {"message": None},
                {"message": "x" * 10**5},
                {"kind": ["error"]},
                {"fault": "mine"},
                {"where": "x" * 10**5},
            )
        ),
    ],
)
def test_what_is_no_outcome_is_refused(outcome: Any) -> None:
    answer = json.dumps(call(position=0, seconds=0.1, outcomes=[FINE, outcome])).encode()
    with pytest.raises(ValueError, match="neither a score, an abstention nor a failure"):
        read_results(answer, message=7, sizes=[2])


@pytest.mark.parametrize(
    "start", [{}, {"loaded": [], "pid": 1}, {"loaded": [{}], "pid": 1}, {"loaded": [1]}, {"invalid": 1}, [], "x"]
)
def test_a_start_that_says_nothing_is_refused(start: Any) -> None:
    with pytest.raises(ValueError, match="rewards"):
        read_start(json.dumps(start).encode(), 1)


@pytest.mark.parametrize("pid", [0, -1])
def test_a_process_id_is_above_zero(pid: int) -> None:
    start = json.loads(write_start([]))
    assert read_start(json.dumps(start).encode(), 0) == ([], os.getpid())
    with pytest.raises(ValueError, match="rewards"):
        read_start(json.dumps({**start, "pid": pid}).encode(), 0)


# The same for real: a reward that writes to the driver itself.

HOSTILE = """
import json, os, pickle, stat, struct, time

class Bomb:
    def __reduce__(self):
        return os.mkdir, (MARK,)

def frame(data):
    return struct.pack("!i", len(data)) + data

def answer(*outcomes, message=1):
    calls = [{"position": 0, "seconds": 0.1, "outcomes": outcomes}]
    return frame(json.dumps({"message": message, "is_last": True, "calls": calls}).encode())

ATTACKS = {
    "pickle": frame(pickle.dumps(([Bomb()], 0.1))),
    "pickle after a part": frame(pickle.dumps({"outcomes": Bomb()}))[:-1] + b"..",
    "no json": frame(b"{"),
    "deep": frame(b"[" * 10**6),
    "too many": answer({"value": 1.0, "parts": {}}, {"value": 1.0, "parts": {}}),
    "too large": answer({"value": 1e300, "parts": {}}),
    "another call": answer({"value": 1.0, "parts": {}}, message=10**30),
    "long": struct.pack("!i", 2**31 - 1) + b"x" * 1000,
    "longer": struct.pack("!iQ", -1, 2**63) + b"x" * 1000,
    "negative": struct.pack("!i", -2),
}

def attack(completion):
    sockets = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and is_socket(fd)]
    if completion in ATTACKS:
        os.write(sockets[0], ATTACKS[completion])
        time.sleep(60)
    if completion == "drip":
        os.write(sockets[0], struct.pack("!i", 2**20))
        while True:
            os.write(sockets[0], b"x")
            time.sleep(0.02)
    if completion == "raise":
        raise KeyError(completion + " half \\ud83d, two \\ud83d\\ude00, and \\x00")
    return {"fine \\ud83d": 0.1, "rest": 1 / 3}

def is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False

"""
NAMES = ("pickle", "pickle after a part", "no json", "deep", "too many", "too large", "another call")
FRAMES = ("long", "longer", "negative")


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[RewardSpec, Path]:
    """A reward that does to the driver what the reply says, and a folder that exists if one of its pickles ran."""
    mark = tmp_path / "executed"
    (tmp_path / "hostile.py").write_text(f"MARK = {str(mark)!r}\n" + HOSTILE)
    return RewardSpec(path=f"{tmp_path}/hostile.py:attack"), mark


@pytest.mark.skipif(sys.platform != "linux", reason="the reward finds the socket in /proc")
@pytest.mark.parametrize("name", [*NAMES, *FRAMES])
def test_no_answer_harms_the_driver(hostile: tuple[RewardSpec, Path], name: str) -> None:
    reward, mark = hostile
    with Scorer([reward], workers=1, deadline_s=20.0, log_dir=None) as scorer:
        scored = scorer.score([make_group("fine", "fine"), make_group(name, "fine")])
        assert [kinds(group) for group in scored] == [["Score", "Score"], ["crash", "Score"]]
        assert scorer.stats.seconds < 15
    assert not mark.exists()
    (failure, _) = outcomes(scored[1])
    assert isinstance(failure, Failed)
    assert failure.message.startswith("attack: its process was killed, since it sent what is no answer: ")
    assert "hostile.py:attack" in failure.reproduce


@pytest.mark.skipif(sys.platform != "linux", reason="the reward finds the socket in /proc")
def test_an_answer_that_trickles_in_ends_at_the_deadline(hostile: tuple[RewardSpec, Path]) -> None:
    with Scorer([hostile[0]], workers=1, deadline_s=0.5, log_dir=None) as scorer:
        assert kinds(scorer.score([make_group("drip", "fine")])[0]) == ["timeout", "Score"]
        assert scorer.stats.seconds < 10


def test_a_process_gives_what_the_driver_would_give(hostile: tuple[RewardSpec, Path]) -> None:
    results = []
    for workers in (0, 1):
        with Scorer([hostile[0]], workers=workers, deadline_s=5.0, log_dir=None) as scorer:
            results.append(outcomes(scorer.score([make_group("fine", "raise", name="\ud83d")])[0]))
    assert results[0] == results[1]
    first, second = results[1]
    assert isinstance(first, Score)
    assert first.parts["attack/fine \ud83d"] == 0.1
    assert isinstance(second, Failed)
    assert "half \\ud83d" in second.message


def test_a_module_that_answers_in_its_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "forged.py"
    path.write_text(
        "import os, stat\n"
        "for fd in range(3, 40):\n"
        "    try:\n"
        "        if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "            os.write(fd, b'\\x00\\x00\\x00\\x02{}')\n"
        "            break\n"
        "    except OSError:\n"
        "        pass\n"
        "def r(completion): return 1.0\n"
    )
    with pytest.raises(ValueError, match="was killed, since it sent what is no answer: it names neither its rewards"):
        Scorer([RewardSpec(path=f"{path}:r")], workers=1, deadline_s=5.0, log_dir=None)
