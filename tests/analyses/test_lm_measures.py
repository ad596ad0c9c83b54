"""Measurements on language models whose answers are known: by hand-set weights, by algebra, by definition."""

import numpy as np
import pytest
import torch
import transformers
from analyses.lm_cases import LENGTHS, measure, padded_left, pairs
from models.tiny_models import KINDS, tiny

from repro.analyses import lm_measure_specs as specs
from repro.analyses.logit_difference import answer_measures
from repro.data import ioi
from repro.data.text_specs import IoiToy
from repro.errors import UserError
from repro.interventions.lm_edits import At, Replace
from repro.interventions.lm_run import run
from repro.models.huggingface import wrap

DATA, END = pairs(), torch.tensor([length - 1 for length in LENGTHS])
ROWS = torch.arange(len(LENGTHS))


@pytest.fixture(scope="module")
def model():
    return tiny("gpt2", dtype=torch.float64)


def difference(model, batch, edits=()):
    """Answer minus wrong logit at END, from the model's own logits."""
    logits = run(model, batch, edits, logits=END).logits
    return (logits[ROWS, DATA.answer] - logits[ROWS, DATA.wrong]).double()


def test_logits_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0, 1.0], [2.0, 2.0, 1.0, 5.0]]).log()
    found = answer_measures(logits, torch.tensor([[1, 2], [0, 1]]))
    np.testing.assert_allclose(found["logit_difference"], [np.log(0.5), 0], atol=1e-7)
    np.testing.assert_allclose(found["answer_probability"], [0.25, 0.2], atol=1e-7)
    np.testing.assert_allclose(found["wrong_probability"], [0.5, 0.2], atol=1e-7)
    assert found["answer_rank"].tolist() == [1, 1]


def test_baseline_is_the_models_own(model):
    found = measure(model, DATA, specs.LogitDifference(heads=["0.1", "2.3"], keys=["IO", "END"]))
    expected = difference(model, DATA.clean).numpy()
    np.testing.assert_allclose(found.arrays["logit_difference"].values, expected, atol=1e-9)
    assert found.scalars["logit_difference.mean"] == pytest.approx(expected.mean())
    assert found.scalars["logit_difference.se"] == pytest.approx(expected.std(ddof=1) / 5**0.5)
    assert found.scalars["answer_above_wrong"] == (expected > 0).mean()
    pattern = run(model, DATA.clean, reads=[At("pattern", 2)], logits=None)["pattern", 2]
    io = pattern[ROWS, 3, END, DATA.positions["IO"]]
    per_prompt = found.arrays["attention_per_prompt"].select(key="IO", layer=2, head=3).values
    np.testing.assert_allclose(per_prompt, io, atol=1e-12)
    two = found.arrays["attention"].values
    assert found.scalars["attention.END"] == pytest.approx((two[1, 0, 1] + two[1, 2, 3]) / 2)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt_post_norm"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_patching_restarted_is_patching_by_definition(kind, direction):
    model, sites = tiny(kind, dtype=torch.float64), ["z", "q", "k", "v", "pattern", "resid_pre", "attn_out"]
    spec = specs.ActivationPatching(
        direction=direction, sites=[*sites, "mlp_out", "resid_post"], positions=["S2", "END"]
    )
    found = measure(model, DATA, spec).arrays
    base, source = (DATA.clean, DATA.corrupt) if direction == "noising" else (DATA.corrupt, DATA.clean)
    np.testing.assert_allclose(found["clean"].values, difference(model, DATA.clean), atol=1e-9)
    np.testing.assert_allclose(found["corrupt"].values, difference(model, DATA.corrupt), atol=1e-9)
    for site in spec.sites:
        whole, at = At(site, 1), {"positions": DATA.positions["S2"]}
        heads = {"heads": [2]} if site in specs.HEADS else {}
        part = At(site, 1, **heads, **at)
        value = run(model, source, reads=[part, whole], logits=None)[part]
        expected = difference(model, base, [Replace(part, value)])
        labels = {"head": 2} if heads else {}
        patched = found[f"{site}.per_prompt"].select(layer=1, position="S2", **labels).values
        np.testing.assert_allclose(patched, expected, atol=1e-9, err_msg=site)


