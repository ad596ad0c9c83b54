"""Settings of influence functions: what is hashed, what is refused, what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models.tiny_models import tiny
from safetensors.torch import save_file

from repro.analyses.influence.modules import tracked_modules
from repro.analyses.influence_costs import modules, sizes
from repro.analyses.influence_specs import MANIFEST, InfluenceScores
from repro.data.block_specs import TokenBlocksFile
from repro.data.corpus_specs import Articles
from repro.data.token_blocks import from_tensors, load
from repro.errors import UserError
from repro.models.known_shapes import KNOWN

GPT2 = KNOWN["gpt2"]


def spec(**given: object) -> InfluenceScores:
    return InfluenceScores.parse(given, "analysis")


def test_what_changes_no_number_is_not_hashed(tmp_path: Path) -> None:
    sizes = {"factor_batch": 3, "train_batch": 3, "query_batch": 3, "query_accumulation": 2, "partitions": 4}
    assert spec(**sizes, module_partitions=2).fingerprint() == spec().fingerprint()
    assert spec(damping=None) == spec(damping="heuristic") != spec(damping=0.1)
    (tmp_path / MANIFEST).write_text(json.dumps({"dtype": "float32"}))
    given = spec(factors_path=str(tmp_path)).fingerprint()
    assert given != spec().fingerprint()
    (tmp_path / MANIFEST).write_text(json.dumps({"dtype": "float64"}))
    assert spec(factors_path=str(tmp_path)).fingerprint() != given


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    for given, why in (
        ({"gentle": True}, "analysis.gentle"),
        ({"damping": -1}, "analysis.damping"),
        ({"strategy": "kfacs"}, "analysis.strategy"),
        ({"modules": []}, "analysis.modules"),
        ({"factors_path": str(tmp_path)}, "expected one folder with factors.json"),
    ):
        with pytest.raises(UserError, match=why):
            spec(**given)


def test_published_sizes() -> None:
    """48 modules of 85,017,600 weights and biases (12 layers of 7,084,800) at 4,656 blocks, 481 queries."""
    sides = GPT2.layers * modules(GPT2)
    assert len(sides) == 48 and sum(out * inputs for out, inputs in sides) == 85_017_600
    found = spec(self_influence=False).cost(GPT2, Articles(block=512, train=4656, query=481))
    assert "85,017,600" in found.lines[0] and "4,656 training blocks and 481 queries" in found.lines[0]
    # Covariances, eigenvalues, queries, and 16 passes of at least 32 queries, as published.
    assert found.forward_tokens == 512 * (2 * 4656 + 481 + 16 * 4656) == found.backward_tokens
    every = spec(self_influence=False, query_accumulation=16, query_batch=32)
    assert every.cost(GPT2, Articles(block=512, train=4656, query=481)).forward_tokens < found.forward_tokens
    assert spec(strategy="identity").cost(GPT2, Articles()).total_flops(GPT2) < spec().cost(
        GPT2, Articles()
    ).total_flops(GPT2)  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gpt_neox", "llama", "opt"])
def test_modules_of_an_estimate_are_those_that_are_looked_at(kind: str, tmp_path: Path) -> None:
    from repro.models.known_shapes import find

    model = tiny(kind)
    model.hf.save_pretrained(tmp_path)
    shape = find(str(tmp_path))
    assert shape is not None
    found = [(one.outputs, one.inputs) for one in tracked_modules(model)]
    assert sorted(found) == sorted(model.depth * modules(shape))


def test_sizes_of_a_file_are_read_without_loading_it(tmp_path: Path) -> None:
    path = tmp_path / "blocks.safetensors"
    save_file(
        {"train": torch.zeros(7, 5, dtype=torch.long), "query": torch.zeros(2, 5, dtype=torch.long)}, path
    )
    assert sizes(TokenBlocksFile(path=str(path))) == ((7, 2, 5), "")
    assert len(load(TokenBlocksFile(path=str(path))).train) == 7


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    whole = {"train": torch.ones(4, 6, dtype=torch.long), "query": torch.ones(2, 6, dtype=torch.long)}
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, 4:] = False
    for changed, why in (
        ({"query": torch.ones(2, 5, dtype=torch.long)}, "Cut them to one length, or pad them"),
        ({"train": whole["train"].float()}, "whole numbers"),
        ({"train": torch.where(mask, whole["train"], -100)}, "unequal length are padded"),
        ({"train": whole["train"][:0]}, "at least one block"),
        ({"fisher_labels": whole["train"]}, r"fisher_labels: expected the shape \(4, 5\)"),
        ({"train_mask": mask[:, :5]}, "train_mask: expected the shape"),
        ({"others": whole["train"]}, "unknown: others"),
    ):
        with pytest.raises(UserError, match=why):
            from_tensors({**whole, **changed}, "made up", "")
    padded = from_tensors({**whole, "train": torch.where(mask, 1, -100), "train_mask": mask}, "made up", "")
    assert padded.train.mask is not None and int(padded.train.tokens.min()) == 0
    with pytest.raises(UserError, match=r"pickle.*safetensors"):
        (tmp_path / "masks.pt").write_bytes(b"")
        load(TokenBlocksFile(path=str(tmp_path / "masks.pt")))
    with pytest.raises(UserError, match="no safetensors file"):
        (tmp_path / "x.safetensors").write_bytes(b"1234567890")
        load(TokenBlocksFile(path=str(tmp_path / "x.safetensors")))
