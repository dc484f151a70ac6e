"""A slice of the generated bad inputs; `python tests/bad_inputs.py` tries a thousand."""

from collections import Counter

import pytest
from bad_inputs import KINDS, Case, judge, make_workspace, try_case

SEEDS = range(10)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


@pytest.mark.slow
def test_bad_inputs_end_in_one_paragraph_and_lose_nothing(workspace):
    cases = {seed: try_case(seed, workspace, seconds=0) for seed in SEEDS}
    assert {seed: case.breaches for seed, case in cases.items() if case.breaches} == {}
    assert Counter(case.code for case in cases.values()).keys() == {0, 2}
    assert len({case.command for case in cases.values()}) == 3


@pytest.mark.parametrize(
    ("code", "said", "after", "breach"),
    [
        (2, "selfprune: no", {"a": b"1"}, None),
        (0, "selfprune: warning: odd", {"a": b"1", "b": b"2"}, None),
        (None, "Traceback (most recent call last)\nKeyError: 1", {"a": b"1"}, "traceback: KeyError: 1"),
        (1, "", {"a": b"1"}, "exit code 1"),
        (2, "", {"a": b"1"}, "0 paragraphs"),
        (2, "selfprune: no\nselfprune: and no", {"a": b"1"}, "2 paragraphs"),
        (0, "selfprune: no", {"a": b"1"}, "exit code 0, but"),
        (2, "selfprune: no", {}, "lost or changed: a"),
        (0, "", {"a": b"2"}, "lost or changed: a"),
    ],
)
def test_every_breach_is_noted(code, said, after, breach):
    case = Case("kind", "run", [], code=code, said=said)
    judge(case, {"a": b"1"}, after)
    assert [found.startswith(breach) for found in case.breaches] == ([True] if breach else [])


def test_every_kind_has_a_sentence_and_a_weight():
    assert all(kind.__doc__ and weight > 0 for kind, weight in KINDS)
