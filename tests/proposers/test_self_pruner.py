import json
import math
import random

import pytest
from analytic_oracle import AnalyticOracle
from hypothesis import given
from hypothesis import strategies as st
from language_space import ALLOCATION, SHORT, SPACE, Script, assert_on_budget, candidate, make_space

from selfprune.allocations.candidate import State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError, LanguageModelError
from selfprune.language_models.base import Reply
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.coefficients import Coefficients
from selfprune.proposers.prompted.operators import OPERATORS, PromptContext
from selfprune.proposers.prompted.replies import ReplyError, object_schema, parse_json_object
from selfprune.proposers.prompted.self_pruner import SelfPruner, SelfPrunerProposer
from selfprune.proposers.prompted.unit_view import UnitView
from selfprune.proposers.unit_values import UnitValues

VIEW = UnitView(SPACE)
MOVE = {"from": "0 down", "to": "3 k", "percent": 25}


def coefficients(first=-10, **offset):
    return json.dumps(
        {
            "offset": {**dict.fromkeys(SHORT, 0), **offset},
            "slope": dict.fromkeys(SHORT, 0),
            "first": first,
            "last": 0,
            "spread": 100,
        }
    )


def edits(*moves):
    return json.dumps({"moves": list(moves or [MOVE])})


def proposer_of(texts, space=SPACE, logprobs_of=None, **settings):
    script = Script(texts, logprobs_of)
    return SelfPrunerProposer(space, script, seed=0, config=SelfPruner(**settings)), script


def in_edits(texts, allocation=ALLOCATION, space=SPACE, **settings):
    """A proposer whose incumbent is candidate 7, and which asks for edits."""
    proposer, script = proposer_of(texts, space, operators=["edits"], n_coefficient_calls=0, **settings)
    proposer.tell([candidate(7, 1.0, allocation, gain=0.5)])
    return proposer, script


def test_a_reply_becomes_the_allocation_on_the_budget_nearest_to_its_coefficients():
    proposer, _ = proposer_of([coefficients(q=-20, up=5)])
    (proposal,) = proposer.ask(1)
    assert_on_budget(proposal.allocation)
    wished = Coefficients({"self_attn.q_proj": -20.0, "mlp.up_proj": 5.0}, first=-10.0).expand(VIEW)
    assert proposal.allocation == SPACE.project(wished)
    assert (proposal.proposer, proposal.operator, proposal.failure, proposal.repair) == ("self_pruner", "coefficients", "", "")


@pytest.mark.parametrize("n", [1, 4, 7])
def test_ask_calls_as_often_as_needed_for_n_proposals(n):
    proposer, script = proposer_of([coefficients(first=i) for i in range(n)], n_replies_per_call=3, n_coefficient_calls=9)
    assert len(proposer.ask(n)) == n
    assert [asked[2] for asked in script.asked] == [min(3, n - 3 * k) for k in range(math.ceil(n / 3))]


def test_calls_have_seeds_of_their_own_that_follow_from_the_seed():
    def seeds(seed):
        script = Script(["?"] * 6)
        SelfPrunerProposer(SPACE, script, seed=seed, config=SelfPruner(["edits"], n_replies_per_call=2)).ask(6)
        return [asked[3] for asked in script.asked]

    assert len(set(seeds(0))) == 3
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_operators_take_turns_after_the_first_calls():
    proposer, _ = proposer_of(["?"] * 6, n_coefficient_calls=2, n_replies_per_call=1)
    assert [proposal.operator for proposal in proposer.ask(6)] == [
        "coefficients",
        "coefficients",
        "edits",
        "choice",
        "edits",
        "choice",
    ]


@pytest.mark.parametrize("text", ["", "I cannot.", "{", "{" * 5000, '{"a":' * 3000, coefficients()[:-40]])
def test_a_reply_that_cannot_be_read_is_a_failure_that_keeps_its_text(text):
    (proposal,) = proposer_of([text])[0].ask(1)
    assert proposal.allocation is None
    assert proposal.failure.endswith(f": {text[:200]}")
    assert len(proposal.failure) > len(text[:200]) + 2


