"""What others measured, beside the model: how many rows, how far off, and nothing fitted."""

import dataclasses
import statistics

import pytest

from ddp_helpers.scaling.others import SERIES, Row, rows, summary, table

LEAST_ROWS, MEDIAN, INSIDE = 40, 0.08, 0.90


def test_the_model_holds_on_tables_of_others():
    found = rows()
    print(table())
    assert len(found) >= LEAST_ROWS
    assert statistics.median(abs(row.off) for row in found) <= MEDIAN
    assert sum(row.inside for row in found) / len(found) >= INSIDE


def test_it_holds_on_the_tables_of_pytorch_alone():
    """The easiest may not carry the hard ones."""
    for start in ("DLPerf, NVIDIA's PyTorch", "DLPerf, PyTorch", "DDP's authors"):
        found = [row for row in rows() if row.series.name.startswith(start)]
        assert statistics.median(abs(row.off) for row in found) <= MEDIAN, start


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_only_the_first_number_of_a_series_is_used(series):
    """Other published numbers change the error, not the prediction."""
    first = next(iter(series.speeds))
    wrong = {n: value if n == first else 2 * value for n, value in series.speeds.items()}
    again = dataclasses.replace(series, speeds=wrong).rows()
    assert [row.predicted for row in again] == [row.predicted for row in series.rows()]
    assert series.source.startswith(("https://", "P. Goyal"))


def test_misses_are_printed():
    text = table()
    missed = [row for row in rows() if not row.inside]
    assert missed  # else the next line says nothing
    assert text.count("MISSED") == len(missed)
    assert text.splitlines()[0] == summary(rows())
    for row in rows():
        assert f"{row.ranks:>5} GPUs" in text


def test_a_row_knows_how_far_off_it_is():
    row = rows()[0]
    low, high = row.predicted.low, row.predicted.high
    for published, inside in ((low, True), (high, True), (0.99 * low, False), (1.01 * high, False)):
        found = Row(row.series, 4, published, row.predicted)
        assert found.inside == inside
    assert Row(row.series, 4, row.predicted.value / 2, row.predicted).off == pytest.approx(1.0)


def test_published_numbers_are_those_of_the_sources():
    """Some by hand, so that a slip of the pen is seen."""
    speeds = {series.name: series.speeds for series in SERIES}
    assert speeds["DLPerf, NVIDIA's PyTorch, BERT, AMP, 96 a GPU"][32] == 10349.12
    assert speeds["DLPerf, NVIDIA's MXNet, ResNet-50, AMP"][16] == 13348.68
    assert speeds["DLPerf, PyTorch, ResNet-50, float32, DataLoader"][4] == 1226.38
    assert speeds["DDP's authors, ResNet-101"][16] == pytest.approx(16 * 32 / 0.179)
    assert speeds["TensorFlow, VGG-16, 32 a GPU"] == {1: 144, 2: 281, 4: 549, 8: 820}
