"""Small language models with random weights: the library's own, of the sizes that the spec says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repro.errors import UserError
from repro.models import organism
from repro.models.specs import Model, Organism

TASK = {"kind": "repeats", "vocabulary": 12, "length": 16}


def spec(**values: Any) -> Organism:
    small = {"depth": 3, "heads": 2, "width": 16, "context": 20, "task": TASK}
    chosen = Model.choose({"kind": "organism", **small, **values}, "model")
    assert isinstance(chosen, Organism)
    return chosen


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo", "opt"])
def test_sizes_are_those_of_the_spec(architecture: str) -> None:
    model = organism.build(spec(architecture=architecture, mlp_width=24), 12, None, seed=0)
    config = model.config
    assert config.model_type == architecture
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (3, 2, 16)
    shapes = {tuple(weight.shape) for weight in model.parameters()}
    assert {(12, 16)} < shapes and ({(16, 24), (24, 16)} & shapes)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert all(part.p == 0 for part in model.modules() if isinstance(part, torch.nn.Dropout))
    assert model(torch.arange(16)[None] % 12).logits.shape == (1, 16, 12)


def test_layers_of_gpt_neo_are_local_first() -> None:
    """With local layers alone the last token cannot see beyond their reach; with one global layer it can."""
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    other = tokens.clone()
    other[0, 0] = 9
    for near, moves in ((3, False), (2, True)):
        model = organism.build(
            spec(architecture="gpt_neo", local_layers=near, window=2, init_range=0.5), 12, None, 0
        )
        change = (model(tokens).logits - model(other).logits)[0, -1].abs().max()
        assert bool(change > 0) is moves, near


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = organism.build(spec(), 12, None, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected), "the process' own random numbers are left alone"
    again = organism.build(spec(), 12, None, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = organism.build(spec(), 12, None, seed=2).state_dict()
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_initial_range_is_that_of_the_spec() -> None:
    weights = organism.build(spec(init_range=0.3, width=64), 12, None, 0).state_dict()
    assert float(weights["transformer.h.0.mlp.c_fc.weight"].std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 3}, "model.heads: must divide"),
        ({"context": 15}, "model.context=16"),
        ({"local_layers": 1}, "others 0; this is gpt2"),
        ({"architecture": "gpt_neo", "local_layers": 4}, "up to 3"),
        ({"until": {"held_out_prefers": 0.9}}, "Valid: quarter_loss, quarter_accuracy"),
        ({"task": {"kind": "repeat"}}, "did you mean 'repeats'"),
        ({"task": {**TASK, "lenght": 3}}, "model.task.lenght: unknown key"),
        ({"task": None}, "model.task"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec(**values)


def test_the_fingerprint_has_all_that_can_change_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = spec()
    assert plain.task.model_dump() == spec(task=plain.task).task.model_dump()
    trained = plain.training_fingerprint()
    for other in (spec(seed=1), spec(steps=9), spec(task={**TASK, "length": 14}), spec(init_range=0.1)):
        assert other.training_fingerprint() != trained
    loaded = spec(dtype="float64", attention="sdpa")
    assert loaded.training_fingerprint() == trained and loaded.fingerprint() != plain.fingerprint()
    monkeypatch.setattr(type(plain.task), "version", 2)
    assert plain.training_fingerprint() != trained
    monkeypatch.undo()
    monkeypatch.setattr(Organism, "trainer", 2)
    assert plain.training_fingerprint() != trained


def test_a_dump_parses_to_the_same_spec() -> None:
    made = spec(until={"half_accuracy": 0.5})
    assert Model.choose(made.model_dump(mode="json"), "model") == made
    assert spec(until=None).until == {}
