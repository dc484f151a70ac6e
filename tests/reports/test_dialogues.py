import json
from importlib.resources import files

import jsonschema
import pytest
from in_turn import in_turn
from markdown_it import MarkdownIt

from selfprune.allocations.candidate import RE_ENTRY, Candidate, Proposal, State
from selfprune.reports.dialogues import MAX_CHARACTERS, MAX_OPTIONS, choose, laid_out, sample_dialogues
from selfprune.reports.ledger import count_by_search
from selfprune.reports.markdown import language_model_lines

SCHEMA = json.loads(files("selfprune.reports").joinpath("report_schema.json").read_text())["properties"]["language_model"]
HOSTILE = {
    "lines": "first\nsecond\r\n\n\nthird",
    "backticks": "```\n# no heading\n````text\n`````",
    "markdown": "# heading\n| a | b |\n|---|---|\n![x](y)\n<script>alert(1)</script>\n</details>\n---\n- [ ] item",
    "long": "x`" * 10_000,
    "surrogates": "\ud800é \udfff",
    "control": "\x1b[2J\x00\x07\u202e\u2028\x85 tab\there",
    "empty": "",
    "blank": " \n ",
    "deep": "[" * 3_000,
    "nested": "[" * 300 + "]" * 300,
    "not a number": '{"moves": [NaN, Infinity]}',
}


def told(index, reply, state=State.COMPLETE, score=0.5, gain=None, n_windows=8, search="main", operator="edits", **proposal):
    """A candidate that was read from a reply, and has an allocation of its own."""
    failure = proposal.get("failure", "")
    allocation = None if failure else proposal.pop("allocation", {"a": index, "b": 0, "c": 3})
    said = Proposal(allocation, "self_pruner", operator, reply=reply, **proposal)
    reason = failure or ("rank 5 of 8 after 2 windows" if state is State.STOPPED else "")
    return Candidate(index, search, said, state, None if state is State.FAILED else score, n_windows, 10, gain, reason)


def call(index, texts, prompt="prompt", options=False, logprobs=None):
    logprobs = logprobs or [-1.0] * len(texts)
    replies = [
        {"text": text, "logprob": logprob, "n_prompt_tokens": 10, "n_reply_tokens": 3}
        for text, logprob in zip(texts, logprobs, strict=True)
    ]
    key = {"options": list(texts)} if options else {"schema_sha256": "0", "seed": 1, "n": len(texts)}
    return {"call": index, "prompt": prompt, **key, "model": "m", "replies": replies, "seconds": 0.1}


def record_of(calls, candidates):
    """What `report.json` says of the language model, as it is read back from there."""
    record = {
        "calls": len(calls),
        "prompt_tokens": 0,
        "reply_tokens": 0,
        "seconds": 0.0,
        "searches": count_by_search(calls, candidates, {}),
        "dialogues": sample_dialogues(calls, candidates),
    }
    kept = json.loads(json.dumps(record, allow_nan=False))
    jsonschema.validate(kept, SCHEMA)
    return kept


def page_of(calls, candidates):
    return "\n".join(language_model_lines(record_of(calls, candidates)))


def choices(candidates):
    return [(why, candidate.id) for why, candidate in choose(candidates)]


def test_the_greatest_gain_the_last_success_and_a_failure_are_chosen():
    candidates = [
        told(0, (0, 0), gain=0.1),
        told(1, (0, 1), gain=0.5),
        told(2, (0, 2), gain=0.2),
        told(3, (0, 3), score=0.01),
        told(4, (0, 4), repair="a percent clipped"),
        told(5, (0, 5), State.FAILED, failure="no JSON object"),
    ]
    assert choices(candidates) == [
        ("The accepted reply that gained most", 1),
        ("The reply that was accepted last", 2),
        ("A reply that failed", 5),
    ]
    assert choices(candidates[:5])[2] == ("A reply that had to be repaired", 4)


def test_a_single_success_is_followed_by_the_best_and_the_worst_of_the_others():
    candidates = [
        told(0, (0, 0), gain=0.1, score=0.1),
        told(1, (0, 1), score=0.3),
        told(2, (0, 2), score=0.2),
        told(3, (0, 3), State.STOPPED, score=0.25, n_windows=2),
        told(4, (0, 4), State.STOPPED, score=0.28, n_windows=2),
    ]
    assert choices(candidates) == [
        ("The accepted reply that gained most", 0),
        ("The best-scored of the other replies", 2),
        ("The worst-scored reply", 4),
    ]


def test_without_a_success_the_best_scored_comes_first():
    candidates = [told(0, (0, 0), score=0.3), told(1, (0, 1), score=0.2), told(2, (0, 2), score=0.4)]
    assert choices(candidates) == [
        ("The best-scored reply", 1),
        ("The best-scored of the other replies", 0),
        ("The worst-scored reply", 2),
    ]


