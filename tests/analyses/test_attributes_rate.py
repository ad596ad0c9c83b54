"""Attributes rates against the released notebook's definition, with strings and loops, on the small world."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from analyses.fact_cases import PROMPTS, token_facts
from analyses.splitting import assert_split_equals_whole
from models.tiny_models import KINDS, tiny

from repro.analyses import attributes_rate, sublayer_knockout
from repro.analyses.attribute_rating import Rater
from repro.analyses.attribute_specs import AttributesRate, SublayerKnockout
from repro.data.context_words import stop_words
from repro.data.fact_specs import FactsToy
from repro.data.facts import FactData, load
from repro.data.facts_records import Fact
from repro.data.paragraph_specs import Paragraphs
from repro.data.paragraphs import of_world
from repro.errors import UserError
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel
from repro.training.lm_tokenizer import build

SPEC = AttributesRate(pool=60, top=20, batch=3)
KNOCKOUT = SublayerKnockout(pool=60, top=20, batch=3, layer=2, width=1)


def data(n: int = 7) -> FactData:
    return load(FactsToy(n=n, subjects=12))


def model(kind: str = "gpt2", facts: FactData | None = None) -> LanguageModel:
    """A random model over the words of the small world."""
    world = (facts or data()).world
    assert world is not None
    names = {"gpt2": ("n_embd", "n_layer", "n_head"), "gptj": ("n_embd", "n_layer", "n_head"),
             "llama": ("hidden_size", "num_hidden_layers", "num_attention_heads")}[kind]  # fmt: skip
    sizes: dict[str, Any] = dict(zip(names, (24, 3, 4), strict=True))
    more = {"gptj": {"rotary_dim": 4}, "llama": {"intermediate_size": 40, "tie_word_embeddings": False}}
    config = {"gpt2": "GPT2Config", "gptj": "GPTJConfig", "llama": "LlamaConfig"}[kind]
    torch.manual_seed(3)
    settings = getattr(transformers, config)(vocab_size=len(world.tokenizer), **sizes, **more.get(kind, {}))
    hf = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(std=0.3)
    return wrap(hf.double(), build(world.tokenizer.words, world.tokenizer.words[0]))


def notebook(lm: LanguageModel, vector: torch.Tensor, paragraphs: str | None, spec: Any) -> float:
    """The released code, in words: decode, drop stop words and short ones, compare sets."""
    if paragraphs is None:
        return -1.0
    stop = stop_words()
    matrix = lm.hf.get_output_embeddings().weight
    order = (matrix @ vector).argsort(descending=True)[: spec.pool].tolist()
    top = [lm.tokenizer.decode([i]) for i in order]
    clean = [t for t in top if t.strip().lower() not in stop and len(t.strip()) > 2][: spec.top]
    ids = lm.tokenizer(paragraphs, add_special_tokens=False)["input_ids"]
    context = {lm.tokenizer.decode([i]) for i in ids}
    context = {t for t in context if t.strip() not in stop and len(t.strip()) > 2}
    return 100.0 * len(set(clean) & context) / len(clean)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_rates_are_the_notebooks(kind: str) -> None:
    facts = data()
    lm = model(kind, facts)
    found = attributes_rate.run(lm, facts, None, None, SPEC)
    texts, tokens = of_world(facts.world), facts.tokenise(lm.tokenizer)  # type: ignore[arg-type]
    matrix = lm.hf.get_output_embeddings().weight
    for row, fact in enumerate(facts.facts):
        ids = tokens.batch.tokens[row][tokens.batch.mask[row]]
        with torch.no_grad():
            states = lm.hf(ids[None], output_hidden_states=True).hidden_states
        first, last = int(tokens.first[row]), int(tokens.last[row])
        assert lm.tokenizer.decode(ids[first : last + 1]) == fact.subject
        columns = {
            "subject-last": last,
            "subject-first": first,
            "following": last + 1,
            "last": -1,
            "first": 0,
        }
        for position, column in columns.items():
            for layer in range(lm.depth):
                expected = notebook(lm, states[layer][0, column], texts[fact.subject or ""], SPEC)
                got = found.arrays["rate"].select(position=position, layer=layer).values[row]
                assert float(got) == pytest.approx(expected, abs=1e-9)
        static = notebook(lm, matrix[ids[first : last + 1]].mean(0), texts[fact.subject or ""], SPEC)
        assert float(found.arrays["static_rate"].values[row]) == pytest.approx(static, abs=1e-9)
    mean = np.asarray(found.arrays["rate"].values).mean(axis=0)
    assert found.scalars["best.subject-last"] == pytest.approx(mean[0].max())
    best = int(mean[0].argmax())
    assert found.scalars["gap"] == pytest.approx(mean[0, best] - mean[1:4, best].max())


def test_a_state_along_the_subjects_attributes_has_rate_100_and_along_others_0() -> None:
    """A known answer: only eight words have an embedding, four of them the subject's attributes."""
    facts = data()
    lm, world = model("gpt2", facts), facts.world
    assert world is not None
    subject = facts.facts[0].subject
    own = [word for (who, _), word in world.attributes.items() if who == subject]
    others = [word for word in world.attributes.values() if word not in of_world(world)[str(subject)]][:4]
    ids = lm.tokenizer.convert_tokens_to_ids([*own, *others])
    assert len(set(ids)) == 8
    with torch.no_grad():
        lm.unembedding.zero_()
        for axis, token in enumerate(ids):
            lm.unembedding[token, axis] = 1.0
    rater = Rater(lm, facts, AttributesRate(pool=4, top=4))
    vectors = torch.eye(lm.width, dtype=torch.float64)
    along = torch.stack([vectors[:4].sum(0), vectors[4:8].sum(0), vectors[2:6].sum(0)])
    found = rater.rate(along[None], facts.tokenise(lm.tokenizer).rows([0]))
    assert found.tolist() == [[100.0, 0.0, 50.0]]
    assert sorted(rater.top_words(along[:1], 10)[0]) == sorted(own)


