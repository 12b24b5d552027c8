"""`python -m tests.several_nodes FOLDER MODEL`: a run on a cluster of two nodes, one of which is killed, and one joins.

A program of its own, since a process can be in one cluster only. The last line is JSON: the nodes that
had a worker at the end of each step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rlft.common.cluster import protect
from rlft.config_file import load
from rlft.curves.live_panel import View
from rlft.rollout.ray_pool import RayPool
from rlft.train.rl import launch, services
from tests.fakes import write_config


def main(folder: Path, model: Path) -> None:
    """Train, and disturb it."""
    protect()
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 200, "health_check_failure_threshold": 5, "health_check_initial_delay_ms": 0}
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
    second = cluster.add_node(**node)
    seen: list[list[str]] = []
    pools: list[RayPool] = []
    make_pool, rollout = services.make_pool, View.rollout

    def make(*arguments: Any) -> Any:
        pools.append(make_pool(*arguments))  # type: ignore[arg-type]
        return pools[-1]

    def wait_for_all() -> None:
        while not all(slot.is_ready for slot in pools[0].slots):
            time.sleep(0.05)

    def disturb(view: View, done: int, total: int) -> None:
        rollout(view, done, total)
        step = view._step + 1
        if (step, done) == (1, total):
            wait_for_all()
        if done == total:
            seen.append(sorted({slot.node_id for slot in pools[0].slots if slot.is_ready}))
        if (step, done) == (2, 1):
            cluster.remove_node(second, allow_graceful=False)
        if (step, done) == (3, total):
            cluster.add_node(**node)
            wait_for_all()

    services.make_pool = make  # type: ignore[assignment]
    View.rollout = disturb  # type: ignore[method-assign]
    overrides = ["backend=ray", "rollout.workers=2", f"ray_address={cluster.address}", "checkpoint.every=1"]
    config = load(write_config(folder, model), overrides)
    launch.train(config)
    cluster.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
