"""A Ray cluster of several nodes on this machine, as a process of its own: a process can be in one Ray only.

`python raylets.py CPUS...` starts a head without CPUs and a node for each number, prints the address, and does what
its input says, a line each, answered by a line: `kill N` (SIGKILL to all processes of node N, from 0), `add CPUS`,
`kill head`. It ends, and the cluster with it, when its input does.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.cluster_utils import Cluster

SECONDS = 120  # for nodes to come up
LIGHT = {"include_dashboard": False, "include_log_monitor": False}  # Ray gives each node's processes 30 s to start


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
