"""What a reader sees: lines with their rank, panels, and a stop button where one can work."""

import builtins
import contextlib
import io
import re
import sys
import types
from typing import ClassVar

import IPython.display
import pytest

from ddp_helpers.ranks import view
from ddp_helpers.ranks.view import PanelView, TextView


class Handle:
    """What IPython gives back for something that can be drawn again."""

    def __init__(self, shown):
        self.shown = [shown]

    def update(self, what, **options):
        self.shown.append((what, options) if options else what)

    @property
    def html(self):
        return self.shown[-1].data


class Clock:
    now = 100.0


@pytest.fixture
def notebook(monkeypatch):
    """A kernel, what it was asked to display, and a clock."""
    shown = types.SimpleNamespace(handles=[], clock=Clock(), kernel=types.SimpleNamespace())

    def display(what, display_id):
        assert display_id is True
        shown.handles.append(Handle(what))
        return shown.handles[-1]

    shell = types.SimpleNamespace(kernel=shown.kernel)
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    monkeypatch.setattr(view.time, "monotonic", lambda: shown.clock.now)
    return shown


@pytest.fixture
def panels(notebook):
    """A view of two ranks, and what it shows."""
    return PanelView(2), notebook


def seen(shown):
    """The panels, drawn now."""
    return re.findall(r"<div style=\"flex:.*?</pre></div>", shown.handles[-1].html, re.DOTALL)


def draw(panels):
    one, shown = panels
    shown.clock.now += 1
    one.tick()
    return seen(shown)


# ---- lines


def test_lines_are_tagged(capsys):
    one = TextView()
    one.output(3, ["a", "", "b"])
    one.report(0, 1, 2, 0.5)
    one.end(0, "done")
    one.tick()
    one.close()
    assert capsys.readouterr().out == "[rank 3] a\n[rank 3] \n[rank 3] b\n"
    assert one.is_stop_asked() is False


def test_letters_that_the_terminal_lacks_are_written_in_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    TextView().output(0, ["a \N{RIGHTWARDS ARROW} b"])
    assert raw.getvalue() == b"[rank 0] a \\u2192 b\n"


def test_a_standard_output_that_is_closed_or_full(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    TextView().output(0, ["a"])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="standard output can't be written: No space left"):
            TextView().output(0, ["a"])
        with contextlib.suppress(OSError):
            full.close()


def test_a_batch_of_lines_is_one_write(monkeypatch):
    writes = []
    out = types.SimpleNamespace(write=writes.append, flush=lambda: writes.append("flushed"))
    monkeypatch.setattr(sys, "stdout", out)
    TextView().output(0, ["a", "b"])
    assert writes == ["[rank 0] a\n[rank 0] b\n", "flushed"]


# ---- panels


def test_panels_before_anything_happened(panels):
    one, shown = panels
    first, second = seen(shown)
    assert "<b>rank 0</b> running\n" in first.replace("<div role", "\n<div role")
    assert "<b>rank 1</b> running" in second
    assert 'aria-valuenow="0%"' in first
    assert "<svg" not in first
    assert "step" not in first
    assert shown.handles[-1].html.startswith(
        '<div style="display:flex;flex-wrap:wrap;gap:8px"><div'
    )
    assert shown.handles[-1].html.endswith("</pre></div></div>")
    assert "</pre></div><div style=" in shown.handles[-1].html
    assert not one.is_stop_asked()


def test_output_is_escaped_and_the_last_lines_stay(panels):
    panels[0].output(1, [f"line {n}" for n in range(20)])
    panels[0].output(1, ["<b>&", "x" * 300])
    first, second = draw(panels)
    pre = re.search(r"<pre[^>]*>(.*)</pre>", second, re.DOTALL)[1].split("\n")
    assert len(pre) == view.LINES_OF_A_PANEL
    assert pre[0] == "line 14"
    assert pre[-2:] == ["&lt;b&gt;&amp;", "x" * view.LONGEST_LINE]
    assert first.endswith('pre-wrap"></pre></div>')


def test_steps_loss_and_share(panels):
    panels[0].report(0, 5, 20, 0.123456)
    panels[0].report(1, 7, None, None)
    first, second = draw(panels)
    assert "<b>rank 0</b> running, step 5 of 20, loss 0.1235<div" in first
    assert 'aria-valuenow="25%"' in first
    assert f"{view.BLUE} 25.0%,transparent 25.0%" in first
    assert "<b>rank 1</b> running, step 7<div" in second
    assert 'aria-valuenow="0%"' in second


def test_more_steps_than_were_announced(panels):
    panels[0].report(0, 30, 20, None)
    assert 'aria-valuenow="100%"' in draw(panels)[0]


def test_a_loss_that_is_no_number_is_left_out(panels):
    panels[0].report(0, 1, 2, "nan")
    assert "loss" not in draw(panels)[0]


def test_how_a_rank_ended(panels):
    panels[0].end(1, "failed")
    first, second = draw(panels)
    assert "<b>rank 0</b> running" in first
    assert "<b>rank 1</b> failed" in second


