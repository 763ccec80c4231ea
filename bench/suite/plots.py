"""The pictures of the report: one SVG per plot. The only module that needs matplotlib."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.suite.figures import PartResult, Plot

os.environ.setdefault("MPLBACKEND", "svg")
SIZE_IN = (7.2, 4.2)
MARKERS = "osD^vPX*"
"""Series differ in colour and in marker: for readers who do not see the colours, and for print."""
STABLE = {"svg.hashsalt": "xlb", "svg.fonttype": "none", "font.family": "sans-serif"}
"""The same figures give the same file, byte by byte, and its text is text."""


def file_name(part: str, plot: Plot) -> str:
    return f"{part}-{re.sub(r'[^a-z0-9]+', '-', plot.title.lower()).strip('-')}.svg"


def draw(result: PartResult, folder: Path) -> list[str]:
    """Write the part's plots into `folder`; their file names in order. Its pictures of earlier runs are deleted."""
    import matplotlib
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    names = [file_name(result.name, plot) for plot in result.plots]
    for old in folder.glob(f"{result.name}-*.svg"):
        if old.name not in names:
            old.unlink()
    for name, plot in zip(names, result.plots, strict=True):
        with matplotlib.rc_context(STABLE):
            figure, axes = pyplot.subplots(figsize=SIZE_IN, layout="constrained")
            for number, (series, points) in enumerate(plot.series.items()):
                axes.plot(*zip(*sorted(points), strict=True), marker=MARKERS[number % len(MARKERS)], label=series)
            if "x" in plot.log:
                axes.set_xscale("log")
            if "y" in plot.log:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
            axes.grid(visible=True, alpha=0.3)
            axes.legend()
            figure.savefig(folder / name, format="svg", metadata={"Date": None})
            pyplot.close(figure)
    return names
