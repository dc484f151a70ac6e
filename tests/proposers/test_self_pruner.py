import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfprune.allocation import LevelGrid, Unit
from selfprune.candidate import Candidate, Proposal, State
from selfprune.errors import ConfigError, LanguageModelError
from selfprune.language_models.scripted import ScriptedLanguageModel
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.coordinates import UnitView
from selfprune.proposers.replies import ReplyError, parse_coordinates, parse_json_object, parse_kind, parse_moves
from selfprune.proposers.self_pruner import SelfPruner, SelfPrunerProposer

SIZES = {
    "self_attn.q_proj": 3600,
    "self_attn.k_proj": 1200,
    "self_attn.v_proj": 1200,
    "self_attn.o_proj": 3600,
    "mlp.gate_proj": 10800,
    "mlp.up_proj": 10800,
    "mlp.down_proj": 10800,
}
SHORT = ["q", "k", "v", "o", "gate", "up", "down"]


def make_space(n_blocks=4, sparsity=0.6, with_sensitivities=True):
    units = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(n_blocks) for kind, n in SIZES.items()]
    grid = LevelGrid.with_constant_step(units, fraction_of_smallest=0.05, max_sparsity=0.95)
    rises = {unit.name: 1.0 + unit.block + 0.1 * i for i, unit in enumerate(units)}
    return SearchSpace(grid, math.ceil(sparsity * grid.n_weights()), rises if with_sensitivities else {})


SPACE = make_space()
ALLOCATION = SPACE.project({unit.name: 0.5 + 0.05 * unit.block for unit in SPACE.grid.units})


class Script:
    """A scripted language model that keeps what it was asked."""

    name = "script"

    def __init__(self, texts):
        self.model = ScriptedLanguageModel.from_texts(texts)
        self.asked = []

    def complete(self, prompt, schema, n, seed):
        self.asked.append((prompt, schema, n, seed))
        return self.model.complete(prompt, schema, n, seed)


def coordinates(kinds=(60,) * 7, blocks=(50, 55, 65, 70)):
    return json.dumps({"kinds": dict(zip(SHORT, kinds, strict=True)), "blocks": list(blocks)})


def move(source=(0, "down"), destination=(3, "k"), percent=10):
    ends = [dict(zip(("block", "kind"), end, strict=True)) for end in (source, destination)]
    return {"from": ends[0], "to": ends[1], "percent": percent}


def candidate(id_, score, allocation=ALLOCATION, proposer="random", state=State.COMPLETE):
    return Candidate(id_, "main", Proposal(allocation, proposer), state, score=score)


def assert_on_budget(allocation, space=SPACE):
    space.grid.check(allocation)
    surplus = space.grid.n_removed_weights(allocation) - space.n_target_weights
    assert 0 <= surplus < min(space.grid.step_weights(unit) for unit in space.grid.units)


def in_edits(texts, allocation=ALLOCATION, space=SPACE):
    """A proposer that is past its first call, with a script for what follows."""
    script = Script(["no JSON", *texts])
    proposer = SelfPrunerProposer(space, script, seed=0, config=SelfPruner(n_population_calls=1))
    proposer.ask(1)
    proposer.tell([candidate(7, 1.0, allocation), candidate(8, None, None, "self_pruner", State.FAILED)])
    return proposer, script


def test_a_reply_becomes_the_allocation_on_the_budget_nearest_to_kind_plus_block():
    text = coordinates(kinds=(40, 45, 50, 60, 62, 63, 64))
    (proposal,) = SelfPrunerProposer(SPACE, Script([text]), seed=0).ask(1)
    assert_on_budget(proposal.allocation)
    kinds = dict(zip(SIZES, (0.40, 0.45, 0.50, 0.60, 0.62, 0.63, 0.64), strict=True))
    blocks = (0.50, 0.55, 0.65, 0.70)
    wished = {unit.name: kinds[unit.kind] + blocks[unit.block] - SPACE.target_sparsity for unit in SPACE.grid.units}
    assert proposal.allocation == SPACE.project(wished)
    assert (proposal.proposer, proposal.operator, proposal.failure) == ("self_pruner", "population", "")


def test_what_is_shown_is_read_back_as_nearly_the_same_allocation():
    view = UnitView(SPACE)
    shown = parse_coordinates(view.coordinates(ALLOCATION), view.kinds, 4, 60.0)
    read, expected = SPACE.grid.sparsities(SPACE.project(view.expand(shown))), SPACE.grid.sparsities(ALLOCATION)
    assert max(abs(read[name] - expected[name]) for name in read) < 0.02 + 60 / 1200


