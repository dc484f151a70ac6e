"""Blocks run one at a time: entry, blocks and exit make up the full forward pass, wherever the weights lie."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import set_module_tensor_to_device
from in_turn import in_turn
from torch import nn

from selfprune.errors import ModelError
from selfprune.models.blocks.calls import bypassed, capture_calls, logits_from, same_arguments
from selfprune.models.blocks.residency import resident
from selfprune.models.forward_check import check_entry
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement
from selfprune.models.units import find_blocks, list_units, stored_weight

TOKENS_NT = torch.randint(300, (3, 24), generator=torch.Generator().manual_seed(0))


def run_blocks(model, blocks, entry):
    """The hidden states after the last block; each block is brought in for its turn."""
    hidden_NTD = entry.hidden_NTD
    for index, block in enumerate(blocks):
        with resident(block):
            hidden_NTD = entry.run(index, block, hidden_NTD)
    return hidden_NTD


def in_steps(model, blocks, tokens_NT):
    hidden_NTD = run_blocks(model, blocks, capture_calls(model, blocks, tokens_NT))
    return logits_from(model, blocks, tokens_NT, hidden_NTD)


def n_meta(blocks):
    return sum(parameter.is_meta for block in blocks for parameter in block.parameters())


def keep_blocks_in_memory(model, folder):
    """Dispatches a model so that its blocks' weights are fetched from a dictionary, as those are that do not fit onto a GPU."""
    path, blocks = find_blocks(model)
    devices = dict.fromkeys((name for name, module in model.named_modules() if not any(module.children())), "cpu")
    devices = {name: device for name, device in devices.items() if not name.startswith(f"{path}.")}
    devices |= {f"{path}.{index}": "disk" for index in range(len(blocks))}
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith(f"{path}.")}
    dispatch_model(model, devices, main_device="cpu", state_dict=kept, offload_dir=folder)


def with_blocks(make_tiny_model, family, n_blocks):
    return make_tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": n_blocks})


@in_turn("n_windows", [1, 3])
def test_entry_blocks_and_exit_make_up_the_full_pass(n_windows, family, make_tiny_model):
    # so many that a model which takes the first item of every block's output would run out of dimensions
    model = with_blocks(make_tiny_model, family, 5)
    _, blocks = find_blocks(model)
    tokens_NT = TOKENS_NT[:n_windows]
    with torch.no_grad():
        expected_NTV = model(input_ids=tokens_NT).logits
        torch.testing.assert_close(in_steps(model, blocks, tokens_NT), expected_NTV, rtol=0, atol=1e-6)
        # the comparison notices a block that is left out
        entry = capture_calls(model, blocks, tokens_NT)
        assert not torch.allclose(logits_from(model, blocks, tokens_NT, entry.hidden_NTD), expected_NTV, rtol=0, atol=1e-4)


def test_the_entry_holds_one_call_per_block_and_runs_none(family, make_tiny_model):
    model = make_tiny_model(family)
    _, blocks = find_blocks(model)
    ran = []
    for block in blocks:
        inner = next(module for name, module in block.named_modules() if name)
        inner.register_forward_hook(lambda *_: ran.append(True))
    entry = capture_calls(model, blocks, TOKENS_NT)
    assert (len(entry.calls), ran) == (len(blocks), [])
    assert entry.hidden_NTD.shape == (*TOKENS_NT.shape, model.config.get_text_config().hidden_size)


def test_entering_and_leaving_leave_no_trace(family, make_tiny_model):
    model = make_tiny_model(family)
    _, blocks = find_blocks(model)
    before = [dict(vars(block)) for block in blocks]
    with torch.no_grad():
        in_steps(model, blocks, TOKENS_NT)
    for block, attributes in zip(blocks, before, strict=True):
        assert vars(block).keys() == attributes.keys()
        assert not block._forward_pre_hooks


def test_a_forward_of_a_blocks_own_comes_back():
    block = nn.Linear(2, 2)
    block.forward = own = lambda hidden: hidden + 1
    with bypassed(block):
        assert torch.equal(block(torch.zeros(1, 1, 2)), torch.zeros(1, 1, 2))
    assert block.forward is own
    with pytest.raises(ZeroDivisionError), bypassed(block, torch.ones(1)):
        _ = 1 / 0
    assert block.forward is own


