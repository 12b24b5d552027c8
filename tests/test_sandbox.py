"""Code of a model: what it may do, what it may not, and that no trick of it becomes a reward."""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlft.reward import sandbox, sandbox_group, sandbox_view
from rlft.reward.sandbox import Call, Limits
from rlft.reward.sandbox_memory import memory_inside

pytestmark = pytest.mark.skipif(bool(sandbox._problem()), reason=f"no sandbox: {sandbox._problem()}")
QUICK = Limits(seconds=3.0)
SLOW = Limits(seconds=20.0)


def one(body: str, *arguments: Any, limits: Limits = QUICK) -> Call:
    """What `def f(*a)` with this body gives."""
    code = "def f(*a):\n" + "\n".join(f"    {line}" for line in body.splitlines())
    (result,) = sandbox.call(code, "f", [arguments], limits)
    return result


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """However it ends, no process is left."""
    before = {process.pid for process in psutil.process_iter()}
    yield
    deadline = time.monotonic() + 2
    left: list[str] = []
    while time.monotonic() < deadline:
        mine = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        left = [p.name() for p in mine if p.is_running()]
        if not left:
            return
        time.sleep(0.05)
    assert left == []


def test_values_come_back() -> None:
    code = "import math\ndef f(n, s='x'):\n    print('noise')\n    return {'n': math.factorial(n), 's': (s,) * 2}"
    assert sandbox.call(code, "f", [[3], [5, "é"]]) == [
        Call(value={"n": 6, "s": ["x", "x"]}),
        Call(value={"n": 120, "s": ["é", "é"]}),
    ]


def test_an_exception_is_an_error_of_its_call_alone() -> None:
    assert sandbox.call("def f(n):\n    return 6 / n", "f", [[2], [0], [3]]) == [
        Call(value=3.0),
        Call(error="ZeroDivisionError: division by zero"),
        Call(value=2.0),
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def f(:", "SyntaxError"),
        ("def g(): pass", "KeyError: 'f'"),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "it ended without a result"),
        ("def f(): return {1, 2}", "TypeError: Object of type set is not JSON serializable"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_code_that_gives_nothing_says_why(code: str, error: str) -> None:
    results = sandbox.call(code, "f", [[], []])
    assert len(results) == 2
    assert all(result.error.startswith(error) for result in results), results


# Table A5, 27: contained, and over within the deadline and a second


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("import time\ntime.sleep(60)", "resource: time"),
        ("while True: pass", "resource: "),
        ("x = bytearray(10**9)", "MemoryError"),
        ("open('/tmp/big', 'wb').write(bytes(64 * 2**20))", "OSError: [Errno 27]"),
        ("return 'x' * 2**20", "resource: output"),
        ("import os\nos.write(1, bytes(10**6)); print('x' * 10**6); return len(a)", ""),
        (
            "import os, contextlib\nfor fd in range(3, 60):\n    with contextlib.suppress(OSError):\n"
            "        while True: os.write(fd, bytes(65536))",
            "resource: output",
        ),
    ],
    ids=["sleep", "spin", "memory", "large-file", "large-value", "noise", "flooded-channel"],
)
def test_resources_are_bounded(body: str, error: str) -> None:
    started = time.monotonic()
    result = one(body)
    assert time.monotonic() - started < QUICK.seconds + 1
    assert result.error.startswith(error)
    assert bool(result.error) == bool(error)


def test_disks_are_small() -> None:
    # Neither /tmp, nor the root, nor /dev/shm takes more than a little: they are memory of the host.
    body = """
total = 0
for folder in ('/tmp', '/', '/dev', '/dev/shm', '/proc', '/usr', '/python'):
    for n in range(30):
        try:
            with open(f'{folder}/x{n}', 'wb') as file:
                total += file.write(bytes(4 * 2**20))
        except OSError:
            break
return total / 2**20"""
    assert one(body).value <= 2 * QUICK.file_mb


# Memory of everything inside together


