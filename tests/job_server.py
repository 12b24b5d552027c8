"""`python -m tests.job_server`: a Ray head node of this machine with the Jobs API, until the end of its input.

A program of its own, since a process can be in one cluster only. Prints the server's address; RAY_AUTH_TOKEN is its
token. It keeps to the loopback interface, and leaves nothing behind.
"""

from __future__ import annotations

import os
import sys

from rlft.common.cluster import protect
from rlft.common.ray_guard import MARK, Guard


def main() -> None:
    """Start the node and wait."""
    protect()
    from ray.cluster_utils import Cluster

    guard = Guard()
    os.environ[MARK] = str(guard.folder)
    node = {
        "num_cpus": 2,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": int(sys.argv[1]),
        "dashboard_agent_listen_port": 0,  # any: the usual one is that of every other cluster of this machine, too
        "node_ip_address": "127.0.0.1",
        "object_store_memory": 80 * 2**20,
    }
    cluster = Cluster(initialize_head=True, head_node_args=node)
    print(f"http://127.0.0.1:{sys.argv[1]}", flush=True)
    sys.stdin.read()
    cluster.shutdown()
    guard.close()


if __name__ == "__main__":
    main()
