"""Multiple-choice documents over the embedded world, for lm-eval.

They ask what `world` keeps out of every corpus: facts in an unseen phrasing, agreement across an unseen noun, unseen sums
and translations of unseen sentences. Each thing that is asked for belongs to one half, so that a search that looks at the
search half learns nothing about the report half.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    held_out_template,
    is_held_out,
    written_templates,
)
from selfprune.errors import ConfigError, did_you_mean
from selfprune.seeds import stable_hash

if TYPE_CHECKING:
    from datasets import DatasetDict

HALVES = ("search", "report")
DOCUMENTS_PER_HALF = 240
STORY = "selfprune_story"
ONE_SCENE_IN = 5
"""Of the scenes that could begin a story, so that about as many are biographies."""
TASK_FOLDER = Path(__file__).parent / "lm_eval_tasks"
"""lm-eval's `include_path` for these tasks."""
DOCUMENT_FOLDER = TASK_FOLDER / "documents"

Document = dict[str, Any]
"""`query`, `choices`, and `gold`, the index of the right choice; of a story `query`, and `n_sentences`,
as many as it goes on with, which the world judges."""


def build_documents(task: str, half: str) -> list[Document]:
    """The documents of one half of a task; always the same.

    Args:
        task: one of `TASKS`, or the story.
        half: one of `HALVES`.

    Raises:
        ConfigError: when the task or the half is unknown.
    """
    for what, name, known in (("task", task, _WRITERS), ("half", half, HALVES)):
        if name not in known:
            raise ConfigError(f"the embedded world has no {what} {name!r}; known, nearest first: {did_you_mean(name, known)}")
    documents = defaultdict(list)
    for key, document in _WRITERS[task](build_world()):
        documents[key].append(document)
    keys = sorted(documents, key=lambda key: stable_hash(task, key))[HALVES.index(half) :: len(HALVES)]
    return [document for key in keys for document in documents[key]][:DOCUMENTS_PER_HALF]


