"""Direct effects under several flips equal path patching with each flip; their sum is compared by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from models.tiny_models import tiny

from repro.analyses import flip_effects, path_patching
from repro.analyses.specs import Analysis
from repro.data.ioi import load
from repro.data.specs import Data
from repro.errors import UserError
from repro.models.huggingface import wrap


def toy(corruption):
    return load(Data.choose({"kind": "ioi_toy", "n": 8, "corruption": corruption}, "data"))


def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=111, n_embd=24, n_layer=2, n_head=3, n_positions=32)
    hf = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(std=0.3)
    return wrap(hf.double())


def test_each_flip_equals_path_patching_with_it():
    spec = Analysis.choose(
        {"kind": "flip_effects", "flips": {"IO": ["IO"], "S": ["S"], "both": ["IO", "S"]}, "both": "both",
         "parts": ["IO", "S"]}, "analysis",
    )  # fmt: skip
    result = flip_effects.run(model(), toy(["ABC"]), None, None, spec)
    single = Analysis.choose({"kind": "path_patching"}, "analysis")
    for i, chain in enumerate((["IO"], ["S"], ["IO", "S"])):
        expected = path_patching.run(model(), toy(chain), None, None, single)
        np.testing.assert_allclose(
            result.arrays["per_prompt"].values[i], expected.arrays["per_prompt"].values, atol=1e-12
        )
        np.testing.assert_allclose(
            result.arrays["mlp_effect"].values[i], expected.arrays["mlp_effect"].values, atol=1e-12
        )
    effect = result.arrays["effect"].values
    residual = effect[2] - effect[0] - effect[1]
    np.testing.assert_allclose(result.arrays["residual"].values, residual, atol=1e-12)
    share = np.abs(residual).max() / np.abs(effect[2]).max()
    assert result.scalars["residual.max_share"] == pytest.approx(share)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="must be names of flips"):
        Analysis.choose(
            {"kind": "flip_effects", "flips": {"a": ["IO"]}, "both": "b", "parts": ["a"]}, "analysis"
        )
    spec = Analysis.choose({"kind": "flip_effects", "flips": {"a": ["IO"]}}, "analysis")
    with pytest.raises(UserError, match="flips need prompts made of names"):
        flip_effects.run(tiny("gpt2"), object(), None, None, spec)