FORK = """
import mmap, os, time
held = []
def children(count, act):
    for _ in range(count):
        if os.fork() == 0:
            act()
            time.sleep(60)
            os._exit(0)
def fill():
    held.append(b"x" * (100 * 2**20))
def fill_shared():
    held.append(mmap.mmap(-1, 100 * 2**20))
    held[-1].write(bytes(100 * 2**20))
def make_files():
    while True:
        open(f"/tmp/{os.getpid()}-{time.time()}", "w").close()
"""


@pytest.mark.parametrize(
    ("body", "memory_mb"),
    [("children(6, fill)", 512), ("children(6, fill_shared)", 512), ("children(3, make_files)", 64)],
    ids=["many-processes", "mappings", "many-files"],
)
def test_memory_is_bounded_together(body: str, memory_mb: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(init: int, limit: int) -> int:
        seen.append(memory_inside(init, limit))
        return seen[-1]

    monkeypatch.setattr(sandbox, "memory_inside", look)
    monkeypatch.setattr(sandbox_group, "where", lambda: None)
    limits = Limits(seconds=20.0, memory_mb=memory_mb)
    started = time.monotonic()
    assert one(f"{FORK}\n{body}\ntime.sleep(60)", limits=limits) == Call(error="resource: memory")
    assert time.monotonic() - started < 10
    assert min(seen[-2:]) > memory_mb * 2**20
    assert seen[0] <= memory_mb * 2**20


def groups_of(maker: int) -> list[Path]:
    """Control groups that a process has made and that are still there."""
    parent = sandbox_group.where()
    return list(parent.glob(f"rlft-sandbox-{maker}-*")) if parent else []


@pytest.mark.skipif(sandbox_group.where() is None, reason="no control group can be made here")
@pytest.mark.parametrize("body", ["children(6, fill)", "children(6, fill_shared)"], ids=["many-processes", "mappings"])
def test_a_control_group_bounds_what_no_look_sees(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "memory_inside", lambda init, limit: 1)
    started = time.monotonic()
    limits = Limits(seconds=20.0, memory_mb=256)
    assert one(f"{FORK}\n{body}\ntime.sleep(60)", limits=limits) == Call(error="resource: memory")
    assert time.monotonic() - started < 10
    assert groups_of(os.getpid()) == []


@pytest.mark.skipif(sandbox_group.where() is None, reason="no control group can be made here")
def test_a_group_whose_maker_was_killed_is_removed_by_the_next_process() -> None:
    made = "from rlft.reward import sandbox_group as g\nwith g.memory_group(64): print(flush=True); input()"
    maker = subprocess.Popen([sys.executable, "-c", made], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert maker.stdout
    assert maker.stdout.readline() == b"\n"
    assert len(groups_of(maker.pid)) == 1  # another test's process may remove it as soon as its maker is gone
    maker.kill()
    maker.communicate()
    subprocess.run([sys.executable, "-c", "from rlft.reward import sandbox_group as g; g.where()"], check=True)
    assert groups_of(maker.pid) == []


@pytest.mark.skipif(sandbox_group.where() is None, reason="no control group can be made here")
def test_a_group_that_cannot_be_entered_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_group.Group, "entering", ["false"])
    assert sandbox_group.where.__wrapped__() is None
    assert groups_of(os.getpid()) == []


def test_where_no_group_can_be_made_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/a\n4:memory:/b\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "memory" / "b").mkdir(parents=True)  # ordinary folders: what is made there has no files of a group
    assert sandbox_group.where.__wrapped__(tmp_path, tmp_path / "own") is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "memory", "own"]


def test_memory_that_processes_share_counts_once() -> None:
    # Six times 200 MB of which there is one.
    body = f"{FORK}\nfill()\nfill()\nchildren(5, lambda: None)\ntime.sleep(0.3)\nreturn 'done'"
    for _ in range(3):
        assert one(body) == Call(value="done")


LIBC = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, *arguments):
    ctypes.set_errno(0)
    return [getattr(libc, name)(*arguments), os.strerror(ctypes.get_errno())]
