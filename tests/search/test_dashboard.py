"""The dashboard itself, over a search that is done: what its pages are drawn from."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trainers.datasets.data
from res2net.arch import Arch
from search.api import Result, search
from search.report import dashboard
from search.settings import Settings
from search.study.trials import INFEASIBLE, SCORED
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path, data: Data) -> Result:
    """A search with trials over its limit, in a folder whose name a shell would take apart."""
    settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=6, epochs=2, max_macs=16_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: data)
        return search(settings, tmp_path_factory.mktemp("dashboard") / "my run", work=Synthetic(weights=True))


@pytest.fixture(scope="module")
def address(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the dashboard of that search answers; the command is the one that a person is told to run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, *options = shlex.split(dashboard.command(result.folder))
    program = shutil.which(program, path=str(Path(sys.executable).parent)) or pytest.fail(f"{program} is not installed")
    log = tmp_path_factory.mktemp("log") / "dashboard.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [program, *options, "--port", str(port), "--host", "127.0.0.1"], stdout=file, stderr=file
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                read(f"{url}/api/studies")
                break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as response:
        content = response.read()
    return json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def study(address: str) -> dict[str, Any]:
    """All that the study's page is drawn from."""
    (summary,) = read(f"{address}/api/studies")["study_summaries"]
    return read(f"{address}/api/studies/{summary['study_id']}")


def attributes(trial: dict[str, Any]) -> dict[str, str]:
    return {a["key"]: a["value"] for a in trial["user_attrs"]}


def test_the_study_is_listed_by_the_runs_name(address: str, result: Result) -> None:
    (summary,) = read(f"{address}/api/studies")["study_summaries"]
    assert summary["study_name"] == result.folder.name
    assert summary["directions"] == ["maximize", "minimize"]


def test_objectives_have_names_and_directions(study: dict[str, Any]) -> None:
    assert study["objective_names"] == ["val_top1", "macs"]
    assert study["directions"] == ["maximize", "minimize"]


def test_trials_over_the_limit_are_marked(study: dict[str, Any], result: Result) -> None:
    outcomes = dict(zip(result.trials.number, result.trials.outcome, strict=True))
    assert INFEASIBLE in outcomes.values()
    for trial in study["trials"]:
        infeasible = outcomes[trial["number"]] == INFEASIBLE
        assert any(c > 0 for c in trial["constraints"]) is infeasible
        assert (trial["state"] == "Pruned") is infeasible
    best = {trial["number"] for trial in study["best_trials"]}
    assert best >= set(result.front.number)
    assert all(outcomes[number] != INFEASIBLE for number in best)


def test_trials_show_their_network_and_cost(study: dict[str, Any], result: Result) -> None:
    rows = result.trials.set_index("number")
    for trial in study["trials"]:
        shown, row = attributes(trial), rows.loc[trial["number"]]
        assert shown["arch"].strip('"') == row.arch
        assert (int(shown["macs"]), int(shown["params"])) == (row.macs, row.params)
        if row.outcome == SCORED:
            assert float(shown["seconds"]) == row.seconds
            assert trial["values"] == [row.val_top1, row.macs]
            assert [v["step"] for v in trial["intermediate_values"]] == [1, 2]


def test_each_scored_network_can_be_fetched(study: dict[str, Any], address: str, result: Result) -> None:
    rows = result.trials.set_index("number")
    for trial in study["trials"]:
        names = [a["filename"] for a in trial["artifacts"]]
        assert names == (["arch.json"] if rows.outcome[trial["number"]] == SCORED else [])
        for artifact in trial["artifacts"]:
            url = f"{address}/artifacts/{trial['study_id']}/{trial['trial_id']}/{artifact['artifact_id']}"
            assert Arch.from_dict(read(url)).key() == rows.key[trial["number"]]


def test_the_front_is_on_the_page(study: dict[str, Any]) -> None:
    (plot,) = study["plotly_graph_objects"]
    assert plot["id"] == "pareto"
    assert [trace["name"] for trace in json.loads(plot["graph_object"])["data"]] == ["dominated", "front"]
