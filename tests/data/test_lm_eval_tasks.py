"""Tasks of lm-eval against our own prompts and log-likelihoods; without lm-eval all but the refusal skip."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from data.few_shot_documents import DOCS
from data.test_few_shot_tasks import letters

from repro.analyses import ffn_importance
from repro.analyses.importance_specs import FfnImportance
from repro.data import lm_eval_tasks
from repro.data.lm_eval_specs import LmEvalTasks
from repro.data.scored_texts import TaskSet
from repro.data.specs import Data
from repro.errors import UserError
from repro.models.huggingface import wrap

# Where lm-eval 0.4.13 has the task, and what must be changed in it for the prompts of 2022.
YAML: dict[str, tuple[str, dict[str, Any]]] = {
    "hellaswag": ("hellaswag/hellaswag.yaml", {}),
    "piqa": ("piqa/piqa.yaml", {}),
    "arc_easy": ("arc/arc_easy.yaml", {}),
    "arc_challenge": ("arc/arc_challenge.yaml", {}),
    "openbookqa": ("openbookqa/openbookqa.yaml", {}),
    "winogrande": ("winogrande/default.yaml", {}),
    "boolq": ("super_glue/boolq/default.yaml", {}),
    "wic": ("super_glue/wic/default.yaml", {}),
    "rte": ("glue/rte/default.yaml", {}),
    "cb": ("super_glue/cb/default.yaml", {
        "doc_to_text": "{{premise}}\nQuestion: {{hypothesis}}. True, False or Neither?\nAnswer:"}),
    "copa": ("super_glue/copa/default.yaml", {"target_delimiter": ""}),
    "wsc": ("super_glue/wsc/default.yaml", {"fewshot_config": {"split": "train"}}),
    "multirc": ("super_glue/multirc/default.yaml", {
        "doc_to_choice": "{% set asked = answer + '\nIs the answer correct? ' %}"
                         "{{[asked + 'no', asked + 'yes']}}"
    }),
    "mathqa": ("mathqa/mathqa.yaml", {"fewshot_config": {"target_delimiter": ""}}),
    "lambada": ("lambada/lambada_openai.yaml", {"fewshot_config": {"target_delimiter": ""}}),
}  # fmt: skip
OTHER_ORDER = ("boolq", "wic", "wsc")


def documents(name: str) -> list[dict[str, Any]]:
    """As lm-eval wants them: options are called 1 to 4 where the answer is, and answers end in no space."""
    docs = [dict(doc) for doc in DOCS[name]]
    for doc in docs:
        if doc.get("answerKey") == "1":
            doc["choices"] = {**doc["choices"], "label": ["1", "2", "3", "4"]}
        if name == "openbookqa":
            doc["answerKey"] = doc["answerKey"].strip()
    return docs


def write(path: Path, docs: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Documents as `few_shot_tasks` takes them, and YAML of tasks over the same files."""
    stock = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks"
    docs, own = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("yaml")
    (own / "shown.py").write_text("def right(docs):\n    return docs.filter(lambda doc: doc['label'] == 1)\n")
    for name, (place, changes) in YAML.items():
        made = documents(name)
        splits = {"eval": made} if name == "lambada" else {"train": made[:3], "eval": made[3:]}
        files = {split: write(docs / f"{name}.{split}.jsonl", some) for split, some in splits.items()}
        config = {"include": str(stock / place), "task": name, "tag": None, "dataset_path": "json",
                  "dataset_name": None, "test_split": "eval", "validation_split": None, **changes,
                  "dataset_kwargs": {"data_files": files, "cache_dir": str(own / "cache")}}  # fmt: skip
        text = yaml.safe_dump(config)
        if name == "wsc":
            text = text.replace("  split: train", "  split: train\n  process_docs: !function shown.right")
        (own / f"{name}.yaml").write_text(text)
    return docs, own


def sets(kind: str, model: Any, **values: Any) -> list[TaskSet]:
    spec = Data.choose({"kind": kind, **values}, "data")
    return import_module(spec.module).load(spec).task_sets(model)


def decoded(one: TaskSet, tokenizer: Any) -> list[Any]:
    """Texts of examples, then of questions: every context with its choices in alphabetical order."""
    found: list[Any] = [
        (tokenizer.decode(it.context), tokenizer.decode(it.continuation)) for it in one.examples
    ]
    for it in one.questions:
        texts = [(tokenizer.decode(it.context(i)), tokenizer.decode(ids)) for i, ids in enumerate(it.choices)]
        found.append((sorted(texts), {texts[place] for place in it.right}))
        if one.name not in OTHER_ORDER:
            found.append(texts)
    return found


def test_prompts_are_those_of_few_shot_tasks(folders: tuple[Path, Path]) -> None:
    """Fifteen tasks, demonstrations included; ReCoRD's lm-eval itself cannot load with this transformers."""
    docs, own = folders
    tokenizer = letters("</s>")
    model = SimpleNamespace(tokenizer=tokenizer, vocabulary=len(tokenizer))
    for names, shots in (([name for name in YAML if name != "wsc"], [0, 1, 2]), (["wsc"], [0, 1])):
        asked: dict[str, Any] = {"tasks": names, "shots": shots}
        ours = sets(
            "few_shot_tasks", model, folder=str(docs), exclude_query=True, continuation="evaluation", **asked
        )
        theirs = sets("lm_eval_tasks", model, include=str(own), **asked)
        assert [one.label for one in theirs] == [one.label for one in ours]
        for mine, other in zip(ours, theirs, strict=True):
            if mine.name == "wsc":  # lm-eval demonstrates the documents with label true alone, but has all
                other = replace(other, examples=(other.examples[0], other.examples[2]))
            assert decoded(other, tokenizer) == decoded(mine, tokenizer), mine.label
            assert other.importance_of_evaluation == mine.importance_of_evaluation
            assert (other.metric == "greedy_match") == (mine.metric == "greedy_match")


