"""The rules of the house, read from the source: who imports whom, lengths, what may not be named."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*(ROOT / "repro").rglob("*.py"), ROOT / "launch.py"])
SLUGS = sorted(path.name for path in (ROOT / "conf" / "paper").glob("*") if path.is_dir())

# What each module or folder of repro/ may import besides itself and the base. A module that is not named here
# belongs to the base: it imports nothing but base modules, and everybody may import it.
MAY_IMPORT: dict[str, set[str]] = {
    "models": set(),
    "data": set(),
    "interventions": {"models", "data"},
    "training": {"interventions", "models", "data", "hardware"},
    "analyses": {"interventions", "training", "models", "data"},
    "figures": set(),
    "claims": set(),
    "tracking": {"claims", "tracker"},
    "tracker": {"claims", "tracking"},
    "report": {"claims", "figures"},
    "root_specs": {"hardware"},
    "hardware": set(),
    "identity": {"root_specs"},
    "config_values": {"identity"},
    "config": {"config_values", "identity", "root_specs", "hardware", "listing"},
    "aggregation": {"config"},
    "listing": set(),
    "planned": {"config", "root_specs", "training"},
    "machines": {"hardware"},
    "job_costs": {"config", "root_specs", "planned", "hardware", "machines", "models", "data", "training",
                  "analyses"},
    "estimates": {"config", "hardware", "machines", "job_costs", "fitting", "estimate_text"},
    "fitting": {"config", "hardware", "machines", "listing", "estimates"},
    "estimate_text": {"config", "hardware", "machines", "estimates"},
    "pipeline": {"config", "root_specs", "hardware", "planned", "aggregation", "claims", "tracking", "models",
                 "data", "training", "interventions", "analyses", "figures", "report"},
    "workers": {"pipeline", "config", "hardware"},
    "slurm": {"hardware"},
    "tasks": {"workers", "config", "hardware", "root_specs", "planned", "training"},
    "processes": {"tasks", "workers", "hardware"},
    "slurm_job": {"tasks", "workers", "config", "slurm"},
    "preflight": {"tasks", "config", "hardware", "slurm"},
    "cluster": {"preflight", "slurm_job", "tasks", "workers", "config", "hardware", "slurm"},
    "jobs": {"tasks", "workers", "slurm"},
    "jobs_command": {"jobs", "following"},
    "following": {"jobs"},
    "dispatch": {"cluster", "processes", "following", "tasks", "workers", "pipeline", "config", "hardware",
                 "claims", "estimates", "estimate_text", "fitting"},
}  # fmt: skip
EXCEPTIONS = {
    ("models", "repro.data.random_streams"): "initialisation draws from the published random streams",
    ("models", "repro.data.lm_task_specs"): "the spec of a small language model says what it is trained on",
    (
        "models",
        "repro.data.base_specs",
    ): "the spec of a tuned model has the data in it",
    ("models", "repro.data.specs"): "as above: all kinds of data",
}
ONLY_IN = {
    "hydra": ("config", "launch"),
    "omegaconf": ("config", "launch"),
    "wandb": ("tracking",),
    "submitit": ("cluster",),
    "matplotlib": ("figures", "report"),
}


def room(path: Path) -> str:
    """The module or folder of repro/ that a file belongs to."""
    return path.relative_to(ROOT / "repro").parts[0].removesuffix(".py") if path.parent != ROOT else path.stem


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, also inside functions, but not for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    if room(path) == "launch":
        return
    here = room(path)
    for name in imports(parsed(path)):
        parts = name.split(".")
        if parts[0] == "launch":
            pytest.fail("nothing imports the door")
        if parts[0] != "repro" or len(parts) < 2:
            continue
        target = parts[1]
        allowed = target == here or target not in MAY_IMPORT or target in MAY_IMPORT.get(here, set())
        allowed = allowed or any(where == here and name.startswith(known) for where, known in EXCEPTIONS)
        assert allowed, f"{here} may not import {target}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_library_is_known_to_one_room(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(parsed(path))}
    for library, rooms in ONLY_IN.items():
        if library in libraries:
            assert room(path).startswith(rooms), f"{library} may be imported only in {' and '.join(rooms)}"
    assert not {"jax", "torch"} <= libraries, "a PyTorch run never imports JAX, and the other way round"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(node.body) > 1:
                first = node.body[1]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("slug", SLUGS)
def test_no_paper_is_named_in_code(slug: str) -> None:
    """A room may have a word in common with a paper (a kind of head, say); the walk may not."""
    rooms = {"models", "data", "interventions", "training", "analyses", "figures"}
    for path in FILES:
        text = path.read_text()
        for forbidden in (f"paper/{slug}", f"papers/{slug}", f"{slug}="):
            assert f'"{forbidden}' not in text and f"'{forbidden}" not in text, name_of(path)
        if room(path) not in rooms:
            words = {node.value for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant)}
            assert slug not in words, name_of(path)


def test_init_files_are_empty() -> None:
    assert [name_of(path) for path in FILES if path.name == "__init__.py" and path.read_text().strip()] == []


def test_what_is_imported_before_work_starts_is_light() -> None:
    """Specs, and everything up to the moment a run starts, load neither JAX nor PyTorch nor matplotlib."""
    light = [
        "config",
        "cluster",
        "dispatch",
        "tasks",
        "jobs_command",
        "slurm_job",
        "estimates",
        "estimate_text",
        "workers",
        "results",
        "run_directory",
        "listing",
        "claims",
        "tracking",
    ]
    modules = [f"repro.{name}" for name in light if (ROOT / "repro" / f"{name}.py").exists()]
    modules += [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "repro").glob("*/*specs.py")
    ]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "heavy = {'jax', 'torch', 'transformers', 'matplotlib', 'wandb', 'equinox'}\n"
        "print('HEAVY', *heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["HEAVY"], done.stdout + done.stderr
