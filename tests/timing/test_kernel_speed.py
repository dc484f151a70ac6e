"""The speed of a model by the fastest kernel of each matrix."""

import json

import pytest
import torch
from torch import nn

from selfprune.inspect import main as inspect
from selfprune.timing import kernel_speed as module
from selfprune.timing.kernel_speed import KernelSpeed, SparseLinear, kernel_speed
from selfprune.timing.workload import Mode, Workload


def test_a_sparse_layer_gives_what_the_dense_one_gives():
    for bias in (False, True):
        dense = nn.Linear(12, 6, bias=bias).requires_grad_(False)
        dense.weight[:, ::3] = 0
        inputs_NTI = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(SparseLinear(dense, "csr")(inputs_NTI), dense(inputs_NTI))


def test_the_model_runs_with_the_chosen_kernels_and_is_the_same_afterwards(load_tiny, monkeypatch):
    loaded = load_tiny("llama")
    blocks = {name: layer for name, layer in loaded.model.named_modules() if isinstance(layer, nn.Linear) and "mlp" in name}
    for layer in blocks.values():
        layer.weight[:, ::2] = 0
    ids = torch.ones(1, 4, dtype=torch.long)
    expected, seen = loaded.model(ids).logits, []
    monkeypatch.setattr(module, "_fastest", lambda layer, n_rows: "csr" if (layer.weight == 0).any() else "dense")
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x, own=SparseLinear.forward: seen.append(len(x)) or own(self, x))
    speed = kernel_speed(loaded.model, Workload(Mode.DECODE, 1, 4))
    assert speed.kernels == {"csr": len(blocks), "dense": 2 * 4 + 1}
    assert len(seen) == len(blocks) * 2 * (module.N_REPEATS + 1)
    assert torch.equal(loaded.model(ids).logits, expected)
    assert all(loaded.model.get_submodule(name) is layer for name, layer in blocks.items())


@pytest.mark.parametrize(
    ("seconds", "kernels", "said"),
    [
        (0.5, {"csr": 3, "dense": 1}, "10 tokens per second dense, 20 with the fastest kernel of each matrix (csr for 3, "
         "dense for 1): 2.00 times as fast."),
        (1.01, {"csr": 3}, "10 with the fastest kernel of each matrix (csr for 3): no gain (0.99 times as fast)."),
        (1.0, {"dense": 4}, "10 tokens per second dense; no kernel of torch is faster for any of its 4 matrices, zeros or not."),
    ],
)  # fmt: skip
def test_a_gain_is_told_where_there_is_one(seconds, kernels, said):
    told = KernelSpeed("reading 1 x 10 tokens", "a machine", 10, 1.0, seconds, kernels).sentence()
    assert told.startswith("Reading 1 x 10 tokens on a machine: 10 tokens per second dense")
    assert told.endswith(said)


def test_inspect_adds_the_speed_when_asked(make_tiny_model, tiny_tokenizer, tmp_path, capsys):
    make_tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert inspect([str(tmp_path), "--speed", "--json", "--context", "8"]) == 0
    prefill, decode = json.loads(capsys.readouterr().out)["speed"]
    assert (prefill["n_tokens"], decode["n_tokens"]) == (8, 1)
    assert prefill["seconds"] > 0
    assert inspect([str(tmp_path), "--speed", "--context", "60"]) == 2
    assert "do not fit the 64 positions" in capsys.readouterr().err
    assert inspect([str(tmp_path), "--speed", "--context", "0"]) == 2
    assert "context must be at least 1, got 0" in " ".join(capsys.readouterr().err.split())