@pytest.mark.parametrize("n", [1, 4, 7])
def test_ask_calls_as_often_as_needed_for_n_proposals(n):
    script = Script([coordinates(blocks=(50 + i, 60, 60, 60)) for i in range(n)])
    assert len(SelfPrunerProposer(SPACE, script, seed=0, config=SelfPruner(n_replies_per_call=3)).ask(n)) == n
    assert [asked[2] for asked in script.asked] == [min(3, n - 3 * k) for k in range(math.ceil(n / 3))]


def test_calls_have_seeds_of_their_own_that_follow_from_the_seed():
    def seeds(seed):
        script = Script(["?"] * 6)
        SelfPrunerProposer(SPACE, script, seed=seed, config=SelfPruner(n_replies_per_call=2)).ask(6)
        return [asked[3] for asked in script.asked]

    assert len(set(seeds(0))) == 3
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot.",
        "{",
        "[]",
        "{}",
        '{"kinds":{}}',
        '{"kinds":{},"blocks":[]}',
        '{"kinds":[],"blocks":[60,60,60,60]}',
        "{" * 5000,
        '{"a":' * 3000,
        '{"kinds":{"q":60},"blocks":[60]}',
        '{"kinds":{"q":NaN},"blocks":[60,60,60,60]}',
        '{"kinds":{"q":true},"blocks":[1,2]}',
        '{"kinds":{"wheel":60},"blocks":[60,60,60,60]}',
        '{"kinds":{"q":1e999},"blocks":[60,60,60,60]}',
        coordinates()[:-3],
    ],
)
def test_a_reply_that_cannot_be_read_is_a_failure_that_keeps_its_text(text):
    proposer = SelfPrunerProposer(SPACE, Script([text]), seed=0)
    (proposal,) = proposer.ask(1)
    assert proposal.allocation is None
    assert proposal.failure.endswith(f": {text[:200]}")
    assert len(proposal.failure) > len(text[:200]) + 2
    assert (proposer.n_proposed, proposer.n_valid) == (1, 0)


@pytest.mark.parametrize(
    "text",
    [
        f"Sure! Here it is:\n```json\n{coordinates()}\n```\nGood luck.",
        f'As {{"asked": 1}} I say {coordinates()} {coordinates(blocks=(1, 2, 3, 4))}',
        coordinates(kinds=("60", "60%", " 60 ", 60.0, 60, 60, 60)),
        coordinates().replace('"q"', '"q_proj"').replace('"gate"', '"mlp.gate_proj"'),
        '{"kinds": {"q": 60}, "blocks": [50, 55, 65, 70]}',
    ],
)
def test_an_obvious_meaning_is_repaired(text):
    (expected,) = SelfPrunerProposer(SPACE, Script([coordinates()]), seed=0).ask(1)
    (proposal,) = SelfPrunerProposer(SPACE, Script([text]), seed=0).ask(1)
    assert proposal.allocation == expected.allocation


def test_percents_out_of_range_are_clipped_and_lists_of_another_length_interpolated():
    kinds = list(SIZES)
    read = parse_coordinates('{"kinds":{"q":-5,"k":1e30},"blocks":[0,30,60]}', kinds, 5, 60.0)
    assert (read.kinds["self_attn.q_proj"], read.kinds["self_attn.k_proj"], read.kinds["mlp.up_proj"]) == (0, 99, 60.0)
    assert read.blocks == pytest.approx([0, 15, 30, 45, 60])
    assert parse_coordinates('{"kinds":{"q":1},"blocks":[0,10,20,30,40]}', kinds, 3, 60.0).blocks == pytest.approx([0, 20, 40])
    assert parse_coordinates('{"kinds":{"q":1},"blocks":[7,9]}', kinds, 1, 60.0).blocks == [7]


def test_an_allocation_that_is_known_is_a_duplicate():
    proposer = SelfPrunerProposer(SPACE, Script([coordinates(), coordinates(), coordinates(blocks=(51, 55, 65, 70))]), seed=0)
    first, second = proposer.ask(2)
    assert second.allocation is None
    assert second.failure.startswith("duplicate of an earlier proposal")
    other = SelfPrunerProposer(SPACE, Script([coordinates()]), seed=0)
    other.tell([candidate(3, 1.0, first.allocation)])
    assert other.ask(1)[0].failure.startswith("duplicate of candidate 3")
    proposer.ask(1)
    assert (proposer.n_proposed, proposer.n_valid) == (3, 2)


def test_population_shows_the_best_on_the_budget_worst_first_and_names_them_as_parents():
    script = Script(["?"])
    proposer = SelfPrunerProposer(SPACE, script, seed=0, config=SelfPruner(n_shown=2))
    dense = {unit.name: 0 for unit in SPACE.grid.units}
    wishes = [{u.name: SPACE.target_sparsity + i * 0.1 * (u.block - 1) for u in SPACE.grid.units} for i in range(3)]
    one, two, three = (SPACE.project(wish) for wish in wishes)
    proposer.tell([candidate(0, 0.0, dense), candidate(1, 0.3, one), candidate(2, 0.1, two), candidate(3, 0.2, three)])
    proposer.tell([candidate(4, 0.05, state=State.STOPPED), candidate(5, None, None, state=State.FAILED)])
    (proposal,) = proposer.ask(1)
    assert proposal.parents == (2, 3)
    prompt = script.asked[0][0]
    assert [line.split(":")[0] for line in prompt.splitlines() if line.startswith("score")] == ["score 0.2", "score 0.1"]


