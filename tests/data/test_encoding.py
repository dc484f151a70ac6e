import json
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from selfprune.data.encoding import encode_text, surrounding_tokens
from selfprune.embedded.corpus import write_corpus

SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = write_corpus(0, 20_000) + " 123 4567 12345678 don't we'll  \n\n  aaaa aaaaaa äöü 漢字 漢字漢字 end.\n" * 50
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TO_METASPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BEGIN = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
BEGIN_AND_END = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
BITS = [
    "the boats near the old soldiers tremble", "\n", "\n\n", " ", "  ", "     ", "\t", "12345678", "7", "1 2 3", "aaaa",
    "a" * 300, "9" * 301,
    " " * 300, "漢字", "ä", "e\u0301", "don't", "<s>", " <mask> ", "won", "wonder", "won!", "😀", "ﬁ", "\u00a0", "\r\n",
    "$%&", "-" * 40, "\ufffd", "\u2028", ". ", "Mara lives in Oslo. ",
]  # fmt: skip


def train(model, words, trainer, normalizer=None, around=None, added=()):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = words
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator([CORPUS], trainer)
    if around is not None:
        tokenizer.post_processor = around
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def bpe(*, with_bytes=True):
    alphabet = pre_tokenizers.ByteLevel.alphabet() if with_bytes else []
    return trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)


def unigram():
    return trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)


def changed(tokenizer, **parts):
    """A copy of a tokenizer with other parts."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | parts
    if content["model"].get("byte_fallback"):
        vocabulary = content["model"]["vocab"]
        for byte in range(256):
            vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers():
    """One of every make that causal models have."""
    words = pre_tokenizers
    byte_words = words.ByteLevel(add_prefix_space=False, use_regex=False)
    as_sentencepiece = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, TO_METASPACE]}
    fallback = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    pieces = train(fallback, words.Metaspace(), bpe(with_bytes=False), around=BEGIN)
    by_spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    clean = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    of_unigrams = train(models.Unigram(), words.Metaspace(), unigram(), clean, BEGIN_AND_END)
    word_pieces = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    lower = normalizers.BertNormalizer(lowercase=True)
    by_sevens = words.Sequence([words.Split(Regex(r"[\s\S]{7}"), "isolated"), byte_words])
    digits = words.Sequence([words.Digits(individual_digits=True), words.ByteLevel(add_prefix_space=False)])
    return {
        "gpt2": train(models.BPE(), words.ByteLevel(add_prefix_space=False), bpe()),
        "roberta": train(models.BPE(), words.ByteLevel(add_prefix_space=True), bpe(), around=BEGIN_AND_END),
        "llama3": train(
            models.BPE(ignore_merges=True),
            words.Sequence([words.Split(Regex(LLAMA3_WORDS), "isolated"), byte_words]),
            bpe(),
            around=processors.Sequence([processors.ByteLevel(trim_offsets=False), BEGIN]),
        ),
        "llama2": changed(pieces, pre_tokenizer=None, normalizer=as_sentencepiece),
        "gemma": changed(pieces, pre_tokenizer=by_spaces, normalizer=TO_METASPACE),
        "metaspace": train(models.BPE(unk_token="<unk>"), words.Metaspace(prepend_scheme="first"), bpe(), around=BEGIN),
        "unigram": of_unigrams,
        "unigram without words": changed(of_unigrams, pre_tokenizer=None, normalizer=as_sentencepiece),
        # where a word begins depends on all that stands before it
        "sevens": train(models.BPE(), by_sevens, bpe()),
        "bert": train(models.WordPiece(unk_token="<unk>"), words.BertPreTokenizer(), word_pieces, lower, BEGIN_AND_END),
        "digits and added tokens": train(
            models.BPE(), digits, bpe(), added=[AddedToken("<mask>", lstrip=True), AddedToken("won", single_word=True)]
        ),
    }  # fmt: skip


class Counting:
    """A tokenizer that notes how long the texts were that it was called with."""

    is_fast = True

    def __init__(self, tokenizer):
        self.tokenizer, self.lengths = tokenizer, []
        self.backend_tokenizer = tokenizer.backend_tokenizer

    def __call__(self, text, **options):
        self.lengths.append(len(text))
        return self.tokenizer(text, **options)


@given(
    data=st.data(),
    bits=st.lists(st.sampled_from(BITS), min_size=2, max_size=12),
    random=st.randoms(use_true_random=False),
    n_bits=st.integers(50, 600),
    piece=st.sampled_from([200, 500, 1500]),
    margin=st.sampled_from([64, 128, 256]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_pieces_give_the_tokens_of_one_call(tokenizers, data, bits, random, n_bits, piece, margin):
    text = "".join(random.choice(bits) for _ in range(n_bits))
    name = data.draw(st.sampled_from(sorted(tokenizers)))
    assert encode_text(tokenizers[name], text, piece, margin).tolist() == tokenizers[name](text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "bits", "seed", "piece", "margin"),
    [
        # Single characters agree wherever their words of seven begin.
        ("sevens", ["\n\n", "won!", "\ufffd", BITS[0], "9" * 301], 0, 200, 256),
        # Halves of a long word agree, but the sums of the whole word round differently.
        ("unigram", ["a" * 300, "ä", "\u2028", "aaaa", "     "], 1, 500, 64),
    ],
)  # fmt: skip
def test_pieces_join_where_their_words_agree(tokenizers, name, bits, seed, piece, margin):
    text = "".join(Random(seed).choices(bits, k=200))
    assert encode_text(tokenizers[name], text, piece, margin).tolist() == tokenizers[name](text)["input_ids"]


def test_an_ordinary_text_is_encoded_in_pieces_and_one_without_joins_by_one_call(tokenizers):
    text = write_corpus(3, 30_000)
    for name, tokenizer in tokenizers.items():
        counting = Counting(tokenizer)
        assert encode_text(counting, text, piece=2000, margin=256).tolist() == tokenizer(text)["input_ids"]
        longest = len(text) if name in ("sevens", "unigram without words") else 2000 + 4 * 256 + 10
        assert max(counting.lengths) <= longest, name
        assert sum(counting.lengths) < (4 if name == "sevens" else 1.4) * len(text), name
        wordless = "a" * 5000
        assert encode_text(counting, wordless, piece=500, margin=64).tolist() == tokenizer(wordless)["input_ids"]


def test_special_tokens_stand_once_around_the_whole(tokenizers):
    around = {name: surrounding_tokens(tokenizer) for name, tokenizer in tokenizers.items()}
    assert around["gpt2"] == ([], [])
    assert around["llama3"] == around["llama2"] == around["gemma"] == ([1], [])
    assert around["roberta"] == around["unigram"] == ([1], [2])


def test_a_slow_tokenizer_is_called_once(tokenizers):
    text = write_corpus(3, 5000)
    counting = Counting(tokenizers["gpt2"])
    counting.is_fast = False
    assert encode_text(counting, text, piece=500, margin=64).tolist() == tokenizers["gpt2"](text)["input_ids"]
    assert counting.lengths == [len(text)]
