"""Few-shot tasks: draws, files, tokens. The released draw is written out again from its description."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data.few_shot_documents import DOCS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from repro.data import demonstrations, few_shot_sources, few_shot_tasks
from repro.data.few_shot_specs import HELD_OUT, TASKS, FewShotTasks, FewShotToy
from repro.data.few_shot_tasks import Encoder, FewShotData, examples_of, questions_of
from repro.data.prompt_tasks import BY_NAME
from repro.data.specs import Data
from repro.errors import UserError

EVERY = [*TASKS, *HELD_OUT]


def letters(bos: str | None = None, merges: list[tuple[str, str]] | None = None) -> Any:
    """A byte-level tokenizer: one token a byte, but for the merges."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*signs, *(first + second for first, second in merges or []), *([bos] if bos else [])]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges or []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore
    inner.decoder = decoders.ByteLevel()  # type: ignore
    return PreTrainedTokenizerFast(tokenizer_object=inner, **({"bos_token": bos} if bos else {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and three evaluation documents of every task (of lambada evaluation documents alone)."""
    made = tmp_path_factory.mktemp("tasks")
    for name in EVERY:
        docs = DOCS[name]
        splits = {"eval": docs[:3]} if name == "lambada" else {"train": docs, "eval": docs[:3]}
        for split, some in splits.items():
            (made / f"{name}.{split}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in some))
    return made


def loaded(folder: Path, **values: Any) -> FewShotData:
    spec = Data.choose({"kind": "few_shot_tasks", "folder": str(folder), **values}, "data")
    assert isinstance(spec, FewShotTasks)
    return few_shot_tasks.load(spec)


def test_all_sixteen_tasks_as_tokens(folder: Path) -> None:
    tokenizer = letters("</s>")
    model = SimpleNamespace(tokenizer=tokenizer, vocabulary=len(tokenizer))
    sets = loaded(folder, tasks=EVERY, shots=[0, 2]).task_sets(model)
    assert [one.label for one in sets] == [*EVERY, *(f"{name}.2shot" for name in EVERY)]
    for one in sets:
        one.check_vocabulary(len(tokenizer))
        trained = {"wsc": 3, "lambada": 3}.get(one.name, 4)  # wsc: those with label true
        assert (len(one.examples), len(one.questions)) == (trained, 3)
        assert one.metric == BY_NAME[one.name].metric
        assert one.importance_of_evaluation == (one.name == "lambada")
    by_label = {one.label: one for one in sets}
    boolq = by_label["boolq"].questions[1]
    assert tokenizer.decode(boolq.contexts[0]) == "Rivers flow 1.\nQuestion: do rivers flow 1?\nAnswer:"
    assert [tokenizer.decode(choice) for choice in boolq.choices] == [" no", " yes"] and boolq.right == (1,)
    assert [question.group for question in by_label["multirc"].questions] == [0, 0, 1]
    assert not by_label["winogrande"].questions[0].shared
    piqa = by_label["piqa"].examples[0]
    assert tokenizer.decode(piqa.continuation) == "push 0", "ranked without the space that is evaluated"
    assert tokenizer.decode(piqa.context) == "Question: How to open box 0\nAnswer:"


def test_continuations_as_evaluated(folder: Path) -> None:
    spec = loaded(folder, tasks=["piqa"], continuation="evaluation")
    assert [one.continuation for one in examples_of(spec.tasks[0], 0, spec.spec)][:2] == [
        " push 0",
        " pull 1",
    ]


def test_context_and_candidate_are_tokenised_separately() -> None:
    """A merge over the border of "Answer:" and " yes" must not be made."""
    encode = Encoder(letters(merges=[(":", "Ġ")]), False)
    joint, context, candidate = (encode.candidates([text])[0] for text in ("Answer: yes", "Answer:", " yes"))
    assert context + candidate != joint and len(joint) == len("Answer: yes") - 1


def test_start_tokens() -> None:
    with_bos = letters("</s>")
    start = with_bos.bos_token_id
    assert start not in Encoder(with_bos, False).contexts(["a"])[0]
    assert Encoder(with_bos, True).contexts(["a"])[0][0] == start
    assert Encoder(with_bos, True).candidates(["a"])[0][0] != start, "candidates have none"
    assert start not in Encoder(with_bos, None).contexts(["a"])[0], "this tokenizer does not add it of itself"
    with pytest.raises(UserError, match="data.bos=false"):
        Encoder(letters(), True)
    with pytest.raises(UserError, match="data=token_choices"):
        Encoder(None, False)


def test_the_released_draw(folder: Path) -> None:
    """Random(42) shuffles the evaluation documents, then draws for each in that order."""
    data = loaded(folder, tasks=["rte", "lambada"], shots=[2], draws="released")
    docs = DOCS["rte"][:3]
    rng = random.Random()
    rng.seed(42)
    shuffled = list(docs)
    rng.shuffle(shuffled)
    expected = []
    for doc in shuffled:
        shown = rng.sample(DOCS["rte"], 2)
        texts = [
            BY_NAME["rte"].prompt(one, "").shown + BY_NAME["rte"].prompt(one, "").target for one in shown
        ]
        expected.append("\n\n".join(texts) + "\n\n" + BY_NAME["rte"].prompt(doc, "").shown)
    assert [one.contexts[0] for one in questions_of(data.tasks[0], 2, data.spec)] == expected
    for one in questions_of(data.tasks[1], 2, data.spec):  # without training documents
        *shown, query = one.contexts[0].split("\n\n")
        assert len(shown) == 2 and not any(text.startswith(query) for text in shown)


def test_our_draws_depend_on_nothing_but_their_names() -> None:
    drawn = demonstrations.seeded(0, "rte", 3, "eval", 7, 100)
    assert drawn == random.Random("demonstrations/0/rte/3/eval/7").sample(range(100), 3)
    others = [
        (1, "rte", 3, "eval", 7),
        (0, "cb", 3, "eval", 7),
        (0, "rte", 3, "train", 7),
        (0, "rte", 3, "eval", 8),
    ]
    assert all(demonstrations.seeded(*other, 100) != drawn for other in others)
    for document in range(200):
        one = demonstrations.seeded(0, "rte", 3, "eval", document, 5, without=2)
        assert len(set(one)) == 3 and 2 not in one and set(one) <= set(range(5))
    with pytest.raises(UserError, match=r"rte has 2 documents to show, fewer than 3"):
        demonstrations.seeded(0, "rte", 3, "eval", 0, 2)


def test_an_example_may_be_its_own_demonstration_unless_excluded(folder: Path) -> None:
    def own(**values: Any) -> int:
        data = loaded(folder, tasks=["rte"], shots=[3], **values)
        texts = [one.context.split("\n\n") for one in examples_of(data.tasks[0], 3, data.spec)]
        return sum(any(text.startswith(query) for text in shown) for *shown, query in texts)

    assert own(exclude_query=True) == 0
    assert sum(own(seed=seed) for seed in range(8)) > 0


def test_caps(folder: Path) -> None:
    data = loaded(folder, tasks=["rte", "wsc"], examples=2, questions=2)
    rte, wsc = data.tasks
    assert [one.number for one in examples_of(rte, 0, data.spec)] == [0, 1], "the first ones"
    assert [one.number for one in examples_of(wsc, 0, data.spec)] == [0, 2], "of those with label true"
    numbers = [one.number for one in questions_of(rte, 0, data.spec)]
    assert numbers == sorted(numbers) and len(numbers) == 2
    more = loaded(folder, tasks=["rte"], questions=None)
    assert [one.number for one in questions_of(more.tasks[0], 0, more.spec)] == [0, 1, 2]


def test_missing_files_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rte.eval.jsonl").write_text((folder / "rte.eval.jsonl").read_text())
    with pytest.raises(UserError, match=r"no rte\.train\.jsonl.*nyu-mll/glue \(rte\).*data\.shots=\[0\]"):
        loaded(tmp_path, tasks=["rte"], shots=[1])
    zero = loaded(tmp_path, tasks=["rte"])
    model = SimpleNamespace(tokenizer=letters())
    assert [(len(one.examples), len(one.questions)) for one in zero.task_sets(model)] == [(0, 3)]
    with pytest.raises(UserError, match=r"no cb\.eval\.jsonl.*leave cb out of data\.tasks"):
        loaded(tmp_path, tasks=["cb"])
    (tmp_path / "rte.train.jsonl").write_text('{"sentence1": "a"\n')
    with pytest.raises(UserError, match=r"rte\.train\.jsonl, line 1: no JSON"):
        loaded(tmp_path, tasks=["rte"])
    (tmp_path / "rte.train.jsonl").write_text('{"sentence1": "a"}\n')
    with pytest.raises(
        UserError, match=r"rte\.train\.jsonl, document 0: task rte: field 'sentence2' is missing"
    ):
        loaded(tmp_path, tasks=["rte"]).task_sets(model)

    def unreachable(*names: Any, **values: Any) -> Any:
        raise ConnectionError("no way\nmore")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"super_glue \(cb\).*no way\).*DIR/cb\.eval\.jsonl.*DIR/cb\.train\.jsonl"
    ):
        few_shot_sources.documents(FewShotTasks(tasks=["cb"]), BY_NAME["cb"])


def test_the_hub_is_asked_for_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *names, split: asked.append((*names, split)) or DOCS["cb"]
    )
    found = few_shot_sources.documents(FewShotTasks(tasks=["cb"]), BY_NAME["cb"])
    assert asked == [("aps/super_glue", "cb", "train"), ("aps/super_glue", "cb", "validation")]
    assert list(found.trains_on) == [0, 1, 2, 3]


def test_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    for values, said in (
        ({"tasks": ["rtee"]}, "got rtee. Valid: hellaswag"), ({"tasks": []}, "got none"),
        ({"shots": [1, 1]}, "twice"), ({"folder": str(tmp_path / "no")}, "no such folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            Data.choose({"kind": "few_shot_tasks", **values}, "data")


def test_the_hash_follows_the_files_and_not_their_folder(folder: Path, tmp_path: Path) -> None:
    def mark(where: Path) -> Any:
        return FewShotTasks(folder=str(where), tasks=["rte"]).fingerprint()

    for path in folder.glob("rte.*"):
        (tmp_path / path.name).write_text(path.read_text())
    assert mark(tmp_path) == mark(folder)
    (tmp_path / "rte.train.jsonl").write_text("{}\n")
    assert mark(tmp_path) != mark(folder)


def test_a_model_of_the_small_world_gets_its_tasks() -> None:
    organism: Any = SimpleNamespace(task=SimpleNamespace(kind="in_context"))
    toy = FewShotTasks(shots=[0, 5], seed=3).for_model(organism)
    assert isinstance(toy, FewShotToy) and (toy.shots, toy.seed) == ([0, 5], 3)
    assert toy.names == ["two_labels", "three_labels", "two_groups", "other_groups", "knowledge"]
    held = FewShotTasks(tasks=["mathqa", "lambada"]).for_model(organism)
    assert isinstance(held, FewShotToy) and held.names == ["recall", "completion"]
    other: Any = SimpleNamespace(task=SimpleNamespace(kind="ioi"))
    assert FewShotTasks().for_model(other) == FewShotTasks()
