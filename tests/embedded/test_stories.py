"""Stories that a model goes on with are judged by the world: what is written there holds, and what is a little off does not."""

import random
import re

import pytest

from selfprune.embedded.corpus import CorpusWriter
from selfprune.embedded.stories import holds, score
from selfprune.embedded.tasks import DOCUMENT_FOLDER, HALVES, STORY, build_documents, load_documents
from selfprune.embedded.world import build_world

WORLD = build_world()


def sentences(kind, n=200):
    writer = CorpusWriter(WORLD, random.Random(7))
    return [found for _ in range(n) for found in re.findall(r"[^.]+(?=\.)", getattr(writer, kind)())]


@pytest.mark.parametrize("kind", ["biography", "scene", "sums"])
def test_whatever_a_corpus_says_holds(kind):
    assert [sentence for sentence in sentences(kind) if not holds(sentence.strip(), WORLD)] == []


def test_a_sentence_of_which_any_word_is_another_does_not_hold_or_says_something_else():
    said = {sentence.strip() for sentence in sentences("biography") + sentences("sums")}
    for sentence in said:
        words = sentence.split()
        wrong = [*words[:-1], str(int(words[-1]) + 1) if words[-1].isdigit() else "elsewhere"]
        assert not holds(" ".join(wrong), WORLD)


@pytest.mark.parametrize(
    ("sentence", "is_so"),
    [
        ("The fox sees the red boats", True),
        ("The foxes see the red boats", True),
        ("The fox see the red boats", False),
        ("The foxes sees the red boats", False),
        ("The fox near the boats waits", True),
        ("The fox near the boats wait", False),
        ("The fox near the boats sees", False),
        ("The fox waits", False),
        ("The fox sees", False),
        ("The fox sees the red", False),
        ("Fox sees the boat", False),
        ("The red old fox sees the boat", False),
        ("The fox sees the boat the boat", False),
        ("3 + 4 = 7", True),
        ("3 + 4 = 8", False),
        ("", False),
    ],
)
def test_the_grammar_is_known(sentence, is_so):
    assert {"fox", "boat"} <= set(WORLD.words["nouns"])
    assert "see" in WORLD.words["transitive_verbs"]
    assert "wait" in WORLD.words["intransitive_verbs"]
    assert holds(sentence, WORLD) == is_so


def test_only_as_many_sentences_are_judged_as_a_story_goes_on_with_and_missing_ones_count():
    good, bad = " The fox sees the boat.", " The fox see the boat."
    cases = (
        (good + bad, 1, 1.0),
        (good + bad, 2, 0.5),
        (good, 2, 0.5),
        (bad + good + good, 2, 0.5),
        ("", 2, 0.0),
        (good[:-1], 1, 0.0),
    )
    for text, n_sentences, expected in cases:
        assert score({"n_sentences": n_sentences}, [text])["holds"] == expected


def test_repetition_and_length_are_told():
    found = score({"n_sentences": 2}, ["a b c a b c a b"])
    # abc bca cab abc bca cab
    assert (found["words"], found["repeats"]) == (8.0, 0.5)
    assert score({"n_sentences": 2}, ["a b c d"])["repeats"] == 0.0
    assert score({"n_sentences": 2}, [""]) == {"holds": 0.0, "repeats": 0.0, "words": 0.0}


@pytest.mark.parametrize("half", HALVES)
def test_stories_begin_with_what_holds_in_halves_that_never_meet(half):
    found = {document["query"] for document in build_documents(STORY, half)}
    other = {document["query"] for document in build_documents(STORY, HALVES[1 - HALVES.index(half)])}
    assert len(found) == 240
    assert not found & other
    assert all(holds(query.rstrip("."), WORLD) for query in found)
    assert load_documents(STORY, half)["test"].to_list() == build_documents(STORY, half), DOCUMENT_FOLDER


def test_scenes_begin_with_sentences_that_no_corpus_has():
    begun = {d["query"].rstrip(".") for half in HALVES for d in build_documents(STORY, half) if d["n_sentences"] == 1}
    assert len(begun) > 150
    assert not begun & set(map(str.strip, sentences("scene", 2_000)))
