"""The cluster file that the README gives to copy is one that Ray takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_ray_up_takes_the_cluster_file() -> None:
    """By Ray's own check, without a network; an unknown key fails it."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = yaml.safe_load((ROOT / "search" / "cluster.yaml").read_text())
    prepared = util.prepare_config(config)
    util.validate_config(prepared)
    (node,) = prepared["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(Exception, match="worker_start_commands"):
        util.validate_config(prepared | {"worker_start_commands": []})
