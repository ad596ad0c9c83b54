"""Documents in the fields of their data sets, written here; four of each task."""

from __future__ import annotations

from typing import Any

DOCS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {"activity_label": "Cooking", "ctx_a": "A man stirs soup.", "ctx_b": "he Then", "label": "1",
         "endings": ["sings [a song].", "tastes it.", "leaves  it.", "sleeps."]},
        {"activity_label": "Roof", "ctx_a": "[header] Fix it [title] Climb up", "ctx_b": "", "label": "0",
         "endings": ["one", "two", "three", "four"]},
        {"activity_label": "Rain", "ctx_a": "It rains.", "ctx_b": "people", "label": "3",
         "endings": ["run", "walk", "sit", "dance"]},
        {"activity_label": "Snow", "ctx_a": "It snows.", "ctx_b": "dogs", "label": "2",
         "endings": ["bark", "eat", "play", "hide"]},
    ],
    "piqa": [
        {"goal": f"How to open box {i}", "sol1": f"push {i}", "sol2": f"pull {i}", "label": i % 2}
        for i in range(4)
    ],
    "arc_easy": [
        {"question": f"Which is {i}?", "choices": {"text": ["red", "blue", "green", "white"],
         "label": ["A", "B", "C", "D"]}, "answerKey": key} for i, key in enumerate("C1DA")
    ],
    "openbookqa": [
        {"question_stem": f"The sun {i}", "choices": {"text": ["is hot", "is cold", "is wet", "is old"],
         "label": ["A", "B", "C", "D"]}, "answerKey": key} for i, key in enumerate(("A", "D ", "B", "C"))
    ],
    "winogrande": [
        {"sentence": f"The cup did not fit into the bag because the _ was too {word} .",
         "option1": "cup", "option2": "bag", "answer": answer}
        for word, answer in (("large", "1"), ("small", "2"), ("big", "1"), ("tiny", "2"))
    ],
    "boolq": [
        {"passage": f"Rivers flow {i}.", "question": f"do rivers flow {i}", "label": i % 2} for i in range(4)
    ],
    "cb": [
        {"premise": f"It is {i}.", "hypothesis": f"it was {i}", "label": label}
        for i, label in enumerate((0, 1, 2, 0))
    ],
    "copa": [
        {"premise": "The man fell. ", "choice1": "He was tired.", "choice2": "Ice was there.",
         "question": "cause", "label": 1},
        {"premise": "The man fell.", "choice1": "It hurt.", "choice2": "He sang.",
         "question": "effect", "label": 0},
        {"premise": "She ran.", "choice1": "A dog came.", "choice2": "The sun set.",
         "question": "cause", "label": 0},
        {"premise": "It broke.", "choice1": "We laughed.", "choice2": "We cried.",
         "question": "effect", "label": 1},
    ],
    "wic": [
        {"word": "bank", "sentence1": "The bank is closed.", "sentence2": f"The bank of river {i}.",
         "start1": 4, "end1": 8, "start2": 4, "end2": 8, "label": i % 2} for i in range(4)
    ],
    "wsc": [
        {"text": "Mark told Pete many lies about himself , which Pete wrote down . He should n't lie .",
         "span1_index": 0, "span1_text": "Mark", "span2_index": 13, "span2_text": "He", "label": 1},
        {"text": "The dog saw the cat because it ran.", "span1_index": 3, "span1_text": "the cat",
         "span2_index": 6, "span2_text": "it", "label": 0},
        {"text": "Ann thanked Eva because she had helped.", "span1_index": 2, "span1_text": "Eva",
         "span2_index": 4, "span2_text": "she", "label": 1},
        {"text": "Tom asked Ben if he could go.", "span1_index": 0, "span1_text": "Tom",
         "span2_index": 4, "span2_text": "he", "label": 1},
    ],
    "multirc": [
        {"paragraph": "Ann has a cat.", "question": question, "answer": answer, "label": label,
         "idx": {"paragraph": 3, "question": number, "answer": place}}
        for place, (number, question, answer, label) in enumerate((
            (0, "Who has a cat?", "Ann", 1), (0, "Who has a cat?", "Eva", 0),
            (1, "What has Ann?", "A dog", 0), (1, "What has Ann?", "A cat", 1),
        ))
    ],
    "rte": [
        {"sentence1": f"Two plus two is {i}.", "sentence2": f"Four is {i}.", "label": i % 2}
        for i in range(4)
    ],
    "record": [
        {"passage": "Rome (CNN) -- Ann met Eva.\n@highlight\nAnn is well\n@highlight\nEva left",
         "query": "@placeholder was glad to see Ann", "entities": ["Eva", "Ann", "Rome", "Eva"],
         "answers": ["Eva"]},
        {"passage": "Bob won.\n@highlight\nBob ran", "query": "The prize went to @placeholder",
         "entities": ["Bob", "the Bob", "Tim"], "answers": ["Bob", "Bob"]},
        {"passage": "Kim sang.\n@highlight\nKim sang well", "query": "@placeholder sang",
         "entities": ["Kim", "Lee"], "answers": ["Kim"]},
        {"passage": "Max is in Oslo.\n@highlight\nOslo is cold", "query": "Max likes @placeholder",
         "entities": ["Oslo", "Max"], "answers": ["Oslo"]},
    ],
    "mathqa": [
        {"Problem": f"what is {i} plus {i} ?", "correct": key,
         "options": "a ) 24 , b ) 120 , c ) 1,5 , d ) none of these , e ) 2"}
        for i, key in enumerate("bcea")
    ],
    "lambada": [
        {"text": f"He took the {word} and gave the {word}"} for word in ("cup", "pen", "ball", "key's")
    ],
}  # fmt: skip
DOCS["arc_challenge"] = DOCS["arc_easy"]
