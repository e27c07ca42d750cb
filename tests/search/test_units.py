"""Counts and times as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from res2net.errors import UserError
from search.units import format_count, format_seconds, parse_count, parse_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("300M", 300_000_000),
        ("4.2G", 4_200_000_000),
        ("4.2g", 4_200_000_000),
        ("1b", 10**9),
        ("2T", 2 * 10**12),
        (" 20 k ", 20_000),
        ("1.5K", 1500),
        (".5M", 500_000),
        ("5.", 5),
        ("7", 7),
        (7, 7),
        ("0.29M", 290_000),
    ],
)
def test_counts(text: str | int, value: int) -> None:
    assert parse_count(text, "max_macs") == value


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("30m", 1800), ("6h", 21_600), ("1d", 86_400), ("0.5H", 1800), ("12", 12)]
)
def test_times(text: str, value: float) -> None:
    assert parse_seconds(text, "time") == value


@pytest.mark.parametrize("text", ["", "M", "300MB", "-3M", "1e6", "nan", "inf", "3 0M", "0", "0.2", "٣x", "0x10"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_count(text, "max_macs")
    assert str(error.value).startswith(f"`max_macs`: {text!r} ")
    assert "accepted:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "h", "6 hours", "-1h", "0", "0s", "1:30", "6w", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_seconds(text, "time")
    assert str(error.value).startswith(f"`time`: {text!r} ")
    assert "accepted:" in str(error.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.16e9, "4.16G"),
        (20_000_000, "20.0M"),
        (300_000_000, "300M"),
        (512, "512"),
        (999, "999"),
        (1000, "1.00K"),
        (0, "0"),
        (999_999, "1.00M"),
        (999_499, "999K"),
        (9_999, "10.0K"),
        (99_960, "100K"),
        (999.6, "1.00K"),
        (2.5e12, "2.50T"),
    ],
)
def test_counts_are_shown_in_three_digits(value: float, text: str) -> None:
    assert format_count(value) == text


@given(st.integers(1, 10**14))
def test_a_count_survives_being_shown_to_three_digits(value: int) -> None:
    assert parse_count(format_count(value), "n") == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (100_000, "27 h 46 min"),
        (-3, "0 s"),
    ],
)
def test_times_are_shown_in_two_units(value: float, text: str) -> None:
    assert format_seconds(value) == text
