"""The prompts of 2022, written out by hand from the paper's sheet."""

from __future__ import annotations

from typing import Any

import pytest
from data.few_shot_documents import DOCS

from repro.data.few_shot_specs import HELD_OUT, TASKS
from repro.data.few_shot_tasks import joined
from repro.data.prompt_tasks import BY_NAME, Prompt
from repro.data.prompt_text import detokenized, listed_options, normalised_answer, without_markup
from repro.errors import UserError

# task, document: contexts, choices, right, continuation that heads are ranked on
GOLDEN: list[tuple[str, int, tuple[str, ...], tuple[str, ...], tuple[int, ...], str]] = [
    ("hellaswag", 0, ("Cooking: A man stirs soup. He then",),
     (" sings .", " tastes it.", " leaves it.", " sleeps."), (1,), "tastes it."),
    ("hellaswag", 1, ("Roof: Fix it. Climb up",), (" one", " two", " three", " four"), (0,), "one"),
    ("piqa", 1, ("Question: How to open box 1\nAnswer:",), (" push 1", " pull 1"), (1,), "pull 1"),
    ("arc_easy", 0, ("Question: Which is 0?\nAnswer:",), (" red", " blue", " green", " white"), (2,),
     "green"),
    ("arc_challenge", 1, ("Question: Which is 1?\nAnswer:",), (" red", " blue", " green", " white"), (0,),
     "red"),
    ("openbookqa", 1, ("The sun 1",), (" is hot", " is cold", " is wet", " is old"), (3,), "is old"),
    ("winogrande", 1, ("The cup did not fit into the bag because the cup",
                       "The cup did not fit into the bag because the bag"),
     (" was too small .", " was too small ."), (1,), " was too small ."),
    ("boolq", 1, ("Rivers flow 1.\nQuestion: do rivers flow 1?\nAnswer:",), (" no", " yes"), (1,), " yes"),
    ("cb", 2, ("It is 2.\nQuestion: it was 2. True, False or Neither?\nAnswer:",),
     (" True", " False", " Neither"), (2,), " Neither"),
    ("copa", 0, ("The man fell because",), (" he was tired.", " ice was there."), (1,), " ice was there."),
    ("copa", 1, ("The man fell therefore",), (" it hurt.", " he sang."), (0,), " it hurt."),
    ("wic", 0, ("Sentence 1: The bank is closed.\nSentence 2: The bank of river 0.\nQuestion: Is the word "
                "'bank' used in the same way in the two sentences above?\nAnswer:",), (" no", " yes"), (0,),
     " no"),
    ("wsc", 0, ("Passage: Mark told Pete many lies about himself, which Pete wrote down. *He* shouldn't "
                'lie.\nQuestion: In the passage above, does the pronoun "*He*" refer to "*Mark*"?\nAnswer:',),
     (" no", " yes"), (1,), " yes"),
    ("multirc", 1, ("Ann has a cat.\nQuestion: Who has a cat?\nAnswer:",),
     (" Eva\nIs the answer correct? no", " Eva\nIs the answer correct? yes"), (0,),
     " Eva\nIs the answer correct? no"),
    ("rte", 0, ("Two plus two is 0.\nQuestion: Four is 0. True or False?\nAnswer:",), (" True", " False"),
     (0,), " True"),
    ("record", 0, ("Rome (CNN) -- Ann met Eva.\n\n  - Ann is well.\n  - Eva left.\n",),
     ("  - Ann was glad to see Ann", "  - Eva was glad to see Ann", "  - Rome was glad to see Ann"), (1,),
     "  - Eva was glad to see Ann"),
    ("mathqa", 1, ("Question: what is 1 plus 1 ?\nAnswer:",),
     (" 24", " 120", " 1,5", " none of these", " 2"), (2,), "1,5"),
    ("lambada", 3, ("He took the key's and gave the",), (" key's",), (0,), " key's"),
]  # fmt: skip


def prompt(task: str, number: int) -> Prompt:
    return BY_NAME[task].prompt(DOCS[task][number], "here")


