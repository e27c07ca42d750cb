"""`search.describe`: what is known of a space before a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import space as spaces
from res2net.arch import Arch
from search import describe as module
from search.describe import Description, describe, lines, main
from search.objectives import COSTS, MACS, Limits, Objective, limits
from search.settings import Settings
from space import Space

OBJECTIVES = tuple(COSTS.values())


@pytest.fixture
def space(tiny_space: Path) -> Space:
    return spaces.get(str(tiny_space), num_classes=10)


@pytest.fixture
def run(tiny_space: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Return a function that runs the command over the tiny space and returns what it prints."""

    def run_(*options: str, space: str = str(tiny_space)) -> str:
        assert main(["--space", space, *options]) == 0
        return capsys.readouterr().out

    return run_


def members(space: Space, objective: Objective = MACS) -> list[float]:
    return sorted(objective.of(space.arch(p), space.image_size) for p in space.all_params())


class TestDescribe:
    def test_a_small_space_is_counted(self, space: Space) -> None:
        found = describe(space, Limits(), OBJECTIVES)
        assert found.exact
        assert found.distinct == len(found.costs["macs"]) == space.size == 12
        assert sorted(found.costs["macs"]) == members(space)
        for o in OBJECTIVES:
            assert found.ranges[o.name] == (found.costs[o.name].min(), found.costs[o.name].max())

    def test_a_large_space_is_sampled_but_its_ranges_are_exact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "DRAWN", 200)
        large = spaces.get("scale_card_depth_width", "cifar", per_stage=True)
        found = describe(large, Limits(), OBJECTIVES)
        assert not found.exact
        assert len(found.costs["macs"]) == 200
        for o in OBJECTIVES:
            low, high = found.ranges[o.name]
            assert low == getattr(large.cheapest(o.name)[1], o.name)
            assert high == getattr(large.dearest(o.name)[1], o.name)
            assert ((low <= found.costs[o.name]) & (found.costs[o.name] <= high)).all()
        again = describe(large, Limits(), OBJECTIVES)  # the same seed draws the same
        assert (again.costs["macs"] == found.costs["macs"]).all()

    def test_the_share_within_the_limits(self, space: Space) -> None:
        macs = members(space)
        both = limits({"max_macs": macs[8], "min_macs": macs[2]})
        found = describe(space, both, OBJECTIVES)
        assert found.within == pytest.approx({"max_macs": 9 / 12, "min_macs": 10 / 12, "all limits": 7 / 12})

    def test_a_dimension_moves_a_cost_by_the_ratio_of_its_ends(self, space: Space) -> None:
        found = describe(space, Limits(), (MACS,))
        assert set(found.moves) == set(space.parameters)
        factors = {name: row["macs"] for name, row in found.moves.items()}
        assert factors["scale"] > factors["depth"] > 1 > factors["cardinality"]

    def test_a_cost_of_0_has_no_ratio(self, space: Space) -> None:
        layers = Objective(
            "layers", "", "layers", log=False, measure=lambda arch, size: sum(s.depth - 1 for s in arch.stages)
        )
        text = "\n".join(lines(describe(space, Limits(), (layers, MACS))))
        rows = {row.split()[0]: row.split()[1:] for row in text.splitlines() if row.startswith("  ")}
        assert rows["depth"][0] == "-"
        assert float(rows["depth"][1]) > 1

    def test_the_papers_networks_are_found(self) -> None:
        found = describe(spaces.get("scale_card_depth_width", "imagenet"), Limits(), (MACS,))
        assert {"resnet50", "res2net50_26w_4s", "res2next50"} <= set(found.members)
        assert "res2net101_26w_4s" not in found.members  # its depths differ from stage to stage
        assert found.others + len(found.members) == len(module.names())

    def test_members_have_the_costs_of_the_networks(self) -> None:
        space = spaces.get("scale", "imagenet")
        found = describe(space, Limits(), (MACS,))
        assert found.members
        for name, row in found.members.items():
            arch = module.named(name)
            assert isinstance(arch, Arch)
            assert row["macs"] == MACS.of(arch, space.image_size)


