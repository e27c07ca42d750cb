"""Time networks under ONNX Runtime on a CPU: as a whole, or piece by piece with its profiler.

Weights and images are random, because neither changes the time.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from res2net.deploy.export import export_onnx
from res2net.deploy.int8 import quantized_file

WARM = 3
OPSET = 20  # as in `export_onnx`: with opset 18, blocks took up to 28 % less time
HEAD = "head"
SCOPES = "pkg.torch.onnx.name_scopes"  # key of a node's metadata: the names of its modules


def runner(model: nn.Module, images: Tensor, threads: int, int8: bool, quick: bool = False) -> Callable[[], object]:
    """Return a function that runs the network once on a batch of images. quick: whether to use the older exporter."""
    session, feed = _session(_proto(model, images, int8, quick), threads, None), {"images": images.numpy()}
    return lambda: session.run(None, feed)


def piece_times(
    model: nn.Module, images: Tensor, threads: int, int8: bool, least_runs: int, seconds: float
) -> np.ndarray:
    """Return the times of a network's pieces in ms, `[runs, pieces]`: stem, blocks, head.

    The profiler adds time to each node. So the network also runs without the profiler. The difference is subtracted
    from the pieces, in proportion to their numbers of nodes.
    """
    data, feed = _proto(model, images, int8, True), {"images": images.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        session = _session(data, threads, Path(folder) / "profile")
        profiled = _run(lambda: session.run(None, feed), least_runs, seconds)
        events = json.loads(Path(session.end_profiling()).read_text())
    times, nodes = _split(events)
    times, profiled = times[WARM:], profiled[WARM:]
    plain = _session(data, threads, None)
    whole = _run(lambda: plain.run(None, feed), least_runs, seconds)[WARM:]
    excess = float(np.median(times.sum(1)) - np.median(whole))
    return np.maximum(times - excess * nodes / nodes.sum(), 1e-6)


def _run(run: Callable[[], object], least_runs: int, seconds: float) -> list[float]:
    """Run a function `WARM` times, then at least `least_runs` times and for `seconds`. Return each run's ms."""
    out: list[float] = []
    end = time.perf_counter() + seconds
    while len(out) < WARM + least_runs or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        out.append(1e3 * (time.perf_counter() - start))
    return out


def _session(data: bytes, threads: int, profile: Path | None) -> Any:
    """Return a session of ONNX Runtime. profile: the start of the profile's path."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _proto(model: nn.Module, images: Tensor, int8: bool, quick: bool) -> bytes:
    """Return the ONNX file of a network. The names of its nodes start with the name of their block (`layer1.0/`).

    quick: whether to use PyTorch's older exporter.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        if quick:
            _export_quickly(model, path, images)
        else:
            export_onnx(model, path, image_size=(images.shape[2], images.shape[3]), check=False)
        proto = onnx.load(path)
        _name_nodes(proto)
        if int8:
            onnx.save(proto, path)
            return quantized_file(path, images[:1])
        return proto.SerializeToString()


def _export_quickly(model: nn.Module, path: Path, images: Tensor) -> None:
    """Write an ONNX file of a network with PyTorch's older exporter.

    The older exporter takes 0.1 to 0.6 s for a network of base micro or cifar; `export_onnx` takes 2 to 8 s. ONNX
    Runtime turns both files into the same operators. A test compares the operators.
    """
    frozen = copy.deepcopy(model).to("cpu", torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated
        torch.onnx.export(
            frozen,
            (images[:1],),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )


def _label(node: Any) -> str:
    """Return the block of a node, or an empty text outside blocks."""
    scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), node.name)
    found = re.search(r"layer\d+\.\d+", scopes)
    return found[0] if found else ""


def _name_nodes(proto: Any) -> None:
    """Start the name of each node with its block (`layer1.0/Conv3`), or with `head/` behind the last block.

    Rename the outputs too: ONNX Runtime names a convolution after its output when it changes the convolution's layout.
    """
    nodes = list(proto.graph.node)
    labels = [_label(node) for node in nodes]
    last = max(i for i, label in enumerate(labels) if label)
    fixed, renamed = {output.name for output in proto.graph.output}, {}
    for i, (node, label) in enumerate(zip(nodes, labels, strict=True)):
        node.name = f"{label if i <= last else HEAD}/{node.op_type}{i}"
        for k, name in enumerate(node.input):
            node.input[k] = renamed.get(name, name)
        for k, name in enumerate(node.output):
            if name and name not in fixed:
                node.output[k] = renamed[name] = f"{node.name}/{k}"
    del proto.graph.value_info[:]  # it holds shapes under the former names


def _split(events: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of each run's pieces in ms, `[runs, pieces]`, and the nodes of each piece, `[pieces]`.

    ONNX Runtime adds nodes that do not name a block, such as changes of layout. They count for the piece before them.
    """
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    nodes = sorted(
        (e["ts"], e["name"]) for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    )
    times, counts, at = [], [], 0
    for start, end in runs:
        borders, labels, sizes = [start], ["stem"], [0]
        while at < len(nodes) and nodes[at][0] <= end:
            when, name = nodes[at]
            found = re.search(rf"layer\d+\.\d+(?=/)|{HEAD}(?=/)", name)
            if found and found[0] not in labels:
                borders.append(when)
                labels.append(found[0])
                sizes.append(0)
            sizes[-1] += 1
            at += 1
        times.append(np.diff([*borders, end]) / 1e3)
        counts.append(sizes)
    return np.array(times), np.array(counts[-1], float)
