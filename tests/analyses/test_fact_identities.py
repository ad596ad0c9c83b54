"""What must hold of factual-recall analyses on any model, random weights included, on every family.

Geva et al. 2023's released notebook; what the harness saves for a user is compared, not parts of it. Also:
cuts leave earlier positions and lower layers as they are, and lists of windows, in
`tests/interventions/test_attention_knockout.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analyses.fact_cases import PROMPTS, token_facts
from models.tiny_models import EAGER_ONLY, KINDS, tiny

from repro.analyses import attention_knockout, attribute_extraction, early_patching
from repro.analyses.attribute_specs import AttributeExtraction, EarlyPatching
from repro.analyses.flow_specs import AttentionKnockout
from repro.interventions.early_rows import SETS, Clean, patched_outputs
from repro.interventions.lm_run import run
from repro.interventions.reweighting import ROWS, UNTOUCHED, attention_reads, variants
from repro.models.language_model import LanguageModel


def model_of(kind: str) -> LanguageModel:
    return tiny(kind, "eager" if kind in EAGER_ONLY else "sdpa", torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_set_of_edges_leaves_the_probability_and_a_window_of_one_is_a_single_layer(
    kind: str,
) -> None:
    spec = AttentionKnockout(
        sets=["none", "first_subject", "last"], window=1, maps=[0, 1], map_window=1, resamples=2
    )
    model = model_of(kind)
    # GPT-Neo and GPT-J take scores in float32, whatever the dtype, and the two are made in other shapes.
    close = 1e-6 if model.layers[0].upcasts_scores else 1e-10
    arrays = attention_knockout.run(model, token_facts(), None, None, spec).arrays
    found, base = arrays["probability"].values, arrays["base"].values
    assert np.array_equal(found[:, 0], np.broadcast_to(base[:, None], found[:, 0].shape))
    for number in (0, 1):  # positions one by one, layer by layer, against the sets that they are
        single = arrays[f"map_{number}_probability"].values
        tokens, (start, _) = PROMPTS[number]
        for row, column in ((1, start), (2, len(tokens) - 1)):
            np.testing.assert_allclose(single[column], found[number, row], rtol=close)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_from_its_parts_is_attention_and_without_any_its_bias(kind: str) -> None:
    model, data = model_of(kind), token_facts()
    spec = AttributeExtraction(batch=3)
    arrays = attribute_extraction.run(model, data, None, None, spec).arrays
    again = arrays["knockout_event"].select(row=UNTOUCHED).values
    event = arrays["event"].select(sublayer="MHSA").values
    assert all(np.array_equal(way, event) for way in again)
    # The event of "all" is that of the bias alone, the same for every prompt with the same answer.
    empty = arrays["knockout_event"].select(row="all").values
    facts = data.tokenise()
    pairs = attention_reads(model, facts)
    found = run(model, facts.batch, reads=[place for pair in pairs for place in pair], logits=None)
    for layer, (value, pattern) in zip(model.layers, pairs, strict=True):
        bias = layer.output_bias
        expected = torch.zeros(model.width, dtype=torch.float64) if bias is None else bias
        got = variants(layer, found[value], found[pattern], facts, spec.ways)[:, list(ROWS).index("all")]
        assert torch.equal(got, expected.expand_as(got))
        scores = model.unembedding @ _narrowed(model, expected)
        named = np.asarray([int(scores.argmax()) == answer for answer in arrays["answer"].values])
        assert all(np.array_equal(way[:, layer.index], named) for way in empty)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_put_back_to_the_blocks_own_input_change_nothing(kind: str) -> None:
    model, data = model_of(kind), token_facts()
    spec = EarlyPatching(sources=[0, 1, 2], batch=3)
    arrays = early_patching.run(model, data, None, None, spec).arrays
    for layer in range(model.depth):
        own = arrays["event"].select(source=layer, layer=layer).values  # prompt, set
        clean = arrays["clean_event"].values[:, layer]
        assert np.array_equal(own, np.broadcast_to(clean[:, None], own.shape))
    facts = data.tokenise()
    places = Clean.of(model, facts)
    clean_run = run(model, facts.batch, reads=places.reads, logits=None)
    for layer in model.layers:
        found = patched_outputs(layer, clean_run, places, facts, [layer.index])
        assert len(found) == 1 + len(SETS)
        assert torch.equal(found, found[:1].expand_as(found))


def _narrowed(model: LanguageModel, vector: torch.Tensor) -> torch.Tensor:
    """As the unembedding of OPT-350M's kind reads it."""
    return vector if model.project_out is None else vector @ model.project_out.weight.T  # type: ignore[union-attr,operator]
