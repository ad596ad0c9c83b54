"""Class names, where an analysis is told heads, become the heads that they stand for on this model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from repro.analyses import circuit_search
from repro.analyses import lm_inputs as lm
from repro.analyses.circuit_specs import LmAnalysis
from repro.analyses.circuits import Circuit
from repro.analyses.head_specs import CLASS, is_class
from repro.analyses.lm_circuit_specs import FindCircuit
from repro.errors import NotApplicable, UserError
from repro.models.language_model import LanguageModel

Spec = TypeVar("Spec", bound=LmAnalysis)
# Mappings of things that are measured one by one, and the keys that say more about them by name.
BY_NAME = {"groups": (), "sets": ("direct_after",), "pieces": ("fit",), "hypotheses": ()}
_LAYER = re.compile(r"(\d+)\.\*((?:@\S+)?)")


def in_heads(spec: Spec, subject: Any, data: Any) -> tuple[Spec, dict[str, str]]:
    """The spec with heads for class:NAME and "layer.*", and what each class name stands for.

    On a model without a published circuit the classes are searched for, each with its strongest head at
    least. Of what is measured by name (`BY_NAME`), that which stands for no head here is left out. Raises
    `NotApplicable` if nothing is left or something else stands for no head, `UserError` for unknown classes.
    """
    plain = spec.model_dump()
    asked = {key: value for key, value in plain.items() if key not in LmAnalysis.model_fields}
    if not _mentions(asked):
        return spec, {}
    model = lm.model_of(subject)
    circuit = _circuit(spec, model, data) if _mentions(asked, classes_only=True) else None
    replaced = {key: _walk(value, circuit, model, f"analysis.{key}") for key, value in asked.items()}
    replaced = _without_lost(asked, replaced)
    named = {} if circuit is None else {name: _words(nodes) for name, nodes in circuit.classes.items()}
    try:
        return type(spec).parse({**plain, **replaced}, "analysis"), named
    except UserError as error:
        if circuit is None or circuit.source != circuit_search.FOUND:
            raise
        # Nobody chose these heads, so that they do not fit the question is an answer and no mistake.
        raise NotApplicable(f"with the heads that the search found here, {error}") from None


def _circuit(spec: LmAnalysis, model: LanguageModel, data: Any) -> Circuit:
    search = spec.search.model_copy(update={"at_least": max(spec.search.at_least, 1)})
    asked = FindCircuit(
        circuit=spec.circuit, published=spec.published, circuit_of=spec.circuit_of, search=search
    )
    return circuit_search.resolve(model, data, lm.pairs_of(model, data), asked)


def _words(nodes: Any) -> str:
    return ", ".join(node.written for node in nodes)


def _mentions(value: Any, classes_only: bool = False) -> bool:
    if isinstance(value, Mapping):
        return any(_mentions(item, classes_only) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_mentions(item, classes_only) for item in value)
    wild = isinstance(value, str) and _LAYER.fullmatch(value) is not None and not classes_only
    return is_class(value) or wild


def _walk(value: Any, circuit: Circuit | None, model: LanguageModel, where: str, kv: bool = False) -> Any:
    if isinstance(value, Mapping):
        shared = value.get("site") in ("k", "v")  # these count key/value heads
        single = where.removeprefix("analysis.") in BY_NAME
        found: dict[str, Any] = {}
        for key, item in value.items():
            try:
                found[key] = _walk(item, circuit, model, f"{where}.{key}", shared)
            except NotApplicable:
                if not single:
                    raise
        if value and not found and where != "analysis.groups":  # groups come beside other measurements
            raise NotApplicable(f"{where}: nothing in it stands for heads of this model")
        return found
    if not isinstance(value, list | tuple):
        return value
    expanded: list[Any] = []
    for item in value:
        expanded += _members(item, circuit, model, kv) if isinstance(item, str) else [
            _walk(item, circuit, model, where, kv)
        ]  # fmt: skip
    if value and not expanded:
        names = ", ".join(circuit.classes) if circuit else "none"
        raise NotApplicable(
            f"{where}: {', '.join(map(str, value))} stands for no head of this model. The search for its"
            f" circuit gave: {names}"
        )
    return list(dict.fromkeys(expanded)) if all(isinstance(item, str) for item in expanded) else expanded


def _without_lost(asked: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Also without what is said about things that were left out."""
    for key, others in BY_NAME.items():
        lost = set(asked.get(key) or {}) - set(found.get(key) or {})
        for other in others if lost else ():
            value = found[other]
            kept = [name for name in value if name not in lost]
            found[other] = {name: value[name] for name in kept} if isinstance(value, Mapping) else kept
    return found


def _members(item: str, circuit: Circuit | None, model: LanguageModel, kv: bool) -> list[str]:
    layer = _LAYER.fullmatch(item)
    if layer is not None:
        return [f"{layer[1]}.{head}{layer[2]}" for head in range(model.heads)]
    match = CLASS.fullmatch(item.strip())
    if match is None or circuit is None:
        return [item]
    name, rest = match["name"], match["rest"]
    if name not in circuit.classes and circuit.source == circuit_search.FOUND:
        return []  # the search on this model has no such class, or found no head for it
    share = model.heads // model.kv_heads if kv or rest.startswith((".k", ".v")) else 1
    return [f"{node.layer}.{node.head // share}{rest}" for node in circuit[name]]
