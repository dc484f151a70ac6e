"""Whether the tokens of a tokenizer have rows in the model's embedding.

Shape suffixes: N windows, T tokens.
"""

from typing import Any

from torch import Tensor

from selfprune.errors import DataError, ModelError

REMEDY = "the tokenizer belongs to another model, or was given tokens after training (resize_token_embeddings adds rows for them)"


def n_embedding_rows(model: Any) -> int:
    """How many tokens a model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_vocabulary(path: str, tokenizer: Any, model: Any) -> None:
    """Refuses a tokenizer of which ordinary text may give tokens without a row; added ones are checked where a text has them.

    Args:
        path: the model as the user named it.
        tokenizer: its tokenizer.
        model: the model, whose weights need not be at hand.

    Raises:
        ModelError: when a token of its own vocabulary has none.
    """
    n_rows, added = n_embedding_rows(model), tokenizer.get_added_vocab()
    beyond = {token: at for token, at in tokenizer.get_vocab().items() if at >= n_rows and token not in added}
    if beyond:
        token, at = max(beyond.items(), key=lambda item: item[1])
        raise ModelError(
            f"the tokenizer of model.path={path} has {len(beyond)} tokens without a row in the embedding, which has {n_rows:,}, "
            f"such as {token!r} with the number {at:,}; {REMEDY}, so give a folder in which both belong together"
        )


def check_windows(windows_NT: Tensor, tokenizer: Any, n_rows: int, split: str) -> None:
    """Refuses windows with a token that has no row.

    Args:
        windows_NT: token ids.
        tokenizer: spells the token.
        n_rows: of the embedding.
        split: whose windows they are.

    Raises:
        DataError: when there is one.
    """
    highest = int(windows_NT.max()) if windows_NT.numel() else -1
    if highest >= n_rows:
        raise DataError(
            f"the {split} windows hold the token {tokenizer.convert_ids_to_tokens(highest)!r} with the number {highest:,}, but "
            f"the embedding of the model has {n_rows:,} rows; {REMEDY}; take it out of the text (data.{split}), or mend the model"
        )
