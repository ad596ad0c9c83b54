"""Loads Hugging Face causal language models, unmodified, and names their parts.

A family is supported if `families/` has an adapter for it. Weights come as safetensors only: a pickle can
run anything when it is read.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from safetensors import SafetensorError

from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.models.specs import HuggingFace

# `model_type` of a config.json -> module in `families/`.
FAMILIES = {
    "gpt2": "gpt2",
    "gpt_neo": "gpt_neo",
    "gptj": "gptj",
    "opt": "opt",
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
}
EAGER_ONLY = ("gptj", "gpt_neo")


def load(spec: HuggingFace, hardware: Mapping[str, Any], store: Path | None = None) -> LanguageModel:
    """The model of a hub name or a folder, on the device of the hardware profile, in the dtype of the spec.

    Raises `UserError` for a folder without weights or with pickled ones only, a family without adapter, a
    checkpoint that cannot be reached, and a GPU that is not there.
    """
    kind = _model_type(spec)
    device = device_of(hardware["device"])
    spread = _places(hardware.get("device_map"), device, store)
    try:
        from transformers import AutoModelForCausalLM

        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                spec.path, revision=spec.revision or "main", dtype=getattr(torch, spec.dtype),
                use_safetensors=True, attn_implementation=_attention(spec.attention, kind),
                output_loading_info=True, ignore_mismatched_sizes=True, **spread,
            )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreachable(spec.path, error) from None
    hf, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        # The library fills these with random numbers, and only warns.
        lacking = sorted([*report["missing_keys"], *(str(one[0]) for one in report["mismatched_keys"])])
        raise UserError(
            f"model.path: {spec.path} lacks weights that its config.json asks for, or has them in other"
            f" shapes: {', '.join(lacking[:3])}"
            f" ({len(lacking)} in all). Give a whole checkpoint, with the config it was saved with"
        )
    return wrap(hf, _tokenizer(spec))


def _places(device_map: str | None, device: str, store: Path | None) -> dict[str, Any]:
    """Where weights go as they are read, so that there is no second copy of them in host memory.

    What has no room on GPUs and host goes to a folder, and comes layer by layer.
    """
    if device_map:
        return {"device_map": device_map, "offload_folder": str(Path(store or gettempdir()) / "offload")}
    return {} if device == "cpu" else {"device_map": {"": device}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own report, of which ours is the short form; its bar stays for large models."""
    from transformers.utils import logging as library

    level, bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    if not sys.stderr.isatty():
        library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bar:
            library.enable_progress_bar()


def wrap(hf: Any, tokenizer: Any = None) -> LanguageModel:
    """A model that is in memory already, with its parts named; it is set to evaluate, and frozen."""
    kind = hf.config.model_type
    if kind not in FAMILIES:
        raise _unsupported(kind, "model")
    return importlib.import_module(f"repro.models.families.{FAMILIES[kind]}").adapt(hf, tokenizer)


def _model_type(spec: HuggingFace) -> str:
    folder = Path(spec.path).expanduser()
    if folder.is_dir():
        config = folder / "config.json"
        if not config.exists():
            raise UserError(
                f"model.path: {folder} has no config.json. Give a folder written by save_pretrained"
            )
        _check_weights(folder)
        try:
            kind = json.loads(config.read_text(encoding="utf-8")).get("model_type", "unknown")
        except (ValueError, AttributeError) as error:
            raise UserError(f"model.path: {config} is no config of a model: {error}") from None
    else:
        from transformers import AutoConfig

        try:
            kind = AutoConfig.from_pretrained(spec.path, revision=spec.revision or "main").model_type
        except (OSError, ValueError) as error:
            raise _unreachable(spec.path, error) from None
    if kind not in FAMILIES:
        raise _unsupported(kind, f"model.path {spec.path}")
    return kind


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"model.path: {folder} has pickled weights only ({', '.join(pickled[:3])}), which could"
            " run anything when read. Convert them to safetensors: load them where you trust them, then"
            " model.save_pretrained(FOLDER)"
        )
    raise UserError(
        f"model.path: {folder} has no weights (expected model.safetensors, or shards and their index)"
    )


def _attention(wanted: str, kind: str) -> str:
    if kind in EAGER_ONLY:
        if wanted == "sdpa":
            raise UserError(f"model.attention: {kind} has eager attention only. Choose model.attention=auto")
        return "eager"
    return "sdpa" if wanted == "auto" else wanted


def device_of(wanted: str) -> str:
    """cpu or cuda, of what a hardware profile says. Raises `UserError` for a GPU that is not there."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "hardware.device: cuda asked for, and PyTorch sees no GPU. Choose hardware.device=cpu"
        )
    return ("cuda" if available else "cpu") if wanted == "auto" else wanted


def _tokenizer(spec: HuggingFace) -> Any:
    """The tokenizer beside the weights; None for a folder without tokenizer files."""
    from transformers import AutoTokenizer

    folder = Path(spec.path).expanduser()
    if folder.is_dir() and not any(
        (folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(spec.path, revision=spec.revision or "main")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.path: the tokenizer of {spec.path} cannot be read: {error}") from None


def _unsupported(kind: str, where: str) -> UserError:
    return UserError(f"{where}: no adapter for the family {kind!r}. Supported: {', '.join(FAMILIES)}")


def _unreachable(path: str, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"model.path: {path} cannot be loaded: {first}\nGive a hub name that this machine can reach or has"
        " in its cache, or a folder with config.json and model.safetensors: model.path=FOLDER"
    )
