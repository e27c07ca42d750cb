"""The benchmark of inference: what it measures beside ours is the same network, and every row is printed."""

import pytest
import torch

from res2net import create
from studies import bench_inference
from studies.plain import PlainRes2Net

MODELS = bench_inference.MODELS


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_the_plain_network_is_the_same_one(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model = create(name).train(training)
    plain = PlainRes2Net(model.arch).train(training)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_table_of_inference_and_training(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batches", "1", "2", "--train-batch", "2", "--rounds", "2", "--train-rounds", "1", "--size", "32"]
    assert bench_inference.main(["--models", "resnet50", "res2net50_26w_4s", *options, "--threads", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [row.split()[:2] for row in rows[1:]] == [
        [name, batch] for batch in ("1", "2", "train") for name in ("resnet50", "res2net50_26w_4s")
    ]
    assert len({len(row) for row in rows[1:]}) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--rounds", "0"], "--rounds"), (["--models", "dla60"], "residual line"), (["--batches", "0"], "--batches")],
)
def test_mistakes(options: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_inference.main(options) == 2
    assert named in capsys.readouterr().err
