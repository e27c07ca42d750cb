"""The trainer: batches against a naive oracle, the schedule, exact resumption, no wait for the device."""

import copy
import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from res2net import Arch, Stage, UserError, create
from res2net.model import conv3x3
from trainers.datasets.data import Data, Split
from trainers.device import device_of, sum_dtype, uses_bf16
from trainers.evaluate import evaluate
from trainers.images import Images
from trainers.recipes import Config
from trainers.train import Epoch, Trainer, TrainingFailed, train

SIZE = 8
ARCH = Arch(
    (Stage(1, 2, 4, 2, 3, 2), Stage(2, 4, 4, 1, 2, 1)), stem="cifar", stem_channels=4, num_classes=3, in_channels=3
)
QUICK = Config(epochs=2, batch_size=8, crop_padding=2, precision="fp32", device="cpu")
CPU = torch.device("cpu")


def split(n: int, seed: int, channels: int = 3) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (n, channels, SIZE, SIZE), np.uint8), rng.integers(0, 3, n))


def data(n_train: int = 20, n_val: int = 7, channels: int = 3) -> Data:
    mean, std = (0.25, 0.5, 0.75)[:channels], (0.2, 0.3, 0.4)[:channels]
    return Data("noise", ("a", "b", "c"), split(n_train, 1, channels), split(n_val, 2, channels), mean, std)


def network(seed: int = 0, arch: Arch = ARCH) -> nn.Module:
    torch.manual_seed(seed)
    return create(arch)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class TestImages:
    @staticmethod
    def one(d: Data, index: int, row: int, column: int, flip: bool, padding: int) -> np.ndarray:
        """An image framed in the mean colour, cropped, mirrored and normalised: pixel by pixel, in float64."""
        out = np.empty((len(d.mean), SIZE, SIZE))
        for c, i, j in np.ndindex(out.shape):
            y, x = row + i - padding, column + (SIZE - 1 - j if flip else j) - padding
            inside = 0 <= y < SIZE and 0 <= x < SIZE
            value = int(d.train.images[index, c, y, x]) if inside else round(255 * d.mean[c])
            out[c, i, j] = (value / 255 - d.mean[c]) / d.std[c]
        return out

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("padding", [0, 1, 3])
    def test_a_batch_is_the_images_one_by_one(self, padding: int, channels: int) -> None:
        d = data(channels=channels)
        places = [*itertools.product((0, 2 * padding), (0, 2 * padding), (False, True)), (padding, padding, False)]
        rows, columns, flips = (list(v) for v in zip(*places, strict=True))
        index = [(7 * i) % len(d.train) for i in range(len(places))]
        images = Images(d.train, d, CPU, padding)
        x, y = images.batch(torch.tensor(index), torch.tensor([rows, columns]), torch.tensor(flips))
        naive = [self.one(d, *which, padding) for which in zip(index, rows, columns, flips, strict=True)]
        torch.testing.assert_close(x, torch.from_numpy(np.stack(naive)).float())
        assert y.tolist() == d.train.labels[index].tolist()
        assert x.is_contiguous(memory_format=torch.channels_last)

    def test_images_to_score_are_in_order_and_unchanged(self) -> None:
        d = data()
        images = Images(d.val, d, CPU)
        parts = list(images.batches(3))
        assert [len(y) for _, y in parts] == [3, 3, 1]
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (d.mean, d.std))
        expected = (torch.from_numpy(d.val.images) / 255 - mean) / std
        torch.testing.assert_close(torch.cat([x for x, _ in parts]), expected)
        assert torch.cat([y for _, y in parts]).tolist() == d.val.labels.tolist()

    def test_shared_memory_is_read_only_and_stays_as_it_was(self) -> None:
        d = data()
        before = d.train.images.copy()
        for array in (d.train.images, d.train.labels, d.val.images, d.val.labels):
            array.setflags(write=False)
        train(network(), d, QUICK)
        assert np.array_equal(d.train.images, before)


