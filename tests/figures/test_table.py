"""Tables: the texts in reading order."""

import pytest

from repro.errors import UserError
from repro.figures.specs import Table
from repro.figures.table import cells
from tests.figures.examples import draw, result

ROWS = {
    "rows": {
        "kept": {"scalar": "pt_patterns.accuracy", "published": 0.9985},
        "v": {"scalar": "pt_values.accuracy"},
    }
}
COLUMNS = {
    "table_columns": [
        {"array": "strength", "published": {1: 0.2}},
        {"array": "only_accuracy", "label": "alone"},
    ]
}


def test_rows_of_scalars():
    assert cells(Table(**ROWS, row_name="what"), [result()]) == [
        ["what", "measured", "published"],
        ["kept", "0.990", "0.999"],
        ["v", "0.700", ""],
    ]


def test_columns_of_arrays():
    table = cells(Table(**COLUMNS, digits=2), [result()])
    assert table[0] == ["head", "strength", "published", "alone"]
    assert table[2] == ["1", "0.25", "0.20", "0.10"]
    assert table[3] == ["2", "0.50", "", "0.40"]


def test_seeds_show_mean_and_range():
    table = cells(Table(**ROWS, digits=2), [result(-0.5), result(-0.3), result(-0.1)])
    assert table[0][1] == "mean of 3 seeds [min, max]"
    assert table[2][1] == "0.40 [0.20, 0.60]"


def test_every_cell_is_drawn():
    texts = [text.get_text() for text in draw({"kind": "table", **ROWS}).axes[0].texts]
    assert {"kept", "0.990", "0.999", "published"} <= set(texts)


def test_other_labels_and_missing_scalars_are_refused():
    with pytest.raises(UserError, match="other labels than the first column"):
        draw(
            {"kind": "table", "table_columns": [*COLUMNS["table_columns"], {"array": "none.eval_sequences"}]}
        )
    with pytest.raises(UserError, match="no scalar 'x'"):
        draw({"kind": "table", "rows": {"a": {"scalar": "x"}}})
    with pytest.raises(UserError, match="either `rows` or `table_columns`"):
        draw({"kind": "table"})