def test_gradients_flow_from_the_logits_to_the_last_hidden_states(family, make_tiny_model):
    model = make_tiny_model(family)
    _, blocks = find_blocks(model)
    hidden_NTD = run_blocks(model, blocks, capture_calls(model, blocks, TOKENS_NT)).requires_grad_()
    logits_from(model, blocks, TOKENS_NT, hidden_NTD)[:, -1].square().sum().backward()
    assert hidden_NTD.grad[:, -1].abs().sum() > 0
    assert hidden_NTD.grad[:, 0].abs().sum() == 0


class TokenDependent(nn.Module):
    """A block whose mask is scaled by the first token, as per-layer embeddings would be."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.linear = nn.Linear(1, 1)

    def forward(self, hidden_NTD, extra=None, **keywords):
        return self.block(hidden_NTD, **keywords)


def with_token_dependent_block(model, extra_of):
    """Wraps the second block and lets the model hand it something made of the embedded tokens."""
    layers = model.model.layers
    layers[1] = TokenDependent(layers[1])
    embedded = []
    model.get_input_embeddings().register_forward_hook(lambda *seen: embedded.append(seen[2]))

    def add(_, arguments, keywords):
        return arguments, keywords | {"extra": extra_of(embedded[-1])}

    layers[1].register_forward_pre_hook(add, with_kwargs=True)
    return list(layers)


@pytest.mark.parametrize(
    "extra_of",
    [lambda embedded: embedded[:, :, :1], lambda embedded: {"inner": [(None, embedded.sum())]}],
    ids=["tensor", "nested"],
)
def test_arguments_that_depend_on_the_tokens_are_told_apart(extra_of, make_tiny_model):
    model = make_tiny_model("llama")
    blocks = with_token_dependent_block(model, extra_of)
    assert not same_arguments(capture_calls(model, blocks, TOKENS_NT), capture_calls(model, blocks, TOKENS_NT.flip(1)))


def test_arguments_that_depend_on_the_shape_alone_are_the_same(family, make_tiny_model):
    model = make_tiny_model(family)
    _, blocks = find_blocks(model)
    assert same_arguments(capture_calls(model, blocks, TOKENS_NT), capture_calls(model, blocks, TOKENS_NT.flip(1)))


def test_blocks_of_which_some_do_not_run_are_refused(make_tiny_model):
    model = make_tiny_model("llama", num_hidden_layers=3)
    blocks = list(model.model.layers)
    model.model.config.num_hidden_layers = 2
    with pytest.raises(ModelError, match=r"should run once each, but 2 of 3 ran"):
        check_entry(model, "model.layers", blocks, torch.device("cpu"))


def test_weights_on_disk_come_for_their_turn_and_go_again(family, make_tiny_model, tiny_model_folder, tmp_path):
    loaded = load_model(ModelConfig(str(tiny_model_folder(family)), device="cpu", placement=Placement.STREAM), tmp_path)
    expected = make_tiny_model(family)
    n_parameters = sum(len(list(block.parameters())) for block in loaded.blocks)
    assert n_meta(loaded.blocks) == n_parameters
    assert not any(p.is_meta for name, p in loaded.model.named_parameters() if not name.startswith(find_blocks(loaded.model)[0]))
    for index, block in enumerate(loaded.blocks):
        with resident(block):
            assert [n_meta([other]) == 0 for other in loaded.blocks] == [i == index for i in range(len(loaded.blocks))]
            prefix = loaded.block_prefix(index)
            for name, parameter in block.named_parameters():
                assert torch.equal(parameter, expected.get_parameter(prefix + name)), name
                assert not parameter.requires_grad
        assert n_meta(loaded.blocks) == n_parameters
    with torch.no_grad():
        logits_NTV = in_steps(loaded.model, loaded.blocks, TOKENS_NT)
        # after the visits the model still runs by itself, as accelerate made it
        assert torch.equal(loaded.model(input_ids=TOKENS_NT).logits, logits_NTV)
        torch.testing.assert_close(logits_NTV, expected(input_ids=TOKENS_NT).logits, rtol=0, atol=1e-6)


def test_changes_to_weights_on_disk_hold_during_the_visit_only(tiny_model_folder, tmp_path):
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu", placement=Placement.STREAM), tmp_path)
    block, unit = loaded.blocks[0], loaded.units[0]
    entry = capture_calls(loaded.model, loaded.blocks, TOKENS_NT)
    with torch.no_grad(), resident(block):
        before_NTD = entry.run(0, block, entry.hidden_NTD)
        stored_weight(loaded.model, unit).zero_()
        assert not torch.equal(entry.run(0, block, entry.hidden_NTD), before_NTD)
    with torch.no_grad(), resident(block):
        assert torch.equal(entry.run(0, block, entry.hidden_NTD), before_NTD)


def test_an_error_during_a_visit_sends_the_weights_back(tiny_model_folder, tmp_path):
    loaded = load_model(ModelConfig(str(tiny_model_folder("llama")), device="cpu", placement=Placement.STREAM), tmp_path)
    with pytest.raises(ZeroDivisionError), resident(loaded.blocks[0]):
        _ = 1 / 0
    assert n_meta(loaded.blocks[:1]) == len(list(loaded.blocks[0].parameters()))
    with torch.no_grad():
        assert loaded.model(input_ids=TOKENS_NT).logits.isfinite().all()


@pytest.fixture
def copying_devices(monkeypatch):
    """Lets a weight that is brought in be a copy of the one that is kept, as it is where memory and device are two."""

    def bring(module, name, device, value=None):
        set_module_tensor_to_device(module, name, device, value=None if value is None else value.clone())

    monkeypatch.setattr("selfprune.models.blocks.residency.set_module_tensor_to_device", bring)


@in_turn("keep", ["cpu_offload", "dispatch_model", "hooks"])
def test_changes_to_weights_kept_in_memory_are_written_back(keep, family, make_tiny_model, copying_devices, tmp_path):
    if family not in ("llama", "gpt2", "phi3", "mixtral") and keep != "dispatch_model":
        return
    plain, model = make_tiny_model(family), make_tiny_model(family)
    units = list_units(model)
    if keep == "cpu_offload":
        cpu_offload(model, torch.device("cpu"))
    elif keep == "dispatch_model":
        keep_blocks_in_memory(model, tmp_path)
    else:
        for module in (module for block in find_blocks(model)[1] for module in block.modules()):
            add_hook_to_module(module, AlignDevicesHook(torch.device("cpu"), offload=True))
    _, blocks = find_blocks(model)
    assert n_meta(blocks) == sum(len(list(block.parameters())) for block in blocks)
    for index, block in enumerate(blocks):
        with torch.no_grad(), resident(block):
            for unit in (unit for unit in units if unit.block == index):
                for changed in (plain, model):
                    stored_weight(changed, unit).mul_(1.5)
    assert n_meta(blocks) == sum(len(list(block.parameters())) for block in blocks)
    with torch.no_grad():
        expected_NTV = plain(input_ids=TOKENS_NT).logits
        torch.testing.assert_close(model(input_ids=TOKENS_NT).logits, expected_NTV, rtol=0, atol=1e-6)
        torch.testing.assert_close(in_steps(model, blocks, TOKENS_NT), expected_NTV, rtol=0, atol=1e-6)
        assert not torch.allclose(make_tiny_model(family)(input_ids=TOKENS_NT).logits, expected_NTV, atol=1e-6)


def test_a_model_dealt_onto_disk_by_accelerate_itself_runs_block_by_block(make_tiny_model, tmp_path):
    plain, model = make_tiny_model("llama"), make_tiny_model("llama")
    disk_offload(model, str(tmp_path), torch.device("cpu"))
    _, blocks = find_blocks(model)
    with torch.no_grad():
        logits_NTV = in_steps(model, blocks, TOKENS_NT)
        torch.testing.assert_close(logits_NTV, plain(input_ids=TOKENS_NT).logits, rtol=0, atol=1e-6)


def test_a_block_whose_weights_lie_at_hand_is_left_alone(make_tiny_model):
    _, blocks = find_blocks(make_tiny_model("llama"))
    before = dict(blocks[0].named_parameters())
    with resident(blocks[0]):
        assert all(parameter is before[name] for name, parameter in blocks[0].named_parameters())
    assert all(parameter is before[name] for name, parameter in blocks[0].named_parameters())