def test_static_tokens_are_those_behind_a_blank(tmp_path: Path) -> None:
    """At the start of a text a byte-level token lacks its blank, which says nothing about the subject."""
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.ByteLevelBPETokenizer()
    text = "Beats Music is owned by Apple. The owner of Beats Music is Apple."
    inner.train_from_iterator([text] * 20, vocab_size=400, min_frequency=1)
    lm = model("gpt2")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer)
    given = (
        Fact(0, "", "Beats Music is owned by", "Beats Music", "Apple"),
        Fact(1, "", "The owner of Beats Music is", "Beats Music", "Apple"),
    )
    facts = FactData(FactsToy(), given, "", "")
    lm.tokenizer = fast
    (tmp_path / "a.csv").write_text("subject,paragraphs\nBeats Music,Apple\n")
    spec = AttributesRate(paragraphs=Paragraphs(path=str(tmp_path / "a.csv")))
    rater, batch = Rater(lm, facts, spec), facts.tokenise(fast)
    behind_blank = fast(" Beats Music")["input_ids"]
    assert fast("Beats Music")["input_ids"] != behind_blank
    assert rater._static_ids(batch, 0) == rater._static_ids(batch, 1) == behind_blank


def test_subjects_without_paragraphs_are_left_out(tmp_path: Path) -> None:
    facts = data()
    known = [fact.subject for fact in facts.facts][:3]
    texts = of_world(facts.world)  # type: ignore[arg-type]
    path = tmp_path / "paragraphs.csv"
    lines = [f"{subject},{texts[subject or '']}" for subject in known]
    path.write_text("subject,paragraphs\n" + "\n".join(lines) + "\n")
    spec = SPEC.model_copy(update={"paragraphs": Paragraphs(path=str(path))})
    lm = model("gpt2", facts)
    some, every = (attributes_rate.run(lm, facts, None, None, each) for each in (spec, SPEC))
    has = np.array([fact.subject in known for fact in facts.facts])
    assert has.any() and not has.all()
    rate, whole = some.arrays["rate"].values, every.arrays["rate"].values
    assert (rate[~has] == -1).all() and (some.arrays["static_rate"].values[~has] == -1).all()
    np.testing.assert_array_equal(rate[has], whole[has])
    np.testing.assert_allclose(some.arrays["mean_rate"].values, whole[has].mean(0))
    assert some.scalars["with_paragraphs"] == has.sum()
    path.write_text("subject,paragraphs\nnobody,nothing\n")
    with pytest.raises(UserError, match="none of the subjects has paragraphs"):
        attributes_rate.run(lm, facts, None, None, spec)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_tokenizer_words_are_token_ids(tmp_path: Path, kind: str) -> None:
    """By sets of ids: the `top` highest entries of E v against the ids of the paragraphs."""
    lm, facts = tiny(kind, dtype=torch.float64), token_facts()
    known = {(9, 3): [[1, 60, 33], list(range(20, 30))], (8,): [2, 5, 40], (4, 60): list(range(61))}
    lines = [json.dumps({"subject": list(ids), "tokens": tokens}) for ids, tokens in known.items()]
    (tmp_path / "paragraphs.jsonl").write_text("\n".join(lines))
    given = {"path": str(tmp_path / "paragraphs.jsonl")}
    spec = AttributesRate.parse({"pool": 30, "top": 15, "paragraphs": given, "batch": 2}, "analysis")
    found = attributes_rate.run(lm, facts, None, None, spec)
    cut = SublayerKnockout.parse({**spec.model_dump(exclude={"kind", "positions", "static", "examples"}),
                                  "layer": 1, "width": 1}, "analysis")  # fmt: skip
    knocked = sublayer_knockout.run(lm, facts, None, None, cut)
    for row, (ids, (start, end)) in enumerate(PROMPTS):
        tokens = known.get(tuple(ids[start:end]))
        flat = None if tokens is None else set(np.hstack(tokens).tolist())
        assert found.arrays["context_size"].values[row] == (-1 if flat is None else len(flat))
        with torch.no_grad():
            states = lm.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in range(lm.depth):
            got = found.arrays["rate"].select(position="subject-last", layer=layer).values[row]
            assert float(got) == pytest.approx(by_ids(lm, states[layer][0, end - 1], flat), abs=1e-9)
        plain = float(knocked.arrays["plain_rate"].values[row])
        assert plain == pytest.approx(by_ids(lm, states[2][0, end - 1], flat), abs=1e-9)
    assert found.arrays["top_words"].values[0, 0, 0].isdigit()


