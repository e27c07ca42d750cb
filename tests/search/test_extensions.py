"""Extensions by import path: an evaluator and a sampler, each one file of the user's own and a name in the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.samplers import BaseSampler, RandomSampler

from res2net.cost import cost
from res2net.errors import UserError
from search import Result, load, search
from search.ledger import Ledger
from search.settings import Settings
from search.study.storage import read
from search.study.trials import INFEASIBLE, REPEATED, SCORED, Record
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

EVALUATOR = """
from res2net.cost import cost
from search import Evaluator
from search.worker import Report

def score(job, data):
    yield Report(job.config.epochs, quality=100 - 1e7 / cost(job.arch, 32).macs, val_loss=1.0)

class ByFormula(Evaluator):
    defaults = {"epochs": 1, "trials": 7}

    def prepare(self, space, data, folder, console, ends):
        return score

NUMBER = 7
"""
SAMPLER = """
from optuna.samplers import RandomSampler

class Largest(RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        drawn = super().sample_independent(study, trial, name, distribution)
        return max(distribution.choices) if name == "scale" else drawn

def largest(seed):
    return Largest(seed=seed)

NUMBER = 7
"""


class TestEvaluator:
    def test_it_scores_every_network_and_brings_its_defaults(
        self, write_module: Callable[[str], str], loaded: Data, tiny_space: Path, tmp_path: Path
    ) -> None:
        settings = Settings(
            space=str(tiny_space), executor="local", workers=1, evaluator=f"{write_module(EVALUATOR)}:ByFormula"
        )
        assert (settings.scoring.epochs, settings.budget.trials) == (1, 7)
        result = search(settings, tmp_path / "run")
        scored = [r for r in read(tmp_path / "run") if r.outcome == SCORED]
        assert len(scored) == 7
        for record in scored:
            assert record.quality == pytest.approx(100 - 1e7 / cost(record.arch, 32).macs)
        assert len(result.front) > 1
        again = load(tmp_path / "run")
        assert again.settings == settings
        assert list(again.front.key) == list(result.front.key)

    def test_a_resume_compares_it(
        self, write_module: Callable[[str], str], loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        settings = make_settings(evaluator=f"{write_module(EVALUATOR)}:ByFormula", trials=1)
        search(settings, tmp_path / "run")
        with pytest.raises(UserError, match=r"`evaluator` own_\w+:ByFormula, not scratch"):
            search(settings.replace(evaluator="scratch"), tmp_path / "run")

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("scrach", "unknown value 'scrach'; did you mean 'scratch'"),
            ("no_such_module:ByFormula", "does not import"),
            ("{module}:ByFormulas", "has no 'ByFormulas'"),
            ("{module}:NUMBER", "is no evaluator; accepted: a subclass of search.evaluators.Evaluator"),
            ("{module}:score", "is no evaluator; accepted: a subclass of search.evaluators.Evaluator"),
        ],
    )
    def test_a_wrong_path_is_one_line(self, write_module: Callable[[str], str], path: str, said: str) -> None:
        with pytest.raises(UserError, match=r"^`evaluator`: ") as error:
            Settings(evaluator=path.format(module=write_module(EVALUATOR)))
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def sampled(folder: Path) -> list[Record]:
    """Return the trials that the sampler proposed, before it had nothing new: the next ones are enqueued."""
    records = [r for r in read(folder) if r.outcome in (SCORED, REPEATED, INFEASIBLE)]
    return records[: next((i for i, r in enumerate(records) if r.outcome == REPEATED), len(records))]


class TestSampler:
    def test_a_path_names_a_function_of_a_seed(
        self, write_module: Callable[[str], str], run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        driver = run_driver(make_settings(sampler=f"{write_module(SAMPLER)}:largest", trials=12, epochs=1))
        assert driver.ledger.spent == 12  # networks that it never proposes are found without it
        first = sampled(tmp_path)
        assert first
        assert {r.params["scale"] for r in first} == {4}

    @pytest.mark.slow
    def test_a_factory_may_be_passed_to_a_search(
        self, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        seeds = list[int]()

        def factory(seed: int) -> BaseSampler:
            seeds.append(seed)
            return RandomSampler(seed=seed)

        def run(trials: int, folder: Path) -> Result:
            settings = make_settings(trials=trials, epochs=1)
            return search(settings, folder, work=Synthetic(), sampler=factory)

        whole = run(6, tmp_path / "whole")
        assert len(seeds) == len(set(seeds)) == len(whole.trials)  # made anew for each proposal
        run(3, tmp_path / "parts")
        parts = run(6, tmp_path / "parts")
        assert list(parts.trials.key) == list(whole.trials.key)
        named = search(make_settings(trials=6, epochs=1, sampler="random"), tmp_path / "named", work=Synthetic())
        assert list(named.trials.key) == list(whole.trials.key)
        assert isinstance(parts.ledger, Ledger)

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("tpee", "unknown value 'tpee'; did you mean 'tpe'"),
            ("no_such_module:largest", "does not import"),
            ("{module}:larger", "has no 'larger'"),
            ("{module}:NUMBER", "is a int; accepted: a function seed -> sampler"),
        ],
    )
    def test_a_wrong_path_is_one_line(self, write_module: Callable[[str], str], path: str, said: str) -> None:
        with pytest.raises(UserError, match=r"^`sampler`: ") as error:
            Settings(sampler=path.format(module=write_module(SAMPLER)))
        assert said in str(error.value)
        assert "\n" not in str(error.value)
