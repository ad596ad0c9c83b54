from __future__ import annotations

import itertools

import pytest

from repro.errors import UserError
from repro.interventions.compatibility import check, in_order, resolve
from repro.interventions.specs import ORDER, Manipulation
from repro.models.specs import IclTransformer

MODEL = IclTransformer(depth=2, heads=8)


def made(*manipulations: dict) -> list[Manipulation]:
    return [Manipulation.choose(one, "m") for one in manipulations]


def h(kind: str, *heads: object, **more: object) -> dict:
    return {"kind": kind, "heads": list(heads), **more}


ONE_OF_EACH = made(
    h("ablate_heads", "0:0"),
    {"kind": "graft_in", "run": "r", "till_layer": 0},
    {"kind": "graft_out", "run": "r", "from_layer": 1},
    {"kind": "silence_non_label", "heads": [3]},
    {"kind": "preserve", "sites": ["v"]},
    h("previous_token_heads", "0:1"),
    h("forbid_previous_token", "0:2"),
    h("match_heads", "1:1"),
    {"kind": "ablate_embedding"},
    {"kind": "head_temperature", "temperatures": {"1:2": 0.5}},
    h("induction_heads", "1:4"),
)


def test_every_kind_has_its_place_in_the_order() -> None:
    assert {kind.model_fields["kind"].default for kind in ORDER} == set(Manipulation.kinds())


def test_order_is_that_of_the_published_list() -> None:
    kinds = [one.model_dump()["kind"] for one in resolve(ONE_OF_EACH, MODEL, 2)]
    assert kinds == [
        "preserve", "head_temperature", "graft_in", "ablate_embedding", "ablate_heads",
        "previous_token_heads", "induction_heads", "match_heads", "forbid_previous_token",
        "silence_non_label", "graft_out",
    ]  # fmt: skip
    assert [one.model_dump()["kind"] for one in in_order(reversed(ONE_OF_EACH))] == kinds


def test_lists_that_mean_the_same_are_equal() -> None:
    one = made(h("ablate_heads", "1:3", [0, 2]), h("silence_non_label", 3, 1), h("ablate_heads", "1:0"))
    for order in itertools.permutations(
        made(
            h("ablate_heads", "L1H0"),
            h("ablate_heads", "0:2", "L1H3", "1:3"),
            h("silence_non_label", "1:1", 3),
        )
    ):
        assert resolve(order, MODEL, 2) == resolve(one, MODEL, 2)


PERFECT = {"kind": "perfect_previous_token_input"}


@pytest.mark.parametrize(
    ("manipulations", "message"),
    [
        ([h("previous_token_heads", "0:2"), h("induction_heads", "0:2")], "head 0:2 got contradicting"),
        (
            [h("forbid_previous_token", "0:2", "0:1"), h("previous_token_heads", "0:2")],
            "head 0:2 got contradicting",
        ),
        (
            [h("induction_heads", "1:2"), h("induction_heads", [1, 2], strength=0.5)],
            "head 1:2 got contradicting",
        ),
        ([{"kind": "preserve", "sites": ["v"]}] * 2, "preserve at most once, got 2"),
        ([PERFECT, h("match_heads", "1:2")], "got match_heads besides it. Valid: perfect_copy, ablate_heads"),
        ([PERFECT, h("ablate_heads", "0:2")], "ablate_heads got 0:2.*Valid: heads of layer 1"),
        (
            [{"kind": "perfect_copy", "head": "1:0"}, {"kind": "graft_out", "run": "r", "from_layer": 0}],
            "perfect_copy and graft_out",
        ),
        ([h("ablate_heads", "2:0")], "head 2:0.*layers 0 to 1, heads 0 to 7"),
        ([h("ablate_heads", "1:8")], "head 1:8.*layers 0 to 1, heads 0 to 7"),
        ([{"kind": "head_temperature", "temperatures": {"3:0": 1}}], "head_temperature got head 3:0"),
        ([{"kind": "perfect_copy", "head": "1:8"}], "perfect_copy got head 1:8"),
        ([{"kind": "silence_non_label", "heads": [8]}], "silence_non_label got head 1:8"),
        (
            [{"kind": "silence_non_label", "heads": ["0:1"]}],
            "got head 0:1. Valid: heads of the last layer, 1",
        ),
        ([{"kind": "graft_in", "run": "r", "till_layer": 2}], "graft_in got layer 2. Valid: 0 to 1"),
    ],
)
def test_what_contradicts_itself_or_does_not_exist_is_refused(
    manipulations: list[dict], message: str
) -> None:
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        check(made(*manipulations), MODEL, 2, "here")


def test_heads_may_do_different_things_in_different_layers() -> None:
    check(
        made(h("previous_token_heads", "0:2"), h("induction_heads", "1:2"), h("ablate_heads", "0:2")),
        MODEL,
        2,
    )


@pytest.mark.parametrize(
    "one", [h("induction_heads", "1:0"), {"kind": "perfect_copy", "head": "1:0"}, PERFECT]
)
def test_two_pairs_where_the_definition_needs_them(one: dict) -> None:
    check(made(one), MODEL, 2)
    with pytest.raises(UserError, match="two exemplar-label pairs, got a context of 4"):
        check(made(one), MODEL, 4)


def test_two_layers_where_the_definition_needs_them() -> None:
    with pytest.raises(UserError, match="two layers, got model.depth=3"):
        check(made(PERFECT), IclTransformer(depth=3), 2)
