"""How every figure looks: colours, fonts, axes, legends and the note at the bottom."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import ScalarFormatter

from repro.figures.specs import Axis, Figure, Panel

# Okabe and Ito's colours, told apart with every common colour blindness; their yellow is too light for
# lines on white and gives way to wine.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
STYLES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
GREY = "#666666"

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "pdf.fonttype": 42,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
}


def colour(index: int) -> str:
    """The colour of head, condition or series number `index`; the same in every figure."""
    return PALETTE[index % len(PALETTE)]


def line_style(index: int) -> Any:
    """Solid for as many lines as there are colours, then dashes of different kinds."""
    return STYLES[index // len(PALETTE) % len(STYLES)]


def named_colour(given: int | str | None, index: int) -> str:
    """The colour asked for, or that of number `index`."""
    if isinstance(given, str):
        return given
    return colour(index if given is None else given)


def sequential(count: int) -> list[str]:
    """`count` colours from dark to light for ordered lines, without the palest end."""
    return [to_hex(rgb) for rgb in mpl.colormaps["viridis"](np.linspace(0, 0.92, max(count, 1)))]


def grid(spec: Figure, panels: int, default_size: tuple[float, float]) -> tuple[Canvas, list[Axes]]:
    """An empty figure with a place for each panel, and its axes in reading order."""
    columns = min(spec.columns, panels)
    rows = -(-panels // columns)
    width, height = spec.size or default_size
    canvas = Canvas(figsize=(width * columns, height * rows), layout="constrained")
    canvas.get_layout_engine().set(w_pad=0.06, h_pad=0.05)  # type: ignore[union-attr]
    places = canvas.subplots(rows, columns, squeeze=False).ravel()
    for unused in places[panels:]:
        canvas.delaxes(unused)
    if spec.heading:
        # As wide as the panels: to their right there may be a legend.
        canvas.suptitle(textwrap.fill(spec.heading, max(int(width * columns * 12), 24)))
    return canvas, list(places[:panels])


def dress(place: Axes, panel: Panel, x_name: str = "", y_name: str = "") -> None:
    """Name the axes with units, set scales, limits and ticks. The names are for axes without a label."""
    place.set_title(panel.title)
    for axis, which, name in ((panel.x_axis, "x", x_name), (panel.y_axis, "y", y_name)):
        ticks = place.xaxis if which == "x" else place.yaxis
        ticks.set_label_text(axis_text(axis, name))
        if axis.log:
            getattr(place, f"set_{which}scale")("log")
        if axis.limits is not None:
            getattr(place, f"set_{which}lim")(*axis.limits)
        if axis.log:
            _plain_numbers_within_a_decade(ticks)


def _plain_numbers_within_a_decade(ticks: Any) -> None:
    """0.2, 0.3, 0.4 rather than no number at all where a logarithmic axis has no power of ten."""
    low, high = ticks.get_view_interval()
    if low > 0 and high / low <= 10:
        for formatter in (ticks.set_major_formatter, ticks.set_minor_formatter):
            formatter(ScalarFormatter())


def axis_text(axis: Axis, name: str) -> str:
    """ "loss (nat)": words, then the unit in brackets unless it is a pure number."""
    words = axis.label or name.replace("_", " ")
    return f"{words} ({axis.unit})" if axis.unit not in (None, "", "1") else words


def unit_of(axis: Axis, unit: str) -> Axis:
    """The axis with the array's own unit, unless the spec gave one or the label ends with it."""
    said = axis.unit is not None or axis.label.endswith(unit)
    return axis if said else axis.model_copy(update={"unit": unit})


def share_limits(places: Sequence[Axes]) -> None:
    """Give all panels the same y range, and numbers on the left ones only; not if their scales differ."""
    if len({(place.get_yscale(), place.get_ylabel()) for place in places}) > 1:
        return
    low = min(place.get_ylim()[0] for place in places)
    high = max(place.get_ylim()[1] for place in places)
    for place in places:
        place.set_ylim(low, high)
    left_only(places)


def left_only(places: Sequence[Axes]) -> None:
    """Name and number the y axis of the first panel of each row only."""
    for place in places:
        spec = place.get_subplotspec()
        if spec is not None and not spec.is_first_col():
            place.set_ylabel("")
            place.tick_params(labelleft=False)


