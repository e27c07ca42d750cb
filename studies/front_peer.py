"""The peer in `bench_front`: a search with stock Ray Tune, written as Ray's documentation shows.

    python -m studies.front_peer --data cifar10 --data-dir DIR --max-macs 20M --time 15m --out FOLDER

`OptunaSearch` proposes networks by multi-objective TPE over accuracy and MACs, `ASHAScheduler` stops trials early, and
each trial is a plain training loop of PyTorch. Only public functions of Ray and Optuna are used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import ray
import torch
import torch.nn.functional as F
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from res2net.commands import Parser, run_main
from res2net.cost import cost
from res2net.factory import create
from res2net.files import write_atomic
from res2net.folder import TRAINING_FILE, save
from search.front import front
from search.groups import Scope
from search.units import parse_count, parse_seconds
from space import Space
from studies.bench import check_positive, first_line
from studies.bench_trainer import PilImages
from studies.front_runs import NETWORKS, SCORED, Scored
from trainers.datasets.data import Data, Split

PROG = "python -m studies.front_peer"
LR, BATCH, MOMENTUM, DECAY = 0.1, 64, 0.9, 5e-4
EVAL_BATCH = 500  # images per scored batch
WEIGHTS = "model.pt"  # the file of a checkpoint


def build_parser() -> Parser:
    """Return the command's options."""
    out, scope = Parser(prog=PROG, description=first_line(__doc__)), Scope()
    out.add_argument("--space", default=scope.space, help="the space")
    out.add_argument("--data", default=scope.data, help="the data set")
    out.add_argument("--data-dir", metavar="DIR", help="the folder of the data set's files")
    out.add_argument("--max-macs", default="20M", metavar="N", help="proposals above N MACs score 0")
    out.add_argument("--time", default="90s", metavar="T", help="Tune's time budget")
    out.add_argument("--seed", type=int, default=0, help="seed of the validation split, proposals and trainings")
    out.add_argument("--epochs", type=int, default=10, help="the most epochs of a trial")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for Tune's files and the networks")
    return out


def train(config: Mapping[str, int], data: Data, space: Space, most: int, epochs: int, seed: int) -> None:
    """Train one network and report its validation accuracy (%), its MACs and a checkpoint after each epoch.

    most: the limit on MACs; a network above it reports an accuracy of 0 and is not trained.
    """
    torch.manual_seed(seed)
    arch = space.arch(config)
    macs = cost(arch, space.image_size).macs
    if macs > most:
        tune.report({"accuracy": 0.0, "macs": macs})
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create(arch).to(device)
    train_loader = DataLoader(PilImages(data), BATCH, shuffle=True)
    val_loader = DataLoader(_normalised(data), EVAL_BATCH)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in val_loader)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder) / WEIGHTS)
            checkpoint = tune.Checkpoint.from_directory(folder)
            tune.report({"accuracy": 100 * right / len(data.val), "macs": macs}, checkpoint=checkpoint)


def _normalised(data: Data) -> TensorDataset:
    """Return the validation split as normalised images and labels."""
    assert isinstance(data.val, Split), "`Scope.load_data` decodes all images"

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(-1, 1, 1)

    images = torch.from_numpy(np.ascontiguousarray(data.val.images)).float().div_(255)
    return TensorDataset(images.sub_(column(data.mean)).div_(column(data.std)), torch.from_numpy(data.val.labels))


def run(scope: Scope, data: Data, space: Space, seconds: float, epochs: int, out: Path) -> list[tune.Result]:
    """Search for `seconds` seconds; return the result of each trial. Tune's files go into `out`."""
    assert scope.max_macs is not None, "the command has a default"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    metrics, modes = ["accuracy", "macs"], ["max", "min"]
    gpus = 1 if torch.cuda.is_available() else 0
    trainable = tune.with_parameters(train, data=data, space=space, most=scope.max_macs, epochs=epochs, seed=scope.seed)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": gpus}),
        param_space={name: tune.choice(list(values)) for name, values in space.parameters.items()},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric=metrics, mode=modes, seed=scope.seed),
            scheduler=ASHAScheduler(metric="accuracy", mode="max", max_t=epochs, grace_period=1, reduction_factor=3),
            num_samples=-1,
            time_budget_s=seconds,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(out.absolute()),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="accuracy"),
        ),
    )
    results = tuner.fit()
    return [results[i] for i in range(len(results))]


def scored_of(results: Sequence[tune.Result], space: Space, most: int) -> list[Scored]:
    """Return every accuracy that a trial within the limit reported.

    `seconds` is the time since the epoch (Unix), in whole seconds as Tune records it.
    """
    out = []
    for number, result in enumerate(results):
        frame = result.metrics_dataframe
        if frame is None or frame.empty or result.config is None:  # stopped before its first epoch ended
            continue
        network = str(space.arch(result.config))
        columns = zip(frame["timestamp"], frame["macs"], frame["accuracy"], strict=True)
        for epochs, (when, macs, accuracy) in enumerate(columns, 1):
            if macs <= most:
                out.append(Scored(float(when), number, int(macs), float(accuracy), epochs, network))
    return out


def write(scored: Sequence[Scored], results: Sequence[tune.Result], space: Space, data: Data, out: Path) -> None:
    """Write the accuracies, and a model folder for each network on their front.

    A trial keeps the checkpoint of its best validation accuracy. No other accuracy of the trial can be on the front.
    """
    for i in front([s.val_top1 for s in scored], [s.macs for s in scored]):
        result = results[scored[i].number]
        assert result.config is not None, "a scored trial has parameters"
        model = create(space.arch(result.config))
        checkpoint = result.get_best_checkpoint("accuracy", "max")
        assert checkpoint is not None, "each accuracy is reported with a checkpoint"
        with checkpoint.as_directory() as folder:
            model.load_state_dict(torch.load(Path(folder) / WEIGHTS, map_location="cpu", weights_only=True))
        target = out / NETWORKS / str(scored[i].number)
        save(model, target)
        # `crop` says that the images were in memory, so that a test decodes the images of a folder in the same way.
        training = {"data": data.describe(), "crop": "pad"}
        write_atomic(target / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
    write_atomic(out / SCORED, json.dumps([asdict(s) for s in scored], indent=1) + "\n")


def _main(args: argparse.Namespace) -> None:
    check_positive(args, "epochs")
    seconds, most = parse_seconds(args.time, "time"), parse_count(args.max_macs, "max_macs")
    scope = Scope(space=args.space, data=args.data, data_dir=args.data_dir, max_macs=most, seed=args.seed)
    data = scope.load_data()
    space = scope.get_space(data.num_classes, data.image_size, data.in_channels)
    results = run(scope, data, space, seconds, args.epochs, args.out)
    scored = scored_of(results, space, most)
    write(scored, results, space, data, args.out)
    print(f"{len(results)} trials, {len(scored)} accuracies within the limit")


def main(argv: Sequence[str] | None = None) -> int:
    """Search with Ray Tune; write the accuracies and the networks of the front."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
