from __future__ import annotations

import pytest

from repro.errors import UserError
from repro.models.sites import SITES, check_site

AXES = {"batch", "position", "item", "head", "query", "key", "channel", "head_channel", "hidden", "output"}


def test_axes_are_of_the_one_vocabulary() -> None:
    for name, site in SITES.items():
        assert set(site.axes) <= AXES, name
        assert len(set(site.axes)) == len(site.axes), name


def test_existing_sites_are_accepted() -> None:
    for name, site in SITES.items():
        for layer in (0, 2) if site.per_layer else (None,):
            check_site(name, layer, depth=3)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("patern", 0, "got 'patern'. Valid choices: .*pattern"),
        ("pattern", None, "a layer is required"),
        ("logits", 0, "it has no layer, got 0"),
        ("pattern", 3, "layer 3 does not exist. Valid layers: 0 to 2"),
        ("pattern", -1, "layer -1 does not exist"),
    ],
)
def test_others_are_refused(name: str, layer: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_site(name, layer, depth=3)
