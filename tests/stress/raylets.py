"""A Ray cluster of several nodes on this machine, in its own process: a process can join only one Ray.

`python tests/stress/raylets.py CPUS...` starts a head without CPUs and a node for each number, and prints the address
and the nodes' ids. It reads commands from stdin and answers each with a node's id: `kill N` (SIGKILL to all processes
of node N, counted from 0), `add CPUS`, `kill head`. The cluster ends with the input.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.cluster_utils import Cluster

SECONDS = 120  # time limit for nodes to start
# Fewer processes for each node: Ray allows 30 s for all of them to start.
LIGHT = {"include_dashboard": False, "include_log_monitor": False}


def main(cpus: list[str]) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LIGHT, "no_monitor": True})
    nodes = [cluster.add_node(wait=False, num_cpus=int(n), **LIGHT) for n in cpus]
    cluster.wait_for_nodes(timeout=SECONDS)
    print(cluster.address, *(node.node_id for node in nodes), flush=True)
    for line in sys.stdin:
        verb, which = line.split()
        if verb == "add":
            nodes.append(cluster.add_node(wait=False, num_cpus=int(which), **LIGHT))
            cluster.wait_for_nodes(timeout=SECONDS)
            print(nodes[-1].node_id, flush=True)
        else:
            node = cluster.head_node if which == "head" else nodes[int(which)]
            cluster.remove_node(node, allow_graceful=False)
            print(node.node_id, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
