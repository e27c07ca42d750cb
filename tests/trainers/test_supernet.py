"""Training of shared weights: the sandwich rule, exact resumption, and independent scores."""

import copy
import io
import random
from collections.abc import Iterable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from res2net import UserError, create
from res2net.elastic import ElasticRes2Net
from space import Skeleton, Space
from trainers import supernet
from trainers.datasets.data import Data, Split
from trainers.recipes import Config
from trainers.supernet import MAX_GRADIENT, Members, Scorer, SupernetTrainer, calibrate

SPACE = Space(
    "small",
    "micro",
    Skeleton((4, 8), (2, 2), (1, 1), 64, 2, stem_channels=4, num_classes=3),
    {"scale": (1, 2, 3), "cardinality": (1, 2), "depth": (1, 2)},
)
CONFIG = Config(epochs=2, batch_size=8, precision="fp32", device="cpu", crop_padding=1)


def data(n: int = 32, n_val: int = 10) -> Data:
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 3, 16, 16), np.uint8), np.arange(n) % 3)

    return Data("noise", ("a", "b", "c"), split(n), split(n_val), (0.5,) * 3, (0.3,) * 3)


def members() -> Members:
    return Members(SPACE.largest(), SPACE.arch(SPACE.cheapest()[0]), lambda rng: SPACE.arch(SPACE.sample_by_macs(rng)))


def make() -> SupernetTrainer:
    torch.manual_seed(0)
    return SupernetTrainer(ElasticRes2Net(SPACE), data(), CONFIG, members())


class TestTraining:
    def test_a_step_has_the_sum_of_the_four_members_gradients(self) -> None:
        trainer = make()
        alone = copy.deepcopy(trainer.model)
        x, y = trainer.train_images.batch(torch.arange(8), torch.ones(2, 8, dtype=torch.int64), None)
        largest, *others = trainer.step_members(3)
        logits = alone(x, largest)
        loss = F.cross_entropy(logits, y, label_smoothing=0.1)
        told = logits.detach().softmax(1)
        for arch in others:
            loss_of = [F.cross_entropy(alone(x, arch), t, label_smoothing=s) for t, s in ((told, 0), (y, 0.1))]
            (sum(loss_of) / 2).backward()
        loss.backward()
        nn.utils.clip_grad_norm_(alone.parameters(), MAX_GRADIENT)
        assert trainer._backward(x, y, 3).item() == pytest.approx(loss.item())
        for (name, ours), theirs in zip(trainer.model.named_parameters(), alone.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)

    def test_members_of_a_step_follow_from_the_seed_and_the_step(self) -> None:
        one, other = make(), make()
        steps = [one.step_members(s) for s in range(20)]
        assert steps == [other.step_members(s) for s in range(20)]
        assert all(s[0] == SPACE.largest() and len(s) == 4 for s in steps)
        assert len({a for s in steps for a in s}) > 8

    def test_a_resumed_training_equals_an_uninterrupted_one(self) -> None:
        whole, first, second = make(), make(), make()
        losses = [whole.epoch(), whole.epoch()]
        first.epoch()
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        assert second.epoch().train_loss == losses[1].train_loss
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name]), name

    @pytest.mark.slow
    def test_it_learns_an_easy_data_set(self) -> None:
        d = data()
        for split in (d.train, d.val):  # one brightness for each class
            split.images[:] = (60 * split.labels[:, None, None, None] + 40).astype(np.uint8)
        torch.manual_seed(0)
        config = Config(epochs=8, batch_size=8, precision="fp32", device="cpu", crop_padding=0)
        trainer = SupernetTrainer(ElasticRes2Net(SPACE), d, config, members())
        for _ in range(8):
            trainer.epoch()
        assert min(trainer.scorer(a)[1] for a in trainer.step_members(0)) > 80

    def test_refuses_members_of_another_space(self) -> None:
        arch = create("resnet50", num_classes=3).arch
        with pytest.raises(UserError, match="members of its space"):
            SupernetTrainer(ElasticRes2Net(SPACE), data(), CONFIG, Members(arch, arch, lambda rng: arch))


class TestScoring:
    def test_does_not_depend_on_the_members_scored_before(self) -> None:
        trainer = make()
        trainer.epoch()
        archs = [SPACE.arch(p) for p in SPACE.all_params()]
        forward = {a: trainer.scorer(a) for a in archs}
        rng = random.Random(0)
        rng.shuffle(archs)
        assert {a: trainer.scorer(a) for a in archs} == forward
        assert {a: Scorer(trainer.model, data(), CONFIG)(a) for a in archs[:3]} == {a: forward[a] for a in archs[:3]}

    def test_does_not_change_the_shared_weights(self) -> None:
        trainer = make()
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.scorer(SPACE.largest())
        assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())

    @pytest.mark.parametrize(("images", "sizes"), [(257, [256]), (511, [256]), (512, [256, 256]), (7, [7])])
    def test_no_batch_of_a_calibration_is_shorter_than_the_others(
        self, images: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found: list[int] = []

        def note(model: nn.Module, batches: Iterable[torch.Tensor], bf16: bool) -> None:
            found.extend(len(x) for x in batches)

        monkeypatch.setattr(supernet, "calibrate", note)
        Scorer(ElasticRes2Net(SPACE), data(images), CONFIG).member(SPACE.largest())
        assert found == sizes

    def test_statistics_are_the_mean_of_the_batches(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(3))
        model(torch.randn(4, 3, 5, 5))  # statistics that calibration must discard
        batches = [torch.randn(6, 3, 4, 4) + i for i in range(3)]
        calibrate(model, batches)
        assert (model.training, model[0].momentum) == (False, 0.1)
        torch.testing.assert_close(model[0].running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
        torch.testing.assert_close(model[0].running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
