"""What a figure can be told: one class a kind, none of them about one paper. Examples: docs/figures.md.

A figure names arrays (or scalars) of a Result. Every kind can have `panels`, drawn side by side; what a
panel leaves out, it takes from the figure. With several results (seeds) a line becomes the mean with a
band from the smallest to the largest.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, PositiveInt, model_validator

from repro.specs import Family, Spec

Label = str | int | float
Pair = tuple[float, float]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_one_or_many)]


class Axis(Spec):
    """An axis: `label` in words, `unit` (by default the array's), logarithmic or not, limits."""

    label: str = ""
    unit: str | None = None
    log: bool = False
    limits: tuple[float | None, float | None] | None = None


class Selection(Spec):
    """Which part of an array.

    select: axis -> one label (the axis goes) or a list of labels (the axis keeps only these).
    average_over: axes to take the mean over.
    minus: an array of the same shape (after the same selection) to subtract.
    """

    select: dict[str, Label | list[Label]] = {}
    average_over: Names = []
    minus: str | None = None


class Pick(Selection):
    """An array by its name in the Result, and the part of it that is meant."""

    array: str


class Series(Selection):
    """One line, or one for each label of the axis `fan_out`, or one for each of `conditions`.

    y: array; with `conditions` a template: "{condition}.eval_fsl_train_loss".
    x: array of x values, or empty for the labels of the axis that is left.
    conditions: names, or name -> text in the legend, put into {condition} of `y`, `x`, `minus` and `label`.
    band: two arrays like `y`, the edges of a band of the result itself (several results have their own).
    label: text in the legend; {label} is the label along `fan_out`.
    colours: categorical, or sequential for ordered lines such as strengths.
    colour: number in the palette or any colour, instead of the next one.
    """

    y: str
    band: tuple[str, str] | None = None
    x: str | None = None
    fan_out: str | None = None
    conditions: dict[str, str] = {}
    label: str = ""
    colour: int | str | None = None
    colours: Literal["categorical", "sequential"] = "categorical"
    style: Literal["solid", "dashed", "dotted", "dashdot"] | None = None
    markers: bool = False

    @model_validator(mode="before")
    @classmethod
    def _names_are_their_own_labels(cls, given: Any) -> Any:
        if isinstance(given, dict) and "conditions" in given:
            names = _one_or_many(given["conditions"])
            pairs = names.items() if isinstance(names, dict) else ((name, name) for name in names)
            # YAML reads a legend text such as 1 as a number.
            given = {**given, "conditions": {str(name): str(text) for name, text in pairs}}
        return given


class Panel(Spec):
    """What every panel has. `reference`: text -> height of a dashed horizontal line."""

    title: str = ""
    x_axis: Axis = Axis()
    y_axis: Axis = Axis()
    reference: dict[str, float] = {}


class Figure(Family):
    """A picture drawn from saved results; `module` has the `panel` function that draws one panel.

    heading: above the whole figure. size: (width, height) in inches of one panel. columns: panels a row.
    legend: beside the panels, inside them, or none; auto puts more than five entries beside.
    """

    module: ClassVar[str] = ""
    heading: str = ""
    caption: str = ""
    size: Pair | None = None
    columns: PositiveInt = 4
    share_y: bool = True
    legend: Literal["auto", "inside", "outside", "none"] = "auto"
    published_label: str = "published (digitised)"

    def filled_panels(self) -> list[Any]:
        """The panels, each with what it left out; the figure itself when it has none.

        Left out is what has its default: a config that was saved and read again says all defaults.
        """
        panels = getattr(self, "panels", [])
        inherited = _said(self)
        return [
            panel.model_copy(
                update={
                    name: value
                    for name, value in inherited.items()
                    if name in type(panel).model_fields and name not in _said(panel)
                }
            )
            for panel in panels
        ] or [self]


def _said(spec: Spec) -> dict[str, Any]:
    """The values of a spec that are not its defaults."""
    fields = type(spec).model_fields
    return {
        name: value
        for name, field in fields.items()
        if (value := getattr(spec, name)) != field.get_default(call_default_factory=True)
    }


class CurvesPanel(Panel):
    """x: array (or template) of x values for every series without its own; empty for axis labels.

    published: text in the legend -> [[x, y], ...], drawn as open circles in the colour of that line.
    panels_over: an axis of the first series with one panel a label; `title` may then have {label} in it.
    """

    x: str | None = None
    panels_over: str | None = None
    series: list[Series] = []
    published: dict[str, list[Pair]] = {}
    reference_x: dict[str, float] = {}


class Curves(Figure, CurvesPanel):
    """Lines over training, layers, positions or whatever axis an array has."""

    module: ClassVar[str] = "repro.figures.curves"
    kind: Literal["curves"] = "curves"
    panels: list[CurvesPanel] = []


class HeatmapPanel(Panel, Pick):
    """A matrix. rows, columns_axis: axes of the array, by default its first and second.

    fan_out: an axis with one panel a label; `title` may then have {label} in it.
    """

    array: str = ""
    rows: str | None = None
    columns_axis: str | None = None
    fan_out: str | None = None


class Heatmap(Figure, HeatmapPanel):
    """Matrices with a common colour scale. `centre`: the value that is white, as 0 for differences."""

    module: ClassVar[str] = "repro.figures.heatmap"
    kind: Literal["heatmap"] = "heatmap"
    panels: list[HeatmapPanel] = []
    annotate: bool = True
    digits: int = 2
    centre: float | None = None
    limits: Pair | None = None
    colour_label: str = ""


class BarSeries(Pick):
    """Bars of one colour: an array over one axis, or `scalars`: text under the bar -> scalar."""

    array: str = ""
    scalars: dict[str, str] = {}
    label: str = ""
    colour: int | str | None = None
    published: list[float | None] | dict[Label, float] = []

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.array) == bool(self.scalars):
            raise ValueError("give either `array` or `scalars`")
        return self


