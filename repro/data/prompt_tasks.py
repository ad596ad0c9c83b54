"""The tasks of 2022 as prompts: fourteen, and two held out. Pure functions of a document's own fields.

Source: Bansal et al. 2023, arXiv 2212.09095, whose prompts are those of lm-evaluation-harness 0.3 (after
Brown et al. 2020). A document is a mapping with the fields of its Hugging Face data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from repro.data.prompt_text import (
    first_lower,
    listed_options,
    normalised_answer,
    with_pronoun_marked,
    without_markup,
)
from repro.errors import UserError

Doc = Mapping[str, Any]
NUMERALS = {"1": "A", "2": "B", "3": "C", "4": "D", "5": "E"}


@dataclass(frozen=True)
class Prompt:
    """One document as text.

    contexts: one for all choices, or one for each (winogrande). choices: with their leading space, in the
    order in which ties go to the first. right: numbers of the right ones. shown, answer: what a demonstration
    is made of. continuation: what heads are ranked on, which for six tasks has no leading space. group: of
    questions that are right together. bare_answer: whether demonstrations have no space either.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    right: tuple[int, ...]
    continuation: str
    group: tuple[int, int] | None = None
    bare_answer: bool = False

    @property
    def shown(self) -> str:
        """The context with the right answer in place."""
        return self.contexts[0 if len(self.contexts) == 1 else self.right[0]]

    @property
    def target(self) -> str:
        """The first right choice, as questions have it."""
        return self.choices[self.right[0]]

    @property
    def answer(self) -> str:
        """The first right choice, as demonstrations have it."""
        return self.continuation if self.bare_answer else self.target


@dataclass(frozen=True)
class PromptTask:
    """dataset: name and configuration on the Hugging Face hub. train, evaluation: its splits.

    train_is_evaluation: there is no training split, and heads are ranked on the evaluation documents.
    trains_on: which training documents there are; all but for WSC.
    """

    name: str
    dataset: tuple[str, str | None]
    evaluation: str
    build: Callable[[Doc], Prompt]
    metric: Literal["accuracy", "grouped_accuracy", "greedy_match", "em"] = "accuracy"
    train: str | None = "train"
    trains_on: Callable[[Doc], bool] | None = None

    def prompt(self, doc: Doc, where: str) -> Prompt:
        """The document as text. Raises `UserError` naming `where` for fields that do not fit."""
        try:
            return self.build(doc)
        except KeyError as error:
            raise UserError(
                f"{where}: task {self.name}: field {error} is missing; the document has"
                f" {', '.join(map(str, doc))}. Give the fields of {self.dataset[0]} on the Hugging Face hub"
            ) from None
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{where}: task {self.name}: the document does not fit ({error}). Give the fields of"
                f" {self.dataset[0]} on the Hugging Face hub, labels included"
            ) from None


def _listed(text: str, choices: Sequence[str], gold: int) -> Prompt:
    """A multiple-choice task: candidates get a leading space where scored, and none where ranked on."""
    if not 0 <= gold < len(choices):
        raise ValueError(f"the right answer is number {gold} of {len(choices)}")
    return Prompt((text,), tuple(f" {choice}" for choice in choices), (gold,), choices[gold])


def _worded(text: str, choices: Sequence[str], gold: int, group: tuple[int, int] | None = None) -> Prompt:
    """A task whose candidates come with their leading space everywhere."""
    if not 0 <= gold < len(choices):
        raise ValueError(f"the label is {gold}; expected 0 to {len(choices) - 1}")
    return Prompt((text,), tuple(choices), (gold,), choices[gold], group)


def _hellaswag(doc: Doc) -> Prompt:
    text = f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}"
    return _listed(without_markup(text), [without_markup(one) for one in doc["endings"]], int(doc["label"]))


def _piqa(doc: Doc) -> Prompt:
    return _listed(f"Question: {doc['goal']}\nAnswer:", [doc["sol1"], doc["sol2"]], int(doc["label"]))


def _arc(doc: Doc) -> Prompt:
    key: str = doc["answerKey"]
    key = NUMERALS.get(key, key)
    return _listed(f"Question: {doc['question']}\nAnswer:", doc["choices"]["text"], "ABCDE".index(key))


def _openbookqa(doc: Doc) -> Prompt:
    return _listed(doc["question_stem"], doc["choices"]["text"], "ABCD".index(doc["answerKey"].strip()))


def _mathqa(doc: Doc) -> Prompt:
    """Its released target has no space, in demonstrations either, unlike that of the other five."""
    choices = listed_options(doc["options"])
    made = _listed(f"Question: {doc['Problem']}\nAnswer:", choices, "abcde".index(doc["correct"]))
    return replace(made, bare_answer=True)


def _winogrande(doc: Doc) -> Prompt:
    """The option stands in the context, and what is scored is the rest of the sentence, for both the same."""
    before, after = doc["sentence"].split("_", 1)
    rest, gold = f" {after.strip()}", {"1": 0, "2": 1}[doc["answer"]]
    return Prompt((before + doc["option1"], before + doc["option2"]), (rest, rest), (gold,), rest)