class Spy(nn.Module):
    """A network that keeps the batches it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * SIZE * SIZE, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        return self.fc(x.flatten(1))


class TestEpoch:
    @pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 17, 20])
    def test_every_training_image_is_seen_once_an_epoch(self, n: int) -> None:
        d, spy = data(n), Spy()
        trainer = Trainer(spy, d, replace(QUICK, crop_padding=0, flip=False))
        orders = []
        for _ in range(2):
            spy.seen.clear()
            trainer.epoch()
            shown = torch.cat(spy.seen)
            originals = torch.cat([x for x, _ in Images(d.train, d, CPU).batches(n)])
            distance = (shown[:, None] - originals[None]).abs().amax((2, 3, 4))
            orders.append(distance.argmin(1).tolist())
            assert sorted(orders[-1]) == list(range(n))
            assert len(spy.seen) == trainer.steps_per_epoch
        if n > 7:
            assert orders[0] != orders[1]

    def test_no_batch_is_one_image_which_a_batch_norm_cannot_take(self) -> None:
        arch = replace(ARCH, stages=(Stage(1, 2, 4, 1, 1, SIZE),))  # ends in 1 x 1
        epochs = train(network(arch=arch), data(17), QUICK)
        assert all(math.isfinite(e.train_loss) for e in epochs)

    def test_a_batch_larger_than_the_data_is_all_of_it(self) -> None:
        trainer = Trainer(network(), data(5), replace(QUICK, batch_size=1000))
        assert trainer.steps_per_epoch == 1
        assert math.isfinite(trainer.epoch().train_loss)

    def test_the_loss_is_the_mean_over_images_not_batches(self) -> None:
        d, spy = data(10), Spy()
        config = replace(QUICK, lr=1e-30, crop_padding=0, flip=False, weight_decay=0.0)
        epoch = Trainer(spy, d, config).epoch()
        x, y = next(Images(d.train, d, CPU).batches(10))
        assert epoch.train_loss == pytest.approx(
            F.cross_entropy(spy(x), y, label_smoothing=config.label_smoothing).item(), rel=1e-5
        )

    def test_an_epoch_reports_its_scores_and_its_speed(self) -> None:
        first, second = train(network(), data(), QUICK)
        assert (first.epoch, second.epoch) == (1, 2)
        for e in (first, second):
            assert 0 <= e.val_top1 <= 100
            assert math.isfinite(e.val_loss)
            assert e.images_per_second == pytest.approx(20 / e.seconds)

    def test_without_a_validation_split_scores_are_nan(self) -> None:
        (epoch,) = train(network(), data(n_val=0), replace(QUICK, epochs=1))
        assert math.isnan(epoch.val_top1)
        assert math.isnan(epoch.val_loss)
        assert math.isfinite(epoch.train_loss)

    def test_only_false_from_on_epoch_stops_the_training(self) -> None:
        answers: Iterator[bool | None] = iter([None, True, False, True])
        told: list[Epoch] = []

        def on_epoch(e: Epoch) -> bool | None:
            told.append(e)
            return next(answers)

        epochs = train(network(), data(), replace(QUICK, epochs=4), on_epoch)
        assert [e.epoch for e in epochs] == [1, 2, 3]
        assert told == epochs

    def test_the_model_is_left_in_eval_mode(self) -> None:
        for n_val in (0, 7):
            model = network()
            train(model, data(n_val=n_val), replace(QUICK, epochs=1))
            assert not model.training

    def test_it_learns_an_easy_data_set(self) -> None:
        d = data(60, 30)
        for part in (d.train, d.val):  # one colour for each class
            part.images[:] = part.images // 4
            for label in range(3):
                part.images[part.labels == label, label] += 128
        epochs = train(network(), d, replace(QUICK, epochs=6))
        assert epochs[-1].val_top1 == 100
        assert epochs[-1].train_loss < epochs[0].train_loss


class TestSchedule:
    @given(
        epochs=st.integers(1, 12),
        n=st.integers(1, 60),
        batch_size=st.integers(1, 20),
        warmup=st.floats(0, 3),
        lr=st.floats(1e-4, 10),
    )
    def test_warms_up_linearly_and_goes_to_zero_as_a_cosine(
        self, epochs: int, n: int, batch_size: int, warmup: float, lr: float
    ) -> None:
        config = replace(QUICK, epochs=epochs, batch_size=batch_size, warmup=warmup, lr=lr)
        trainer = Trainer(nn.Linear(1, 1), data(n, 0), config)
        total, turn = epochs * trainer.steps_per_epoch, warmup * trainer.steps_per_epoch
        rates = [config.lr_at(step, trainer.steps_per_epoch) for step in range(total)]
        assert all(0 < rate <= lr * (1 + 1e-12) for rate in rates)
        up, down = [r for s, r in enumerate(rates) if s < turn], [r for s, r in enumerate(rates) if s >= turn]
        assert up == sorted(up)
        assert down == sorted(down, reverse=True)
        steps = np.diff(up)
        assert np.allclose(steps, lr / (turn + 1), rtol=1e-6)
        for step, rate in enumerate(rates):
            if step >= turn:
                assert rate == pytest.approx(lr * math.cos(math.pi / 2 * (step - turn) / (total - turn)) ** 2)
        if turn < total:
            assert config.lr_at(total, trainer.steps_per_epoch) == pytest.approx(0, abs=1e-12 * lr)

    def test_the_optimizer_gets_it(self) -> None:
        trainer = Trainer(network(), data(), QUICK)
        rates = []
        step = trainer.optimizer.step
        trainer.optimizer.step = lambda: (rates.append(trainer.optimizer.param_groups[0]["lr"]), step())
        trainer.epoch()
        trainer.epoch()
        assert rates == [QUICK.lr_at(i, trainer.steps_per_epoch) for i in range(2 * trainer.steps_per_epoch)]

    @pytest.mark.parametrize(
        ("schedule", "rate"),
        [
            ("linear", lambda p: 1 - p),
            ("rex", lambda p: (1 - p) / (0.5 + 0.5 * (1 - p))),
            ("constant", lambda p: 1.0),
        ],
    )
    def test_falls_after_the_warm_up(self, schedule: str, rate: Callable[[float], float]) -> None:
        config = replace(QUICK, epochs=4, schedule=schedule, warmup=0.5, lr=2.0)
        rates = [config.lr_at(step, 8) for step in range(32)]
        assert rates[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
        assert rates[4:] == pytest.approx([2 * rate(i / 28) for i in range(28)])
        assert min(rates) > 0

    def test_steps_down_at_the_milestones(self) -> None:
        config = replace(QUICK, epochs=4, schedule="step", milestones=(1, 2.5), warmup=0.5, lr=1.0)
        rates = [config.lr_at(step, 4) for step in range(16)]
        assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
        assert rates[2:] == pytest.approx([1.0] * 2 + [0.1] * 6 + [0.01] * 6)

    def test_norms_and_biases_are_decayed_only_with_decay_norms(self) -> None:
        for decay_norms in (True, False):
            trainer = Trainer(network(), data(), replace(QUICK, decay_norms=decay_norms, weight_decay=0.01))
            decays = {id(w): g["weight_decay"] for g in trainer.optimizer.param_groups for w in g["params"]}
            for weight in trainer.model.parameters():
                assert decays[id(weight)] == (0.01 if decay_norms or weight.ndim > 1 else 0)

    def test_averaged_weights_are_scored(self) -> None:
        trainer = Trainer(network(), data(), replace(QUICK, ema=0.9))
        score = trainer.epoch()
        assert trainer.scored is not trainer.model
        assert evaluate(trainer.scored, trainer.val_images, trainer.bf16).loss == score.val_loss
        assert evaluate(trainer.model, trainer.val_images, trainer.bf16).loss != score.val_loss

    def test_one_step_is_sgd_with_nesterov_momentum(self) -> None:
        d, config = data(8), replace(QUICK, epochs=1, crop_padding=0, flip=False, warmup=0.0)
        model, twin = network(), network()
        order = torch.randperm(8, generator=torch.Generator().manual_seed(config.seed))
        x, y = Images(d.train, d, CPU).batch(order, torch.zeros(2, 8, dtype=torch.int64), None)
        loss = F.cross_entropy(twin.train()(x), y, label_smoothing=config.label_smoothing)
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        Trainer(model, d, config).epoch()
        for p, before, g in zip(model.parameters(), twin.parameters(), grads, strict=True):
            g = g + config.weight_decay * before
            expected = before - config.lr * (g + config.momentum * g)
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)

    def test_the_first_step_of_adamw_moves_each_weight_by_the_rate(self) -> None:
        config = replace(QUICK, epochs=1, crop_padding=0, flip=False, warmup=0.0, optimizer="adamw", lr=0.003)
        model, twin = network(), network()
        Trainer(model, data(8), config).epoch()
        for p, before in zip(model.parameters(), twin.parameters(), strict=True):
            step = p.detach() - before.detach() * (
                1 - config.lr * config.weight_decay
            )  # the decay is not part of the step
            assert (step.abs() <= config.lr * 1.01).all()
            assert step.abs().median() == pytest.approx(config.lr, rel=0.01)


class TestDeterminism:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_the_seed_decides_every_bit(self, precision: str) -> None:
        results = []
        for seed in (3, 3, 4):
            model = network()
            epochs = train(model, data(), replace(QUICK, seed=seed, precision=precision))
            results.append((weights(model), [e.train_loss for e in epochs], [e.val_loss for e in epochs]))
        assert same(results[0][0], results[1][0])
        assert results[0][1:] == results[1][1:]
        assert not same(results[0][0], results[2][0])

    def test_the_global_random_state_is_unchanged(self) -> None:
        state = torch.get_rng_state()
        model = network()
        torch.set_rng_state(state)
        train(model, data(), QUICK)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("stop", [1, 2])
    def test_a_resumed_training_is_the_same_to_the_bit(self, stop: int) -> None:
        config = replace(QUICK, epochs=3)
        whole = Trainer(network(), data(), config)
        expected = [whole.epoch() for _ in range(3)]
        first = Trainer(network(), data(), config)
        for _ in range(stop):
            first.epoch()
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = Trainer(network(seed=99), data(), config)
        second.load_state_dict(torch.load(file, weights_only=True))
        got = [second.epoch() for _ in range(3 - stop)]
        assert same(weights(second.model), weights(whole.model))
        for a, b in zip(got, expected[stop:], strict=True):
            assert (a.epoch, a.train_loss, a.val_loss, a.val_top1) == (b.epoch, b.train_loss, b.val_loss, b.val_top1)


class TestSteps:
    """The number of steps is given, and the last epoch may be short."""

    CONFIG = replace(QUICK, epochs=3, steps=7, crop_padding=0, flip=False)  # epochs of 3, 3 and 1 steps

    def test_the_last_epoch_is_short(self) -> None:
        spy = Spy()
        trainer = Trainer(spy, data(), self.CONFIG)
        assert (trainer.steps_per_epoch, trainer.total_steps) == (3, 7)
        seen = []
        while trainer.done_epochs < 3:
            spy.seen.clear()
            e = trainer.epoch()
            seen.append(sum(len(x) for x in spy.seen))
            assert e.images_per_second == pytest.approx(seen[-1] / e.seconds)
            assert math.isfinite(e.val_loss)
        assert seen == [20, 20, 8]
        assert trainer.done_steps == 7

    @pytest.mark.parametrize("schedule", ["cosine", "linear", "rex"])
    def test_the_rate_ends_with_the_steps(self, schedule: str) -> None:
        config = replace(self.CONFIG, schedule=schedule)
        assert config.lr_at(6, 3) > 0
        assert config.lr_at(7, 3) == pytest.approx(0, abs=1e-12)

    def test_steps_of_whole_epochs_change_nothing(self) -> None:
        models = network(), network()
        train(models[0], data(), QUICK)
        train(models[1], data(), replace(QUICK, steps=6))
        assert same(*map(weights, models))

    @pytest.mark.parametrize("steps", [1, 6, 10])
    def test_steps_that_do_not_end_in_the_last_epoch_are_refused(self, steps: int) -> None:
        said = rf"^`recipe`: steps is {steps}; accepted with 3 epochs of 3 steps: 7 to 9, or 0 for full epochs$"
        with pytest.raises(UserError, match=said):
            Trainer(network(), data(), replace(self.CONFIG, steps=steps))


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a function that lets `steps` steps pass, and then says True."""
    calls = itertools.count()
    return lambda: next(calls) >= steps


