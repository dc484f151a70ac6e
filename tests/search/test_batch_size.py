"""A search sees the same windows, and gives the same archive, however many of them share a forward pass."""

import pytest
import torch
from calibrated import mask_levels
from whole_search import run_search

from selfprune.allocations.archive import Archive
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.language_models.scripted import ScriptedLanguageModel
from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.uniform import Uniform
from selfprune.proposers.searches.evolutionary import Evolutionary
from selfprune.proposers.searches.gradient import Gradient
from selfprune.proposers.searches.portfolio import Portfolio
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.search.bench import Bench
from selfprune.search.gradient_values import GradientValues
from selfprune.search.ladder import Ladder
from selfprune.search.racing import Racer
from selfprune.search.scoring import Scorer
from selfprune.search.search_config import SearchConfig
from selfprune.storage.journal import Journal

N_WINDOWS, N_TOKENS = 11, 8
NESTED = Ladder([2, 5, 11], [3, 2])
FRESH = Ladder([3, 5], [2], grows=False, fresh=True)
GRADIENTS = Portfolio({"gradient": Gradient(n_windows=5), "evolutionary": Evolutionary()})


@pytest.fixture(scope="module")
def store(make_tiny_model):
    model = make_tiny_model("llama")
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    grid = LevelGrid.with_constant_step(loaded.units, 0.05)
    store = mask_levels(loaded, grid, torch.zeros(1, N_TOKENS, dtype=torch.long), Magnitude(), 1)
    # random logits are nearly flat; sharper ones make the candidates differ
    model.lm_head.weight.mul_(50)
    return store


@pytest.fixture
def archive_of(store, tmp_path):
    """The bytes of the archive of a search, whose journal lies beside."""

    def search(batch_size, ladder, proposer):
        store.restore()
        loaded, folder = store.loaded, tmp_path / str(batch_size)
        folder.mkdir(exist_ok=True)
        windows_NT = torch.randint(0, 300, (N_WINDOWS, N_TOKENS), generator=torch.Generator().manual_seed(0))
        evaluator = WindowEvaluator({"score": KLDivergence()}, loaded.model, loaded.blocks, windows_NT, batch_size, 10**6)
        scorer = Scorer(Bench(store, evaluator), Journal(folder / "evaluations.jsonl"))
        gradients = GradientValues(scorer)
        space = SearchSpace(store.grid, Target.in_weights(store.grid, store.grid.n_weights() // 2), move_values=gradients)
        yardsticks = Uniform().build(space, 0, ScriptedLanguageModel.from_texts([])).ask(1)
        working = proposer.build(space, 3, ScriptedLanguageModel.from_texts([]))
        (folder / "archive.jsonl").unlink(missing_ok=True)
        archive, config = Archive(folder / "archive.jsonl"), SearchConfig(1_400, ladder=ladder)
        run_search(working, Racer("main", scorer, ladder, 0), archive, config, yardsticks, gradients=gradients)
        assert len(archive.candidates) > 8
        return (folder / "archive.jsonl").read_bytes()

    return search


@pytest.mark.parametrize(
    ("ladder", "proposer"),
    [(NESTED, Evolutionary()), (FRESH, Evolutionary()), (NESTED, GRADIENTS)],
    ids=["nested", "fresh", "gradients"],
)
def test_archives_are_identical_for_all_batch_sizes(ladder, proposer, archive_of):
    first, *others = (archive_of(batch_size, ladder, proposer) for batch_size in (1, 3, 8))
    assert others == [first, first]


def test_a_journal_is_continued_with_another_batch_size_and_one_that_names_batches_is_refused(archive_of, tmp_path):
    whole, path = archive_of(3, NESTED, Evolutionary()), tmp_path / "3" / "evaluations.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "evaluations.jsonl").write_text("".join(lines[:5]))
    assert archive_of(8, NESTED, Evolutionary()) == whole
    path.write_text("".join(lines).replace('"windows"', '"batches"'))
    with pytest.raises(ConfigError, match=r"it should record 'windows' as \[0, 1\], but records null"):
        archive_of(3, NESTED, Evolutionary())
