"""Manipulations and what each means, written by hand as overrides of `by_hand.forward`."""

from __future__ import annotations

import numpy as np

from tests.interventions import by_hand

RNG = np.random.default_rng(4)
EXAMPLES = RNG.standard_normal((3, 3, 3))
LABELS = np.array([[1, 3, 3], [0, 2, 0], [2, 1, 2]])
QUERY = 4


def at(place: tuple, change):
    """An override that applies `change` at one place."""
    return lambda site, layer, value: change(value) if (site, layer) == place else value


def chain(*overrides):
    def all_of(site, layer, value):
        for override in overrides:
            value = override(site, layer, value)
        return value

    return all_of


def filled(entries, number):
    """A change that sets the entries of an index to a number."""

    def change(value):
        value[entries] = number
        return value

    return change


def kept(base, *sites):
    return lambda site, layer, value: base[site, layer] if site in sites else value


def moved(embedding):
    out = embedding.copy()
    for position in range(1, len(out) - 1):
        out[position] = embedding[position - 1]
    return out


def previous(head, strength, rows):
    def change(pattern):
        for row in rows:
            pattern[head, row] = 0
            pattern[head, row, row] = 1 - strength if row else 1
            if row:
                pattern[head, row, row - 1] = strength
        return pattern

    return change


def induction(head, labels, strength):
    def change(pattern):
        pattern[head, QUERY] = 0
        for pair in range(2):
            pattern[head, QUERY, 2 * pair + 1] = strength if labels[pair] == labels[2] else 1 - strength
        return pattern

    return change


def match(head, examples, temperature):
    similarity = np.array(
        [e @ examples[2] / np.linalg.norm(e) / np.linalg.norm(examples[2]) for e in examples[:2]]
    )
    weights = (
        by_hand.softmax(similarity / temperature) if temperature else (similarity == similarity.max()) * 1.0
    )

    def change(pattern):
        pattern[head, QUERY] = [0, weights[0], 0, weights[1], 0]
        return pattern

    return change


def copied(scores, head, labels):
    def change(logits):
        logits[QUERY] = -1e9
        logits[QUERY, labels[0]], logits[QUERY, labels[1]] = scores[head, QUERY, 1], scores[head, QUERY, 3]
        return logits

    return change


def tempered(scores, factor_by_head):
    return np.array([scores[head] / factor_by_head[head] for head in range(2)])


def forbidden(head, rows):
    return filled((head, np.array(rows), np.array(rows) - 1), -1e9)


def h(kind, *heads, **more):
    return {"kind": kind, "heads": list(heads), **more}


def base_of(model, n):
    return by_hand.forward(model, EXAMPLES[n], LABELS[n])[1]


def perfect_input(model, n, *more):
    e = base_of(model, n)["embedding", None]
    seen = by_hand.forward(model, EXAMPLES[n], LABELS[n], at(("resid_post", 0), lambda _: moved(e)))[1]
    return chain(
        at(("resid_post", 0), lambda _: e), at(("pattern", 1), lambda _: seen["pattern", 1]), *more
    ), seen