"""
REFUSED = [-1, os.strerror(errno.EPERM)]


def test_memory_that_belongs_to_no_process_is_refused() -> None:
    body = f"""{LIBC}
def tried(act):
    try:
        return repr(act())
    except OSError as error:
        return type(error).__name__
ours, _ = socket.socketpair()
return {{
    'shared memory': refused('shmget', 0, 2**30, 0o1600),
    'queue': refused('msgget', 0, 0o1600),
    'file in memory': tried(lambda: os.memfd_create('x')),
    'large buffers': tried(lambda: ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**30)),
    'POSIX shared memory': tried(lambda: __import__('multiprocessing.shared_memory').shared_memory.SharedMemory(
        create=True, size=2**20)),
}}"""
    seen = one(body).value
    assert seen.pop("shared memory") == seen.pop("queue") == REFUSED
    assert seen.pop("POSIX shared memory") in ("OSError", "FileNotFoundError", "PermissionError")
    assert set(seen.values()) == {"PermissionError"}


def test_namespaces_are_not_nested() -> None:
    clone, clone3 = (56 if platform.machine() == "x86_64" else 220), 435
    user, mount, child = 0x10000000, 0x00020000, 17
    body = f"""{LIBC}
import threading
thread = threading.Thread(target=lambda: None)  # an ordinary clone is allowed
thread.start()
thread.join()
return [
    *(refused('unshare', flag) for flag in ({user}, {mount}, {user | mount})),
    refused('setns', 0, 0),
    *(refused('syscall', {clone}, flag | {child}, 0, 0, 0, 0) for flag in ({user}, {user | mount})),
    refused('syscall', {clone3}, 0, 0),
]"""
    *seen, by_structure = one(body).value
    assert seen == [REFUSED] * 6
    assert by_structure == [-1, os.strerror(errno.ENOSYS)]


def test_a_machine_without_a_filter_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    lack = sandbox._problem.__wrapped__()
    assert lack is not None
    assert lack.found == "there is a filter of system calls for x86_64 and aarch64 only, this is riscv64"
    assert lack.todo


def test_where_memory_cannot_be_seen_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "memory_inside", lambda init, limit: 0)
    assert "how much memory is used inside cannot be read" in str(sandbox._problem.__wrapped__())


def test_a_fork_bomb_is_small_and_gone() -> None:
    body = """
import os, time
n = 0
try:
    while n < 300:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        n += 1
except OSError:
    pass
return n"""
    started = time.monotonic()
    assert one(body).value < QUICK.processes
    assert time.monotonic() - started < 2  # the children do not keep it


def test_a_daemon_ends_with_the_sandbox() -> None:
    body = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
return 'left'"""
    assert one(body).value == "left"


