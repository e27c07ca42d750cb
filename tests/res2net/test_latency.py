"""The pieces of a network, and latency tables."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from res2net.arch import Arch, Stage
from res2net.cost import cost
from res2net.errors import UserError
from res2net.latency import LatencyTable
from res2net.layer_cost import Cost, body, classifier, conv, linear
from res2net.named import named, names
from res2net.pieces import Piece, pieces, sequence
from res2net.residual_cost import stem as stem_cost

ARCH = Arch((Stage(2, 8, 8, 2, 4, 1), Stage(3, 16, 16, 1, 1, 2)), stem="cifar", stem_channels=8, num_classes=10)
SIZES = st.integers(1, 33)


def table(known: Iterable[Piece], image_size: int = 32, **changes: Any) -> LatencyTable:
    """Return a table in which the pieces take different times."""
    entries = tuple((p.key, 0.1 + 0.01 * i + p.width * p.scale / 50, 0.01) for i, p in enumerate(dict.fromkeys(known)))
    values = {"overhead": 0.25, "factor": 1.5, **changes}
    versions = (("torch", "2.0"),)
    return LatencyTable("cpu", "a CPU", "eager", 1, 1, image_size, versions, entries, **values)


def cost_of(piece: Piece) -> Cost:
    """Return the cost of a piece, from its fields alone."""
    if piece.kind == "stem":
        arch = replace(ARCH, stem=piece.stem, stem_channels=piece.channels, in_channels=piece.c_in)
        return stem_cost(arch, piece.size)[0]
    if piece.kind == "head":
        return classifier(piece.c_in, piece.channels)
    stage = Stage(1, piece.channels // 4, piece.width, piece.cardinality, piece.scale, piece.stride)
    total = body(stage, piece.c_in, piece.size, piece.first or piece.stride > 1, piece.first_block)
    if piece.shortcut:
        total += conv(piece.c_in, piece.channels, 1, -(-piece.size // piece.stride))
    if piece.se:
        total += (
            linear(piece.channels, piece.se) + linear(piece.se, piece.channels) + Cost(0, 0, piece.se + piece.channels)
        )
    return total


def blocks(widths: Iterable[int], scales: Iterable[int], cardinalities: Iterable[int]) -> list[Piece]:
    """Return later blocks that differ only in shape."""
    shapes = itertools.product(widths, scales, cardinalities)
    return [Piece("block", 8, 64, 64, width=w, scale=s, cardinality=c) for w, s, c in shapes]


class TestPieces:
    @given(arch=..., size=SIZES)
    def test_the_costs_of_the_pieces_add_up_to_the_network_s(self, arch: Arch, size: int) -> None:
        found = pieces(arch, size)
        totals = [sum(n * cost_of(p)[i] for p, n in found.items()) for i in range(3)]
        assert tuple(totals) == cost(arch, size)

    @given(arch=..., size=SIZES)
    def test_the_order_is_that_of_the_forward_pass(self, arch: Arch, size: int) -> None:
        found = sequence(arch, size)
        assert [p.kind for p in found] == ["stem", *["block"] * sum(s.depth for s in arch.stages), "head"]
        assert all(a.channels == b.c_in for a, b in itertools.pairwise(found))

    @given(arch=..., size=SIZES)
    def test_keys_are_read_back(self, arch: Arch, size: int) -> None:
        for piece in pieces(arch, size):
            assert Piece.from_key(piece.key) == piece

    @given(arch=..., size=SIZES)
    def test_a_network_and_its_canonical_form_have_the_same_pieces(self, arch: Arch, size: int) -> None:
        assert pieces(arch, size) == pieces(arch.canonical(), size)

    def test_later_blocks_are_one_piece(self) -> None:
        found = pieces(ARCH, 32)
        assert sorted(found.values()) == [1, 1, 1, 1, 1, 2]
        later = next(p for p, n in found.items() if n == 2)
        assert (later.stride, later.first, later.shortcut, later.size) == (1, False, "", 16)

    def test_a_field_without_effect_makes_no_other_piece(self) -> None:
        plain = replace(ARCH, stages=ARCH.stages[1:])
        assert pieces(plain, 32) == pieces(replace(plain, first_block="conv"), 32)
        assert pieces(ARCH, 32) != pieces(replace(ARCH, first_block="conv"), 32)

    @pytest.mark.parametrize("name", ["dla60", "blresnet50"])
    def test_other_kinds_of_networks_have_none(self, name: str) -> None:
        with pytest.raises(UserError, match=r"accepted: residual"):
            pieces(named(name), 224)

    @pytest.mark.parametrize(
        ("key", "error"),
        [
            ("tail size=1 c_in=1 channels=1", "kind: unknown value 'tail'"),
            ("block size=1 c_in=1 channels=1 depth=2", "unknown value 'depth'"),
            ("block size=1 c_in=1", "'channels' is missing"),
            ("block size=x c_in=1 channels=1", "size is 'x'"),
        ],
    )
    def test_wrong_keys(self, key: str, error: str) -> None:
        with pytest.raises(UserError, match=error):
            Piece.from_key(key)


class TestLatency:
    @given(arch=..., size=SIZES, stage=st.integers(0, 2))
    def test_one_more_later_block_adds_its_time(self, arch: Arch, size: int, stage: int) -> None:
        stage %= len(arch.stages)
        deep = replace(arch.stages[stage], depth=arch.stages[stage].depth + 1)
        larger = replace(arch, stages=(*arch.stages[:stage], deep, *arch.stages[stage + 1 :]))
        known = table(pieces(larger, size), size)
        (added,) = pieces(larger, size) - pieces(arch, size)
        assert known.of(larger, size) == pytest.approx(known.of(arch, size) + known.factor * known.piece(added))

    def test_a_latency_is_the_overhead_and_the_sum(self) -> None:
        known = table(pieces(ARCH, 32))
        total = sum(n * known.piece(p) for p, n in pieces(ARCH, 32).items())
        assert known.of(ARCH, 32) == pytest.approx(0.25 + 1.5 * total)

    def test_another_image_size_is_an_error(self) -> None:
        with pytest.raises(UserError, match=r"image size 64; accepted: 32"):
            table(pieces(ARCH, 32)).of(ARCH, 64)

    def test_a_missing_piece_is_named(self) -> None:
        known = [p for p in pieces(ARCH, 32) if p.kind != "head"]
        with pytest.raises(UserError, match=r"'head size=16 c_in=64 channels=10' was not measured; .*--networks"):
            table(known).of(ARCH, 32)

    @pytest.mark.parametrize("name", [n for n in names() if isinstance(named(n), Arch)])
    def test_named_networks(self, name: str) -> None:
        arch = named(name)
        known = table(pieces(arch, 224), 224)
        assert known.of(arch, 224) > known.overhead

    @given(arch=..., size=SIZES)
    def test_json_round_trip(self, arch: Arch, size: int) -> None:
        known = table(pieces(arch, size), size)
        again = LatencyTable.from_dict(json.loads(known.to_json()))
        assert again == known
        assert hash(again) == hash(known)
        assert LatencyTable.from_dict(known.to_dict()) == known

    def test_a_used_table_equals_a_new_one(self) -> None:
        known = table(blocks((4, 8), (2, 4), (1, 2)))
        before = hash(known)
        known.piece(blocks((6,), (3,), (1,))[0])
        assert known == table(blocks((4, 8), (2, 4), (1, 2)))
        assert hash(known) == before

    def test_its_text_is_short(self) -> None:
        assert table(()).text == "cpu (a CPU), eager, batch 1, 1 thread"

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"more": 1}, "unknown value 'more'"),
            ({"form": 1}, "form is 1"),
            ({"threads": 0}, "threads is 0"),
            ({"factor": math.nan}, "factor is nan"),
            ({"versions": []}, "versions is"),
            ({"entries": 3}, "entries is not a list"),
            ({"entries": [["stem size=1 c_in=1 channels=1", -1, 0]]}, "times above 0"),
            ({"entries": [["stem", 1, 0]]}, "'size' is missing"),
        ],
    )
    def test_wrong_data(self, changes: dict[str, Any], error: str) -> None:
        with pytest.raises(UserError, match=error):
            LatencyTable.from_dict(table(pieces(ARCH, 32)).to_dict() | changes)

    def test_missing_data(self) -> None:
        data = table(()).to_dict()
        del data["form"]
        with pytest.raises(UserError, match=r"key 'form' is missing"):
            LatencyTable.from_dict(data)
        with pytest.raises(UserError, match=r"not a table of keys"):
            LatencyTable.from_dict([])


class TestInterpolation:
    KNOWN = blocks((4, 8, 16), (2, 4), (1, 2))

    def test_measured_pieces_are_exact(self) -> None:
        known = table(self.KNOWN)
        between = known.piece(blocks((6,), (3,), (1,))[0])  # the curve is now made
        curve = known._curves[next(iter(known._curves))]
        for key, median, _ in known.entries:
            assert known.piece(Piece.from_key(key)) == median
            assert curve(Piece.from_key(key)) == pytest.approx(median)
        times = [median for _, median, _ in known.entries]
        assert min(times) < between < max(times)

    def test_a_time_that_follows_the_products_is_found(self) -> None:
        def products(p: Piece) -> float:
            return p.width * p.scale * 128 + max(1, p.scale - 1) * 9 * p.width**2 / p.cardinality

        entries = tuple((p.key, 1e-4 * products(p), 0.0) for p in self.KNOWN)
        known = replace(table(()), entries=entries)
        for piece in blocks((6, 12), (2, 3, 4), (1, 2)):
            assert known.piece(piece) == pytest.approx(1e-4 * products(piece), rel=0.01)

    def test_one_scale_and_one_cardinality_are_enough(self) -> None:
        known = table(blocks((4, 8, 12, 16), (2,), (1,)))
        assert known.covers(blocks((10,), (2,), (1,))[0])
        assert known.piece(blocks((10,), (2,), (1,))[0]) > 0

    @pytest.mark.parametrize("other", [{"size": 9}, {"scale": 1}, {"se": 8}, {"width": 64}, {"first": True}])
    def test_what_differs_in_more_than_the_shape_is_missing(self, other: dict[str, Any]) -> None:
        piece = replace(self.KNOWN[0], width=6, **other) if "width" not in other else replace(self.KNOWN[0], **other)
        assert not table(self.KNOWN).covers(piece)
        with pytest.raises(UserError, match=r"was not measured"):
            table(self.KNOWN).piece(piece)