@pytest.mark.parametrize("task, number, contexts, choices, right, continuation", GOLDEN)
def test_prompts(task: str, number: int, contexts: Any, choices: Any, right: Any, continuation: str) -> None:
    found = prompt(task, number)
    assert (found.contexts, found.choices, found.right) == (contexts, choices, right)
    assert found.continuation == continuation
    assert found.target == choices[right[0]]


def test_every_task_has_a_golden_prompt() -> None:
    assert {one[0] for one in GOLDEN} == {*TASKS, *HELD_OUT} == set(BY_NAME) == set(DOCS)


def test_six_tasks_are_ranked_without_the_leading_space() -> None:
    bare = {name for name in BY_NAME if not prompt(name, 0).continuation.startswith(" ")}
    assert bare == {"hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa", "mathqa"}


def test_metrics_and_training_documents() -> None:
    metrics = {name: task.metric for name, task in BY_NAME.items() if task.metric != "accuracy"}
    assert metrics == {"multirc": "grouped_accuracy", "record": "em", "lambada": "greedy_match"}
    assert [name for name, task in BY_NAME.items() if task.trains_on] == ["wsc"]
    assert [name for name, task in BY_NAME.items() if task.train is None] == ["lambada"]
    wanted = BY_NAME["wsc"].trains_on
    assert wanted is not None and [wanted(doc) for doc in DOCS["wsc"]] == [True, False, True, True]


def test_answers_of_one_question_are_one_group() -> None:
    assert [prompt("multirc", number).group for number in range(4)] == [(3, 0), (3, 0), (3, 1), (3, 1)]


def test_entities_that_are_the_answer_in_other_words_are_right_too() -> None:
    found = prompt("record", 1)  # entities in order: Bob, Tim, the Bob
    assert found.right == (0, 2) and found.target == "  - The prize went to Bob"


def test_demonstrations_are_joined_by_a_blank_line_with_their_answers() -> None:
    shown = [prompt("rte", 1), prompt("rte", 2)]
    assert joined(shown, prompt("rte", 0).shown, "\n\n") == (
        "Two plus two is 1.\nQuestion: Four is 1. True or False?\nAnswer: False\n\n"
        "Two plus two is 2.\nQuestion: Four is 2. True or False?\nAnswer: True\n\n"
        "Two plus two is 0.\nQuestion: Four is 0. True or False?\nAnswer:"
    )
    # A demonstration of winogrande is the whole sentence with the right option.
    assert joined([prompt("winogrande", 1)], "NEXT", "\n\n") == (
        "The cup did not fit into the bag because the bag was too small .\n\nNEXT"
    )
    # MathQA's target in the released code has no space; that of the other listed tasks has one where shown.
    assert joined([prompt("mathqa", 0)], "NEXT", "\n\n") == (
        "Question: what is 0 plus 0 ?\nAnswer:120\n\nNEXT"
    )
    assert joined([prompt("piqa", 0)], "NEXT", "\n\n") == (
        "Question: How to open box 0\nAnswer: push 0\n\nNEXT"
    )
    assert joined([], "only", "\n\n") == "only"


def test_text() -> None:
    assert without_markup(" [header] How to [title] Do  it [x] ") == " How to. Do it "
    assert detokenized('He did n\'t say " yes " ( twice ) , or so .') == 'He didn\'t say"yes"(twice), or so.'
    assert listed_options("a ) 1 , b ) 2 hours , c ) rs . 3 , d ) 4 , e ) 5") == [
        "1", "2 hours", "rs . 3", "4", "5",
    ]  # fmt: skip
    assert normalised_answer("The U.S.  Army") == normalised_answer("us army")


@pytest.mark.parametrize(
    "task, doc, said",
    [
        ("rte", {"sentence1": "a", "sentence2": "b"}, "field 'label' is missing"),
        ("rte", {"sentence1": "a", "sentence2": "b", "label": -1}, "the label is -1"),
        ("openbookqa", {**DOCS["openbookqa"][0], "answerKey": "Z"}, "does not fit"),
        ("winogrande", {**DOCS["winogrande"][0], "sentence": "no place"}, "does not fit"),
    ],
)
def test_documents_that_do_not_fit_are_refused(task: str, doc: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"FILE, document 7: task {task}: .*{said}"):
        BY_NAME[task].prompt(doc, "FILE, document 7")
