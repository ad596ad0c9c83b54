"""How fast the in-context-learning training is, against a loop that dispatches every step by itself.

    python benchmarks/icl_training.py [--steps 628]

Everything is measured in one process on one thread, the ways in turns, at the settings of the
induction-heads main run (batch 32, width 64, 8 heads, 512 features, 4 evaluators of 1000 sequences).
Wall-clock times are medians over rounds; CPU time is given beside them, for machines that are shared.
"""

from __future__ import annotations

import os

# Before JAX is imported: one thread, as the workers have it (see repro/training/pool.py).
os.environ.update(NPROC="1", OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu")

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from repro.data.features import Features, load
from repro.data.random_streams import published_streams
from repro.data.sequences import gather, train_sampler
from repro.data.specs import Gaussian, Sequences
from repro.interventions.icl_manipulations import untouched
from repro.models.specs import IclTransformer
from repro.training import compiling
from repro.training import program as program_module
from repro.training.program import Program, Seeds, State, build
from repro.training.specs import Training

MODEL = IclTransformer()
TRAINING = Training(sequences=1_000_000, evaluate_every=5000)
EVALUATE = {
    "fsl_train": {"relabel": "train"},
    "fsl_val_rl": {"relabel": "val"},
    "fsl_train_valex": {"exemplars": "val"},
    "fsl_test_class": {"classes": "test"},
}
SPLITS = {"class_split": [50, "rest", 100], "exemplar_split": [1, "rest", 0], "label_pair_split": [8, 2, 0]}
SEQUENCES = Sequences.parse({**SPLITS, "evaluate": EVALUATE}, "sequences")
STRETCH = 157  # steps between two evaluations of the main run
TOGETHER = 4  # runs vmapped into one


@dataclass
class Times:
    """Wall-clock and CPU seconds of each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], Any]) -> Any:
        """Do `work` to its end and note how long it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        done = jax.block_until_ready(work())
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return done

    def ms(self, units: float) -> tuple[float, float]:
        """Median milliseconds for each of `units` in a round: wall clock and CPU."""
        return tuple(1e3 * statistics.median(times) / units for times in (self.wall, self.cpu))  # type: ignore[return-value]


def compiled(features: Features, init_seed: int = 5) -> Program:
    """Our training of the main run."""
    return build(MODEL, SEQUENCES, TRAINING, Seeds(init_seed, 0, 1), features, untouched, STRETCH)


# The same computation as a straightforward implementation would have it: one sequence at a time under
# vmap, a tree of parameters, a call for every batch and every step.


def _norm(layer: Any, x: jax.Array) -> jax.Array:
    mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * layer.weight + layer.bias


def _turned(x: jax.Array, angle: np.ndarray) -> jax.Array:
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)


