"""What actors reserve of a cluster, and what a private one offers to its driver, to other users and after its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from rlft.common import cluster as cluster_module
from rlft.common import ray_guard
from rlft.common.cluster import Cluster, protect
from tests.conftest import MakeConfig
from tests.sweeps import swept


class RecordedRay:
    """Ray, as far as it is told something."""

    def remote(self, cls: type) -> Any:
        return self

    def options(self, **options: Any) -> dict[str, Any]:
        return options


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray was started with."""
    protect()
    import ray

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster_module, "Watch", Mock)  # there are no processes to watch
    return calls


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a private cluster; it prints its folder and waits for the end of its input."""
    program = (
        "import json, sys; from rlft.common.cluster import Cluster; import psutil\n"
        "cluster = Cluster('', processes=1)\n"
        "class Actor:\n    def address(self): return cluster_address()\n"
        "from rlft.common.cluster import node_address as cluster_address\n"
        "actor = cluster.actor(Actor, threads=1, gpus=0).remote()\n"
        "assert cluster.ray.get(actor.address.remote()) == '127.0.0.1'\n"
        "print(cluster._guard.folder, flush=True)\n"
        "sys.stdin.read()\n"
        "cluster.close()\n"
    )
    environment = {**os.environ, "RAY_ADDRESS": "192.0.2.1:6379", "RAY_AUTH_TOKEN": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in environment.items() if name != "RAY_AUTH_MODE"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )
    yield process
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()


def marked(folder: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if ray_guard._is_marked(process, folder)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("ending", swept(["close", "SIGKILL", "SIGHUP"], always=lambda ending: ending != "SIGHUP"))
def test_a_private_cluster_is_private_and_leaves_nothing(driver: subprocess.Popen[str], ending: str) -> None:
    assert driver.stdin is not None
    assert driver.stdout is not None
    folder = driver.stdout.readline().strip()
    assert folder, "the driver did not start"
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    processes = marked(folder)
    assert len(processes) >= 5
    for process in processes:
        with suppress(psutil.AccessDenied, psutil.NoSuchProcess):
            listening = [each.laddr.ip for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
            assert [ip for ip in listening if ip.rpartition(":")[2] != "127.0.0.1"] == [], process.name()
    if ending == "close":
        driver.stdin.close()
        assert driver.wait(30) == 0
        assert marked(folder) == []  # at once: the driver waits for it
    else:
        driver.send_signal(getattr(signal, ending))
        driver.wait(30)
        until = time.monotonic() + 15
        while (marked(folder) or Path(folder).exists()) and time.monotonic() < until:
            time.sleep(0.1)
        assert marked(folder) == []
    assert not Path(folder).exists()


def test_a_private_cluster_is_not_one_that_runs_already(started: list[dict[str, Any]]) -> None:
    Cluster("", processes=1).close()
    assert started[0]["address"] == "local"


def reserved(cluster: Cluster, threads: int) -> int:
    cluster.ray = RecordedRay()
    cpus: int = cluster.actor(dict, threads=threads, gpus=0)["num_cpus"]
    return cpus


def test_on_a_joined_cluster_workers_reserve_a_cpu_for_each_thread(
    make_config: MakeConfig, started: list[dict[str, Any]]
) -> None:
    cluster = Cluster("10.0.0.1:6379", processes=1)
    assert [reserved(cluster, threads) for threads in (1, 8)] == [1, 8]
    assert started[0]["address"] == "10.0.0.1:6379"
    assert "num_cpus" not in started[0]  # which are its own


def test_a_private_cluster_has_room_for_all_whatever_the_machine_has(
    make_config: MakeConfig, started: list[dict[str, Any]]
) -> None:
    config = make_config("backend=ray", "rollout.workers=2", "rollout.threads=64", "learner.workers=3")
    cluster = Cluster("", processes=config.processes)
    cluster.close()
    needed = 2 * reserved(cluster, config.rollout.threads) + 3 * reserved(cluster, config.learner.threads)
    assert started[0]["num_cpus"] == needed == 5


LOSES = """
import os, signal, sys, threading
from rlft.common import ray_watch
from rlft.common.cluster import Cluster
ray_watch.STOPPED_S, ray_watch.DEAF_S = 1.0, 3.0
cluster = Cluster("", processes=1)
class Actor:
    def wait(self):
        threading.Event().wait()
waiting = cluster.actor(Actor, threads=1, gpus=0).remote().wait.remote()
[process] = [p for p, name in cluster._watch._processes.items() if name == sys.argv[1]]
os.kill(process.pid, getattr(signal, sys.argv[2]))
try:
    waiting.future().result() if sys.argv[3] == "future" else cluster.ray.get(waiting)
except RuntimeError as error:
    print("TOLD:", error, flush=True)
finally:
    cluster.close()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "number", "waits", "says"),
    [
        ("raylet", "SIGKILL", "future", "its raylet .* has died"),
        ("raylet", "SIGSTOP", "future", "its raylet .* has been stopped for 1 s"),
        ("control service", "SIGKILL", "future", "its (control service|raylet) .* has died"),
        ("control service", "SIGSTOP", "get", "its control service .* has been stopped for 1 s"),
    ],
)
def test_a_cluster_that_lost_a_process_ends_in_a_bounded_time_and_says_so(
    name: str, number: str, waits: str, says: str
) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOSES, name, number, waits], capture_output=True, text=True, timeout=100, check=False
    )
    assert re.search(f"the run's Ray cluster is lost: {says}", done.stdout + done.stderr)
    if waits == "future":
        assert "TOLD: " in done.stdout  # among what Ray prints of it
    else:  # Ray swallows what a handler raises, so the process ends by itself
        assert done.returncode == 1
    assert time.monotonic() - started < 80


def test_ray_that_does_not_start_ends_the_driver_with_a_message() -> None:
    program = (
        "import subprocess; from rlft.common import ray_watch; from rlft.common.cluster import Cluster, protect\n"
        "protect(); import ray; ray_watch.START_S = 1.0\n"
        "def init(**options):\n"
        "    child = subprocess.Popen(['sleep', '600']); print(child.pid, options['_temp_dir'], flush=True)\n"
        "    child.wait()\n"
        "ray.init = init; Cluster('', processes=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: Ray did not start within 1 s; nothing was lost, the same command may work now\n",
    )
    child, folder = done.stdout.split()
    until = time.monotonic() + 30
    while psutil.pid_exists(int(child)) or Path(folder).parent.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
