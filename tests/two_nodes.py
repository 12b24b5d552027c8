"""`python -m tests.two_nodes FOLDER MODEL`: the quickstart on a Ray cluster of one node, then of two.

A program of its own, since a process can be in one cluster only. The last line is JSON: the nodes that had a
rollout worker in each of the two runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rlft.common.cluster import protect
from rlft.config_file import load
from rlft.rollout.ray_pool import RayPool
from rlft.train.rl import launch, services

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SMALL = (
    "model.dtype=float32",
    "steps=2",
    "rollout.threads=1",
    "learner.threads=1",
    "tasks_per_step=4",
    "rollout.tasks_per_chunk=1",
    "evaluation.tasks=8",
    "sft.examples=8",
)
"""What makes it short with a tiny model; everything else is as it stands in the file."""


def main(folder: Path, model: Path) -> None:
    """Run it twice."""
    protect()
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    seen: list[list[str]] = []
    make_pool = services.make_pool

    def make(*arguments: Any) -> Any:
        pool = make_pool(*arguments)  # type: ignore[arg-type]
        assert isinstance(pool, RayPool)
        while not all(slot.is_ready for slot in pool.slots):  # else a tiny model is done before the second one is there
            time.sleep(0.05)
        seen.append(sorted({slot.node_id for slot in pool.slots}))
        return pool

    services.make_pool = make  # type: ignore[assignment]
    for workers in (1, 2):
        if workers == 2:
            cluster.add_node(**node)
        place = [f"model.source={model}", f"output_dir={folder / str(workers)}", f"ray_address={cluster.address}"]
        launch.train(load(QUICKSTART, [*SMALL, *place, f"rollout.workers={workers}"]))
    cluster.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
