"""What all charts share: size, colours, axes, and the conversion to PNG.

Charts are narrow, 4.8 inches, so that their text can be read on a phone. This file and the chart
files beside it are the home of matplotlib. They do not use pyplot, which has global state. So a
driver can draw while its trials run.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, LogLocator, NullFormatter
from PIL import Image

WIDTH, HEIGHT, DPI = 4.8, 3.9, 160  # inches, dots an inch
INK, FAINT, BASELINE_COLOR = "#1c2430", "#8a94a3", "#c2410c"
PLAIN = "#2563a8"
WIDE = "#b7791f"  # wherever width is compared with depth
JPEG_WIDTH, JPEG_QUALITY = 1100, 80  # px, and Pillow's scale
NUM_COLORS = 128  # of a PNG; only shades at the edges of lines are lost
MARKERS = "os^DvP"  # shortest training first


def new(title: str, xlabel: str, ylabel: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty chart."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _dress(axes)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    return figure, axes


def stacked(title: str, xlabel: str, count: int) -> tuple[Figure, list[Axes]]:
    """`count` panels above each other with one horizontal axis."""
    height = HEIGHT if count == 1 else 1.2 + 1.5 * count
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        _dress(axes)
    panels[0].set_title(title, fontsize=10.5, color=INK, loc="left")
    panels[-1].set_xlabel(xlabel, fontsize=9, color=INK)
    return figure, panels


def grid(title: str, ylabel: str, count: int) -> tuple[Figure, list[Axes]]:
    """`count` panels, two in each row, with one vertical axis."""
    lines = (count + 1) // 2
    figure = Figure(figsize=(WIDTH, 1.0 + 1.5 * lines), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(lines, 2, sharey=True, squeeze=False).flat)
    for axes in panels:
        _dress(axes)
    for axes in panels[count:]:
        axes.set_visible(False)
    panels[0].set_title(title, fontsize=10.5, color=INK, loc="left")
    for axes in panels[::2]:
        axes.set_ylabel(ylabel, fontsize=8.5, color=INK)
    return figure, panels[:count]


def _dress(axes: Axes) -> None:
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(True, which="major", color="#e6e9ee", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def log_ticks(axes: Axes, text: Callable[[float], str]) -> None:
    """Ticks of a logarithmic cost axis. The longer the axis, the fewer ticks in a decade."""
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high / low < 1000 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(_OnceEach(text))
    axes.xaxis.set_minor_formatter(NullFormatter())


class _OnceEach(Formatter):
    """Tick texts. On a short axis, neighbours can round to the same text, which is shown once."""

    def __init__(self, text: Callable[[float], str]) -> None:
        self.text = text

    def __call__(self, x: float, pos: int | None = None) -> str:
        del pos
        return self.text(x)

    def format_ticks(self, values: Iterable[float]) -> list[str]:
        texts = [self.text(value) for value in values]
        return [text if text not in texts[:i] else "" for i, text in enumerate(texts)]


def log_error_axis(axes: Axes) -> None:
    """A logarithmic axis of errors in percent, ticked at round numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 1.5, 2, 3, 5, 7) if high / low > 2.5 else tuple(i / 4 for i in range(4, 40))
    if high / low < 1.4:
        subs = tuple(i / 10 for i in range(10, 100, 2))
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Axes, ncols: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=ncols,
            fontsize=7.5,
            frameon=False,
            labelcolor=INK,
            handletextpad=0.5,
            columnspacing=1.2,
        )


def shades(count: int) -> list[str]:
    """`count` colours from light to dark, for things in an order."""
    colors = colormaps["viridis"]
    return [hexadecimal(colors(0.72 - 0.66 * i / max(count - 1, 1))) for i in range(count)]


def hexadecimal(rgba: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgba[:3])


def nothing_yet(figure: Figure, axes: Axes) -> Figure:
    axes.text(0.5, 0.5, "nothing to draw yet", transform=axes.transAxes, ha="center", color=FAINT)
    return figure


# -- the PNG --------------------------------------------------------------------------------------


def png(figure: Figure) -> bytes:
    """The figure as a PNG. Equal figures give equal bytes, because it has no date or version.

    A palette of 128 colours needs about a quarter of the bytes of all shades (22 instead of 77 kB).
    This keeps a report of fifteen charts under 1 MB.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shades = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    image = shades.quantize(NUM_COLORS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "png", optimize=True, dpi=(figure.dpi, figure.dpi))
    return file.getvalue()


def small_jpeg(path: Path) -> bytes:
    """The picture in the file `path` as a JPEG that is narrow enough for the page."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    scale = min(1.0, JPEG_WIDTH / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    body = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(body, "jpeg", quality=JPEG_QUALITY)
    return body.getvalue()


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
