"""Mixup and CutMix: images and targets are blended with the same share."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.mixing import mixed
from trainers.recipes import Config

CLASSES = 4


def batch(n: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of uniform images, each of its own value, so that a pixel shows its image."""
    x = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 3, size, size)
    return x.contiguous(memory_format=torch.channels_last), torch.arange(n) % CLASSES


def test_without_mixing_the_batch_is_unchanged() -> None:
    x, y = batch(6)
    a, b = mixed(x, y, CLASSES, Config(), 0)
    assert a is x
    assert b is y


@given(n=st.integers(1, 7), step=st.integers(0, 500), alpha=st.sampled_from([0.1, 1.0, 5.0]))
def test_mixup_blends_images_and_targets_alike(n: int, step: int, alpha: float) -> None:
    x, y = batch(n)
    a, target = mixed(x, y, CLASSES, Config(mixup=alpha), step)
    one_hot = torch.eye(CLASSES)[y]
    # The target of an image with a partner of another class shows the share. The pixels must have the same one.
    for i in range(n):
        j = n - 1 - i
        if y[i] != y[j]:
            share = target[i, y[i]]
            assert torch.allclose(a[i], share * x[i] + (1 - share) * x[j], atol=1e-4)
            assert torch.allclose(target[i], share * one_hot[i] + (1 - share) * one_hot[j], atol=1e-6)
    assert torch.allclose(target.sum(1), torch.ones(n))


@given(n=st.integers(2, 7), step=st.integers(0, 500), size=st.sampled_from([4, 8, 13]))
def test_cutmix_pastes_a_rectangle_and_the_targets_have_its_share(n: int, step: int, size: int) -> None:
    x, y = batch(n, size)
    a, target = mixed(x, y, CLASSES, Config(cutmix=1.0), step)
    for i in range(n):
        j = n - 1 - i
        own = (a[i, 0] == x[i, 0]) if i != j else torch.ones(size, size, dtype=torch.bool)
        assert ((a[i] == x[i]) | (a[i] == x[j])).all()
        if y[i] != y[j]:
            assert own.float().mean().item() == pytest.approx(target[i, y[i]].item(), abs=1e-5)
            rows, columns = (~own).any(1), (~own).any(0)
            assert (~own).sum() == rows.sum() * columns.sum()  # a rectangle


def test_both_take_turns() -> None:
    x, y = batch(6)
    config = Config(mixup=0.5, cutmix=0.5)
    seen = [mixed(x, y, CLASSES, config, step)[0] for step in range(60)]
    pasted = [bool(torch.isin(a, x).all()) for a in seen]
    assert 15 < sum(pasted) < 45


def test_the_seed_and_the_step_decide() -> None:
    x, y = batch(6)
    config = Config(mixup=0.5, cutmix=0.5)
    a, b = (mixed(x, y, CLASSES, config, 3) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert not torch.equal(mixed(x, y, CLASSES, config, 4)[1], a[1])
    assert not torch.equal(mixed(x, y, CLASSES, replace(config, seed=1), 3)[1], a[1])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    mixed(x, y, CLASSES, config, 5)
    assert torch.equal(torch.get_rng_state(), before)
