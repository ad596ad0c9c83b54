"""What the prompts of 2022 do to text: cleaning as in the lm-evaluation-harness of that year."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

_OPTIONS = re.compile(r"[abcd] \) .*?, |e \) .*?$")


def without_markup(text: str) -> str:
    """HellaSwag's text without WikiHow's brackets: " [title]" becomes ". ", double spaces one (once)."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def detokenized(text: str) -> str:
    """Without the spaces that a tokeniser of words put before contractions, quotes and punctuation."""
    for spaced, plain in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(spaced, plain)
    return re.sub(r" (['.,])", r"\1", text)


def with_pronoun_marked(doc: Mapping[str, Any]) -> str:
    """WSC's passage with *stars* around the pronoun. Span indices count words.

    The text after the pronoun is found by length, as in 2022: it is right where words are parted by one
    space.
    """
    text, pronoun = doc["text"], doc["span2_text"]
    before = " ".join(text.split()[: doc["span2_index"]])
    after = text[len(before) + len(pronoun) + 1 :]
    return detokenized(f"{before} *{pronoun}*{after}")


def listed_options(options: str) -> list[str]:
    """MathQA's candidates: "a ) 24 , b ) 120 , ... e ) 1" gives ["24", "120", ..., "1"]."""
    return [found[4:].rstrip(" ,") for found in _OPTIONS.findall(options)]


def normalised_answer(text: str) -> str:
    """As SQuAD compares answers: lower case, no punctuation, no articles, single spaces."""
    kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def first_lower(text: str) -> str:
    """With its first letter in lower case."""
    return text[:1].lower() + text[1:]