def by_ids(lm: LanguageModel, vector: torch.Tensor, context: set[int] | None) -> float:
    if context is None:
        return -1.0
    out = vector if lm.project_out is None else vector @ lm.project_out.weight.T  # type: ignore[union-attr,operator]
    top = (lm.unembedding @ out).argsort(descending=True)[:15].tolist()
    return 100 * len(set(top) & context) / 15


@pytest.mark.parametrize("how", ["released", "zero_subject_last", "zero_all"])
def test_knockouts_are_those_of_hooks_on_the_whole_prompt(how: str) -> None:
    facts = data(4)
    lm = model("gpt2", facts)
    spec = KNOCKOUT.model_copy(update={"knockout": how, "inclusive": how == "released"})
    found = sublayer_knockout.run(lm, facts, None, None, spec)
    texts, tokens = of_world(facts.world), facts.tokenise(lm.tokenizer)  # type: ignore[arg-type]
    blocked = [[0, 1], [1]] if how == "released" else [[0], [1]]
    assert found.arrays["blocked"].values.tolist() == [len(layers) for layers in blocked]
    every = found.arrays["knockout_rate"]
    assert every.labels("knockout")[0] == how and len(set(every.labels("knockout"))) == 3
    assert np.array_equal(every.values[:, 0], found.arrays["rate"].values)
    alone = sublayer_knockout.run(lm, facts, None, None, spec.model_copy(update={"compare": False}))
    assert alone.arrays["knockout_rate"].labels("knockout") == [how]
    assert all(found.scalars[name] == value for name, value in alone.scalars.items())
    for row, fact in enumerate(facts.facts):
        ids, last = tokens.batch.tokens[row][tokens.batch.mask[row]], int(tokens.last[row])
        for start, layers in enumerate(blocked):
            for sublayer, way in product(("MLP", "MHSA"), every.labels("knockout")):
                state = _hooked(lm, ids, last, layers, sublayer, str(way))[3]
                expected = notebook(lm, state, texts[fact.subject or ""], spec)
                got = every.select(knockout=way, start=start, sublayer=sublayer).values[row]
                assert float(got) == pytest.approx(expected, abs=1e-9)
        plain = notebook(lm, _hooked(lm, ids, last, [], "MLP", how)[3], texts[fact.subject or ""], spec)
        assert float(found.arrays["plain_rate"].values[row]) == pytest.approx(plain, abs=1e-9)


def _hooked(
    lm: LanguageModel, ids: torch.Tensor, last: int, layers: list[int], sublayer: str, how: str
) -> list:
    """Hidden states at `last` with outputs replaced by the library's own hooks, on the whole prompt."""
    handles = []
    for index in layers:
        layer = lm.layers[index]

        def hook(module, args, output, layer=layer):
            whole = output[0] if isinstance(output, tuple) else output
            new = whole.clone()
            if how == "zero_subject_last":
                new[:, last] = 0
            elif how == "zero_all":
                new[:] = 0
            elif sublayer == "MLP":
                new[:] = layer.down.bias
            else:
                values = layer.project(layer.norm1(module.entered), torch.arange(len(ids))[None])[2]
                count = torch.arange(1, len(ids) + 1)[None, :, None, None]
                new = layer.attn_out(values.cumsum(1) / count)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        module: Any = layer.block.mlp if sublayer == "MLP" else layer.attention
        if sublayer == "MHSA":
            handles.append(
                layer.block.register_forward_pre_hook(
                    lambda block, args, module=module: setattr(module, "entered", args[0])
                )
            )
        handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        states = lm.hf(ids[None], output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    return [state[0, last] for state in states]


def test_batches_and_parts_change_nothing(tmp_path: Path) -> None:
    facts = data(5)
    lm = model("gpt2", facts)
    for analysis, spec in ((attributes_rate, SPEC), (sublayer_knockout, KNOCKOUT)):
        one, many = (
            analysis.run(lm, facts, None, None, spec.model_copy(update={"batch": batch})) for batch in (1, 5)
        )
        np.testing.assert_allclose(one.arrays["rate"].values, many.arrays["rate"].values, atol=1e-9)
        alone = spec.model_copy(update={"batch": 1})
        assert_split_equals_whole(analysis, lm, facts, alone, 5, tmp_path / alone.kind, (2, 5))


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    facts = data(2)
    with pytest.raises(UserError, match="layers 0 to 2"):
        sublayer_knockout.run(model("gpt2", facts), facts, None, None, SublayerKnockout())
    silent = replace(data(2), world=None)
    with pytest.raises(UserError, match="analysis.paragraphs.path"):
        attributes_rate.run(model("gpt2", facts), silent, None, None, SPEC)
