"""Causal scrubbing against the same tree computed run by run, and what follows from its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tiny_models import tiny

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import Add, At, Replace
from repro.interventions.lm_run import run
from repro.interventions.path_patching_nodes import EMBEDDING, Sender
from repro.interventions.scrub_draws import Draw, Hypothesis, Node, Table, draw, sample
from repro.interventions.scrubbing import Scrubber

KINDS = ("gpt2", "gptj", "gpt_neox", "gpt_neox_sequential", "qwen2", "gpt_neo")
CLEAN, LENGTH = 6, 8
# GPT-J and GPT-Neo compute scores, and Qwen its norms, in float32 whatever the dtype.
TOLERANCE = {"gptj": 1e-5, "gpt_neo": 1e-5, "qwen2": 1e-5}


def prompts() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(2, 61, (int(n),), generator=generator).tolist()
        for n in torch.randint(6, LENGTH + 1, (2 * CLEAN,), generator=generator)
    ]
    return TokenBatch.of(rows, pad_id=1)


def positions(batch: TokenBatch) -> dict[str, torch.Tensor]:
    end = batch.last
    return {"END": end, "S2": end - 2, "S1": torch.ones_like(end)}


def model_of(kind: str):
    return tiny(kind, "eager" if kind in ("gptj", "gpt_neo") else "sdpa", torch.float64)


def tree() -> Hypothesis:
    """Three storeys, every letter, heads and MLPs and the embedding, several members a node."""
    movers = (Sender(2, 0), Sender(2, 3), Sender(1, 1))
    return Hypothesis(
        children=(
            Node("movers", movers, "END", None, children=(
                Node("inhibition", (Sender(1, 0), Sender(0, 2), Sender(0)), "END", "q", "unconditional",
                     children=(Node("duplicates", (Sender(0, 1), EMBEDDING), "S2", "v", ("IO",)),
                               Node("keys", (Sender(0, 0),), "S1", "k", "twin"))),
                Node("names", (Sender(0, 3), EMBEDDING), "S1", "k", ("IO", "order")),
            )),
            Node("mlp", (Sender(2),), "END", None, children=(
                Node("late", (Sender(1, 2),), "END", "mlp", "corrupt"),
            )),
        )
    )  # fmt: skip


def table() -> Table:
    return Table(CLEAN, {"IO": [0, 0, 1, 1, 2, 2], "order": [0, 1, 0, 0, 1, 1]})


class Slow:
    """The same tree, one sample and one head at a time, by runs of the model with edits."""

    def __init__(self, model, batch, places, draws):
        self.model, self.batch, self.places, self.draws = model, batch, places, draws

    def stream(self, hypothesis: Hypothesis, i: int) -> torch.Tensor:
        row = self.draws[""].other[i]
        total = self.read(row, "resid_post", self.model.depth - 1, "END")
        for child in hypothesis.children:
            for sender in child.senders:
                total = total + self.output(child, child.name, sender, i) - self.plain(sender, row, child.at)
        return total

    def output(self, node: Node, path: str, sender: Sender, i: int) -> torch.Tensor:
        if not node.children:
            return self.plain(sender, self.draws[path].own[i], node.at)
        row, layer = self.draws[path].other[i], sender.layer
        edits = []
        for letter in ("q", "k", "v") if sender.head is not None else ("mlp",):
            for at in self.places:
                change = self.change(node, path, sender, letter, at, row, i)
                if change is not None:
                    edits.append(self.forced(sender, letter, at, row, change))
        if sender.head is None:
            if not edits:
                return self.plain(sender, row, node.at)
            found = run(self.model, self.one(row), edits=edits, reads=[At("mlp_out", layer)], logits=None)
            return found["mlp_out", layer][0, self.column(row, node.at)]
        found = run(self.model, self.one(row), edits=edits, reads=[At("z", layer)], logits=None)
        z = found["z", layer][0, self.column(row, node.at)]
        return self.model.layers[layer].head_out(z[None, None])[0, 0, sender.head]

    def change(self, node, path, sender, letter, at, row, i):
        total = None
        for child in node.children:
            if child.through != letter or child.at != at:
                continue
            for below in child.senders:
                sees_layer = sender.head is None and self.model.layers[0].reads_mid and below.head is not None
                if below.layer < sender.layer or (sees_layer and below.layer == sender.layer):
                    new = self.output(child, f"{path}/{child.name}", below, i) - self.plain(below, row, at)
                    total = new if total is None else total + new
        return total

    def forced(self, sender, letter, at, row, change):
        """What the letter becomes if the stream that it is read from changes: read, then forced."""
        column, layer = [self.column(row, at)], sender.layer
        if letter == "mlp":
            site = "resid_mid" if self.model.layers[layer].reads_mid else "resid_pre"
            where = At("mlp_in", layer, positions=column)
            edit = Add(At(site, layer, positions=column), change)
            moved = run(self.model, self.one(row), edits=[edit], reads=[where], logits=None)
            return Replace(where, moved[where])
        where = At(letter, layer, positions=column)
        edit = Add(At("resid_pre", layer, positions=column), change)
        moved = run(self.model, self.one(row), edits=[edit], reads=[where], logits=None)
        return Replace(where, moved[where])

    def plain(self, sender: Sender, row: int, at: str) -> torch.Tensor:
        if sender.layer < 0:
            return self.read(row, "resid_pre", 0, at)
        if sender.head is None:
            return self.read(row, "mlp_out", sender.layer, at)
        z = self.read(row, "z", sender.layer, at)
        return self.model.layers[sender.layer].head_out(z[None, None])[0, 0, sender.head]

    def read(self, row: int, site: str, layer: int, at: str) -> torch.Tensor:
        found = run(self.model, self.one(row), reads=[At(site, layer)], logits=None)
        return found[site, layer][0, self.column(row, at)]

    def one(self, row: int) -> TokenBatch:
        return self.batch.rows([int(row)])

    def column(self, row: int, at: str) -> int:
        return int(self.places[at][row])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_equals_the_same_tree_run_by_run(kind):
    model, batch = model_of(kind), prompts()
    places = positions(batch)
    draws = draw(tree(), table(), samples=5, seed=3)
    slow = Slow(model, batch, places, draws)
    expected = torch.stack([slow.stream(tree(), i) for i in range(5)])
    found = Scrubber(model, batch, places, tree(), batch=4).final_stream(draws, slice(0, 5))
    tolerance = TOLERANCE.get(kind, 1e-9)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_samples_and_batches_do_not_matter():
    model, batch = model_of("gpt2"), prompts()
    draws = draw(tree(), table(), samples=7, seed=0)
    small = Scrubber(model, batch, positions(batch), tree(), batch=2)
    large = Scrubber(model, batch, positions(batch), tree(), batch=64)
    whole = large.final_stream(draws, slice(0, 7))
    parts = [small.final_stream(draws, slice(i, i + 1)) for i in range(7)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-11, rtol=1e-11)


def test_everything_exact_is_the_model_itself():
    """If every node and every unclaimed input keeps the prompt, nothing is scrubbed."""
    model, batch = model_of("gpt2"), prompts()
    exact = Hypothesis("exact", "exact", (
        Node("movers", (Sender(2, 0), Sender(1)), "END", None, "exact", "exact", (
            Node("below", (Sender(0, 1),), "S1", "k", "exact", "exact"),
        )),
    ))  # fmt: skip
    draws = draw(exact, table(), samples=9, seed=1)
    scrubber = Scrubber(model, batch, positions(batch), exact)
    expected = scrubber.plain_stream(torch.as_tensor(draws[""].own))
    torch.testing.assert_close(scrubber.final_stream(draws, slice(0, 9)), expected, atol=1e-10, rtol=1e-10)


def test_all_direct_paths_kept_is_the_model_itself():
    """The final stream is the sum of the embedding, all heads, all MLPs, and biases, the same for all."""
    model, batch = model_of("gpt2"), prompts()
    senders = [Sender(layer, head) for layer in range(3) for head in [*range(4), None]]
    everything = Hypothesis(children=(Node("all", (EMBEDDING, *senders), "END", None),))
    draws = draw(everything, table(), samples=9, seed=1)
    scrubber = Scrubber(model, batch, positions(batch), everything)
    expected = scrubber.plain_stream(torch.as_tensor(draws[""].own))
    torch.testing.assert_close(scrubber.final_stream(draws, slice(0, 9)), expected, atol=1e-10, rtol=1e-10)


def test_nothing_kept_is_another_prompt():
    model, batch = model_of("gpt2"), prompts()
    draws = draw(Hypothesis(), table(), samples=9, seed=1)
    scrubber = Scrubber(model, batch, positions(batch), Hypothesis())
    expected = scrubber.plain_stream(torch.as_tensor(draws[""].other))
    assert torch.equal(scrubber.final_stream(draws, slice(0, 9)), expected)


def test_draws_keep_what_their_samplers_say():
    prompts_drawn = draw(tree(), table(), samples=500, seed=0)
    features = table().features
    io, order = np.array(features["IO"] * 2), np.array(features["order"] * 2)
    movers, inhibition = prompts_drawn["movers"], prompts_drawn["movers/inhibition"]
    assert (movers.own == prompts_drawn[""].own).all()
    same = io[prompts_drawn["movers/inhibition/duplicates"].own] == io[inhibition.own]
    assert same.all() and (prompts_drawn["movers/inhibition/keys"].own == inhibition.own + CLEAN).all()
    names = prompts_drawn["movers/names"].own
    assert (io[names] == io[movers.own]).all() and (order[names] == order[movers.own]).all()
    assert (prompts_drawn["mlp/late"].own >= CLEAN).all()
    # Unconditional draws are independent of the reference: 1 in 6 agrees by chance.
    assert 0.1 < (inhibition.own == movers.own).mean() < 0.25


def test_conditional_draws_are_uniform_among_those_that_agree():
    rows = np.zeros(6000, dtype=int)
    drawn = sample(("IO",), rows, table(), np.random.default_rng(0))
    assert set(drawn) == {0, 1} and abs((drawn == 0).mean() - 0.5) < 0.03


def test_the_same_seed_draws_the_same():
    first, again = (draw(tree(), table(), samples=20, seed=5) for _ in range(2))
    assert all((first[name].own == again[name].own).all() for name in first)


MOVER = (Sender(2, 0),)


def movers(*children: Node, senders=MOVER) -> Hypothesis:
    return Hypothesis(children=(Node("movers", senders, "END", None, children=children),))


@pytest.mark.parametrize(
    ("hypothesis", "says"),
    [
        (movers(Node("late", (Sender(2, 1),), "END", "q")), "2.1 lies above all of movers"),
        (movers(Node("off", (Sender(0, 1),), "S2", "q")), "read at END; got at=S2"),
        (movers(Node("none", (Sender(0, 1),), "END", None)), "through is None. Valid: q, k, v, mlp"),
        (movers(Node("mlp", (Sender(0, 1),), "END", "mlp")), "has no MLPs"),
        (movers(senders=(Sender(7, 0),)), "layers 0 to 2"),
        (movers(Node("where", (Sender(0, 1),), "S9", "k")), "This data has: END, S2, S1"),
        (
            movers(Node("a", (Sender(0, 1),), "S1", "k"), Node("b", (Sender(0, 1),), "S1", "k")),
            "claimed by a, too",
        ),
    ],
)
def test_impossible_hypotheses_are_refused(hypothesis, says):
    batch = prompts()
    with pytest.raises(UserError, match=says):
        Scrubber(model_of("gpt2"), batch, positions(batch), hypothesis)


def test_unknown_samplers_are_refused():
    with pytest.raises(UserError, match="Valid: exact, unconditional, twin, corrupt"):
        sample("something", np.array([0]), table(), np.random.default_rng(0))
    with pytest.raises(UserError, match="no feature colour. Valid: IO, order"):
        sample(("colour",), np.array([0]), table(), np.random.default_rng(0))


def test_models_that_normalise_afterwards_are_refused():
    batch = prompts()
    with pytest.raises(UserError, match="normalises after each sublayer"):
        Scrubber(tiny("opt_post_norm"), batch, positions(batch), movers())


def test_draws_hold_rows_of_the_table():
    found = Draw(np.array([1]), np.array([2]))
    assert found.own[0] == 1 and found.other[0] == 2
