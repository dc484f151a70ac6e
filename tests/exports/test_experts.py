"""Experts: routers pass over those that are gone, and checkpoints without them say the same.

Shape suffixes: N sequences, T tokens.
"""

import json
from dataclasses import replace

import pytest
import torch
from calibrated import mask_levels, statistics_of
from transformers import AutoModelForCausalLM

from selfprune.allocations.unit import Item
from selfprune.errors import ConfigError
from selfprune.exports.block_writer import growing
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import save_checkpoint
from selfprune.models.fittings import fitted_in_place
from selfprune.models.loading import register_per_layer
from selfprune.models.structures import list_structures
from selfprune.models.units import n_parameters
from selfprune.pruners.structures.reap import REAP
from selfprune.pruners.structures.wanda_sp import WandaSP
from selfprune.pruning.sequential import prune_in_place

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
WINDOWS = torch.randint(1, 300, (6, 24), generator=torch.Generator().manual_seed(0))
IDS = WINDOWS[:2, :9]


@pytest.fixture
def load(load_tiny):
    """A tiny model whose experts are its units; a token is sent to two of six."""

    def call(family):
        number = "num_local_experts" if family == "mixtral" else "num_experts"
        loaded = load_tiny(family, num_hidden_layers=2, **{number: 6})
        return fitted_in_place(loaded.for_items(REAP().items()), adds_biases=False)

    return call


def reload(loaded, folder, by_block=False):
    save_checkpoint(PrunedCheckpoint(replace(loaded, source=None), folder, by_block), folder)
    register_per_layer(folder)
    return AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("removed", [(1, 3), (2, 2), (0, 0)], ids=str)
def test_the_model_without_the_experts_says_what_the_masked_one_says(family, removed, load, tmp_path):
    loaded = load(family)
    whole, units = n_parameters(loaded.model), loaded.units
    assert {unit.item for unit in units} == {Item.EXPERT}
    allocation = {unit.name: n for unit, n in zip(units, removed, strict=True)}
    assert prune_in_place(loaded, WINDOWS, REAP(), allocation, 2) == allocation
    small = reload(loaded, tmp_path / "cut")
    torch.testing.assert_close(small(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=1e-4)
    assert n_parameters(small) == whole - sum(n * units[0].weights_per_item for n in removed)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 299, "pad_token_id": 0}
    assert torch.equal(small.generate(IDS, **options), loaded.model.generate(IDS, **options))
    assert small.config.model_type == (family if removed[0] == removed[1] else f"per_layer_{family}")


def test_what_grows_block_by_block_is_the_same(load, tmp_path):
    loaded = load("mixtral")
    allocation = {unit.name: n for unit, n in zip(loaded.units, (1, 3), strict=True)}
    whole = replace(loaded, source=None)
    with growing(tmp_path / "grown", {}) as writer:
        prune_in_place(whole, WINDOWS, REAP(), allocation, 2, writer)
        writer.check_begun(whole, torch.split(WINDOWS, 2))
        writer.finish(whole)
        writer.publish()
    register_per_layer(tmp_path / "grown")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", experts_implementation="eager").eval()
    torch.testing.assert_close(small(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=1e-4)
    own = json.loads((tmp_path / "grown/config.json").read_text())["per_layer_config"]
    assert [block["num_local_experts"] for block in own.values()] == [5, 3]


def test_the_scores_are_what_routers_give_times_what_experts_put_out(load):
    loaded = load("mixtral")
    gathered = statistics_of(loaded, WINDOWS, REAP(), 2)
    hidden = {}
    blocks = [block.mlp for block in loaded.blocks]
    hooks = [mlp.register_forward_pre_hook(lambda m, a: hidden.setdefault(id(m), []).append(a[0])) for mlp in blocks]
    for window_T in WINDOWS:
        loaded.model(window_T[None])
    for hook in hooks:
        hook.remove()
    for unit, mlp in zip(loaded.units, blocks, strict=True):
        states = torch.cat([each.flatten(0, 1) for each in hidden[id(mlp)]])
        _, weights, index = mlp.gate(states)
        expected = []
        for expert in range(6):
            token, place = (index == expert).nonzero(as_tuple=True)
            gate, up = (states[token] @ mlp.experts.gate_up_proj[expert].T).chunk(2, dim=1)
            outputs = (mlp.experts.act_fn(gate) * up) @ mlp.experts.down_proj[expert].T
            expected.append((weights[token, place] * outputs.norm(dim=1)).mean())
        scores = REAP().scores(torch.zeros(1, 6, 1), gathered[unit.name])
        torch.testing.assert_close(scores, torch.stack(expected).nan_to_num(), rtol=1e-4, atol=1e-6)


def test_levels_leave_as_many_experts_as_a_token_is_sent_to_and_masks_are_undone(load):
    loaded = load("qwen3_moe")
    grid = REAP().grid(loaded.units, 0.01)
    assert {levels.items for levels in grid.levels.values()} == {(0, 1, 2, 3, 4)}
    dense = loaded.model(IDS).logits
    store = mask_levels(loaded, grid, WINDOWS, REAP(), 2)
    store.load({unit.name: 4 for unit in loaded.units})
    masked = loaded.model(IDS).logits
    assert masked.isfinite().all()
    assert not torch.allclose(masked, dense, atol=1e-3)
    store.restore()
    assert torch.equal(loaded.model(IDS).logits, dense)


def test_heads_of_models_of_experts_are_cut_as_others(load_tiny, tmp_path):
    loaded = load_tiny("mixtral").for_items([Item.HEAD_GROUP])
    prune_in_place(loaded, WINDOWS, WandaSP(structures=[Item.HEAD_GROUP]), {u.name: u.block for u in loaded.units}, 2)
    small = reload(loaded, tmp_path / "cut")
    torch.testing.assert_close(small(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=1e-4)


def test_experts_and_their_router_rows_are_what_a_structure_names(load):
    structure = next(s for s in list_structures(load("qwen2_moe").model) if s.unit.item is Item.EXPERT)
    assert [part.parameter.partition("mlp.")[2] for part in structure.slices] == [
        "gate.weight", "experts.gate_up_proj", "experts.down_proj",
    ]  # fmt: skip
    assert structure.unit.weights_per_item == 32 + 3 * 24 * 32


@pytest.mark.parametrize("make", [lambda: WandaSP(structures=[Item.EXPERT]), lambda: REAP(structures=[Item.CHANNEL])])
def test_each_pruner_has_its_own_items(make):
    with pytest.raises(ConfigError, match=r"alone, got pruner\.structures="):
        make()
