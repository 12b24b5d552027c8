"""Jobs on a Ray cluster that runs somewhere: sent, followed, listed and stopped through Ray's job API.

It talks HTTP to the cluster's head; this process joins no cluster. A token is sent where Ray's token authentication is
turned on here: `RAY_AUTH_MODE=token` with `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` or `~/.ray/auth_token`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlft.common.cluster import job_client, not_authenticated

ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Ray's own variable for the address."""
INSTALL = "pip install 'rlft[submit]'"
PATIENCE_S = 60.0
"""How long a head that has just started may take until it accepts jobs, and a broken connection until it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job of a cluster."""

    name: str
    """What it is called there."""
    state: str
    """pending, running, succeeded, stopped or failed."""
    message: str
    """What Ray says of it."""
    command: str
    """The command line that it runs."""
    started: datetime | None
    """When."""
    run: str
    """Its run directory on the cluster, where rlft sent it; else empty."""

    @property
    def has_ended(self) -> bool:
        """Whether it does not run any more."""
        return self.state in ("succeeded", "stopped", "failed")


class Jobs:
    """The jobs of a cluster. Every method raises ConnectionError where nobody answers or the token is not right."""

    def __init__(self, address: str) -> None:
        """Connect to the job server of a cluster's head.

        Args:
            address: `http://HOST:PORT`, or https; it is the dashboard's, port 8265 unless the cluster says otherwise.

        Raises:
            ValueError: the address is none of that, or a package is missing.
        """
        if "://" not in address:
            address = f"http://{address}"
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"--address {address}: expected the head's job server, such as http://127.0.0.1:8265")
        self.address = address.rstrip("/")
        if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # who has a token means to use it
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name in (ADDRESS, "RAY_ADDRESS"):  # Ray takes these instead of the address that it is given
            os.environ.pop(name, None)
        try:
            client = job_client()
        except ImportError as error:
            raise ValueError(f"sending jobs needs packages that are not installed ({error}): {INSTALL}") from error
        if find_spec("aiohttp") is None:  # without it Ray sends jobs and then cannot follow them
            raise ValueError(f"sending jobs needs packages that are not installed: {INSTALL}")
        for module in ("dashboard_sdk", "job.sdk"):  # what it is uploading, and that a connection was closed
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
        with self._told():
            self._client: Any = client(self.address)

    @property
    def is_protected(self) -> bool:
        """Whether a token is sent; a cluster that answers without one answers everybody."""
        return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"

    def submit(
        self,
        command: str,
        *,
        name: str,
        folder: Path,
        run: str = "",
        modules: Sequence[Path] = (),
        packages: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        cpus: float = 0,
        gpus: float = 0,
    ) -> None:
        """Start a job.

        Args:
            command: what the shell runs in the copy of `folder` on the cluster.
            name: no other job of the cluster has had it.
            folder: what travels.
            run: its run directory on the cluster.
            modules: folders of Python packages that travel besides, and are importable.
            packages: requirements that pip installs there.
            variables: of its environment.
            cpus: reserved for the command itself; what it starts on the cluster reserves its own.
            gpus: likewise.
        """
        environment: dict[str, Any] = {"working_dir": str(folder)}
        if modules:
            environment["py_modules"] = [str(path) for path in modules]
        if packages:
            environment["pip"] = list(packages)
        if variables:
            environment["env_vars"] = dict(variables)
        options: dict[str, Any] = {"entrypoint_num_cpus": cpus} if cpus else {}
        options |= {"entrypoint_num_gpus": gpus} if gpus else {}
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with self._told():
                try:
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=name,
                        runtime_env=environment,
                        metadata={"rlft_run": run},
                        **options,
                    )
                    return
                except RuntimeError as error:  # the head answers before it can start jobs
                    if "No available agent" not in str(error) or time.monotonic() > deadline:
                        raise
            time.sleep(1.0)

    def find(self, name: str) -> Job:
        """One job. Raises ValueError if there is none of that name."""
        with self._told(name):
            return _job(self._client.get_job_info(name))

    def all(self) -> list[Job]:
        """Every job that the cluster knows, the oldest first."""
        with self._told():
            found = self._client.list_jobs()
        jobs = [_job(each) for each in found if each.submission_id]
        return sorted(jobs, key=lambda job: job.started or datetime.now(UTC))

    def stop(self, name: str) -> bool:
        """Ask a job to end; whether it was running. Raises ValueError if there is none of that name."""
        with self._told(name):
            return bool(self._client.stop_job(name))

    def follow(self, name: str, write: Callable[[str], None]) -> Job:
        """Pass on what a job prints, from its beginning, until it has ended; the job then.

        A connection that breaks is made again for `PATIENCE_S`; nothing is passed on twice.
        """
        passed, deadline = 0, time.monotonic() + PATIENCE_S

        async def tail() -> None:
            nonlocal passed, deadline
            seen = 0
            async for text in self._client.tail_job_logs(name):
                new = text[max(0, passed - seen) :]
                seen += len(text)
                if new:
                    passed, deadline = seen, time.monotonic() + PATIENCE_S
                    write(new)

        import aiohttp

        while True:
            try:
                asyncio.run(tail())
                job = self.find(name)
                if job.has_ended:
                    return job
            except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
                if time.monotonic() > deadline:
                    raise ConnectionError(
                        f"{self.address}: the connection broke ({error}); the job may go on"
                    ) from error
            time.sleep(0.5)

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """What Ray and the network raise, as what a user can do about it."""
        import requests

        try:
            yield
        except not_authenticated() as error:
            wrong = "Authentication failed" in str(error)
            what = "does not know this token" if wrong else "asks for a token, and there is none here"
            raise ConnectionError(
                f"{self.address} {what}. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to "
                "that of the cluster, which whoever started it has"
            ) from None
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise ConnectionError(
                f"{self.address}: no job server answers ({type(error).__name__}). --address is that of the dashboard "
                "on the cluster's head, usually port 8265; of a cluster elsewhere through a tunnel, such as "
                "ssh -L 8265:127.0.0.1:8265 HEAD"
            ) from error
        except RuntimeError as error:
            if name and ("404" in str(error) or "does not exist" in str(error)):
                raise ValueError(f"{self.address} knows no job {name!r}; rlft runs --address lists them") from None
            if "ray[default]" in str(error):
                raise ValueError(f"sending jobs needs packages that are not installed: {INSTALL}") from error
            raise


def _job(details: Any) -> Job:
    started = details.start_time
    state = details.status
    return Job(
        name=details.submission_id,
        state=str(getattr(state, "value", state)).lower(),
        message=" ".join((details.message or "").split()),
        command=details.entrypoint or "",
        started=datetime.fromtimestamp(started / 1000, UTC) if started else None,
        run=(details.metadata or {}).get("rlft_run", ""),
    )
