"""Files, notes, the examples of the documentation, and what every kind has in common."""

import re
from pathlib import Path

import pytest
import yaml

from repro.errors import UserError
from repro.figures.draw import draw_all
from repro.figures.specs import Figure
from tests.figures.examples import documented, draw, result

BARS = Figure.choose({"kind": "bars", "series": [{"array": "strength"}]}, "figures.good")
DOCS = Path(__file__).parents[2] / "docs" / "figures.md"


def test_writes_png_and_pdf_and_nothing_else(tmp_path):
    written = draw_all({"good": BARS}, [result()], [], tmp_path / "figures", ["embedded data"])
    assert sorted(path.name for path in written) == ["good.pdf", "good.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["good.pdf", "good.png"]
    assert written[0].read_bytes().startswith(b"\x89PNG") and written[1].read_bytes().startswith(b"%PDF")


def test_same_result_same_bytes(tmp_path):
    first = [path.read_bytes() for path in draw_all({"good": BARS}, [result()], [], tmp_path)]
    assert first == [path.read_bytes() for path in draw_all({"good": BARS}, [result()], [], tmp_path)]


def test_a_figure_that_fails_does_not_take_the_others_along(tmp_path):
    bad = Figure.choose({"kind": "bars", "series": [{"array": "nothing"}]}, "figures.bad")
    with pytest.raises(
        UserError, match="figures.bad: there is no array 'nothing'. Arrays: induction_strength"
    ):
        draw_all({"bad": bad, "good": BARS}, [result()], [], tmp_path)
    assert (tmp_path / "good.png").exists() and not (tmp_path / "bad.png").exists()


def test_notes_stand_under_the_figure_which_grows_for_them():
    spec = {"kind": "bars", "series": [{"array": "strength"}]}
    plain, noted = draw(spec), draw(spec, notes=["embedded data, " * 10])
    assert "embedded data" in noted.texts[0].get_text()
    assert noted.get_size_inches()[1] > plain.get_size_inches()[1]


def test_large_numbers_are_written_as_powers_of_ten():
    spec = {"kind": "curves", "series": [{"y": "none.eval_fsl_train_loss", "x": "none.eval_sequences"}]}
    canvas = draw({**spec, "x_axis": {"label": "training", "unit": "sequences"}})
    assert canvas.axes[0].get_xlabel() == "training ($10^{5}$ sequences)"
    canvas.draw_without_rendering()
    assert any("2.0" in text.get_text() for text in canvas.axes[0].get_xticklabels())


def test_no_results_is_said(tmp_path):
    with pytest.raises(UserError, match="no result to draw"):
        draw_all({"good": BARS}, [], [], tmp_path)


def test_unknown_kind_and_key_are_refused_with_the_choices():
    choices = "bars, curves, graph, heatmap, scatter, table"
    with pytest.raises(UserError, match=f"did you mean 'curves'.*{choices}"):
        Figure.choose({"kind": "curve"}, "figures.x")
    with pytest.raises(UserError, match="figures.x.serie: unknown key"):
        Figure.choose({"kind": "curves", "serie": []}, "figures.x")


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL))
@pytest.mark.parametrize("seeds", [1, 3])
def test_examples_of_the_documentation_can_be_drawn(example, seeds):
    canvas = draw(yaml.safe_load(example), *[documented(0.1 * seed) for seed in range(seeds)])
    canvas.draw_without_rendering()
    assert canvas.axes[0].has_data() or canvas.axes[0].texts