def stopped(make: Callable[[], Trainer], every: int) -> tuple[Trainer, list[Epoch]]:
    """Train with a stop after every `every` steps. Each time, restore the state into a new trainer."""
    trainer, epochs = make(), []
    while trainer.done_epochs < trainer.config.epochs:
        e = trainer.epoch(stop_after(every))
        if e is not None:
            epochs.append(e)
            continue
        file = io.BytesIO()
        torch.save(trainer.state_dict(), file)
        file.seek(0)
        trainer = make()
        trainer.load_state_dict(torch.load(file, weights_only=True))
    return trainer, epochs


class TestStop:
    CONFIGS = (
        replace(QUICK, epochs=2),
        replace(QUICK, epochs=3, steps=8, ema=0.9, mixup=0.2, cutmix=1.0, schedule="linear"),
        replace(QUICK, hold=0.5, zero_init_last=True),
        replace(QUICK, optimizer="adamw", lr=0.003, decay_norms=False),
    )

    @pytest.mark.parametrize("every", [1, 2])
    @pytest.mark.parametrize("config", CONFIGS)
    def test_a_stopped_training_is_the_same_to_the_bit(self, config: Config, every: int) -> None:
        whole = Trainer(network(), data(), config)
        expected = [whole.epoch() for _ in range(config.epochs)]
        parts, got = stopped(lambda: Trainer(network(), data(), config), every)
        assert same(weights(parts.scored), weights(whole.scored))
        assert same(weights(parts.model), weights(whole.model))
        for a, b in zip(got, expected, strict=True):
            assert (a.epoch, a.train_loss, a.val_loss, a.val_top1) == (b.epoch, b.train_loss, b.val_loss, b.val_top1)

    def test_the_same_trainer_can_go_on(self) -> None:
        whole, parts = Trainer(network(), data(), QUICK), Trainer(network(), data(), QUICK)
        assert parts.epoch(stop_after(2)) is None
        assert (parts.done_epochs, parts.done_steps) == (0, 2)
        assert parts.epoch().train_loss == whole.epoch().train_loss
        assert parts.unfinished is None
        assert same(weights(parts.model), weights(whole.model))

    def test_the_seconds_before_a_stop_count(self) -> None:
        trainer = Trainer(network(), data(), QUICK)
        trainer.epoch(stop_after(2))
        before = trainer.unfinished.seconds
        again = Trainer(network(), data(), QUICK)
        again.load_state_dict(trainer.state_dict())
        assert 0 < before < again.epoch().seconds

    def test_a_saved_state_does_not_change_afterwards(self) -> None:
        trainer = Trainer(network(), data(), QUICK)
        trainer.epoch(stop_after(1))
        unfinished = trainer.state_dict()["unfinished"]
        sums = unfinished["sums"].clone()
        trainer.epoch()
        assert torch.equal(unfinished["sums"], sums)

    def test_a_stop_before_the_first_step_trains_nothing(self) -> None:
        trainer, before = Trainer(network(), data(), QUICK), weights(network())
        assert trainer.epoch(lambda: True) is None
        assert same(weights(trainer.model), before)

    def test_the_state_of_an_earlier_version_is_restored(self) -> None:
        first, second = Trainer(network(), data(), QUICK), Trainer(network(1), data(), QUICK)
        first.epoch()
        state = copy.deepcopy(first.state_dict())
        del state["unfinished"]
        second.load_state_dict(state)
        assert second.epoch().train_loss == first.epoch().train_loss

    def test_the_state_of_another_kind_of_device_is_refused(self) -> None:
        trainer = Trainer(network(), data(), QUICK)
        before = weights(trainer.model)
        state = Trainer(network(1), data(), QUICK).state_dict() | {"rng": torch.zeros(16, dtype=torch.uint8)}
        with pytest.raises(UserError, match=r"^`device`: cpu; the checkpoint was written on another kind of device"):
            trainer.load_state_dict(state)
        assert same(weights(trainer.model), before)