@pytest.mark.parametrize(
    ("losses", "points"),
    [
        ([4.0, 2.0, 3.0], "0.0,2.0 100.0,28.0 200.0,15.0"),
        ([1.0, 1.0], "0.0,28.0 200.0,28.0"),
        ([1.0, 3.0], "0.0,28.0 200.0,2.0"),
    ],
)
def test_the_loss_as_a_line(panels, losses, points):
    for step, loss in enumerate(losses, start=1):
        panels[0].report(0, step, None, loss)
    panel = draw(panels)[0]
    assert (
        f'<polyline points="{points}" fill="none" stroke="{view.BLUE}" stroke-width="1.5"/></svg>'
        in panel
    )
    label = f'aria-label="loss from {losses[0]:.4g} to {losses[-1]:.4g}"'
    assert f'<svg role="img" {label} viewBox="0 0 200 30"' in panel
    assert 'style="width:100%;height:30px" preserveAspectRatio="none">' in panel


def test_one_loss_is_no_line(panels):
    panels[0].report(0, 1, None, 1.0)
    assert '"></div><pre style=' in draw(panels)[0]


def points_after(panels, losses):
    for step in range(losses):
        panels[0].report(0, step, None, float(step))
    return re.search('points="(.*?)"', draw(panels)[0])[1].split()


def test_a_long_run_stays_whole_at_half_the_detail(panels):
    most = 2 * view.POINTS_OF_A_SPARKLINE
    assert len(points_after(panels, most)) == most
    halved = points_after(panels, 1)
    assert len(halved) == view.POINTS_OF_A_SPARKLINE


def test_it_is_drawn_again_only_when_there_is_news_and_not_too_often(panels):
    one, shown = panels
    drawn = shown.handles[-1].shown
    one.tick()
    assert len(drawn) == 1
    for news in (
        lambda: one.output(0, ["a"]),
        lambda: one.report(0, 1, 2, 0.1),
        lambda: one.end(0, "done"),
    ):
        news()
        before = len(drawn)
        shown.clock.now += 1
        one.tick()
        shown.clock.now += 1
        one.tick()
        assert len(drawn) == before + 1
    one.output(0, ["now"])
    one.tick()
    one.output(0, ["too early"])
    one.tick()
    assert len(drawn) == 5
    shown.clock.now += 1 / view.PER_SECOND
    one.tick()
    assert len(drawn) == 5
    shown.clock.now += 0.01
    one.tick()
    assert len(drawn) == 6


def test_the_last_state_stays(panels):
    one, shown = panels
    one.output(0, ["last"])
    one.close()
    assert "last" in seen(shown)[0]
    assert isinstance(shown.handles[-1].shown[-1], IPython.display.HTML)


# ---- the stop button


class Button:
    """Takes the place of ipywidgets' button."""

    made: ClassVar[list] = []

    def __init__(self, **options):
        self.options = options
        self.comm = types.SimpleNamespace(_reply_subshell_id="main")
        self.closed = False
        Button.made.append(self)

    def on_click(self, call):
        self.click = call

    def close(self):
        self.closed = True


@pytest.fixture
def widgets(monkeypatch):
    Button.made.clear()
    monkeypatch.setitem(sys.modules, "ipywidgets", types.SimpleNamespace(Button=Button))
    return Button.made


def test_a_button_where_clicks_arrive_in_time(notebook, widgets):
    notebook.kernel._supports_kernel_subshells = True
    one = PanelView(1)
    (button,) = widgets
    assert button.options == {"description": "Stop", "icon": "stop", "tooltip": "End these ranks"}
    assert notebook.handles[0].shown == [button]  # above the panels
    assert vars(button.comm) == {}  # or a click would go to the shell that is busy
    assert one.is_stop_asked() is False
    button.click(None)
    assert one.is_stop_asked() is True
    one.close()
    assert button.closed
    assert notebook.handles[0].shown[1:] == [({"text/plain": ""}, {"raw": True})]
    one.close()  # twice is no error
    assert len(notebook.handles[0].shown) == 2


def test_a_comm_that_keeps_no_shell(notebook, widgets, monkeypatch):
    notebook.kernel._supports_kernel_subshells = True
    monkeypatch.setattr(Button, "on_click", lambda self, call: vars(self.comm).clear())
    PanelView(1)
    assert len(widgets) == 1


@pytest.mark.parametrize("kernel", [{}, {"_supports_kernel_subshells": False}])
def test_no_button_where_a_click_would_come_too_late(notebook, widgets, kernel):
    vars(notebook.kernel).update(kernel)
    one = PanelView(1)
    assert widgets == []
    assert len(notebook.handles) == 1
    one.close()


def test_no_button_without_ipywidgets(notebook, monkeypatch):
    notebook.kernel._supports_kernel_subshells = True
    real = builtins.__import__

    def no_widgets(name, *args):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", no_widgets)
    one = PanelView(1)
    assert len(notebook.handles) == 1
    assert not one.is_stop_asked()
    one.close()
