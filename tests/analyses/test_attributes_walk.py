"""Analyses of attributes from the command line to saved arrays, on a checkpoint and prompts of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from analyses.fact_cases import PROMPTS
from models.tiny_models import tiny

from repro import config
from repro.errors import UserError
from repro.pipeline import run as walk
from repro.results import load

AXES = {
    "attribute_extraction": ("top_tokens", ["prompt", "layer", "sublayer", "rank"]),
    "early_patching": ("event", ["prompt", "source", "set", "layer"]),
    "vocabulary_weights": ("head_rank", ["prompt", "layer", "head"]),
}

RATES = {
    "attributes_rate": ["prompt", "position", "layer"],
    "sublayer_knockout": ["prompt", "start", "sublayer"],
}


def composed(folder: Path, project: Path, *given: str) -> config.Config:
    tiny("opt").hf.save_pretrained(folder / "model")
    lines = [json.dumps({"tokens": ids, "subject": list(span)}) for ids, span in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    own = ["model=hf", f"model.path={folder / 'model'}", "data=prompts_file"]
    places = [f"data.path={folder / 'prompts.jsonl'}", f"runs_dir={folder / 'runs'}"]
    return config.compose(["paper/invented=first", *own, *places, *given], root=project)


@pytest.mark.parametrize("kind", list(AXES))
def test_from_the_command_line_to_arrays(tmp_path: Path, project: Path, kind: str) -> None:
    more = ["analysis.sources=[0,1]"] if kind == "early_patching" else []
    made = composed(tmp_path, project, f"analysis={kind}", *more)
    assert walk(made) == 0
    name, axes = AXES[kind]
    assert list(load(made.directory).arrays[name].axes) == axes


@pytest.mark.parametrize("kind", list(RATES))
def test_rates_of_token_ids(tmp_path: Path, project: Path, kind: str) -> None:
    """No tokenizer: paragraphs are token ids, and without them it is said how to give them."""
    with pytest.raises(
        UserError, match=r'(?s)analysis.paragraphs.path=.*"subject": \[ids\], "tokens": \[ids\]'
    ):
        walk(composed(tmp_path, project, f"analysis={kind}"))
    lines = [json.dumps({"subject": ids[a:b], "tokens": [1, 2, 3]}) for ids, (a, b) in PROMPTS]
    (tmp_path / "paragraphs.jsonl").write_text("\n".join(lines))
    own = f"analysis.paragraphs.path={tmp_path / 'paragraphs.jsonl'}"
    made = composed(tmp_path, project, f"analysis={kind}", own)
    assert walk(made) == 0
    assert list(load(made.directory).arrays["rate"].axes) == RATES[kind]
