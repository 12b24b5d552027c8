"""What actors reserve of a cluster, and what a private one offers. No Ray is started."""

from __future__ import annotations

from typing import Any

import pytest

from rlft.common.cluster import Cluster, protect
from tests.conftest import MakeConfig


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
    return calls


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
    needed = 2 * reserved(cluster, config.rollout.threads) + 3 * reserved(cluster, config.learner.threads)
    assert started[0]["num_cpus"] == needed == 5