def test_edits_begin_when_an_own_candidate_has_come_back_after_the_first_calls():
    script = Script(["?"] * 9)
    proposer = SelfPrunerProposer(SPACE, script, seed=0, config=SelfPruner(n_population_calls=2, n_replies_per_call=1))
    assert proposer.ask(1)[0].operator == "population"
    proposer.tell([candidate(1, 1.0)])
    assert [proposal.operator for proposal in proposer.ask(2)] == ["population", "population"]
    proposer.tell([candidate(2, None, None, "self_pruner", State.FAILED)])
    (proposal,) = proposer.ask(1)
    assert (proposal.operator, proposal.parents) == ("edits", (1,))


def test_a_move_takes_from_one_unit_and_gives_to_the_other():
    proposer, _ = in_edits([json.dumps({"moves": [move((0, "down"), (3, "k"), 25)]})])
    (proposal,) = proposer.ask(1)
    assert_on_budget(proposal.allocation)
    changed = {
        name: proposal.allocation[name] - level for name, level in ALLOCATION.items() if proposal.allocation[name] != level
    }
    assert changed == {"layers.0.mlp.down_proj": -300, "layers.3.self_attn.k_proj": 300}
    assert (proposal.operator, proposal.parents) == ("edits", (7,))


def test_a_move_never_takes_more_than_there_is_or_gives_more_than_fits():
    view = UnitView(SPACE)
    for source, destination in (((0, "k"), (3, "up")), ((0, "up"), (3, "k"))):
        moves = parse_moves(json.dumps({"moves": [move(source, destination, 30)] * 4}), view.kinds, 4)
        sparsities = view.apply(moves, ALLOCATION)
        assert all(-1e-9 <= sparsity <= 0.95 + 1e-9 for sparsity in sparsities.values())
        n_removed = sum(sparsities[unit.name] * unit.n_weights for unit in SPACE.grid.units)
        assert n_removed == pytest.approx(SPACE.grid.n_removed_weights(ALLOCATION))


@pytest.mark.parametrize(
    "moves", [[], "x", [1], [{}], [move((4, "q"))], [move((-1, "q"))], [move((0.5, "q"))], [move((0, "wheel"))]]
)
def test_moves_that_cannot_be_made_are_failures(moves):
    proposer, _ = in_edits([json.dumps({"moves": moves})])
    (proposal,) = proposer.ask(1)
    assert proposal.allocation is None
    assert proposal.failure


def test_one_bad_move_does_not_spoil_the_others():
    proposer, _ = in_edits([json.dumps({"moves": [move((99, "q")), move()]})])
    assert_on_budget(proposer.ask(1)[0].allocation)


def test_a_move_from_a_unit_to_itself_is_a_duplicate():
    proposer, _ = in_edits([json.dumps({"moves": [move((0, "q"), (0, "q"))]})])
    assert proposer.ask(1)[0].failure.startswith("duplicate of candidate 7")


def test_the_same_script_and_candidates_give_the_same_proposals():
    def run():
        script = Script([coordinates(blocks=(50 + i, 60, 60, 60)) for i in range(8)] + [json.dumps({"moves": [move()]})] * 2)
        proposer = SelfPrunerProposer(SPACE, script, seed=4)
        proposals = []
        for k in range(3):
            asked = proposer.ask(4 if k < 2 else 2)
            proposals += asked
            proposer.tell(
                [candidate(10 * k + i, 1.0 + i, p.allocation, "self_pruner") for i, p in enumerate(asked) if p.allocation]
            )
        return proposals, script.asked

    assert run() == run()


@pytest.mark.parametrize("with_sensitivities", [True, False])
@pytest.mark.parametrize(("n_blocks", "n_characters"), [(12, 1500), (32, 2300), (80, 4200)])
def test_prompts_stay_compact(n_blocks, n_characters, with_sensitivities):
    space = make_space(n_blocks, with_sensitivities=with_sensitivities)
    allocation = space.project({unit.name: 0.6 for unit in space.grid.units})
    script = Script(["?"] * 2)
    proposer = SelfPrunerProposer(space, script, seed=0, config=SelfPruner(n_population_calls=1))
    proposer.tell([candidate(i, 1.2345 + i, allocation) for i in range(3)])
    proposer.ask(1)
    proposer.tell([candidate(9, None, None, "self_pruner", State.FAILED)])
    proposer.ask(1)
    for prompt, _, _, _ in script.asked:
        assert len(prompt) <= n_characters
        assert "$" not in prompt
        assert prompt.endswith("better:")


