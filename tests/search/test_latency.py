"""`search.latency`: tables of measured latencies. No test compares a time with a bound."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import res2net
import space as spaces
from res2net.arch import Arch, Stage
from res2net.deploy import onnx_timing
from res2net.deploy.timing import FORMS, LEAST_RUNS, ONNX_FORMS, TORCH_FORMS, measured, piece_times, runner
from res2net.errors import UserError
from res2net.named import named
from res2net.pieces import sequence
from search import carriers, runs
from search import latency as module
from search.carriers import plan, spread
from search.latency import check, fit, load, main, make
from search.settings import Settings
from space import Space

ROOT = Path(__file__).parents[2]


@pytest.fixture
def space(tiny_space: Path) -> Space:
    return spaces.get(str(tiny_space), num_classes=10)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time few runs of few networks."""
    monkeypatch.setattr("res2net.deploy.timing.LEAST_RUNS", 3)
    monkeypatch.setattr(carriers, "FITTED", 3)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace measurements by numbers: a piece takes 1 ms, a network 2 ms and 3 ms for each of its pieces.

    On the clock of the command, each network takes a second.
    """
    now = [0.0]

    def pieces(_: object, arch: Arch, size: int) -> np.ndarray:
        now[0] += 1
        return np.ones((5, len(sequence(arch, size))))

    def whole(_: object, arch: Arch, size: int) -> float:
        now[0] += 1
        return 2.0 + 3.0 * len(sequence(arch, size))

    monkeypatch.setattr(module.Target, "pieces", pieces)
    monkeypatch.setattr(module.Target, "whole", whole)
    monkeypatch.setattr(module.Pace, "of", lambda *_: module.Pace((1.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    for name in ("search.latency.time", "search.measuring.time"):
        monkeypatch.setattr(name, SimpleNamespace(monotonic=lambda: now[0]))


class TestTiming:
    @pytest.mark.parametrize("form", FORMS)
    def test_each_piece_has_a_time(self, form: str, space: Space) -> None:
        if form in ONNX_FORMS:
            pytest.importorskip("onnxruntime")
        arch, size = space.largest(), space.image_size
        images = torch.randn(1, 3, size, size)
        found = piece_times(res2net.create(arch), form, images, seconds=0.0)  # type: ignore[arg-type]
        assert found.shape[1] == len(sequence(arch, size))
        assert len(found) >= LEAST_RUNS
        assert (np.median(found, axis=0) > 0).all()

    @pytest.mark.parametrize("scale", [1, 2, 4])
    def test_both_exporters_give_the_same_operators(self, scale: int, tmp_path: Path) -> None:
        onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
        stages = (Stage(2, 4, 8, 2, scale), Stage(1, 8, 16, 1, scale, 2))
        model = res2net.create(Arch(stages, stem="cifar", stem_channels=4, num_classes=10))
        found, opsets = [], []
        for quick in (False, True):
            options = ort.SessionOptions()
            options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
            options.log_severity_level = 4
            data = onnx_timing._proto(model, torch.randn(1, 3, 16, 16), False, quick)
            ort.InferenceSession(data, options)
            opsets.append(onnx.load_from_string(data).opset_import[0].version)
            graph = onnx.load(tmp_path / "optimized.onnx").graph
            found.append(sorted(node.op_type for node in graph.node))
        assert found[0] == found[1]
        assert opsets[0] == opsets[1]  # kernels differ between versions of an operator

    @pytest.mark.parametrize("form", TORCH_FORMS)
    def test_a_runner_computes_the_network(self, form: str, space: Space) -> None:
        model = res2net.create(space.largest()).eval()
        images = torch.randn(2, 3, space.image_size, space.image_size)
        with torch.no_grad():
            expected = model(images)
        found = runner(model, form, images)()
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))

    def test_a_median_and_a_spread(self) -> None:
        median, iqr = measured(lambda: sum(range(1000)), seconds=0.0)
        assert median > 0
        assert iqr >= 0

    def test_a_form_without_its_packages_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("res2net.deploy.export.find_spec", lambda _: None)
        with pytest.raises(UserError, match=r"`form`: ONNX: not installed: onnx, onnxscript, onnxruntime; run"):
            module.Target.of("onnx", "cpu", 1, 1)


class TestPlan:
    @pytest.mark.parametrize("per_stage", [False, True])
    @pytest.mark.parametrize("base", spaces.BASES)
    def test_the_networks_have_every_piece_of_the_space(self, base: str, per_stage: bool) -> None:
        space = spaces.get("scale_card_depth_width", base, per_stage)
        found = plan(space)
        assert {p for arch in found.archs for p in sequence(arch, found.image_size)} == found.needed
        rng = np.random.default_rng(0)
        for _ in range(50):
            assert found.needed.issuperset(sequence(space.arch(space.sample(rng)), found.image_size))
        assert all(space.contains(arch) for arch in found.whole)

    def test_more_networks_come_first(self, space: Space) -> None:
        found = plan(space, [named("resnet50")])
        assert found.first[0].num_classes == 10
        assert found.needed.issuperset(sequence(found.first[0], space.image_size))

    def test_few_networks_cover_a_space_by_interpolation(self) -> None:
        found = plan(spaces.get("scale_card_depth_width", "micro"))
        assert 0 < found.least() < len(found.archs)
        assert found.covered(found.archs[: found.least()])

    @given(points=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
    def test_an_order_has_each_point_once(self, points: list[tuple[int, int]]) -> None:
        assert sorted(spread(points)) == list(range(len(points)))


@pytest.mark.usefixtures("instant")
class TestMake:
    def test_all_pieces_are_measured_and_the_fit_is_found(self, space: Space) -> None:
        table = make(space)
        assert {key for key, _, _ in table.entries} == {p.key for p in plan(space).needed}
        assert (table.overhead, table.factor) == (pytest.approx(2), pytest.approx(3))
        arch = space.largest()
        assert table.of(arch, space.image_size) == pytest.approx(2 + 3 * len(sequence(arch, space.image_size)))
        check(table, space)

    @pytest.mark.parametrize("used", [3.0, 60.0])
    def test_a_busy_processor_is_named(
        self, used: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.setattr(module.psutil, "cpu_percent", lambda seconds: used)
        make(spaces.get("scale", "micro"), console=module.Console())
        assert ("other programs use 60 % of the processor" in capsys.readouterr().out) == (used > 50)

    def test_a_bound_measures_fewer_pieces(self, capsys: pytest.CaptureFixture) -> None:
        space = spaces.get("scale_card_depth_width", "micro")
        few = make(space, seconds=60.0, console=module.Console())
        known, needed = {key for key, _, _ in few.entries}, plan(space).needed
        assert len(known) < len(needed)
        assert known <= {p.key for p in needed}
        assert "the others are interpolated" in capsys.readouterr().out
        check(few, space)
        rng = np.random.default_rng(0)
        for _ in range(50):
            assert few.of(space.arch(space.sample(rng)), space.image_size) > 0

    def test_a_bound_that_is_too_short(self) -> None:
        with pytest.raises(UserError, match=r"`time`: 2 s is too short; accepted: at least"):
            make(spaces.get("scale_card_depth_width", "micro"), seconds=2.0)

    def test_the_error_names_a_time_that_suffices_for_a_share_of_it(self) -> None:
        space = spaces.get("scale_card_depth_width", "micro")
        with pytest.raises(UserError) as caught:
            make(space, seconds=2.0, share=0.2)
        text = r"`time`: 2 s is too short .* 20% of it; accepted: at least (\d+) min (\d+) s"
        found = re.fullmatch(text, str(caught.value))
        assert found
        make(space, seconds=60.0 * int(found[1]) + int(found[2]), share=0.2)

    def test_a_table_of_another_space(self, space: Space) -> None:
        table = make(space)
        other = spaces.get("scale", "thin", image_size=space.image_size)
        with pytest.raises(UserError, match=r"pieces of space 'scale' over base thin are missing"):
            check(table, other)
        with pytest.raises(UserError, match=r"image size \d+; accepted: 48"):
            check(table, spaces.get("scale", "thin", image_size=48))

    @given(overhead=st.floats(0, 5), factor=st.floats(0.1, 5))
    def test_a_fit_is_exact_for_a_line(self, overhead: float, factor: float) -> None:
        found = fit([(x, overhead + factor * x) for x in (1.0, 2.0, 5.0, 9.0)])
        assert found == (pytest.approx(overhead, abs=1e-6), pytest.approx(factor, abs=1e-6))


class TestCommand:
    @pytest.mark.usefixtures("quick")
    def test_it_writes_a_table(self, tiny_space: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        out = tmp_path / "table.json"
        assert main(["--space", str(tiny_space), "--out", str(out), "--networks", "res2net50_26w_4s"]) == 0
        table = load(out)
        assert len(table.entries) == len(json.loads(out.read_text())["entries"])
        assert (table.device, table.form, table.batch_size, table.threads) == ("cpu", "optimized", 1, 1)
        printed = " ".join(capsys.readouterr().out.split())
        assert "about" in printed
        assert table.text in printed
        size, classes = table.image_size, {p for p, *_ in table.entries if p.startswith("head")}
        assert classes
        arch = spaces.get(str(tiny_space), num_classes=10).fitted(named("res2net50_26w_4s"))  # type: ignore[arg-type]
        assert table.of(arch, size) > 0

    @pytest.mark.usefixtures("instant")
    @pytest.mark.parametrize("name", ["example_data:Stripes", "example_data:Blocks"])
    def test_a_search_on_the_same_data_accepts_the_table(self, name: str, tiny_space: Path, tmp_path: Path) -> None:
        assert main(["--space", str(tiny_space), "--data", name, "--out", str(tmp_path / "table.json")]) == 0
        settings = Settings(space=str(tiny_space), data=name)
        check(load(tmp_path / "table.json"), runs.space_for(tmp_path, settings, settings.scope.load_data()))

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            (["--form", "fast"], "--form: unknown value 'fast'"),
            (["--device", "tpu"], "--device: unknown value 'tpu'"),
            (["--device", "cuda:99"], "--device: 'cuda:99' is not there"),
            (["--batch-size", "0"], "--batch-size: 0 is too small"),
            (["--threads", "0"], "--threads: 0 is too small"),
            (["--time", "soon"], "--time: 'soon' is not a time"),
            (["--space", "shapes"], "--space: unknown value 'shapes'"),
            (["--base", "tiny"], "--base: unknown value 'tiny'"),
            (["--data", "cifar"], "--data: unknown value 'cifar'"),
            (["--networks", "resnet9000"], "--networks: "),
            (["--networks", "dla60"], "--networks: dla60 is of kind 'dla'; accepted: a Res2Net"),
            (["--out", "no/such/folder/table.json"], "--out: no folder"),
        ],
    )
    def test_mistakes_are_one_line(
        self, options: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        assert main(["--out", str(tmp_path / "table.json"), *options]) == 2
        found = capsys.readouterr().err
        assert error in found
        assert len(found.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("content", ["not JSON", "[]", '{"form": "eager"}'])
    def test_a_file_that_is_no_table(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "table.json"
        path.write_text(content)
        with pytest.raises(UserError, match=r"table\.json"):
            load(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"accepted: a file that python -m search.latency wrote"):
            load(tmp_path / "table.json")

    def test_it_needs_neither_ray_nor_optuna(self) -> None:
        code = "import sys, search.latency; print([m for m in ('ray', 'optuna', 'pandas') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
