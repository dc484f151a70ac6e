"""The counts, against the same weights counted in memory and against small tensors written by hand."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from selfprune.checkpoints import stored_tensors
from selfprune.checkpoints.census import add, take_census
from selfprune.checkpoints.reader import Checkpoint
from selfprune.errors import ModelError
from selfprune.models.units import list_units, weight_view

N_EXPERTS, HIDDEN, WIDTH = 3, 16, 24


@pytest.fixture
def family(any_family):
    """Every family, not one of each layout alone."""
    return any_family


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def write(tmp_path):
    """Writes tensors as a checkpoint and opens it."""

    def make(tensors, **config):
        (tmp_path / "config.json").write_text(json.dumps({"hidden_size": HIDDEN} | config))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
        return Checkpoint(tmp_path)

    return make


def keep(weight, n, m, generator):
    """The weight with n of every m consecutive inputs (last axis) left, at random places."""
    ranks = torch.rand(*weight.shape[:-1], weight.shape[-1] // m, m, generator=generator).argsort(-1).argsort(-1)
    return torch.where((ranks < n).reshape(weight.shape), weight, 0.0)


def prune(model, generator, n=None, m=None):
    """Prunes all units in place; returns the zeros per block."""
    zeros = {}
    for i, unit in enumerate(list_units(model)):
        view = weight_view(model, unit)
        loose = torch.where(torch.rand(view.shape, generator=generator) < i % 4 / 4, 0.0, view)
        view.copy_(loose if n is None else keep(view, n, m, generator))
        zeros[unit.block] = zeros.get(unit.block, 0) + int((view == 0).sum())
    return zeros


def test_every_family_is_counted_as_in_memory(family, make_tiny_model, generator, tmp_path):
    model = make_tiny_model(family)
    zeros = prune(model, generator)
    model.save_pretrained(tmp_path)
    census = take_census(Checkpoint(tmp_path))
    assert [count.n_zeros for count in census.blocks()] == list(zeros.values())
    total = add("units", census.units.values())
    assert total.n_items == sum(unit.n_items for unit in list_units(model))
    assert add("kinds", census.kinds()) == add("kinds", census.blocks())
    assert total.n_items + sum(count.n_items for count in census.other) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("n", "m", "satisfied"), [(2, 4, ("2:4", "4:8")), (1, 4, ("1:4", "2:4", "4:8")), (4, 8, ("4:8",))])
def test_every_family_shows_the_pattern_it_was_pruned_to(n, m, satisfied, family, make_tiny_model, generator, tmp_path):
    model = make_tiny_model(family)
    prune(model, generator, n, m)
    model.save_pretrained(tmp_path)
    census = take_census(Checkpoint(tmp_path))
    assert {count.patterns for count in census.units.values()} == {satisfied}
    assert {count.patterns for count in (*census.kinds(), *census.blocks())} == {satisfied}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pattern_along_the_outputs_is_none(family, make_tiny_model, generator, tmp_path):
    model = make_tiny_model(family)
    for unit in list_units(model):
        view = weight_view(model, unit)
        view.copy_(keep(view.T, 2, 4, generator).T)
    model.save_pretrained(tmp_path)
    census = take_census(Checkpoint(tmp_path))
    assert {count.patterns for count in census.units.values()} == {()}
    assert add("units", census.units.values()).sparsity == 0.5


def test_pieces_change_nothing(make_tiny_model, generator, tmp_path, monkeypatch):
    model = make_tiny_model("gpt2")
    prune(model, generator, 4, 8)
    model.save_pretrained(tmp_path)
    whole = take_census(Checkpoint(tmp_path))
    monkeypatch.setattr(stored_tensors, "CHUNK_ITEMS", 1000)
    pieces = [piece for tensor in Checkpoint(tmp_path).tensors.values() for piece in tensor.pieces()]
    assert max(piece.numel() for piece in pieces) <= 1024
    assert take_census(Checkpoint(tmp_path)) == whole


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_stacked_experts_are_read_along_their_inputs(is_transposed, is_fused, suffix, write, generator):
    gates = {"gate_up": 2 * WIDTH} if is_fused else {"gate": WIDTH, "up": WIDTH}
    stacks = {name: torch.randn(N_EXPERTS, n, HIDDEN, generator=generator) for name, n in gates.items()}
    stacks["down"] = torch.randn(N_EXPERTS, HIDDEN, WIDTH, generator=generator)
    tensors = {"layers.0.mlp.router.weight": torch.ones(N_EXPERTS, HIDDEN)}
    for name, stack in stacks.items():
        pruned = keep(stack, 2, 4, generator)
        tensors[f"layers.0.mlp.experts.{name}{suffix}"] = pruned.mT if is_transposed else pruned
    census = take_census(write(tensors))
    assert {place.kind for place in census.units} == {f"mlp.experts.{name}" for name in stacks}
    assert {count.patterns for count in census.units.values()} == {("2:4", "4:8")}
    assert add("units", census.units.values()).n_zeros == N_EXPERTS * HIDDEN * WIDTH * 3 // 2


def test_stacked_experts_without_a_gate_are_counted_with_patterns_unknown(write):
    stacks = {"up": torch.zeros(N_EXPERTS, WIDTH, HIDDEN), "down": torch.ones(N_EXPERTS, HIDDEN, WIDTH)}
    census = take_census(write({f"layers.0.experts.{name}": stack for name, stack in stacks.items()}))
    assert {count.patterns for count in census.units.values()} == {None}
    total = add("units", census.units.values())
    assert (total.n_items, total.n_zeros, total.patterns) == (2 * N_EXPERTS * HIDDEN * WIDTH, N_EXPERTS * HIDDEN * WIDTH, None)


def test_routers_convolutions_biases_and_embeddings_are_no_units(write):
    tensors = {
        **{f"layers.0.moe.experts.{i}.w1.weight": torch.ones(8, 4) for i in range(N_EXPERTS)},
        "layers.0.moe.gate.weight": torch.zeros(N_EXPERTS, 4),
        "layers.0.moe.shared_gate.weight": torch.zeros(1, 4),
        "layers.0.attention.out.weight": torch.ones(4, 4),
        "layers.0.q_conv.weight": torch.zeros(8, 1, 4),
        "layers.0.k_conv.weight": torch.zeros(8, 1, 4),
        "layers.0.attention.relative_attention_bias.weight": torch.zeros(8, 2),
        "layers.0.embed_tokens.weight": torch.zeros(8, 4),
        "layers.0.norm.weight": torch.zeros(4),
        "scale": torch.tensor(0.0),
    }
    census = take_census(write(tensors))
    assert [count.name for count in census.kinds()] == ["attention.out", "moe.experts.*.w1"]
    assert add("units", census.units.values()).n_zeros == 0
    assert all(count.n_items == count.n_zeros for count in census.other)


def test_two_lists_are_told_apart_and_blocks_stand_in_order(write):
    tensors = {f"text.layers.{i}.q.weight": torch.ones(4, 4) for i in (0, 2, 10)} | {"eyes.blocks.0.q.weight": torch.zeros(4, 4)}
    census = take_census(write(tensors))
    assert [(count.name, count.n_zeros) for count in census.kinds()] == [("eyes.blocks.*.q", 16), ("text.layers.*.q", 0)]
    assert [count.name for count in census.blocks()] == ["eyes.blocks.0", "text.layers.0", "text.layers.2", "text.layers.10"]


def test_a_width_that_the_pattern_does_not_divide_satisfies_none(write):
    census = take_census(write({"layers.0.a.weight": torch.zeros(4, 12), "layers.0.b.weight": torch.zeros(4, 6)}))
    assert [count.patterns for count in census.units.values()] == [("1:4", "2:4"), ()]


def test_a_tied_table_that_was_stored_twice_is_counted_once(write, generator):
    table = torch.randn(8, 4, generator=generator)
    tensors = {
        "layers.0.q.weight": torch.ones(4, 4),
        "embed.weight": table,
        "head.weight": table.clone(),
        "other.weight": table + 1,
    }
    census = take_census(write(tensors))
    assert census.tied == ["head.weight"]
    assert [count.name for count in census.other] == ["embed.weight", "other.weight"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_every_number_format_knows_both_its_zeros(dtype, write):
    weight = torch.tensor([[0.0, -0.0, 1.0, 2.0]] * 4).to(dtype)
    (count,) = take_census(write({"layers.0.q.weight": weight})).units.values()
    assert (count.n_items, count.n_zeros, count.patterns) == (16, 8, ("2:4",))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_a_quantised_checkpoint_is_refused(dtype, write):
    with pytest.raises(ModelError, match="quantised checkpoint"):
        take_census(write({"layers.0.q.weight": torch.ones(4, 4, dtype=dtype)}))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_a_causal_mask_is_no_weight(dtype, write):
    mask = torch.ones(1, 1, 4, 4).tril().to(dtype)
    census = take_census(write({"layers.0.q.weight": torch.ones(4, 4), "layers.0.attention.bias": mask}))
    assert (len(census.units), census.other) == (1, [])


def bitmasked(name, weight, kept):
    """The parts of a weight in a sparse bitmask format; `kept` says which bits are set."""
    bits = np.packbits(kept.numpy(), axis=-1, bitorder="little")
    return {f"{name}.bitmask": torch.from_numpy(bits), f"{name}.compressed": weight[kept], f"{name}.shape": torch.tensor([4, 12])}


def test_bitmasked_weights_are_counted_like_dense_ones(write, generator):
    weight = keep(torch.randn(4, 12, generator=generator), 1, 4, generator)
    two_of_four = torch.tensor([True, False, True, False]).repeat(4, 3) & (weight == 0)
    padded = (weight != 0) | two_of_four
    tensors = {"layers.0.dense.weight": weight, **bitmasked("layers.0.bits", weight, weight != 0)}
    tensors |= bitmasked("layers.0.padded", weight, padded) | {"layers.0.bits.row_offsets": torch.arange(4)}
    census = take_census(write(tensors))
    assert [count.name for count in census.units.values()] == [f"layers.0.{name}" for name in ("bits", "dense", "padded")]
    assert {(count.n_items, count.n_zeros, count.patterns) for count in census.units.values()} == {(48, 36, ("1:4", "2:4"))}
    assert padded.sum() > 12
    assert census.other == []


def test_a_bitmasked_weight_without_values_is_all_zeros(write):
    weight = torch.zeros(4, 12)
    (count,) = take_census(write(bitmasked("layers.0.q", weight, weight != 0))).units.values()
    assert (count.n_items, count.n_zeros) == (48, 48)


def test_a_bitmask_that_belongs_to_other_values_is_refused(write):
    tensors = bitmasked("layers.0.q", torch.ones(4, 12), torch.ones(4, 12, dtype=torch.bool))
    tensors["layers.0.q.compressed"] = torch.ones(47)
    with pytest.raises(ModelError, match=r"layers\.0\.q\.weight sets 48 bits for 47 values"):
        take_census(write(tensors))
