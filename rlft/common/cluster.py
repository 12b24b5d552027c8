"""The only door to Ray: a run's cluster, joined or started and left again, and parts of Ray that need no cluster."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, ParamSpec, Protocol, TypeVar

from rlft.common.private_names import missing
from rlft.common.ray_guard import MARK, Guard
from rlft.common.ray_watch import Watch, bounded_start

T = TypeVar("T")
P = ParamSpec("P")


class Ref(Protocol[T]):
    """Ray's reference to a value in the object store, which may still have to be computed."""

    def future(self) -> Future[T]:
        """The value as a future of this process."""
        ...


class RemoteMethod(Protocol[P, T]):
    """A method of an actor."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Ref[T]:
        """Have the actor run it; where an argument is a reference the actor gets the value."""
        ...


class Cluster:
    """A connection to a Ray cluster; one that this process has open already is shared and left open."""

    def __init__(self, address: str, *, processes: int) -> None:
        """Join the cluster at `address`, or start a private one with a CPU for each of the run's processes.

        Raises:
            ConnectionError: `address` does not answer.
            ClusterLostError: later, in the main thread, when a private cluster has lost its raylet or control service.
            RuntimeError: see `protect`.
        """
        if not address:
            protect()
        import ray

        self.ray: Any = ray
        self._is_joined = bool(address)
        self._is_owner = not ray.is_initialized()
        self._guard = Guard() if self._is_owner and not address else None
        self._watch: Watch | None = None
        if self._is_owner:
            try:
                _start(address, processes, self._guard)
                self._watch = Watch() if self._guard else None
            except BaseException:
                self.close()
                raise

    def cpus(self, threads: int) -> int:
        """CPUs that Ray reserves for an actor with so many threads.

        All of them on a cluster that was joined, where Ray chooses the machine. A private one is this machine, to which
        everything goes anyhow, and has to start also where the threads outnumber the cores: a CPU is a process there.
        """
        return threads if self._is_joined else 1

    def actor(self, cls: type, *, threads: int, gpus: float, env: Mapping[str, str] | None = None) -> Any:
        """A Ray actor class for `cls`; calling its `remote` with the constructor's arguments starts an actor.

        Args:
            threads: CPU threads of its libraries; see `cpus`.
            gpus: GPUs that Ray reserves for it.
            env: further environment variables.
        """
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        return self.ray.remote(cls).options(
            num_cpus=self.cpus(threads),
            num_gpus=gpus,
            max_restarts=0,  # a restarted actor would come back without what it had been told
            runtime_env={"env_vars": {**limits, **(env or {})}},
        )

    def kill_process(self, process_id: int, node: str) -> None:
        """Send SIGKILL to a process on any node of this cluster.

        Args:
            node: Ray's id of its node; on another one than this process's a task of Ray does it.
        """
        if node == node_id():
            os.kill(process_id, signal.SIGKILL)
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node, soft=False)
        self.ray.remote(os.kill).options(num_cpus=0, scheduling_strategy=place).remote(process_id, signal.SIGKILL)

    def close(self) -> None:
        """End the private cluster, or leave the joined one, with all actors of this process.

        Raises:
            ClusterLostError: the private cluster was lost before, and nobody has been told yet.
        """
        try:
            if self._watch is not None:
                watch, self._watch = self._watch, None
                watch.close()
        finally:
            if self._is_owner:
                self.ray.shutdown()
            if self._guard is not None:
                self._guard.close()


def node_address() -> str:
    """Address of this actor's machine within the cluster."""
    import ray

    address: str = ray.util.get_node_ip_address()
    return address


def node_id() -> str:
    """Ray's id of the node that this process runs on."""
    import ray

    name: str = ray.get_runtime_context().get_node_id()
    return name


def job_client() -> Any:
    """Ray's class that talks HTTP to a cluster's job server and joins no cluster.

    Raises:
        ImportError: a package that Ray needs for it is missing.
    """
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient


def not_authenticated() -> type[Exception]:
    """What Ray raises where a cluster's token is missing or wrong."""
    from ray.exceptions import AuthenticationError

    return AuthenticationError


def asha_scheduler() -> Any:
    """Ray Tune's class that decides which trials stop early (ASHA).

    Raises:
        ImportError: a package that Ray Tune needs is missing.
    """
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler


def protect() -> None:
    """Turn on token authentication for the cluster that Ray starts. Ray reads this when it is imported.

    Raises:
        RuntimeError: Ray was imported before without it, so that its cluster would be open to every local user.
    """
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise RuntimeError(
            "ray was imported before rlft could protect its cluster; set RAY_AUTH_MODE=token before importing it"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    if not os.environ.get("RAY_AUTH_TOKEN"):  # an empty one makes Ray write a token into a file that all can read
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # The switch by which Ray keeps to the loopback interface where it makes no clusters of several machines.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _start(address: str, processes: int, guard: Guard | None) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if guard is None:
        options |= {"address": address}
    else:
        options |= {
            "address": "local",  # never one that runs on this machine already, nor that of RAY_ADDRESS
            "num_cpus": processes,
            "include_dashboard": False,
            "object_store_memory": 512 * 2**20,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(guard.folder / "r"),
        }
        os.environ[MARK] = str(guard.folder)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with bounded_start():
            ray.init(**options)
    except RuntimeError as error:
        for option in ("_node_ip_address", "_temp_dir"):
            if "Unknown keyword" in str(error) and option in str(error):
                raise missing(f"ray.init({option})") from error
        raise
    finally:
        os.environ.pop(MARK, None)  # only Ray's processes carry it
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which exits with another code
