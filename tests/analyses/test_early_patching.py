"""Patching of early states as an analysis: events against whole runs, invariances, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from analyses.fact_cases import PROMPTS, token_facts
from analyses.splitting import assert_split_equals_whole
from models.tiny_models import tiny

from repro.analyses import early_patching as analysis
from repro.analyses.attribute_specs import EarlyPatching
from repro.errors import UserError


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "gpt_neo", "llama", "opt"])
def test_events_are_those_of_running_the_library_anew(kind: str) -> None:
    """The released code's way: a hook on the block replaces rows of its input in place, for every cell."""
    model = tiny(kind, dtype=torch.float64)
    result = analysis.run(model, token_facts(), None, None, EarlyPatching(sources=[0, 1, 2], batch=3))
    event = result.arrays["event"]
    matrix = model.unembedding
    for number, (tokens, (begin, end)) in enumerate(PROMPTS):
        ids = torch.tensor([tokens])
        with torch.no_grad():
            states = model.hf(ids, output_hidden_states=True).hidden_states
        columns = list(range(len(tokens)))
        sets = {
            "subject": columns[begin:end],
            "non_subject": [c for c in columns[:-1] if not begin <= c < end],
            "last": columns[-1:],
        }
        answer = int(result.arrays["answer"].values[number])
        for layer in model.layers:
            for source in (0, 1, 2):
                for name, where in sets.items():
                    got: list[torch.Tensor] = []

                    def put(module, args, kwargs, where=where, early=states[source]):
                        entered = args[0].clone()
                        entered[0, where] = early[0, where]
                        return (entered, *args[1:]), kwargs

                    handles = [
                        layer.block.register_forward_pre_hook(put, with_kwargs=True),
                        layer.attention.register_forward_hook(
                            lambda m, a, out, got=got: got.append(out[0][0, -1])
                        ),
                    ]
                    with torch.no_grad():
                        model.hf(ids)
                    for handle in handles:
                        handle.remove()
                    expected = int((matrix @ got[0]).argmax()) == answer
                    at = event.select(source=source, set=name, layer=layer.index)
                    assert bool(at.values[number]) == expected, (number, layer.index, source, name)


def test_a_source_that_is_the_layers_own_input_changes_nothing(tmp_path: Path) -> None:
    model, data = tiny("gpt2", dtype=torch.float64), token_facts()
    spec = EarlyPatching(sources=[0, 2], batch=2)
    result = analysis.run(model, data, None, None, spec)
    clean, event = result.arrays["clean_event"].values, result.arrays["event"]
    for source in (0, 2):
        for name in ("subject", "non_subject", "last"):
            own = event.select(source=source, set=name, layer=source).values
            np.testing.assert_array_equal(own, clean[:, source])
    # layer 0 reads hidden state 0 and layer 2 hidden state 2, so with one layer nothing can be lost
    assert result.arrays["rate"].axes == {"set": ["subject", "non_subject", "last"], "source": [0, 2]}
    assert_split_equals_whole(
        analysis, model, data, EarlyPatching(sources=[0, 2], batch=1), 5, tmp_path, (2, 5)
    )


def test_rates_and_drops_are_counted_by_example() -> None:
    model = tiny("gpt2", dtype=torch.float64)
    result = analysis.run(model, token_facts(), None, None, EarlyPatching(sources=[0, 1]))
    event = np.asarray(result.arrays["event"].values).any(axis=-1)  # prompt, source, set
    unique = [0, 1, 2, 4]  # prompt 3 is prompt 0 again
    expected = 100 * np.take(event, unique, axis=0).mean(0).T
    np.testing.assert_allclose(result.arrays["rate"].values, expected)
    clean = 100 * np.asarray(result.arrays["clean_event"].values)[unique].any(axis=-1).mean()
    assert result.scalars["rate.unpatched"] == pytest.approx(clean)
    assert result.scalars["rate.subject.1"] == pytest.approx(expected[0, 1])
    steps = np.diff(expected, axis=1).min(1)
    assert result.scalars["smallest_step.last"] == pytest.approx(steps[2])


def test_sources_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(UserError, match="hidden states 0 to 2"):
        analysis.run(tiny("gpt2"), token_facts(), None, None, EarlyPatching())
