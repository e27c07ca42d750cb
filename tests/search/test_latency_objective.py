"""Searches by latency, with a table from a file, a table that the search makes, and without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import space as spaces
from res2net.errors import UserError
from res2net.latency import LatencyTable
from res2net.named import named
from search import latency_cache, load, runs, search
from search.describe import main as describe
from search.front import front
from search.run import main
from search.settings import Settings
from space import Space
from studies.synthetic import Synthetic, latency_table
from trainers.datasets.data import Data

SIZE = 8  # of the images of the fixture `loaded`


@pytest.fixture
def space(tiny_space: Path) -> Space:
    return spaces.get(str(tiny_space), num_classes=10, image_size=SIZE)


@pytest.fixture
def table(space: Space) -> LatencyTable:
    return latency_table(space)


@pytest.fixture
def by_latency(make_settings: Callable[..., Settings], table: LatencyTable) -> Settings:
    return make_settings(objective="latency", latency=table, trials=12, epochs=1)


class TestSearch:
    def test_the_front_is_by_the_tables_latency(
        self, loaded: Data, by_latency: Settings, table: LatencyTable, space: Space, tmp_path: Path
    ) -> None:
        result = search(by_latency, tmp_path / "run", work=Synthetic(weights=True))
        scored = result.trials[result.trials.outcome == "scored"].reset_index()
        assert len(scored) == 12
        for record in result.ledger.front:
            assert record.attrs["latency"] == pytest.approx(table.of(record.arch, SIZE))
        assert list(result.front.key) == list(scored.loc[front(scored.val_top1, scored.latency), "key"])
        assert list(result.front.key) != list(scored.loc[front(scored.val_top1, scored.macs), "key"])
        assert "latency" in (result.folder / "best" / "README.md").read_text()

    def test_a_run_holds_its_table(
        self, loaded: Data, by_latency: Settings, table: LatencyTable, tmp_path: Path
    ) -> None:
        result = search(by_latency.replace(trials=4), tmp_path / "run", work=Synthetic(weights=True))
        assert runs.settings_of(tmp_path / "run").scope.latency == table
        again = search(by_latency.replace(latency=None), tmp_path / "run", work=Synthetic(weights=True))
        assert again.ledger.spent == 12
        assert load(tmp_path / "run").hypervolume == pytest.approx(again.hypervolume)
        assert {r.key for r in result.ledger.history} <= {r.key for r in again.ledger.history}

    def test_another_table_is_another_search(
        self, loaded: Data, by_latency: Settings, table: LatencyTable, tmp_path: Path
    ) -> None:
        search(by_latency.replace(trials=2), tmp_path / "run", work=Synthetic(weights=True))
        other = replace(table, hardware="another", factor=2.0)
        with pytest.raises(UserError, match=r"`latency` of formula \(optimized, batch 1, \d+ pieces\), not of another"):
            search(by_latency.replace(latency=other), tmp_path / "run", work=Synthetic(weights=True))

    @pytest.mark.parametrize("bound", ["60%", 1.4])
    def test_limits_in_ms_and_in_shares(
        self,
        loaded: Data,
        make_settings: Callable[..., Settings],
        table: LatencyTable,
        space: Space,
        tmp_path: Path,
        bound: Any,
    ) -> None:
        """A limit needs the table too, whatever the objective is."""
        settings = make_settings(max_latency=bound, latency=table, trials=12, epochs=1)
        result = search(settings, tmp_path / "run", work=Synthetic(weights=True))
        most = 0.6 * max(table.of(space.arch(p), SIZE) for p in space.all_params()) if bound == "60%" else bound
        assert runs.settings_of(tmp_path / "run").scope.max_latency == pytest.approx(most)
        assert 0 < result.ledger.counts["scored"] < 12
        assert all(table.of(r.arch, SIZE) <= most for r in result.ledger.history)

    def test_a_share_of_a_network_outside_the_space(
        self, loaded: Data, make_settings: Callable[..., Settings], space: Space, tmp_path: Path
    ) -> None:
        arch = replace(named("resnet50"), num_classes=10)
        table = latency_table(space, [arch])
        settings = make_settings(max_latency="30%", baseline="resnet50", latency=table, trials=2, epochs=1)
        search(settings, tmp_path / "run", work=Synthetic(weights=True))
        assert runs.settings_of(tmp_path / "run").scope.max_latency == pytest.approx(0.3 * table.of(arch, SIZE))

    def test_an_impossible_limit_names_the_least(
        self, loaded: Data, make_settings: Callable[..., Settings], table: LatencyTable, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"^`max_latency`: nothing in space .* is within 0.01; accepted: at least"):
            search(make_settings(max_latency="10us", latency=table), tmp_path / "run", work=Synthetic(weights=True))


class TestTable:
    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch, table: LatencyTable, tmp_path: Path) -> list[dict[str, Any]]:
        """Return the calls of `make`, which returns the table; the cache is empty."""
        calls: list[dict[str, Any]] = []

        def make(space: Space, form: str, device: str, **more: Any) -> LatencyTable:
            calls.append({"form": form, "device": device, **more})
            return latency_table(space, more["networks"])

        monkeypatch.setattr(latency_cache, "make", make)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return calls

    def test_a_search_makes_it_once_for_this_device(
        self, loaded: Data, make_settings: Callable[..., Settings], made: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        settings = make_settings(objective="latency", trials=2, epochs=1)
        for name in ("first", "second", "first"):
            search(settings, tmp_path / name, work=Synthetic(weights=True))
        assert [call["form"] for call in made] == ["optimized"]
        assert len(list((tmp_path / "cache" / "res2net-search").rglob("*.json"))) == 1
        tables = [runs.settings_of(tmp_path / name).scope.latency for name in ("first", "second")]
        assert tables[0] == tables[1]

    def test_it_takes_a_fifth_of_the_time_at_most(
        self, loaded: Data, make_settings: Callable[..., Settings], made: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        settings = make_settings(objective="latency", trials=1, epochs=1, time=100.0)
        search(settings, tmp_path / "run", work=Synthetic(weights=True))
        assert made[0]["share"] * made[0]["seconds"] == pytest.approx(20.0)

    def test_included_networks_and_the_baseline_are_measured_too(
        self, loaded: Data, make_settings: Callable[..., Settings], made: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        settings = make_settings(
            objective="latency", trials=2, epochs=1, include="resnet50", max_latency="500%", baseline="res2net50_26w_4s"
        )
        result = search(settings, tmp_path / "run", work=Synthetic(weights=True))
        assert len(made[0]["networks"]) == 2
        assert "resnet50" in set(result.trials.included.dropna())
        # The table in the cache lacks other networks, so another one is made for them.
        search(settings.replace(include="resnext50_32x4d"), tmp_path / "next", work=Synthetic(weights=True))
        assert len(made) == 2

    def test_several_drivers_need_a_file(
        self, loaded: Data, make_settings: Callable[..., Settings], tmp_path: Path
    ) -> None:
        settings = make_settings(objective="latency", storage="postgresql://host/database")
        with pytest.raises(UserError, match=r"^`latency`: several drivers need one table; accepted: a file of"):
            search(settings, tmp_path / "run")

    def test_a_table_of_another_space_is_refused(
        self, loaded: Data, make_settings: Callable[..., Settings], table: LatencyTable, tmp_path: Path
    ) -> None:
        lacking = replace(table, entries=table.entries[:1])
        with pytest.raises(UserError, match=r"^`latency`: .*; accepted: a table of this space"):
            search(make_settings(objective="latency", latency=lacking), tmp_path / "run")
        with pytest.raises(UserError, match=r"^`latency`: .*image size 32; accepted: 8"):
            search(make_settings(objective="latency", latency=replace(table, image_size=32)), tmp_path / "run")

    def test_a_network_without_a_latency_cannot_be_included(
        self, loaded: Data, make_settings: Callable[..., Settings], table: LatencyTable, tmp_path: Path
    ) -> None:
        settings = make_settings(objective="latency", latency=table, include="resnet50")
        with pytest.raises(UserError, match=r"^`latency`: .* are missing"):
            search(settings, tmp_path / "run")


class TestCommand:
    def test_a_table_from_a_file(
        self, loaded: Data, tiny_space: Path, table: LatencyTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "table.json").write_text(table.to_json())
        options = ["--space", str(tiny_space), "--objective", "latency", "--latency", str(tmp_path / "table.json")]
        options += ["--trials", "1", "--epochs", "1", "--executor", "local", "--workers", "1", "--max-latency", "5ms"]
        assert main([*options, "--out", str(tmp_path / "run")]) == 0
        assert "ms" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("content", "said"),
        [(None, "No such file"), ("{", "accepted: a file that python -m search.latency wrote"), ("{}", "is missing")],
    )
    def test_another_file_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
    ) -> None:
        if content is not None:
            (tmp_path / "table.json").write_text(content)
        assert main(["--objective", "latency", "--latency", str(tmp_path / "table.json")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("python -m search.run: error: --latency: ")
        assert said in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize("text", ["fast", "5m", "0ms", "-1ms"])
    def test_a_limit_that_is_no_latency_is_one_line(self, capsys: pytest.CaptureFixture[str], text: str) -> None:
        assert main(["--objective", "latency", f"--max-latency={text}"]) == 2
        assert "is not a latency; accepted: a number above 0, with us, ms or s (say 5ms)" in capsys.readouterr().err

    def test_describe_needs_a_file(
        self, tiny_space: Path, space: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--space", str(tiny_space), "--objective", "latency"]
        assert describe(options) == 2
        assert "--latency: nothing is measured here; accepted: a file of python -m search.latency" in (
            capsys.readouterr().err
        )
        whole = spaces.get(str(tiny_space), num_classes=10)
        (tmp_path / "table.json").write_text(latency_table(whole).to_json())
        assert describe([*options, "--latency", str(tmp_path / "table.json")]) == 0
        assert "combinations by latency, cpu (formula), optimized, batch 1, 1 thread (ms)" in capsys.readouterr().out


def test_a_limit_on_macs_chooses_the_base_whatever_the_objective() -> None:
    settings = Settings(space="scale_card_depth_width", data="cifar10", max_macs=20_000_000)
    bases = [settings.replace(objective=o).scope.get_space(10, 32).base for o in ("macs", "latency", "params,macs")]
    assert bases == ["thin"] * 3