class TestFailures:
    def test_a_loss_that_is_not_finite_ends_the_training(self) -> None:
        with pytest.raises(TrainingFailed, match=r"^training loss is nan in epoch 1 of 2$"):
            train(network(), data(), replace(QUICK, lr=1e30))

    def test_a_validation_loss_that_is_not_finite_ends_the_training(self) -> None:
        class Explodes(Spy):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * (1 if self.training else math.nan)

        with pytest.raises(TrainingFailed, match=r"^validation loss is nan in epoch 1 of 2$"):
            train(Explodes(), data(), QUICK)

    def test_final_weights_that_are_not_finite_end_it_even_if_all_losses_are(self) -> None:
        model, epochs = network(), []
        variance = next(b for n, b in model.named_buffers() if n.endswith("running_var"))
        variance.fill_(math.inf)  # it stays infinite, and the batch norm puts out zeros in eval mode
        with pytest.raises(TrainingFailed, match=r"^weight '.*running_var' is not finite after epoch 2$"):
            train(model, data(), QUICK, epochs.append)
        assert [e.epoch for e in epochs] == [1]
        assert math.isfinite(epochs[0].val_loss)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("epochs", 0),
            ("batch_size", 0),
            ("lr", 0.0),
            ("lr", -1.0),
            ("lr", math.nan),
            ("lr", math.inf),
            ("weight_decay", -1e-4),
            ("weight_decay", math.nan),
            ("warmup", -1.0),
            ("crop_padding", -1),
            ("momentum", 1.0),
            ("label_smoothing", 1.0),
            ("label_smoothing", -0.1),
            ("steps", -1),
            ("hold", -0.1),
            ("hold", math.nan),
            ("crop_from", -1),
        ],
    )
    def test_a_wrong_value_is_refused_with_the_field_s_name(self, field: str, value: float) -> None:
        with pytest.raises(UserError, match=rf"^`{field}`: {value}; accepted: "):
            Config(**{field: value})

    def test_an_unknown_precision_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"did you mean 'bf16'\? accepted: auto, fp32, bf16"):
            Config(precision="fp16")

    @pytest.mark.parametrize("name", ["tpu", "meta", "", "cuda:x", "cpu cuda"])
    def test_an_unknown_device_is_refused(self, name: str) -> None:
        with pytest.raises(UserError, match=r"^`device`: unknown value .* accepted: auto, cpu, cuda, cuda:N, mps$"):
            device_of(name)

    def test_a_missing_device_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"^`device`: 'cuda:99' is not there; this machine has \d+ CUDA devices$"):
            device_of("cuda:99")


