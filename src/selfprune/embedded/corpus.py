"""Texts of the embedded world, drawn from a seed."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from selfprune.embedded.world import (
    FACT_TEMPLATES,
    MAX_ADDEND,
    Phrase,
    Sentence,
    World,
    agreement_subject,
    as_sentence,
    build_world,
    conjugate,
    is_held_out,
    plural,
    written_templates,
)

QUESTIONS = {
    "towns": "Where does {} live? In",
    "jobs": "What is the trade of {}? A",
    "pets": "Which pet does {} keep? A",
    "foods": "What does {} love to eat? Some",
    "colours": "Which colour does {} wear? Always",
}


@dataclass
class CorpusWriter:
    """Writes documents of the world, one paragraph each.

    Example:
        >>> documents = CorpusWriter(build_world(), random.Random(0)).documents()
        >>> text = next(documents)
    """

    world: World
    rng: random.Random
    kinds: list[Callable[[], str]] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = [self.biography, self.questions, self.scene, self.sums, self.story_sum, self.counting, self.copying]
        self.kinds += [self.translation, self.biography, self.scene, self.sums, self.translation]

    def documents(self) -> Iterator[str]:
        """Endless documents, each kind with equal weight per entry of `kinds`."""
        while True:
            yield self.rng.choice(self.kinds)()

    def biography(self) -> str:
        """Several facts about one person, or one fact about several people."""
        people = self.rng.sample(self.world.words["people"], 2)
        categories = self.rng.sample(list(FACT_TEMPLATES), 3)
        return " ".join(self._fact(self.rng.choice(people) if i else people[0], c) for i, c in enumerate(categories))

    def questions(self) -> str:
        """Three questions about facts, answered."""
        people = self.rng.sample(self.world.words["people"], 3)
        categories = self.rng.choices(list(QUESTIONS), k=3)
        return " ".join(f"{QUESTIONS[c].format(p)} {self.world.facts[p][c]}." for p, c in zip(people, categories, strict=True))

    def scene(self) -> str:
        """Two sentences about moving things, one of which may carry an attractor between subject and verb."""
        return " ".join(as_sentence(self._agreement() if i else self._transitive()) for i in range(2))

    def sums(self) -> str:
        """Four additions."""
        pairs = [self._addends() for _ in range(4)]
        return " ".join(f"{a} + {b} = {a + b}." for a, b in pairs)

    def story_sum(self) -> str:
        """An addition told in words."""
        a, b = self._addends()
        person, thing = self.rng.choice(self.world.words["people"]), plural(self.rng.choice(self.world.words["nouns"]))
        return f"{person} has {a} {thing} and finds {b} more. Now {person} has {a + b} {thing}."

    def counting(self) -> str:
        """Counting up by one."""
        start, length = self.rng.randint(0, 80), self.rng.randint(4, 9)
        return f"Count from {start} to {start + length}: " + " ".join(str(start + i) for i in range(length + 1)) + "."

    def copying(self) -> str:
        """Unrelated words and numbers, repeated."""
        pool = self.world.words["nouns"] + self.world.words["foods"] + self.world.words["colours"]
        words = " ".join([*self.rng.sample(pool, self.rng.randint(3, 6)), str(self.rng.randint(0, 99))])
        return f"Say: {words}. Again: {words}."

    def translation(self) -> str:
        """Two sentences, each in both languages, in either direction."""
        pairs = []
        for _ in range(2):
            sentence = self._sentence()
            languages = [f"English: {sentence.english()}.", f"Tolvan: {sentence.tolvan(self.world)}."]
            pairs.append(" ".join(languages if self.rng.random() < 0.7 else languages[::-1]))
        return " ".join(pairs)

    def _fact(self, person: str, category: str) -> str:
        return f"{self.rng.choice(written_templates(person, category)).format(person)} {self.world.facts[person][category]}."

    def _addends(self) -> tuple[int, int]:
        while True:
            a, b = self.rng.randint(0, MAX_ADDEND), self.rng.randint(0, MAX_ADDEND)
            if not is_held_out("sum", a, b, one_in=5):
                return a, b

    def phrase(self) -> Phrase:
        """A random noun phrase."""
        adjectives = self.world.words["adjectives"] + self.world.words["colours"]
        adjective = self.rng.choice(adjectives) if self.rng.random() < 0.6 else ""
        return Phrase(self.rng.choice(self.world.words["nouns"]), self.rng.random() < 0.5, adjective)

    def sentence(self) -> Sentence:
        """A random transitive sentence, held out or not."""
        subject, verb, object_ = self.phrase(), self.rng.choice(self.world.words["transitive_verbs"]), self.phrase()
        return Sentence(subject, verb, object_)

    def _sentence(self) -> Sentence:
        sentence = self.sentence()
        while sentence.is_held_out():
            sentence = self.sentence()
        return sentence

    def _transitive(self) -> str:
        return self._sentence().english()

    def _agreement(self) -> str:
        while True:
            subject, attractor, verb = self.phrase(), self.phrase(), self.rng.choice(self.world.words["intransitive_verbs"])
            if not is_held_out("agreement", subject.noun, attractor.noun, verb, one_in=10):
                return f"{agreement_subject(subject, attractor)} {conjugate(verb, subject.is_plural)}"


def write_corpus(seed: int, n_characters: int) -> str:
    """Documents joined by newlines, at least `n_characters` characters in all.

    Args:
        seed: fixes the text.
        n_characters: its length, to the end of the last document.
    """
    documents, length = [], 0
    writer = CorpusWriter(build_world(), random.Random(seed)).documents()
    while length < n_characters:
        documents.append(next(writer))
        length += len(documents[-1]) + 1
    return "\n".join(documents) + "\n"
