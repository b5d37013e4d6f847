"""Figures of runs: what is drawn, that it can be read on both backgrounds, and how it is shown."""

import base64
import functools
import html
import io
import struct
import subprocess
import sys
import zlib

import matplotlib
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from torch.utils.data import DistributedSampler

from ddp_helpers import plots
from ddp_helpers.plots import style as figures
from ddp_helpers.training import EpochRecord

ALT = 'Two ranks run "forward" <side by side>, 2 µs → 3 µs.'
BACKGROUNDS = {"light": "#ffffff", "dark": "#111111"}  # JupyterLab's own


def records(world_size, losses):
    return [
        EpochRecord(at, loss, loss + 0.1, 1 - loss / 10, 4000.0, 1.0, world_size)
        for at, loss in enumerate(losses)
    ]


def sampled(n, world_size, drop_last=False):
    samplers = [
        DistributedSampler(range(n), world_size, rank, drop_last=drop_last)
        for rank in range(world_size)
    ]
    return [list(sampler) for sampler in samplers]


FIGURES = {
    "training": lambda: plots.plot_training(records(2, [0.7, 0.2, 0.1]), note="2 cores, gloo"),
    "one epoch": lambda: plots.plot_training(records(1, [0.7])),
    "runs": lambda: plots.plot_training(
        {"alone": records(1, [0.7, 0.2]), "shared": records(2, [0.6, 0.3])}, title="Two runs"
    ),
    "bars": lambda: plots.plot_bars(
        ["1 rank", "2 ranks"], [[3.1, 3.3, 4.2], 1.7], ylabel="time (s)", title="An epoch"
    ),
    "stacks": lambda: plots.plot_stacks(
        ["DDP", "FSDP"], {"weights": [8, 4], "Adam": [16, 8]}, ylabel="held (MiB)", title="A rank"
    ),
    "assignment": lambda: plots.plot_sample_assignment(sampled(10, 3), 10),
    "timeline": lambda: plots.plot_timeline(
        [plots.Span(0, "forward", 5.0, 5.004), (1, "backward", 5.002, 5.01)]
    ),
}


@functools.cache
def figure(name):
    return FIGURES[name]()


def texts(fig):
    found = [text.get_text() for text in fig.findobj(matplotlib.text.Text)]
    return " | ".join(text for text in found if text)


