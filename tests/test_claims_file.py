"""A claims.yaml that is wrong says where."""

import pytest

from repro.claims_file import read, show
from repro.errors import UserError

CLAIM = "id: C1, source: Fig. 1, says: x, experiment: curve"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"claims: [{{{CLAIM}, tolerance: 1}}]", "unknown key"),
        ("claims: [{id: C1, source: x, says: y}]", "experiment: a value is required"),
        (f"claims: [{{{CLAIM}, otherwise: [{{measure: a, op: '~', value: 1}}]}}]", "'<', '<='"),
        (f"claims: [{{{CLAIM}, otherwise: [{{measure: a, op: '<'}}]}}]", "needs a value"),
        (f"claims: [{{{CLAIM}, otherwise: [{{measure: a, op: order, value: 1}}]}}]", "takes no value"),
        (f"claims: [{{{CLAIM}, otherwise: [{{measure: a, op: between, value: 1}}]}}]", r"\[low, high\]"),
        (f"claims: [{{{CLAIM}, otherwise: [{{measure: a, op: within, value: 1}}]}}]", "tolerance above 0"),
        (f"claims: [{{{CLAIM}, otherwise: [{{measure: exit(), op: '<', value: 1}}]}}]", "no function"),
        (f"claims: [{{{CLAIM}}}, {{{CLAIM}}}]", "given twice: C1"),
        ("claims: [", "cannot be read"),
        ("text", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_plain_list_of_claims_is_enough(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(f"- {{{CLAIM}}}")
    assert [claim.id for claim in read(path).claims] == ["C1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        ([1, 2.5], "[1, 2.5]"),
        ("as printed", "as printed"),
        (None, ""),
        ([3.0], "3"),
        (200000.0, "200000"),
    ],
)
def test_show(value, text):
    assert show(value) == text


def test_show_cuts_long_lists():
    assert show(list(range(20)), most=2) == "[0, 1, ... (20)]"
