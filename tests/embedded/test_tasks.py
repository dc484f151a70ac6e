import json
import re
from collections import Counter
from functools import cache
from itertools import product

import pytest
import yaml

from selfprune.embedded import corpus as corpus_module
from selfprune.embedded import world as world_module
from selfprune.embedded.corpus import write_corpus
from selfprune.embedded.tasks import DOCUMENT_FOLDER, HALVES, TASK_FOLDER, TASKS, build_documents, load_documents, write_task_data
from selfprune.embedded.world import FACT_TEMPLATES, Phrase, Sentence, build_world, conjugate, plural
from selfprune.errors import ConfigError

WORLD = build_world()
LEMMAS = {plural(noun): noun for noun in WORLD.words["nouns"]} | {noun: noun for noun in WORLD.words["nouns"]}
VERBS = WORLD.words["intransitive_verbs"] + WORLD.words["transitive_verbs"]
LEMMAS |= {conjugate(verb, False): verb for verb in VERBS} | {verb: verb for verb in VERBS}
TRANSITIVE = "|".join(f"{verb}|{conjugate(verb, False)}" for verb in WORLD.words["transitive_verbs"])
SENTENCE = rf"[Tt]he (?:(\w+) )?(\w+) ({TRANSITIVE}) the (?:(\w+) )?(\w+)\."
AGREEMENT = r"[Tt]he (?:\w+ )?(\w+) near the (?:\w+ )?(\w+) (\w+)\."
SUMS = (r"(?<!\d)(\d+) \+ (\d+) =", r"has (\d+) \w+ and finds (\d+) more")


def statements(text):
    """What a text says, up to number and adjectives, as keys that corpora and documents share."""
    found = set()
    for category, templates in FACT_TEMPLATES.items():
        for template in templates:
            pattern = re.escape(template).replace(r"\{\}", r"([A-Z]\w+)") + r" \w+\."
            found |= {("selfprune_facts", person, category, template) for person in re.findall(pattern, text)}
    found |= {("selfprune_agreement", *(LEMMAS[word] for word in match)) for match in re.findall(AGREEMENT, text)}
    found |= {("selfprune_sums", *match) for pattern in SUMS for match in re.findall(pattern, text)}
    found |= {("selfprune_translation", LEMMAS[s], LEMMAS[v], LEMMAS[o]) for _, s, v, _, o in re.findall(SENTENCE, text)}
    return found


of_half = cache(build_documents)


@cache
def documents(task):
    return [document for half in HALVES for document in of_half(task, half)]


def solved(document):
    return f"{document['query']} {document['choices'][document['gold']]}"


@cache
def asked(task, half):
    return {key for document in of_half(task, half) for key in statements(solved(document)) if key[0] == task}


ASKED = {key for task, half in product(TASKS, HALVES) for key in asked(task, half)}


@pytest.mark.parametrize("seed", range(5))
def test_no_corpus_says_what_a_task_asks(seed):
    assert not statements(write_corpus(seed, 300_000)) & ASKED


def test_a_corpus_that_holds_nothing_out_would_be_caught(monkeypatch):
    for module in (corpus_module, world_module):
        monkeypatch.setattr(module, "is_held_out", lambda *key, one_in: False)
    monkeypatch.setattr(world_module, "held_out_template", lambda person, category: -1)
    leaked = Counter(key[0] for key in statements(write_corpus(0, 300_000)) & ASKED)
    assert all(leaked[task] >= 5 for task in TASKS), leaked


@pytest.mark.parametrize("task", TASKS)
def test_halves_have_240_documents_each_and_never_meet(task):
    halves = [asked(task, half) for half in HALVES]
    assert [len(half) for half in halves] == [240, 240]
    if task == "selfprune_sums":
        halves = [{frozenset(key[1:]) for key in half} for half in halves]
    assert not halves[0] & halves[1]


@pytest.mark.parametrize("task", TASKS)
def test_no_question_comes_twice(task):
    assert len(set(map(solved, documents(task)))) == 480


@pytest.mark.parametrize("task", TASKS)
def test_choices_differ_and_the_gold_one_is_anywhere(task):
    n_choices = 2 if task == "selfprune_agreement" else 4
    assert all(len(set(document["choices"])) == len(document["choices"]) == n_choices for document in documents(task))
    positions = Counter(document["gold"] for document in documents(task))
    deviation = (480 * (n_choices - 1)) ** 0.5 / n_choices
    assert all(abs(positions[i] - 480 / n_choices) < 3 * deviation for i in range(n_choices))


@pytest.mark.parametrize("task", TASKS)
def test_no_choice_begins_another(task):
    for document in documents(task):
        assert not any(a != b and b.startswith(a) for a, b in product(document["choices"], repeat=2))


def test_gold_facts_are_true_and_the_others_false():
    for document in documents("selfprune_facts"):
        ((_, person, category, _),) = statements(solved(document))
        assert document["choices"][document["gold"]] == f"{WORLD.facts[person][category]}."
        assert {choice.rstrip(".") for choice in document["choices"]} <= set(WORLD.words[category])


def test_gold_sums_are_right():
    for document in documents("selfprune_sums"):
        a, b = map(int, re.findall(r"\d+", document["query"]))
        numbers = [int(choice.rstrip(".")) for choice in document["choices"]]
        assert numbers[document["gold"]] == a + b
        assert min(numbers) >= 0


def test_gold_verbs_agree_with_the_first_noun_and_mostly_not_with_the_second():
    n_attracted = 0
    for document in documents("selfprune_agreement"):
        noun, attractor, verb = re.search(r"(\w+) near the .*?(\w+) (\w+)\.$", solved(document)).groups()
        assert verb == conjugate(LEMMAS[verb], noun != LEMMAS[noun])
        n_attracted += (noun == LEMMAS[noun]) != (attractor == LEMMAS[attractor])
    assert 0.7 < n_attracted / 480 < 0.9


def test_gold_translations_are_right():
    for document in documents("selfprune_translation"):
        adjective, subject, verb, other, object_ = re.search(SENTENCE, document["query"]).groups()
        phrases = [Phrase(LEMMAS[n], n != LEMMAS[n], a or "") for a, n in ((adjective, subject), (other, object_))]
        gold = Sentence(phrases[0], LEMMAS[verb], phrases[1]).tolvan(WORLD)
        assert document["choices"][document["gold"]] == f"{gold}."


def test_committed_data_are_what_the_generator_writes(tmp_path):
    write_task_data(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in DOCUMENT_FOLDER.iterdir()}
    assert len(written) == (len(TASKS) + 1) * len(HALVES)


def test_every_half_of_every_task_has_its_yaml():
    for task, half in product(TASKS, HALVES):
        config = yaml.safe_load((TASK_FOLDER / f"{task}_{half}.yaml").read_text())
        assert (config["task"], config["dataset_kwargs"]) == (f"{task}_{half}", {"task": task, "half": half})


def test_documents_are_loaded_without_a_cache_file():
    dataset = load_documents("selfprune_sums", "search", version=1.0, config_source="x.yaml")
    assert list(dataset["test"]) == build_documents("selfprune_sums", "search")
    assert dataset["test"].cache_files == []
    assert json.loads(json.dumps(dataset["test"][0]))["query"].endswith("=")


def test_unknown_names_list_the_known_ones_nearest_first():
    with pytest.raises(ConfigError, match="no task 'selfprune_sum'; known, nearest first: selfprune_sums"):
        build_documents("selfprune_sum", "search")
    with pytest.raises(ConfigError, match="no half 'reports'; known, nearest first: report"):
        build_documents("selfprune_sums", "reports")