def test_what_was_mended_is_said():
    (proposal,) = proposer_of(['{"offset": {"q": "500%"}}'])[0].ask(1)
    assert_on_budget(proposal.allocation)
    assert proposal.repair.split("; ")[:2] == ["offset of a kind left out", "a number in quotes"]


def test_an_allocation_that_is_known_is_a_duplicate():
    proposer, _ = proposer_of([coefficients(), coefficients(), coefficients(first=-11)], n_coefficient_calls=3)
    first, second, third = proposer.ask(3)
    assert second.failure.startswith("duplicate of an earlier proposal")
    assert third.allocation
    other, _ = proposer_of([coefficients()])
    other.tell([candidate(3, 1.0, first.allocation)])
    assert other.ask(1)[0].failure.startswith("duplicate of candidate 3")


def test_the_best_on_the_budget_are_shown_worst_first_and_are_the_parents():
    proposer, script = proposer_of(["?"], n_shown=2)
    dense = {unit.name: 0 for unit in SPACE.grid.units}
    wishes = [{u.name: SPACE.target_sparsity + i * 0.1 * (u.block - 1) for u in SPACE.grid.units} for i in range(3)]
    one, two, three = (SPACE.project(wish) for wish in wishes)
    proposer.tell([candidate(0, 0.0, dense), candidate(1, 0.3, one), candidate(2, 0.1, two), candidate(3, 0.2, three)])
    proposer.tell([candidate(4, 0.05, state=State.STOPPED), candidate(5, None, None, state=State.FAILED)])
    assert proposer.ask(1)[0].parents == (2, 3)
    prompt = script.asked[0][0]
    assert [line.split(":")[0] for line in prompt.splitlines() if line.startswith("score")] == ["score 0.2", "score 0.1"]


def test_edits_move_the_incumbent_whoever_proposed_it():
    proposer, script = in_edits([edits(), edits({**MOVE, "percent": 5})])
    (proposal,) = proposer.ask(1)
    assert_on_budget(proposal.allocation)
    changed = {
        name: proposal.allocation[name] - level for name, level in ALLOCATION.items() if proposal.allocation[name] != level
    }
    assert changed == {"layers.0.mlp.down_proj": -300, "layers.3.self_attn.k_proj": 300}
    assert (proposal.operator, proposal.parents) == ("edits", (7,))
    proposer.tell([candidate(8, 0.9, proposal.allocation, "self_pruner", gain=0.1)])
    assert proposer.ask(1)[0].parents == (8,)
    assert "score 0.9," in script.asked[-1][0]


def test_a_prompt_tells_how_the_last_moves_fared():
    proposer, script = in_edits([edits(), edits({**MOVE, "percent": 5}), "?"])
    good, bad = proposer.ask(2)
    proposer.tell([candidate(8, 0.9, good.allocation, "self_pruner", gain=0.1), candidate(9, 1.9, bad.allocation, "self_pruner")])
    proposer.ask(1)
    prompt = script.asked[-1][0]
    assert "Accepted: 0 down > 3 k 25%\nRejected: 0 down > 3 k 5%\n" in prompt


def test_a_move_from_a_unit_to_itself_is_a_duplicate():
    proposer, _ = in_edits([edits({**MOVE, "to": "0 down"})])
    assert proposer.ask(1)[0].failure.startswith("duplicate of candidate 7")


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_grammar_asks_for_what_is_read(operator):
    worth = UnitValues.of_sensitivities(SPACE)
    request = OPERATORS[operator](PromptContext(VIEW, ALLOCATION, 7, 1.0, [candidate(7, 1.0)], worth))
    answer = {
        "coefficients": lambda: coefficients(),
        "edits": lambda: edits(
            {end: request.schema["properties"]["moves"]["items"]["properties"][end]["enum"][0] for end in ("from", "to")}
            | {"percent": 9}
        ),
        "choice": lambda: json.dumps({"choice": request.options[2]}),
    }[operator]()
    repairs = []
    assert_on_budget(SPACE.project(request.read(answer, repairs)))
    assert not repairs
    assert request.parents == (7,)