class TestMps:
    """The rules for Apple's GPUs, which no test machine has."""

    MPS = torch.device("mps")

    @pytest.mark.parametrize(("cuda", "mps", "expected"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
    def test_auto_prefers_cuda_then_mps(
        self, cuda: int, mps: int, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
        assert device_of("auto").type == expected

    def test_is_refused_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(UserError, match=r"^`device`: 'mps' is not there; accepted: "):
            device_of("mps")

    def test_computes_in_fp32_and_refuses_bf16(self) -> None:
        assert not uses_bf16("auto", self.MPS)
        assert not uses_bf16("fp32", self.MPS)
        with pytest.raises(UserError, match=r"^`precision`: bf16 on an mps device; accepted: auto, fp32$"):
            uses_bf16("bf16", self.MPS)

    def test_sums_are_of_a_type_that_it_has(self) -> None:
        assert (sum_dtype(self.MPS), sum_dtype(CPU)) == (torch.float32, torch.float64)


class TestPrecision:
    def test_an_explicit_precision_is_used(self) -> None:
        assert uses_bf16("bf16", CPU)
        assert not uses_bf16("fp32", CPU)

    @pytest.mark.parametrize("has", [False, True])
    def test_auto_asks_the_hardware(self, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
        assert uses_bf16("auto", CPU) is has

    def test_bf16_is_near_fp32(self) -> None:
        losses = [train(network(), data(), replace(QUICK, precision=p))[0].train_loss for p in ("fp32", "bf16")]
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], rel=0.03)

    def test_weights_stay_fp32(self) -> None:
        model = network()
        train(model, data(), replace(QUICK, precision="bf16"))
        assert {v.dtype for v in model.state_dict().values() if v.is_floating_point()} == {torch.float32}

    @pytest.mark.parametrize(("channels", "groups", "stride"), [(8, 2, 1), (8, 8, 2), (32, 4, 1), (64, 4, 1)])
    def test_groups_computed_as_one_are_the_groups(self, channels: int, groups: int, stride: int) -> None:
        torch.manual_seed(0)
        conv = conv3x3(channels, channels, stride, groups)
        x = torch.randn(2, channels, 6, 6).to(memory_format=torch.channels_last)
        exact = F.conv2d(x, conv.weight, None, stride, 1, 1, groups)
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0.02)
        weight = torch.randn_like(exact)
        gradients = [torch.autograd.grad((v.float() * weight).sum(), conv.weight)[0] for v in (y, exact)]
        torch.testing.assert_close(*gradients, rtol=0.03, atol=0.1)


class TestEvaluate:
    def test_is_the_mean_of_images_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trainers.tasks.classification.EVAL_BATCH", 4)
        d, model = data(n_val=11), network()
        images = Images(d.val, d, CPU)
        loss, top1, top5 = evaluate(model.train(), images)
        assert not model.training
        losses, right, among = [], 0, 0
        with torch.no_grad():
            for x, y in images.batches(1):
                logits = model(x)[0]
                losses.append(-math.log(logits.double().softmax(0)[y[0]]))
                right += int(logits.argmax() == y[0])
                among += int((logits > logits[y[0]]).sum() < 5)
        assert loss == pytest.approx(sum(losses) / 11, rel=1e-5)
        assert top1 == pytest.approx(100 * right / 11)
        assert top5 == pytest.approx(100 * among / 11)

    def test_changes_nothing(self) -> None:
        d, model = data(), network()
        before = weights(model)
        evaluate(model, Images(d.val, d, CPU))
        assert same(before, weights(model))
        assert all(p.grad is None for p in model.parameters())

    def test_without_images_scores_are_nan(self) -> None:
        d = data(n_val=0)
        assert all(math.isnan(v) for v in evaluate(network(), Images(d.val, d, CPU)))


class TestWaiting:
    """The host reads from the device once an epoch. On CUDA each of these methods waits for all queued work."""

    WAITS = ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "numpy", "cpu", "nonzero")

    @pytest.fixture
    def waits(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen: list[str] = []
        for name in self.WAITS:
            original = getattr(Tensor, name)

            def counted(*args: object, _name: str = name, _original: object = original, **kwargs: object) -> object:
                seen.append(_name)
                return _original(*args, **kwargs)  # type: ignore[operator]

            monkeypatch.setattr(Tensor, name, counted)
        return seen

    @pytest.mark.parametrize(
        "changes",
        [
            {"precision": "fp32"},
            {"precision": "bf16"},
            {"mixup": 0.2, "cutmix": 1.0, "ema": 0.99, "decay_norms": False},
            {"optimizer": "adamw", "lr": 0.003},
        ],
    )
    def test_once_an_epoch_of_training(self, waits: list[str], changes: dict[str, Any]) -> None:
        trainer = Trainer(network(), data(n_val=0), replace(QUICK, **changes))
        waits.clear()
        trainer.epoch()
        assert trainer.steps_per_epoch > 1
        assert waits == ["tolist"]

    def test_once_to_score(self, waits: list[str]) -> None:
        d = data(n_val=30)
        images, model = Images(d.val, d, CPU), network()
        waits.clear()
        evaluate(model, images)
        assert waits == ["tolist"]
