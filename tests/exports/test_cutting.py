"""Heads and channels cut out of a checkpoint: the same logits and tokens, by whoever loads it, from files of the counted size."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from selfprune.allocations.unit import Item, Unit
from selfprune.exports.block_writer import growing
from selfprune.exports.cutting import MODELLING, cut, cut_config
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import save_checkpoint
from selfprune.inspect import main as inspect
from selfprune.models.families import FAMILIES as KNOWN
from selfprune.models.loading import load_model, register_per_layer
from selfprune.models.model_config import ModelConfig
from selfprune.models.per_layer import FAMILIES, LIKE_LLAMA, NARROWED, PREFIX
from selfprune.models.structures import Slice, Structure, list_structures
from selfprune.models.units import n_parameters
from selfprune.pruners.structures.wanda_sp import WandaSP

IDS = torch.tensor([[5, 9, 1, 7, 30, 2, 11], [4, 4, 8, 100, 3, 2, 1]])
SOME = {"num_hidden_layers": 3}
# Of each block: which share of its heads, and of its channels, goes.
DIFFERENT = ((0.5, 0.25), (1, 1), (0, 0.75))
ALIKE = ((0.5, 0.5),) * 3
ATTENTION_ALONE = ((1, 0), (0, 0), (0, 0))


def remove(loaded, shares):
    """Zeros what reads the first items of every structure; returns how many weights go with them."""
    n_weights = 0
    for structure in list_structures(loaded.model):
        unit, reader = structure.unit, structure.reader
        n = int(shares[unit.block]["mlp" in unit.kind] * unit.n_items)
        n_weights += n * unit.weights_per_item
        loaded.model.get_parameter(reader.parameter).narrow(reader.axis, 0, n * reader.width).zero_()
    return n_weights


def save(loaded, folder, by_block=False):
    save_checkpoint(PrunedCheckpoint(loaded, folder, by_block), folder)
    register_per_layer(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def load(load_tiny):
    """A tiny model whose heads and channels are its units."""
    return lambda family, **changes: load_tiny(family, **(SOME | changes)).for_items(WandaSP().items())


@pytest.mark.parametrize(
    ("family", "shares"),
    [
        *((family, DIFFERENT) for family in (*LIKE_LLAMA, *NARROWED)),
        *((family, ALIKE) for family in ("llama", "gemma3_text", "phi3", "olmo2")),
        ("llama", ATTENTION_ALONE),
        ("qwen3", ATTENTION_ALONE),
    ],
)
def test_the_cut_model_speaks_like_the_masked_one_from_files_of_the_counted_size(family, shares, load, tmp_path):
    loaded = load(family)
    whole = n_parameters(loaded.model)
    n_weights = remove(loaded, shares)
    small = save(loaded, tmp_path / "cut")
    torch.testing.assert_close(small(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=1e-4)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 299, "pad_token_id": 0}
    expected = loaded.model.generate(IDS, **options)
    assert torch.equal(small.generate(IDS, **options), expected)
    assert torch.equal(small.generate(IDS, cache_implementation="static", **options), expected)
    assert torch.equal(small.generate(IDS, use_cache=False, **options), expected)
    # norms of the heads of an attention that is gone go with it, all norms of a block that is gone, and are no weights of items
    gone = [f"layers.{i}.{'' if channels == 1 else 'self_attn.'}" for i, (heads, channels) in enumerate(shares) if heads == 1]
    norms = sum(p.numel() for n, p in loaded.model.named_parameters() if "norm" in n and any(path in n for path in gone))
    # where every matrix has a bias, it is left of each that is gone, and so are the norms of its block
    is_biased = family in NARROWED
    assert n_parameters(small) == whole - n_weights - (0 if is_biased else norms)
    assert small.config.num_hidden_layers == len(shares) - (shares is DIFFERENT and not is_biased)
    bytes_of = {p: p.stat().st_size for p in (tmp_path / "cut").glob("*.safetensors")}
    n_stored = sum(torch.Size(shape).numel() * 4 for shape in shapes(tmp_path / "cut").values())
    assert n_stored < sum(bytes_of.values()) < n_stored + 16_000
    plain = shares is ALIKE and small.config.model_type == family
    assert plain or (tmp_path / "cut" / MODELLING).read_text().startswith('"""Causal language models whose blocks differ')
    assert plain == (shares is ALIKE)