def test_the_host_is_out_of_sight(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    os.environ["RLFT_TEST_SECRET"] = "key"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        body = f"""
import os, socket
def tried(act):
    try:
        return repr(act())
    except BaseException as error:
        return type(error).__name__
os.symlink({str(secret)!r}, '/tmp/link')
return {{
    'file': tried(lambda: open({str(secret)!r}).read()),
    'link': tried(lambda: open('/tmp/link').read()),
    'passwords': tried(lambda: open('/etc/passwd').read()),
    'network': tried(lambda: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)),
    'environment': sorted(os.environ),
    'processes': [p for p in os.listdir('/proc') if p.isdigit()],
    'root': tried(lambda: os.setuid(0)),
    'mount': tried(lambda: open('/usr/x', 'w')),
}}"""
        seen = one(body).value
    del os.environ["RLFT_TEST_SECRET"]
    assert seen["file"] == seen["link"] == seen["passwords"] == "FileNotFoundError"
    assert seen["network"] in ("ConnectionRefusedError", "OSError")
    assert set(seen["environment"]) <= {"PYTHONHASHSEED", "LANG", "PWD", "LC_CTYPE"}
    assert len(seen["processes"]) <= 2
    assert seen["root"] == "PermissionError"
    assert seen["mount"] == "OSError"


SEEN = """
import os, sys
found = []
for above in ('/usr', '/opt', '/lib', '/lib64', '/python', sys.base_prefix, *{prefixes}):
    for folder, _, files in os.walk(above):
        if folder.endswith(('/site-packages', '/dist-packages', '/_bundled')):
            found += [f'{{folder}}/{{name}}' for name in os.listdir(folder)]
sys.path[:0] = [os.path.dirname(one) for one in found] + {paths}
def imported(name):
    try:
        return __import__(name).__file__
    except ImportError as error:
        return type(error).__name__
def names(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
return {{
    'packages': found,
    'pip': imported('pip'),
    'rlft': imported('rlft'),
    'programs': [*names('/usr/bin'), *names('/bin'), *names('/usr/sbin'), *names('/python/bin')],
    'share': names('/usr/share'),
    'etc': names('/etc'),
    'repository': imported('rewards'),
}}"""
STANDARD = """
import ctypes, decimal, json, lzma, multiprocessing, sqlite3, subprocess, sys, unicodedata, zoneinfo, zlib
with sqlite3.connect('/tmp/x') as database:
    database.execute('create table t (n)')
    database.execute('insert into t values (7)')
    (n,), = database.execute('select n from t').fetchall()
inner = subprocess.run([sys.executable, '-S', '-c', 'import json; print(json.dumps([6 * 7]))'], capture_output=True)
writes = []
for folder in sys.path:
    for name in ('', '/site-packages', '/dist-packages'):
        try:
            open(f'{folder}{name}/x', 'w')
        except OSError:
            continue
        writes.append(folder)
return [n, inner.stdout.decode(), json.loads('[1]'), ctypes.CDLL(None) is not None, writes]"""


def is_narrow(prefix: str) -> None:
    """Inside there is the standard library alone, and it works."""
    looked = one(SEEN.format(prefixes=[prefix], paths=[*sys.path, str(Path(__file__).parents[1])]), limits=SLOW)
    assert looked.error == ""
    seen = looked.value
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert seen["packages"] == []
    assert seen["pip"] == seen["rlft"] == seen["repository"] == "ModuleNotFoundError"
    assert seen["programs"] == [version]
    assert set(seen["share"]) <= {"zoneinfo"}
    assert set(seen["etc"]) <= {"ld.so.cache"}
    assert one(STANDARD, limits=SLOW).value == [7, "[42]\n", [1], True, []]


def test_only_the_standard_library_is_seen() -> None:
    is_narrow(sys.base_prefix)


@pytest.mark.skipif(
    not Path(f"/usr/bin/python3.{sys.version_info.minor}").exists() or sys.base_prefix == "/usr",
    reason="the system has no Python of this version",
)
def test_only_the_standard_library_of_the_systems_python_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "platlibdir", "lib")
    is_narrow("/usr")
    assert one("import sys\nreturn sys.base_prefix").value == "/usr"


def test_packages_beside_the_libraries_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fedora's, Arch's and Alpine's linkers look in the folder that holds the packages, too.
    monkeypatch.setattr(sysconfig, "get_config_var", {"MULTIARCH": "another-linux-gnu"}.get)
    monkeypatch.setattr(sandbox_view, "_interpreter", sandbox_view._interpreter.__wrapped__)
    is_narrow(sys.base_prefix)


def test_killing_everybody_kills_nobody_else() -> None:
    me = os.getpid()
    result = one(f"import os, signal\nos.kill(-1, 9)\nos.kill({me}, 9)")
    assert result.error
    assert one("return 1").value == 1


# Table A5, 28: the verdict is made outside


