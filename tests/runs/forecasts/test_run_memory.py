import pytest
import torch
from hydra import compose, initialize_config_dir

from selfprune.allocations.level_grid import LevelGrid
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import RunConfig, register_schemas, to_config
from selfprune.errors import ModelError
from selfprune.models.blocks.walk import N_LOGITS_AT_ONCE
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.runs.forecasts import run_memory
from selfprune.runs.forecasts.run_memory import check_generation, chosen_memory, held_bytes
from selfprune.runs.run_preflight import preflight
from selfprune.search.search_config import Memory


def configured(*overrides):
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return to_config(compose("config", overrides=list(overrides)), RunConfig)


def test_the_logits_of_lm_eval_are_expected_where_they_take_more_than_those_of_windows(tiny_model_folder, tmp_path):

    def expected(*overrides):
        given = ["model=local", f"model.path={tiny_model_folder('llama')}", "model.device=cpu", *overrides]
        return preflight(configured(*given), tmp_path).peak_memory_bytes

    small = ["search.batch_size=1", "data.n_tokens_per_window=4"]
    of_windows = 4 * 4 * 300 * (4 + 16)  # gradients take four windows at once
    of_batches = [expected(f"search.batch_size={n}", small[1], "harness=none") for n in (1, 4, 5)]
    assert [each - of_batches[0] for each in of_batches] == [0, 0, of_windows // 4]
    added = expected(*small, "harness.batch_size=2") - expected(*small, "harness=none")
    assert added == 2 * 64 * 300 * (4 + 8) - of_windows  # two requests of all 64 positions
    most = expected(*small, "harness.batch_size=100000") - expected(*small, "harness=none")
    assert most == N_LOGITS_AT_ONCE * (4 + 8) - of_windows


def test_built_levels_are_expected_to_take_their_bounds_or_all_of_them_where_that_is_less(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")

    def expected(*overrides):
        given = ["model=local", f"model.path={folder}", "model.device=cpu", *overrides]
        found = preflight(configured(*given), tmp_path)
        return torch.tensor([found.peak_memory_bytes, found.disk_bytes])

    units = load_model(ModelConfig(str(folder), device="cpu")).units
    grid = LevelGrid.with_constant_step(units, 0.05)
    of_levels = sum(4 * unit.n_weights * grid.levels[unit.name].n_steps for unit in units)
    # per block six units of width 32 and one of 48
    of_statistics = 2 * 4 * (6 * 32**2 + 48**2)
    masks = expected("pruner=sparsegpt", "search.levels.kind=MASKS")
    # twenty levels of the smallest units and thirty of the MLP's: a byte a weight
    numbers = torch.tensor([sum(unit.n_weights for unit in units), 0])
    built = ["pruner=sparsegpt"]
    assert (expected(*built) - masks + numbers).tolist() == [of_levels + of_statistics] * 2
    bounds = ["search.levels.memory_gb=0.0001", "search.levels.statistics_gb=0.00001", "search.levels.cache_gb=0.0002"]
    assert (expected(*built, *bounds) - masks + numbers).tolist() == [110_000, 200_000]
    spread = [expected("model.placement=SPREAD", f"search.levels.kind={kind}", *built) for kind in ("BUILT", "MASKS")]
    assert (spread[0] - spread[1]).tolist() == [of_levels + of_statistics] * 2
    elsewhere = expected(*built, f"search.levels.folder={tmp_path / 'levels'}") - masks + numbers
    assert elsewhere.tolist() == [of_levels + of_statistics, 0]


def test_keys_and_values_count_where_they_take_more_than_logits_and_are_refused_where_they_do_not_fit(
    tiny_model_folder, monkeypatch
):
    folder = tiny_model_folder("llama")
    config = configured(
        "model=local", f"model.path={folder}", "search.batch_size=1", "data.n_tokens_per_window=4", "harness.batch_size=2"
    )
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    of_logits = 2 * 64 * 300 * (4 + 8)
    assert check_generation(config, loaded, of_logits) == 0
    assert check_generation(config, loaded, of_logits + 1000) == 1000
    monkeypatch.setattr(run_memory, "free_memory_bytes", lambda _: 10**9)
    assert check_generation(config, loaded, 10**8) == 10**8 - of_logits
    with pytest.raises(ModelError, match=r"take 1\.00 GB for the keys and values of 2 requests .*a lower harness\.batch_size"):
        check_generation(config, loaded, 10**9)
    # a run without such tasks was asked already whether it fits
    monkeypatch.setattr(run_memory, "free_memory_bytes", lambda _: 0)
    assert check_generation(config, loaded, 0) == 0


def test_the_dense_weights_are_not_copied_where_a_copy_does_not_fit(tiny_model_folder, monkeypatch):
    folder = tiny_model_folder("llama")
    model = load_model(ModelConfig(str(folder), device="cpu")).model
    sizes = model.num_parameters(), 4
    auto, whole, lean = (
        configured("model=local", f"model.path={folder}", "model.device=cpu", f"search.memory={memory}") for memory in Memory
    )
    held = held_bytes(whole, model, *sizes)
    assert held - held_bytes(lean, model, *sizes) == 4 * model.num_parameters()
    # the checkpoint holds them in fp32, so that others are copies of its numbers in any case
    assert held_bytes(whole, model, sizes[0], 2) == held_bytes(lean, model, sizes[0], 2)
    for free, expected in ((held, Memory.WHOLE), (held - 1, Memory.LEAN), (None, Memory.WHOLE)):
        monkeypatch.setattr(run_memory, "free_memory_bytes", lambda _, free=free: free)
        assert chosen_memory(auto, model, *sizes) is expected
        assert held_bytes(auto, model, *sizes) == held_bytes(whole if expected is Memory.WHOLE else lean, model, *sizes)
        assert (chosen_memory(whole, model, *sizes), chosen_memory(lean, model, *sizes)) == (Memory.WHOLE, Memory.LEAN)
