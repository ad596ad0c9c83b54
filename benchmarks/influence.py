"""EK-FAC influence scores on a small GPT-2: ours against kronfluence 1.0.1, stage by stage.

    OMP_NUM_THREADS=1 python benchmarks/influence.py [--blocks 512] [--rounds 3]

A GPT-2 with random weights (4 layers, width 128, 4 heads, 2048 tokens), random blocks of 64 tokens, 512
to train on and 32 queries; float32, empirical labels, damping 1e-8, on one thread. Each side runs in a
process of its own, in turns; of several rounds the fastest counts, stage by stage. Printed: processor
seconds of each stage, peak memory, and the largest difference of scores as a share of the largest score,
which above 1e-4 is an error. Kronfluence gets linear modules for GPT-2's Conv1D, as in its example, and
the batches of --batch (64 and 32 queries as published); ours are those of the defaults.

kronfluence is no dependency of the project: it is installed, without what it requires and does not import
(torchvision), into a folder of its own. Where it cannot be had, this ends with a message.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

STAGES = ("covariance", "eigendecomposition", "lambda", "pairwise", "per_token")
NEEDED = {"einops": "einops==0.8.1", "einconv": "einconv==0.1.0", "opt_einsum": "opt-einsum==3.4.0",
          "accelerate": "accelerate>=0.30", "psutil": "psutil"}  # fmt: skip
PATTERNS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def install(folder: Path) -> str:
    """Put kronfluence, and what it imports and is not here, into a folder. Empty, or why it cannot be had."""
    if (folder / "kronfluence").is_dir():
        return ""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    try:
        done = subprocess.run(
            [*command, "kronfluence==1.0.1", *missing], capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]


def model_of(options: argparse.Namespace) -> Any:
    """The same random GPT-2 in every process."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=options.vocabulary, n_positions=options.length, n_embd=options.width,
        n_layer=options.layers, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tokens_of(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks."""
    generator = torch.Generator().manual_seed(1)
    draw = [
        torch.randint(0, options.vocabulary, (count, options.length), generator=generator)
        for count in (options.blocks, options.queries)
    ]
    return draw[0], draw[1]


class Clock:
    """Processor seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, call: Callable[[], Any]) -> Any:
        begin = time.process_time()
        value = call()
        self.seconds[stage] = time.process_time() - begin
        return value


