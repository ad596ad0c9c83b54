"""Training of small language models: the same numbers whatever interrupts it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from repro import stopping
from repro.data.lm_tasks import Scored, build
from repro.errors import UserError
from repro.models import organism
from repro.models.specs import Organism
from repro.training import lm_evaluation, lm_loop
from repro.training.lm_loop import History

SMALL = {
    "depth": 1, "heads": 2, "width": 16, "context": 16, "steps": 24, "batch": 4, "evaluate_every": 10,
    "warmup_steps": 4, "task": {"kind": "repeats", "vocabulary": 12, "length": 16, "probe_sequences": 6},
}  # fmt: skip


def spec(**values: Any) -> Organism:
    return Organism.parse({**SMALL, **values}, "model")


def fresh(made: Organism) -> Any:
    return organism.build(made, 12, None, seed=made.seed)


def trained(made: Organism, directory: Path, **callbacks: Any) -> tuple[dict[str, torch.Tensor], History]:
    model = fresh(made)
    history = lm_loop.run(made, model, build(made.task), directory, **callbacks)
    return model.state_dict(), history


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def content(history: History) -> dict[str, Any]:
    return {name: array.tolist() for name, array in history.arrays().items()}


class Killed(Exception):
    """In place of the kernel's."""


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo", "opt"])
def test_interrupted_at_any_step_it_ends_the_same(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spec(architecture=architecture)
    whole, history = trained(made, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is saved before it takes long"
    monkeypatch.setattr(lm_loop, "SAVE_SECONDS", 0.0)
    for stop in (1, 2, 9, 10, 11, 23, 24):
        directory = tmp_path / str(stop)
        directory.mkdir()

        def kill(history: History, stop: int = stop) -> None:
            if history.step == stop:
                raise Killed

        with pytest.raises(Killed):
            trained(made, directory, progress=kill)
        again, rest = trained(made, directory)
        assert same(whole, again), stop
        assert content(rest) == content(history)


def test_states_too_old_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed several times, and each time some steps after the last saved state."""
    made = spec()
    whole, _ = trained(made, tmp_path)
    saves = []
    save = lm_loop._save
    monkeypatch.setattr(lm_loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(lm_loop, "_save", lambda *all: saves.append(all) if len(saves) % 3 else save(*all))
    for stop in (5, 13, 21):

        def kill(history: History, stop: int = stop) -> None:
            saves.append(())
            if history.step == stop:
                raise Killed

        with pytest.raises(Killed):
            trained(made, tmp_path, progress=kill)
    assert same(whole, trained(made, tmp_path)[0])


def test_asked_to_stop_it_saves_first(tmp_path: Path) -> None:
    made = spec()
    whole, _ = trained(made, tmp_path)
    try:
        with pytest.raises(stopping.Stopped):
            trained(
                made, tmp_path, progress=lambda history: stopping.ask("stop") if history.step == 7 else None
            )
    finally:
        stopping.forget()
    steps = []
    again, _ = trained(made, tmp_path, progress=lambda history: steps.append(history.step))
    assert steps[0] == 8 and same(whole, again)


def test_the_same_spec_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    first, _ = trained(spec(), tmp_path)
    torch.manual_seed(2)
    assert same(first, trained(spec(), tmp_path)[0]), "the process' own random numbers do not matter"
    assert not same(first, trained(spec(seed=1), tmp_path)[0])
    assert torch.get_num_threads() == threads


def test_one_step_is_adam_on_the_clipped_gradient(tmp_path: Path) -> None:
    """The first step of AdamW by hand: the moments are the gradient and its square."""
    made = spec(steps=1, weight_decay=0.1, learning_rate=0.01, warmup_steps=0)
    model, task = fresh(made), build(made.task)
    batch = task.batch(made.seed, 0, made.batch)
    tokens = torch.from_numpy(batch.tokens)
    logits, total, count = model(tokens).logits, torch.zeros(()), 0
    for row, column in np.argwhere(batch.scored):
        total = total - functional.log_softmax(logits[row, column - 1], -1)[tokens[row, column]]
        count += 1
    loss = total / count
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, weights)
    norm = math.sqrt(sum(float((one**2).sum()) for one in gradients))
    after, history = trained(made, tmp_path)
    assert history.loss[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert history.norm[0] == pytest.approx(norm, rel=1e-4)
    for name, weight, gradient in zip(names, weights, gradients, strict=True):
        clipped = gradient * min(1.0, 1.0 / norm)
        expected = weight * (1 - 0.01 * 0.1) - 0.01 * clipped / (clipped.abs() + 1e-8)
        clear = clipped.abs() > 1e-6  # elsewhere Adam divides rounding errors by each other
        assert torch.allclose(after[name][clear], expected[clear], atol=1e-5), name


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    made = spec(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [lm_loop.learning_rate(made, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))


def test_it_ends_at_the_first_evaluation_that_is_good_enough(tmp_path: Path) -> None:
    _, whole = trained(spec(), tmp_path)
    assert whole.points == [0, 10, 20, 24] and len(whole.loss) == 24
    losses = whole.metrics["half_loss"]
    for wanted in losses:
        made = spec(until={"half_loss": wanted})
        first = next(point for point, loss in zip(whole.points, losses, strict=True) if loss >= wanted)
        history = trained(made, tmp_path)[1]
        assert history.step == first and lm_loop.reached(made, history)
    never = spec(until={"half_accuracy": 1.1})
    history = trained(never, tmp_path)[1]
    assert history.step == 24 and not lm_loop.reached(never, history)


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diverged. Give a smaller model.learning_rate"):
        trained(spec(learning_rate=1e30, warmup_steps=0), tmp_path)


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    (tmp_path / lm_loop.STATE).write_bytes(b"not a state")
    with pytest.raises(UserError, match="cannot be read.*Remove it to start again"):
        trained(spec(), tmp_path)


def test_measures_on_logits_known_by_hand() -> None:
    """A model that always gives the same logits: 0, 1, 2 for tokens 0, 1, 2."""

    class Constant(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, use_cache: bool) -> Any:
            logits = torch.arange(3.0).expand(*tokens.shape, 3)
            return type("Out", (), {"logits": logits})

    tokens = np.array([[0, 2, 1], [0, 1, 1]])
    scored = np.array([[False, True, True], [False, False, True]])
    rivals = np.array([[0, 1, 2], [0, 0, 0]])
    found = lm_evaluation.measure(Constant(), Scored(tokens, scored, rivals))
    normal = math.log(1 + math.e + math.e**2)
    assert found == pytest.approx(
        {"loss": normal - 4 / 3, "accuracy": 1 / 3, "prefers": 2 / 3, "logit_difference": 1 / 3}
    )
    rows = np.repeat([0, 1], 150)  # more rows than one forward pass takes
    many = lm_evaluation.measure(Constant(), Scored(tokens[rows], scored[rows], rivals[rows]))
    assert many == pytest.approx(found)
    assert lm_evaluation.measure(Constant(), Scored(tokens, scored)).keys() == {"loss", "accuracy"}


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo", "opt"])
def test_padding_on_the_right_changes_no_prediction(architecture: str) -> None:
    made = spec(architecture=architecture, init_range=0.5)
    model = fresh(made)
    tokens = torch.arange(20).reshape(2, 10) % 12
    longer = torch.cat([tokens, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    scored = torch.zeros(2, 15, dtype=torch.bool)
    scored[0, 1:10] = scored[1, 4] = True
    with torch.no_grad():
        one = lm_evaluation.predictions(model, tokens, scored[:, :10])
        two = lm_evaluation.predictions(model, longer, scored)
    assert one.shape == (10, 12) and torch.allclose(one, two, atol=1e-5)
