"""What curves of attention knockout are reduced to: means over prompts, bands, and what claims ask of them.

A curve is the mean relative change [set, layer], in %; layer is the centre of the window, from 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from repro.analyses.flow_specs import AttentionKnockout
from repro.results import NamedArray

PLACES = ("first", "later")


def relative(chance: NamedArray, base: NamedArray) -> NamedArray:
    """100 * (new - base) / base of every prompt (axis 0), in %."""
    before = base.values.reshape(-1, *[1] * (chance.values.ndim - 1))
    return NamedArray(100 * (chance.values - before) / before, chance.axes, "%")


def resampled(count: int, resamples: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    """How often each prompt is drawn, with replacement, in every resample; divided by their number."""
    rng = np.random.default_rng([seed, count])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn / count


def with_bands(
    prefix: str, change: NamedArray, weights: np.ndarray, confidence: float
) -> dict[str, NamedArray]:
    """PREFIXmean over prompts (axis 0), and PREFIXlow and PREFIXhigh: percentiles of resampled means.

    With an empty prefix the bands are mean_low and mean_high.
    """
    values = change.values.reshape(len(change.values), -1)
    axes = {name: extent for name, extent in change.axes.items() if name != "prompt"}
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(weights @ values, [tail, 100 - tail], axis=0)
    shape, band = change.values.shape[1:], prefix or "mean_"
    return {
        f"{prefix}mean": NamedArray(change.values.mean(0), axes, "%"),
        f"{band}low": NamedArray(low.reshape(shape), axes, "%"),
        f"{band}high": NamedArray(high.reshape(shape), axes, "%"),
    }


def by_place(change: NamedArray, subject_first: np.ndarray, spec: AttentionKnockout) -> dict[str, NamedArray]:
    """Means and bands of prompts that begin with the subject, and of others; NaN where there are none."""
    parts: dict[str, list[np.ndarray]] = {"place_mean": [], "place_low": [], "place_high": []}
    counts = []
    for chosen in (subject_first, ~subject_first):
        counts.append(int(chosen.sum()))
        if not counts[-1]:
            for found in parts.values():
                found.append(np.full(change.values.shape[1:], np.nan))
            continue
        some = NamedArray(change.values[chosen], {**change.axes, "prompt": counts[-1]}, "%")
        weights = resampled(counts[-1], spec.resamples, spec.seed)
        for name, array in with_bands("place_", some, weights, spec.confidence).items():
            parts[name].append(array.values)
    rest = {name: extent for name, extent in change.axes.items() if name != "prompt"}
    axes: dict[str, Any] = {"place": list(PLACES), **rest}
    arrays = {name: NamedArray(np.stack(found), axes, "%") for name, found in parts.items()}
    return {**arrays, "place_prompts": NamedArray(np.array(counts), {"place": list(PLACES)})}


def scalars(mean: NamedArray) -> dict[str, float]:
    """What a curve says: of each set S

    min.S: the least mean change, in %. argmin.S: its layer, from 0; depth.S: that over the number of layers.
    largest.S: the largest absolute mean change. early.S: the largest absolute mean change with the centre in
    the first third of the layers. order.non_subject_first: 1 if the least change of non_subject lies in an
    earlier layer than that of subject, else 0; order.layers: by how many layers.
    """
    found: dict[str, float] = {}
    depth = mean.values.shape[1]
    for name, curve in zip(mean.labels("set"), mean.values, strict=True):
        at = int(curve.argmin())
        found |= {
            f"min.{name}": float(curve[at]),
            f"argmin.{name}": float(at),
            f"depth.{name}": at / depth,
            f"largest.{name}": float(np.abs(curve).max()),
            f"early.{name}": float(np.abs(curve[: -(-depth // 3)]).max()),
        }
    return found | _order(found)


def _order(found: dict[str, float], prefix: str = "") -> dict[str, float]:
    if f"{prefix}argmin.subject" not in found or f"{prefix}argmin.non_subject" not in found:
        return {}
    layers = found[f"{prefix}argmin.subject"] - found[f"{prefix}argmin.non_subject"]
    return {f"{prefix}order.non_subject_first": float(layers > 0), f"{prefix}order.layers": layers}


def first_layers(change: NamedArray) -> dict[str, float]:
    """first_layer.SET: the first centre at which any prompt changes at all; the depth if none does."""
    depth, found = change.values.shape[2], {}
    for place, name in enumerate(change.labels("set")):
        moved = (change.values[:, place] != 0).any(0).nonzero()[0]
        found[f"first_layer.{name}"] = float(moved[0]) if len(moved) else float(depth)
    return found


def sweep_scalars(mean: NamedArray) -> dict[str, float]:
    """window.K.*: the scalars of every window size K.

    sweep.order_holds: 1 if the order of non_subject before subject holds for all sizes. sweep.shrinks.SET:
    by how much the strength of the least change (its absolute value, in %) ever falls below that of a
    smaller window; 0 if it only grows.
    """
    found: dict[str, float] = {}
    sizes = [int(size) for size in mean.labels("window")]
    for size in sizes:
        found |= {f"window.{size}.{name}": value for name, value in scalars(mean.select(window=size)).items()}
    order = [found.get(f"window.{size}.order.non_subject_first") for size in sizes]
    if None not in order:
        found["sweep.order_holds"] = float(all(order))
    for name in mean.labels("set"):
        strength = [abs(found[f"window.{size}.min.{name}"]) for size in sorted(sizes)]
        falls = [max(0.0, max(strength[:i]) - strength[i]) for i in range(1, len(strength))]
        found[f"sweep.shrinks.{name}"] = max(falls, default=0.0)
    return found


def place_scalars(mean: NamedArray, counts: NamedArray) -> dict[str, float]:
    """place.P.prompts, and for places that have any place.P.min.SET and place.P.argmin.SET."""
    found: dict[str, float] = {}
    for place, count in zip(PLACES, counts.values, strict=True):
        found[f"place.{place}.prompts"] = float(count)
        if count:
            some = scalars(mean.select(place=place))
            found |= {
                f"place.{place}.{name}": value
                for name, value in some.items()
                if name.startswith(("min.", "argmin.", "order."))
            }
    return found