def luminance(color):
    """Relative luminance, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# ---- both themes


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("background", BACKGROUNDS.values(), ids=BACKGROUNDS)
def test_each_text_and_line_stands_out(name, background):
    fig = figure(name)
    FigureCanvasAgg(fig).draw()
    on_color = {str(number) for number in range(50)} if name == "assignment" else set()
    for text in fig.findobj(matplotlib.text.Text):
        if text.get_text() and text.get_visible():
            in_square = text.get_text() in on_color and to_rgb(text.get_color()) == (0, 0, 0)
            behind = plots.FILLS if in_square else (background,)
            assert min(contrast(text.get_color(), color) for color in behind) >= 4, text
            assert text.get_fontsize() >= 9
    for line in fig.findobj(matplotlib.lines.Line2D):
        if line.get_visible() and line.get_alpha() is None:
            assert contrast(line.get_color(), background) >= 3, line
    for patch in fig.findobj(Rectangle):
        if patch.get_linewidth() and patch.get_edgecolor()[3] == 1:
            assert contrast(patch.get_edgecolor(), background) >= 3


@pytest.mark.parametrize("name", FIGURES)
def test_the_background_is_transparent_and_ink_is_visible_on_both(name):
    from PIL import Image

    drawn = Image.open(io.BytesIO(figures.png_bytes(figure(name), ALT))).convert("RGBA")
    alpha = np.asarray(drawn)[..., 3]
    assert (alpha == 0).mean() > 0.3
    assert alpha[0, 0] == alpha[-1, -1] == 0
    for background in BACKGROUNDS.values():
        page = Image.new("RGBA", drawn.size, background)
        page.alpha_composite(drawn)
        difference = np.abs(np.asarray(page).astype(int) - np.asarray(page)[0, 0].astype(int))
        assert (difference.max(axis=-1) > 60).mean() > 0.005


def drawn_texts(fig):
    """All texts but the labels of ticks that lie outside the axes: these exist, undrawn."""
    undrawn = set()
    for axis in [axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)]:
        inside = axis._update_ticks()
        undrawn |= {tick.label1 for tick in axis.majorTicks if tick not in inside}
    found = fig.findobj(lambda artist: isinstance(artist, matplotlib.text.Text))
    return [t for t in found if t.get_text() and t.get_visible() and t not in undrawn]


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off_or_laid_over_another(name):
    fig = figure(name)
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in drawn_texts(fig)]
    assert len(boxes) > 5
    for at, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= fig.bbox.width, text
        assert box.y1 <= fig.bbox.height, text
        for other, other_box in boxes[at + 1 :]:
            assert not box.overlaps(other_box), (text, other)


@pytest.mark.parametrize("name", ["runs", "assignment"])
def test_the_same_figure_is_drawn_the_same_twice(name):
    fig = FIGURES[name]()
    assert figures.png_bytes(fig, ALT) == figures.png_bytes(fig, ALT)


# ---- what is drawn


def test_training_shows_the_values_and_the_number_of_ranks():
    fig = plots.plot_training(records(2, [0.7, 0.2, 0.1]), title="My run", note="2 cores")
    left, right = fig.axes
    train, test = left.get_lines()
    assert list(train.get_xdata()) == [1, 2, 3]
    assert list(train.get_ydata()) == [0.7, 0.2, 0.1]
    assert list(test.get_ydata()) == pytest.approx([0.8, 0.3, 0.2])
    assert list(right.get_lines()[0].get_ydata()) == pytest.approx([93, 98, 99])
    found = texts(fig)
    for expected in ("My run (2 ranks)", "2 cores", "epoch", "nats", "accuracy (%)", "99.0 %"):
        assert expected in found


def test_several_runs_are_told_apart_without_colour():
    runs = {name: records(n, [0.5, 0.4]) for n, name in enumerate("abcde", start=1)}
    fig = plots.plot_training(runs)
    looks = {(line.get_color(), line.get_marker()) for line in fig.axes[1].get_lines()}
    assert len(looks) == len({line.get_marker() for line in fig.axes[1].get_lines()}) == 5
    assert "Training on 1, 2, 3, 4 and 5 ranks" in texts(fig)
    assert "b (2 ranks)" in texts(fig)
    assert "a (1 rank)" in texts(fig)


def test_bars_have_the_median_and_every_repeat():
    fig = plots.plot_bars(["a", "b"], [[1.0, 9.0, 2.0], 4.0], ylabel="time (s)", title="t")
    (ax,) = fig.axes
    assert [bar.get_height() for bar in ax.patches] == [2.0, 4.0]
    spread, dots = ax.get_lines()
    assert list(spread.get_ydata()) == [1.0, 9.0]
    assert sorted(dots.get_ydata()) == [1.0, 2.0, 9.0]
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 9
    assert "median 2" in texts(fig)


def test_bars_take_arrays_and_tensors():
    for values in (np.array([[1.0, 3.0], [2.0, 5.0]]), torch.tensor([[1.0, 3.0], [2.0, 5.0]])):
        fig = plots.plot_bars(["a", "b"], values, ylabel="time (s)", title="t")
        assert [bar.get_height() for bar in fig.axes[0].patches] == [2.0, 3.5]


def test_stacks_lie_on_one_another_with_their_sum_above():
    fig = figure("stacks")
    (ax,) = fig.axes
    bars = [(round(b.get_x() + 0.3), b.get_y(), b.get_height()) for b in ax.patches]
    assert bars == [(0, 0, 8), (1, 0, 4), (0, 8, 16), (1, 4, 8)]
    assert ax.get_ylim()[1] > 24
    assert {"24", "12", "weights", "Adam", "DDP"} <= set(texts(fig).split(" | "))


def squares(fig):
    """(index, rank) of each square."""
    boxes = [p for p in fig.axes[0].patches if isinstance(p, Rectangle)]
    return sorted((round(b.get_x() + 0.42), round(b.get_y() + 0.4)) for b in boxes)


def test_assignment_shows_each_use_the_repeats_and_the_unused():
    shares = sampled(10, 3)  # two samples are used twice
    fig = plots.plot_sample_assignment(shares, 10)
    assert squares(fig) == sorted((i, rank) for rank, share in enumerate(shares) for i in share)
    framed = [p for p in fig.axes[0].patches if to_rgb(p.get_edgecolor()) != to_rgb(plots.GREY)]
    assert len(framed) == 4
    assert "used more than once" in texts(fig)
    assert "not used" not in texts(fig)
    assert "3 ranks, 10 samples" in texts(fig)

    shares = sampled(11, 3, drop_last=True)
    fig = plots.plot_sample_assignment(shares, 11)
    (crosses,) = fig.axes[0].get_lines()
    assert set(crosses.get_xdata()) == set(range(11)) - {i for share in shares for i in share}
    assert "not used" in texts(fig)
    assert "more than once" not in texts(fig)


def test_timeline_starts_at_0_and_chooses_the_unit():
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        length = 2 / scale
        fig = plots.plot_timeline(
            [(0, "a", 7.0, 7 + length / 2), (3, "b", 7 + length / 2, 7 + length)]
        )
        first, second = fig.axes[0].patches
        assert (first.get_x(), first.get_width()) == pytest.approx((0, 1), abs=1e-3)
        assert (second.get_x(), second.get_width()) == pytest.approx((1, 1), abs=1e-3)
        assert f"time ({unit})" in texts(fig)
        assert "rank 3" in texts(fig)
        assert "(2 ranks)" in texts(fig)


def test_overlapping_spans_get_lines_of_their_own():
    apart = plots.plot_timeline([(0, "a", 0, 1), (0, "b", 1, 2), (1, "a", 0, 2)])
    assert {round(p.get_height(), 2) for p in apart.axes[0].patches} == {0.76}
    across = plots.plot_timeline([(0, "a", 0, 3), (0, "b", 1, 2)])
    a, b = across.axes[0].patches
    assert a.get_y() + a.get_height() <= b.get_y() + 1e-9


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: plots.plot_training([]), "no records"),
        (lambda: plots.plot_training({}), "no records"),
        (lambda: plots.plot_training({"a": records(1, [1]), "b": []}), "no records"),
        (lambda: plots.plot_bars([], [], ylabel="s", title="t"), "0 labels and 0 values"),
        (lambda: plots.plot_bars(["a"], [1, 2], ylabel="s", title="t"), "1 labels and 2 values"),
        (lambda: plots.plot_bars(["a"], [[]], ylabel="s", title="t"), "of 'a'"),
        (lambda: plots.plot_bars(["a"], [float("nan")], ylabel="s", title="t"), "finite"),
        (lambda: plots.plot_stacks([], {"a": []}, ylabel="s", title="t"), "nothing to plot"),
        (lambda: plots.plot_stacks(["a"], {"b": [1, 2]}, ylabel="s", title="t"), "2 sizes of 'b'"),
        (lambda: plots.plot_stacks(["a"], {"b": [-1]}, ylabel="s", title="t"), "'b' of 'a' is -1"),
        (lambda: plots.plot_sample_assignment([], 3), "0 ranks and n=3"),
        (lambda: plots.plot_sample_assignment([[0]], 0), "n=0"),
        (lambda: plots.plot_sample_assignment([[0, 3]], 3), "index 3 with n=3"),
        (lambda: plots.plot_timeline([]), "no spans"),
        (lambda: plots.plot_timeline([(0, "a", 2, 1)]), "start that is not after its stop"),
        (lambda: plots.show(FIGURES["bars"](), ""), "alt=''"),
        (lambda: plots.show(FIGURES["bars"](), alt=None), "alt=None"),
        (lambda: plots.save(FIGURES["bars"](), "x.png", " "), "alt=' '"),
        (lambda: plots.save(FIGURES["bars"](), "x.jpg", ALT), r"x\.jpg: expected a name"),
    ],
)
def test_wrong_input_is_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


# ---- files and notebooks


def png_texts(content):
    """The texts that a PNG carries, by keyword."""
    found, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", content[at + 8 + length :][:4])[0]
        if kind == b"iTXt":
            keyword, rest = body.split(b"\0", 1)
            found[keyword.decode()] = rest[2:].split(b"\0", 2)[2].decode()
        elif kind == b"tEXt":
            keyword, text = body.split(b"\0", 1)
            found[keyword.decode()] = text.decode("latin-1")
        at += 12 + length
    return found


def test_saved_files_carry_their_text(tmp_path):
    path = plots.save(FIGURES["bars"](), tmp_path / "new" / "bars.png", ALT)
    assert png_texts(path.read_bytes()) == {"Description": ALT}
    svg = plots.save(FIGURES["bars"](), tmp_path / "bars.svg", ALT).read_text()
    assert html.escape(ALT, quote=False) in svg


NOTEBOOK = [
    "from ddp_helpers import plots\nfigure = plots.plot_timeline([(0, 'forward', 0, 1)])",
    f"plots.show(figure, alt={ALT!r})",
    "figure",
    f"import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nplots.show(fig, alt={ALT!r})",
]


@pytest.fixture(scope="module")
def cells():
    """The outputs of NOTEBOOK's cells, run by a real kernel."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in NOTEBOOK])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_notebook_shows_a_figure_once_with_its_alt_text(cells):
    assert not cells[0]
    for outputs in (cells[1], cells[3]):  # ours, and one that pyplot would show again
        (output,) = outputs
        assert output.data["text/plain"] == ALT
        assert f'alt="{html.escape(ALT)}"' in output.data["text/html"]
        assert output.data["image/png"] in output.data["text/html"]
        assert output.metadata["image/png"]["alt"] == ALT
        assert png_texts(base64.b64decode(output.data["image/png"])) == {"Description": ALT}


def test_a_figure_as_last_line_shows_once(cells):
    (output,) = cells[2]
    assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")
    assert output.metadata["image/png"]["width"] == 800


def test_the_package_itself_is_light():
    code = "import ddp_helpers, sys; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("False")