def test_prompts_rank_sensitivity_per_weight_from_0_to_99():
    rises = {unit.name: 0.0 for unit in SPACE.grid.units} | {"layers.2.self_attn.k_proj": 3.0, "layers.1.mlp.up_proj": 13.5}
    rises |= {"layers.0.mlp.up_proj": -5.0, "layers.0.mlp.down_proj": math.nan}
    view = UnitView(SearchSpace(SPACE.grid, SPACE.n_target_weights, rises))
    assert [row.split() for row in view.kind_rows()][1] == ["k", "3%", "99"]
    assert view.block_sensitivities() == "0 99 22 0"
    first, second = view.by_sensitivity(ALLOCATION)[:2]
    assert (first.name, second.name) == ("layers.2.self_attn.k_proj", "layers.1.mlp.up_proj")
    assert view.unit_row(second, ALLOCATION).startswith("1 up 50 ")


def test_names_are_shortened_only_as_far_as_they_stay_different():
    kinds = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "fc", "a.fc"]
    units = [Unit(kind, 0, kind, 100) for kind in kinds]
    view = UnitView(SearchSpace(LevelGrid.with_constant_step(units, 0.1), 300))
    assert list(view.short.values()) == ["c_attn", "attn.c", "c_fc", "mlp.c", "fc", "a.fc"]
    assert [parse_kind(name, kinds) for name in view.short.values()] == kinds


def test_blocks_without_a_kind_and_blocks_that_do_not_start_at_zero_are_served():
    units = [Unit("5.a", 5, "a", 100), Unit("5.b", 5, "b", 100), Unit("9.a", 9, "a", 100)]
    space = SearchSpace(LevelGrid.with_constant_step(units, 0.1), 150)
    (proposal,) = SelfPrunerProposer(space, Script(['{"kinds":{"a":50,"b":60},"blocks":[40,70]}']), seed=0).ask(1)
    assert_on_budget(proposal.allocation, space)
    texts = [json.dumps({"moves": [move((1, "b"), (0, "a"))]}), json.dumps({"moves": [move((1, "a"), (0, "b"))]})]
    proposer, _ = in_edits(texts, proposal.allocation, space)
    missing, found = proposer.ask(2)
    assert missing.failure.startswith("block 1 has no b")
    assert_on_budget(found.allocation, space)


def test_a_language_model_that_cannot_answer_is_told():
    with pytest.raises(LanguageModelError, match="left"):
        SelfPrunerProposer(SPACE, Script([]), seed=0).ask(1)


@pytest.mark.parametrize("name", ["n_replies_per_call", "n_shown", "n_population_calls"])
def test_settings_below_one_fail(name):
    with pytest.raises(ConfigError, match=name):
        SelfPruner(**{name: 0})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from([*SHORT, "block", "kind", "from", "to"]), inner),
    max_leaves=12,
)
NUMBER = st.integers(-10, 120) | st.floats() | st.sampled_from(["60", "60%", "nan", "1e999", None, 10**400])
COORDINATES = st.fixed_dictionaries(
    {"kinds": st.dictionaries(st.sampled_from(SHORT), NUMBER), "blocks": st.lists(NUMBER, max_size=9)}
)
UNIT = st.fixed_dictionaries({"block": NUMBER | st.integers(0, 3), "kind": st.sampled_from(SHORT)})
MOVES = st.fixed_dictionaries(
    {"moves": st.lists(st.fixed_dictionaries({"from": UNIT, "to": UNIT, "percent": NUMBER}), max_size=6)}
)
WRAPPED = st.fixed_dictionaries({"kinds": JSON, "blocks": JSON}) | st.fixed_dictionaries({"moves": JSON})


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text('{}[]":,0123456789.eE-kindsblocksmovesq ') | (JSON | WRAPPED | COORDINATES | MOVES).map(json.dumps))
def test_no_text_crashes_the_proposer_or_leaves_the_budget(text):
    (population,) = SelfPrunerProposer(SPACE, Script([text]), seed=0).ask(1)
    (edits,) = in_edits([text])[0].ask(1)
    for proposal in (population, edits):
        if proposal.allocation is None:
            assert proposal.failure
        else:
            assert_on_budget(proposal.allocation)


@given(st.text(), st.dictionaries(st.text(), JSON))
def test_the_first_object_with_the_keys_is_found_whatever_stands_around_it(noise, value):
    before, after = noise.replace("{", ""), noise
    assert json.dumps(parse_json_object(f"{before}{json.dumps(value)}{after}", ())) == json.dumps(value)
    with pytest.raises(ReplyError):
        parse_json_object(before, ())
