"""Reading and intervening on tiny models of every family, against the library's own outputs and by hand."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import EAGER_ONLY, KINDS, tiny

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import (
    LM_SITES,
    Add,
    At,
    CutEdges,
    Read,
    Replace,
    Scale,
    Transform,
    patch,
    put,
    resample,
    take,
    zero,
)  # fmt: skip
from repro.interventions.lm_run import edited, run
from repro.models.language_model import LanguageModel
from repro.models.sites import SITES

CASES = [
    (kind, way) for kind in KINDS for way in ("eager", "sdpa") if way == "eager" or kind not in EAGER_ONLY
]
ROWS, LENGTH = 3, 9
SIDES = [("right", slice(0, 6)), ("left", slice(3, 9))]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(*request.param)


def tokens(rows: int = ROWS, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def whole(ids: torch.Tensor) -> TokenBatch:
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


def sites(model: LanguageModel, layer: int) -> list[At]:
    """Every site of a layer that this model has."""
    return [
        At(site, layer)
        for site in LM_SITES
        if SITES[site].per_layer and not (site == "resid_mid" and model.parallel)
    ]


@torch.no_grad()
def library(model: LanguageModel, ids: torch.Tensor, **options):
    # Without a cache, whose copies are laid out otherwise in memory, and so are rounded otherwise.
    return model.hf(ids, use_cache=False, **options)


def test_reading_equals_the_library_bit_for_bit(model):
    eager = "eager" in model.hf.config._attn_implementation
    ref = library(model, tokens(), output_hidden_states=True, output_attentions=eager)
    reads = [at for layer in range(model.depth) for at in sites(model, layer)]
    result = run(model, whole(tokens()), reads=[*reads, At("final_norm") if model.last_norm else reads[0]])
    assert torch.equal(result.logits, ref.logits)
    for layer in range(model.depth):
        assert torch.equal(result["resid_pre", layer], ref.hidden_states[layer])
        if eager:
            torch.testing.assert_close(result["pattern", layer], ref.attentions[layer], atol=1e-6, rtol=0)
        if layer:
            assert torch.equal(result["resid_pre", layer], result["resid_post", layer - 1])


def value_by_map(layer, attn_in):
    weight, bias = layer.value_map()
    return torch.einsum("btd,kde->btke", attn_in, weight) + (0.0 if bias is None else bias)


def test_parts_of_a_layer_make_its_own_forward_pass(model):
    """Each functional part gives, from what was read before it, what was read after it."""
    result = run(model, whole(tokens()), reads=[at for i in range(model.depth) for at in sites(model, i)])
    places = torch.arange(LENGTH).expand(ROWS, LENGTH)
    for i, layer in enumerate(model.layers):
        q, k, v = layer.project(result["attn_in", i], places)
        torch.testing.assert_close(k, result["k", i], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(v, result["v", i], atol=2e-5, rtol=1e-5)
        scores = layer.scores(q, k)
        seen = layer.allowed(places[0], places[0])
        bias = 0.0 if layer.output_bias is None else layer.output_bias
        attn_in = result["attn_in", i]
        made = {
            "attn_in": layer.norm1(result["resid_pre", i]), "q": q,
            "k": layer.keys(attn_in, places), "v": value_by_map(layer, attn_in),
            "pattern": layer.pattern(scores, seen), "z": layer.attend(q, k, v, seen),
            "attn_out": layer.attn_out(result["z", i]), "mlp_post": layer.mlp_hidden(result["mlp_in", i]),
            "mlp_out": layer.mlp(result["mlp_in", i]),
            "mlp_in": layer.norm2(result["resid_mid" if layer.reads_mid else "resid_pre", i]),
        }  # fmt: skip
        for site, value in made.items():
            torch.testing.assert_close(value, result[site, i], atol=2e-5, rtol=1e-5, msg=f"{site}.{i}")
        summed = layer.head_out(result["z", i]).sum(dim=2) + bias
        torch.testing.assert_close(summed, result["attn_out", i], atol=2e-5, rtol=1e-5)
        low = torch.finfo(scores.dtype).min
        assert (result["attn_scores", i][..., ~seen] == low).all() and (
            result["pattern", i][..., ~seen] == 0
        ).all()


def test_edits_that_change_nothing_change_nothing_bit_for_bit(model):
    plain = run(model, whole(tokens())).logits
    for at in [at for layer in range(model.depth) for at in sites(model, layer)]:
        result = run(
            model, whole(tokens()), edits=[Transform(at, lambda found: found.clone()), Scale(at, 1.0)]
        )
        if at.site in ("attn_scores", "pattern"):  # formed by hand instead of in the library's kernel
            torch.testing.assert_close(result.logits, plain, atol=5e-5, rtol=1e-5)
        else:
            assert torch.equal(result.logits, plain), at.site


def test_patching_a_whole_site_downstream_of_all_gives_the_other_run(model):
    last = model.depth - 1
    clean, other = whole(tokens()), whole(tokens(seed=1))
    source = run(model, other, reads=[At("resid_post", last)])
    result = run(model, clean, edits=[patch(At("resid_post", last), source["resid_post", last])])
    assert torch.equal(result.logits, source.logits)


@pytest.mark.parametrize("site", [site for site in LM_SITES if SITES[site].per_layer])
def test_what_was_put_is_what_goes_on(model, site):
    """A value written at a site is what is read there, and changes the logits; other rows stay."""
    if site == "resid_mid" and model.parallel:
        pytest.skip("nothing lies between parallel attention and MLP")
    at = At(site, 1, rows=[1])
    plain = run(model, whole(tokens()), reads=[At(site, 1)])
    value = take(plain[site, 1], at) * 0.5 + 0.1
    result = run(model, whole(tokens()), edits=[Replace(at, value)], reads=[At(site, 1)])
    torch.testing.assert_close(take(result[site, 1], at), value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.logits[[0, 2]], plain.logits[[0, 2]], atol=5e-5, rtol=1e-5)
    assert (result.logits[1] - plain.logits[1]).abs().max() > 1e-3


def test_zeroed_head_equals_weights_without_it(model):
    """Zeroing z of a head is the same as zeroing its rows of the output projection."""
    head, layer = 2, model.layers[1]
    result = run(model, whole(tokens()), edits=[zero(At("z", 1, heads=[head]))])
    weight = layer.out.weight
    width = model.head_width
    before = weight.data.clone()
    try:
        columns = weight.data if isinstance(layer.out, torch.nn.Linear) else weight.data.T
        columns[:, head * width : (head + 1) * width] = 0
        expected = library(model, tokens()).logits
    finally:
        weight.data.copy_(before)
    torch.testing.assert_close(result.logits, expected, atol=5e-5, rtol=1e-5)


def test_heads_rows_and_positions_are_selected_together(model):
    positions = torch.tensor([[1, 4], [2, 8]])
    at = At("z", 1, heads=[0, 3], positions=positions, rows=[0, 2])
    plain = run(model, whole(tokens()), reads=[At("z", 1)])
    result = run(model, whole(tokens()), edits=[Add(at, 1.0)], reads=[At("z", 1), Read(at)])
    expected = plain["z", 1].clone()
    for row, places in ((0, (1, 4)), (2, (2, 8))):
        for place in places:
            expected[row, place, [0, 3]] += 1.0
    assert torch.equal(result["z", 1], expected)
    assert result[at].shape == (2, 2, 2, model.head_width)


def test_cut_edges_by_brute_force(model):
    """A cut edge has no weight, the others of its row are renormalised; nothing before the query changes."""
    plain = run(model, whole(tokens()), reads=[At("pattern", 1)])
    cut = CutEdges(1, queries=torch.tensor([[8], [7], [8]]), keys=torch.tensor([[7, 6], [7, 6], [8, 7]]))
    result = run(model, whole(tokens()), edits=[cut], reads=[At("pattern", 1), At("z", 1), At("v", 1)])
    expected = plain["pattern", 1].clone()
    for row, (query, keys) in enumerate(((8, (7, 6)), (7, (7, 6)), (8, (8, 7)))):
        expected[row, :, query, list(keys)] = 0
        expected[row, :, query] /= expected[row, :, query].sum(-1, keepdim=True)
    torch.testing.assert_close(result["pattern", 1], expected, atol=1e-5, rtol=1e-4)
    z = model.layers[1].mix(expected, result["v", 1])
    torch.testing.assert_close(result["z", 1], z, atol=1e-4, rtol=1e-4)
    before = [slice(0, 8), slice(0, 7), slice(0, 8)]
    for row, columns in enumerate(before):
        torch.testing.assert_close(
            result.logits[row, columns], plain.logits[row, columns], atol=5e-5, rtol=1e-5
        )


def test_cut_of_some_heads_and_rows_leaves_the_others(model):
    plain = run(model, whole(tokens()), reads=[At("pattern", 1)])
    cut = CutEdges(1, queries=[-1], keys=[-1, -2], heads=[1], rows=[2])
    result = run(model, whole(tokens()), edits=[cut], reads=[At("pattern", 1)])
    changed = (result["pattern", 1] - plain["pattern", 1]).abs().amax(dim=(-1, -2)) > 1e-6
    assert changed.nonzero().tolist() == [[2, 1]]


def test_a_query_that_sees_nothing_attends_nowhere(model):
    cut = CutEdges(1, queries=[4], keys=list(range(LENGTH)))
    result = run(model, whole(tokens()), edits=[cut], reads=[At("z", 1), At("pattern", 1)])
    assert (result["z", 1][:, 4] == 0).all() and (result["pattern", 1][:, :, 4] == 0).all()
    assert (result["z", 1][:, 5] != 0).any()


@pytest.mark.parametrize(("side", "columns"), SIDES)
def test_padding_does_not_matter(model, side, columns):
    """A short prompt padded beside longer ones gives what it gives alone, with and without interventions."""
    short, long = tokens(1, 6), tokens(2, 9, seed=3)
    batch = TokenBatch.of([short[0].tolist(), *long.tolist()], pad_id=1, side=side)
    alone = run(model, whole(short), reads=[At("z", 1)])
    padded = run(model, batch, reads=[At("z", 1)])
    torch.testing.assert_close(padded.logits[0, columns], alone.logits[0], atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(padded["z", 1][0, columns], alone["z", 1][0], atol=5e-5, rtol=1e-5)
    start = columns.start
    edits = [zero(At("z", 0, heads=[1], positions=[2])), CutEdges(1, queries=[5], keys=[3])]
    shifted = [
        zero(At("z", 0, heads=[1], positions=torch.tensor([2 + start]), rows=[0])),
        CutEdges(1, queries=torch.tensor([5 + start]), keys=torch.tensor([3 + start]), rows=[0]),
    ]
    expected = run(model, whole(short), edits=edits, logits="last").logits
    got = run(model, batch, edits=shifted, logits="last").logits
    torch.testing.assert_close(got[0], expected[0], atol=5e-5, rtol=1e-5)


def test_batch_size_and_order_do_not_matter(model):
    edits = [Scale(At("mlp_out", 0), 0.5), zero(At("z", 1, heads=[0]))]
    together = run(model, whole(tokens()), edits=edits, logits="last").logits
    for row in (2, 0, 1):
        alone = run(model, whole(tokens()[[row]]), edits=edits, logits="last").logits
        torch.testing.assert_close(alone[0], together[row], atol=5e-5, rtol=1e-5)


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())


def test_everything_is_undone_also_after_an_exception(model):
    plain = library(model, tokens()).logits
    before = dict(model.layers[1].attention.__dict__), model.hf.config._attn_implementation, hook_count(model)

    def fail(found):
        raise RuntimeError("on purpose")

    for site in ("z", "pattern", "mlp_out", "resid_mid" if not model.parallel else "resid_pre"):
        with pytest.raises(RuntimeError, match="on purpose"):
            run(model, whole(tokens()), edits=[zero(At("q", 0)), Transform(At(site, 1), fail)])
    assert torch.equal(library(model, tokens()).logits, plain)
    assert model.hf.config._attn_implementation == before[1]
    assert set(model.layers[1].attention.__dict__) == set(before[0])
    assert hook_count(model) == before[2]


def test_contexts_nest(model):
    expected = run(
        model, whole(tokens()), edits=[zero(At("z", 0, heads=[0])), zero(At("q", 1, heads=[1]))]
    ).logits
    with edited(model, [zero(At("z", 0, heads=[0]))]), edited(model, [zero(At("q", 1, heads=[1]))]):
        assert torch.equal(library(model, tokens()).logits, expected)
        assert torch.equal(run(model, whole(tokens())).logits, expected)


def test_gradients_against_finite_differences():
    """At every site of float64 models: the gradient times a direction is the slope along it."""
    for kind in ("gpt2", "llama", "opt", "gpt_neox"):
        model = tiny(kind, "sdpa", torch.float64)
        batch = whole(tokens())

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return logits[:, -1].log_softmax(-1)[:, 7].sum()

        for at in sites(model, 1):
            result = run(model, batch, reads=[Read(at, gradient=True)], gradient_of=loss)
            value, gradient = result[at], result.gradient(at)
            direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).double()
            if at.site == "attn_scores":  # masked scores are at the lowest value, and must stay there
                direction = torch.where(value > -1e30, direction, 0.0)
            # Llama's norms are float32 inside, whatever the dtype, so its slopes are not sharper than this.
            step, tolerance = (1e-3, 2e-3) if kind == "llama" else (1e-5, 2e-5)
            ends = [
                loss(run(model, batch, edits=[Add(at, sign * step * direction)]).logits) for sign in (1, -1)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(
                (gradient * direction).sum(),
                slope,
                atol=tolerance / 20,
                rtol=tolerance,
                msg=f"{kind} {at.site}",
            )


def test_reduction_inside_the_hook_keeps_nothing_else():
    model = tiny("gpt2")
    at = At("z", 0)
    importance = Read(at, gradient=True, reduce=lambda z, g: (z * g).sum(-1).abs().sum((0, 1)))
    result = run(
        model, whole(tokens()), reads=[importance], gradient_of=lambda logits: logits[:, -1, 5].sum()
    )
    full = run(
        model, whole(tokens()), reads=[Read(at, True)], gradient_of=lambda logits: logits[:, -1, 5].sum()
    )
    torch.testing.assert_close(
        result.gradient(importance), (full[at] * full.gradient(at)).sum(-1).abs().sum((0, 1))
    )
    with pytest.raises(KeyError):
        result[importance]
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_resample_takes_other_rows():
    model = tiny("gpt2")
    source = run(model, whole(tokens()), reads=[At("z", 1)])
    edit = resample(At("z", 1), source["z", 1], rows=[2, 0, 1])
    result = run(model, whole(tokens()), edits=[edit], reads=[At("z", 1)])
    assert torch.equal(result["z", 1], source["z", 1][[2, 0, 1]])


def test_what_was_read_is_found_by_read_by_place_and_by_an_equal_place():
    read = Read(At("z", 1, heads=[1]))
    result = run(tiny("gpt2"), whole(tokens()), reads=[read, At("z", 2)])
    for place in (read, read.at, ("z", 1), At("z", 1, heads=[1])):
        assert result[place] is result[read]
    with pytest.raises(UserError, match="nothing was read at"):
        result[At("q", 1)]


def test_take_and_put_are_inverse():
    found = torch.arange(3 * 5 * 2 * 4).reshape(3, 5, 2, 4).float()
    for at in (
        At("z", 0),
        At("z", 0, heads=[1]),
        At("z", 0, positions=[-1, 0]),
        At("z", 0, rows=[2], heads=[0]),
    ):
        assert torch.equal(put(found, at, take(found, at)), found)
    new = put(found, At("z", 0, heads=[1], positions=[-1]), torch.zeros(3, 1, 1, 4))
    assert (new[:, -1, 1] == 0).all() and torch.equal(new[:, :, 0], found[:, :, 0])


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (At("resid"), "Valid choices"),
        (At("z", 7), "Valid layers: 0 to 2"),
        (At("z"), "a layer is required"),
        (At("z", 1, heads=[4]), "heads 0 to 3"),
        (At("mlp_out", 1, heads=[0]), "it has no heads"),
        (At("q_unrotated", 1), "language models do not have it"),
        (At("z", 1, positions=[9]), "Valid: 0 to 8"),
    ],
)  # fmt: skip
def test_places_that_do_not_exist_are_refused(at, says):
    with pytest.raises(UserError, match=says):
        run(tiny("gpt2"), whole(tokens()), edits=[zero(at)])


def test_key_value_heads_are_checked_by_their_number():
    with pytest.raises(UserError, match="key/value heads 0 to 1"):
        run(tiny("llama"), whole(tokens()), edits=[zero(At("k", 1, heads=[2]))])


def test_bad_input_is_refused():
    model = tiny("gpt2")
    with pytest.raises(UserError, match="at most 32"):
        run(model, whole(tokens(1, 33)))
    with pytest.raises(UserError, match="0 to 60"):
        run(model, whole(torch.tensor([[61]])))
    with pytest.raises(UserError, match="need each other"):
        run(model, whole(tokens()), reads=[Read(At("z", 0), gradient=True)])
    with pytest.raises(UserError, match="Read were: z.0"):
        run(model, whole(tokens()), reads=[At("z", 0)])["z", 1]
    with pytest.raises(UserError, match="parallel"):
        run(tiny("gptj"), whole(tokens()), reads=[At("resid_mid", 0)])


def test_logits_that_are_not_finite_are_refused():
    model = tiny("gpt2")
    with pytest.raises(UserError, match="not finite"):
        run(model, whole(tokens()), edits=[Replace(At("resid_post", 2), float("nan"))])


def test_logits_of_one_position_a_row():
    model = tiny("opt")
    batch = TokenBatch.of([[5, 6, 7, 8], [9, 10]], pad_id=1)
    everything = run(model, batch).logits
    last = run(model, batch, logits="last").logits
    chosen = run(model, batch, logits=torch.tensor([1, 0])).logits
    torch.testing.assert_close(last, torch.stack([everything[0, 3], everything[1, 1]]))
    torch.testing.assert_close(chosen, torch.stack([everything[0, 1], everything[1, 0]]))
