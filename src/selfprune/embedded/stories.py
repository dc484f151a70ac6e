"""Whether what a model writes about the embedded world holds there: its grammar, its facts and its sums are known.

A prompt is the first sentence of a biography or of a scene, and the model goes on. Sentences are judged one by one: a fact must
be true of that person, a noun phrase must be one, a verb must agree with its subject, and a sum must come out.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from selfprune.embedded.world import FACT_TEMPLATES, Phrase, World, build_world, conjugate, plural

N_GRAM = 3

_world = cache(build_world)


def score(document: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """What lm-eval notes of a continuation; named by the YAML files as `process_results`.

    Args:
        document: with `n_sentences`, as many as a story that begins so goes on with.
        results: the continuation.

    Returns:
        `holds`: the share of the first `n_sentences` that hold, of which one that is missing or has no end does not; `repeats`:
        the share of runs of three words that stood there before; `words`: how many there are.
    """
    text, n_sentences = results[0], document["n_sentences"]
    sentences = re.findall(r"[^.]+(?=\.)", text)[:n_sentences]
    words = text.split()
    runs = [tuple(words[i : i + N_GRAM]) for i in range(len(words) - N_GRAM + 1)]
    return {
        "holds": sum(holds(sentence.strip(), _world()) for sentence in sentences) / n_sentences,
        "repeats": 1 - len(set(runs)) / len(runs) if runs else 0.0,
        "words": float(len(words)),
    }


def holds(sentence: str, world: World) -> bool:
    """Whether a sentence, without its full stop, is one of the world's and true where it states a fact.

    Args:
        sentence: as `Ada lives in Rome`, `The red foxes near the boat wait`, `The girl sees the old boats` or `3 + 4 = 7`.
        world: where it is to hold.
    """
    if sum_ := re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", sentence):
        return int(sum_[1]) + int(sum_[2]) == int(sum_[3])
    return any(fact == sentence for fact in _facts(world, sentence)) or _is_scene(sentence, world)


def _facts(world: World, sentence: str) -> Iterator[str]:
    """The facts of whom a sentence names, in every phrasing."""
    for person in world.facts.keys() & set(re.findall(r"\w+", sentence)):
        for category, templates in FACT_TEMPLATES.items():
            yield from (f"{template.format(person)} {world.facts[person][category]}" for template in templates)


def _is_scene(sentence: str, world: World) -> bool:
    words = (sentence[:1].lower() + sentence[1:]).split()
    for subject, rest in _phrases(words, world):
        if rest[:1] == ["near"]:
            ends = [end for _, end in _phrases(rest[1:], world)]
            verbs = {conjugate(verb, subject.is_plural) for verb in world.words["intransitive_verbs"]}
            if any(len(end) == 1 and end[0] in verbs for end in ends):
                return True
        verbs = {conjugate(verb, subject.is_plural) for verb in world.words["transitive_verbs"]}
        if rest and rest[0] in verbs and any(not end for _, end in _phrases(rest[1:], world)):
            return True
    return False


def _phrases(words: list[str], world: World) -> Iterator[tuple[Phrase, list[str]]]:
    """The noun phrases that words may begin with, and what follows them."""
    if words[:1] != ["the"]:
        return
    adjectives = {"", *world.words["adjectives"], *world.words["colours"]}
    for adjective, rest in (("", words[1:]), (words[1] if len(words) > 1 else "", words[2:])):
        if adjective in adjectives and rest:
            for is_plural in (False, True):
                for noun in world.words["nouns"]:
                    if rest[0] == (plural(noun) if is_plural else noun):
                        yield Phrase(noun, is_plural, adjective), rest[1:]
