"""The study: one contract for every sampler, over a real database, and Optuna's own view of what was written."""

from __future__ import annotations

import json
import math
import sqlite3
import statistics
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

import space as spaces
from res2net.arch import Arch
from res2net.cost import cost
from res2net.errors import UserError
from search.front import front
from search.objectives import COSTS, limits
from search.study.sampler import SAMPLERS, factory, make_sampler
from search.study.storage import read, sqlite_url
from search.study.study import Study
from search.study.trials import FAILED, INFEASIBLE, ORPHAN, SCORED, Proposal, Record
from studies.synthetic import accuracy

SPACE = spaces.get("scale_card_depth_width", "micro")
# Three quarters of the networks are within the limit.
LIMITS = limits({"max_macs": statistics.quantiles([cost(SPACE.arch(p), 32).macs for p in SPACE.all_params()])[2]})
DIRECTIONS = {"val_top1": "maximize", "macs": "minimize"}


def costs(arch: Arch) -> dict[str, float]:
    return {name: objective.of(arch, SPACE.image_size) for name, objective in COSTS.items()}


def open_study(folder: Path, sampler: str = "tpe", seed: int = 0, name: str = "run") -> Study:
    return Study(sqlite_url(folder), name, DIRECTIONS, factory(sampler), seed, SPACE.parameters)


def answer(study: Study, proposal: Proposal) -> None:
    """End a proposal as a search would: over the limit, or with an accuracy that the network alone decides."""
    arch = SPACE.arch(proposal.params)
    study.describe(proposal, arch, costs(arch), LIMITS.violations(arch, SPACE.image_size))
    if not LIMITS.allow(arch, SPACE.image_size):
        study.infeasible(proposal.number, "it breaks a limit")
        return
    study.report(proposal.number, 1, accuracy(arch, 1))
    study.complete(proposal.number, (accuracy(arch, 2), costs(arch)["macs"]), SCORED, epochs=2)


def ask_and_answer(study: Study, n: int) -> list[dict[str, int]]:
    proposals = []
    for _ in range(n):
        proposals.append(study.ask())
        answer(study, proposals[-1])
    return [p.params for p in proposals]


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    study = open_study(tmp_path)
    yield study
    study.close()