def powers_of_ten(canvas: Canvas) -> None:
    """Write 0.2, 0.4 at the ticks and "(10^6 sequences)" in the axis label, instead of 200000, 400000."""
    for place in canvas.axes:
        for axis, limits in ((place.xaxis, place.get_xlim()), (place.yaxis, place.get_ylim())):
            if axis.get_scale() != "linear" or type(axis.get_major_formatter()) is not ScalarFormatter:
                continue
            largest = max(abs(limit) for limit in limits)
            power = int(np.floor(np.log10(largest))) if largest > 0 else 0
            if -3 <= power < 4:
                continue
            formatter = ScalarFormatter(useOffset=False)
            formatter.set_powerlimits((power, power))
            axis.set_major_formatter(formatter)
            axis.get_offset_text().set_visible(False)
            words = axis.get_label_text()
            if words:
                axis.set_label_text(_with_power(words, power))


def _with_power(words: str, power: int) -> str:
    before, bracket, unit = words.rpartition(" (")
    if bracket and unit.endswith(")"):
        return f"{before} ($10^{{{power}}}$ {unit}"
    return f"{words} ($\\times 10^{{{power}}}$)"


def references(place: Axes, panel: Panel, beside: bool = False) -> None:
    """Dashed horizontal lines, each named at its right end: above the line, or beside the axes."""
    for text, height in panel.reference.items():
        place.axhline(height, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1, label="_" + text)
        place.annotate(
            text, (1, height), xycoords=("axes fraction", "data"), xytext=(3, 0) if beside else (-2, 2),
            textcoords="offset points", ha="left" if beside else "right", va="center" if beside else "bottom",
            fontsize=7.5, color=GREY, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def published_handle(text: str) -> Line2D:
    """The legend entry of published values."""
    return Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", markeredgecolor=GREY,
                  markersize=4.5, label=text)  # fmt: skip


def band_handle(count: int) -> Patch:
    """The legend entry that says what a band or whisker is."""
    return Patch(facecolor=GREY, alpha=0.25, label=f"mean, min to max\n(n = {count} seeds)")


def legend(
    canvas: Canvas, places: Sequence[Axes], spec: Figure, extra: Sequence[Any] = (), most_inside: int = 3
) -> None:
    """One legend for all panels, each text once; beside them when it has more than `most_inside` entries."""
    found: dict[str, Any] = {}
    for place in places:
        for handle, text in zip(*place.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    handles = [*found.values(), *extra]
    texts = [*found, *(str(handle.get_label()) for handle in extra)]
    if not handles or spec.legend == "none" or (len(handles) == 1 and len(found) == 1 and len(places) == 1):
        return
    beside = spec.legend == "outside" or (
        spec.legend == "auto" and (len(handles) > most_inside or len(places) > 1)
    )
    if beside:
        rows = 8 * (1 + max(place.get_subplotspec().rowspan.stop for place in places))  # type: ignore[union-attr]
        columns = -(-len(handles) // max(rows, 18))
        # The panels keep the size they were given; the legend gets its own room.
        width, height = canvas.get_size_inches()
        longest = max(len(line) for text in texts for line in text.split("\n"))
        room = columns * (0.065 * longest + 0.45)
        canvas.set_size_inches(width + room, height)
        if spec.heading:  # over the panels, not over the legend
            canvas.suptitle(canvas.get_suptitle(), x=0.5 * width / (width + room))
        canvas.legend(handles, texts, loc="outside right upper", ncols=columns)
    else:
        places[0].legend(handles, texts, loc="best")


def bottom_note(canvas: Canvas, notes: Sequence[str]) -> None:
    """Small text under the figure, such as that the data are the embedded ones."""
    if not notes:
        return
    width, height = canvas.get_size_inches()
    lines = [line for note in notes for line in textwrap.wrap(note, max(int(width * 21), 30))]
    share = (len(lines) * 0.125 + 0.05) / (height + len(lines) * 0.125 + 0.05)
    canvas.set_size_inches(width, height / (1 - share))
    canvas.get_layout_engine().set(rect=(0, share, 1, 1 - share))  # type: ignore[union-attr]
    canvas.text(0.01, 0.008, "\n".join(lines), fontsize=6.5, color=GREY, ha="left", va="bottom")