def one_sequence(model: Any, examples: jax.Array, labels: jax.Array) -> jax.Array:
    """Query logits of one sequence, token by token through every layer."""
    embedded = jax.vmap(lambda x: model.example_embed.weight @ x + model.example_embed.bias)(examples)
    named = jax.vmap(lambda y: model.label_embed.weight @ jax.nn.one_hot(y, model.outputs))(labels)
    x = jnp.stack([embedded, named], 1).reshape(-1, model.width)[:-1]
    length, size = x.shape[0], model.width // model.heads
    angle = np.arange(length)[:, None] / model.position_base ** (2 * np.arange(size // 2) / size)
    for block in model.blocks:
        normed = jax.vmap(lambda token: _norm(block.attn_norm, token))(x)  # noqa: B023
        qkv = jax.vmap(lambda token: block.attn.qkv.weight @ token)(normed)  # noqa: B023
        q, k, v = jnp.transpose(qkv.reshape(length, 3, model.heads, size), (1, 2, 0, 3))
        scores = _turned(q, angle) @ jnp.swapaxes(_turned(k, angle), 1, 2) / np.sqrt(size)
        pattern = jax.nn.softmax(jnp.where(np.tril(np.ones((length, length), bool)), scores, -1e20), -1)
        z = jnp.transpose(pattern @ v, (1, 0, 2)).reshape(length, model.width)
        x = x + jax.vmap(lambda token: block.attn.out.weight @ token)(z)  # noqa: B023
    return model.unembed.weight @ _norm(model.final_norm, x)[-1] + model.unembed.bias


class Dispatched:
    """Training with one call for each batch and one for each step."""

    def __init__(self, program: Program, features: Features) -> None:
        start = program.start()
        self.model = program.model(start.weights)
        self.moments = jax.tree.map(lambda leaf: (jnp.zeros_like(leaf), jnp.zeros_like(leaf)), self.model)
        self.key, self.count = start.data_key, 0
        values, sample = jnp.asarray(features.values), train_sampler(SEQUENCES, features, TRAINING.batch)

        @jax.jit
        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            chain, own = jax.random.split(key)
            batch = sample(own)
            return chain, gather(values, batch), batch.labels

        def loss(model: Any, examples: jax.Array, labels: jax.Array) -> jax.Array:
            logits = jax.vmap(one_sequence, (None, 0, 0))(model, examples, labels)
            chosen = jax.nn.one_hot(labels[:, -1], model.outputs)
            return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * chosen, -1))

        @jax.jit
        def step(model: Any, moments: Any, count: Any, examples: jax.Array, labels: jax.Array) -> Any:
            value, gradient = jax.value_and_grad(loss)(model, examples, labels)
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))

            def moved(g: jax.Array, moment: Any) -> Any:
                return 0.9 * moment[0] + 0.1 * g, 0.999 * moment[1] + 0.001 * g**2

            def stepped(weight: jax.Array, moment: Any) -> jax.Array:
                scale = jnp.sqrt(moment[1] / (1 - 0.999**count)) + 1e-8
                return weight - TRAINING.learning_rate * moment[0] / (1 - 0.9**count) / scale

            moments = jax.tree.map(moved, gradient, moments)
            return jax.tree.map(stepped, model, moments), moments, value, norm

        self._draw, self._step = draw, step

    def advance(self, count: int) -> list[jax.Array]:
        """Train `count` steps; the loss of each."""
        losses = []
        with published_streams():
            for _ in range(count):
                self.key, examples, labels = self._draw(self.key)
                self.count += 1
                result = self._step(self.model, self.moments, float(self.count), examples, labels)
                self.model, self.moments, value, _ = result
                losses.append(value)
        return losses


def flops_of_a_step() -> float:
    """Multiplications and additions of the matrix products in one step as we compute it.

    A product costs three times its forward pass (gradients of input and weight), the projection of
    features twice (they have no gradient). Only the query goes through the end of the last block.
    """
    batch, items, width, dim, outputs = TRAINING.batch, SEQUENCES.context + 1, MODEL.width, 512, 5
    tokens, exemplars = 2 * items - 1, 50
    inside = (MODEL.depth - 1) * 4 * tokens + 2 * tokens + 2  # projections of one sequence, d x d each
    attention = 2 * width * ((MODEL.depth - 1) * tokens * tokens + tokens)
    products = batch * (inside * width * width + attention + items * outputs * width + outputs * width)
    return 2.0 * (3 * products + 2 * exemplars * dim * width)


def peak_flops() -> float:
    """Floating-point operations a second of one thread in a product of two 1024 x 1024 matrices."""
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((1024, 1024)), jnp.float32)
    product, times = jax.jit(jnp.matmul), Times()
    jax.block_until_ready(product(matrix, matrix))
    for _ in range(9):
        times.measure(lambda: product(matrix, matrix))
    return 2 * 1024**3 / min(times.cpu)


def vmapped(features: Features, rounds: int) -> tuple[float, float]:
    """Milliseconds a step of one run when several go through one vmapped program."""
    starts = [compiled(features, seed).start() for seed in range(5, 5 + TOGETHER)]
    states: Any = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    # Compiled parts cannot be compiled again within a larger whole, so here they are left plain.
    plain = patch.object(program_module, "jit", lambda function: function)
    with plain, patch.dict(program_module._drawers, clear=True):
        one = compiled(features)
        advance = compiling.jit(jax.vmap(lambda state: one.advance(state, STRETCH)))
        jax.block_until_ready(advance(states))
    times = Times()
    for _ in range(rounds):
        states, _ = times.measure(lambda: advance(states))  # noqa: B023
    return times.ms(STRETCH * TOGETHER)


