"""What several tests share: a project of conf/ with one invented paper, and a clean environment."""

from __future__ import annotations

import os
import shutil
import tempfile

# Before JAX or PyTorch is imported by anything.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Else each process uses all cores, and all wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Most time of the tests is compiling: what one has compiled others need not, nor other processes.
    COMPILED = tempfile.mkdtemp(prefix="repro-tests-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
else:
    COMPILED = None

from pathlib import Path

import pytest
import submitit  # noqa: F401  (early: its import resets logging, and absl, which optax loads, then closes pytest's files)

ROOT = Path(__file__).resolve().parent.parent

BASE = """\
# @package _global_
defaults:
  - override /data: none
  - override /hardware: debug
  - override /tracking: disabled
  - override /analysis: toy
  - _self_
paper:
  slug: invented
  title: A paper that does not exist
  citation: Nobody, Nowhere
  headline: first
"""
SEEDED = BASE.replace("invented", "seeded") + "  seeds: {init: 5, train: 0, eval: 1}\n"
FIRST = """\
# @package _global_
# Figure 1: how it begins
# python launch.py paper/invented=first
defaults: [base, _self_]
"""
SECOND = """\
# @package _global_
# Figure 2: other values
defaults:
  - base
  - override /data: gaussian
  - _self_
"""


def pytest_unconfigure() -> None:
    """Processes of pytest-xdist have taken the directory over, and its maker ends last."""
    if COMPILED is not None:
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The site file of whoever runs the tests must not change them."""
    monkeypatch.delenv("REPRO_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a copy of conf/ whose papers are two invented ones; also the working directory."""
    root = tmp_path / "project"
    conf = root / "conf"
    shutil.copytree(ROOT / "conf", conf, ignore=shutil.ignore_patterns("paper"))
    lines = [line for line in (conf / "config.yaml").read_text().splitlines() if "- paper/" not in line]
    papers = ["  - paper/invented: null", "  - paper/seeded: null"]
    at = next(i for i, line in enumerate(lines) if "tracking: offline" in line) + 1
    (conf / "config.yaml").write_text("\n".join([*lines[:at], *papers, *lines[at:]]) + "\n")
    files = {
        "analysis/toy.yaml": "kind: toy_factors\niterations: 3\nlearning_rate: 0.1\nreport_at: [0]\n",
        "paper/invented/base.yaml": BASE,
        "paper/invented/first.yaml": FIRST,
        "paper/invented/second.yaml": SECOND,
        "paper/seeded/base.yaml": SEEDED,
        "paper/seeded/first.yaml": FIRST,
    }
    for name, text in files.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(text)
    monkeypatch.chdir(root)
    return root
