from __future__ import annotations

import pytest
import yaml

from repro.errors import UserError
from repro.interventions.specs import Manipulation, parse_head


def choose(**values: object) -> Manipulation:
    return Manipulation.choose(values, "manipulations.0")


@pytest.mark.parametrize("written", ["1:3", [1, 3], (1, 3), "L1H3", "l1h3", " 1:3", "01:03"])
def test_a_head_has_one_spelling(written: object) -> None:
    assert parse_head(written) == "1:3"


def test_an_unquoted_head_is_a_number_to_yaml_and_refused_with_a_hint() -> None:
    values = yaml.safe_load("{kind: ablate_heads, heads: [1:30, 0:2]}")
    with pytest.raises(UserError, match=r'heads\.0: .*"layer:head".*Quote it: "1:30", got 90'):
        choose(**values)


@pytest.mark.parametrize("written", ["1-3", True, None, [1], [1, 2, 3], [1, -2], 3.5, "1:", "L1", 3, {}])
def test_anything_else_is_refused(written: object) -> None:
    with pytest.raises(UserError, match="layer:head"):
        choose(kind="ablate_heads", heads=[written])


def test_heads_are_sorted_and_named_once() -> None:
    one = choose(kind="ablate_heads", heads=["1:10", "1:9", [0, 3], "L1H9"])
    assert one == choose(kind="ablate_heads", heads=["0:3", "1:9", "1:10"])
    assert one.model_dump(mode="json") == {"kind": "ablate_heads", "heads": ["0:3", "1:9", "1:10"]}


def test_temperatures_are_of_one_layer_and_have_one_order() -> None:
    one = choose(kind="head_temperature", temperatures={"L1H3": 2, "1:0": 0.5})
    assert list(one.model_dump()["temperatures"].items()) == [("1:0", 0.5), ("1:3", 2.0)]
    with pytest.raises(UserError, match="heads of one layer, not of layers 0, 1"):
        choose(kind="head_temperature", temperatures={"0:3": 2, "1:0": 0.5})


def test_heads_of_the_last_layer_may_be_numbers() -> None:
    assert choose(kind="silence_non_label", heads=[3, "1:2", 1, 3]).model_dump()["heads"] == [1, 3, "1:2"]
    with pytest.raises(UserError, match="Quote it"):
        choose(kind="silence_non_label", heads=[63])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "ablate_head"}, "did you mean 'ablate_heads'"),
        ({"kind": "ablate_heads"}, "heads: a value is required"),
        ({"kind": "ablate_heads", "heads": ["1:0"], "strength": 1}, "strength: unknown key"),
        ({"kind": "preserve", "sites": ["patterns"]}, "'pattern', 'v', 'q' or 'k', got 'patterns'"),
        (
            {"kind": "match_heads", "heads": [], "temperature": -1},
            "temperature: .*greater than or equal to 0",
        ),
        ({"kind": "head_temperature", "temperatures": {"1:0": 0}}, "greater than 0, got 0"),
        ({"kind": "previous_token_heads", "heads": [], "strength": float("nan")}, "finite number"),
        ({"kind": "graft_in", "run": "r"}, "till_layer: a value is required"),
        ({"kind": "graft_in", "run": "r", "till_layer": -1}, "till_layer: .*greater than or equal to 0"),
        ({"kind": "graft_out", "run": "r", "from_layer": 0, "checkpoint": "first"}, "'last'"),
    ],
)
def test_wrong_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(**values)


def test_a_graft_is_known_by_the_hash_of_its_model_not_by_where_it_lies() -> None:
    def fingerprint(run: str) -> dict:
        return choose(kind="graft_in", run=run, checkpoint=64, till_layer=0).fingerprint()

    assert fingerprint("a/trained/0123456789ab") == fingerprint("/elsewhere/0123456789ab")
    assert fingerprint("a/trained/0123456789ab") != fingerprint("a/trained/0123456789ac")
    assert fingerprint("a/one") != fingerprint("b/one")