def processes(steps: int) -> tuple[float, float, float]:
    """Two processes train one run each: wall and CPU milliseconds a step of one run, peak memory in MiB."""
    command = [sys.executable, __file__, "--steps", str(steps), "--child"]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in started:
        assert process.stdout and process.stdout.readline() == "ready\n"
    begin = time.perf_counter()
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().split() for process in started if process.stdout]
    elapsed = time.perf_counter() - begin
    for process in started:
        process.communicate()
    (cpu, memory), (other_cpu, other_memory) = (map(float, line) for line in said)
    return 500 * elapsed / steps, 500 * (cpu + other_cpu) / steps, max(memory, other_memory)


def child(steps: int) -> None:
    """Compile, wait for a line, train; print the CPU seconds of training and the peak memory in MiB."""
    features = load(Gaussian())
    assert features is not None
    program = compiled(features)
    state, _ = program.advance(program.start(), STRETCH)
    jax.block_until_ready(program.evaluate(state.weights))
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.process_time()
    for _ in range(steps // STRETCH):
        state, _ = program.advance(state, STRETCH)
    jax.block_until_ready(state)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.process_time() - begin, memory, flush=True)


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=4 * STRETCH, help="steps of each way")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds = max(options.steps // STRETCH, 1)
    if options.child:
        return child(rounds * STRETCH)
    features = load(Gaussian())
    assert features is not None
    program, compilation, other_compilation = compiled(features), Times(), Times()
    state: State = program.start()
    other = Dispatched(program, features)
    state, first = compilation.measure(lambda: program.advance(state, STRETCH))
    compilation.measure(lambda: program.evaluate(state.weights))
    losses = [*np.asarray(first.loss)]
    other_losses = [*other_compilation.measure(lambda: other.advance(STRETCH))]
    ours, theirs, evaluation = Times(), Times(), Times()
    for _ in range(rounds):
        state, record = ours.measure(lambda: program.advance(state, STRETCH))  # noqa: B023
        losses += [*np.asarray(record.loss)]
        evaluation.measure(lambda: program.evaluate(state.weights))  # noqa: B023
        other_losses += theirs.measure(lambda: other.advance(STRETCH))
    report(losses, [float(one) for one in other_losses], ours, theirs, evaluation)
    print(
        f"compilation and first {STRETCH} steps, CPU: compiled, with evaluation {sum(compilation.cpu):.1f} s,"
    )
    print(f"    dispatched {other_compilation.cpu[0]:.1f} s")
    wall, cpu = vmapped(features, max(rounds // 2, 1))
    print(f"{TOGETHER} runs vmapped: {wall:.3f} ms a step of one run (CPU {cpu:.3f})")
    wall, cpu, memory = processes(rounds * STRETCH)
    print(f"two processes: {wall:.3f} ms a step of one run (CPU {cpu:.3f}); one process: see above")
    print(f"peak memory of a training process: {memory:.0f} MiB")


def report(losses: list[float], others: list[float], ours: Times, theirs: Times, evaluation: Times) -> None:
    """Print ours against theirs; their losses must agree."""
    np.testing.assert_allclose(losses, others, rtol=1e-3)
    wall, cpu = ours.ms(STRETCH)
    other_wall, other_cpu = theirs.ms(STRETCH)
    peak, flops = peak_flops(), flops_of_a_step()
    print(f"loss after {len(losses)} steps: {losses[-1]:.6f} compiled, {others[-1]:.6f} dispatched")
    print(f"{'':24}{'ms a step':>12}{'steps/s':>10}{'CPU ms':>10}")
    print(f"{'compiled, many steps':24}{wall:12.3f}{1e3 / wall:10.0f}{cpu:10.3f}")
    print(f"{'dispatched, one a call':24}{other_wall:12.3f}{1e3 / other_wall:10.0f}{other_cpu:10.3f}")
    print(f"ratio: {other_wall / wall:.2f} (CPU {other_cpu / cpu:.2f})")
    print(
        f"products of a step: {flops / 1e6:.1f} MFLOP; one thread's 1024^3 product: {peak / 1e9:.0f} GFLOP/s"
    )
    print(f"share of that rate achieved: {flops / (cpu * 1e-3) / peak:.0%}")
    wall, cpu = evaluation.ms(1)
    print(f"an evaluation (4 x 1000 sequences): {wall:.1f} ms (CPU {cpu:.1f})")


if __name__ == "__main__":
    main()
