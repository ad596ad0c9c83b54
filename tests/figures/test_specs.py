"""What a figure's YAML is understood as."""

import subprocess
import sys

import pytest

from repro.figures.specs import BarSeries, Curves, Figure, Series


def test_kinds():
    assert sorted(Figure.kinds()) == ["bars", "curves", "graph", "heatmap", "scatter", "table", "tokens"]


@pytest.mark.parametrize("given", [["a", "b"], {"a": "a", "b": "b"}])
def test_conditions_name_themselves_unless_told(given):
    assert Series(y="{condition}.loss", conditions=given).conditions == {"a": "a", "b": "b"}


def test_yaml_numbers_are_texts_where_texts_are_meant():
    assert Series(y="{condition}.loss", conditions={"pt": 1}).conditions == {"pt": "1"}
    assert BarSeries(array="x", published={3: 0.5}).published == {3: 0.5}


def test_a_panel_takes_from_the_figure_only_what_it_leaves_out():
    spec = Curves(x="steps", reference={"chance": 0.5}, panels=[{"x": "tokens"}, {"title": "second"}])
    first, second = spec.filled_panels()
    assert (first.x, first.reference) == ("tokens", {"chance": 0.5})
    assert (second.x, second.title) == ("steps", "second")


def test_a_figure_without_panels_is_its_own():
    spec = Curves(series=[{"y": "loss"}])
    assert spec.filled_panels() == [spec]


def test_specs_are_light():
    code = (
        "import sys, repro.figures.specs; print({'matplotlib', 'numpy', 'jax', 'scipy'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


def test_panels_inherit_also_when_the_spec_was_saved_with_all_defaults_and_read_again():
    given = {
        "kind": "curves",
        "series": [{"y": "loss"}],
        "reference": {"ln 2": 0.693},
        "panels": [{"title": "a"}, {"series": [{"y": "accuracy"}]}],
    }
    once = Figure.choose(given, "figures.f")
    again = Figure.choose(once.model_dump(mode="json"), "figures.f")
    for spec in (once, again):
        first, second = spec.filled_panels()
        assert [series.y for series in first.series] == ["loss"]
        assert [series.y for series in second.series] == ["accuracy"]
        assert first.reference == second.reference == {"ln 2": 0.693}
