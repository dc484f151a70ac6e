import json
import time
from pathlib import Path

import pytest
import torch
from datasets import config as datasets_config
from huggingface_hub import constants
from in_turn import in_turn

from selfprune.data.data_config import DataConfig, Source
from selfprune.data.self_generated import generate_tokens
from selfprune.data.splits import check_texts, draw_calibration, draw_splits, draw_training
from selfprune.embedded.corpus import write_corpus
from selfprune.errors import ConfigError, DataError

SMALL = {"n_tokens_per_window": 16, "n_calibration": 5, "n_search": 6, "n_report": 7}
SPLITS = ("calibration", "search", "report")


def windows(splits, *names):
    return [tuple(window) for name in names or SPLITS for window in getattr(splits, f"{name}_NT").tolist()]


def files_config(calibration, search=None, report=None, **changes):
    sizes = SMALL | changes
    return DataConfig(Source.FILES, str(calibration), str(search or calibration), str(report or calibration), **sizes)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(write_corpus(1, 4000))
    return path


def test_embedded_splits_have_the_sizes_asked_for_and_share_no_window(tiny_tokenizer):
    splits = draw_splits(DataConfig(**SMALL), tiny_tokenizer, seed=0)
    assert [getattr(splits, f"{name}_NT").shape for name in SPLITS] == [(5, 16), (6, 16), (7, 16)]
    assert splits.search_NT.dtype == torch.long
    assert len(set(windows(splits))) == 18


def test_the_default_sizes_can_be_dealt_from_the_embedded_text(tiny_tokenizer):
    splits = draw_splits(DataConfig(), tiny_tokenizer, seed=0)
    assert len(set(windows(splits))) == 64 + 64 + 128
    assert splits.report_NT.shape == (128, 256)


def test_splits_repeat_with_their_seed_and_only_the_report_keeps_across_seeds(tiny_tokenizer):
    first, again, other = (draw_splits(DataConfig(**SMALL), tiny_tokenizer, seed) for seed in (0, 0, 1))
    assert windows(first) == windows(again)
    assert first.hashes == again.hashes
    assert windows(first, "report") == windows(other, "report")
    assert {name: first.hashes[name] == other.hashes[name] for name in SPLITS} == {
        "calibration": False,
        "search": False,
        "report": True,
    }


