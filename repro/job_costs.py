"""What one run has to do, from its config alone: the model's size, its trainings, the analysis' passes.

Loads no weights, and neither PyTorch nor JAX. `repro.estimates` turns it into memory, time and GPU hours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repro import planned, root_specs, tuning_costs
from repro.config import Config
from repro.costs import Cost, Sized, not_modelled
from repro.hardware import Hardware
from repro.machines import BUS, DISK, GIB, RUNTIME_GB, Machine, machine

if TYPE_CHECKING:
    from repro.analyses.icl_costs import Trainee
    from repro.training.plans import Plan

# Resident memory of a process with its libraries (0.7 GiB measured with JAX), of one that trains (0.77), and
# what CUDA adds on the host. Loading to a GPU holds one file of the checkpoint at a time.
PROCESS_BYTES, WORKER_BYTES, CUDA_BYTES, SHARD_BYTES = 1.0 * GIB, 0.8 * GIB, 2.0 * GIB, 10e9
# Of loading a library and compiling, and of drawing figures.
START_SECONDS = 10.0


@dataclass(frozen=True)
class TrainingRun:
    """One training, by the digest under which the store keeps it. flops: 0 if it is there already."""

    digest: str
    flops: float
    says: str


@dataclass(frozen=True)
class Load:
    """What a run has to do.

    shape: None if there is no model or its sizes are unknown. dtype: of the weights. activation_bytes: beside
    the weights, where the model lies. host_bytes: of the processes, beside a model on the CPU.
    """

    shape: Sized | None
    dtype: str
    cost: Cost
    trainings: tuple[TrainingRun, ...] = ()
    activation_bytes: float = 0.0
    host_bytes: float = PROCESS_BYTES
    small: bool = False
    known: bool = True
    lines: tuple[str, ...] = ()


def load_of(config: Config, workers: int, elsewhere: Collection[str] = ()) -> Load:
    """What this run has to do. workers: processes that may train side by side.

    elsewhere: digests of trainings that other jobs do. Raises `UserError` as the run would.
    """
    specs = root_specs.parse(config.values)
    plans = planned.plans(config, specs)
    if plans:
        return _of_trained(config, specs, plans, workers, elsewhere)
    if getattr(specs["model"], "path", None) is not None:
        return _of_loaded(specs)
    if specs["model"] is not None and specs["model"].kind == "organism":
        return _of_organism(specs)
    if specs["model"] is not None and specs["model"].kind == "text_organism":
        return _of_text_organism(specs)
    from repro.analyses.icl_costs import cost

    if specs["model"] is not None and specs["model"].kind != "none" and specs["analysis"].trains:
        line = f"model: the sizes of kind {specs['model'].kind} are not modelled"
        return Load(None, "float32", not_modelled(specs["analysis"].kind), known=False, lines=(line,))
    return Load(None, "float32", cost(specs["analysis"], {}, specs["data"]), small=True)


def _of_trained(
    config: Config,
    specs: Mapping[str, Any],
    plans: Mapping[str, Plan],
    workers: int,
    elsewhere: Collection[str],
) -> Load:  # fmt: skip
    from repro.analyses.icl_costs import cost
    from repro.data.sizes import features_size
    from repro.training.places import folder, is_done

    size = features_size(specs["data"])
    if size is None:
        why = "only reading the data tells how large the models are"
        return Load(None, "float32", not_modelled("trainings", why), small=True, known=False)
    trainees = {name: trainee(plan, size) for name, plan in plans.items()}
    trainings: dict[str, TrainingRun] = {}
    for name, plan in plans.items():
        digest = plan.digest()
        if digest not in trainings:
            done = "in the store already" if is_done(folder(planned.store(config), plan)) else ""
            done = done or ("another job" if digest in elsewhere else "")
            trainings[digest] = TrainingRun(digest, *training_flops(name, plan, trainees[name], done))
    missing = sum(run.flops > 0 for run in trainings.values())
    side_by_side = min(workers, missing)
    features = 4 * size[0] * size[1] * size[2]
    largest = max(trainees.values(), key=lambda one: one.shape.parameters)
    host = PROCESS_BYTES + features + side_by_side * (WORKER_BYTES + features + largest.shape.state_bytes())
    lines = (
        f"host memory: {PROCESS_BYTES / GIB:g} GiB the process"
        + (f", {WORKER_BYTES / GIB:g} GiB each of {side_by_side} that train" if side_by_side else "")
        + f", {features / GIB:.2f} GiB features in each",
    )
    analysis = cost(specs["analysis"], trainees, specs["data"])
    return Load(largest.shape, "float32", analysis, tuple(trainings.values()), host_bytes=host, small=True,
                lines=lines)  # fmt: skip


def training_load(plan: Plan) -> Load:
    """One training as a job of its own."""
    from repro.data.sizes import features_size

    size = features_size(plan.data)
    if size is None:
        return Load(None, "float32", Cost(), small=True, known=False)
    one = trainee(plan, size)
    run = TrainingRun(plan.digest(), *training_flops("", plan, one))
    host = WORKER_BYTES + 4 * size[0] * size[1] * size[2] + one.shape.state_bytes()
    return Load(one.shape, "float32", Cost(), (run,), host_bytes=host, small=True)


def trainee(plan: Plan, size: tuple[int, int, int]) -> Trainee:
    """The model that a plan trains. size: (classes, exemplars, dimension) of the features."""
    from repro.analyses.icl_costs import Trainee
    from repro.models.icl_shape import IclShape
    from repro.training.schedule import checkpoint_steps

    classes = _train_share(plan.sequences.class_split, size[0])
    outputs = plan.model.outputs or plan.sequences.labels or classes
    kinds = tuple(item.model_dump()["kind"] for item in plan.manipulations)
    saved = max(1, len(checkpoint_steps(plan.training)))
    return Trainee(IclShape(plan.model, size[2], outputs), plan.sequences, classes, saved, kinds,
                   classes * _train_share(plan.sequences.exemplar_split, size[1]))  # fmt: skip


def training_flops(name: str, plan: Plan, one: Trainee, done: str = "") -> tuple[float, str]:
    """Operations of a training with its evaluations, and how they come about. done: why there are none."""
    from repro.training.schedule import evaluation_steps

    where = f"training {name}".strip()
    if done:
        return 0.0, f"{where}: {done}"
    batch, items = plan.training.batch, plan.sequences.context + 1
    # A table of all exemplars is projected where that is less work than projecting each item of the batch.
    step = one.shape.step_flops(batch, one.length, min(one.exemplars, batch * items))
    points = len(evaluation_steps(plan.training))
    sets = len(plan.sequences.evaluate)
    evaluation = 0.0
    for evaluator in plan.sequences.evaluate.values():
        length = 2 * (evaluator.context or plan.sequences.context) + 1
        evaluation += plan.sequences.evaluation_sequences * one.shape.forward_flops(length)
    flops = plan.steps * step + points * evaluation
    says = (
        f"{where}: {plan.steps:,} steps of {batch} sequences of {one.length} tokens, {step / 1e6:.1f} MFLOP"
        f" each (3 x forward); {points:,} evaluations of {sets} x {plan.sequences.evaluation_sequences:,}"
        f" sequences, {evaluation / 1e9:.2f} GFLOP each"
    )
    return flops, says


def _train_share(split: tuple[int | str, ...], available: int) -> int:
    named = sum(share for share in split if isinstance(share, int))
    return int(split[0]) if split[0] != "rest" else max(available - named, 0)


def _of_loaded(specs: Mapping[str, Any]) -> Load:
    from repro.analyses.icl_costs import cost
    from repro.models.known_shapes import find

    model = specs["model"]
    shape = find(model.path)
    if shape is None:
        line = (
            f"model: {model.path} is neither a well-known name nor in the cache here: its sizes are unknown,"
            " and neither memory nor operations are estimated"
        )
        return Load(None, model.dtype, not_modelled(specs["analysis"].kind), known=False, lines=(line,))
    weights = shape.weights_bytes(model.dtype)
    analysis = cost(specs["analysis"], shape, specs["data"])
    attention = "eager" if getattr(model, "attention", "auto") == "eager" else "sdpa"
    activations = max((shape.work_bytes(work, model.dtype, attention) for work in analysis.works), default=0)
    lines = (
        f"model: {model.path}, {shape.layers} layers, width {shape.width}, {shape.parameters:,} parameters,"
        f" {weights / 1e9:.2f} GB = {weights / GIB:.1f} GiB in {model.dtype}",
        f"activations: {activations / GIB:.2f} GiB at a time with {attention} attention"
        if analysis.works
        else "activations: not modelled, and not in the memory",
    )
    beside = activations + analysis.held_bytes
    tuned = (TrainingRun(*tuning_costs.training(model, shape)),) if hasattr(model, "tuning") else ()
    return Load(shape, model.dtype, analysis, tuned, activation_bytes=beside, lines=lines)


def _of_organism(specs: Mapping[str, Any]) -> Load:
    """A small language model that is trained here on one core before it is looked at."""
    from repro.analyses.icl_costs import cost
    from repro.models.shapes import Shape

    model, task = specs["model"], specs["model"].task
    words = getattr(task, "vocabulary", 0)
    head, hidden = model.width // model.heads, model.mlp_width or 4 * model.width
    shape = Shape(model.architecture, model.depth, model.heads, model.heads, model.width, head, hidden, words,
                  model.context)  # fmt: skip
    length = task.longest
    sequence = shape.forward_flops(length, length) + shape.backward_flops(
        length, length, weight_gradients=True
    )
    says = (
        f"model: {shape.parameters:,} parameters" + ("" if words else " beside the embedding"),
        f"training: at most {model.steps:,} steps of {model.batch} sequences of at most {length} tokens,"
        f" {model.batch * sequence / 1e9:.2f} GFLOP each; none if it was trained before",
    )
    digest = hashlib.sha256(json.dumps(model.training_fingerprint(), sort_keys=True).encode()).hexdigest()
    run = TrainingRun(digest, model.steps * model.batch * sequence, says[1])
    return Load(shape, model.dtype, cost(specs["analysis"], shape, specs["data"]), (run,), small=True,
                lines=says[:1])  # fmt: skip


def _of_text_organism(specs: Mapping[str, Any]) -> Load:
    """A small GPT-2 that is trained here on a text before it is looked at."""
    from repro.analyses.icl_costs import cost
    from repro.models.shapes import Shape

    model = specs["model"]
    sizes = (model.width, model.width // model.heads, 4 * model.width, model.vocabulary)
    shape = Shape("gpt2", model.depth, model.heads, model.heads, *sizes, getattr(model.text, "block", 512))
    says = f"model: {shape.parameters:,} parameters"
    run = TrainingRun(*tuning_costs.training(model, shape))
    return Load(shape, model.dtype, cost(specs["analysis"], shape, specs["data"]), (run,), small=True,
                lines=(says,))  # fmt: skip


def reading_seconds(load: Load) -> float:
    """Seconds to read the weights of a model that is loaded."""
    return 0.0 if load.small or load.shape is None else load.shape.weights_bytes(load.dtype) / DISK


def rate(load: Load, at: Machine) -> float:
    """TFLOP/s. Small models are bound by latency: they are as fast as on one core, on any machine."""
    if load.small:
        return machine(Hardware(executor="inline", threads=1), 1).tflops
    return at.tflops


def spilled_bytes(load: Load, hardware: Hardware, at: Machine) -> float:
    """Bytes of weights that a device map leaves on the host."""
    if not (at.on_gpu and load.shape and hardware.device_map and at.memory_gb):
        return 0.0
    room = at.gpus * (at.memory_gb - RUNTIME_GB) * GIB - load.activation_bytes
    return max(0.0, load.shape.weights_bytes(load.dtype) - room)


def streaming_seconds(load: Load, hardware: Hardware, at: Machine) -> float:
    """Seconds to read the weights at each pass, from the GPU's memory or over the bus."""
    if load.small or load.shape is None or at.bandwidth is None:
        return 0.0
    outside = spilled_bytes(load, hardware, at)
    once = (load.shape.weights_bytes(load.dtype) - outside) / at.bandwidth + outside / BUS
    return sum(work.passes for work in load.cost.works) * once / 1e12


def memory_bytes(load: Load, hardware: Hardware, at: Machine) -> tuple[float | None, float]:
    """Peak bytes where the model lies (None: unknown), and on the host."""
    if load.small:
        return (load.host_bytes if load.known else None), load.host_bytes
    if load.shape is None:
        return None, load.host_bytes
    weights = load.shape.weights_bytes(load.dtype)
    if not at.on_gpu:
        both = load.host_bytes + weights + load.activation_bytes
        return both, both
    used = at.gpus if hardware.device_map else 1
    on_gpus = weights + load.activation_bytes + used * RUNTIME_GB * GIB
    spilled = spilled_bytes(load, hardware, at)
    return on_gpus, PROCESS_BYTES + CUDA_BYTES + spilled + min(weights, SHARD_BYTES)