def test_patching_everything_gives_the_other_run_and_what_cannot_matter_gives_none(model):
    together = measure(model, DATA, specs.ActivationPatching(sites=["resid_pre", "z"], layers=[0, 2])).arrays
    np.testing.assert_allclose(together["resid_pre.normalised"].values, 0, atol=1e-9)
    effect = together["resid_pre.effect"].values
    np.testing.assert_allclose(effect, together["corrupt"].values.mean() - together["clean"].values.mean())
    clean = together["clean"].values.mean()
    np.testing.assert_allclose(together["z.percent"].values, 100 * together["z.effect"].values / clean)
    assert list(together["z.effect"].axes) == ["layer", "head"]
    # In the last layer only the last position reaches the logits there.
    apart = measure(model, DATA, specs.ActivationPatching(sites=["z"], positions=["S1", "END"])).arrays
    np.testing.assert_allclose(apart["z.effect"].values[2, :, 0], 0, atol=1e-9)
    assert np.abs(apart["z.effect"].values[2, :, 1]).min() > 1e-6


def test_columns_are_positions_in_order(model):
    data = pairs((7, 7))
    found = measure(model, data, specs.ActivationPatching(sites=["resid_pre"], positions="columns")).arrays
    named = measure(model, data, specs.ActivationPatching(sites=["resid_pre"], positions=["S2"])).arrays
    assert found["resid_pre.effect"].axes["position"] == list(range(7))
    np.testing.assert_allclose(
        found["resid_pre.effect"].values[:, 4], named["resid_pre.effect"].values[:, 0], atol=1e-12
    )
    with pytest.raises(UserError, match="prompts of one length"):
        measure(model, DATA, specs.ActivationPatching(positions="columns"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "opt_post_norm"])
def test_parts_sum_to_the_logit_difference_with_the_scale_frozen(kind):
    model = tiny(kind, dtype=torch.float64)
    found = measure(model, DATA, specs.LogitAttribution())
    exact = kind not in ("llama", "mistral", "qwen2", "qwen3")  # their norms compute in float32
    assert found.scalars["sum_error"] < (1e-9 if exact else 1e-5)
    parts = ("heads.sum", "mlps.sum", "biases.sum", "embedding.mean", "constant.mean")
    total = sum(found.scalars[name] for name in parts)
    expected = float(difference(model, DATA.clean).mean())
    assert total == pytest.approx(expected, abs=1e-9 if exact else 1e-5)
    both = found.arrays["head_answer"].values - found.arrays["head_wrong"].values
    np.testing.assert_allclose(found.arrays["head"].values, both, atol=1e-9)


def test_conventions_of_attribution(model):
    z = run(model, DATA.clean, reads=[At("z", 1)], logits=None)["z", 1][ROWS, END, 2]
    written = z @ model.layers[1].output_matrix[2]
    rows = model.unembedding[DATA.answer] - model.unembedding[DATA.wrong]
    bare = measure(model, DATA, specs.LogitAttribution(norm="ignored")).arrays["head_per_prompt"]
    np.testing.assert_allclose(bare.values[1, 2], (written * rows).sum(-1), atol=1e-9)
    centred = written - written.mean(-1, keepdim=True)
    folded = measure(model, DATA, specs.LogitAttribution(norm="folded")).arrays["head_per_prompt"]
    gain = model.last_norm.weight
    np.testing.assert_allclose(folded.values[1, 2], (centred * gain * rows).sum(-1), atol=1e-9)


def test_models_that_normalise_after_their_blocks_are_refused_where_parts_do_not_add_up():
    model = tiny("opt_post_norm")
    with pytest.raises(UserError, match="do not add up"):
        measure(model, DATA, specs.LogitAttribution())
    with pytest.raises(UserError, match="no direct path"):
        measure(model, DATA, specs.Knockouts(per_template=None, sets={"a": ["0.1"]}, direct_after=["a"]))


def test_writing_along_names(model):
    spec = specs.AttentionWriting(heads=["1.2", "2.0"])
    found = measure(model, DATA, spec).arrays
    both = run(model, DATA.clean, reads=[At("z", 1), At("pattern", 1)], logits=None)
    pattern = both["pattern", 1][ROWS, 2, END]
    places = DATA.positions
    attention = pattern[ROWS, places["S1"]] + pattern[ROWS, places["S2"]]
    written = both["z", 1][ROWS, END, 2] @ model.layers[1].output_matrix[2]
    name = model.unembedding[DATA.clean.tokens[ROWS, places["S1"]]]
    np.testing.assert_allclose(found["attention"].select(head="1.2", name="S").values, attention, atol=1e-9)
    writing = (written * name).sum(-1)
    np.testing.assert_allclose(found["writing"].select(head="1.2", name="S").values, writing, atol=1e-9)
    expected = np.corrcoef(attention, writing)[0, 1]
    assert found["correlation"].select(head="1.2", name="S").values == pytest.approx(expected)
    pooled = np.corrcoef(found["attention"].values[0].ravel(), found["writing"].values[0].ravel())[0, 1]
    assert found["correlation_all"].values[0] == pytest.approx(pooled)