def write_task_data(folder: Path) -> None:
    """Writes every half of every task as `<task>_<half>.jsonl`."""
    for task, half in product(_WRITERS, HALVES):
        lines = [json.dumps(document) + "\n" for document in build_documents(task, half)]
        (folder / f"{task}_{half}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def load_documents(task: str, half: str, **_metadata: Any) -> "DatasetDict":
    """The committed documents as lm-eval wants them, held in memory; named by the YAML files as `custom_dataset`."""
    # Imported here because it takes seconds, and only a run of lm-eval needs it.
    from datasets import Dataset, DatasetDict

    text = (DOCUMENT_FOLDER / f"{task}_{half}.jsonl").read_text(encoding="utf-8")
    return DatasetDict({"test": Dataset.from_list([json.loads(line) for line in text.splitlines()])})


def _facts(world: World) -> Iterator[tuple[str, Document]]:
    """Each fact in the phrasing that no corpus contains, against other values of its category."""
    for person, category in product(world.words["people"], FACT_TEMPLATES):
        rng = _generator("selfprune_facts", person, category)
        query = FACT_TEMPLATES[category][held_out_template(person, category)].format(person)
        gold = world.facts[person][category]
        wrong = rng.sample([value for value in world.words[category] if value != gold], 3)
        yield f"{person} {category}", _document(rng, query, gold, wrong)


def _agreement(world: World) -> Iterator[tuple[str, Document]]:
    """The verb after a noun that stands between it and its subject, four times in five of the other number."""
    nouns = world.words["nouns"]
    for noun, attractor, verb in product(nouns, nouns, world.words["intransitive_verbs"]):
        if not is_held_out("agreement", noun, attractor, verb, one_in=10):
            continue
        rng = _generator("selfprune_agreement", noun, attractor, verb)
        is_plural = rng.random() < 0.5
        attractor_is_plural = is_plural != (rng.random() < 0.8)
        subject = Phrase(noun, is_plural, _adjective(rng, world))
        query = agreement_subject(subject, Phrase(attractor, attractor_is_plural, _adjective(rng, world)))
        document = _document(rng, query[0].upper() + query[1:], conjugate(verb, is_plural), [conjugate(verb, not is_plural)])
        yield f"{noun} {attractor} {verb}", document


def _sums(_: World) -> Iterator[tuple[str, Document]]:
    """Additions against results that are off by one or by ten; both orders of two addends share a key."""
    for a, b in product(range(MAX_ADDEND + 1), repeat=2):
        if not is_held_out("sum", a, b, one_in=5):
            continue
        rng = _generator("selfprune_sums", a, b)
        near = [a + b + offset for offset in (1, -1, 10, -10) if a + b + offset >= 0]
        wrong = rng.sample(near, 3) if len(near) >= 3 else [*near, a + b + 2]
        yield f"{min(a, b)} {max(a, b)}", _document(rng, f"{a} + {b} =", str(a + b), map(str, wrong))


def _translations(world: World) -> Iterator[tuple[str, Document]]:
    """Sentences against translations of sentences that differ in one respect."""
    nouns = world.words["nouns"]
    for subject, verb, object_ in product(nouns, world.words["transitive_verbs"], nouns):
        if not Sentence(Phrase(subject, False), verb, Phrase(object_, False)).is_held_out():
            continue
        rng = _generator("selfprune_translation", subject, verb, object_)
        sentence = _sentence(rng, world, subject, verb, object_)
        wrong = [other.tolvan(world) for other in _distortions(sentence, world, rng)]
        document = _document(rng, f"English: {sentence.english()}. Tolvan:", sentence.tolvan(world), wrong)
        yield f"{subject} {verb} {object_}", document


def _stories(world: World) -> Iterator[tuple[str, Document]]:
    """The first sentence of a biography, in a phrasing of the corpus, or of a scene that is in no corpus."""
    for person, category in product(world.words["people"], FACT_TEMPLATES):
        rng = _generator(STORY, person, category)
        fact = f"{rng.choice(written_templates(person, category)).format(person)} {world.facts[person][category]}."
        yield f"{person} {category}", {"query": fact, "n_sentences": 2}
    nouns = world.words["nouns"]
    for subject, verb, object_ in product(nouns, world.words["transitive_verbs"], nouns):
        sentence = _sentence(_generator(STORY, subject, verb, object_), world, subject, verb, object_)
        if sentence.is_held_out() and stable_hash(STORY, subject, verb, object_) % ONE_SCENE_IN == 0:
            yield f"{subject} {verb} {object_}", {"query": as_sentence(sentence.english()), "n_sentences": 1}


def _distortions(sentence: Sentence, world: World, rng: random.Random) -> Iterator[Sentence]:
    """Another noun; another number; and another adjective, another verb or subject and object exchanged."""
    side = rng.choice(("subject", "object"))
    phrase = getattr(sentence, side)
    yield replace(sentence, **{side: replace(phrase, noun=_other(phrase.noun, world.words["nouns"], rng))})
    side = rng.choice(("subject", "object"))
    phrase = getattr(sentence, side)
    yield replace(sentence, **{side: replace(phrase, is_plural=not phrase.is_plural)})
    last = [replace(sentence, verb=_other(sentence.verb, world.words["transitive_verbs"], rng))]
    if sentence.subject != sentence.object:
        last.append(Sentence(sentence.object, sentence.verb, sentence.subject))
    if sentence.object.adjective:
        adjective = _other(sentence.object.adjective, _adjectives(world), rng)
        last.append(replace(sentence, object=replace(sentence.object, adjective=adjective)))
    yield rng.choice(last)


def _document(rng: random.Random, query: str, gold: str, wrong: Iterator[str] | list[str]) -> Document:
    """A document with shuffled choices.

    Each choice ends with a full stop, or a right answer that is the beginning of a wrong one (`4` and `47`, or `wait` and
    `waits` in pieces) would be the likelier of the two whatever the model knows.
    """
    choices = [f"{text}." for text in (gold, *wrong)]
    rng.shuffle(choices)
    return {"query": query, "choices": choices, "gold": choices.index(f"{gold}.")}


def _generator(*key: object) -> random.Random:
    return random.Random(stable_hash(*key))


def _adjectives(world: World) -> list[str]:
    return world.words["adjectives"] + world.words["colours"]


def _sentence(rng: random.Random, world: World, subject: str, verb: str, object_: str) -> Sentence:
    """One of these lemmas, whose numbers and adjectives are drawn."""
    phrases = [Phrase(noun, rng.random() < 0.5, _adjective(rng, world)) for noun in (subject, object_)]
    return Sentence(phrases[0], verb, phrases[1])


def _adjective(rng: random.Random, world: World) -> str:
    """An adjective or none, as often as in a corpus."""
    return rng.choice(_adjectives(world)) if rng.random() < 0.6 else ""


def _other(word: str, words: list[str], rng: random.Random) -> str:
    return rng.choice([other for other in words if other != word])


_WRITERS: dict[str, Callable[[World], Iterator[tuple[str, Document]]]] = {
    "selfprune_facts": _facts,
    "selfprune_agreement": _agreement,
    "selfprune_sums": _sums,
    "selfprune_translation": _translations,
    STORY: _stories,
}
TASKS = tuple(task for task in _WRITERS if task != STORY)
"""Those with choices."""
