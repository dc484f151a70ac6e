"""Levels with the pruner's update, built on demand.

Shape suffixes: O out, I in, N sequences, T tokens.
"""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from calibrated import fill, mask_levels, statistics_of
from in_turn import in_turn

from selfprune.allocations.level_grid import LevelGrid
from selfprune.errors import ConfigError, PruningError, SelfpruneError
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.levels_config import LevelKind, LevelsConfig
from selfprune.models.model_config import DType
from selfprune.models.units import weight_view
from selfprune.pruners.weights.admm import ADMM
from selfprune.pruners.weights.alps import ALPS
from selfprune.pruners.weights.dsnot import DSnoT
from selfprune.pruners.weights.obd import OBD
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.wanda import Wanda
from selfprune.statistics.hessian_factor import HessianFactor
from selfprune.storage import lock, tensor_file

WINDOWS_NT = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
FAMILIES = ["llama", "gpt2", "mixtral"]
ON_DISK = {"statistics_gb": 0, "memory_gb": 0}
UPDATING = [SparseGPT(), ADMM(), ALPS(max_iterations=5)]


@pytest.fixture
def build(load_tiny, tmp_path):
    """Opens the store of a tiny model; a second call continues as a later process would."""

    def make(family="llama", pruner=None, windows_NT=WINDOWS_NT, fraction=0.05, is_changed=False, **bounds):
        pruner = pruner or SparseGPT()
        loaded = load_tiny(family)
        if is_changed:
            loaded.model.get_output_embeddings().weight[0, 0] += 1
        if pruner.level_fraction() is None:
            grid = LevelGrid.with_constant_step(loaded.units, fraction)
        else:
            grid = LevelGrid.with_single_level(loaded.units, pruner.level_fraction())
        config = LevelsConfig(LevelKind.BUILT, **bounds)
        statistics = open_statistics(loaded, grid, pruner, windows_NT, 4, config, tmp_path)
        return fill(BuiltLevels(loaded, grid, pruner, statistics, int(config.memory_gb * 1e9)), windows_NT, pruner, 4)

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "levels"


def weights(store):
    return {unit.name: weight_view(store.loaded.model, unit).clone() for unit in store.grid.units}


def at_fraction(store, fraction):
    return {name: levels.items[levels.index(int(fraction * levels.n_items))] for name, levels in store.grid.levels.items()}


def bits(weight_OI):
    return weight_OI.contiguous().view(torch.int32)


def assert_same_bits(found, expected):
    assert [name for name, weight_OI in found.items() if not torch.equal(bits(weight_OI), bits(expected[name]))] == []


def n_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def levels_on_disk(folder):
    return sorted(path.name for path in folder.glob("level-*"))


@pytest.mark.parametrize("bounds", [{}, ON_DISK], ids=["in memory", "on disk"])
def test_a_hessian_is_factorised_once_for_all_levels_and_all_units_that_share_it(bounds, build, monkeypatch):
    factorise, widths = HessianFactor._damp_and_factorise_in_place, []

    def counting(self, gram_II, diagonal_I):
        widths.append(len(gram_II))
        factorise(self, gram_II, diagonal_I)

    monkeypatch.setattr(HessianFactor, "_damp_and_factorise_in_place", counting)
    store = build("llama", SparseGPT(), **bounds)
    for fraction in (0.7, 0.3):
        store.load(at_fraction(store, fraction))
    # two blocks with four inputs each: of queries, keys and values, of the output, of gate and up, and of down
    assert sorted(widths) == [32] * 6 + [48] * 2


def test_statistics_that_are_not_finite_are_told_with_their_unit_before_they_are_kept(build):
    store = build("llama", SparseGPT())
    name = store.grid.units[3].name
    broken = SparseGPT().statistics(1, 32, 1)
    broken.update(torch.full((1, 4, 32), torch.nan))
    with pytest.raises(PruningError, match=rf"^{name}: .*calibration inputs hold NaN or infinity"):
        store.take(store.grid.units[:1], {name: broken})