def test_drawing_leaves_the_global_generator_alone(tiny_tokenizer):
    before = torch.random.get_rng_state()
    draw_splits(DataConfig(**SMALL), tiny_tokenizer, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_hash_tells_tokens_and_source_apart(tiny_tokenizer, text_file, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text_file.read_bytes())
    first, second = (draw_splits(files_config(path), tiny_tokenizer, seed=0) for path in (text_file, copy))
    assert windows(first) == windows(second)
    assert all(first.hashes[name] != second.hashes[name] for name in SPLITS)
    assert len(set(first.hashes.values())) == 3
    assert all(len(value) == 64 for value in first.hashes.values())


@pytest.mark.parametrize("seed", range(5))
def test_splits_of_one_text_are_disjoint_aligned_windows_of_it(tiny_tokenizer, text_file, seed):
    splits = draw_splits(files_config(text_file), tiny_tokenizer, seed)
    tokens = tiny_tokenizer(text_file.read_text())["input_ids"]
    positions = {tuple(tokens[i : i + 16]): i for i in range(0, len(tokens) - 15, 16)}
    drawn = [positions[window] for window in windows(splits)]
    assert len(set(drawn)) == len(drawn) == 18
    assert drawn != sorted(drawn)


def test_copies_of_one_text_are_dealt_disjoint_windows(tiny_tokenizer, text_file, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text_file.read_bytes())
    assert len(set(windows(draw_splits(files_config(text_file, search=copy), tiny_tokenizer, seed=3)))) == 18


def test_no_report_size_takes_the_whole_text_in_order(tiny_tokenizer, text_file, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text(write_corpus(2, 3000))
    splits = draw_splits(files_config(text_file, report=report, n_report=0), tiny_tokenizer, seed=0)
    tokens = tiny_tokenizer(report.read_text())["input_ids"]
    assert splits.report_NT.flatten().tolist() == tokens[: len(tokens) // 16 * 16]


def test_a_folder_is_read_in_order_with_its_jsonl_texts(tiny_tokenizer, text_file, tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.md").write_text("The first text.")
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ("The second.", "The third.")) + "\n\n")
    (folder / "inner" / "c.txt").write_text("The last.")
    (folder / "ignored.bin").write_bytes(b"\xff\xfe")
    config = files_config(text_file, report=folder, n_tokens_per_window=2, n_report=0)
    report = draw_splits(config, tiny_tokenizer, seed=0).report_NT.flatten().tolist()
    whole = "The first text.\n\nThe second.\n\nThe third.\n\nThe last."
    assert report == tiny_tokenizer(whole)["input_ids"][: len(report)]
    assert len(report) >= len(tiny_tokenizer(whole)["input_ids"]) - 1


def test_a_text_is_encoded_by_one_tokenizer_call(tiny_tokenizer, text_file):
    calls = []

    def counting(text, **options):
        calls.append(text)
        return tiny_tokenizer(text, **options)

    draw_splits(files_config(text_file), counting, seed=0)
    assert calls.count(text_file.read_text()) == 1


def test_repeated_windows_are_dealt_once(tiny_tokenizer, tmp_path):
    path = tmp_path / "repeated.txt"
    path.write_text("a" * 16 * 40)
    with pytest.raises(DataError, match=r"of which .* differ from each other and from those already dealt"):
        draw_splits(files_config(path), tiny_tokenizer, seed=0)


def test_a_text_too_short_says_what_it_has_and_needs(tiny_tokenizer, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text(write_corpus(1, 100)[:100])
    n_tokens = len(tiny_tokenizer(path.read_text())["input_ids"])
    with pytest.raises(
        DataError,
        match=rf"the report text .*is too short: it has {n_tokens} tokens.*\(112 tokens\) are needed.*lower data\.n_report",
    ):
        draw_splits(files_config(path), tiny_tokenizer, seed=0)


def test_a_shared_text_that_suffices_for_one_split_only_is_refused(tiny_tokenizer, text_file):
    n_windows = len(tiny_tokenizer(text_file.read_text())["input_ids"]) // 16
    with pytest.raises(DataError, match=r"the calibration text .*of which 1 differ"):
        draw_splits(files_config(text_file, n_report=n_windows - 1), tiny_tokenizer, seed=0)


def test_the_whole_text_as_report_leaves_nothing_for_others(tiny_tokenizer, text_file):
    with pytest.raises(DataError, match=r"the calibration text .*of which 0 differ"):
        draw_splits(files_config(text_file, n_report=0), tiny_tokenizer, seed=0)


def test_a_file_inside_another_splits_folder_is_refused(tiny_tokenizer, text_file, tmp_path):
    (tmp_path / "other.txt").write_text(write_corpus(2, 4000))
    with pytest.raises(DataError, match=r"data\.calibration and data\.report share the file .*text\.txt"):
        draw_splits(files_config(text_file, report=tmp_path), tiny_tokenizer, seed=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b" \n\n ", "the report text .* is empty"),
        ("latin.txt", "déjà vu".encode("latin-1"), "must be UTF-8 text, but its byte 1 is not"),
        (
            "rows.jsonl",
            b'{"text": "a"}\n{"body": "b"}\n',
            r"""line 2: expected an object with a field "text", got one with 'body'""",
        ),
        ("broken.jsonl", b"{\n", r"line 1: expected a JSON object"),
        ("list.jsonl", b"[1]\n", r'line 1: expected an object with a field "text", got list'),
    ],
)
def test_an_unreadable_text_is_refused(name, content, message, tiny_tokenizer, text_file, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        draw_splits(files_config(text_file, report=tmp_path / name), tiny_tokenizer, seed=0)


def test_a_missing_file_and_a_folder_without_texts_are_refused(tiny_tokenizer, text_file, tmp_path):
    with pytest.raises(DataError, match=r"data\.calibration=.*absent\.txt: there is no file or folder"):
        draw_splits(files_config(tmp_path / "absent.txt", text_file, text_file), tiny_tokenizer, seed=0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"data\.search=.*the folder holds no \.txt, \.md, \.jsonl file"):
        draw_splits(files_config(text_file, tmp_path / "folder", text_file), tiny_tokenizer, seed=0)


def test_a_window_longer_than_the_models_positions_is_refused(tiny_tokenizer):
    with pytest.raises(ConfigError, match=r"at most the model's 15 positions, got 16"):
        draw_splits(DataConfig(**SMALL), tiny_tokenizer, seed=0, max_positions=15)
    assert draw_splits(DataConfig(**SMALL), tiny_tokenizer, seed=0, max_positions=16).search_NT.shape == (6, 16)


@in_turn(
    ("changes", "message"),
    [
        ({"n_tokens_per_window": 1}, "data.n_tokens_per_window must be at least 2, got 1"),
        ({"n_calibration": 0}, "data.n_calibration must be at least 1"),
        ({"n_search": -3}, "data.n_search must be at least 1, got -3"),
        ({"n_report": -1}, "data.n_report must be at least 0"),
        ({"n_report": 0}, "the embedded text has no end"),
        ({"source": Source.FILES, "search": "b"}, "data.source=FILES needs data.calibration, but data.calibration is empty"),
        ({"source": Source.HUB}, "data.source=HUB needs data.calibration, but data.calibration is empty"),
        ({"calibration": "a.txt"}, "EMBEDDED makes its own text, but data.calibration=a.txt; give data.source=FILES"),
        ({"source": Source.SELF_GENERATED, "search": "a.txt"}, "SELF_GENERATED makes its own text"),
    ],
)
def test_a_wrong_config_is_refused_at_construction(changes, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**changes)


@pytest.mark.parametrize("source", [Source.FILES, Source.HUB])
def test_a_search_needs_every_text_and_a_pruning_the_calibration_text_alone(source):
    config = DataConfig(source, calibration="a", search="b")
    config.require("calibration", "search")
    with pytest.raises(
        ConfigError, match=rf"{source.name} needs data\.calibration and data\.search and data\.report, but data\.report is empty"
    ):
        config.require(*SPLITS)
    DataConfig().require(*SPLITS)
    DataConfig(Source.SELF_GENERATED).require(*SPLITS)


def drawn(config, tokenizer, seed=0):
    """The calibration windows as a pruning draws them, and as a search deals them beside its other splits."""
    alone_NT = draw_calibration(config, tokenizer, seed)
    return list(map(tuple, alone_NT.tolist())), draw_splits(config, tokenizer, seed)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_drawn_alone_is_that_of_a_search_where_the_texts_are_separate(seed, tiny_tokenizer, text_file, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text(write_corpus(2, 3000))
    for config in (DataConfig(**SMALL), files_config(text_file, report=report), files_config(text_file, report, report)):
        alone, splits = drawn(config, tiny_tokenizer, seed)
        assert alone == windows(splits, "calibration")
    assert drawn(DataConfig(**SMALL), tiny_tokenizer, seed + 1)[0] != drawn(DataConfig(**SMALL), tiny_tokenizer, seed)[0]


def test_calibration_drawn_alone_from_the_reports_text_may_hold_windows_that_a_search_keeps_for_its_report(
    tiny_tokenizer, text_file
):
    n_shared = 0
    for seed in range(5):
        alone, splits = drawn(files_config(text_file, n_report=30), tiny_tokenizer, seed)
        report, calibration = set(windows(splits, "report")), windows(splits, "calibration")
        # no report will be measured, so nothing is kept for one; the others come in the order of a search's calibration
        left = [window for window in alone if window not in report]
        assert left == calibration[: len(left)]
        assert len(set(alone)) == 5
        n_shared += len(alone) - len(left)
    assert n_shared > 0


def test_calibration_drawn_alone_touches_no_other_text(tiny_tokenizer, text_file, tmp_path):
    config = files_config(text_file, search=tmp_path / "no.txt", report=tmp_path / "no.txt")
    assert draw_calibration(config, tiny_tokenizer, 0).shape == (5, 16)
    with pytest.raises(DataError, match=r"there is no file or folder .*no\.txt"):
        draw_splits(config, tiny_tokenizer, 0)
    # a folder that holds the calibration text would be refused beside it
    config = files_config(text_file, report=tmp_path)
    (tmp_path / "other.txt").write_text("more")
    assert draw_calibration(config, tiny_tokenizer, 0).shape == (5, 16)


def test_calibration_drawn_alone_is_refused_for_the_same_reasons(tiny_tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text("The boats near the old soldiers tremble.")
    with pytest.raises(DataError, match=r"the calibration text .*is too short: .*lower data\.n_calibration"):
        draw_calibration(files_config(tmp_path / "short.txt"), tiny_tokenizer, 0)
    with pytest.raises(ConfigError, match=r"at most the model's 15 positions, got 16"):
        draw_calibration(DataConfig(**SMALL), tiny_tokenizer, 0, max_positions=15)
    with pytest.raises(DataError, match=r"needs the model"):
        draw_calibration(DataConfig(Source.SELF_GENERATED, **SMALL), tiny_tokenizer, 0)


def test_the_model_writes_calibration_and_search_but_not_the_report(tiny_tokenizer, make_tiny_model):
    model = make_tiny_model("llama")
    config = DataConfig(Source.SELF_GENERATED, **SMALL)
    first, again, other = (
        draw_splits(
            config, tiny_tokenizer, seed, lambda n_tokens, seed: generate_tokens(model, tiny_tokenizer, n_tokens // 16, 16, seed)
        )
        for seed in (0, 0, 1)
    )
    assert windows(first) == windows(again)
    assert not set(windows(first, "calibration", "search")) & set(windows(other, "calibration", "search"))
    assert len(set(windows(first))) == 18
    assert windows(first, "report") == windows(draw_splits(DataConfig(**SMALL), tiny_tokenizer, seed=0), "report")
    assert set(first.calibration_NT[:, 0].tolist()) == {tiny_tokenizer.bos_token_id}


def test_a_self_generated_run_can_report_on_a_file(tiny_tokenizer, text_file):
    config = DataConfig(Source.SELF_GENERATED, report=str(text_file), **SMALL)
    splits = draw_splits(
        config, tiny_tokenizer, 0, lambda n, seed: torch.randint(300, (n,), generator=torch.Generator().manual_seed(seed))
    )
    assert windows(splits, "report") == windows(draw_splits(files_config(text_file), tiny_tokenizer, seed=0), "report")


def test_a_model_that_always_writes_the_same_is_refused(tiny_tokenizer):
    with pytest.raises(DataError, match=r"the calibration text .*of which 1 differ"):
        draw_splits(
            DataConfig(Source.SELF_GENERATED, **SMALL),
            tiny_tokenizer,
            0,
            lambda n_tokens, seed: torch.zeros(n_tokens, dtype=torch.long),
        )


def test_self_generation_without_a_model_is_refused(tiny_tokenizer):
    with pytest.raises(DataError, match=r"needs the model"):
        draw_splits(DataConfig(Source.SELF_GENERATED, **SMALL), tiny_tokenizer, seed=0)


def test_generated_tokens_follow_the_models_own_distribution(tiny_tokenizer, make_tiny_model):
    model = make_tiny_model("gpt2", initializer_range=0.5)
    before = torch.random.get_rng_state()
    tokens_NT = generate_tokens(model, tiny_tokenizer, n_windows=1000, n_tokens=2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tokens_NT.shape == (1000, 2)
    with torch.no_grad():
        expected_V = model(input_ids=tokens_NT[:1, :1]).logits[0, 0].softmax(-1)
    drawn_V = torch.bincount(tokens_NT[:, 1], minlength=len(expected_V)) / 1000
    four_deviations_V = 4 * (expected_V * (1 - expected_V) / 1000).sqrt()
    assert ((drawn_V - expected_V).abs() <= four_deviations_V + 2 / 1000).all()


def test_generation_through_the_cache_continues_what_was_written(tiny_tokenizer, make_tiny_model):
    # With logits this far apart sampling is greedy, so the whole sequence can be checked by one uncached pass.
    model = make_tiny_model("gpt2", initializer_range=0.5)
    model.lm_head.weight.mul_(1e4)
    tokens_NT = generate_tokens(model, tiny_tokenizer, n_windows=2, n_tokens=12, seed=0)
    with torch.no_grad():
        greedy_NT = model(input_ids=tokens_NT).logits.argmax(-1)
    assert torch.equal(greedy_NT[:, :-1], tokens_NT[:, 1:])


@pytest.mark.parametrize("spec", ["c4", "wikitext2", "fineweb_edu", "someone/no-such-text:en:train:text"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_text_without_a_network_fails_at_once_with_a_remedy(spec, offline, tiny_tokenizer, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"data\.report=.*give data=files data\.calibration=") as error:
        draw_splits(DataConfig(Source.HUB, spec, spec, spec, **SMALL), tiny_tokenizer, seed=0)
    assert time.monotonic() - start < 10
    assert "\n" not in str(error.value)
    assert bool(no_network) is not offline


def test_texts_are_checked_without_being_read(no_network, monkeypatch, text_file, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    check_texts(DataConfig())
    check_texts(files_config(text_file))
    check_texts(files_config(text_file, tmp_path / "absent.txt"), ["calibration"])
    with pytest.raises(DataError, match=r"data\.search=.*absent\.txt: there is no file or folder"):
        check_texts(files_config(text_file, tmp_path / "absent.txt"))
    with pytest.raises(DataError, match=r"data\.report=c4 lies on the hub, which does not answer; .*HF_HUB_OFFLINE=1 a cached"):
        check_texts(DataConfig(Source.HUB, "c4", "c4", "c4"))
    with pytest.raises(DataError, match=r"data\.n_report=0 takes the whole report text, but c4 is read as a stream"):
        check_texts(DataConfig(Source.HUB, "c4", "c4", "c4", n_report=0))


def test_an_unknown_hub_text_lists_the_known_ones_nearest_first(tiny_tokenizer):
    with pytest.raises(DataError, match=r"unknown hub text 'wikitext'; the known ones, nearest first: wikitext2, "):
        draw_splits(DataConfig(Source.HUB, "wikitext", "c4", "wikitext", **SMALL), tiny_tokenizer, seed=0)


@pytest.mark.parametrize("name", ["books-calibration.txt", "wikitext2-test.txt"])
def test_a_real_text_is_dealt_disjoint_windows(name, tiny_tokenizer, tmp_path):
    path = Path(__file__).parents[3] / "shared/texts" / name
    if not path.is_file():
        pytest.skip("the shared texts are not here")
    (tmp_path / name).write_text(path.read_text()[:100_000])
    config = files_config(tmp_path / name, n_tokens_per_window=128, n_calibration=64, n_search=64, n_report=64)
    assert len(set(windows(draw_splits(config, tiny_tokenizer, seed=0)))) == 192


def mixed(mixture, **changes):
    return DataConfig(**(SMALL | {"n_calibration": 10} | changes), mixture=mixture)


def test_a_mixture_has_the_windows_of_each_text_by_its_weight_and_changes_nothing_else(tiny_tokenizer, text_file):
    config = mixed({str(text_file): 3.0, "embedded": 1.0, "self_generated": 1.0})
    asked = []

    def write(n_tokens, seed):
        asked.append(n_tokens)
        return torch.full((n_tokens,), 5) + torch.arange(n_tokens) % 7

    splits, plain = draw_splits(config, tiny_tokenizer, 0, write), draw_splits(mixed({}), tiny_tokenizer, 0)
    of_file = set(windows(draw_splits(files_config(text_file, n_calibration=40), tiny_tokenizer, 0), "calibration"))
    found = windows(splits, "calibration")
    assert len(found) == len(set(found)) == 10
    assert sum(window in of_file for window in found) == 6
    assert asked[0] == 2 * 16
    assert sum(set(window) <= set(range(5, 12)) for window in found) == 2
    assert windows(splits, "report") == windows(plain, "report")
    assert splits.hashes["calibration"] != plain.hashes["calibration"]
    assert not set(found) & set(windows(splits, "search", "report"))


def test_shares_of_a_mixture_are_rounded_so_that_they_add_up():
    sizes = [part.n_calibration for part in mixed({"embedded": 1, "self_generated": 1, "c4": 1}).parts()]
    assert sorted(sizes) == [3, 3, 4]
    parts = mixed({"embedded": 1, "self_generated": 0, "c4": 1}).parts()
    assert [part.source for part in parts] == [Source.EMBEDDED, Source.HUB], "what has no weight is left out"


def test_the_text_of_a_training_is_mixed_alike(tiny_tokenizer, text_file):
    config = mixed({str(text_file): 1.0, "embedded": 1.0}, n_calibration=4)
    splits = draw_splits(config, tiny_tokenizer, 0)
    training = [tuple(window) for window in draw_training(config, tiny_tokenizer, 0, 8, splits).tolist()]
    of_file = set(windows(draw_splits(files_config(text_file, n_calibration=40), tiny_tokenizer, 0), "calibration"))
    assert sum(window in of_file for window in training) == 4
    assert not set(training) & set(windows(splits))


@in_turn(
    ("changes", "said"),
    [
        ({"mixture": {"embedded": 0.0}}, "weights of data.mixture must not be negative, nor all 0, got {'embedded': 0.0}"),
        ({"mixture": {"embedded": -1.0}}, "weights of data.mixture must not be negative"),
        ({"mixture": {"embedded": float("nan")}}, "weights of data.mixture must not be negative"),
        ({"mixture": {"a.txt": 1.0}}, r"names a\.txt, a path that means another file elsewhere; give /.*/a\.txt"),
        ({"mixture": {"embedded": 1.0, "c4": 1000.0}}, "are too few for the weights"),
        (
            {"mixture": {"c4": 1.0}, "source": Source.FILES, "calibration": "a", "search": "b", "report": "c"},
            "takes the place of data.calibration, but that is a",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_told(changes, said):
    with pytest.raises(ConfigError, match=said):
        DataConfig(**(SMALL | changes))


def test_a_file_of_a_mixture_that_is_in_another_splits_folder_is_refused(text_file, tmp_path):
    (tmp_path / "more.txt").write_text("More.")
    config = DataConfig(Source.FILES, search=str(text_file), report=str(tmp_path), mixture={str(text_file): 1.0}, **SMALL)
    with pytest.raises(DataError, match=r"data\.(search|calibration) and data\.report share the file .*text\.txt"):
        check_texts(config)
    with pytest.raises(DataError, match="missing"):
        check_texts(DataConfig(mixture={str(tmp_path / "missing.txt"): 1.0}, **SMALL))
