"""A GPU that JAX does not see: refused in words, not by a failed assertion in JAX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from repro.errors import UserError
from repro.models import jax_device

ROOT = Path(__file__).resolve().parent.parent.parent
FIRST = "error: hardware.device: cuda asked for, and JAX sees no GPU"


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize\nbackend 'cuda'")])
def test_what_jax_says_is_put_into_words(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    jax_device.check()  # JAX_PLATFORMS=cpu: nothing was asked for
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="JAX sees no GPU.*hardware.device=cpu") as caught:
        jax_device.check()
    assert "\n" not in str(caught.value) and " ".join(str(error).split()) in str(caught.value)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize("experiment", ["toy_model", "smoke"])
def test_a_run(tmp_path: Path, experiment: str) -> None:
    """An analysis of its own model, and one that trains first."""
    words = [f"paper/induction_heads={experiment}", "hardware=debug", "hardware.device=cuda",
             "tracking=disabled", "figures=null", f"runs_dir={tmp_path}"]  # fmt: skip
    done = subprocess.run([sys.executable, "launch.py", *words], cwd=ROOT, env=dict(os.environ), timeout=300,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith(FIRST), done.stderr
    assert "Traceback" not in done.stderr