def ours(options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by stage, and scores, of this project; factors are saved, as kronfluence does."""
    from repro.analyses.influence.api import Profile, fit_factors, scores
    from repro.analyses.influence_specs import InfluenceScores
    from repro.data.token_blocks import Blocks
    from repro.models.huggingface import wrap

    model = wrap(model_of(options))
    train, query = (Blocks(tokens) for tokens in tokens_of(options))
    given = {"fisher": "empirical", "self_influence": False, "per_module": False}
    spec = InfluenceScores.parse(given, "analysis")
    profile, clock = Profile(), Clock()
    factors = clock("lambda", lambda: fit_factors(model, train, spec, folder, profile))
    clock.seconds["covariance"] = profile.processor["fit_covariance"] + profile.processor["save_covariance"]
    eigen = ("eigendecomposition", "save_eigendecomposition", "load_eigendecomposition", "load_covariance")
    clock.seconds["eigendecomposition"] = sum(profile.processor[name] for name in eigen)
    # What is left is the fit of the eigenvalues, and whatever no stage accounts for, such as checksums.
    clock.seconds["lambda"] -= clock.seconds["covariance"] + clock.seconds["eigendecomposition"]
    whole = clock("pairwise", lambda: scores(model, factors, query, train, spec, folder))
    by_token = spec.model_copy(update={"per_token": True})
    each = clock("per_token", lambda: scores(model, factors, query, train, by_token, folder))
    assert each.per_token is not None
    return clock.seconds, {"scores": whole.total.numpy(), "per_token": each.per_token.numpy()}


def kronfluence(options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """The same of kronfluence 1.0.1, as its example calls it."""
    sys.path.append(str(options.environment))
    from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
    from kronfluence.arguments import FactorArguments, ScoreArguments  # pyright: ignore[reportMissingImports]
    from kronfluence.task import Task  # pyright: ignore[reportMissingImports]
    from torch.nn import functional

    class LanguageModeling(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logits = logits[..., :-1, :].contiguous().view(-1, logits.size(-1))
            return functional.cross_entropy(logits, batch["labels"][..., 1:].reshape(-1), reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return [f"transformer.h.{i}.{name}" for i in range(options.layers) for name in PATTERNS]

        def get_attention_mask(self, batch: Any) -> Any:
            return batch["attention_mask"]

    def rows(tokens: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": one, "labels": one, "attention_mask": torch.ones_like(one)} for one in tokens]

    task = LanguageModeling()
    model = prepare_model(with_linear(model_of(options)), task)
    analyzer = Analyzer("bench", model, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    train, query = (rows(tokens) for tokens in tokens_of(options))
    factor_args, clock = FactorArguments(strategy="ekfac", use_empirical_fisher=True), Clock()
    common = {"dataset": train, "per_device_batch_size": options.batch, "factor_args": factor_args}
    clock("covariance", lambda: analyzer.fit_covariance_matrices("f", **common))
    clock("eigendecomposition", lambda: analyzer.perform_eigendecomposition("f", factor_args=factor_args))
    clock("lambda", lambda: analyzer.fit_lambda_matrices("f", **common))
    found = {}
    for stage, name in (("pairwise", "scores"), ("per_token", "per_token")):
        score_args = ScoreArguments(compute_per_token_scores=stage == "per_token")
        clock(stage, lambda: analyzer.compute_pairwise_scores(
            stage, "f", query, train, per_device_query_batch_size=min(32, options.batch),  # noqa: B023
            per_device_train_batch_size=options.batch, score_args=score_args))  # noqa: B023  # fmt: skip
        found[name] = analyzer.load_pairwise_scores(stage)["all_modules"].numpy()
    return clock.seconds, found


def with_linear(module: Any) -> Any:
    """Conv1D replaced by equal linear modules, which kronfluence needs."""
    for name, child in module.named_children():
        if isinstance(child, transformers.pytorch_utils.Conv1D):
            linear = torch.nn.Linear(child.weight.shape[0], child.weight.shape[1])
            linear.weight.data, linear.bias.data = child.weight.data.T.contiguous(), child.bias.data
            setattr(module, name, linear)
        else:
            with_linear(child)
    return module


def one_side(options: argparse.Namespace) -> None:
    """In a process of its own: measure, and write what came out."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        seconds, arrays = (ours if options.side == "ours" else kronfluence)(options, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.savez(f"{options.result}.npz", **arrays)
    memory = {"peak": peak / 1024, "before": before / 1024}
    Path(f"{options.result}.json").write_text(json.dumps({"seconds": seconds, **memory}))


def main() -> None:
    """Measure both sides in turns, and print."""
    options = parsed()
    if options.side:
        one_side(options)
        return
    if why := install(options.environment):
        raise SystemExit(f"skipped: kronfluence 1.0.1 cannot be installed here: {why}")
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, list[dict[str, Any]]] = {"kronfluence": [], "ours": []}
        arrays = {}
        for _ in range(options.rounds):
            for side, found in results.items():
                place = Path(folder) / side
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--result", str(place)]
                subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": python_path()})
                found.append(json.loads(place.with_suffix(".json").read_text()))
                arrays[side] = dict(np.load(place.with_suffix(".npz")))
    report(options, results, arrays)


def report(options: argparse.Namespace, results: dict[str, Any], arrays: dict[str, Any]) -> None:
    """The table. Raises SystemExit if scores differ."""
    print(f"{options.layers} layers, width {options.width}, {options.blocks} blocks of {options.length}"
          f" tokens, {options.queries} queries; processor seconds, best of {options.rounds}")  # fmt: skip
    print(f"{'stage':20}{'kronfluence':>12}{'ours':>10}{'ratio':>8}")
    best = {
        side: {stage: min(run["seconds"][stage] for run in runs) for stage in STAGES}
        for side, runs in results.items()
    }
    rows = {stage: (best["kronfluence"][stage], best["ours"][stage]) for stage in STAGES}
    for name, stages in (("total (pairwise)", STAGES[:4]), ("total (all)", STAGES)):
        theirs, mine = (sum(best[side][stage] for stage in stages) for side in ("kronfluence", "ours"))
        rows[name] = theirs, mine
    for name, (theirs, mine) in rows.items():
        print(f"{name:20}{theirs:12.2f}{mine:10.2f}{theirs / mine:8.2f}")
    peaks = {side: min(run["peak"] for run in runs) for side, runs in results.items()}
    print(f"peak memory, MiB    {peaks['kronfluence']:12.0f}{peaks['ours']:10.0f}")
    worst = 0.0
    for name, mine in arrays["ours"].items():
        theirs = arrays["kronfluence"][name]
        off = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
        print(f"{name}: largest difference {off:.1e} of the largest")
        worst = max(worst, off)
    if worst > 1e-4:
        raise SystemExit("scores differ by more than 1e-4")


def python_path() -> str:
    """This project first."""
    return os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="EK-FAC influence scores: ours against kronfluence 1.0.1")
    sizes = {"blocks": 512, "queries": 32, "length": 64, "width": 128, "layers": 4, "vocabulary": 2048}
    for name, value in {**sizes, "batch": 64, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    folder = Path(tempfile.gettempdir()) / f"kronfluence-1.0.1-{os.getuid()}"
    parser.add_argument(
        "--environment", type=Path, default=folder, help="folder that kronfluence is put into"
    )
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--result", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
