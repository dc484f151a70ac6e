import pytest
import torch

from selfprune.models.blocks.calls import logits_from
from selfprune.models.blocks.prefix_forward import PrefixForward
from selfprune.models.units import find_blocks, list_units, weight_view

N_BLOCKS = 4
WINDOWS_NT = torch.randint(300, (5, 20), generator=torch.Generator().manual_seed(0))
BATCHES = {(0, 1, 2): WINDOWS_NT[:3], (3, 4): WINDOWS_NT[3:]}
KEYS = (0, 1, 2)


class Candidates:
    """A model whose blocks each have versions, of which version 0 is dense."""

    def __init__(self, make_tiny_model, family):
        size = {"num_hidden_layers": N_BLOCKS} | ({"n_layer": N_BLOCKS} if family == "gpt2" else {})
        self.model = make_tiny_model(family, **size)
        self.blocks = find_blocks(self.model)[1]
        self.units = list_units(self.model)
        self.dense = {unit.name: weight_view(self.model, unit).clone() for unit in self.units}
        self.generator = torch.Generator().manual_seed(0)

    def load(self, versions):
        for unit in self.units:
            dense_OI = self.dense[unit.name]
            threshold = dense_OI.abs().flatten().kthvalue(1 + versions[unit.block] * dense_OI.numel() // 5).values
            weight_view(self.model, unit).copy_(torch.where(dense_OI.abs() >= threshold, dense_OI, 0))

    def random_versions(self, count):
        """A walk that changes some blocks of the versions before, and sometimes none."""
        versions = [0] * N_BLOCKS
        for _ in range(count):
            first = int(torch.randint(N_BLOCKS + 1, (1,), generator=self.generator))
            new = torch.randint(5, (N_BLOCKS,), generator=self.generator).tolist()
            versions = [old if i < first or i == first + 1 else new[i] for i, old in enumerate(versions)]
            yield versions

    def logits(self, batch_NT):
        with torch.no_grad():
            return self.model(input_ids=batch_NT, use_cache=False).logits


@pytest.fixture
def candidates(make_tiny_model):
    return Candidates(make_tiny_model, "llama")


def logits_of(forward, keys, batch_NT, versions):
    with torch.no_grad():
        return logits_from(forward.model, forward.blocks, batch_NT, forward(keys, batch_NT, versions))


def leftovers(blocks):
    return [b for b in blocks if "forward" in vars(b) or b._forward_pre_hooks or b._forward_hooks]


def n_equal_at_start(before, after):
    return next((i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b), N_BLOCKS)


def test_logits_equal_those_of_full_passes_bit_by_bit(family, make_tiny_model):
    candidates = Candidates(make_tiny_model, family)
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=10**8)
    n_run, before = 0, None
    sequence = list(candidates.random_versions(8))
    for versions in sequence:
        candidates.load(versions)
        for key, batch_NT in BATCHES.items():
            assert torch.equal(logits_of(forward, key, batch_NT, versions), candidates.logits(batch_NT)), versions
        # the last block always runs, since only its input is kept
        n_run += len(WINDOWS_NT) * (N_BLOCKS - (0 if before is None else min(n_equal_at_start(before, versions), N_BLOCKS - 1)))
        before = versions
    assert (forward.n_blocks_run, forward.n_blocks_asked) == (n_run, len(sequence) * len(WINDOWS_NT) * N_BLOCKS)
    assert n_run < forward.n_blocks_asked
    assert leftovers(candidates.blocks) == []


def test_nothing_is_kept_without_bytes(candidates):
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=0)
    for _ in range(3):
        assert torch.equal(logits_of(forward, KEYS, BATCHES[KEYS], [0] * N_BLOCKS), candidates.logits(BATCHES[KEYS]))
    assert forward.n_blocks_run == forward.n_blocks_asked == 3 * len(KEYS) * N_BLOCKS


def test_only_as_many_sequences_are_kept_as_fit(candidates):
    bytes_of_three = N_BLOCKS * BATCHES[KEYS].numel() * 32 * 4
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=bytes_of_three)
    for _ in range(2):
        for key, batch_NT in BATCHES.items():
            assert torch.equal(logits_of(forward, key, batch_NT, [0] * N_BLOCKS), candidates.logits(batch_NT))
    assert forward.n_blocks_run == 3 * (N_BLOCKS + 1) + 2 * 2 * N_BLOCKS


def test_sequences_with_different_keys_do_not_mix(candidates):
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=10**8)
    forward("abc", BATCHES[KEYS], [0] * N_BLOCKS)
    other_NT = BATCHES[KEYS].flip(1)
    assert torch.equal(logits_of(forward, "def", other_NT, [0] * N_BLOCKS), candidates.logits(other_NT))
    assert torch.equal(logits_of(forward, "abc", BATCHES[KEYS], [0] * N_BLOCKS), candidates.logits(BATCHES[KEYS]))


def test_sequences_are_known_in_whatever_company_they_come_again(candidates):
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=10**8)
    for key, batch_NT in BATCHES.items():
        forward(key, batch_NT, [0] * N_BLOCKS)
    candidates.load([0, 0, 1, 0])
    forward([1], WINDOWS_NT[[1]], [0, 0, 1, 0])
    n_run = forward.n_blocks_run
    candidates.load([0, 0, 2, 0])
    order = [4, 1, 0]
    assert torch.equal(logits_of(forward, order, WINDOWS_NT[order], [0, 0, 2, 0]), candidates.logits(WINDOWS_NT[order]))
    assert forward.n_blocks_run - n_run == 3 * 2
    candidates.load([0, 0, 2, 3])
    assert torch.equal(logits_of(forward, KEYS, BATCHES[KEYS], [0, 0, 2, 3]), candidates.logits(BATCHES[KEYS]))
    # the third of them still stands where it was, before block 2
    assert forward.n_blocks_run - n_run == 3 * 2 + 3 * 2


def test_what_was_cleared_is_computed_again(candidates):
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=10**8)
    forward(KEYS, BATCHES[KEYS], [0] * N_BLOCKS)
    forward.clear()
    forward(KEYS, BATCHES[KEYS], [0] * N_BLOCKS)
    assert forward.n_blocks_run == 2 * 3 * N_BLOCKS


@pytest.mark.parametrize("failing", [1, 3])
def test_a_failure_in_the_middle_leaves_model_and_cache_usable(failing, candidates):
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=10**8)
    candidates.load([0, 1, 2, 3])
    forward(KEYS, BATCHES[KEYS], [0, 1, 2, 3])

    def fail(*_):
        raise KeyboardInterrupt

    candidates.load([0, 4, 2, 3])
    hook = candidates.blocks[failing].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        forward(KEYS, BATCHES[KEYS], [0, 4, 2, 3])
    hook.remove()
    assert leftovers(candidates.blocks) == []
    for versions in ([0, 4, 2, 3], [0, 4, 1, 3], [0, 1, 2, 3]):
        candidates.load(versions)
        assert torch.equal(logits_of(forward, KEYS, BATCHES[KEYS], versions), candidates.logits(BATCHES[KEYS]))


def test_a_forward_that_was_patched_onto_a_block_stays(candidates):
    block = candidates.blocks[0]
    patched = block.forward
    block.forward = patched
    forward = PrefixForward(candidates.model, candidates.blocks, max_bytes=10**8)
    for _ in range(2):
        assert torch.equal(logits_of(forward, KEYS, BATCHES[KEYS], [0] * N_BLOCKS), candidates.logits(BATCHES[KEYS]))
    assert vars(block)["forward"] is patched