P, V, A = "pattern", "v", "attn_scores"
ZERO1 = at((V, 1), filled((1,), 0.0))
# name -> (manipulations, the override by hand for sequence n of a model)
CASES = {
    **{
        f"preserve_{site}": (
            [{"kind": "preserve", "sites": [site]}, h("ablate_heads", "0:0")],
            lambda m, n, site=site: chain(kept(base_of(m, n), site), at((V, 0), filled((0,), 0.0))),
        )
        for site in ("pattern", "v", "q", "k")
    },
    "ablate_heads": (
        [h("ablate_heads", "0:0", "1:1")],
        lambda m, n: chain(at((V, 0), filled((0,), 0.0)), ZERO1),
    ),
    "ablate_all_of_a_layer": (
        [h("ablate_heads", "0:0", "0:1")],
        lambda m, n: at((V, 0), filled((slice(None),), 0.0)),
    ),
    "head_temperature": (
        [{"kind": "head_temperature", "temperatures": {"1:1": 0.5}}],
        lambda m, n: at((A, 1), lambda _: tempered(base_of(m, n)[A, 1], [1, 0.5])),
    ),
    "temperature_of_the_untouched_scores": (
        [{"kind": "head_temperature", "temperatures": {"1:1": 3}}, h("ablate_heads", "0:1")],
        lambda m, n: chain(
            at((V, 0), filled((1,), 0.0)), at((A, 1), lambda _: tempered(base_of(m, n)[A, 1], [1, 3]))
        ),
    ),
    "perfect_copy": (
        [{"kind": "perfect_copy", "head": "1:1"}, h("ablate_heads", "0:1")],
        lambda m, n: chain(
            at((V, 0), filled((1,), 0.0)), at(("logits", None), copied(base_of(m, n)[A, 1], 1, LABELS[n]))
        ),
    ),
    "ablate_embedding": (
        [{"kind": "ablate_embedding"}, {"kind": "preserve", "sites": ["pattern", "v"]}],
        lambda m, n: chain(at(("token_embedding", None), lambda x: 0 * x), kept(base_of(m, n), P, V)),
    ),
    "previous_token": (
        [h("previous_token_heads", "0:1", strength=0.7), h("ablate_heads", "1:1")],
        lambda m, n: chain(at((P, 0), previous(1, 0.7, range(5))), ZERO1),
    ),
    "previous_token_only_label": (
        [h("previous_token_heads", "0:1", only_label=True)],
        lambda m, n: at((P, 0), previous(1, 1.0, [1, 3])),
    ),
    "previous_token_last_layer": (
        [h("previous_token_heads", "1:0", "1:1")],
        lambda m, n: at((P, 1), lambda p: previous(1, 1.0, range(5))(previous(0, 1.0, range(5))(p))),
    ),
    "previous_token_over_preserved_only_label": (
        [
            h("previous_token_heads", "1:0", only_label=True),
            {"kind": "preserve", "sites": ["pattern"]},
            h("ablate_heads", "0:0"),
        ],
        lambda m, n: chain(
            kept(base_of(m, n), P), at((V, 0), filled((0,), 0.0)), at((P, 1), previous(0, 1.0, [1, 3]))
        ),
    ),
    "induction": (
        [h("induction_heads", "1:0", strength=0.8), h("ablate_heads", "1:1")],
        lambda m, n: chain(at((P, 1), induction(0, LABELS[n], 0.8)), ZERO1),
    ),
    "two_strengths": (
        [h("induction_heads", "1:0", strength=0.8), h("induction_heads", "1:1", strength=0.0)],
        lambda m, n: chain(
            at((P, 1), induction(0, LABELS[n], 0.8)), at((P, 1), induction(1, LABELS[n], 0.0))
        ),
    ),
    "match_hard": ([h("match_heads", "1:0")], lambda m, n: at((P, 1), match(0, EXAMPLES[n], 0))),
    "match_soft": (
        [h("match_heads", "1:0", temperature=0.4)],
        lambda m, n: at((P, 1), match(0, EXAMPLES[n], 0.4)),
    ),
    "match_over_previous_token": (
        [h("match_heads", "1:0"), h("previous_token_heads", "1:0")],
        lambda m, n: chain(at((P, 1), previous(0, 1.0, range(5))), at((P, 1), match(0, EXAMPLES[n], 0))),
    ),
    "forbid": ([h("forbid_previous_token", "0:1")], lambda m, n: at((A, 0), forbidden(1, [1, 2, 3, 4]))),
    "forbid_only_label": (
        [h("forbid_previous_token", "1:1", only_label=True)],
        lambda m, n: at((A, 1), forbidden(1, [1, 3])),
    ),
    "silence": (
        [{"kind": "silence_non_label", "heads": [0]}],
        lambda m, n: at((A, 1), filled((0, QUERY, slice(0, None, 2)), -1e9)),
    ),
    "silence_and_temperature": (
        [
            {"kind": "silence_non_label", "heads": ["1:0"]},
            {"kind": "head_temperature", "temperatures": {"1:0": 2}},
        ],
        lambda m, n: at(
            (A, 1),
            lambda _: filled((0, QUERY, slice(0, None, 2)), -1e9)(tempered(base_of(m, n)[A, 1], [2, 1])),
        ),
    ),
    "perfect_input": ([{"kind": "perfect_previous_token_input"}], lambda m, n: perfect_input(m, n)[0]),
    "perfect_input_and_ablate": (
        [{"kind": "perfect_previous_token_input"}, h("ablate_heads", "1:1")],
        lambda m, n: perfect_input(m, n, ZERO1)[0],
    ),
    "perfect_input_and_copy": (
        [{"kind": "perfect_previous_token_input"}, {"kind": "perfect_copy", "head": "1:0"}],
        lambda m, n: chain(
            perfect_input(m, n)[0], at(("logits", None), copied(perfect_input(m, n)[1][A, 1], 0, LABELS[n]))
        ),
    ),
}  # fmt: skip