@pytest.mark.parametrize("sampler", [pytest.param(s, marks=[] if s == "tpe" else pytest.mark.slow) for s in SAMPLERS])
class TestEverySampler:
    """The contract of samplers. N trials are past TPE's random start and NSGA-II's first generation."""

    N = 26

    @pytest.fixture
    def study(self, sampler: str, tmp_path: Path) -> Iterator[Study]:
        study = open_study(tmp_path, sampler)
        yield study
        study.close()

    def test_proposals_are_members_of_the_space(self, study: Study) -> None:
        for params in ask_and_answer(study, self.N):
            assert SPACE.contains(SPACE.arch(params))
            assert all(type(v) is int for v in params.values())

    def test_the_same_seed_proposes_the_same(self, study: Study, sampler: str, tmp_path: Path) -> None:
        (tmp_path / "again").mkdir()
        again = open_study(tmp_path / "again", sampler)
        assert ask_and_answer(study, self.N) == ask_and_answer(again, self.N)
        again.close()

    def test_another_seed_proposes_otherwise(self, study: Study, sampler: str, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        other = open_study(tmp_path / "other", sampler, seed=1)
        assert ask_and_answer(study, 5) != ask_and_answer(other, 5)
        other.close()

    def test_a_study_opened_again_proposes_what_it_would_have(self, study: Study, sampler: str, tmp_path: Path) -> None:
        (tmp_path / "whole").mkdir()
        whole = open_study(tmp_path / "whole", sampler)
        expected = ask_and_answer(whole, self.N + 3)
        whole.close()
        first = ask_and_answer(study, self.N)
        study.close()
        resumed = open_study(tmp_path, sampler)
        assert first + ask_and_answer(resumed, 3) == expected
        resumed.close()

    @pytest.mark.slow
    def test_after_an_orphan_proposals_are_as_if_it_had_not_died(
        self, study: Study, sampler: str, tmp_path: Path
    ) -> None:
        (tmp_path / "whole").mkdir()
        whole = open_study(tmp_path / "whole", sampler)
        expected = ask_and_answer(whole, self.N)
        whole.close()
        got = []
        while len(got) < self.N:
            if len(got) % 4 == 2:
                orphan = study.ask()
                study.enqueue(orphan.params, retry_of=orphan.number)
                study.fail(orphan.number, ORPHAN, "the search was stopped while it ran")
            got += ask_and_answer(study, 1)
        assert got == expected

    def test_infeasible_trials_are_pruned_and_never_best(self, study: Study) -> None:
        ask_and_answer(study, self.N)
        records = study.records()
        over = [r for r in records if r.outcome == INFEASIBLE]
        assert over
        assert all(r.state == "PRUNED" and r.quality is None for r in over)
        best = {t.number for t in study.optuna_study.best_trials}
        scored = [r for r in records if r.outcome == SCORED]
        ours = {scored[i].number for i in front([r.quality for r in scored], [r.attrs["macs"] for r in scored])}
        assert best >= ours  # Optuna also lists equal points
        assert not best & {r.number for r in over}

    def test_a_retry_is_asked_next_and_says_of_what(self, study: Study) -> None:
        ask_and_answer(study, 2)
        failed = study.ask()
        study.enqueue(failed.params, retry_of=failed.number)
        study.fail(failed.number, FAILED, "no luck")
        again = study.ask()
        assert again == Proposal(failed.number + 1, failed.params, retry_of=failed.number)
        assert study.record(failed.number).attrs["reason"] == "no luck"
        assert study.record(failed.number).state == "FAIL"
        assert study.ask().retry_of is None


def test_a_trial_of_too_many_macs_is_infeasible_to_optuna_itself(study: Study) -> None:
    """Told COMPLETE on purpose: the constraint alone must keep it out of what Optuna calls best."""
    good, bad = study.ask(), study.ask()
    for proposal, violation in ((good, -0.5), (bad, 0.5)):
        arch = SPACE.arch(proposal.params)
        study.describe(proposal, arch, costs(arch), [violation, -1.0])
    study.complete(good.number, (10.0, 1000), SCORED)
    study.complete(bad.number, (90.0, 10), SCORED)
    assert [t.number for t in study.optuna_study.best_trials] == [good.number]


def test_constraints_are_where_the_dashboard_reads_them(study: Study) -> None:
    proposal = study.ask()
    arch = SPACE.arch(proposal.params)
    study.describe(proposal, arch, costs(arch), [0.25, -0.5])
    study.infeasible(proposal.number, "it breaks a limit")
    assert study.optuna_study.trials[0].system_attrs["constraints"] == [0.25, -0.5]


def test_a_network_is_described_as_a_person_and_a_program_read_it(study: Study) -> None:
    proposal = study.ask()
    arch = SPACE.arch(proposal.params)
    study.describe(proposal, arch, costs(arch), [])
    record = study.record(proposal.number)
    assert record.arch == arch
    assert record.key == arch.key()
    assert record.attrs["arch"] == str(arch)
    assert {k: record.attrs[k] for k in ("macs", "params", "activations")} == costs(arch)
    assert json.loads(json.dumps(record.attrs)) == record.attrs


@pytest.mark.parametrize("value", [math.nan])
def test_a_score_that_is_no_number_is_refused(study: Study, value: float) -> None:
    number = study.ask().number
    with pytest.raises(ValueError, match="not acceptable"):
        study.complete(number, (value, 1000), SCORED)
    assert study.optuna_study.best_trials == []


def test_each_epoch_is_an_intermediate_value(study: Study) -> None:
    number = study.ask().number
    for epoch, top1 in ((1, 10.5), (2, 20.5), (3, 15.0)):
        study.report(number, epoch, top1)
    study.complete(number, (15.0, 1000), SCORED, epochs=3)
    assert study.record(number).epochs == {1: 10.5, 2: 20.5, 3: 15.0}
    assert study.record(number).quality == 15.0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_proposes_after_trials_that_ended_in_every_way(sampler: str, tmp_path: Path) -> None:
    """Optuna's TPE crashes after a feasible PRUNED trial with intermediate values: no trial may end like that."""
    study = open_study(tmp_path, sampler)
    for i in range(30):
        proposal = study.ask()
        if i % 5 == 1:  # no width brings it to `match_macs`, so it has no cost
            study.infeasible(proposal.number, "cannot be met")
            continue
        if i % 5 == 2:
            study.report(proposal.number, 1, 12.0)
            study.fail(proposal.number, FAILED, "lost")
            continue
        answer(study, proposal)
    assert len(study.records()) == 30
    study.close()


def test_running_trials_can_be_adopted_and_ended(tmp_path: Path) -> None:
    first = open_study(tmp_path)
    number = first.ask().number
    first.storage.engine.dispose()  # as if killed
    second = open_study(tmp_path)
    assert [r.number for r in second.running()] == [r.number for r in second.orphans()] == [number]
    assert second.own_running() == []
    second.adopt(number)
    second.fail(number, ORPHAN, "the search was stopped while it ran")
    assert second.running() == []
    assert second.record(number).outcome == ORPHAN
    second.close()


def test_a_trial_killed_between_its_outcome_and_its_end_counts_as_running(tmp_path: Path) -> None:
    """The outcome is written before Optuna is told. Until Optuna is told, the trial runs."""
    study = open_study(tmp_path)
    proposal = study.ask()
    arch = SPACE.arch(proposal.params)
    study.describe(proposal, arch, costs(arch), [])
    study.annotate(proposal.number, {"outcome": SCORED})
    assert study.record(proposal.number).outcome == "running"
    study.storage.engine.dispose()
    assert [r.outcome for r in read(tmp_path)] == ["running"]


def test_a_waiting_trial_has_the_parameters_it_will_be_asked_with(study: Study) -> None:
    params = next(SPACE.all_params())
    lost = study.ask().number
    study.enqueue(params, retry_of=lost)
    record = study.records()[-1]
    assert (record.state, record.params) == ("WAITING", params)


def test_a_retry_of_a_confirmation_confirms_the_same_estimate(study: Study) -> None:
    params = next(SPACE.all_params())
    study.enqueue(params, confirms=3)
    first = study.ask()
    study.enqueue(params, retry_of=first.number)
    again = study.ask()
    assert (first.confirms, again.confirms, again.retry_of) == (3, 3, first.number)


def test_unended_trials_are_the_waiting_and_the_running(study: Study) -> None:
    ask_and_answer(study, 2)
    running = study.ask().number
    study.enqueue(next(SPACE.all_params()))
    assert [(r.number, r.state) for r in study.unended()] == [(running, "RUNNING"), (running + 1, "WAITING")]
    assert [r.number for r in study.own_running()] == [r.number for r in study.running()] == [running]


def test_a_proposal_that_must_run_alone_says_so(study: Study) -> None:
    lost = study.ask()
    study.enqueue(lost.params, retry_of=lost.number, alone=True)
    assert study.ask() == Proposal(lost.number + 1, lost.params, retry_of=lost.number, alone=True)
    assert not study.ask().alone


def test_a_retry_asked_but_not_described_knows_its_trial(tmp_path: Path) -> None:
    """A kill between the ask and the description must not lose what the enqueued trial was for."""
    study = open_study(tmp_path)
    lost = study.ask()
    study.enqueue(lost.params, retry_of=lost.number, alone=True)
    again = study.ask()
    study.storage.engine.dispose()  # as if killed
    record = list(read(tmp_path))[again.number]
    assert (record.attrs["retry_of"], record.attrs["alone"], record.params) == (lost.number, True, lost.params)


def test_an_enqueued_trial_killed_while_asked_keeps_its_parameters(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    params = next(SPACE.all_params())
    study.enqueue(params)

    def kill(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO trial_params"):
            raise KeyboardInterrupt

    sqlalchemy.event.listen(study.storage.engine, "before_cursor_execute", kill)
    with pytest.raises(KeyboardInterrupt):
        study.ask()
    sqlalchemy.event.remove(study.storage.engine, "before_cursor_execute", kill)
    assert [(r.state, r.params) for r in study.records()] == [("RUNNING", params)]
    study.close()


def test_the_database_is_one_file_in_write_ahead_mode(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    ask_and_answer(study, 2)
    assert (tmp_path / "study.db-wal").exists()
    study.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.db"]
    connection = sqlite3.connect(tmp_path / "study.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_reader_sees_what_the_driver_wrote(study: Study, tmp_path: Path) -> None:
    ask_and_answer(study, 3)
    study.ask()
    records: list[Record] = list(read(tmp_path))
    assert records == study.records()
    assert [r.state for r in records][-1] == "RUNNING"


def test_the_study_of_a_renamed_folder_resumes(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    study = open_study(tmp_path / "before", name="before")
    ask_and_answer(study, 2)
    study.close()
    (tmp_path / "before").rename(tmp_path / "after")
    study = open_study(tmp_path / "after", name="after")
    assert len(study.records()) == 2
    study.close()


def test_another_cost_objective_is_on_its_axis(tmp_path: Path) -> None:
    directions = {"val_top1": "maximize", "params": "minimize"}
    study = Study(sqlite_url(tmp_path), "run", directions, factory("tpe"), 0, SPACE.parameters)
    assert study.optuna_study.metric_names == ["val_top1", "params"]
    study.close()


def test_objectives_have_names(study: Study) -> None:
    assert study.optuna_study.metric_names == ["val_top1", "macs"]
    assert [d.name for d in study.optuna_study.directions] == ["MAXIMIZE", "MINIMIZE"]


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_study_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(UserError, match=r"study.db"):
        list(read(tmp_path))


def test_a_folder_without_a_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study\.db is missing; accepted: the folder of a search"):
        list(read(tmp_path))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_are_made_without_warnings(sampler: str, recwarn: pytest.WarningsRecorder) -> None:
    assert isinstance(make_sampler(factory(sampler), 0, 5), optuna.samplers.BaseSampler)
    assert not recwarn.list


def test_a_complete_trial_is_complete_to_optuna(study: Study) -> None:
    ask_and_answer(study, 6)
    for record, trial in zip(study.records(), study.optuna_study.trials, strict=True):
        assert (record.outcome == SCORED) is (trial.state == TrialState.COMPLETE)
