"""Times continued past the end of a file."""

from __future__ import annotations

import pytest

from kssm.cli.table import Column
from kssm.cli.timeline import future_labels
from kssm.errors import InvalidInputError


def column(*cells: str) -> Column:
    return Column("t", cells, tuple(range(1, len(cells) + 1)))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("2024-01-30", "2024-01-31"), ["2024-02-01", "2024-02-02"]),
        (("2024-01-01T00:00", "2024-01-01T00:15"), ["2024-01-01T00:30:00", "2024-01-01T00:45:00"]),
        (("2024/01/01 22:00", "2024/01/01 23:00"), ["2024-01-02 00:00:00", "2024-01-02 01:00:00"]),
        (("2023-10-01", "2023-11-01", "2023-12-01"), ["2024-01-01", "2024-02-01"]),
        (("100", "160", "220"), ["280", "340"]),
        (("0.1", "0.2"), ["0.3", "0.4"]),
    ],
)
def test_times_continue(cells, expected):
    assert future_labels(column(*cells), 2) == ("t", expected)


def test_one_gap_does_not_change_the_step():
    cells = ("2024-01-01", "2024-01-02", "2024-01-09", "2024-01-10")
    assert future_labels(column(*cells), 1) == ("t", ["2024-01-11"])


@pytest.mark.parametrize("times", [None, column("2024-01-01")])
def test_without_times_the_steps_are_counted(times):
    assert future_labels(times, 3) == ("step", ["1", "2", "3"])


@pytest.mark.parametrize(
    "cells",
    [
        ("2024-01-02", "2024-01-01"),
        ("5", "5", "5"),
        ("2024-01-01T00:00:00+00:00", "2024-01-01T01:00:00"),
    ],
)
def test_times_that_do_not_grow_are_refused(cells):
    with pytest.raises(InvalidInputError) as caught:
        future_labels(column(*cells), 1)
    assert caught.value.code == "invalid_timestamps"
