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


def main(cpus: list[str]) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=int(n)) for n in cpus]
    print(cluster.address, *(node.node_id for node in nodes), flush=True)
    for line in sys.stdin:
        verb, which = line.split()
        if verb == "add":
            nodes.append(cluster.add_node(num_cpus=int(which)))
            print(nodes[-1].node_id, flush=True)
        else:
            node = cluster.head_node if which == "head" else nodes[int(which)]
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            print(node.node_id, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