def test_knockouts_are_passes_with_means_put_in(model):
    sets = {"pair": ["1.2@END", "mlp0"], "nothing": [], "kept": {"nodes": ["1.1"], "outside": True}}
    found = measure(model, DATA, specs.Knockouts(per_template=None, sets=sets, direct_after=["pair"]))
    mean = torch.zeros(5, 9, 4, 6, dtype=torch.float64)
    corrupt = run(model, DATA.corrupt, reads=[At("z", 1), At("mlp_out", 0)], logits=None)
    short, long = [2, 4], [0, 1, 3]
    means = {}
    for key in (("z", 1), ("mlp_out", 0)):
        value = corrupt[key]
        means[key] = value.clone()
        for group in (short, long):
            means[key][group] = value[group].mean(0)
    mean = means["z", 1]
    single = difference(model, DATA.clean, [Replace(At("z", 1, heads=[2]), mean[:, :, [2]])])
    np.testing.assert_allclose(found.arrays["head.per_prompt"].values[1, 2], single, atol=1e-9)
    mlp = difference(model, DATA.clean, [Replace(At("mlp_out", 0), means["mlp_out", 0])])
    np.testing.assert_allclose(found.arrays["mlp.per_prompt"].values[0], mlp, atol=1e-9)
    at_end = Replace(At("z", 1, heads=[2], positions=END), mean[ROWS, END, 2][:, None, None])
    both = difference(model, DATA.clean, [at_end, Replace(At("mlp_out", 0), means["mlp_out", 0])])
    np.testing.assert_allclose(found.arrays["set.per_prompt"].values[0], both, atol=1e-9)
    base = difference(model, DATA.clean)
    np.testing.assert_allclose(found.arrays["set.per_prompt"].values[1], base, atol=1e-9)
    assert found.scalars["nothing.ratio"] == pytest.approx(1)
    assert found.scalars["pair.mean"] == pytest.approx(float(both.mean()))
    np.testing.assert_allclose(found.arrays["direct.effect"].select(set="pair", layer=1, head=2).values, 0)
    assert abs(found.arrays["direct.effect"].select(set="untouched", layer=1, head=2).values) > 1e-6


def test_means_of_drawn_prompts_are_those_of_the_same_template():
    """On the small world: what replaces a head is the mean over ABC prompts of the prompt's own template."""
    data = ioi.load(IoiToy(n=12, seed=1))
    shape = {"vocab_size": 111, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
    model = wrap(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).double())
    found = measure(model, data, specs.Knockouts(per_template=3, positions=["END"]))
    prompts, batch = data.pairs(), data.pairs().clean
    drawn = data.reference(3, 1)
    tokens = data.tokenise(drawn)
    z = run(model, tokens.batch, reads=[At("z", 1)], logits=None)["z", 1]
    for row, prompt in enumerate(data.prompts.prompts):
        same = [i for i, other in enumerate(drawn.prompts) if other.template == prompt.template]
        end = int(prompts.positions["END"][row])
        assert len(same) == 3 and [int(tokens.positions["END"][i]) for i in same] == [end] * 3
        edit = Replace(At("z", 1, heads=[2], positions=[end]), z[same, end, 2].mean(0))
        logits = run(model, batch.rows([row]), [edit], logits=torch.tensor([end])).logits
        expected = float(logits[0, prompts.answer[row]] - logits[0, prompts.wrong[row]])
        assert found.arrays["head.per_prompt"].values[1, 2, row] == pytest.approx(expected, abs=1e-9)


