"""Facts of every source: checksums, what is published, the small world, and which data a model is asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from repro.data import facts
from repro.data.fact_specs import KNOWN_RECORDS, CounterFact, FactsToy, Known1000, PromptsFile
from repro.data.facts_records import content_sha256
from repro.data.facts_toy import AFTER_SUBJECT, RELATIONS, FactWorld
from repro.data.lm_task_specs import FactsTask, IoiTask
from repro.data.lm_tasks import build
from repro.data.specs import Data, TokenPairs
from repro.errors import UserError
from repro.training import lm_tokenizer
from tests.data.test_facts_records import OTHER, RECORD


@pytest.fixture
def known(tmp_path: Path) -> Path:
    path = tmp_path / "known.json"
    path.write_text(json.dumps([RECORD, OTHER]))
    return path


def test_a_set_is_published_by_its_content(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = facts.load(Known1000(path=str(known)))
    assert not data.is_published and len(data) == 2 and data.kind == "known_1000"
    monkeypatch.setattr(facts, "KNOWN_CONTENT", data.sha256)
    assert facts.load(Known1000(path=str(known))).is_published
    assert not facts.load(Known1000(path=str(known), n=1)).is_published


def test_downloads_are_verified_by_what_the_records_say(known: Path, tmp_path: Path) -> None:
    """Copies with further fields, in another layout, are the same set; other records are refused."""
    wanted = facts.load(Known1000(path=str(known))).sha256
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps([{**OTHER, "flag": 1}, RECORD], indent=3))
    cache: dict[str, Any] = {"url": copy.as_uri(), "cache": str(tmp_path / "cache")}
    for sha256 in (wanted, "0" * 64):
        spec = Known1000(sha256=sha256, **cache)
        if sha256 != wanted:
            with pytest.raises(UserError, match=f"data.accept_checksum={wanted}"):
                downloaded(spec, copy)
            spec = Known1000(sha256=sha256, accept_checksum=wanted, **cache)
        assert [fact.number for fact in downloaded(spec, copy).facts] == [0, 1]


def downloaded(spec: Known1000, served: Path) -> Any:
    """As `facts.load`, with the file handed over in place of a request."""
    import pooch

    def retrieve(url: str, known_hash: None, name: str, folder: Path, progressbar: bool) -> str:
        (folder / name).write_bytes(served.read_bytes())
        return str(folder / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooch, "retrieve", retrieve)
        return facts.load(spec)


def test_every_record_has_its_own_number(tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(RECORD)}\n")
    with pytest.raises(UserError, match="known_id 1 is there twice"):
        facts.load(Known1000(path=str(path)))


def test_files_must_be_given_and_count_by_content(tmp_path: Path) -> None:
    for spec in (PromptsFile, CounterFact):
        with pytest.raises(UserError, match=r"data\.path"):
            spec()
    path = tmp_path / "own.jsonl"
    path.write_text('{"tokens": [5, 3, 9], "subject": [0, 2]}\n')
    one = PromptsFile(path=str(path)).fingerprint()
    assert one["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and "path" not in one
    assert facts.load(PromptsFile(path=str(path))).tokenise().batch.tokens.tolist() == [[5, 3, 9]]
    assert Known1000().fingerprint()["sha256"] == Known1000(cache=str(tmp_path)).fingerprint()["sha256"]
    with pytest.raises(UserError, match="no such file"):
        facts.load(PromptsFile(path=str(tmp_path / "none.jsonl")))


def test_how_many_prompts_is_known_where_the_config_says_it() -> None:
    assert (Known1000().prompts, Known1000(n=5).prompts, Known1000(n=5000).prompts) == (1209, 5, 1209)
    assert Known1000(path="mine").prompts is None and KNOWN_RECORDS == 1209
    assert PromptsFile(path="mine").prompts is None and FactsToy(n=7).prompts == 7


class Model:
    def __init__(self, task: Any) -> None:
        self.task = task


def test_a_model_of_the_small_world_is_asked_in_its_own_words() -> None:
    task = FactsTask(subjects=500, world_seed=3)
    own = Known1000(n=30, keep="known").for_model(Model(task))
    assert isinstance(own, FactsToy)
    assert (own.subjects, own.world_seed, own.n, own.keep) == (500, 3, 30, "known")
    toy = FactsToy(subjects=9, templates="first", seed=4).for_model(Model(task))
    assert toy == FactsToy(subjects=500, world_seed=3, templates="first", seed=4)
    for data in (PromptsFile(path="mine"), TokenPairs(path="mine")):
        assert data.for_model(Model(task)) is data
    assert Known1000().for_model(Model(IoiTask())).kind == "known_1000"  # type: ignore[union-attr]
    assert Known1000().for_model(object()) == Known1000()
    assert isinstance(Data.choose({"kind": "facts_toy"}, "data"), FactsToy)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_world_is_what_its_construction_says(seed: int) -> None:
    world = FactWorld(200, seed)
    assert len(set(world.names)) == 200 and {len(name.split()) for name in world.names} == {2, 3}
    assert len(world.attributes) == 800
    words = world.tokenizer.words
    assert len(set(words)) == len(words) and all(len(one.attributes) == 16 for one in RELATIONS)
    firsts = {name.split()[0] for name in world.names}
    assert len(firsts) <= 40, "names are shared between subjects"
    for fact in world.prompts("trained"):
        assert fact.prompt is not None and fact.subject is not None
        assert fact.prompt.count(fact.subject) == 1
        after = fact.prompt.split(fact.subject)[1].split()
        assert len(after) >= AFTER_SUBJECT, "two local layers of window 2 cannot bring it to the end"


def test_templates_of_the_world_divide_the_facts() -> None:
    world = FactWorld(50)
    first, trained, withheld = (world.prompts(name) for name in ("first", "trained", "withheld"))
    assert len(first) == 200 and len(withheld) == 40 and len(trained) + len(withheld) == 400
    assert not {fact.prompt for fact in trained} & {fact.prompt for fact in withheld}
    some = world.prompts("trained", 30, seed=4)
    assert len({fact.prompt for fact in some}) == 30 and some == world.prompts("trained", 30, seed=4)
    assert some != world.prompts("trained", 30, seed=5)
    with pytest.raises(UserError, match="data.n: this world has 200"):
        world.prompts("first", 201)


def test_the_task_trains_on_what_the_data_asks() -> None:
    """Same ids as the model's own tokenizer, and no withheld sentence among the trained ones."""
    task = build(FactsTask(subjects=40))
    data = facts.load(FactsToy(subjects=40, n=None))
    tokenizer = lm_tokenizer.build(task.vocabulary, task.start)
    found = data.tokenise(tokenizer)
    asked = {
        tuple(row[mask].tolist()) for row, mask in zip(found.batch.tokens, found.batch.mask, strict=True)
    }
    trained = set()
    for step in range(40):
        batch = task.batch(0, step, 64)
        assert (batch.scored.sum(1) == 1).all()
        for row, scored in zip(batch.tokens, batch.scored, strict=True):
            trained.add(tuple(row[: scored.argmax()].tolist()))
    assert trained <= asked and len(trained) > 0.9 * len(asked)
    assert (found.attribute >= 0).all() and found.start.tolist() == [1] * len(data)
    assert content_sha256(data.facts) == data.sha256