@pytest.mark.parametrize("pruner", UPDATING, ids=lambda pruner: type(pruner).__name__)
@pytest.mark.parametrize(
    ("family", "bounds"),
    [("llama", {}), *((family, ON_DISK) for family in FAMILIES)],
    ids=["llama in memory", *(f"{family} on disk" for family in FAMILIES)],
)
def test_levels_are_what_the_pruner_makes_of_the_dense_weight_bit_by_bit(family, pruner, bounds, build):
    store = build(family, pruner, **bounds)
    dense = weights(store)
    statistics = statistics_of(store.loaded, WINDOWS_NT, pruner, batch_size=4)
    levels = {fraction: at_fraction(store, fraction) for fraction in (0.7, 0.3)}
    of_level = {
        f: {name: pruner.prune(dense[name], statistics[name], level[name]) for name in dense} for f, level in levels.items()
    }
    for fraction in (0.7, 0.3, 0.7):
        assert store.load(levels[fraction]) == list(dense)
        expected = of_level[fraction]
        assert_same_bits(weights(store), {name: pruned.weight_OI for name, pruned in expected.items()})
        for name, pruned in expected.items():
            moved_OI = weights(store)[name] != dense[name]
            assert bool((moved_OI & pruned.kept).any()), f"{name} was not updated"
    assert store.n_built == 2 * len(dense)
    assert any(store._cache.folder.glob("statistics-*")) is bool(bounds)
    store.restore()
    assert_same_bits(weights(store), dense)
    assert set(store.allocation.values()) == {0}


