import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from selfprune.errors import DataError, ModelError
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.vocabulary import check_windows, n_embedding_rows


@pytest.fixture
def with_tokenizer(tiny_model_folder, tmp_path):
    """Gives the folder of the tiny Llama, which has 300 rows, with another tokenizer."""

    def make(tokenizer):
        folder = Path(shutil.copytree(tiny_model_folder("llama"), tmp_path / "model"))
        tokenizer.save_pretrained(folder)
        return ModelConfig(str(folder), device="cpu")

    return make


@pytest.fixture
def own(tiny_tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str()))


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_before_weights_are_read(
    with_tokenizer, make_tiny_model, own, tmp_path
):
    config = with_tokenizer(own)
    make_tiny_model("llama", vocab_size=290).save_pretrained(config.path)
    with pytest.raises(ModelError, match=r"has 10 tokens without a row in the embedding, which has 290, such as .* number 299; "):
        load_model(config)


def test_an_added_token_without_a_row_is_refused_where_a_text_has_it(with_tokenizer, own):
    own.add_tokens(["<extra>"])
    loaded = load_model(with_tokenizer(own))
    assert n_embedding_rows(loaded.model) == 300
    check_windows(torch.tensor([[0, 299]]), loaded.tokenizer, 300, "search")
    ids = loaded.tokenizer("a <extra> b")["input_ids"]
    with pytest.raises(DataError, match=r"the search windows hold the token '<extra>' with the number 300, but .* has 300 rows"):
        check_windows(torch.tensor([ids]), loaded.tokenizer, 300, "search")