def shapes(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_shape() for name in list(file.keys())}
    return found


def test_cutting_leaves_what_it_is_given_alone():
    weight = torch.arange(24.0).reshape(6, 4)
    unit = Unit("b.mlp", 0, "mlp", 3, 12, Item.CHANNEL, "b.down", 1)
    structure = Structure(unit, (Slice("up", 0, 1), Slice("up", 0, 1, 3)))
    given = {"up": weight.clone(), "other": weight}
    result = cut(given, [structure], {"b.mlp": torch.tensor([True, False, True])})
    assert torch.equal(result["up"], weight[[0, 2, 3, 5]])
    assert torch.equal(given["up"], weight)
    assert result["other"] is weight


def test_a_checkpoint_that_grows_block_by_block_is_the_same(load, tmp_path):
    loaded = load("qwen3")
    remove(loaded, DIFFERENT)
    whole = save(loaded, tmp_path / "whole", by_block=True)
    with growing(tmp_path / "grown", {}) as writer:
        hidden = [torch.zeros(1, 2, 32)]
        for index in range(3):
            done = {unit.name: 0 for unit in loaded.units if unit.block <= index}
            writer.save_block(loaded, index, done, {name: [1] for name in done}, hidden)
            writer.check_begun(loaded, [torch.zeros(1, 2, dtype=torch.long)])
        writer.finish(loaded)
        writer.publish()
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "grown" / path.name).read_bytes() == path.read_bytes(), path.name
    index = json.loads((tmp_path / "grown/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == shapes(tmp_path / "grown").keys()
    assert index["metadata"]["total_size"] == 4 * n_parameters(whole)


def test_a_model_that_was_cut_is_cut_again(load, tmp_path):
    loaded = load("llama")
    remove(loaded, DIFFERENT)
    save(loaded, tmp_path / "first")
    again = load_model(ModelConfig(str(tmp_path / "first"), device="cpu")).for_items(WandaSP().items())
    remove(again, ((1, 0.5), (0.5, 0)))
    small = save(again, tmp_path / "second")
    torch.testing.assert_close(small(IDS).logits, again.model(IDS).logits, atol=1e-5, rtol=1e-4)
    own = json.loads((tmp_path / "second/config.json").read_text())["per_layer_config"]
    assert own["00"]["skip"] == ["attention"]
    assert (own["01"]["num_key_value_heads"], own["01"]["intermediate_size"]) == (1, 12)
    assert len(own) == 2


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [("gemma2", {}, f"{PREFIX}gemma2"), ("llama", {}, "mistral"), ("llama", {"attention_bias": True}, f"{PREFIX}llama")],
)
def test_one_width_that_the_family_refuses_is_built_block_by_block_or_by_its_twin(family, changes, expected, load, tmp_path):
    # 32 wide, 4 heads of 8 in 4 groups: 3 heads do not divide 32
    loaded = load(family, num_key_value_heads=4, **changes)
    remove(loaded, ((0.25, 0),) * 3)
    small = save(loaded, tmp_path / "cut")
    assert small.config.model_type == expected
    assert (tmp_path / "cut" / MODELLING).exists() == (expected != "mistral")
    torch.testing.assert_close(small(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [*LIKE_LLAMA, "llama by block"])
def test_depth_alone_leaves_a_model_of_the_family_with_fewer_blocks(family, load, tmp_path):
    by_block, family = family.endswith("by block"), family.removesuffix(" by block")
    loaded = load(family, num_hidden_layers=4)
    remove(loaded, ((0, 0), (1, 1), (0, 0), (1, 1)))
    small = save(loaded, tmp_path / "cut", by_block)
    assert (small.config.model_type, small.config.num_hidden_layers) == (family, 2)
    torch.testing.assert_close(small(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=1e-4)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 299, "pad_token_id": 0}
    assert torch.equal(small.generate(IDS, **options), loaded.model.generate(IDS, **options))
    assert not (tmp_path / "cut" / MODELLING).exists()
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert files == ([f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] if by_block else ["model.safetensors"])


def test_of_a_model_without_anything_one_block_is_left(load, tmp_path):
    loaded = load("llama")
    remove(loaded, ((1, 1),) * 3)
    small = save(loaded, tmp_path / "cut")
    assert small.config.num_hidden_layers == 1
    torch.testing.assert_close(small(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=1e-4)


def test_nothing_that_is_gone_changes_nothing(load):
    loaded = load("llama")
    config = loaded.model.config
    kept = {structure: structure.unit.n_items for structure in list_structures(loaded.model)}
    assert cut_config(config, kept) == {
        "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    }  # fmt: skip


def test_every_family_whose_heads_and_channels_are_known_is_cut():
    assert set(FAMILIES) == set(KNOWN)


def test_inspect_tells_the_widths_and_the_class(load, tmp_path, capsys):
    loaded = load("llama")
    remove(loaded, DIFFERENT)
    save(loaded, tmp_path / "cut")
    capsys.readouterr()
    assert inspect([str(tmp_path / "cut"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["export"] == "per-layer"
    assert [tuple(width.values()) for width in told["widths"]] == [(0, 2, 1, 36, 0), (1, 4, 2, 12, 0)]
    assert inspect([str(tmp_path / "cut")]) == 0
    assert "block (loads with trust_remote_code=True)  heads  KV heads  channels" in capsys.readouterr().out


ANYWHERE = """
import sys
sys.modules["selfprune"] = None  # as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, copy = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(folder)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise AssertionError("loaded without trust")
load = lambda path: AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
model = load(folder)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = torch.tensor([[5, 9, 1, 7, 30, 2, 11]])
logits = model(ids).logits.detach()
torch.save(logits, copy + ".pt")
model.save_pretrained(copy)
tokenizer.save_pretrained(copy)
assert torch.equal(load(copy)(ids).logits, logits)

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
scorer = HFLM(pretrained=folder, trust_remote_code=True, device="cpu", batch_size=1)
(score, _), = scorer.loglikelihood([Instance("loglikelihood", {}, ("The old", " boats"), 0)], disable_tqdm=True)
context, more = (tokenizer(text, add_special_tokens=False).input_ids for text in ("The old", "The old boats"))
logprobs = model(torch.tensor([more])).logits.log_softmax(-1)[0]
expected = sum(logprobs[i - 1, more[i]] for i in range(len(context), len(more)))
assert abs(score - float(expected)) < 1e-3, (score, expected)

from peft import LoraConfig, PeftModel, get_peft_model
adapted = get_peft_model(load(folder), LoraConfig(target_modules="all-linear", init_lora_weights=False))
adapted.save_pretrained(copy + "-lora")
again = PeftModel.from_pretrained(load(folder), copy + "-lora").eval()
with_adapter = again(ids).logits.detach()
assert not torch.allclose(with_adapter, logits)
merged = again.merge_and_unload()
torch.testing.assert_close(merged(ids).logits, with_adapter, atol=1e-4, rtol=1e-3)
merged.save_pretrained(copy + "-merged")
torch.testing.assert_close(load(copy + "-merged")(ids).logits, with_adapter, atol=1e-4, rtol=1e-3)

model.train()
model.gradient_checkpointing_enable()
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
for _ in range(2):
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
assert losses[1] < losses[0], losses
"""


def test_it_loads_saves_scores_adapts_and_learns_where_selfprune_is_not_installed(load, python, tmp_path):
    loaded = load("llama")
    remove(loaded, DIFFERENT)
    save(loaded, tmp_path / "cut")
    copy = tmp_path / "copy"
    done = python("-c", ANYWHERE, tmp_path / "cut", copy, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(f"{copy}.pt"), loaded.model(IDS[:1]).logits, atol=1e-5, rtol=1e-4)
    register_per_layer(tmp_path / "copy")
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(copy)(IDS[:1]).logits, torch.load(f"{copy}.pt"))