CHEATS = {
    "exit": "import os\ndef f(n):\n    os._exit(0)",
    "equal to all": "class Any(int):\n    def __eq__(self, other): return True\ndef f(n):\n    return Any(0)",
    "patched json": "import json\njson.dumps = lambda *a, **k: 'true'\ndef f(n):\n    return True",
    "true for one": "def f(n):\n    return n == n",
    "says it passed": """
import os
for fd in range(3, 20):
    try:
        os.write(fd, b'["", "value", 1]\\n{"score": 1}\\n')
    except OSError:
        pass
def f(n):
    return None""",
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_trick_is_a_reward(name: str) -> None:
    from rewards.code_tests import code_tests

    cases = [[[1], 1], [[2], 4], [[3], 9]]
    assert code_tests(f"```python\n{CHEATS[name]}\n```", cases, "f") == {"score": 0.0, "share": 0.0}
    assert code_tests("Sure!\n```python\ndef f(n):\n    return n * n\n```", cases, "f") == {"score": 1.0, "share": 1.0}


def test_expected_answers_never_enter() -> None:
    # The whole memory of the program is its own: what it can read are its code, the inputs, and the nonce.
    from rewards.code_tests import code_tests

    spy = """
import sys
def f(n):
    frame, seen = sys._getframe(), []
    while frame:
        seen.append(repr({k: v for k, v in frame.f_globals.items() if k == 'job'}))
        frame = frame.f_back
    return str(31336 + 1) in ''.join(seen)"""
    assert sandbox.call(spy, "f", [[1]]) == [Call(value=False)]
    assert code_tests(spy, [[[1], 31337]], "f") == {"score": 0.0, "share": 0.0}
    assert '"inputs": [[1]]' in sandbox._job({"inputs": [[1]]}, QUICK).decode()


def test_a_value_of_another_type_is_another_value() -> None:
    from rewards.code_tests import code_tests

    def score(value: str, expected: Any) -> float:
        result = code_tests(f"def f():\n    return {value}", [[[], expected]], "f")
        assert result is not None
        return result["score"]

    assert score("1", True) == score("True", 1) == score("'1'", 1) == score("[1]", [True]) == 0
    assert score("(1, 'a')", [1, "a"]) == score("{'a': 0.1 + 0.2}", {"a": 0.3}) == score("2", 2.0) == 1
    assert score("float('inf')", float("inf")) == score("[1e999]", [float("inf")]) == 1
    assert score("10**400", 0.5) == score("float('inf')", 0.5) == score("-float('inf')", float("inf")) == 0
    assert score("float('nan')", 0.5) == score("None", 0) == score("[1, 2]", [1]) == 0
    assert code_tests("def f(): pass", [], "f") is None


def test_a_value_that_cannot_be_read_moves_no_other() -> None:
    calls = sandbox.call(
        "import sys\nsys.set_int_max_str_digits(0)\ndef f(n):\n    return 10**5000 if n == 1 else n",
        "f",
        [[0], [1], [2]],
    )
    assert [one.value for one in calls] == [0, None, 2]
    assert "cannot be read" in calls[1].error


# Table A5, 29: without a sandbox nothing runs


def test_without_a_sandbox_code_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rlft.reward.loading import load

    monkeypatch.setattr(sandbox, "_problem", lambda: sandbox._ABSENT)
    with pytest.raises(
        ValueError, match=r"in a sandbox or not at all, and there is none: bubblewrap .* install .*rlft\[sandbox\]"
    ):
        sandbox.call("def f(): pass", "f", [[]])
    copy = tmp_path / "code_tests.py"
    copy.write_text((Path(__file__).parents[1] / "rewards" / "code_tests.py").read_text())
    with pytest.raises(ValueError, match=r"importing it failed:(?s:.*)there is none"):
        load(f"{copy}:code_tests")


def test_inputs_are_plain_data() -> None:
    with pytest.raises(ValueError, match="must be plain data"):
        sandbox.call("def f(x): pass", "f", [[object()]])


def test_it_is_quick() -> None:
    one("return 1")
    started = time.monotonic()
    for _ in range(5):
        assert one("return 1") == Call(value=1)
    assert (time.monotonic() - started) / 5 < 1.0
    assert json.dumps(one("return None").value) == "null"
