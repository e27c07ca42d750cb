"""Measured fronts: every network and form once, the columns of `pareto.csv`, and the plots."""

from __future__ import annotations

import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest

import res2net
import trainers.datasets.data
from res2net.deploy.memory import peak_of
from res2net.errors import UserError
from search import api, measure, measured
from search.lock import locked
from search.picks import ledger_of
from search.report.__main__ import main as report
from search.settings import Settings
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

FORMS, BATCHES = ["eager", "optimized"], [1, 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path, data: Data) -> Path:
    """A search of 8 networks by formula."""
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=8, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: data)
        api.search(settings, folder, work=Synthetic(weights=True))
    return folder


@pytest.mark.slow
class TestRun:
    @pytest.fixture(scope="class")
    def found(self, run: Path) -> measured.Measured:
        return measure.measure(run, FORMS, BATCHES)

    def test_each_network_of_the_front_has_each_value(self, found: measured.Measured, run: Path) -> None:
        assert set(found.rows) == {r.key for r in ledger_of(run).front}
        columns = {measured.column(form, batch) for form in FORMS for batch in BATCHES}
        expected = {*columns, *(f"{name}_iqr" for name in columns), measured.MEMORY}
        for row in found.rows.values():
            assert set(row) == expected
            assert all(row[name] > 0 for name in columns)
        assert found.shown == "ms_optimized_1"
        assert measured.read(run) == found

    def test_the_tables_and_plots_show_them(self, found: measured.Measured, run: Path) -> None:
        table = pd.read_csv(run / "pareto.csv").set_index("key")
        for key, row in found.rows.items():
            assert table.loc[key, "ms_eager_3"] == pytest.approx(row["ms_eager_3"])
        assert "ms_optimized_1, cpu (" in (run / "pareto.html").read_text()
        without = Path(run / "pareto.png").stat().st_size
        assert report([str(run)]) == 0  # tables that are written again keep them
        assert "peak_mb" in pd.read_csv(run / "pareto.csv")
        assert Path(run / "pareto.png").stat().st_size == without

    def test_the_command_with_int8(
        self, run: Path, data: Data, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: data)
        assert measure.main([str(run), "--forms", "onnx-int8", "--batch-sizes", "2"]) == 0
        out = capsys.readouterr().out
        assert "onnx-int8" in out
        assert "ms, batch 2" in out
        table = pd.read_csv(run / "pareto.csv")
        assert table[measured.INT8_TOP1].between(0, 100).all()


class TestRefused:
    def test_while_a_search_runs(self, run: Path) -> None:
        with locked(run), pytest.raises(UserError, match="a search is running in"):
            measure.measure(run, FORMS)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--device", "cuda:7"], "--device: 'cuda:7' is not there"),
            (["--forms", "fast"], "--forms: unknown value 'fast'"),
            (["--threads", "0"], "--threads: 0 is too small; accepted: at least 1"),
            (["--batch-sizes", "0"], "--batch-sizes: 0 is too small; accepted: at least 1"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, run: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
    ) -> None:
        assert measure.main([str(run), *options]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    def test_a_folder_that_is_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert measure.main([str(tmp_path / "none")]) == 2
        assert "accepted: the folder of a search" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()

    def test_a_file_that_was_changed_by_hand(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / measured.FILE).write_text(json.dumps({"rows": {}}))
        with pytest.raises(UserError, match=r"not as python -m search.measure writes it"):
            measured.read(tmp_path)


@pytest.mark.slow
def test_weights_count_as_memory(tmp_path: Path) -> None:
    """In a new process, as the measurement runs it. ResNet-50 has 102 MB of weights."""
    model = res2net.create("resnet50")
    res2net.save(model, tmp_path / "model")
    what = tmp_path / "model" / "model.safetensors", model.arch, "cpu", 1, 32
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(peak_of, *what).result()
    assert math.isnan(found) or 100 < found < 600
