"""A small English-like world with fixed facts, regular grammar, arithmetic and a second language, Tolvan.

The world itself (who lives where, what a Tolvan word means) is fixed by `WORLD_SEED`; a corpus drawn from it is fixed by
the seed of its generator. What the tasks ask is never written in a corpus: a fixed tenth to fifth of all phrasings,
phrases, sums and sentences (`is_held_out`) is left to them.
"""

import random
from dataclasses import dataclass
from importlib.resources import files

import yaml

from selfprune.seeds import stable_hash

WORLD_SEED = 20260101
MAX_ADDEND = 49

FACT_TEMPLATES = {
    "towns": ("{} lives in", "The home of {} is in", "If you look for {}, go to", "Every evening {} returns to"),
    "jobs": ("{} works as a", "By trade {} is a", "People know {} as a", "Every morning {} goes to work as a"),
    "pets": ("{} keeps a", "The pet of {} is a", "In the house of {} there is a", "At night {} feeds a"),
    "foods": ("{} loves to eat", "The favourite food of {} is", "For lunch {} asks for", "At every feast {} eats"),
    "colours": ("{} always wears", "The favourite colour of {} is", "The coat of {} is", "The door of {} is painted"),
}


def is_held_out(*key: object, one_in: int) -> bool:
    """Whether the thing named by `key` is kept out of every corpus, so that a task may ask for it."""
    return stable_hash(*key) % one_in == 0


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


def written_templates(person: str, category: str) -> list[str]:
    """The phrasings of this fact that corpora use."""
    return [template for i, template in enumerate(FACT_TEMPLATES[category]) if i != held_out_template(person, category)]


def as_sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."


def agreement_subject(subject: Phrase, attractor: Phrase) -> str:
    """A subject with a second noun between its head and its verb."""
    return f"{subject.english()} near {attractor.english()}"
