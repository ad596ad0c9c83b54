"""Fast path patching against its definition in full passes, and facts that follow from the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interventions.path_patching_cases import (
    DOWNSTREAM,
    FEW,
    GROUPS,
    MLPS,
    PATHS,
    model_of,
    pairs_of,
    receivers,
)
from models.tiny_models import EAGER_ONLY, KINDS, tiny

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import Add, At, Replace
from repro.interventions.lm_run import run
from repro.interventions.path_patching import logit_difference, sweep
from repro.interventions.path_patching_definition import Definition
from repro.interventions.path_patching_nodes import (
    EMBEDDING,
    Sender,
    all_senders,
    parse_receiver,
    parse_sender,
)

EVERYONE = all_senders(3, 4)


def tolerance(kind: str) -> float:
    """GPT-Neo and GPT-J cast queries and keys to float32 inside the library, whatever the dtype: inputs that
    differ by 1e-16 may be rounded to neighbouring floats, 6e-8 apart, so no better can be promised."""
    return 1e-6 if kind in EAGER_ONLY else 1e-9


def both(model, pairs, groups, stages, positions="END", **how):
    """The metric with paths patched, [S, B], fast and by definition."""
    fast = sweep(model, pairs, groups, stages, positions=positions, **how)
    definition = Definition(model, pairs, stages, positions=positions, **how)
    torch.testing.assert_close(fast.baseline, definition.baseline(), rtol=0, atol=1e-6)
    return fast.patched, torch.stack([definition(group) for group in groups])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_fast_equals_definition_in_every_family(kind: str, path: str) -> None:
    model, (stages, positions) = model_of(kind), PATHS[path]
    pairs = pairs_of("left" if list(PATHS).index(path) % 2 else "right")
    for mlps in MLPS:
        for downstream in DOWNSTREAM:
            fast, slow = both(
                model, pairs, FEW, receivers(stages), positions, mlps=mlps, downstream=downstream
            )
            torch.testing.assert_close(fast, slow, rtol=0, atol=tolerance(kind))
            assert (fast - fast[0]).abs().max() > 1e-5, "the senders differ"


@pytest.mark.parametrize("path", ["logits", "mixed", "all", "chain"])
def test_all_groups_of_senders(path: str) -> None:
    stages, positions = PATHS[path]
    for side in ("left", "right"):
        fast, slow = both(model_of("gpt2"), pairs_of(side), GROUPS, receivers(stages), positions)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", ["logits", "queries", "values", "all", "chain"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gptj", "llama"])
def test_float32(kind: str, path: str) -> None:
    stages, positions = PATHS[path]
    for downstream in DOWNSTREAM:
        fast, slow = both(tiny(kind), pairs_of(), FEW, receivers(stages), positions, downstream=downstream)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mlps", MLPS)
@pytest.mark.parametrize("kind", KINDS)
def test_senders_not_below_a_receiver_have_no_effect_at_all(kind: str, mlps) -> None:
    stages = receivers([["1.0.q", "1.1.k@S2"]])
    effect = sweep(model_of(kind), pairs_of(), EVERYONE, stages, mlps=mlps).change
    layers = torch.tensor([one.layer for one in EVERYONE])
    assert (effect[layers >= 1] == 0).all() and (effect[layers < 1].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_patching_from_the_same_prompts_changes_nothing(kind: str) -> None:
    pairs = pairs_of()
    same = replace(pairs, corrupt=pairs.clean)
    for stages, positions in PATHS.values():
        effect = sweep(model_of(kind), same, GROUPS, receivers(stages), positions=positions).change
        assert effect.abs().max() < tolerance(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_receivers_position_counts(kind: str) -> None:
    """With all heads frozen nothing moves between positions: senders patched everywhere do the same."""
    model, pairs = model_of(kind), pairs_of()
    for path in ("logits", "queries", "values"):
        stages = receivers(PATHS[path][0])
        everywhere = Definition(model, pairs, stages, everywhere=True)
        fast = sweep(model, pairs, FEW, stages)
        slow = torch.stack([everywhere(group) for group in FEW])
        torch.testing.assert_close(fast.patched, slow, rtol=0, atol=tolerance(kind))
    at_all = sweep(model, pairs, FEW, positions="all").patched
    torch.testing.assert_close(at_all, sweep(model, pairs, FEW).patched, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mlps", MLPS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_edges_into_the_last_stream_together_are_the_corrupt_run(kind: str, mlps) -> None:
    model, pairs = model_of(kind), pairs_of()
    patched = sweep(model, pairs, [[EMBEDDING, *EVERYONE]], mlps=mlps).patched[0]
    rows = torch.arange(len(pairs))
    logits = run(model, pairs.corrupt, logits=pairs.positions["END"]).logits
    assert logits is not None
    expected = logits[rows, pairs.answer] - logits[rows, pairs.wrong]
    torch.testing.assert_close(patched, expected, rtol=0, atol=1e-9)


def test_frozen_without_a_norm_effects_add_up() -> None:
    """Straight to the logits with frozen MLPs, without the last norm, the effect of a group is the sum."""
    model, pairs = model_of("gpt2"), pairs_of()
    model.last_norm = None
    single = sweep(model, pairs, EVERYONE, mlps="freeze").change
    together = sweep(model, pairs, [EVERYONE], mlps="freeze").change[0]
    torch.testing.assert_close(single.sum(0), together, rtol=0, atol=1e-9)


def test_a_head_that_writes_nothing_has_no_effect() -> None:
    model, pairs = model_of("gpt2"), pairs_of()
    model.layers[1].output_matrix[2].zero_()
    for path in ("logits", "queries"):
        effect = sweep(model, pairs, [Sender(1, 2), Sender(1, 1)], receivers(PATHS[path][0])).change
        assert effect[0].abs().max() < 1e-9 < 1e-3 < effect[1].abs().max()


@pytest.mark.parametrize("path", ["logits", "mixed", "all", "chain"])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_portions_do_not_matter(path: str, rows: int) -> None:
    stages, positions = PATHS[path]
    model, pairs = model_of("mistral"), pairs_of(lengths=(7, 9, 8, 5))
    whole = sweep(model, pairs, GROUPS, receivers(stages), positions=positions)
    parts = sweep(model, pairs, GROUPS, receivers(stages), positions=positions, rows=rows)
    torch.testing.assert_close(parts.patched, whole.patched, rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gpt_neox", "mistral"])
def test_padding_and_other_prompts_do_not_matter(kind: str, path: str) -> None:
    stages, positions = PATHS[path]
    model, right = model_of(kind), pairs_of("right")
    expected = sweep(model, right, FEW, receivers(stages), positions=positions).patched
    left = sweep(model, pairs_of("left"), FEW, receivers(stages), positions=positions).patched
    torch.testing.assert_close(left, expected, rtol=0, atol=tolerance(kind))
    alone = []
    for row in range(len(right)):
        one, length = right.rows([row]), int(right.clean.mask[row].sum())
        short = replace(
            one,
            clean=TokenBatch.of([one.clean.tokens[0, :length].tolist()]),
            corrupt=TokenBatch.of([one.corrupt.tokens[0, :length].tolist()]),
        )
        alone.append(sweep(model, short, FEW, receivers(stages), positions=positions).patched)
    torch.testing.assert_close(torch.cat(alone, dim=1), expected, rtol=0, atol=tolerance(kind))


def test_order_of_senders_does_not_matter() -> None:
    model, pairs, stages = model_of("llama"), pairs_of(), receivers(PATHS["queries"][0])
    expected = sweep(model, pairs, EVERYONE, stages).patched
    backwards = sweep(model, pairs, EVERYONE[::-1], stages).patched
    torch.testing.assert_close(backwards.flip(0), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", ["logits", "queries", "values", "chain"])
def test_corrupt_prompts_may_have_their_positions_elsewhere(path: str) -> None:
    """Longer corrupt prompts, the same names: what is sent from a name arrives at the name."""
    pairs = pairs_of()
    longer = [[9, 9, *row] for row in pairs.corrupt.tokens.tolist()]
    moved = replace(
        pairs, corrupt=TokenBatch.of(longer),
        corrupt_positions={name: at + 2 for name, at in pairs.positions.items()},
    )  # fmt: skip
    fast, slow = both(model_of("gpt2"), moved, FEW, receivers(PATHS[path][0]))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="same length"):
        sweep(model_of("gpt2"), moved, FEW, receivers([["1.0.q"]]), positions="all")


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "opt_post_norm", "llama"])
@pytest.mark.parametrize("path", ["logits", "queries", "values", "chain"])
def test_on_a_model_with_knocked_out_parts(kind: str, path: str) -> None:
    model, pairs = model_of(kind), pairs_of()
    end, generator = pairs.positions["END"], torch.Generator().manual_seed(1)
    mean = torch.randn(3, 1, 1, model.head_width, generator=generator, dtype=torch.float64)
    edits = [
        Replace(At("z", 2, heads=[0, 3], positions=end), mean),
        Replace(At("z", 1, heads=[1]), 0.0),
        Replace(At("mlp_out", 2, positions=end), 0.5),
    ]
    for downstream in DOWNSTREAM:
        stages = receivers(PATHS[path][0])
        fast, slow = both(model, pairs, FEW, stages, edits=edits, downstream=downstream)
        torch.testing.assert_close(fast, slow, rtol=0, atol=tolerance(kind))
    plain = sweep(model, pairs, FEW, receivers(PATHS[path][0])).patched
    assert (fast - plain).abs().max() > 1e-3
    with pytest.raises(UserError, match="replacing z or mlp_out"):
        sweep(model, pairs, FEW, edits=[Add(At("z", 0), 1.0)])


def test_other_metrics() -> None:
    """Any function of what the unembedding reads: here the log-probability of the answer."""

    def surprise(model, normed, pairs):
        return model.unembed(normed).log_softmax(-1)[..., torch.arange(len(pairs)), pairs.answer]

    model, pairs = model_of("gptj"), pairs_of()
    for path in ("logits", "queries"):
        fast, slow = both(model, pairs, FEW, receivers(PATHS[path][0]), metric=surprise)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)
    difference = sweep(model, pairs, FEW, metric=logit_difference).patched
    torch.testing.assert_close(difference, sweep(model, pairs, FEW).patched, rtol=0, atol=0)


BAD = {
    "receiver above the model": (dict(stages=["3.0.q"]), "layers 0 to 2"),
    "head that is not there": (dict(stages=["2.4.q"]), "heads 0 to 3"),
    "key head that is not there": (dict(stages=["2.2.k"]), "key/value heads 0 to 1"),
    "sender that is not there": (dict(senders=[Sender(0, 7)]), "heads 0 to 3"),
    "mlp that is not there": (dict(senders=[Sender(3)]), "Valid layers: 0 to 2"),
    "one sender above": (dict(senders=[Sender(2, 0)], stages=["2.1.q", "1.0.q"]), "above receivers"),
    "a group above": (dict(senders=[Sender(0), [Sender(1), Sender(2)]], stages=["1.1.q"]), "above receivers"),
    "position that is not there": (dict(stages=["2.0.q@S3"]), "Valid choices: S1, S2, END"),
    "no position of this name": (dict(positions="END2"), "Valid choices: S1, S2, END"),
    "logits elsewhere": (dict(positions="S2"), "logits are read at END"),
    "mlps": (dict(mlps="frozen"), "recompute, freeze"),
    "downstream": (dict(downstream="none"), "recompute, filter"),
    "no senders": (dict(senders=[]), "at least one"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    how, message = BAD[case]
    stages = [[parse_receiver(one) for one in how.pop("stages")]] if "stages" in how else []
    senders = how.pop("senders", EVERYONE)
    with pytest.raises(UserError, match=message):
        sweep(model_of("llama"), pairs_of(), senders, stages, **how)


def test_a_path_that_leads_down_is_refused() -> None:
    with pytest.raises(UserError, match="lower layers first"):
        sweep(model_of("gpt2"), pairs_of(), EVERYONE, receivers([["2.0.q"], ["1.0.q"]]))


def test_positions_on_padding_and_of_another_length_are_refused() -> None:
    pairs = pairs_of(lengths=(5, 8))
    for wrong, message in ((torch.tensor([7, 7]), "padding in prompt 0"), (torch.tensor([4]), "each of 2")):
        with pytest.raises(UserError, match=message):
            sweep(model_of("gpt2"), replace(pairs, positions={**pairs.positions, "END": wrong}), EVERYONE)


def test_values_that_are_not_finite_are_refused() -> None:
    model = model_of("gpt2")
    model.layers[1].output_matrix[0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        sweep(model, pairs_of(), EVERYONE)


def test_how_senders_and_receivers_are_written() -> None:
    for one in [*EVERYONE, EMBEDDING]:
        assert parse_sender(str(one)) == one
    for text in ("9.10.q", "8.6.v@S2", "0.0.k@S1+1"):
        assert str(parse_receiver(text)) == text
    for text in ("9.9", "9.9.z", "9.q", 9.9):
        with pytest.raises(UserError, match="letter q, k or v"):
            parse_receiver(text)
    with pytest.raises(UserError, match="without quotes YAML reads"):
        parse_sender(9.1)
