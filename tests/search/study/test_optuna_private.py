"""Each private part of Optuna that `search/study/optuna_private.py` uses, and what breaks without it."""

from __future__ import annotations

import inspect

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.study import sampler
from search.study.optuna_private import BoundedStudy
from search.study.sampler import Bounded
from search.study.storage import stable

SPACE = {"scale": CategoricalDistribution((1, 2, 4)), "depth": CategoricalDistribution((1, 2, 3))}
TRIALS = 30


def grown_study(trials: int = TRIALS) -> optuna.Study:
    """Return a study in memory with so many scored trials, and one that runs, for which TPE may propose."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, (trial.params["scale"] + trial.number % 5, trial.params["depth"]))
    study.ask()
    return study


def tpe(seed: int = 0) -> Bounded:
    with stable():
        return sampler.tpe(seed)


def proposals(study: optuna.Study, view: BoundedStudy | None, count: int = 10) -> list[dict[str, int]]:
    """Return proposals of so many seeds for the study's running trial."""
    out = []
    running = study.get_trials(deepcopy=False)[-1]
    for seed in range(count):
        proposer = tpe(seed)
        proposer.view = view
        out.append(proposer.sample_relative(study, running, SPACE))
    return out


def test_get_trials_of_a_study_is_where_tpe_reads_what_it_learns_from() -> None:
    """Without `Study._get_trials`, TPE would read all trials: a proposal would take longer as the study grows."""
    study = grown_study()
    known = study.get_trials(deepcopy=False)
    seen = list[int]()

    class Watched(BoundedStudy):
        def _get_trials(self, *args: object, **kwargs: object) -> list[optuna.trial.FrozenTrial]:
            found = super()._get_trials(*args, **kwargs)
            seen.append(len(found))
            return found

    few, every = known[-12:], known
    assert proposals(study, Watched(study, few, SPACE)) != proposals(study, None)
    assert seen
    assert max(seen) == 12
    assert proposals(study, Watched(study, every, SPACE)) == proposals(study, None)


def test_a_view_proposes_what_a_study_of_its_trials_alone_would() -> None:
    whole, part = grown_study(), grown_study(12)
    trials = whole.get_trials(deepcopy=False)
    view = BoundedStudy(whole, [*trials[:12], trials[-1]], SPACE)
    assert proposals(whole, view) == proposals(part, None)


def test_get_trials_is_called_as_it_is_answered() -> None:
    """Without the same parameters, TPE's own call would fail, or would be answered with the wrong trials."""
    theirs, ours = (inspect.signature(cls._get_trials).parameters for cls in (optuna.Study, BoundedStudy))
    assert [(p.name, p.default) for p in theirs.values()] == [(p.name, p.default) for p in ours.values()]


def test_trials_are_filtered_by_state() -> None:
    """TPE asks for COMPLETE and PRUNED trials; RUNNING ones would have no values."""
    study = grown_study(3)
    view = BoundedStudy(study, study.get_trials(deepcopy=False), SPACE)
    for states in (None, (TrialState.COMPLETE,), (TrialState.RUNNING,)):
        expected = [t.number for t in study.get_trials(deepcopy=False, states=states)]
        assert [t.number for t in view._get_trials(states=states)] == expected


def test_a_view_is_the_study_in_everything_else() -> None:
    study = grown_study(3)
    view = BoundedStudy(study, [], SPACE)
    assert (view.directions, view.study_name) == (study.directions, study.study_name)
    single = BoundedStudy(study, [], SPACE | {"width": CategoricalDistribution((64,))})
    assert list(single.space) == ["depth", "scale"]  # TPE cannot draw from a single value


def test_only_tpe_needs_a_view() -> None:
    assert issubclass(Bounded, BaseSampler)
    assert tpe().view is None
