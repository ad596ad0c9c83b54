"""Head importance against plain autograd and hooks, one example at a time."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from repro.data.scored_texts import Example
from repro.errors import UserError
from repro.interventions.head_importance import Fitted, How, importance
from repro.models.language_model import LanguageModel
from tests.models.tiny_models import KINDS, exact, tiny


def examples(count: int = 5, seed: int = 0, longest: int = 12) -> list[Example]:
    rng = random.Random(seed)

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 61) for _ in range(rng.randint(least, most)))

    return [Example(ids(1, longest), ids(1, 4)) for _ in range(count)]


def by_hand(model: LanguageModel, example: Example, loss: str = "continuation") -> Tensor:
    """G * A summed over channels, [layer, T, head], of one example: the library's own loss and hooks."""
    kept: list[Tensor] = []

    def keep(module: object, args: tuple) -> None:
        args[0].retain_grad()
        kept.append(args[0])

    handles = [layer.out.register_forward_pre_hook(keep) for layer in model.layers]
    model.hf.requires_grad_(True)
    try:
        tokens = torch.tensor([example.tokens])
        logits = model.hf(input_ids=tokens[:, :-1], use_cache=False).logits
        count = {
            "continuation": len(example.continuation),
            "all_tokens": tokens.shape[1] - 1,
            "last_token": 1,
        }
        n = count[loss]
        torch.nn.functional.cross_entropy(logits[0, -n:], tokens[0, -n:]).backward()
    finally:
        model.hf.requires_grad_(False)
        for handle in handles:
            handle.remove()
        model.hf.zero_grad(set_to_none=True)
    parts = []
    for z in kept:
        assert z.grad is not None
        parts.append((z * z.grad)[0].unflatten(-1, (model.heads, -1)).sum(-1).detach())
    return torch.stack(parts)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_gives_what_autograd_gives(
    kind: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exact(kind, monkeypatch, "sdpa")
    some = examples()
    expected = torch.stack([by_hand(model, one).abs().sum(1) for one in some])
    found = importance(model, [Fitted.of(one, 32) for one in some], How(recompute=recompute))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found.dtype == torch.float64 and bool((found > 0).all())
    assert all(parameter.grad is None for parameter in model.hf.parameters())


@pytest.mark.parametrize("loss", ["continuation", "all_tokens", "last_token"])
def test_losses_scales_and_where_the_absolute_value_is_taken(loss: str) -> None:
    model, some = tiny("opt", "sdpa", torch.float64), examples(3, 1)
    products = [by_hand(model, one, loss) for one in some]
    fitted = [Fitted.of(one, 32) for one in some]
    found = importance(model, fitted, How(absolute="example", loss=loss, scale=2.0**20))  # type: ignore[arg-type]
    torch.testing.assert_close(
        found, torch.stack([one.sum(1).abs() for one in products]), rtol=1e-9, atol=1e-12
    )
    found = importance(model, fitted, How(loss=loss))  # type: ignore[arg-type]
    torch.testing.assert_close(
        found, torch.stack([one.abs().sum(1) for one in products]), rtol=1e-9, atol=1e-12
    )


def test_batches_and_their_order_do_not_matter() -> None:
    model, some = tiny("llama", "sdpa", torch.float64), [Fitted.of(one, 32) for one in examples(6)]
    whole = importance(model, some, How())
    alone = torch.cat([importance(model, [one], How()) for one in some])
    torch.testing.assert_close(whole, alone, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(importance(model, some[::-1], How()), whole.flip(0), rtol=1e-10, atol=1e-13)


def test_a_head_whose_output_is_not_read_has_no_importance() -> None:
    model = tiny("opt")
    matrix = model.layers[1].out.weight
    with torch.no_grad():
        matrix.view(24, 4, 6)[:, 2] = 0.0  # what is written of head 2
    found = importance(model, [Fitted.of(one, 32) for one in examples()], How())
    assert bool((found[:, 1, 2] == 0).all()) and int((found == 0).sum()) == len(found)


def test_long_examples_lose_tokens_from_the_left() -> None:
    example = Example(tuple(range(40)), (50, 51))
    fitted = Fitted.of(example, 32)
    assert fitted == Fitted((*range(9, 40), 50, 51), 2, 9)
    assert Fitted.of(Example((1,), tuple(range(40))), 32).targets == 32
    assert Fitted.of(Example((1,), (2,)), 32) == Fitted((1, 2), 1, 0)


def test_gradients_that_underflow_in_float16_are_found_and_mended() -> None:
    wide, half = (tiny("opt", "sdpa", dtype) for dtype in (torch.float32, torch.float16))
    some = [Fitted.of(one, 32) for one in examples(3)]
    for model in (wide, half):  # a sure model: its loss is small, and so are the gradients
        with torch.no_grad():
            model.layers[-1].out.weight.mul_(1e-3)
            model.layers[-1].down.weight.mul_(1e-3)  # type: ignore[union-attr,operator]
            model.embedding.weight.mul_(0.05)  # type: ignore[union-attr,operator]
    with pytest.raises(
        UserError, match=r"exactly zero: they underflow with loss scale 1e-06.*loss_scale=null"
    ):
        importance(half, some, How(scale=1e-6))
    expected, found = (importance(model, some, How()) for model in (wide, half))
    assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())
    torch.testing.assert_close(found.sum((0, 2)), expected.sum((0, 2)), rtol=0.1, atol=0)
