"""Seconds of attentions and FFNs at every width, and of a model that reads and writes."""

import json
from dataclasses import asdict

import pytest
import torch

from selfprune.allocations.budget import Budget, Measure
from selfprune.allocations.latency_table import LatencyTable
from selfprune.errors import ConfigError, ModelError
from selfprune.latency import main as latency
from selfprune.models.structures import context_costs, list_structures
from selfprune.pruners.structures.wanda_sp import WandaSP
from selfprune.timing.structure_seconds import structure_seconds, structure_shapes
from selfprune.timing.unit_seconds import check_latency_table
from selfprune.timing.workload import Mode, Timed, Workload

FEW = Workload(Mode.MIX, batch_size=2, context=6, n_new=3)


@pytest.fixture
def load(load_tiny):
    return lambda family, **changes: load_tiny(family, **changes).for_items(WandaSP().items())


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "phi3", "qwen3"])
def test_every_unit_has_seconds_from_whole_to_gone(family, load):
    loaded = load(family, num_hidden_layers=3)
    found = structure_seconds(loaded.model, loaded.units, FEW, 5, torch.float32, torch.device("cpu"), 1)
    table = LatencyTable({name: tuple(points) for name, points in found.points.items()})
    table.check(loaded.units)
    assert found.outside > 0
    for unit in loaded.units:
        points = table.points.get(unit.name) or table.points[unit.kind]
        n_widths = min(5, unit.n_items + 1)
        assert [round(unit.n_items * (1 - at)) for at, _ in points] == [
            round(unit.n_items * i / (n_widths - 1)) for i in range(n_widths - 1, -1, -1)
        ]
        assert all(seconds > 0 for _, seconds in points)


def test_a_family_that_calls_its_parts_otherwise_has_no_seconds(load):
    loaded = load("opt")
    with pytest.raises(ModelError, match="models of the type opt cannot be measured; those that can are gemma, "):
        structure_seconds(loaded.model, loaded.units, FEW, 3, torch.float32, torch.device("cpu"), 1)


def test_a_model_is_timed_as_often_as_asked_and_its_parts_are_in_the_whole(load):
    loaded = load("llama")
    timed = Timed(loaded.model, FEW, {"first": loaded.blocks[0]})
    timed.repeat(is_counted=False)
    for _ in range(3):
        timed.repeat()
    assert [len(samples) for samples in timed.samples.values()] == [3, 3]
    assert all(0 < part < whole for part, whole in zip(timed.samples["first"], timed.samples[""], strict=True))
    assert FEW.n_tokens == 2 * (6 + 3)
    assert str(FEW) == "writing 3 tokens after 2 x 6 tokens"


def test_a_workload_has_no_number_below_one():
    with pytest.raises(ConfigError, match="context must be at least 1, got 0"):
        Workload(context=0)


def test_a_table_of_widths_serves_the_model_that_it_was_measured_for(load, tmp_path, capsys):
    loaded = load("llama")
    loaded.model.save_pretrained(tmp_path / "model")
    told = ["model=local", f"model.path={tmp_path / 'model'}", "workload.context=8", "n_widths=3", "n_repeats=1"]
    assert latency([*told, "items=STRUCTURES", f"output={tmp_path / 'table.json'}"]) == 0
    assert "self_attn" in capsys.readouterr().out
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["seconds_outside"] > 0
    assert (content["measured"]["mode"], content["measured"]["context"]) == ("PREFILL", 8)
    budget = Budget(measure=Measure.LATENCY, latency_table=str(tmp_path / "table.json"), speedup=1.1)
    assert check_latency_table(budget, loaded) == []
    with pytest.raises(ConfigError, match=r"was measured with mlp of \[48.0, 96.0, 1.0\] \(items, .* has it of \[64.0"):
        check_latency_table(budget, load("llama", intermediate_size=64))
    assert latency(["items=STRUCTURES", "n_widths=1", f"output={tmp_path / 'other.json'}"]) == 2


def test_units_of_one_kind_that_differ_have_shapes_of_their_own(load, tmp_path):
    units = load("llama").units
    shapes = structure_shapes(units)
    assert shapes == {"self_attn": [2.0, 1536.0, 16.0], "mlp": [48.0, 96.0, 1.0]}
    other = type(units[1])(**{**asdict(units[1]), "n_items": 40, "item": units[1].item})
    assert structure_shapes([*units[:1], other, *units[2:]])[other.name] == [40.0, 96.0, 1.0]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "phi3", "olmo2", "gpt2", "gpt_neox", "opt"])
def test_what_a_cache_keeps_is_what_is_counted(family, load):
    model = load(family).model
    ids = torch.randint(1, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    cache = model(ids, use_cache=True).past_key_values
    n_cached = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert context_costs(model, 9).n_cached == n_cached
    assert context_costs(model, 0).n_cached == 0


def test_a_window_bounds_what_is_kept_and_scored(load):
    model = load("mistral", sliding_window=5).model
    attention = next(s for s in list_structures(model) if s.cached_per_item)
    costs = context_costs(model, 100)
    assert costs.cached_per_item[attention.unit.name] == 5 * attention.cached_per_item
    assert costs.scored_per_item[attention.unit.name] == 4 * 5 * attention.unit.item_width
    cache = model.generate(torch.ones(1, 30, dtype=torch.long), max_new_tokens=2, return_dict_in_generate=True).past_key_values
    assert all(layer.keys.shape[2] <= 5 for layer in cache.layers)