class TestReport:
    def test_says_what_the_space_holds(self, run: Callable[..., str]) -> None:
        text = run()
        assert "12 combinations, images of 32 x 32 pixels" in text
        assert "12 distinct networks" in text
        assert "scale        1, 2, 4" in text

    def test_the_bars_add_up(self, run: Callable[..., str]) -> None:
        shares = [float(line.split()[-1].rstrip("%")) for line in run().splitlines() if " to " in line and "%" in line]
        assert len(shares) == module.BINS
        assert sum(shares) == pytest.approx(100, abs=0.6)

    def test_a_limit_that_no_network_meets_names_the_nearest(self, space: Space) -> None:
        low, high = members(space)[0], members(space)[-1]
        text = "\n".join(lines(describe(space, limits({"max_macs": low / 2}), OBJECTIVES)))
        assert f"no network meets it, at least {MACS.format(low)} would do" in text
        text = "\n".join(lines(describe(space, limits({"min_macs": 2 * high}), OBJECTIVES)))
        assert f"no network meets it, at most {MACS.format(high)} would do" in text

    def test_a_single_network(self, space: Space) -> None:
        one = Space(space.name, space.base, space.skeleton, {k: v[:1] for k, v in space.choices.items()})
        text = "\n".join(lines(describe(one, Limits(), OBJECTIVES)))
        assert "1 combinations" in text
        assert "costs grow by" not in text

    def test_a_wrong_space_is_one_line(self, capsys: pytest.CaptureFixture) -> None:
        assert main(["--space", "scales"]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize(
        ("options", "side"),
        [
            (["--data", "example_data:Stripes"], 16),
            (["--data", "example_data:Blocks", "--task", "segment"], 16),
            (["--data", "scenes", "--task", "segment"], 128),
            (["--data", "scenes", "--task", "keypoints"], 64),
            (["--data", "scenes", "--image-size", "96"], 96),
            (["--data", "voc", "--task", "segment"], 513),
            (["--data", "cifar10"], 32),
        ],
    )
    def test_counts_costs_for_the_images_of_the_data(
        self, run: Callable[..., str], tiny_space: Path, options: list[str], side: int
    ) -> None:
        assert f"images of {side} x {side} pixels" in run(*options)

    def test_counts_costs_for_grey_images(self, run: Callable[..., str], tiny_space: Path) -> None:
        text = run("--data", "example_data:Stripes")
        settings = Settings(space=str(tiny_space), data="example_data:Stripes")
        low, high = MACS.range(settings.scope.get_space(2, 16, 1))
        (line,) = (line for line in text.splitlines() if line.startswith("  MACs"))
        assert line.split()[1] == MACS.format(low)
        assert line.split()[3] == MACS.format(high)

    def test_works_without_the_files_of_own_data(
        self, run: Callable[..., str], write_module: Callable[[str], str]
    ) -> None:
        name = write_module(
            "from example_data import Stripes\n\n\n"
            "class Absent(Stripes):\n    def train(self):\n        return open('/no/such/file')\n"
        )
        text = run("--data", f"{name}:Absent")
        assert "whose images cannot be read: [Errno 2] No such file" in text
        assert "images of 32 x 32 pixels" in text

    def test_matched_widths_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--space", "scale_card_depth", "--match-macs", "20M"]) == 2
        assert "--match-macs: widths are solved during a search" in capsys.readouterr().err

    def test_the_help_names_the_evaluators(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "scratch, grow" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.slow
    def test_with_a_time_it_ends_with_the_plan(self, run: Callable[..., str]) -> None:
        assert "plan: " in run("--time", "60s", "--executor", "local", "--workers", "1")


def test_the_report_is_made_from_the_description_alone(space: Space) -> None:
    found = describe(space, Limits(), OBJECTIVES)
    assert isinstance(found, Description)
    assert list(lines(found)) == list(lines(found))