class BarsPanel(Panel):
    """Groups of bars; several series stand beside each other."""

    series: list[BarSeries] = []


class Bars(Figure, BarsPanel):
    """Grouped bars, published values as open circles, whiskers from smallest to largest over seeds."""

    module: ClassVar[str] = "repro.figures.bars"
    kind: Literal["bars"] = "bars"
    panels: list[BarsPanel] = []
    values: bool = False


class Points(Spec):
    """A cloud: two arrays over the same one axis, whose labels name the points.

    published: [[x, y], ...], drawn as open circles. point_labels: write the labels beside the points.
    """

    x: Pick
    y: Pick
    label: str = ""
    colour: int | str | None = None
    point_labels: bool = True
    published: list[Pair] = []


class ScatterPanel(Panel):
    """correlation: written into the panel, over all points of all seeds. regression: a line a series."""

    series: list[Points] = []
    correlation: Literal["spearman", "pearson"] | None = None
    regression: bool = False
    diagonal: bool = False


class Scatter(Figure, ScatterPanel):
    """One quantity against another; colours are series, or seeds when there is one series and many seeds."""

    module: ClassVar[str] = "repro.figures.scatter"
    kind: Literal["scatter"] = "scatter"
    panels: list[ScatterPanel] = []


class Row(Spec):
    """A row of numbers: a scalar of the Result and what was published."""

    scalar: str
    published: float | None = None


class Column(Pick):
    """A column of numbers: an array over one axis, and what was published for each label."""

    label: str = ""
    published: list[float | None] | dict[Label, float] = []


class Table(Figure, Panel):
    """Numbers as text: `rows` of scalars, or `table_columns` of arrays that share an axis."""

    module: ClassVar[str] = "repro.figures.table"
    kind: Literal["table"] = "table"
    rows: dict[str, Row] = {}
    table_columns: list[Column] = []
    row_name: str = ""
    digits: int = 3

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.rows) == bool(self.table_columns):
            raise ValueError("give either `rows` or `table_columns`")
        return self


class Graph(Figure, Panel, Pick):
    """Nodes in boxes by `group`, at height `layer`, boxes side by side by `place`; arrows to groups.

    array: effect [node, group], NaN where there is no arrow; a group without nodes is the end (logits).
    group, place (text), layer: arrays over the nodes. One panel a result.
    """

    module: ClassVar[str] = "repro.figures.graph"
    kind: Literal["graph"] = "graph"
    array: str = "edge.percent"
    group: str = "node.class"
    layer: str = "node.layer"
    place: str = "node.position"
    colour_label: str = ""


import repro.figures.token_specs  # noqa: E402, F401  (one more kind; at the end, since it needs what stands above)