def test_nobody_is_chosen_twice_and_failures_alone_still_give_three():
    failed = [told(i, (0, i), State.FAILED, failure="no JSON object") for i in range(5)]
    assert sorted(index for _, index in choices(failed)) == [0, 1, 2]
    assert choices(failed[:1]) == [("Another reply", 0)]
    assert choices([]) == []


def test_only_replies_of_the_first_search_that_asked_are_shown():
    uniform = Candidate(0, "main", Proposal({"a": 1}, "uniform"), State.COMPLETE, 0.1, 8, 10, 0.9)
    again = Candidate(2, "main", Proposal({"a": 1}, "self_pruner", RE_ENTRY, (1,)), State.COMPLETE, 0.1, 8)
    candidates = [uniform, told(1, (0, 0)), again, told(3, (1, 0), search="control", gain=0.8)]
    dialogues = sample_dialogues([call(0, ["{}"]), call(1, ["{}"])], candidates)
    assert [one["candidate"] for one in dialogues] == [1]


def test_a_dialogue_tells_prompt_reply_and_fate():
    parent = Candidate(3, "main", Proposal({"a": 5, "b": 0, "c": 1}, "owl"), State.COMPLETE, 0.6, 8)
    child = told(4, (7, 1), gain=0.125, parents=(3,), allocation={"a": 2, "b": 0, "c": 4}, repair="a percent clipped")
    reply = '{"moves": ["a > c 3%"]}'
    record = record_of([call(7, ["other", reply], prompt="Which moves?")], [parent, child])
    assert record["dialogues"] == [
        {
            "why": "The accepted reply that gained most", "search": "main", "candidate": 4, "operator": "edits",
            "call": 7, "position": 1, "n_replies": 2, "prompt": "Which moves?", "reply": reply, "repair": "a percent clipped",
            "outcome": "It became candidate 4, with 1 of 3 units pruned more and 1 less than in candidate 3. "
            "Score 0.5 on 8 windows: accepted, and the score fell by 0.125",
            "reason": "", "score": 0.5, "gain": 0.125,
        }
    ]  # fmt: skip
    page = "\n".join(language_model_lines(record))
    assert "Operator `edits` (call 7, reply 2 of 2) asked:\n\n```text\nWhich moves?\n```\n" in page
    assert f"The language model answered:\n\n```text\n{reply}\n```\n" in page
    assert "the score fell by 0.125. Repaired: `a percent clipped`.\n" in page


@in_turn(
    ("candidate", "ending"),
    [
        (told(1, (0, 0)), "It became candidate 1. Score 0.5 on 8 windows: raced to the end, but did not beat the incumbent."),
        (
            told(1, (0, 0), State.STOPPED, n_windows=2),
            "It became candidate 1. Score 0.5 on 2 windows: stopped: `rank 5 of 8 after 2 windows`.",
        ),
        (told(1, (0, 0), State.FAILED), "It became candidate 1, which failed."),
        (
            told(1, (0, 0), State.FAILED, failure="no JSON object: so sorry"),
            "No allocation came of it, so candidate 1 failed: `no JSON object`.",
        ),
        (
            told(1, (0, 0), State.FAILED, failure="HTTP 500: `x`\n# y"),
            "No allocation came of it, so candidate 1 failed: `` HTTP 500: `x` # y ``.",
        ),
    ],
)
def test_every_fate_is_said_in_a_line(candidate, ending):
    assert ending in page_of([call(0, ["so sorry, I cannot"])], [candidate]).splitlines()


def test_a_choice_shows_the_options_and_how_much_the_facts_spoke_for_them():
    texts = [f"option {i}" for i in range(20)]
    asked = call(0, texts, "facts and question", True, [-40.0 + i for i in range(20)])
    blank = call(1, texts, "question", True, [-40.0] * 18 + [-10.0, float("-inf")])
    record = record_of([asked, blank], [told(0, (0, 3), operator="choice")])
    options = record["dialogues"][0]["options"]
    assert options[0] == {"text": "option 3", "logprob": -37.0, "rise": 3.0, "is_chosen": True}
    assert [one["text"] for one in options[1:]] == [f"option {i}" for i in range(17, 6, -1)]
    assert len(options) == MAX_OPTIONS
    page = "\n".join(language_model_lines(record))
    assert "Operator `choice` (call 0, option 4 of 20) asked:" in page
    assert "→   -37.000    3.000   option 3\n    -23.000   17.000   option 17\n" in page
    alone = record_of([asked, call(1, ["{}"])], [told(0, (0, 3), operator="choice")])
    assert [one["text"] for one in alone["dialogues"][0]["options"][:3]] == ["option 3", "option 19", "option 18"]
    assert "rise" not in "\n".join(language_model_lines(alone))


