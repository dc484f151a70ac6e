import pytest
import torch

from selfprune.allocations.objective import Objective
from selfprune.data.splits import Splits
from selfprune.embedded.tasks import build_documents
from selfprune.errors import DataError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units
from selfprune.search.search_windows import mix_search_windows, pack

N_TOKENS = 16
TASKS = ["selfprune_sums_search", "selfprune_facts_search"]


@pytest.fixture(scope="module")
def loaded(make_tiny_model, tiny_tokenizer):
    model = make_tiny_model("llama")
    return LoadedModel(model, tiny_tokenizer, list_units(model), find_blocks(model)[1], torch.device("cpu"))


@pytest.fixture(scope="module")
def harness():
    return Harness(HarnessConfig(["selfprune_sums_report"], TASKS, limit=2))


@pytest.fixture
def splits():
    search_NT = torch.randint(0, 300, (8, N_TOKENS), generator=torch.Generator().manual_seed(0))
    return Splits(search_NT + 1, search_NT, search_NT + 2, {"calibration": "c", "report": "r", "search": "s"})


@pytest.fixture
def mix(splits, loaded, harness):
    def call(kinds, seed=0):
        return mix_search_windows(splits, kinds, loaded, harness, seed)

    return call


def test_text_alone_leaves_the_splits_as_they_are(mix, splits):
    assert mix(["text"] * 5) is splits


def test_each_kind_stands_where_the_objective_says(mix, splits, loaded, harness):
    kinds = Objective(0.5, 0.25, 0.25).kinds(8)
    mixed = mix(kinds)
    assert mixed.search_NT.shape == (8, N_TOKENS)
    of_kind = {kind: [mixed.search_NT[i] for i in range(8) if kinds[i] == kind] for kind in set(kinds)}
    assert {kind: len(windows) for kind, windows in of_kind.items()} == {"text": 4, "self_generated": 2, "tasks": 2}
    assert torch.equal(torch.stack(of_kind["text"]), splits.search_NT[:4])
    # What the model writes begins with its start token; the documents decode to questions with their answers.
    assert all(window[0] == loaded.tokenizer.bos_token_id for window in of_kind["self_generated"])
    *lines, _ = loaded.tokenizer.decode(torch.cat(of_kind["tasks"])).split("\n")
    assert len(lines) >= 2
    assert set(lines) <= right_answers()
    assert torch.equal(mixed.calibration_NT, splits.calibration_NT)
    assert torch.equal(mixed.report_NT, splits.report_NT)


def right_answers():
    documents = [d for task in TASKS for d in build_documents(task.removesuffix("_search"), "search")]
    return {f"{d['query']} {d['choices'][d['gold']]}" for d in documents}


def test_the_mixture_repeats_itself_and_varies_with_the_seed(mix):
    kinds = ["tasks", "self_generated", "text"]
    first, again, other = mix(kinds), mix(kinds), mix(kinds, seed=1)
    assert torch.equal(first.search_NT, again.search_NT)
    assert first.hashes == again.hashes
    assert [torch.equal(first.search_NT[i], other.search_NT[i]) for i in range(3)] == [False, False, True]


def test_every_kind_has_a_hash_of_its_own(mix, splits):
    mixed = mix(["text", "tasks", "self_generated"])
    assert set(mixed.hashes) == {*splits.hashes, "search_self_generated", "search_tasks"}
    assert {name: mixed.hashes[name] for name in splits.hashes} == splits.hashes
    more = mix(["text", "tasks", "self_generated", "tasks"])
    assert more.hashes["search_self_generated"] == mixed.hashes["search_self_generated"]
    assert more.hashes["search_tasks"] != mixed.hashes["search_tasks"]
    assert set(mix(["tasks"]).hashes) == {*splits.hashes, "search_tasks"}


def test_no_window_varies_with_the_report_split(mix, splits, loaded, harness):
    kinds = ["tasks", "self_generated", "text"]
    another = Splits(splits.calibration_NT, splits.search_NT, splits.report_NT + 7, splits.hashes)
    assert torch.equal(mix_search_windows(another, kinds, loaded, harness, 0).search_NT, mix(kinds).search_NT)


def test_documents_are_packed_one_after_the_other(tiny_tokenizer):
    documents = ["1 + 1 = 2.\n", "Mara lives in Oslo.\n", "never asked for\n"]
    ids = [token for text in documents[:2] for token in tiny_tokenizer(text, add_special_tokens=False)["input_ids"]]
    asked = iter(documents)
    windows_NT = pack(asked, tiny_tokenizer, 2, len(ids) // 2)
    assert windows_NT.flatten().tolist() == ids[: len(ids) // 2 * 2]
    assert next(asked) == documents[2]


def test_too_few_documents_are_refused(tiny_tokenizer, mix):
    with pytest.raises(DataError, match=r"needs 3 windows of 16 tokens, but the 1 documents .* fill 0; name more tasks"):
        pack(["1 + 1 = 2."], tiny_tokenizer, 3, 16)
    with pytest.raises(DataError, match=r"needs 5000 windows of 16 tokens, but the 480 documents"):
        mix(["tasks"] * 5000)
