"""Whether JAX has the device that the hardware profile asks for."""

from __future__ import annotations

import os

import jax

from repro.errors import UserError


def check() -> None:
    """Raises `UserError` if the GPU asked for (JAX_PLATFORMS=cuda) is not there.

    JAX itself would fail at its first operation, with an error that does not say so.
    """
    if os.environ.get("JAX_PLATFORMS") != "cuda":
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            "hardware.device: cuda asked for, and JAX sees no GPU"
            + (f" ({why})" if why else "")
            + ". Choose hardware.device=cpu, or install JAX for CUDA: pip install 'jax[cuda12]'"
        ) from None
