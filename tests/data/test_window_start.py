from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from selfprune.data.data_config import Bos, DataConfig, Source
from selfprune.data.self_generated import text_writer
from selfprune.data.splits import Splits, draw_calibration, draw_splits
from selfprune.data.window_start import begin_windows, start_tokens
from selfprune.embedded.corpus import write_corpus
from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.perplexity import Perplexity
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import find_blocks
from selfprune.search.search_windows import mix_search_windows

N_TOKENS = 16
SPLITS = ("calibration", "search", "report")
RECORDED = {"calibration": "5328e0b6087e", "report": "aedc6c9ba07a", "search": "cbec0e326e10"}
SIZES = {"n_tokens_per_window": N_TOKENS, "n_calibration": 5, "n_search": 6, "n_report": 7}


@pytest.fixture(scope="module")
def begin_with(tiny_tokenizer):
    """Makes the tiny tokenizer put tokens before every text, as those of Llama and Gemma do."""

    def make(*tokens, after=()):
        own = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<|end|>")
        ids = tokenizer.convert_tokens_to_ids([*tokens, *after])
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*tokens, "$A", *after]), special_tokens=list(zip([*tokens, *after], ids, strict=True))
        )
        return tokenizer

    return make


@pytest.fixture(scope="module")
def bos_tokenizer(begin_with):
    return begin_with("<|end|>")


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(write_corpus(1, 4000))
    return path


def of_file(path, **changes):
    return DataConfig(Source.FILES, str(path), str(path), str(path), **(SIZES | changes))


def windows(splits):
    return [getattr(splits, f"{split}_NT") for split in SPLITS]


def test_windows_begin_as_the_tokenizer_begins_a_text(bos_tokenizer, tiny_tokenizer, text_file):
    splits = draw_splits(of_file(text_file), bos_tokenizer, seed=0)
    assert splits.start == (0,)
    drawn_NT = torch.cat(windows(splits))
    assert drawn_NT.shape == (18, N_TOKENS)
    assert (drawn_NT[:, 0] == 0).all()
    assert (drawn_NT[:, 1:] != 0).all()
    assert len(set(map(tuple, drawn_NT.tolist()))) == 18
    plain = draw_splits(of_file(text_file), tiny_tokenizer, seed=0)
    assert plain.start == ()
    assert (torch.cat(windows(plain)) != 0).all()


def test_windows_stay_at_the_places_where_they_were_cut_and_give_their_last_token_up(bos_tokenizer, text_file):
    begun, cut = (draw_splits(of_file(text_file, bos=bos), bos_tokenizer, seed=3) for bos in (Bos.AUTO, Bos.NEVER))
    ids = bos_tokenizer(text_file.read_text())["input_ids"]
    places = {tuple(ids[at : at + N_TOKENS]) for at in range(0, len(ids), N_TOKENS)}
    for begun_NT, cut_NT in zip(windows(begun), windows(cut), strict=True):
        for begun_T, cut_T in zip(begun_NT.tolist(), cut_NT.tolist(), strict=True):
            assert tuple(cut_T) in places
            assert begun_T == (cut_T if cut_T[0] == 0 else [0, *cut_T[:-1]])
    assert all(begun.hashes[split] != cut.hashes[split] for split in SPLITS)


