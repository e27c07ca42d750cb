"""Recipes: the published values, files that change them, and one line for a wrong value."""

import itertools
import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from res2net import UserError
from trainers.recipes import KEYS, RECIPES, RUN_KEYS, Config, differences, recipe


class TestNames:
    def test_the_paper_s_values(self) -> None:
        imagenet, cifar = recipe("paper-imagenet"), recipe("paper-cifar")
        assert (imagenet.lr, imagenet.momentum, imagenet.weight_decay) == (0.1, 0.9, 1e-4)
        assert (imagenet.epochs, imagenet.batch_size, imagenet.crop) == (100, 256, "resized")
        assert (cifar.lr, cifar.momentum, cifar.weight_decay, cifar.nesterov) == (0.1, 0.9, 5e-4, True)
        assert (cifar.epochs, cifar.batch_size, cifar.crop, cifar.crop_padding) == (300, 128, "pad", 4)
        for config in (imagenet, cifar):
            assert (config.warmup, config.label_smoothing, config.mixup, config.cutmix, config.ema) == (0,) * 5

    @pytest.mark.parametrize(
        ("name", "rates"),
        [
            ("paper-imagenet", {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 89: 1e-3, 90: 1e-4, 99: 1e-4}),
            ("paper-cifar", {0: 0.1, 149: 0.1, 150: 0.01, 224: 0.01, 225: 1e-3, 299: 1e-3}),
        ],
    )
    def test_the_paper_s_rates(self, name: str, rates: dict[int, float]) -> None:
        config = recipe(name)
        for epoch, rate in rates.items():
            for step in (7 * epoch, 7 * epoch + 6):
                assert config.lr_at(step, 7) == pytest.approx(rate)

    def test_the_rates_of_deeplab(self) -> None:
        config = recipe("deeplab")
        assert (config.lr, config.momentum, config.nesterov, config.weight_decay) == (0.007, 0.9, False, 4e-5)
        assert (config.batch_size, config.crop, config.label_smoothing) == (16, "scaled", 0)
        steps = config.steps_per_epoch(10_582)
        total = config.total_steps(steps)
        assert total == pytest.approx(30_000, rel=0.01)
        for step in (0, 1, total // 2, total - 1):
            assert config.lr_at(step, steps) == pytest.approx(0.007 * (1 - step / total) ** 0.9)

    def test_the_rates_of_simple_baseline(self) -> None:
        config = recipe("simple-baseline")
        assert (config.optimizer, config.epochs, config.batch_size, config.crop) == ("adamw", 140, 128, "scaled")
        for epoch, rate in ((0, 1e-3), (89, 1e-3), (90, 1e-4), (119, 1e-4), (120, 1e-5), (139, 1e-5)):
            assert config.lr_at(7 * epoch, 7) == pytest.approx(rate)

    def test_fast_is_the_recipe_of_a_search(self) -> None:
        assert recipe("fast", {"epochs": Config().epochs, "warmup": Config().warmup}) == Config()

    @pytest.mark.parametrize("name", RECIPES)
    def test_survive_json(self, name: str) -> None:
        config = recipe(name)
        text = json.dumps({f.name: getattr(config, f.name) for f in fields(config)})
        assert Config(**json.loads(text)) == config

    @given(name=st.sampled_from(list(RECIPES)), factor=st.sampled_from([0.1, 0.5, 2, 3]))
    def test_a_longer_or_shorter_schedule_keeps_its_shape(self, name: str, factor: float) -> None:
        base = recipe(name)
        changed = recipe(name, {"epochs": round(base.epochs * factor)})
        steps = 132  # steps an epoch of the unchanged recipe; the changed one has as many steps in all
        changed_steps = base.epochs * steps // changed.epochs
        for step in range(0, base.epochs * steps, 97):
            assert changed.lr_at(step, changed_steps) == pytest.approx(base.lr_at(step, steps), rel=0.05)

    def test_a_held_rate_falls_only_after_it(self) -> None:
        config = Config(epochs=6, lr=0.4, schedule="linear", warmup=0.5, hold=3)
        rates = [config.lr_at(step, 10) for step in range(60)]
        assert rates[5:30] == [0.4] * 25
        assert rates[30] == 0.4
        assert all(a > b for a, b in itertools.pairwise(rates[30:]))
        assert 0 < rates[-1] < 0.02

    def test_short_trainings_go_without_crops(self) -> None:
        config = recipe("short")
        paddings = {epochs: recipe("short", {"epochs": epochs}).padding for epochs in (1, 6, 15, 16, 30)}
        assert set(paddings.values()) == {0, config.crop_padding}
        assert paddings[6] == 0
        assert paddings[30] == config.crop_padding > 0
        assert recipe("fast").padding == recipe("fast").crop_padding

    def test_the_short_recipe_is_for_short_budgets(self) -> None:
        config = recipe("short", {"epochs": 12})
        assert (config.schedule, config.zero_init_last) == ("linear", True)
        assert config.warmup == pytest.approx(2 * recipe("short").warmup)

    def test_other_epochs_reset_the_number_of_steps(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("epochs: 3\nsteps: 1000\n")
        assert recipe(str(path)).steps == 1000
        assert recipe(str(path), {"epochs": 6}).steps == 0


class TestFiles:
    def write(self, tmp_path: Path, text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    def test_change_a_recipe_and_the_command_line_changes_them(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "recipe: modern\nlr: 0.2\nweight_decay: 1e-4\nflip: false\n")
        config = recipe(path, {"batch_size": 32})
        assert (config.lr, config.weight_decay, config.flip, config.batch_size) == (0.2, 1e-4, False, 32)
        assert config.mixup == recipe("modern").mixup

    def test_without_a_name_start_from_fast(self, tmp_path: Path) -> None:
        assert recipe(self.write(tmp_path, "epochs: 20")) == recipe("fast", {"epochs": 20})

    def test_an_explicit_schedule_is_taken_as_it_is(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "recipe: paper-cifar\nepochs: 10\nmilestones: [4, 8]\nwarmup: 1\n")
        config = recipe(path)
        assert (config.milestones, config.warmup) == ((4, 8), 1)

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("learning_rate: 0.1", ["key", "'learning_rate'", "accepted", "lr"]),
            ("lrr: 0.1", ["did you mean 'lr'"]),
            ("seed: 3", ["key", "'seed'"]),
            ("recipe: moden", ["'recipe'", "'moden'", "did you mean 'modern'"]),
            ("recipe: [fast]", ["'recipe'", "['fast']", "accepted: fast"]),
            ("lr: fast", ["'lr': 'fast'", "a number"]),
            ("lr: -1", ["'lr': -1", "above 0"]),
            ("lr: .nan", ["'lr': nan"]),
            ("epochs: 2.5", ["'epochs': 2.5", "a whole number"]),
            ("epochs: 0", ["'epochs': 0"]),
            ("epochs: true", ["'epochs': True", "a whole number"]),
            ("flip: 1", ["'flip': 1", "true or false"]),
            ("schedule: liner", ["schedule", "did you mean 'linear'", "cosine, step, linear, rex, constant, poly"]),
            ("optimizer: adam", ["optimizer", "did you mean 'adamw'", "sgd, adamw"]),
            ("schedule: step", ["'milestones': none"]),
            ("milestones: 3", ["'milestones': 3", "a list"]),
            ("schedule: step\nmilestones: [5, 4]", ["'milestones': [5.0, 4.0]", "rising"]),
            ("schedule: step\nmilestones: [50]", ["'milestones': [50.0]", "below 10"]),
            ("mixup: -1", ["'mixup': -1"]),
            ("ema: 1", ["'ema': 1"]),
            ("steps: 1.5", ["'steps': 1.5", "a whole number"]),
            ("hold: -1", ["'hold': -1", "at least 0"]),
            ("zero_init_last: 1", ["'zero_init_last': 1", "true or false"]),
            ("- lr", ["holds a list"]),
            ("{", ["not YAML"]),
        ],
    )
    def test_a_mistake_is_one_line(self, tmp_path: Path, text: str, parts: list[str]) -> None:
        path = self.write(tmp_path, text)
        with pytest.raises(UserError) as error:
            recipe(path)
        assert str(error.value).startswith(f"`recipe`: {path}: ")
        assert "\n" not in str(error.value)
        for part in parts:
            assert part in str(error.value)

    def test_an_unknown_name_or_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"`recipe`: unknown value 'moderm'; did you mean 'modern'\?"):
            recipe("moderm")
        with pytest.raises(UserError, match="cannot be read"):
            recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_seed_that_a_generator_refuses_is_one_line(seed: int) -> None:
    with pytest.raises(UserError, match=f"^`seed`: {seed}; accepted: a whole number from 0 to 4294967295$"):
        recipe("fast", {"seed": seed})


def test_each_field_belongs_to_the_recipe_or_to_the_run() -> None:
    assert set(KEYS) | set(RUN_KEYS) == {f.name for f in fields(Config)}


def test_differences_name_all_but_the_device() -> None:
    assert differences(Config(device="cpu"), Config(device="cuda")) == []
    assert differences(Config(), Config(lr=0.2, seed=4)) == ["lr 0.2, not 0.1", "seed 4, not 0"]
