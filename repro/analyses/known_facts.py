"""Make a set of prompts whose answers a model knows, from facts with templates, for any model.

Source: how known_1000.json was made, read from its records (Meng et al. 2022, arXiv 2202.05262): a prompt
is the filled template and what the model goes on to say before the attribute.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repro import stopping
from repro.analyses import lm_inputs as lm
from repro.analyses.flow_specs import KnownFacts
from repro.data.facts import FactData
from repro.data.facts_records import Fact
from repro.data.facts_tokens import attribute_token, encode
from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.attention_knockout import probability
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result, write_atomic

FOUND, SET = "asked.jsonl", "known.jsonl"
REASONS = ("absent", "capitalised", "argmax", "ends_with_subject", "duplicate", "relation_full", "sampled")
_CAPITALISED = re.compile(r"\b[^\W\d_]\w*")


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: KnownFacts) -> Result:
    """Ask every fact, and keep those that the model knows.

    The set is `known.jsonl` in the run directory: the seven fields of known_1000, and model, revision,
    tokenizer, bos, decoding and probability; give it to data=known_1000 data.path=.... An interrupted run
    goes on after the last batch of `asked.jsonl`.

    Arrays: known_id, case, probability [prompt] of the set, case being the record's number in the data.
    Scalars: asked, known (before duplicates, caps and the sample), kept, probability.mean, and
    left_out.REASON: absent (the attribute is not said), capitalised (another name is said before it), argmax
    (the likeliest next token of the prompt does not begin the attribute), ends_with_subject, duplicate,
    relation_full, sampled.
    Raises `UserError` for data without templates or attributes, and if nothing is known.
    """
    model = lm.model_of(subject)
    facts = _facts(data)
    outcomes = _asked(model, facts, data.spec.bos, spec, directory)
    left_out = Counter(one["left_out"] for one in outcomes if "left_out" in one)
    known = [one for one in outcomes if "left_out" not in one]
    kept = _chosen(known, facts, spec, left_out)
    if not kept:
        said = ", ".join(f"{reason} {left_out[reason]}" for reason in REASONS if left_out[reason])
        raise UserError(f"data: of {len(facts)} facts the model knows none ({said}). Give other facts")
    records = [_record(number, one, facts, model, data, spec) for number, one in enumerate(kept)]
    if directory is not None:
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
        write_atomic(directory / SET, lines.encode())
        (directory / FOUND).unlink(missing_ok=True)  # done: asked for once more, it begins anew
    chance = np.array([one["probability"] for one in kept])
    scalars = {"asked": len(facts), "known": len(known), "kept": len(kept), "probability.mean": chance.mean()}
    scalars |= {f"left_out.{reason}": left_out[reason] for reason in REASONS}
    axes: dict[str, Any] = {"prompt": len(kept)}
    arrays = {
        "known_id": NamedArray(np.arange(len(kept)), axes),
        "case": NamedArray(np.array([facts[one["place"]].number for one in kept]), axes),
        "probability": NamedArray(chance, axes),
    }
    notes = {
        "set": f"{len(kept)} prompts in {SET}; python launch.py ... data=known_1000 data.path=<run>/{SET}"
    }
    return Result({name: float(value) for name, value in scalars.items()}, arrays, notes)


def _facts(data: Any) -> tuple[Fact, ...]:
    if not isinstance(data, FactData):
        raise UserError(
            "data: it needs facts with templates. Valid choices: data=counterfact, data=facts_toy"
        )
    for fact in data.facts:
        if fact.template is None or fact.attribute is None:
            raise UserError(f"{fact.where}: a template and an attribute are needed. Give data=counterfact")
    return data.facts


def _asked(
    model: LanguageModel, facts: Sequence[Fact], bos: bool | None, spec: KnownFacts, directory: Path | None
) -> list[dict[str, Any]]:
    """What became of every fact, in order: left_out and why, or prompt, prediction and probability."""
    file = None if directory is None else directory / FOUND
    done = _saved(file, len(facts))
    with progress(len(facts), "asking facts", "facts") as bar:
        bar.set(len(done))
        while len(done) < len(facts):
            places = range(len(done), min(len(facts), len(done) + spec.batch))
            fresh = _ask(model, facts, places, bos, spec)
            if file is not None:
                with file.open("a", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(one) + "\n" for one in fresh)
            done += fresh
            bar.set(len(done))
            if stopping.asked():
                stopping.saved()
                if stopping.asked() == "stop":
                    raise stopping.Stopped
    return done


def _saved(file: Path | None, count: int) -> list[dict[str, Any]]:
    """What an interrupted run had found; a line that was not finished, and all after it, is asked again."""
    if file is None or not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(line)
        except json.JSONDecodeError:
            break
        if one.get("place") != len(found):
            break
        found.append(one)
    write_atomic(file, "".join(json.dumps(one) + "\n" for one in found[:count]).encode())
    return found[:count]


def _ask(
    model: LanguageModel, facts: Sequence[Fact], places: range, bos: bool | None, spec: KnownFacts
) -> list[dict[str, Any]]:
    """The outcomes of one batch."""
    filled = [_with_prompt(facts[place], "") for place in places]
    said = _continued(model, filled, bos, spec.tokens)
    outcomes: list[dict[str, Any]] = []
    for place, text in zip(places, said, strict=True):
        outcomes.append({"place": place, "prediction": text, **_inserted(text, facts[place].attribute or "")})
    asked = [one for one in outcomes if "left_out" not in one]
    for one, (right, chance, prompt) in zip(asked, _answered(model, facts, asked, bos), strict=True):
        one |= {"prompt": prompt, "probability": chance}
        if not right:
            one["left_out"] = "argmax"
        elif prompt.endswith(facts[one["place"]].subject or ""):
            one["left_out"] = "ends_with_subject"
    return outcomes


def _with_prompt(fact: Fact, inserted: str) -> Fact:
    assert fact.template is not None and fact.subject is not None
    return replace(fact, prompt=(fact.template.replace("{}", fact.subject) + inserted).rstrip())


def _inserted(said: str, attribute: str) -> dict[str, str]:
    """What is said before the attribute, or why the fact is left out."""
    at = said.find(attribute)
    if at < 0:
        return {"left_out": "absent"}
    before = said[:at]
    if any(word[0].isupper() for word in _CAPITALISED.findall(before)):
        return {"left_out": "capitalised"}
    return {"inserted": before}


def _continued(model: LanguageModel, facts: Sequence[Fact], bos: bool | None, tokens: int) -> list[str]:
    """What the model says after each prompt: `tokens` tokens, greedily, up to the end of the text."""
    rows = [encode(fact, model.tokenizer, bos)[0] for fact in facts]
    grown = [list(row) for row in rows]
    for _ in range(tokens):
        logits = forward(model, TokenBatch.of(grown), logits="last").logits
        assert logits is not None
        for row, token in zip(grown, logits.argmax(-1).tolist(), strict=True):
            row.append(token)
    end = model.tokenizer.eos_token_id
    said = []
    for row, whole in zip(rows, grown, strict=True):
        new = whole[len(row) :]
        new = new[: new.index(end)] if end in new else new
        before, after = (model.tokenizer.decode(ids) for ids in (row, [*row, *new]))
        said.append(after[len(before) :])
    return said


def _answered(
    model: LanguageModel, facts: Sequence[Fact], asked: Sequence[dict[str, Any]], bos: bool | None
) -> Iterator[tuple[bool, float, str]]:
    """Whether the likeliest next token begins the attribute, its probability, and the prompt."""
    if not asked:
        return
    made = [_with_prompt(facts[one["place"]], one["inserted"]) for one in asked]
    rows = [encode(fact, model.tokenizer, bos)[0] for fact in made]
    logits = forward(model, TokenBatch.of(rows), logits="last").logits
    assert logits is not None
    answer = logits.argmax(-1)
    chance = probability(logits, answer).tolist()
    for fact, row, token, value in zip(made, rows, answer.tolist(), chance, strict=True):
        assert fact.prompt is not None
        yield token == attribute_token(fact, row, model.tokenizer, bos), value, fact.prompt


def _chosen(
    known: Sequence[dict[str, Any]], facts: Sequence[Fact], spec: KnownFacts, left_out: Counter[str]
) -> list[dict[str, Any]]:
    """Without duplicates of a prompt, at most so many of a relation and in all; in the order of the data."""
    first = {one["prompt"]: one for one in reversed(known)}
    single = [one for one in known if first[one["prompt"]] is one]
    rng, taken, drawn = random.Random(f"known facts/{spec.seed}"), Counter[str](), list(single)
    rng.shuffle(drawn)
    kept = []
    for one in drawn:
        relation = facts[one["place"]].relation
        if relation is not None and spec.per_relation and taken[relation] >= spec.per_relation:
            continue
        taken[relation or ""] += 1
        kept.append(one)
    sampled = kept[: spec.most] if spec.most else kept
    left_out["duplicate"], left_out["relation_full"] = len(known) - len(single), len(single) - len(kept)
    left_out["sampled"] = len(kept) - len(sampled)
    return sorted(sampled, key=lambda one: one["place"])


def _record(
    number: int, one: dict[str, Any], facts: Sequence[Fact], model: LanguageModel, data: Any, spec: KnownFacts
) -> dict[str, Any]:
    fact, config, tokenizer = facts[one["place"]], model.hf.config, model.tokenizer
    return {
        "known_id": number, "subject": fact.subject, "attribute": fact.attribute, "template": fact.template,
        "prediction": one["prediction"], "prompt": one["prompt"], "relation_id": fact.relation or "unknown",
        "case_id": fact.number, "probability": one["probability"],
        "model": config._name_or_path or config.model_type, "revision": getattr(config, "_commit_hash", None),
        "tokenizer": tokenizer.name_or_path,
        "tokenizer_revision": tokenizer.init_kwargs.get("_commit_hash"),
        "bos": data.spec.bos, "decoding": f"greedy, {spec.tokens} tokens",
    }  # fmt: skip