def test_log_likelihoods_are_those_of_lm_eval(folders: tuple[Path, Path]) -> None:
    """Its HFLM on the same model, whole and with a feed-forward layer forced to 0, in its own evaluation."""
    from lm_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    tokenizer = letters("</s>")
    tokenizer.pad_token = tokenizer.eos_token = "</s>"
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=3, num_attention_heads=4, ffn_dim=40,
        word_embed_proj_dim=24, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = transformers.OPTForCausalLM(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    names = ["piqa", "winogrande", "copa", "cb", "multirc", "lambada"]
    _, own = folders
    model = wrap(hf, tokenizer)
    data = LmEvalTasks(tasks=names, include=[str(own)])
    found = ffn_importance.run(model, lm_eval_tasks.load(data), None, None, FfnImportance()).arrays
    manager = TaskManager(include_defaults=False, include_path=str(own))
    lm = HFLM(pretrained=hf, tokenizer=tokenizer, add_bos_token=False, batch_size=3)
    for ffn in (0, 2):  # the whole model, and without the feed-forward layer of layer 1
        hook = (
            hf.model.decoder.layers[1].fc2.register_forward_hook(lambda *given: given[2] * 0) if ffn else None
        )
        # fmt: off
        said = simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0,
                               log_samples=True, num_fewshot=0)
        # fmt: on
        if hook:
            hook.remove()
        assert said is not None
        samples = [sample for name in names for sample in said["samples"][name]]
        theirs = [[float(one[0][0]) for one in sample["resps"]] for sample in samples]
        assert len(theirs) == found["loglik"].values.shape[1] == 9
        for question, expected in enumerate(theirs):
            ours = found["loglik"].values[ffn, question, : len(expected)]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
        assert np.nanmin(np.abs(found["loglik"].values[2] - found["loglik"].values[0])) > 1e-3
        expected = [said["results"][name]["acc,none"] for name in names]
        np.testing.assert_allclose(found["task_accuracy"].values[:, ffn], expected)


def test_stock_tasks_over_files_of_the_user(folders: tuple[Path, Path]) -> None:
    """Rows of data.folder stand in for the data set that lm-eval's own YAML names."""
    docs, own = folders
    stock = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks" / "piqa"
    tokenizer = letters()
    model = SimpleNamespace(tokenizer=tokenizer)
    asked: dict[str, Any] = {"tasks": ["piqa"], "shots": [0, 1]}
    files = sets("lm_eval_tasks", model, include=[str(stock)], folder=str(docs), **asked)
    assert files == sets("lm_eval_tasks", model, include=str(own / "piqa.yaml"), **asked)
    capped = sets("lm_eval_tasks", model, include=str(own), tasks=["lambada"], examples=2, questions=3)
    assert [(len(one.examples), len(one.questions)) for one in capped] == [(2, 3)]


def test_what_cannot_be_had_is_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    docs, own = folders
    model = SimpleNamespace(tokenizer=letters())

    def refused(**values: Any) -> str:
        with pytest.raises(UserError) as caught:
            sets("lm_eval_tasks", model, **values)
        return str(caught.value)

    (tmp_path / "a.yaml").write_text(
        "task: told\noutput_type: generate_until\ndataset_path: json\ntest_split: eval\ndoc_to_text: a\n"
        f"doc_to_target: b\ndataset_kwargs: {{data_files: {{eval: {docs / 'piqa.eval.jsonl'}}}}}\n"
    )
    (tmp_path / "b.yaml").write_text(
        "task: gone\noutput_type: multiple_choice\ndataset_path: json\ntest_split: eval\n"
        "dataset_kwargs: {data_files: {eval: nowhere.jsonl}}\n"
    )
    assert "told is of type generate_until" in refused(tasks=["told"], include=str(tmp_path))
    assert "cannot load task gone" in refused(tasks=["gone"], include=str(tmp_path))
    assert "there is no" in refused(tasks=["piqa"], include=str(own), folder=str(tmp_path))
    assert "there is no" in refused(tasks=["piqa"], include=str(tmp_path / "nothing"))
    assert "data.tasks=[piqa]" in refused()
    assert "fewer than 9" in refused(tasks=["piqa"], shots=[9], include=str(own))


def test_the_hash_follows_the_yaml_and_the_files_that_it_names(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")

    def mark() -> dict[str, Any]:
        return LmEvalTasks(tasks=["x"], include=[str(tmp_path / "yaml")]).fingerprint()

    (tmp_path / "yaml").mkdir()
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    (tmp_path / "yaml" / "x.yaml").write_text(
        f"task: x\ndoc_to_text: !function utils.text\ndataset_kwargs: {{data_files: {{eval: {file}}}}}\n"
    )
    first = mark()
    assert mark() == first
    file.write_text("{} \n")
    assert (second := mark()) != first
    (tmp_path / "yaml" / "utils.py").write_text("")
    assert mark() != second


def test_without_lm_eval_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'repro-harness\[lm-eval\]'"):
        Data.choose({"kind": "lm_eval_tasks", "tasks": ["piqa"]}, "data").fingerprint()
