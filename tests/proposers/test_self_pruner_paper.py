import json
import math
import random
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator
from language_space import Script
from small_space import GRID, SPACE, STEP, UNITS

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.errors import ConfigError, LanguageModelError
from selfprune.language_models.base import Reply
from selfprune.proposers.prompted.layer_rates import Granularity, LayerRates, parents_schema, parse_parents
from selfprune.proposers.prompted.replies import ReplyError
from selfprune.proposers.prompted.self_pruner_paper import SelfPrunerPaper, SelfPrunerPaperProposer

RATES = LayerRates(SPACE, Granularity.BLOCK, 1)
SMALL = SelfPrunerPaper(population=3, n_crossovers=2, n_mutations=2, n_iterations=2, n_parents=2, n_attempts=1)


class Draws:
    """Answers every prompt with numbers that its grammar allows, drawn from the seed of the call."""

    name = "draws"

    def __init__(self):
        self.asked = []

    def complete(self, prompt, schema, n, seed):
        self.asked.append((prompt, schema, n, seed))
        return [
            Reply(self._text(schema, random.Random(f"{seed}/{i}")), None, 1, 1, "", (len(self.asked) - 1, i)) for i in range(n)
        ]

    def _text(self, schema, rng):
        ((key, listed),) = schema["properties"].items()
        if "enum" in listed:
            return json.dumps({key: rng.choice(listed["enum"])})
        least, most = listed["items"]["minimum"], listed["items"]["maximum"]
        return json.dumps({key: [rng.randint(least, most) for _ in range(listed["minItems"])]})


