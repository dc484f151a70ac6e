"""A small English-like world with fixed facts, regular grammar, arithmetic and a second language, Tolvan.

The world itself (who lives where, what a Tolvan word means) is fixed by `WORLD_SEED`; a corpus drawn from it is fixed by
the seed of its generator. What the tasks ask is never written in a corpus: a fixed tenth to fifth of all phrasings,
phrases, sums and sentences (`is_held_out`) is left to them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.resources import files

import yaml

WORLD_SEED = 20260101
MAX_ADDEND = 49

FACT_TEMPLATES = {
    "towns": ("{} lives in", "The home of {} is in", "If you look for {}, go to", "Every evening {} returns to"),
    "jobs": ("{} works as a", "By trade {} is a", "People know {} as a", "Every morning {} goes to work as a"),
    "pets": ("{} keeps a", "The pet of {} is a", "In the house of {} there is a", "At night {} feeds a"),
    "foods": ("{} loves to eat", "The favourite food of {} is", "For lunch {} asks for", "At every feast {} eats"),
    "colours": ("{} always wears", "The favourite colour of {} is", "The coat of {} is", "The door of {} is painted"),
}
QUESTIONS = {
    "towns": "Where does {} live? In",
    "jobs": "What is the trade of {}? A",
    "pets": "Which pet does {} keep? A",
    "foods": "What does {} love to eat? Some",
    "colours": "Which colour does {} wear? Always",
}


def is_held_out(*key: object, one_in: int) -> bool:
    """Whether the thing named by `key` is kept out of every corpus, so that a task may ask for it."""
    return stable_hash(*key) % one_in == 0


def stable_hash(*key: object) -> int:
    """A hash that is the same in every process and on every machine."""
    return int.from_bytes(blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class World:
    """The lexicon, the facts and the Tolvan dictionary.

    Attributes:
        words: lexicon category -> its words.
        facts: person -> category -> the value that is true of them.
        tolvan: English lemma -> Tolvan lemma.
    """

    words: dict[str, list[str]]
    facts: dict[str, dict[str, str]]
    tolvan: dict[str, str]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase such as `the red foxes`; `adjective` may be empty."""

    noun: str
    is_plural: bool
    adjective: str = ""

    def english(self) -> str:
        """`the red foxes`."""
        return " ".join(filter(None, ("the", self.adjective, plural(self.noun) if self.is_plural else self.noun)))

    def tolvan(self, world: World) -> str:
        """Noun first, then the adjective; the plural ends in -n; there is no article."""
        noun = world.tolvan[self.noun] + ("n" if self.is_plural else "")
        return " ".join(filter(None, (noun, world.tolvan.get(self.adjective, ""))))


@dataclass(frozen=True)
class Sentence:
    """A subject, a transitive verb and an object, in either language."""

    subject: Phrase
    verb: str
    object: Phrase

    def english(self) -> str:
        """Subject, verb, object."""
        return f"{self.subject.english()} {conjugate(self.verb, self.subject.is_plural)} {self.object.english()}"

    def tolvan(self, world: World) -> str:
        """Subject, object, verb; the verb does not agree."""
        return f"{self.subject.tolvan(world)} {self.object.tolvan(world)} {world.tolvan[self.verb]}"

    def is_held_out(self) -> bool:
        """Held out by its three lemmas, whatever the number and the adjectives."""
        return is_held_out("sentence", self.subject.noun, self.verb, self.object.noun, one_in=10)


def plural(noun: str) -> str:
    """The regular English plural (`foxes`, `boats`, `heroes`); `child` is irregular."""
    if noun == "child":
        return "children"
    return noun + ("es" if noun.endswith(("x", "o", "s", "ch", "sh")) else "s")


def conjugate(verb: str, is_plural: bool) -> str:
    """The verb agreeing with a third-person subject."""
    if is_plural:
        return verb
    if verb.endswith(("ch", "sh")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("ry") else verb + "s"


def build_world() -> World:
    """The one world that every corpus and task speaks of."""
    lexicon = yaml.safe_load(files(__package__).joinpath("lexicon.yaml").read_text())
    words = {category: text.split() for category, text in lexicon.items()}
    rng = random.Random(WORLD_SEED)
    facts = {person: {category: rng.choice(words[category]) for category in FACT_TEMPLATES} for person in words["people"]}
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    tolvan: dict[str, str] = {}
    for lemma in words["nouns"] + words["adjectives"] + words["colours"] + words["transitive_verbs"]:
        word = "".join(rng.sample(syllables, 2))
        while word in tolvan.values():
            word = "".join(rng.sample(syllables, 2))
        tolvan[lemma] = word
    return World(words, facts, tolvan)


def held_out_template(person: str, category: str) -> int:
    """The phrasing of this fact that no corpus contains."""
    return stable_hash("fact", person, category) % len(FACT_TEMPLATES[category])


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
        return " ".join(_as_sentence(self._agreement() if i else self._transitive()) for i in range(2))

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
        allowed = [t for i, t in enumerate(FACT_TEMPLATES[category]) if i != held_out_template(person, category)]
        return f"{self.rng.choice(allowed).format(person)} {self.world.facts[person][category]}."

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


def agreement_subject(subject: Phrase, attractor: Phrase) -> str:
    """A subject with a second noun between its head and its verb."""
    return f"{subject.english()} near {attractor.english()}"


def _as_sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


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