def _boolq(doc: Doc) -> Prompt:
    return _worded(
        f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:", (" no", " yes"), int(doc["label"])
    )


def _cb(doc: Doc) -> Prompt:
    text = f"{doc['premise']}\nQuestion: {doc['hypothesis']}. True, False or Neither?\nAnswer:"
    return _worded(text, (" True", " False", " Neither"), int(doc["label"]))


def _copa(doc: Doc) -> Prompt:
    connector = {"cause": "because", "effect": "therefore"}[doc["question"]]
    choices = [f" {first_lower(doc[name])}" for name in ("choice1", "choice2")]
    return _worded(f"{doc['premise'].strip()[:-1]} {connector}", choices, int(doc["label"]))


def _wic(doc: Doc) -> Prompt:
    word = doc["sentence1"][doc["start1"] : doc["end1"]]
    text = (
        f"Sentence 1: {doc['sentence1']}\nSentence 2: {doc['sentence2']}\nQuestion: Is the word '{word}' used"
        " in the same way in the two sentences above?\nAnswer:"
    )
    return _worded(text, (" no", " yes"), int(doc["label"]))


def _wsc(doc: Doc) -> Prompt:
    text = (
        f"Passage: {with_pronoun_marked(doc)}\nQuestion: In the passage above, does the pronoun"
        f' "*{doc["span2_text"]}*" refer to "*{doc["span1_text"]}*"?\nAnswer:'
    )
    return _worded(text, (" no", " yes"), int(doc["label"]))


def _multirc(doc: Doc) -> Prompt:
    """Answers of one question are right together."""
    text = f"{doc['paragraph']}\nQuestion: {doc['question']}\nAnswer:"
    choices = [f" {doc['answer']}\nIs the answer correct? {word}" for word in ("no", "yes")]
    return _worded(text, choices, int(doc["label"]), (doc["idx"]["paragraph"], doc["idx"]["question"]))


def _rte(doc: Doc) -> Prompt:
    text = f"{doc['sentence1']}\nQuestion: {doc['sentence2']} True or False?\nAnswer:"
    return _worded(text, (" True", " False"), int(doc["label"]))


def _record(doc: Doc) -> Prompt:
    """Entities that SQuAD's comparison takes for one of the answers are right; the first answer is shown."""
    told, *highlights = doc["passage"].strip().split("\n@highlight\n")
    text = f"{told}\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)
    entities, answers = sorted(set(doc["entities"])), sorted(set(doc["answers"]))
    accepted = {normalised_answer(answer) for answer in answers}
    choices = [f"  - {doc['query']}".replace("@placeholder", entity) for entity in entities]
    right = [place for place, entity in enumerate(entities) if normalised_answer(entity) in accepted]
    shown = entities.index(answers[0])
    return Prompt((text,), tuple(choices), (shown, *(one for one in right if one != shown)), choices[shown])


def _lambada(doc: Doc) -> Prompt:
    """The last word is right if the model says it greedily."""
    before, last = doc["text"].rsplit(" ", 1)
    return Prompt((before,), (f" {last}",), (0,), f" {last}")


_SUPER = "aps/super_glue"
TASKS = (
    PromptTask("hellaswag", ("Rowan/hellaswag", None), "validation", _hellaswag),
    PromptTask("piqa", ("baber/piqa", None), "validation", _piqa),
    PromptTask("arc_easy", ("allenai/ai2_arc", "ARC-Easy"), "test", _arc),
    PromptTask("arc_challenge", ("allenai/ai2_arc", "ARC-Challenge"), "test", _arc),
    PromptTask("openbookqa", ("allenai/openbookqa", "main"), "test", _openbookqa),
    PromptTask("winogrande", ("allenai/winogrande", "winogrande_xl"), "validation", _winogrande),
    PromptTask("boolq", (_SUPER, "boolq"), "validation", _boolq),
    PromptTask("cb", (_SUPER, "cb"), "validation", _cb),
    PromptTask("copa", (_SUPER, "copa"), "validation", _copa),
    PromptTask("wic", (_SUPER, "wic"), "validation", _wic),
    PromptTask("wsc", (_SUPER, "wsc"), "validation", _wsc, trains_on=lambda doc: bool(doc["label"])),
    PromptTask("multirc", (_SUPER, "multirc"), "validation", _multirc, "grouped_accuracy"),
    PromptTask("rte", ("nyu-mll/glue", "rte"), "validation", _rte),
    PromptTask("record", (_SUPER, "record"), "validation", _record, "em"),
    PromptTask("mathqa", ("regisss/math_qa", None), "test", _mathqa),
    PromptTask("lambada", ("EleutherAI/lambada_openai", "default"), "test", _lambada, "greedy_match", None),
)
BY_NAME = {task.name: task for task in TASKS}
HELD_OUT = ("mathqa", "lambada")