def test_what_the_tables_show_is_what_the_grammar_lets_move():
    proposer, script = in_edits(["?"], n_rows=3)
    proposer.ask(1)
    prompt, schema, *_ = script.asked[0]
    ends = schema["properties"]["moves"]["items"]["properties"]
    for end, heading in (("from", "Prune less:"), ("to", "Prune more:")):
        after = prompt.split(heading)[1].split("\n")[1:4]
        assert [" ".join(row.split()[:2]) for row in after] == ends[end]["enum"]
    assert not set(ends["from"]["enum"]) & set(ends["to"]["enum"])


def test_the_choice_is_what_the_tables_make_more_probable():
    def logprobs_of(prompt, options):
        # The third is the likeliest text with and without tables; the tables speak for the second.
        return [-9.0, -7.0 if "Prune less" in prompt else -9.0, *[-1.0] * (len(options) - 2)]

    proposer, script = proposer_of([], logprobs_of=logprobs_of, operators=["choice"], n_coefficient_calls=0)
    first, second = proposer.ask(2)
    options = script.asked[0][1]
    assert script.asked[1][1] == options
    assert (first.reply, first.operator) == ((0, 1), "choice")
    request_moves = first.allocation
    assert_on_budget(request_moves)
    assert second.allocation != first.allocation
    assert not second.failure


def test_a_model_that_tells_no_probabilities_is_asked_under_a_grammar():
    proposer, script = proposer_of(["?"], operators=["choice"], n_coefficient_calls=0)
    assert proposer.ask(1)[0].failure.startswith("none of the moves to choose from")
    assert script.asked[-1][1] == object_schema({"choice": {"enum": script.asked[0][1]}})


def test_gradients_are_taken_once_per_incumbent_and_paid_for_by_the_first_proposal():
    oracle = AnalyticOracle.of(SPACE.grid)
    space = SearchSpace(SPACE.grid, SPACE.target, move_values=oracle)
    proposer, script = in_edits([edits(), edits({**MOVE, "percent": 5}), "?"], space=space, n_windows=3, bracket=0.1)
    tokens = [proposal.proposal_tokens for proposal in proposer.ask(2)]
    assert tokens == [18, 0]
    assert [asked[1:] for asked in oracle.asked] == [(0.1, 0, 3)]
    assert "gain of less" in script.asked[0][0]
    proposer.tell([candidate(8, 0.9, SPACE.uniform(), gain=0.1)])
    assert proposer.ask(1)[0].proposal_tokens == 18
    assert oracle.asked[1] == (SPACE.uniform(), 0.1, 3, 3)


def test_gradients_that_another_arm_has_taken_cost_nothing():
    class Known(AnalyticOracle):
        def known(self, allocation):
            return AnalyticOracle.of(SPACE.grid)(allocation, 0.1, 0, 1)

    oracle = Known.of(SPACE.grid)
    space = SearchSpace(SPACE.grid, SPACE.target, move_values=oracle)
    proposer, script = in_edits(["?"], space=space)
    assert proposer.ask(1)[0].proposal_tokens == 0
    assert not oracle.asked
    assert "gain of less" in script.asked[0][0]


def test_an_endpoint_that_does_not_answer_is_a_failed_proposal():
    class Deaf(Script):
        def complete(self, prompt, schema, n, seed):
            return [Reply("", None, 0, 0, failure="timed out", source=(3, 0))] * n

        def score(self, prompt, options):
            return [Reply(option, None, 0, 0, failure="timed out") for option in options]

    proposals = SelfPrunerProposer(SPACE, Deaf([]), seed=0).ask(12)
    assert {(p.failure, p.allocation, p.reply) for p in proposals} == {("timed out", None, (3, 0))}
    Deaf.complete = lambda *_: []
    assert SelfPrunerProposer(SPACE, Deaf([]), seed=0).ask(1)[0].failure == "the language model gave no reply"


def test_the_same_script_and_candidates_give_the_same_proposals():
    def run():
        proposer, script = proposer_of([coefficients(first=-i) for i in range(4)] + [edits()] * 4 + ["?"] * 4)
        proposals = []
        for k in range(3):
            asked = proposer.ask(4)
            proposals += asked
            proposer.tell(
                [
                    candidate(10 * k + i, 1.0 + i, p.allocation, "self_pruner", gain=0.1)
                    for i, p in enumerate(asked)
                    if p.allocation
                ]
            )
        return proposals, script.asked

    assert run() == run()