class Refuses(Draws):
    """An endpoint that is down for prompts with this word."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def complete(self, prompt, schema, n, seed):
        replies = super().complete(prompt, schema, n, seed)
        return [Reply("", None, 0, 0, "status 503") for _ in replies] if self.word in prompt else replies


def rates(*percents):
    return json.dumps({"rates": percents})


def parents(*numbers):
    return json.dumps({"parents": numbers})


def candidates(proposals, first_id=0, score=lambda i: 1.0 + i):
    return [
        Candidate(first_id + i, "main", p, State.FAILED, reason=p.failure)
        if p.allocation is None
        else Candidate(first_id + i, "main", p, State.COMPLETE, score(i), 8, 64)
        for i, p in enumerate(proposals)
    ]


def read(text, config=SMALL):
    """What a single reply to the population prompt becomes."""
    return SelfPrunerPaperProposer(SPACE, Script([text]), 0, config).ask(1)[0]


def populated(texts, config=SMALL, wishes=((50, 60, 60, 70), (60, 60, 60, 60), (70, 60, 60, 50))):
    """A proposer whose population of three is scored, the first best, with a script for what follows, and that script."""
    script = Script([*(rates(*wish) for wish in wishes), *texts])
    proposer = SelfPrunerPaperProposer(SPACE, script, 0, config)
    proposer.tell(candidates(proposer.ask(3)))
    script.asked.clear()
    return proposer, script


def converse(language_model, config, n=20, seed=0):
    """All rounds until the proposer has no more to say."""
    proposer = SelfPrunerPaperProposer(SPACE, language_model, seed, config)
    rounds, n_told = [], 0
    while asked := proposer.ask(n):
        rounds.append(asked)
        proposer.tell(candidates(asked, n_told, lambda i: math.sin(17 * (n_told + i)) + 2))  # noqa: B023
        n_told += len(asked)
    return rounds


def assert_on_budget(allocation):
    GRID.check(allocation)
    assert 0 <= GRID.n_removed_weights(allocation) - SPACE.target.n_weights < STEP


def test_a_reply_becomes_the_allocation_on_the_budget_in_which_all_units_of_a_block_share_its_rate():
    proposal = read(rates(50, 55, 65, 70))
    assert proposal.allocation == SPACE.project({u.name: (0.5, 0.55, 0.65, 0.7)[u.block] for u in UNITS})
    assert_on_budget(proposal.allocation)
    assert (proposal.proposer, proposal.operator, proposal.failure, proposal.repair) == (
        "self_pruner_paper",
        "population",
        "",
        "",
    )


def test_a_unit_can_have_a_rate_of_its_own():
    config = replace(SMALL, granularity=Granularity.UNIT)
    percents = [50 + i for i in range(len(UNITS))]
    proposal = read(rates(*percents), config)
    assert proposal.allocation == SPACE.project({u.name: p / 100 for u, p in zip(UNITS, percents, strict=True)})
    assert read(rates(50, 60), config).failure.startswith("rates needs 16 percents, got 2")
    assert LayerRates(SPACE, Granularity.UNIT, 1).order == "q k up down of the first block, then of the next"


@pytest.mark.parametrize(
    ("text", "expected", "repair"),
    [
        (rates(50, 70), (50, 57, 63, 70), "2 rates interpolated to 4"),
        (rates(40, 50, 60, 60, 70, 80, 80), (40, 60, 70, 80), "7 rates interpolated to 4"),
        (rates(-5, 40, 1e30, 105), (0, 40, 99, 99), "percents clipped to [0, 99]"),
        (rates(0.5, 0.6, 0.6, 0.7), (50, 60, 60, 70), "fractions read as percents"),
        (rates(50.4, 60, 60, 70), (50, 60, 60, 70), "percents rounded to multiples of 1"),
        (rates("50%", "60", " 60 ", 70.0), (50, 60, 60, 70), "a number in quotes"),
        ("I take [50%, 60%, 60%, 70%].", (50, 60, 60, 70), "a bare list read"),
        ("Of [60, 60, 60, 60] I make [50, 60, 60, 70]; see [a] and {}", (50, 60, 60, 70), "a bare list read"),
        ('{"pruning rates": [50, 60, 60, 70]}', (50, 60, 60, 70), "a bare list read"),
        (f"```json\n{rates(50, 60, 60, 70)}\n```", (50, 60, 60, 70), ""),
        (rates(10, 20, 20, 30), (10, 20, 20, 30), "mean moved to the target"),
    ],
)
def test_what_is_meant_is_repaired_and_the_repair_is_said(text, expected, repair):
    proposal = read(text)
    assert proposal.allocation == SPACE.project({u.name: expected[u.block] / 100 for u in UNITS})
    assert proposal.repair.removesuffix("; mean moved to the target") == repair


def test_rates_can_be_coarser():
    coarse = LayerRates(SPACE, Granularity.BLOCK, 10)
    schema = coarse.schema()
    assert Draft202012Validator(schema).is_valid({"rates": [0, 50, 60, 90]})
    assert not Draft202012Validator(schema).is_valid({"rates": [0, 55, 60, 90]})
    assert coarse.parse(rates(54, 55, 99, 0)) == (
        (50, 60, 90, 0),
        ["percents clipped to [0, 90]", "percents rounded to multiples of 10"],
    )
    assert coarse.shown(None) == (60,) * 4


def test_what_is_shown_is_read_back():
    allocation = SPACE.project({u.name: (0.5, 0.55, 0.65, 0.7)[u.block] for u in UNITS})
    shown, repairs = RATES.parse(RATES.text(allocation))
    assert (shown, repairs) == (RATES.shown(allocation), [])
    assert RATES.mean(shown) == pytest.approx(60, abs=0.5)


def test_the_grammar_of_rates_is_one_whole_percent_per_layer():
    validator = Draft202012Validator(RATES.schema())
    assert validator.is_valid(json.loads(RATES.text(None)))
    for wrong in ([60] * 3, [60] * 5, [60, 60, 60, 100], [60, 60, 60, -1], [60, 60, 60, 0.5]):
        assert not validator.is_valid({"rates": wrong})


@pytest.mark.parametrize(("n_parents", "n_shown"), [(2, 2), (4, 8), (10, 30)])
def test_the_grammar_of_parents_is_distinct_numbers_as_far_as_they_can_be_listed(n_parents, n_shown):
    validator = Draft202012Validator(parents_schema(n_parents, n_shown))
    assert validator.is_valid({"parents": list(range(1, n_parents + 1))})
    assert not validator.is_valid({"parents": list(range(n_parents))})
    assert not validator.is_valid({"parents": [n_shown + 1, *range(1, n_parents)]})
    assert validator.is_valid({"parents": [1] * n_parents}) == (n_shown == 30)


def test_parents_are_read_from_numbers_that_start_at_one():
    assert parse_parents(parents(3, 1), 2, 3) == ([2, 0], [])
    assert parse_parents(parents(3, 3, 9, 1), 3, 3) == (
        [2, 0],
        ["numbers out of range or named twice left out", "2 parents named instead of 3"],
    )
    assert parse_parents("[1, 2, 3]", 2, 3) == ([0, 1], ["a bare list read", "3 parents named instead of 2"])
    for text in (parents(1, 1), parents(0, 4), parents(1.5, 2), parents(), parents("a", "b"), "none"):
        with pytest.raises(ReplyError):
            parse_parents(text, 2, 3)


def test_the_prompts_hold_the_task_what_is_known_and_the_form():
    proposer, script = populated([parents(1, 3), rates(55, 60, 60, 65), rates(56, 60, 60, 64), rates(45, 60, 60, 75), "?"])
    proposer.ask(4)
    selection, first, second, mutation, other = (asked[0] for asked in script.asked)
    shown = [json.dumps({"rates": list(wish)}, separators=(",", ":")) for wish in ((50, 60, 60, 70), (60,) * 4, (70, 60, 60, 50))]
    assert [line for line in selection.splitlines() if line[0].isdigit()] == [
        f"{i + 1}. score {i + 1} {shown[i]}" for i in range(3)
    ]
    assert "Select 2 different parents" in selection
    assert '{"parents":[1,2]}' in selection
    assert first.splitlines()[1:3] == [f"score 1 {shown[0]}", f"score 3 {shown[2]}"]
    assert second.splitlines()[1:3] == [f"score 3 {shown[2]}", f"score 1 {shown[0]}"]
    assert mutation.splitlines()[1] == f"score 1 {shown[0]}"
    assert other.splitlines()[1] == f"score 3 {shown[2]}"
    for prompt in (first, mutation):
        assert "The mean of its 4 rates must be 60." in prompt
        assert '{"rates":[60,60,60,60]}' in prompt
    for prompt, *_ in script.asked:
        assert "$" not in prompt
        assert prompt.endswith("better:")


def test_the_population_prompt_shows_the_newest_of_what_was_proposed():
    script = Script([rates(50 + i, 60, 60, 70 - i) for i in range(3)])
    SelfPrunerPaperProposer(SPACE, script, 0, replace(SMALL, n_shown=2, n_replies_per_call=1)).ask(3)
    shown = [[line for line in prompt.splitlines() if line.startswith("{")] for prompt, *_ in script.asked]
    assert [len(lines) for lines in shown] == [0, 1, 2]
    assert f"4 layers and {GRID.n_weights():,} weights" in script.asked[0][0]
    assert shown[2][1] == RATES.text(SPACE.project({u.name: (0.51, 0.6, 0.6, 0.69)[u.block] for u in UNITS}))


def test_the_published_numbers_are_the_defaults_and_the_search_ends_as_published():
    language_model = Draws()
    rounds = converse(language_model, SelfPrunerPaper())
    assert [len(asked) for asked in rounds] == [20, 10] + [20] * 20
    assert [[p.operator for p in asked] for asked in rounds[:2]] == [["population"] * 20, ["population"] * 10]
    for asked in rounds[2:]:
        assert [p.operator for p in asked] == ["crossover"] * 10 + ["mutation"] * 10
        assert [len(p.parents) for p in asked] == [2] * 10 + [1] * 10
    assert all(p.allocation is None or assert_on_budget(p.allocation) is None for asked in rounds for p in asked)
    n_first = [n for _, _, n, _ in language_model.asked[:3]]
    assert n_first == [10, 10, 10]
    assert len({seed for *_, seed in language_model.asked}) == len(language_model.asked)


@pytest.mark.parametrize("n", [1, 3, 7, 100])
def test_every_iteration_has_its_children_however_many_are_asked_for_at_once(n):
    rounds = converse(Draws(), replace(SMALL, n_iterations=3), n)
    operators = [p.operator for asked in rounds for p in asked]
    assert operators == ["population"] * 3 + ["crossover", "crossover", "mutation", "mutation"] * 3
    assert max(map(len, rounds)) <= min(n, 4)


def test_nothing_is_asked_before_the_fates_are_told():
    proposer = SelfPrunerPaperProposer(SPACE, Draws(), 0, SMALL)
    first, second = proposer.ask(2), proposer.ask(9)
    assert (len(first), len(second)) == (2, 1)
    assert proposer.ask(9) == []
    proposer.tell(candidates([*first, *second]))
    assert len(proposer.ask(9)) == 4


def test_only_what_came_of_the_own_prompts_is_selected_from_and_the_best_survive():
    proposer, script = populated([parents(1, 2), *["?"] * 4, parents(2, 3), *["?"] * 4], replace(SMALL, population=3))
    proposer.ask(4)
    children = [SPACE.project({u.name: 0.6 + 0.01 * i * (u.block - 1.5) for u in UNITS}) for i in (1, 2, 3)]
    told = [
        Candidate(3, "main", Proposal(children[0], "random"), State.COMPLETE, 0.1, 8),
        Candidate(4, "main", Proposal(children[1], "self_pruner_paper"), State.COMPLETE, 0.5, 8),
        Candidate(5, "main", Proposal(children[2], "self_pruner_paper"), State.STOPPED, 0.2, 4),
    ]
    proposer.tell(told)
    script.asked.clear()
    (child,) = proposer.ask(1)
    assert [line.split()[2] for line in script.asked[0][0].splitlines() if line[0].isdigit()] == ["0.5", "1", "2"]
    assert child.parents == (0, 1)


def test_a_selection_that_cannot_be_read_takes_the_best_two_and_every_child_says_so():
    proposer, _ = populated(["the good ones", *(rates(50 + i, 61, 60, 69 - i) for i in range(1, 5))])
    children = proposer.ask(4)
    assert {p.parents for p in children} == {(0, 1), (1, 0), (0,), (1,)}
    assert [p.repair for p in children] == ["selection: the best two taken (no list of parents)"] * 4


def test_a_mended_selection_is_said():
    proposer, _ = populated([parents(3, 3, 1), rates(51, 61, 60, 68)])
    (child,) = proposer.ask(1)
    assert (child.parents, child.repair) == ((2, 0), "selection: numbers out of range or named twice left out")


@pytest.mark.parametrize(
    ("text", "known"),
    [(rates(60, 60, 60, 60), 1), (rates(50, 60, 60, 70), 0), (rates(59, 59, 59, 59), 1)],
)
def test_a_child_that_is_known_is_a_failure(text, known):
    proposer, _ = populated([parents(1, 2), text])
    (child,) = proposer.ask(1)
    assert child.allocation is None
    assert child.failure == f"duplicate of candidate {known}: {text}"


def test_a_copy_of_a_list_that_was_shown_is_a_duplicate_though_it_was_rounded():
    odd = SPACE.project({u.name: 0.6 + 0.004 * (u.block - 1.5) for u in UNITS})
    proposer = SelfPrunerPaperProposer(SPACE, Script([RATES.text(odd)]), 0, SMALL)
    assert SPACE.project(RATES.expand(RATES.shown(odd))) != odd
    proposer.tell([Candidate(7, "main", Proposal(odd, "self_pruner_paper"), State.COMPLETE, 1.0, 8)])
    assert proposer.ask(1)[0].failure.startswith("duplicate of candidate 7")


def test_an_equal_reply_of_one_call_is_a_duplicate_and_another_is_asked_for():
    texts = [rates(50, 60, 60, 70), rates(50, 60, 60, 70), "?", "?", rates(51, 60, 60, 69)]
    script = Script(texts)
    first, second, third = SelfPrunerPaperProposer(SPACE, script, 0, replace(SMALL, n_attempts=2)).ask(3)
    assert [n for _, _, n, _ in script.asked] == [3, 2]
    assert first.repair == ""
    assert (second.failure, second.repair) == ("no list of rates: ?", "asked 2 times")
    assert (third.failure, third.repair) == ("", "asked 2 times")
    once = SelfPrunerPaperProposer(SPACE, Script(texts), 0, SMALL).ask(3)
    assert [p.failure.split(":")[0] for p in once] == ["", "duplicate of an earlier proposal", "no list of rates"]


@pytest.mark.parametrize(
    "text",
    ["", "I cannot.", "{", "[]", "{}", rates(), rates(60), rates(60, None), '{"rates":60}', '{"rates":[NaN,1,2,3]}', "[" * 5000,
     '{"rates":[50,60,6', '{"rates":[[50,60,60,70]]}', '{"a":' * 3000, rates(1e999, 1), rates(True, False, True, True)],
)  # fmt: skip
def test_a_reply_that_cannot_be_read_is_a_failure_that_keeps_its_beginning(text):
    proposal = read(text)
    if text == '{"rates":[[50,60,60,70]]}':
        assert "a percent must be a number" in proposal.failure
    assert proposal.allocation is None
    assert proposal.failure.endswith(f": {text[:200]}")
    assert len(proposal.failure) > len(text[:200]) + 2


def test_an_endpoint_that_does_not_answer_is_a_failure_that_is_not_asked_again():
    language_model = Refuses("Mutate")
    proposer = SelfPrunerPaperProposer(SPACE, language_model, 0, replace(SMALL, n_attempts=3))
    proposer.tell(candidates(proposer.ask(3)))
    children = proposer.ask(4)
    assert [p.failure for p in children] == ["", "", "status 503", "status 503"]
    assert [p.operator for p in children[2:]] == ["mutation"] * 2
    assert sum("Mutate" in prompt for prompt, *_ in language_model.asked) == 2


def test_an_endpoint_that_does_not_select_leaves_the_best_two():
    language_model = Refuses("Select")
    proposer = SelfPrunerPaperProposer(SPACE, language_model, 0, replace(SMALL, n_attempts=3))
    proposer.tell(candidates(proposer.ask(3)))
    assert all(p.repair.startswith("selection: the best two taken (status 503)") for p in proposer.ask(4))
    assert sum("Select" in prompt for prompt, *_ in language_model.asked) == 1


def test_an_iteration_without_two_parents_fills_the_population():
    rounds = converse(Refuses("Chosen so far"), SMALL)
    assert [[p.operator for p in asked] for asked in rounds] == [["population"] * 3, *[["population"] * 4] * 2]
    assert all(p.failure == "status 503" for asked in rounds for p in asked)


def test_a_model_that_gives_too_few_replies_leaves_failures():
    class Silent:
        name = "silent"

        def complete(self, prompt, schema, n, seed):
            return []

    proposals = SelfPrunerPaperProposer(SPACE, Silent(), 0, SMALL).ask(9)
    assert [p.failure for p in proposals] == ["the language model gave no reply"] * 3


def test_a_language_model_that_cannot_serve_is_told():
    with pytest.raises(LanguageModelError, match="left"):
        SelfPrunerPaperProposer(SPACE, Script([]), 0, SMALL).ask(1)


def test_every_proposal_names_the_reply_that_it_was_read_from():
    rounds = converse(Draws(), SMALL)
    assert [p.reply for p in rounds[0]] == [(0, 0), (0, 1), (0, 2)]
    # Call 1 selects.
    assert [p.reply for p in rounds[1]] == [(call, 0) for call in (2, 3, 4, 5)]


def test_the_same_seed_and_fates_repeat_and_another_seed_does_not():
    def run(seed):
        language_model = Draws()
        return converse(language_model, replace(SMALL, n_parents=3), 5, seed), language_model.asked

    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]


def test_prompts_stay_compact():
    language_model = Draws()
    converse(language_model, SelfPrunerPaper(n_iterations=2))
    assert max(len(prompt) for prompt, *_ in language_model.asked) < 900


@pytest.mark.parametrize(
    ("name", "value"),
    [("population", 1), ("n_parents", 1), ("n_shown", 1), ("n_attempts", 0), ("n_replies_per_call", 0), ("resolution", 0),
     ("n_iterations", -1), ("n_mutations", -1), ("n_crossovers", -1)],
)  # fmt: skip
def test_settings_below_the_least_fail(name, value):
    with pytest.raises(ConfigError, match=f"{name} .* must be at least {value + 1}, got {value}"):
        SelfPrunerPaper(**{name: value})


@pytest.mark.parametrize("wrong", [{"resolution": 100}, {"n_crossovers": 0, "n_mutations": 0}])
def test_settings_that_leave_nothing_to_propose_fail(wrong):
    with pytest.raises(ConfigError, match="a resolution of at most 99 and a child"):
        SelfPrunerPaper(**wrong)


JUNK = [
    None, True, "", "x", "60%", "٦٠", "½", "🙂", float("nan"), float("inf"), -1e308, 10**400, 1e-320, [], {}, [[[]]],
    {"rates": [1]}, {"rates": {"rates": []}}, -0.0, "1e999", " 7 ", "\x00", "0x10", 99.999, 3,
]  # fmt: skip


def mangled(rng):
    """A reply that was good once: entries exchanged for junk, keys renamed, wrapped, cut off, scrambled."""
    entries = [
        rng.choice(JUNK) if rng.random() < 0.08 else rng.randint(-20, 120) for _ in range(rng.choice([0, 2, 4, 4, 9, 16, 16]))
    ]
    key = rng.choice(["rates", "rates", "parents", "Rates", "päreñts"])
    value = rng.choice([{key: entries}, {key: entries}, entries, {key: {key: entries}}, {key: [entries]}, {"a": {key: entries}}])
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.3:
        text = rng.choice(["Sure: ", "{", "[" * rng.randint(1, 400), '{"rates":', "\ufeff", "```json\n"]) + text
    if rng.random() < 0.3:
        text = text[: rng.randint(0, len(text))]
    if rng.random() < 0.3:
        text += rng.choice(["```", text, "]" * 99, "}", "\ud800", " % ", "{" * 300, "//", ", [1,2]"])
    if rng.random() < 0.2:
        at = rng.randint(0, len(text))
        text = text[:at] + chr(rng.choice([0, 34, 44, 91, 93, 123, 125, 0x2028, 0x1F600, 0x10FFFF])) + text[at:]
    return text


class Mangles:
    """A language model that answers everything with mangled replies."""

    name = "mangles"

    def complete(self, prompt, schema, n, seed):
        return [Reply(mangled(random.Random(f"{seed}/{i}")), None, 1, 1) for i in range(n)]


@pytest.mark.parametrize("granularity", Granularity)
def test_thousands_of_mangled_replies_neither_crash_nor_leave_the_budget(granularity):
    config = SelfPrunerPaper(n_attempts=1, granularity=granularity, resolution=5)
    fates = {"whole": 0, "mended": 0, "failed": 0}
    for seed in range(5):
        for proposal in (p for asked in converse(Mangles(), config, seed=seed) for p in asked):
            if proposal.allocation is None:
                assert proposal.failure
                fates["failed"] += 1
            else:
                assert_on_budget(proposal.allocation)
                fates["mended" if proposal.repair else "whole"] += 1
    # Or else the fuzz would test nothing.
    assert fates["failed"] > 500
    assert fates["mended"] > 100