def test_a_whole_report_begins_every_window_and_the_first_but_once(bos_tokenizer, text_file, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text(write_corpus(2, 3000))
    config = DataConfig(Source.FILES, str(text_file), str(text_file), str(report), **(SIZES | {"n_report": 0}))
    ids = bos_tokenizer(report.read_text())["input_ids"]
    rest = [[0, *ids[at : at + N_TOKENS - 1]] for at in range(N_TOKENS, len(ids) - N_TOKENS + 1, N_TOKENS)]
    assert draw_splits(config, bos_tokenizer, seed=0).report_NT.tolist() == [ids[:N_TOKENS], *rest]


def test_never_leaves_windows_and_hashes_as_they_were_before_there_was_a_choice(tiny_tokenizer, text_file):
    hashes = [draw_splits(of_file(text_file, bos=bos), tiny_tokenizer, 0).hashes for bos in (Bos.AUTO, Bos.NEVER)]
    assert hashes[0] == hashes[1]
    always = draw_splits(of_file(text_file, bos=Bos.ALWAYS), tiny_tokenizer, 0)
    assert always.start == (0,)
    assert all(always.hashes[split] != hashes[0][split] for split in SPLITS)


def test_the_embedded_models_windows_are_those_of_every_run_so_far():
    # recorded before windows could begin with a token
    splits = draw_splits(DataConfig(), load_model(ModelConfig()).tokenizer, seed=0)
    assert {split: digest[:12] for split, digest in splits.hashes.items()} == RECORDED


def test_a_tokenizer_that_puts_several_tokens_before_a_text_gives_them_all(begin_with, text_file):
    several = begin_with("b", "<|end|>", after=["c"])
    start = tuple(several.convert_tokens_to_ids(["b", "<|end|>"]))
    splits = draw_splits(of_file(text_file), several, seed=0)
    assert splits.start == start
    assert {tuple(window[:2]) for window in torch.cat(windows(splits)).tolist()} == {start}
    with pytest.raises(
        ConfigError, match=r"n_tokens_per_window must be above 2, .*, got 2; give longer windows or data\.bos=NEVER"
    ):
        draw_splits(of_file(text_file, n_tokens_per_window=2), several, seed=0)


def test_always_needs_a_token_to_begin_with(tiny_tokenizer, text_file):
    without = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert start_tokens(without, Bos.AUTO, N_TOKENS) == ()
    with pytest.raises(ConfigError, match=r"data\.bos=ALWAYS needs a tokenizer with .*bos_token.*; give data\.bos=AUTO or NEVER"):
        draw_splits(of_file(text_file, bos=Bos.ALWAYS), without, seed=0)


def test_a_window_as_long_as_the_models_positions_stays_so_with_its_start(bos_tokenizer, text_file):
    assert draw_calibration(of_file(text_file), bos_tokenizer, 0, max_positions=N_TOKENS).shape == (5, N_TOKENS)


def test_what_the_model_writes_begins_alike(begin_with, make_tiny_model):
    several = begin_with("b", "<|end|>")
    start = several.convert_tokens_to_ids(["b", "<|end|>"])
    config = DataConfig(Source.SELF_GENERATED, **SIZES)
    write = text_writer(make_tiny_model("llama"), several, config)
    written_NT = draw_calibration(config, several, 0, write)
    assert written_NT[:, :2].tolist() == [start] * 5
    assert len({tuple(window) for window in written_NT[:, 2:].tolist()}) == 5


def test_windows_of_tasks_and_of_the_models_own_text_begin_as_the_search_text_does(bos_tokenizer, make_tiny_model):
    search_NT = torch.ones(4, N_TOKENS, dtype=torch.long)
    harness = SimpleNamespace(search_documents=lambda seed: iter([write_corpus(5, 1000)]))
    loaded = SimpleNamespace(model=make_tiny_model("llama"), tokenizer=bos_tokenizer)
    kinds = ["text", "self_generated", "tasks", "tasks"]
    splits = Splits(search_NT, search_NT, search_NT, {}, start=(0,))
    mixed_NT = mix_search_windows(splits, kinds, loaded, harness, seed=0).search_NT
    ids = bos_tokenizer(write_corpus(5, 1000), add_special_tokens=False)["input_ids"]
    assert mixed_NT[1, 0] == 0
    assert mixed_NT[2:].tolist() == [[0, *ids[: N_TOKENS - 1]], [0, *ids[N_TOKENS : 2 * N_TOKENS - 1]]]


def test_the_start_itself_is_not_scored_and_what_stands_after_it_is(make_tiny_model):
    model = make_tiny_model("llama", initializer_range=0.5)
    tokens_NT = torch.tensor([[0, 7, 8, 9]])
    evaluator = WindowEvaluator({"nll": Perplexity()}, model, find_blocks(model)[1], tokens_NT, batch_size=1)
    with torch.no_grad():
        logprobs_TV = model(input_ids=tokens_NT).logits[0].log_softmax(-1)
    expected = -sum(float(logprobs_TV[at, token]) for at, token in enumerate([7, 8, 9])) / 3
    assert evaluator.dense_scores[0] == pytest.approx(expected, rel=1e-5)


def test_no_window_has_no_start():
    empty_NT = torch.zeros(0, N_TOKENS, dtype=torch.long)
    assert begin_windows(empty_NT, (0,)) is empty_NT