def test_zero_ablation_and_bad_nodes(model):
    found = measure(model, DATA, specs.Knockouts(value="zero", positions=["END"])).arrays
    edit = Replace(At("z", 2, heads=[3], positions=END), 0.0)
    np.testing.assert_allclose(
        found["head.per_prompt"].values[2, 3], difference(model, DATA.clean, [edit]), atol=1e-9
    )
    for sets, message in (
        ({"a": ["1.4"]}, "head 1.4 does not exist"),
        ({"a": ["mlp3"]}, "head 3.0 does not exist"),
        ({"a": ["1.1@THERE"]}, "got THERE. This data has: END"),
    ):
        with pytest.raises(UserError, match=message):
            measure(model, DATA, specs.Knockouts(value="zero", sets=sets))
    with pytest.raises(UserError, match="direct_after: got b. Valid: a"):
        measure(model, DATA, specs.Knockouts(value="zero", sets={"a": []}, direct_after=["b"]))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_patterns_between_positions_and_whole(kind):
    model = tiny(kind)
    found = measure(model, DATA, specs.AttentionPatterns(heads=["1.3", "0.0"], queries=["END"], panels=[2]))
    both = run(model, DATA.clean, reads=[At("pattern", 1), At("v", 1)], logits=None)
    where = DATA.positions["S1"]
    plain = both["pattern", 1][ROWS, 3, END, where]
    norm = both["v", 1][ROWS, where, 3 // (model.heads // model.kv_heads)].norm(dim=-1)
    labels = {"head": "1.3", "query": "END", "key": "S1"}
    close = {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(found.arrays["attention_per_prompt"].select(**labels).values, plain, **close)
    weighted = found.arrays["weighted_per_prompt"].select(**labels).values
    np.testing.assert_allclose(weighted, plain * norm, **close)
    panel = found.arrays["panel_2"]
    assert panel.axes["key_token"] == [str(token) for token in DATA.clean.tokens[2, :7].tolist()]
    np.testing.assert_allclose(panel.values[0], both["pattern", 1][2, 3, :7, :7], **close)
    np.testing.assert_allclose(panel.values.sum(-1), 1, atol=1e-5)
    left = measure(model, padded_left(DATA), specs.AttentionPatterns(heads=["1.3"], panels=[2])).arrays
    np.testing.assert_allclose(left["panel_2"].values[0], panel.values[0], atol=1e-5)
    with pytest.raises(UserError, match="got prompt 5. Valid: 0 to 4"):
        measure(model, DATA, specs.AttentionPatterns(panels=[5]))


def test_a_head_that_copies_by_construction():
    """Embeddings live in 6 channels; head 1.0 reads and writes just these, 1.1 writes the negative."""
    model = tiny("gpt2", dtype=torch.float64)
    inner, size = model.hf.transformer, model.head_width
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.zero_()
        for norm in (inner.ln_f, *(norm for block in inner.h for norm in (block.ln_1, block.ln_2))):
            norm.weight.fill_(1.0)
        names = torch.randn(61, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        names = names - names.mean(-1, keepdim=True)  # so that no norm takes anything away
        inner.wte.weight[:, :size] = names / names.norm(dim=-1, keepdim=True)
        for head, sign in ((0, 1.0), (1, -1.0)):
            channels = slice(head * size, (head + 1) * size)
            inner.h[1].attn.c_attn.weight[:size, 48:][:, channels] = torch.eye(size, dtype=torch.float64)
            inner.h[1].attn.c_proj.weight[channels, :size] = sign * torch.eye(size, dtype=torch.float64)
    found = measure(model, DATA, specs.CopyScores(top=1))
    score = found.arrays["score"]
    assert score.select(sign="positive", head="1.0").values == 1
    assert score.select(sign="negative", head="1.1").values == 1
    assert score.select(sign="positive", head="1.1").values == 0
    assert score.select(sign="negative", head="1.0").values == 0
    assert found.arrays["copying"].values[1, 0] == found.arrays["anti_copying"].values[1, 1] == 1
    assert found.arrays["hit"].axes["position"] == ["IO", "S1", "S2"]


def test_subjects_and_data_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match="needs a language model"):
        measure(None, DATA, specs.LogitDifference())
    with pytest.raises(UserError, match="needs prompts with answers"):
        measure(model, object(), specs.LogitDifference())
    broken = tiny("gpt2")
    broken.layers[2].block.mlp.c_proj.bias[0] = float("nan")
    for spec in (specs.LogitDifference(), specs.ActivationPatching(), specs.Knockouts(value="zero")):
        with pytest.raises(UserError, match="logits are not finite"):
            measure(broken, DATA, spec)
    with pytest.raises(UserError, match="head 7.0 does not exist"):
        measure(model, DATA, specs.LogitDifference(heads=["7.0"]))
    with pytest.raises(UserError, match="without quotes YAML reads 10.10 as the number 10.1"):
        specs.LogitDifference.parse({"kind": "logit_difference", "heads": [10.1]}, "analysis")
