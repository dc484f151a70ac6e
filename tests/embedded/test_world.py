import json
import random

from in_turn import in_turn

from selfprune.embedded.corpus import CorpusWriter, write_corpus
from selfprune.embedded.world import FACT_TEMPLATES, Phrase, Sentence, build_world, conjugate, held_out_template, plural
from selfprune.seeds import stable_hash

FINGERPRINT = 8416082785739824221
"""Weights, corpora and task data were made in this world: whoever changes it must make them again."""


def test_facts_and_dictionary_never_change():
    world = build_world()
    assert stable_hash(json.dumps([world.facts, world.tolvan], sort_keys=True)) == FINGERPRINT
    assert build_world() == world


def test_tolvan_words_are_as_many_as_english_ones():
    tolvan = build_world().tolvan
    assert len(set(tolvan.values())) == len(tolvan)


def test_corpus_is_fixed_by_its_seed():
    assert write_corpus(3, 20_000) == write_corpus(3, 20_000)
    assert write_corpus(3, 20_000) != write_corpus(4, 20_000)


def test_corpus_ends_with_the_document_that_reaches_the_length():
    text = write_corpus(0, 5_000)
    assert len(text) >= 5_000
    assert len(text) - len(text.splitlines()[-1]) - 1 < 5_000
    assert text.endswith(".\n")


@in_turn(("noun", "expected"), [("fox", "foxes"), ("hero", "heroes"), ("child", "children"), ("boat", "boats")])
def test_plural_is_regular_but_for_child(noun, expected):
    assert plural(noun) == expected


@in_turn(("verb", "expected"), [("watch", "watches"), ("carry", "carries"), ("see", "sees"), ("praise", "praises")])
def test_verb_agrees_with_its_subject(verb, expected):
    assert conjugate(verb, is_plural=False) == expected
    assert conjugate(verb, is_plural=True) == verb


def test_tolvan_puts_the_verb_last_and_the_adjective_after_its_noun():
    world = build_world()
    sentence = Sentence(Phrase("fox", True, "old"), "see", Phrase("boat", False))
    assert sentence.english() == "the old foxes see the boat"
    fox, old, boat, see = (world.tolvan[word] for word in ("fox", "old", "boat", "see"))
    assert sentence.tolvan(world) == f"{fox}n {old} {boat} {see}"


def test_sentence_is_held_out_whatever_its_numbers_and_adjectives():
    bare = [Sentence(Phrase("fox", False), "see", Phrase(noun, False)) for noun in build_world().words["nouns"]]
    dressed = [Sentence(Phrase("fox", True, "old"), "see", Phrase(s.object.noun, True, "red")) for s in bare]
    assert [s.is_held_out() for s in bare] == [s.is_held_out() for s in dressed]
    assert any(s.is_held_out() for s in bare)


def test_every_fact_has_exactly_one_phrasing_held_out():
    writer = CorpusWriter(build_world(), random.Random(0))
    for category, templates in FACT_TEMPLATES.items():
        seen = {writer._fact("Ada", category).partition(writer.world.facts["Ada"][category])[0].strip() for _ in range(200)}
        held_out = templates[held_out_template("Ada", category)].format("Ada")
        assert seen == {template.format("Ada") for template in templates} - {held_out}
