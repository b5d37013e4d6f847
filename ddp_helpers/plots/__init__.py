"""Figures of measured runs and of collectives, in one look."""

from ddp_helpers.plots.collectives import plot_collectives, plot_cost
from ddp_helpers.plots.colors import FILLS, GREY
from ddp_helpers.plots.runs import (
    Epoch,
    Span,
    plot_bars,
    plot_sample_assignment,
    plot_stacks,
    plot_timeline,
    plot_training,
)
from ddp_helpers.plots.style import save, show

__all__ = [
    "FILLS",
    "GREY",
    "Epoch",
    "Span",
    "plot_bars",
    "plot_collectives",
    "plot_cost",
    "plot_sample_assignment",
    "plot_stacks",
    "plot_timeline",
    "plot_training",
    "save",
    "show",
]