@pytest.mark.parametrize("with_sensitivities", [True, False])
@pytest.mark.parametrize(("n_blocks", "n_characters"), [(12, 1500), (32, 1600), (80, 1800)])
def test_prompts_stay_compact(n_blocks, n_characters, with_sensitivities):
    space = make_space(n_blocks, with_sensitivities=with_sensitivities)
    proposer, script = proposer_of(["?"] * 3, space)
    proposer.tell([candidate(i, 1.2345 + i, space.uniform(), gain=0.1) for i in range(3)])
    proposer.ask(3)
    for operator in ("edits", "choice"):
        request = OPERATORS[operator](PromptContext(UnitView(space), space.uniform(), 0, 1.0))
        script.asked.append((request.prompt, None, 1, 0))
    for prompt, *_ in script.asked:
        assert len(prompt) <= n_characters
        assert "$" not in prompt
        assert prompt.endswith("better:")


def test_blocks_without_a_kind_and_blocks_that_do_not_start_at_zero_are_served():
    units = [Unit("5.a", 5, "a", 100), Unit("5.b", 5, "b", 100), Unit("9.a", 9, "a", 100)]
    space = SearchSpace(
        LevelGrid.with_constant_step(units, 0.1), Target.in_weights(LevelGrid.with_constant_step(units, 0.1), 150)
    )
    texts = [edits({"from": "1 b", "to": "0 a"}), edits({"from": "1 a", "to": "0 b"})]
    proposer, _ = in_edits(texts, space.uniform(), space)
    missing, found = proposer.ask(2)
    assert missing.failure.startswith("block 1 has no b; there are blocks 0 to 1")
    assert_on_budget(found.allocation, space)


def test_a_language_model_that_cannot_answer_is_told():
    with pytest.raises(LanguageModelError, match="left"):
        proposer_of([])[0].ask(1)


@pytest.mark.parametrize(
    "settings",
    [{name: 0} for name in ("n_replies_per_call", "n_shown", "n_rows", "n_options")]
    + [{"n_windows": -1}, {"n_coefficient_calls": -1}, {"bracket": math.nan}, {"operators": []}, {"operators": ["edit"]}],
)
def test_settings_out_of_range_fail(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SelfPruner(**settings)


JUNK = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "\\",
    "NaN",
    "null",
    "1e999",
    "-9",
    "99 q",
    "\u2028",
    "\ud800",
    "moves",
    "offset",
    "\n",
    "0 down",
    " " * 50,
]


def mangled(rng, text):
    """A reply with pieces cut out, doubled, put elsewhere or replaced."""
    for _ in range(rng.randrange(6)):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.randrange(12))
        text = text[:start] + rng.choice(["", text[start:stop] * 2, rng.choice(JUNK), str(rng.uniform(-1e4, 1e4))]) + text[stop:]
    return text


def test_ten_thousand_mangled_replies_bring_no_crash_and_no_allocation_off_the_budget():
    rng = random.Random(0)
    context = PromptContext(VIEW, ALLOCATION, 7, 1.0, [candidate(7, 1.0)], UnitValues.of_sensitivities(SPACE))
    requests = [operator(context) for operator in OPERATORS.values()]
    seeds = [coefficients(), edits(MOVE, {**MOVE, "to": {"block": 1, "kind": "up"}}), requests[2].options[0]]
    n_valid = 0
    for i in range(10_000):
        text = mangled(rng, seeds[i % 3] if rng.random() < 0.9 else rng.choice(seeds))
        try:
            wished = requests[i % 3].read(text, [])
        except ReplyError:
            continue
        n_valid += 1
        if i % 10 == 0:
            assert_on_budget(SPACE.project(wished))
        assert all(map(math.isfinite, wished.values()))
    assert 1000 < n_valid < 9000


@given(st.text(), st.dictionaries(st.text(), st.none() | st.integers() | st.lists(st.text(max_size=5), max_size=3)))
def test_the_first_object_with_the_keys_is_found_whatever_stands_around_it(noise, value):
    before, after = noise.replace("{", ""), noise
    assert json.dumps(parse_json_object(f"{before}{json.dumps(value)}{after}", ())) == json.dumps(value)
    with pytest.raises(ReplyError):
        parse_json_object(before, ())
