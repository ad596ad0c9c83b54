"""The shape of a checkpoint: from its config.json, or of well-known names. Loads no weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.models.shapes import FAMILIES, Shape

CONFIG = "config.json"
_POSITIONS = ("max_position_embeddings", "n_positions")
_GROUPED = ("llama", "mistral", "qwen2", "qwen3")


def _gpt2(layers: int, heads: int, width: int) -> Shape:
    return Shape("gpt2", layers, heads, heads, width, width // heads, 4 * width, 50257, 1024)


def _gpt_neo(layers: int, heads: int, width: int) -> Shape:
    return Shape("gpt_neo", layers, heads, heads, width, width // heads, 4 * width, 50257, 2048)


def _opt(layers: int, heads: int, width: int) -> Shape:
    return Shape("opt", layers, heads, heads, width, width // heads, 4 * width, 50272, 2048)


def _pythia(layers: int, heads: int, width: int, vocabulary: int = 50304) -> Shape:
    return Shape("gpt_neox", layers, heads, heads, width, width // heads, 4 * width, vocabulary, tied=False)


# Names in lower case: the hub does not distinguish.
KNOWN = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "distilgpt2": _gpt2(6, 12, 768),
    "eleutherai/gpt-neo-125m": _gpt_neo(12, 12, 768),
    "eleutherai/gpt-neo-1.3b": _gpt_neo(24, 16, 2048),
    "eleutherai/gpt-neo-2.7b": _gpt_neo(32, 20, 2560),
    "eleutherai/gpt-j-6b": Shape("gptj", 28, 16, 16, 4096, 256, 16384, 50400, tied=False),
    "eleutherai/gpt-neox-20b": Shape("gpt_neox", 44, 64, 64, 6144, 96, 24576, 50432, tied=False),
    "facebook/opt-125m": _opt(12, 12, 768),
    "facebook/opt-350m": Shape("opt", 24, 16, 16, 1024, 64, 4096, 50272, 2048, True, 512, False),
    "facebook/opt-1.3b": _opt(24, 32, 2048),
    "facebook/opt-2.7b": _opt(32, 32, 2560),
    "facebook/opt-6.7b": _opt(32, 32, 4096),
    "facebook/opt-13b": _opt(40, 40, 5120),
    "facebook/opt-30b": _opt(48, 56, 7168),
    "facebook/opt-66b": _opt(64, 72, 9216),
}
KNOWN |= {
    f"eleutherai/pythia-{size}{variant}": shape
    for variant in ("", "-deduped")
    for size, shape in {
        "14m": _pythia(6, 4, 128),
        "31m": _pythia(6, 8, 256),
        "70m": _pythia(6, 8, 512),
        "160m": _pythia(12, 12, 768),
        "410m": _pythia(24, 16, 1024),
        "1b": _pythia(16, 8, 2048),
        "1.4b": _pythia(24, 16, 2048),
        "2.8b": _pythia(32, 32, 2560),
        "6.9b": _pythia(32, 32, 4096, 50432),
        "12b": _pythia(36, 40, 5120, 50688),
    }.items()
}
KNOWN |= {f"openai-community/{name}": KNOWN[name] for name in list(KNOWN) if name.startswith("gpt2")}


def find(path: str, environment: Mapping[str, str] = os.environ) -> Shape | None:
    """The shape of a folder with a checkpoint, or of a name on the hub that is cached here or well known.

    None if the name is neither, or the architecture is not among `FAMILIES`: nothing is guessed. Raises
    `UserError` if a config.json cannot be read.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return from_file(folder / CONFIG) if (folder / CONFIG).exists() else None
    cached = _cached(path, environment)
    return from_file(cached) if cached else KNOWN.get(path.lower())


def from_file(path: Path) -> Shape | None:
    """The shape that a config.json of transformers describes; None for other architectures."""
    try:
        mapping = json.loads(path.read_text())
        return from_mapping(mapping)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"model.path: {path} cannot be read as a model's configuration ({type(error).__name__}: {error})."
            " Expected the config.json that transformers saves with a checkpoint"
        ) from None


def from_mapping(config: Mapping[str, Any]) -> Shape | None:
    """The same of the values in it. Keys that transformers leaves out have its defaults."""
    family = config.get("model_type")
    if family not in FAMILIES or config.get("layer_norm_elementwise_affine") is False:
        return None
    width = _first(config, "hidden_size", "n_embd")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads")
    # Only these group their queries, and may have heads of another width.
    modern = family in _GROUPED
    rotary = modern or family in ("gptj", "gpt_neox")
    # Qwen 2 has them in queries, keys and values whatever is said; OPT may have none at all.
    every = False if config.get("enable_bias") is False else None
    attention_bias = every if family == "qwen2" else config.get("attention_bias", every)
    return Shape(
        family=family,
        layers=_first(config, "num_hidden_layers", "n_layer", "num_layers"),
        heads=heads,
        kv_heads=(modern and config.get("num_key_value_heads")) or heads,
        width=width,
        head_width=(modern and config.get("head_dim")) or width // heads,
        mlp_width=_first(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * width),
        vocabulary=_first(config, "vocab_size"),
        positions=0 if rotary else _first(config, *_POSITIONS, default=1024 if family == "gpt2" else 2048),
        tied=config.get("tie_word_embeddings", family not in ("gptj", "gpt_neox", *_GROUPED)),
        embedding_width=config.get("word_embed_proj_dim"),
        final_norm=config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm"),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=config.get("mlp_bias", every),
    )


def _first(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    if default is None:
        raise KeyError(" or ".join(names))
    return default


def _cached(name: str, environment: Mapping[str, str]) -> Path | None:
    """config.json of the newest snapshot that a former download left, without asking the network."""
    home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    hub = Path(environment.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    snapshots = (hub / f"models--{name.replace('/', '--')}" / "snapshots").glob(f"*/{CONFIG}")
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