def test_options_without_log_probabilities_and_of_many_lines_are_shown():
    asked = call(0, ["a\nb", "c" * 500, "d"], options=True, logprobs=[None, float("-inf"), -1.0])
    page = page_of([asked], [told(0, (0, 0))])
    assert "→   unknown   a b\n     -1.000   d\n    unknown   " in page
    assert "c" * 101 not in page


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_said_stays_inside_its_block(name):
    text = HOSTILE[name]
    calls = [call(0, [text, text], prompt=text), call(1, [text, "fine"], prompt=text, options=True)]
    candidates = [
        told(0, (0, 0), gain=0.1, repair=text),
        told(1, (0, 1), State.FAILED, failure=f"no JSON object: {text[:200]}"),
        told(2, (1, 0), gain=0.2, repair=text),
    ]
    page = page_of(calls, candidates)
    page.encode()
    assert all(character == "\n" or character.isprintable() for character in page)
    tokens = MarkdownIt("commonmark").parse(page)
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "hr", "blockquote_open", "code_block"}
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == [
        "What the language model did",
        "The accepted reply that gained most",
        "The reply that was accepted last",
        "A reply that failed",
    ]
    inline = [child.type for token in tokens for child in token.children or []]
    assert not {"image", "html_inline", "link_open"} & set(inline)
    # A prompt that was shown already is not repeated.
    assert sum(token.type == "fence" for token in tokens) == 4
    assert page.count("asked the same as above.") == 2


@pytest.mark.parametrize("name", ["lines", "backticks", "markdown"])
def test_prompts_are_shown_whole_and_exactly(name):
    page = page_of([call(0, ["{}"], prompt=HOSTILE[name])], [told(0, (0, 0))])
    fences = [token.content for token in MarkdownIt("commonmark").parse(page) if token.type == "fence"]
    assert fences[0] == HOSTILE[name].replace("\r\n", "\n") + "\n"


def test_long_prompts_are_shown_whole_and_long_replies_cut():
    page = page_of([call(0, ["y" * 20_000], prompt="x" * 20_000)], [told(0, (0, 0))])
    assert "x" * 20_000 in page
    assert "y" * MAX_CHARACTERS + "… (19,200 more characters)" in page
    assert "y" * (MAX_CHARACTERS + 1) not in page


def test_a_long_json_reply_breaks_where_a_reader_would():
    moves = [{"from": {"block": i, "kind": "q"}, "to": {"block": i, "kind": "down"}, "percent": 10} for i in range(2)]
    lines = laid_out(json.dumps({"moves": moves, "blocks": list(range(60))}, separators=(",", ":"))).splitlines()
    assert lines == [
        "{",
        '  "moves": [',
        '    {"from": {"block": 0, "kind": "q"}, "to": {"block": 0, "kind": "down"}, "percent": 10},',
        '    {"from": {"block": 1, "kind": "q"}, "to": {"block": 1, "kind": "down"}, "percent": 10}',
        "  ],",
        f'  "blocks": {list(range(60))}',
        "}",
    ]
    assert laid_out('{"a": [1, 2]}') == '{"a": [1, 2]}'
    assert laid_out("1. first\n2. second") == "1. first\n2. second"


def test_a_run_that_asked_nothing_says_nothing():
    record = record_of([], [Candidate(0, "main", Proposal({"a": 1}, "uniform"), State.COMPLETE, 0.1, 8)])
    assert (record["searches"], record["dialogues"]) == ({}, [])
    assert language_model_lines(record) == []


def test_calls_of_which_no_proposal_came_are_told_without_a_dialogue():
    page = page_of([call(0, ["{}", "{}"])], [Candidate(0, "main", Proposal({"a": 1}, "uniform"), State.COMPLETE, 0.1, 8)])
    assert "The main search called the language model 1 time (20 prompt and 6 reply tokens, 0.1 s)." in page
    assert "The other 2 replies chose parents, or led to the same question again." in page
    assert "###" not in page
    assert "Samples follow" not in page


def test_the_sums_are_said_in_a_sentence_and_a_table():
    calls = [call(0, ["a", "b", "c", "d"])]
    candidates = [
        told(0, (0, 0), gain=0.25),
        told(1, (0, 1), repair="a percent clipped"),
        told(2, (0, 2), State.FAILED, failure="no JSON object: c"),
        told(3, (0, 3), State.FAILED, failure="no JSON object: d"),
    ]
    page = page_of(calls, candidates)
    assert "4 replies were read as proposals: 2 gave an allocation (1 after a repair), 2 failed." in page
    # 0.25 on 40 tokens, those of failed candidates included
    assert "1 became the incumbent and lowered the score by 0.25 in all, which is 6.25 per thousand tokens" in page
    assert "| main | edits | 4 | 2 | 1 | 2 | 1 | 0.25 |" in page
    assert "- 1 × repaired: `a percent clipped`\n- 2 × failed: `no JSON object`\n" in page
