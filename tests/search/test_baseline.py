"""Relative limits: shares of a baseline's cost, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from res2net.cost import cost
from res2net.errors import UserError
from res2net.named import named
from search import runs, search
from search.api import plan_of
from search.baseline import resolved
from search.describe import main as describe
from search.objectives import MACS, PARAMS
from search.run import main
from search.settings import Settings
from studies.synthetic import Synthetic
from trainers.datasets.data import Data


class TestShares:
    def test_of_the_spaces_dearest_network(self, make_settings: Callable[..., Settings]) -> None:
        settings, space = make_settings(max_macs="60%"), make_settings().scope.get_space(10)
        got, lines = resolved(settings, 10, None)
        assert got.scope.max_macs == int(0.6 * MACS.range(space)[1])
        assert (got.scope.base, got.scope.shares) == (space.base, {})
        assert lines == [
            f"limit `max_macs`: {MACS.format(got.scope.max_macs)} MACs, 60% of the dearest network's of base "
            f"{space.base} {MACS.format(MACS.range(space)[1])}"
        ]

    @pytest.mark.parametrize("name", ["resnet50", "dla60"])
    def test_of_a_named_network_for_the_datas_classes_and_images(
        self, make_settings: Callable[..., Settings], name: str
    ) -> None:
        settings = make_settings(max_macs="0.5%", max_params="2%", baseline=name)
        got, lines = resolved(settings, 10, 32, 3)
        arch = replace(named(name), num_classes=10)
        assert got.scope.max_macs == int(0.005 * cost(arch, 32).macs)
        assert got.scope.max_params == int(0.02 * cost(arch, 32).params)
        assert got.scope.baseline is None
        assert len(lines) == 2
        assert all(name in line for line in lines)

    def test_bounds_round_to_the_inside(self, make_settings: Callable[..., Settings]) -> None:
        got, _ = resolved(make_settings(max_macs="99.999%", min_macs="0.001%"), 10, None)
        most = MACS.range(make_settings().scope.get_space(10))[1]
        assert isinstance(got.scope.max_macs, int)
        assert got.scope.max_macs <= 0.99999 * most
        assert got.scope.min_macs >= 0.00001 * most

    def test_numbers_stay(self, make_settings: Callable[..., Settings]) -> None:
        settings = make_settings(max_macs=300_000)
        assert resolved(settings, 10, None) == (settings, [])
        assert make_settings(max_macs="300K").scope.max_macs == 300_000

    @pytest.mark.parametrize("text", ["0%", "-5%", "%", "x%", "inf%", "nan%"])
    def test_another_text_is_refused(self, make_settings: Callable[..., Settings], text: str) -> None:
        with pytest.raises(UserError, match=r"^`max_macs`: .* is no share; accepted: a number above 0 with a percent"):
            make_settings(max_macs=text)

    def test_a_baseline_without_a_share_is_refused(self, make_settings: Callable[..., Settings]) -> None:
        with pytest.raises(UserError, match=r"^`baseline`: has no effect without a relative limit"):
            resolved(make_settings(max_macs=300_000, baseline="resnet50"), 10, 32)

    def test_an_unknown_baseline_is_refused(self, make_settings: Callable[..., Settings], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"^`baseline`: 'resnet5' is neither a network nor a file; accepted: a"):
            resolved(make_settings(max_macs="60%", baseline="resnet5"), 10, 32)
        (tmp_path / "arch.json").write_text("{")
        with pytest.raises(UserError, match=r"^`baseline`: .*arch.json"):
            resolved(make_settings(max_macs="60%", baseline=str(tmp_path / "arch.json")), 10, 32)


class TestSearch:
    def test_a_search_records_the_number_and_resumes_with_either(
        self, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        settings = make_settings(max_macs="60%", trials=2, epochs=1)
        first = search(settings, tmp_path / "run", work=Synthetic(weights=True))
        known = runs.settings_of(tmp_path / "run").scope
        assert known.max_macs == int(0.6 * MACS.range(first.space)[1])
        assert (first.trials.dropna(subset="val_top1").macs <= known.max_macs).all()
        again = search(settings.replace(trials=4), tmp_path / "run", work=Synthetic(weights=True))
        assert again.ledger.spent == 4
        with pytest.raises(UserError, match=r"`max_macs` \d+, not \d+"):
            search(settings.replace(max_macs="50%"), tmp_path / "run", work=Synthetic(weights=True))

    def test_the_best_network_of_a_run_is_a_baseline(
        self, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        first = search(make_settings(trials=4, epochs=1), tmp_path / "run", work=Synthetic(weights=True))
        best = first.front.iloc[-1]
        got, _ = resolved(make_settings(max_params="100%", baseline=str(tmp_path / "run")), 10, 8)
        assert got.scope.max_params == best.params
        same, _ = resolved(make_settings(max_params="100%", baseline=str(tmp_path / "run" / "best")), 10, 8)
        assert same == got

    def test_a_plan_knows_it(self, loaded: Data, make_settings: Callable[..., Settings]) -> None:
        whole = MACS.range(make_settings().scope.get_space(10))[1]
        table = plan_of(make_settings(max_macs="60%", time=60.0, trials=None, epochs=None))
        assert all(level.cost <= 0.6 * whole for level in table.plan.levels)

    def test_describe_shows_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert describe(["--space", "scale", "--base", "micro", "--max-params", "1%", "--baseline", "resnet50"]) == 0
        out = capsys.readouterr().out
        params = cost(replace(named("resnet50"), num_classes=10), 32).params
        assert f"limit `max_params`: {PARAMS.format(int(0.01 * params))} params, 1% of resnet50's" in out
        assert f"max_params {PARAMS.format(int(0.01 * params))}:" in out

    def test_a_share_that_no_network_meets_names_the_least(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--space", "scale", "--base", "micro", "--max-macs", "0.1%", "--trials", "1"]) == 2
        assert "is within" in capsys.readouterr().err
