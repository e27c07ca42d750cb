"""Objectives: their measures and ranges, limits on them, and a search by an objective of the user's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd
import pytest

import space as spaces
from res2net.cost import cost
from res2net.errors import UserError
from res2net.named import named
from search import Result, load, search
from search.api import plan_of
from search.export import choose
from search.export import main as export
from search.front import front
from search.objectives import (
    ACCURACY,
    ACTIVATIONS,
    COSTS,
    MACS,
    PARAMS,
    Limit,
    Limits,
    Objective,
    cost_objective,
    limits,
)
from search.settings import Settings
from search.units import parse_count
from studies.synthetic import Synthetic
from trainers.datasets.data import Data
from trainers.tasks.metrics import METRICS

ARCH = named("res2net50_26w_4s")
# Counts the 3x3 convolutions of the splits and both 1x1 convolutions of each block.
CONVOLUTIONS = """
from search import Objective

def count(arch, image_size):
    return sum(stage.depth * (2 + max(1, stage.scale - 1)) for stage in arch.stages)

CONVS = Objective("convs", "convolutions", "convolutions", log=False, measure=count)
ACCURACY = Objective("accuracy", "accuracy", "%", "maximize")
NUMBER = 7
"""


class TestValues:
    @pytest.mark.parametrize("name", COSTS)
    @pytest.mark.parametrize("image_size", [32, 64])
    def test_costs_are_those_of_the_network(self, name: str, image_size: int) -> None:
        assert COSTS[name].of(ARCH, image_size) == getattr(cost(ARCH, image_size), name)
        assert cost_objective(name) is COSTS[name]

    def test_only_accuracy_is_maximized_and_only_it_needs_training(self) -> None:
        assert (ACCURACY.name, ACCURACY.direction, ACCURACY.measure) == ("val_top1", "maximize", None)
        assert {(o.direction, o.measure is None) for o in COSTS.values()} == {("minimize", False)}

    @pytest.mark.parametrize("log", [True, False])
    def test_the_axis_is_logarithmic_or_not(self, log: bool) -> None:
        objective = Objective("x", "x", "x", log=log)
        step = objective.axis(100) - objective.axis(10)
        assert (objective.axis(1000) - objective.axis(100) == pytest.approx(step)) is log

    def test_values_are_written_as_people_read_them(self) -> None:
        assert (MACS.format(4_160_000_000), ACCURACY.format(81.236)) == ("4.16G", "81.24")

    @pytest.mark.parametrize("name", COSTS)
    def test_ranges_are_exact(self, name: str) -> None:
        space = spaces.get("scale_card_depth", "micro")
        values = [getattr(cost(space.arch(p), space.image_size), name) for p in space.all_params()]
        assert COSTS[name].range(space) == (min(values), max(values))

    def test_the_range_of_another_objective_holds_a_sample(self) -> None:
        """The extremes of MACs are part of the sample."""
        space = spaces.get("scale_card_depth", "micro")
        depth = Objective("depth", "blocks", "", measure=lambda arch, size: sum(s.depth for s in arch.stages))
        blocks = [sum(s.depth for s in space.arch(p).stages) for p in space.all_params()]
        assert depth.range(space) == (min(blocks), max(blocks))
        assert depth.range(space) == depth.range(space)


class TestLimits:
    def test_violations_are_shares_above_zero(self) -> None:
        assert Limit(MACS, least=50, most=100).violations(150) == [0.5, -2.0]
        assert Limit(MACS, least=50, most=100).violations(25) == [-0.75, 0.5]
        assert Limit(PARAMS, most=10).violations(20) == [1.0]
        assert Limit(PARAMS).violations(20) == []

    def test_all_limits_are_held_against_a_network(self) -> None:
        macs, params, _ = cost(ARCH, 224)
        found = limits(
            {"max_macs": macs / 1.5, "min_macs": macs / 3, "max_params": params * 2, "max_activations": None}
        )
        assert found.violations(ARCH, 224) == pytest.approx([0.5, 1 - 3, -0.5])
        assert found.violations(ARCH, 112)[0] < 0  # MACs fall with the image
        assert [(name, objective) for name, _, objective in found.bounds] == [
            ("max_macs", MACS),
            ("min_macs", MACS),
            ("max_params", PARAMS),
        ]
        assert found.of(MACS) == Limit(MACS, macs / 3, macs / 1.5)
        assert found.of(ACTIVATIONS) == Limit(ACTIVATIONS)

    def test_no_limits_allow_everything(self, make_settings: Callable[..., Settings]) -> None:
        settings = make_settings()
        settings.scope.limits.check(settings.scope.get_space(10))
        assert settings.scope.limits == limits({}) == limits({"max_macs": None}) == Limits()
        assert (Limits().violations(ARCH, 224), Limits().allow(ARCH, 224)) == ([], True)

    @pytest.mark.parametrize(
        ("least", "most", "allowed"), [(0, 0, True), (0, 1, True), (-1, 0, True), (0, -1, False), (1, 2, False)]
    )
    def test_a_limit_itself_is_allowed(self, least: int, most: int, allowed: bool) -> None:
        macs = cost(ARCH, 224).macs
        assert Limits((Limit(MACS, macs + least, macs + most),)).allow(ARCH, 224) is allowed

    @pytest.mark.parametrize("name", ["max_macs", "max_params", "max_activations", "min_macs"])
    def test_an_impossible_limit_is_refused_with_one_that_is_possible(
        self, make_settings: Callable[..., Settings], name: str
    ) -> None:
        objective = COSTS[name[4:]]
        space = make_settings().scope.get_space(10)
        least, most = objective.range(space)
        settings = make_settings(**{name: most + 1 if name == "min_macs" else least - 1})
        with pytest.raises(UserError, match=rf"^`{name}`: nothing in space 'tiny' \(micro\)") as error:
            settings.scope.limits.check(space)
        named = re.search(r"accepted: at (?:least|most) (\S+), its (?:cheapest|dearest)$", str(error.value))
        assert named is not None, error.value
        make_settings(**{name: parse_count(named[1], name)}).scope.limits.check(space)  # the value it names is accepted
        make_settings(**{name: most if name == "min_macs" else least}).scope.limits.check(space)


class TestAnObjectiveOfTheUsers:
    @pytest.fixture
    def module(self, write_module: Callable[[str], str]) -> str:
        return write_module(CONVOLUTIONS)

    def test_a_search_finds_the_front_by_it(
        self, module: str, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        settings = make_settings(objective=f"{module}:CONVS", trials=12, epochs=1)
        result = search(settings, tmp_path / "run", work=Synthetic(weights=True))
        trials = pd.read_csv(tmp_path / "run" / "trials.csv")
        scored = trials[trials.outcome == "scored"].reset_index()
        assert len(scored) == 12
        assert scored.convs.nunique() > 3
        assert (scored.convs > 1).all()
        assert scored.macs.notna().all()
        expected = scored.loc[front(scored.val_top1, scored.convs), "key"]
        assert list(result.front.key) == list(expected) == list(pd.read_csv(tmp_path / "run" / "pareto.csv").key)
        assert result.hypervolume > 0
        assert (tmp_path / "run" / "best").is_dir()
        again = load(tmp_path / "run")
        assert list(again.front.key) == list(expected)
        assert again.hypervolume == pytest.approx(result.hypervolume)

    @pytest.mark.parametrize("kind", ["int64", "float32"])
    def test_a_measure_may_return_a_number_of_numpy(
        self,
        write_module: Callable[[str], str],
        loaded: Data,
        make_settings: Callable[..., Settings],
        tmp_path: Path,
        kind: str,
    ) -> None:
        measure = f"lambda arch, size: numpy.{kind}(arch.stages[0].depth)"
        text = f"import numpy\nfrom search import Objective\nMINE = Objective('mine', 'm', 'm', measure={measure})"
        settings = make_settings(objective=f"macs,params,{write_module(text)}:MINE", trials=1, epochs=1)
        result = search(settings, tmp_path / "run", work=Synthetic())
        assert list(result.front.mine) == [result.ledger.front[0].arch.stages[0].depth]

    @pytest.mark.parametrize(
        ("measure", "said"),
        [
            ("lambda arch, size: 'many'", "fails (ValueError: could not convert string to float: 'many'); accepted: a"),
            ("lambda arch, size: 1 / 0", "fails (ZeroDivisionError: division by zero); accepted: a number"),
            (
                "lambda arch, size: float('nan')",
                "is nan; accepted: a finite number above 0, as its axis is logarithmic",
            ),
            ("lambda arch, size: 0", "is 0; accepted: a finite number above 0, as its axis is logarithmic"),
            ("lambda arch, size, seen=[]: seen.append(1) or len(seen)", "is 1, then 2; accepted: one value a network"),
        ],
    )
    def test_a_measure_that_is_no_measure_is_refused_before_anything_is_written(
        self,
        write_module: Callable[[str], str],
        loaded: Data,
        make_settings: Callable[..., Settings],
        tmp_path: Path,
        measure: str,
        said: str,
    ) -> None:
        module = write_module(f"from search import Objective\nBAD = Objective('bad', 'bad', 'bad', measure={measure})")
        with pytest.raises(UserError, match=r"^`objective`: bad of ") as error:
            search(make_settings(objective=f"{module}:BAD"), tmp_path / "run", work=Synthetic(weights=True))
        assert said in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_a_value_of_0_is_searched_by_trials_but_not_planned(
        self, write_module: Callable[[str], str], loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        measure = "lambda arch, size: sum(stage.depth - 1 for stage in arch.stages)"
        text = f"from search import Objective\nMORE = Objective('more', 'more', 'more', log=False, measure={measure})"
        settings = make_settings(objective=f"{write_module(text)}:MORE", trials=12, epochs=1)
        result = search(settings, tmp_path / "run", work=Synthetic(weights=True))
        assert result.front["more"].iloc[0] == 0
        planned = Settings(**{**settings.values(), "evaluator": None, "epochs": None, "trials": None, "time": 60.0})
        with pytest.raises(UserError, match=r"^`objective`: more of some networks is 0, .*; accepted: values above 0"):
            plan_of(planned, tmp_path / "planned")

    @pytest.mark.slow
    def test_a_resume_compares_it(
        self, module: str, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        settings = make_settings(objective=f"{module}:CONVS", trials=2, epochs=1)
        search(settings, tmp_path / "run", work=Synthetic(weights=True))
        with pytest.raises(UserError, match=f"`objective` {module}:CONVS, not macs"):
            search(settings.replace(objective="macs"), tmp_path / "run", work=Synthetic(weights=True))
        resumed = search(settings.replace(trials=4), tmp_path / "run", work=Synthetic(weights=True))
        assert resumed.ledger.spent == 4

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("maccs", "unknown value 'maccs'; did you mean 'macs'"),
            ("no_such_module:CONVS", "module 'no_such_module' does not import"),
            ("{module}:CONV", "has no 'CONV'"),
            ("{module}:NUMBER", "is a int; accepted: an Objective with a measure"),
            ("{module}:ACCURACY", "is a Objective; accepted: an Objective with a measure"),
        ],
    )
    def test_a_wrong_path_is_one_line(self, module: str, path: str, said: str) -> None:
        with pytest.raises(UserError, match=r"^`objective`: ") as error:
            Settings(objective=path.format(module=module))
        assert said in str(error.value)
        assert "\n" not in str(error.value)


class TestTwoCosts:
    """A search over accuracy and two costs: the front is over three values."""

    @pytest.fixture
    def settings(self, write_module: Callable[[str], str], make_settings: Callable[..., Settings]) -> Settings:
        module = write_module(CONVOLUTIONS)
        return make_settings(objective=f"params,{module}:CONVS", trials=12, epochs=1)

    @pytest.fixture
    def result(self, loaded: Data, settings: Settings, tmp_path: Path) -> Result:
        return search(settings, tmp_path / "run", work=Synthetic(weights=True))

    def test_the_front_is_over_three_values(self, result: Result) -> None:
        scored = result.trials[result.trials.outcome == "scored"].reset_index()
        three, one = front(scored.val_top1, scored.params, scored.convs), front(scored.val_top1, scored.params)
        assert list(result.front.key) == list(scored.loc[three, "key"])
        assert set(one) <= set(three)
        assert 0 < result.hypervolume < 100
        again = load(result.folder)
        assert list(again.front.key) == list(result.front.key)
        assert again.hypervolume == pytest.approx(result.hypervolume)
        (study,) = optuna.get_all_study_summaries(f"sqlite:///{result.folder}/study.db")
        assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]

    def test_the_plots_show_both_projections(self, result: Result) -> None:
        panels = result.plot().axes[:2]
        assert [panel.get_xlabel() for panel in panels] == ["parameters", "convolutions"]
        assert [panel.get_xscale() for panel in panels] == ["log", "linear"]
        page = (result.folder / "pareto.html").read_text()
        assert '"xaxis2"' in page
        assert "convolutions" in page

    def test_an_export_within_two_bounds(self, result: Result, tmp_path: Path) -> None:
        books = result.ledger
        params, convs = books.costs(books.front[len(books.front) // 2])
        within = [r for r in books.front if books.costs(r)[0] <= params and books.costs(r)[1] <= convs]
        assert choose(result.folder, "best", (params, convs)) == max(within, key=lambda r: r.quality or 0)
        under = ["--under", f"{params},{convs}", "--to", str(tmp_path / "exported")]
        assert export([str(result.folder), *under]) == 0
        with pytest.raises(UserError, match=r"^`under`: nothing on the front is within 1,1 \(params, convolutions\)"):
            choose(result.folder, "best", (1, 1))

    def test_one_bound_for_two_costs_is_refused(self, result: Result, capsys: pytest.CaptureFixture[str]) -> None:
        assert export([str(result.folder), "--under", "1M", "--to", "exported"]) == 2
        assert "`under`: '1M' has 1 values; accepted: one for each objective (params,convs)" in (
            capsys.readouterr().err.replace("--under", "`under`")
        )

    @pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
    def test_samplers_and_the_scheduler_take_three_values(
        self, loaded: Data, settings: Settings, tmp_path: Path, sampler: str
    ) -> None:
        settings = settings.replace(sampler=sampler, scheduler="pareto-asha", epochs=4, eta=2)
        result = search(settings, tmp_path / sampler, work=Synthetic(weights=True))
        assert result.ledger.spent == 12
        rung = result.ledger.rungs[1]
        assert {len(values) for values in rung.values()} == {3}
        assert result.ledger.counts["stopped"] > 0

    def test_an_objective_that_is_given_twice_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"^`objective`: macs is given twice; accepted: each objective once"):
            Settings(objective="macs,params,macs")


class TestMetric:
    """Another quality than top-1."""

    @pytest.mark.parametrize("name", ["top5", "balanced"])
    def test_a_search_by_it(
        self, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path, name: str
    ) -> None:
        result = search(make_settings(metric=name, trials=2, epochs=1), tmp_path / "run")
        key = f"val_{name}"
        assert result.trials[key].notna().sum() == 2
        assert "val_top1" not in result.trials
        assert key in pd.read_csv(tmp_path / "run" / "pareto.csv")
        assert METRICS[name].label in result.plot().axes[0].get_ylabel()
        assert METRICS[name].label in (tmp_path / "run" / "best" / "README.md").read_text()
        training = json.loads((tmp_path / "run" / "best" / "training.json").read_text())
        assert training[key] == result.ledger.best[0].quality
        assert list(load(tmp_path / "run").front.key) == list(result.front.key)
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{result.folder}/study.db")
        assert study.metric_names[0] == key

    def test_a_user_s_own_and_a_resume(
        self,
        loaded: Data,
        write_module: Callable[[str], str],
        make_settings: Callable[..., Settings],
        tmp_path: Path,
    ) -> None:
        module = write_module("def mean(logits, labels):\n    return float(labels.float().mean())")
        settings = make_settings(metric=f"{module}:mean", trials=1, epochs=1)
        result = search(settings, tmp_path / "run")
        assert result.trials.val_mean[0] == pytest.approx(loaded.val.labels.mean())
        assert search(settings.replace(trials=2), tmp_path / "run").ledger.spent == 2
        with pytest.raises(UserError, match=r"`metric` .*:mean, not top1"):
            search(settings.replace(metric="top1"), tmp_path / "run")

    def test_scores_by_another_metric_are_not_reused(
        self, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        search(make_settings(trials=1, epochs=1), tmp_path / "first")
        same = search(make_settings(trials=1, epochs=1, from_run=str(tmp_path / "first")), tmp_path / "same")
        other = search(
            make_settings(trials=1, epochs=1, metric="top5", from_run=str(tmp_path / "first")), tmp_path / "other"
        )
        assert [r.ledger.counts["reused"] for r in (same, other)] == [1, 0]
