import pytest

from selfprune.reports.task_columns import mean_accuracy, standard_error, task_columns, task_lines

ACC = {"acc": 0.5, "acc_stderr": 0.03, "primary": "acc", "higher_is_better": True, "is_accuracy": True}
WRITTEN = {
    "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.1, "exact_match,flexible-extract": 0.5,
    "exact_match_stderr,flexible-extract": 0.2, "primary": "exact_match,strict-match", "higher_is_better": True,
    "is_accuracy": True,
}  # fmt: skip
WIKITEXT = {
    "word_perplexity": 12345.678, "word_perplexity_stderr": None, "primary": "word_perplexity", "higher_is_better": False,
    "is_accuracy": False,
}  # fmt: skip
BLEU = {"bleu": 20.0, "bleu_stderr": 1.5, "primary": "bleu", "higher_is_better": True, "is_accuracy": False}


def test_every_task_is_shown_by_its_own_metric():
    rows = [{"selfprune_sums_report": ACC, "gsm8k": WRITTEN, "wikitext": WIKITEXT, "wmt": BLEU}] * 2
    assert task_columns(rows) == {
        "sums acc": ["50.0 ± 3.0"] * 2,
        "gsm8k exact_match (strict-match)": ["25.0 ± 10.0"] * 2,
        "wikitext word_perplexity ↓": ["1.235e+04 ± –"] * 2,
        "wmt bleu": ["20 ± 1.5"] * 2,
    }
    assert standard_error(WRITTEN) == 0.1


def test_a_group_is_shown_in_place_of_its_members_and_its_members_are_averaged_once():
    row = {
        "all": ACC | {"acc": 0.4, "members": ["a", "b", "c"]}, "part": ACC | {"members": ["a", "b"]},
        "a": ACC | {"acc": 0.2}, "b": ACC | {"acc": 0.3}, "c": ACC | {"acc": 0.7}, "d": WRITTEN, "w": WIKITEXT,
        "bare": {"primary": None, "members": ["d", "w"], "is_accuracy": False},
    }  # fmt: skip
    assert list(task_columns([row])) == ["all acc", "d exact_match (strict-match)", "w word_perplexity ↓"]
    assert mean_accuracy(row) == pytest.approx((0.2 + 0.3 + 0.7 + 0.25) / 4)


def test_reports_from_before_tasks_had_a_primary_metric_are_read_by_their_acc():
    row = {"a": {"acc": 0.5, "acc_stderr": 0.03}, "b": {"acc": 0.7, "acc_stderr": None}, "c": {"word_perplexity": 3.0}}
    assert task_columns([row]) == {"a acc": ["50.0 ± 3.0"], "b acc": ["70.0 ± –"]}
    assert mean_accuracy(row) == pytest.approx(0.6)
    assert mean_accuracy({"c": {"word_perplexity": 3.0}}) is None


def test_the_page_says_how_tasks_were_asked():
    tasks = {"gsm8k": {"version": 3.0, "num_fewshot": 5}, "own": {"version": "Yaml", "num_fewshot": 0}}
    harness = {"lm_eval": "0.4.13", "prompt_start": ["<bos>"], "tasks": tasks}
    assert task_lines(harness) == [
        "Prompts of lm-eval 0.4.13 use no chat template and begin with `<bos>`, as the tokenizer begins a text. Tasks: gsm8k "
        "(version 3.0, 5 solved examples), own (version Yaml, 0 solved examples)."
    ]
    assert "begin with no token of the tokenizer's own" in task_lines(harness | {"prompt_start": []})[0]
    assert task_lines(harness | {"tasks": {}}) == []