@pytest.mark.parametrize("pruner", [SparseGPT(pattern="2:4"), ADMM(pattern="2:4")], ids=lambda pruner: type(pruner).__name__)
def test_a_pattern_has_one_level(pruner, build):
    store = build("llama", pruner)
    dense, statistics = weights(store), statistics_of(store.loaded, WINDOWS_NT, pruner, batch_size=4)
    level = {unit.name: unit.n_items // 2 for unit in store.grid.units}
    store.load(level)
    assert_same_bits(weights(store), {name: pruner.prune(dense[name], statistics[name], level[name]).weight_OI for name in dense})
    first = store.grid.units[0].name
    with pytest.raises(PruningError, match=rf"^{first}: under the pattern 2:4 a unit of"):
        store.load(level | {first: 4})


@pytest.mark.parametrize("pruner", [Wanda(), DSnoT(), OBD()], ids=lambda pruner: type(pruner).__name__)
@pytest.mark.parametrize("bounds", [{}, ON_DISK], ids=["in memory", "on disk"])
def test_pruners_that_do_not_update_can_be_built_too(pruner, bounds, build):
    store = build("llama", pruner, **bounds)
    dense, statistics = weights(store), statistics_of(store.loaded, WINDOWS_NT, pruner, batch_size=4)
    level = at_fraction(store, 0.5)
    store.load(level)
    masks = {name: pruner.prune(dense[name], statistics[name], level[name]).kept for name in dense}
    assert_same_bits(weights(store), {name: dense[name].masked_fill(~masks[name], 0) for name in dense})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", [SparseGPT(), ADMM()], ids=lambda pruner: type(pruner).__name__)
def test_both_stores_give_the_dense_weights_at_any_time_and_masks_go_by_the_pruners_order(family, pruner, build):
    built = build(family, pruner)
    loaded, dense = built.loaded, weights(built)
    statistics = statistics_of(loaded, WINDOWS_NT, pruner, batch_size=4)
    expected = {unit.name: pruner.ranks(dense[unit.name], statistics[unit.name]) for unit in built.grid.units}
    masked = mask_levels(loaded, built.grid, WINDOWS_NT, pruner, 4)
    for store in (built, masked):
        store.load(at_fraction(store, 0.5))
        for name in expected:
            assert torch.equal(store.dense(name), dense[name])
        store.restore()
    masked.load(at_fraction(masked, 0.5))
    for name, ranks_OI in expected.items():
        assert torch.equal(weights(masked)[name], dense[name].where(ranks_OI >= masked.allocation[name], 0))


def test_16_bit_weights_keep_their_dtype(load_tiny, tmp_path):
    loaded = load_tiny("llama", DType.BFLOAT16)
    grid = LevelGrid.with_constant_step(loaded.units, 0.1)
    kept = open_statistics(loaded, grid, ADMM(), WINDOWS_NT, 4, LevelsConfig(memory_gb=0), tmp_path)
    statistics = statistics_of(loaded, WINDOWS_NT, ADMM(), batch_size=4)
    store = fill(BuiltLevels(loaded, grid, ADMM(), kept, 0), WINDOWS_NT, ADMM(), 4)
    for _ in range(2):  # built, and read back
        store.load(at_fraction(store, 0.5))
        for name, weight_OI in weights(store).items():
            expected_OI = ADMM().prune(store.dense(name), statistics[name], store.allocation[name]).weight_OI
            assert weight_OI.dtype is torch.bfloat16
            assert torch.equal(weight_OI, expected_OI)
        store.restore()
    assert store.n_built == len(loaded.units)


def test_units_that_share_an_input_share_what_is_kept_of_it(build, folder):
    build("llama", ADMM(), **ON_DISK)
    kept = sorted(path.name for path in folder.glob("statistics-*"))
    of_first = [name for name in kept if ".layers.0." in name]
    assert len(of_first) == 4
    assert len(kept) == 8
    store = build("llama", ADMM())
    widths = [32, 32, 32, 48]  # what q, k and v share, o, what gate and up share, down
    assert store._statistics.n_memory_bytes == 2 * sum(4 * width**2 for width in widths)


def test_evicted_levels_are_built_again_with_the_same_bits(build, folder):
    bound = 25_000
    store = build("llama", SparseGPT(), memory_gb=0, cache_gb=bound / 1e9)
    low, high = at_fraction(store, 0.3), at_fraction(store, 0.6)
    store.load(low)
    first = weights(store)
    store.load(high)
    store.load(low)
    assert_same_bits(weights(store), first)
    assert store.n_built > 2 * len(first)
    assert 0 < len(levels_on_disk(folder)) < len(first)
    assert n_bytes(folder) == store._cache.n_bytes <= bound


def test_the_bound_holds_while_a_file_is_written(build, folder, monkeypatch):
    bound, seen = 40_000, []
    write = tensor_file.save_file

    def save_and_look(tensors, path, metadata):
        write(tensors, path, metadata)
        seen.append(n_bytes(folder))

    monkeypatch.setattr(tensor_file, "save_file", save_and_look)
    store = build("llama", SparseGPT(), memory_gb=0, cache_gb=bound / 1e9)
    for fraction in (0.3, 0.6, 0.8):
        store.load(at_fraction(store, fraction))
    assert len(seen) == store.n_built == 3 * len(store.grid.units)
    assert bound - 10_000 < max(seen) <= bound


def test_the_least_recently_used_level_goes_first_even_if_it_was_used_from_memory(build, folder):
    store = build("llama", SparseGPT(), cache_gb=1)
    unit = store.grid.units[0]
    step = store.grid.levels[unit.name].items[1]
    for n in (1, 2, 3):
        store.weight_at(unit, n * step)
    store.weight_at(unit, step)
    assert store.n_built == 3
    store._cache.max_bytes = store._cache.n_bytes + 10
    store.weight_at(unit, 4 * step)
    kept = {int(name.removesuffix(".safetensors").rpartition("-")[2]) // step for name in levels_on_disk(folder)}
    assert kept <= {1, 4}
    assert 4 in kept


def test_memory_keeps_no_more_than_its_bound_and_serves_what_it_keeps(build, folder):
    n_unit_bytes = 32 * 32 * 4
    store = build("llama", SparseGPT(), memory_gb=2 * n_unit_bytes / 1e9)
    unit = next(unit for unit in store.grid.units if unit.n_items == 32 * 32)
    step = store.grid.levels[unit.name].items[1]
    for n in (1, 2, 3):
        store.weight_at(unit, n * step)
    assert store._recent.n_bytes == 2 * n_unit_bytes
    for name in levels_on_disk(folder):
        (folder / name).unlink()
    store.weight_at(unit, 3 * step)
    store.weight_at(unit, 2 * step)
    assert store.n_built == 3
    store.weight_at(unit, step)
    assert store.n_built == 4


def test_a_later_process_uses_the_levels_again(build, folder):
    store = build()
    store.load(at_fraction(store, 0.6))
    before, files = weights(store), levels_on_disk(folder)
    later = build()
    later.load(at_fraction(later, 0.6))
    assert_same_bits(weights(later), before)
    assert (later.n_built, store.n_built) == (0, len(before))
    assert levels_on_disk(folder) == files


@pytest.mark.parametrize(
    "change",
    [
        {"is_changed": True},
        {"windows_NT": WINDOWS_NT.flip(0)[:3]},
        {"pruner": SparseGPT(percent_damping=0.02)},
        {"pruner": ADMM()},
        {"fraction": 0.1},
    ],
    ids=["model", "calibration", "setting", "pruner", "levels"],
)
def test_another_origin_empties_the_folder(change, build, folder, caplog):
    store = build()
    store.load(at_fraction(store, 0.6))
    before = levels_on_disk(folder)
    later = build(**change)
    assert len(before) == store.n_built
    assert levels_on_disk(folder) == []
    assert "were made from another model, text or config; they are built anew" in caplog.text
    allocation = at_fraction(later, 0.6)
    later.load(allocation)
    assert later.n_built == len(allocation)
    build(**change)
    assert len(levels_on_disk(folder)) == len(allocation)


def test_a_folder_that_outlives_runs_keeps_the_levels_of_every_origin(build, tmp_path):
    shared = tmp_path / "shared"
    allocation = at_fraction(build(), 0.6)
    build(folder=str(shared)).load(allocation)
    build(folder=str(shared), windows_NT=WINDOWS_NT.flip(0)[:3]).load(allocation)
    assert len(list(shared.iterdir())) == 2
    for windows_NT in (WINDOWS_NT, WINDOWS_NT.flip(0)[:3]):
        later = build(folder=str(shared), windows_NT=windows_NT)
        later.load(allocation)
        assert later.n_built == 0


@pytest.mark.parametrize("content", [b"\xff{", None], ids=["broken", "gone"])
def test_without_a_sound_manifest_the_folder_is_emptied(content, build, folder):
    store = build()
    store.load(at_fraction(store, 0.6))
    assert len(levels_on_disk(folder)) == store.n_built
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    store = build()
    assert levels_on_disk(folder) == []
    assert json.loads((folder / "manifest.json").read_text())["pruner"].startswith("SparseGPT(")
    assert store.n_built == 0


def with_levels_on_disk(build, folder):
    """A dense store that was pruned before: how, to which weights, and the file of one of its levels."""
    store = build(memory_gb=0)
    allocation = at_fraction(store, 0.6)
    store.load(allocation)
    before = weights(store)
    store.restore()
    return store, allocation, before, folder / levels_on_disk(folder)[0]


@pytest.mark.parametrize("how", ["truncated", "empty", "foreign", "gone"])
def test_a_damaged_file_is_noticed_and_built_again(how, build, folder, caplog):
    store, allocation, before, path = with_levels_on_disk(build, folder)
    if how == "gone":
        path.unlink()
    elif how == "foreign":
        tensor_file.save_file({"0": torch.zeros(32, 32)}, path, {"origin": "of another folder"})
    else:
        os.truncate(path, path.stat().st_size - 4 if how == "truncated" else 0)
    store.load(allocation)
    assert_same_bits(weights(store), before)
    assert store.n_built == len(before) + 1
    assert "is damaged" in caplog.text
    assert path.stat().st_size > 32 * 4


@pytest.mark.parametrize(
    "change", [lambda weight_OI: weight_OI.bfloat16(), lambda weight_OI: weight_OI[:-1]], ids=["dtype", "shape"]
)
def test_a_sound_file_whose_tensor_has_not_the_shape_and_dtype_of_the_weight_is_built_again(change, build, folder):
    store, allocation, before, path = with_levels_on_disk(build, folder)
    with tensor_file.safe_open(path, "pt") as file:
        metadata, weight_OI = file.metadata(), file.get_tensor("0")
    tensor_file.save_file({"0": change(weight_OI).contiguous()}, path, metadata)
    store.load(allocation)
    assert_same_bits(weights(store), before)
    assert store.n_built == len(before) + 1


def test_a_change_along_a_gradient_counts_the_weights_that_stay_too(build):
    store = build()
    allocation, denser = at_fraction(store, 0.6), at_fraction(store, 0.4)
    store.load(denser)
    after = weights(store)
    store.load(allocation)
    before = weights(store)
    generator = torch.Generator().manual_seed(0)
    for unit in store.grid.units:
        gradient_OI = torch.randn(before[unit.name].shape, generator=generator)
        expected = float((gradient_OI * after[unit.name]).sum() - (gradient_OI * before[unit.name]).sum())
        assert store.first_order_change(gradient_OI, unit, denser[unit.name]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_what_a_killed_process_left_unfinished_goes(build, folder):
    build()
    (folder / ".level-a-3.safetensors.unfinished").mkdir()
    (folder / ".level-a-3.safetensors.unfinished" / ".tmpAb3").write_bytes(b"half")
    (folder / "statistics-a.safetensors").write_bytes(b"of an earlier walk")
    build()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "manifest.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files, which Unix systems can")
def test_a_full_disk_ends_in_one_paragraph_and_loses_nothing(build, folder):
    import resource

    store = build(memory_gb=0)
    dense = weights(store)
    small, *_, large = sorted(store.grid.units, key=lambda unit: unit.n_items)
    store.load(at_fraction(store, 0) | {small.name: store.grid.levels[small.name].items[1]})
    kept = levels_on_disk(folder)
    wanted = store.allocation | {large.name: store.grid.levels[large.name].items[1]}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (large.n_items * 4 // 2, limits[1]))
    try:
        with pytest.raises(
            SelfpruneError, match=r"could not be written: File too large\. Everything before it is kept; see to it"
        ):
            store.load(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert levels_on_disk(folder) == kept
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".lock"]
    assert store.allocation[large.name] == 0
    assert_same_bits({large.name: weights(store)[large.name]}, dense)
    assert store.load(wanted) == [large.name]


def test_a_bound_too_small_for_one_level_is_refused_with_one_that_serves(build, folder):
    with pytest.raises(ConfigError, match=r"cache_gb=5e-06 has no room for a single level: .*mlp\.\w+, needs") as refused:
        build(cache_gb=5e-6)
    assert not folder.exists()
    least = float(str(refused.value).split("give at least ")[1].split(",")[0])
    store = build(cache_gb=least)
    store.load(at_fraction(store, 0.5))
    assert n_bytes(folder) <= least * 1e9


def test_a_disk_that_is_nearly_full_keeps_room_for_the_pruned_model(build, folder, monkeypatch):
    n_model_bytes = sum(parameter.nbytes for parameter in build().loaded.model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=n_model_bytes + 40_000 - n_bytes(folder)))
    store = build(memory_gb=0, cache_gb=1)
    for fraction in (0.3, 0.6, 0.8):
        store.load(at_fraction(store, fraction))
    assert 30_000 < n_bytes(folder) <= 40_000
    shutil.rmtree(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=n_model_bytes))
    with pytest.raises(ConfigError, match=r"has no room for a single level: .* with what is free on the disk of"):
        build(memory_gb=0, cache_gb=1)


def test_statistics_that_fit_nowhere_are_refused(build):
    with pytest.raises(ConfigError, match=r"neither search\.levels\.statistics_gb=0 nor search\.levels\.cache_gb=2e-05 has room"):
        build("llama", ADMM(), cache_gb=2e-5, **ON_DISK)


def test_statistics_that_vanish_are_told(build, folder):
    store = build("llama", ADMM(), **ON_DISK)
    for path in folder.glob("statistics-*"):
        path.unlink()
    with pytest.raises(SelfpruneError, match=r"the statistics of \S+ in \S+ are gone or damaged; continue the run"):
        store.load(at_fraction(store, 0.5))


def test_a_folder_with_other_things_is_left_alone(build, folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("two years of work")
    with pytest.raises(
        ConfigError, match=r"should be empty or a cache of levels, but it holds other things, such as thesis\.tex"
    ):
        build()
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")
def test_no_two_processes_use_a_folder_at_once(build, folder):
    take = "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", f"{take}; print('held', flush=True); input()", str(folder / ".lock")]
    folder.mkdir()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="is in use by another process"):
            build()
        other.communicate("\n")
    assert build().n_built == 0
    assert build().n_built == 0
    assert "BlockingIOError" in subprocess.run(command, capture_output=True, text=True, check=False).stderr


@in_turn("name", ["cache_gb", "memory_gb", "statistics_gb"])
@in_turn("value", [-1, float("nan"), float("inf")])
def test_bounds_must_be_numbers(name, value):
    with pytest.raises(ConfigError, match=rf"search\.levels\.{name} must be a number of GB, 0 or more, got {value}"):
        LevelsConfig(**{name: value})
