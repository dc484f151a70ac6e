"""What the source of a pruned model held and its checkpoint must hold too: every tensor bit for bit, and every file."""

import json
import shutil
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.dynamic_module_utils import HF_MODULES_CACHE

from selfprune.errors import ModelError
from selfprune.exports.block_writer import BlockWriter
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import save_checkpoint
from selfprune.models.loading import load_model
from selfprune.models.model_config import DType, ModelConfig
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruning.sequential import prune_in_place

WINDOWS_NT = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
SMALL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
MAMBA = {name: value for name, value in SMALL.items() if name.endswith(("size", "layers", "_id")) and name != "intermediate_size"}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
KEPT_WIDE = {
    "mamba": MAMBA | {"state_size": 8, "time_step_rank": 4},
    "qwen3_next": SMALL | EXPERTS | {
        "num_experts": 4, "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    },
    "falcon_h1": SMALL | {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8},
    "nemotron_h": SMALL | {
        "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1,
        "layers_block_type": ["mamba", "attention"],
    },
    "minimax_m2": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": SMALL | EXPERTS | {
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4, "head_dim": 8,
    },
}  # fmt: skip
"""Families whose checkpoints keep some tensors in float32 beside bfloat16 weights."""
WIDE_NAMES = ("A_log", "dt_bias", ".D", "e_score_correction_bias")


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def save_source(folder, tokenizer, config, dtype=torch.bfloat16, more=None):
    """Saves a random model whose tensors of WIDE_NAMES keep float32 bits, with further tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.to(dtype).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if name.endswith(WIDE_NAMES):
            tensors[name] = torch.randn(tensor.shape, generator=generator)
    save_file(tensors | (more or {}), folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def prune_both_ways(folder, tmp_path, dtype=DType.AUTO, trusting=False):
    """The pruned checkpoints of one source, by a search's writer and by that of one pruning; with what was told."""
    dense = load_model(ModelConfig(str(folder), dtype, "cpu", trust_remote_code=trusting))
    for kind in ("whole", "blocks"):
        loaded = deepcopy(dense)
        allocation = {unit.name: unit.n_items // 2 for unit in loaded.units}
        target = tmp_path / kind
        if kind == "blocks":
            shards = BlockWriter(target, {})
            prune_in_place(loaded, WINDOWS_NT, Magnitude(), allocation, 2, shards)
            shards.finish(loaded)
            shards.publish()
            left_out = shards.checkpoint(loaded).left_out
        else:
            checkpoint = PrunedCheckpoint(loaded, target, by_block=False)
            prune_in_place(loaded, WINDOWS_NT, Magnitude(), allocation, 2)
            save_checkpoint(checkpoint, target)
            left_out = checkpoint.left_out
        yield loaded, target, left_out


def check_pruned(source, pruned, main=torch.bfloat16, asked=None):
    """Compares two checkpoints name by name and bit for bit; returns the names of the tensors that were pruned."""
    before, after = tensors_of(source), tensors_of(pruned)
    assert before.keys() == after.keys()
    changed = []
    for name, tensor in before.items():
        dtype = (asked or main) if tensor.dtype == main else tensor.dtype
        assert (after[name].dtype, after[name].shape) == (dtype, tensor.shape), name
        expected = tensor.to(dtype)
        if not torch.equal(after[name], expected):
            kept = after[name] != 0
            assert torch.equal(after[name][kept], expected[kept]), name
            assert tensor.ndim > 1, name
            changed.append(name)
    return changed


@pytest.mark.parametrize("family", KEPT_WIDE)
def test_what_a_checkpoint_keeps_in_a_wider_format_keeps_its_bits(family, tiny_tokenizer, tmp_path):
    source = save_source(tmp_path / "source", tiny_tokenizer, AutoConfig.for_model(family, **KEPT_WIDE[family]))
    wide = {name: tensor for name, tensor in tensors_of(source).items() if name.endswith(WIDE_NAMES)}
    assert wide
    assert all(tensor.dtype == torch.float32 for tensor in wide.values())
    assert all(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in wide.values())
    for loaded, pruned, left_out in prune_both_ways(source, tmp_path):
        assert left_out == []
        assert len(check_pruned(source, pruned)) >= len(loaded.units)
        again = AutoModelForCausalLM.from_pretrained(pruned, experts_implementation="eager", local_files_only=True)
        assert torch.equal(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)


def test_nothing_but_the_units_changes_in_any_family(family, make_tiny_model, tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    make_tiny_model(family).bfloat16().save_pretrained(source)
    tiny_tokenizer.save_pretrained(source)
    for loaded, pruned, left_out in prune_both_ways(source, tmp_path):
        assert left_out == []
        assert len(check_pruned(source, pruned)) >= len(loaded.units)
        again, loading = AutoModelForCausalLM.from_pretrained(
            pruned, experts_implementation="eager", output_loading_info=True, local_files_only=True
        )
        assert not any(loading.values()), loading
        assert torch.equal(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)


def test_tensors_that_the_model_does_not_read_come_along(tiny_tokenizer, tmp_path):
    # the block after the last one is the head that predicts several tokens, which config.json promises
    options = KEPT_WIDE["deepseek_v3"] | {
        "num_nextn_predict_layers": 1,
        "q_lora_rank": None,
        "head_dim": 16,
        "n_shared_experts": 1,
    }
    options = {name: value for name, value in options.items() if not name.startswith(("qk_", "v_head", "q_lora", "kv_lora"))}
    config = AutoConfig.for_model("glm4_moe", **options)
    source = save_source(tmp_path / "source", tiny_tokenizer, config)
    of_last = {name: tensor for name, tensor in tensors_of(source).items() if name.startswith("model.layers.1.")}
    ahead = {name.replace("layers.1.", "layers.2."): tensor for name, tensor in of_last.items()}
    ahead |= {f"model.layers.2.{name}.weight": torch.ones(64, dtype=torch.bfloat16) for name in ("enorm", "hnorm")}
    ahead["model.layers.2.eh_proj.weight"] = torch.rand(64, 128).bfloat16()
    assert len(ahead) == 26
    save_source(source, tiny_tokenizer, config, more=ahead)
    for loaded, pruned, left_out in prune_both_ways(source, tmp_path):
        assert (loaded.doubts, left_out) == ((), [])
        changed = check_pruned(source, pruned)
        assert not set(changed) & set(ahead)
        assert changed
        assert json.loads((pruned / "config.json").read_text())["num_nextn_predict_layers"] == 1
        again = AutoModelForCausalLM.from_pretrained(pruned, experts_implementation="eager", local_files_only=True)
        assert torch.equal(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)


@pytest.mark.parametrize("asked", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("main", [torch.bfloat16, torch.float32])
def test_the_format_that_was_asked_for_is_that_of_most_weights_alone(asked, main, make_tiny_model, tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    make_tiny_model("llama").to(main).save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    strange = {
        "model.layers.0.input_layernorm.weight": torch.rand(32, dtype=torch.float64),
        "model.layers.0.self_attn.k_scale": torch.tensor(0.3, dtype=torch.float64),
        "seen": torch.tensor([[True, False]]),
        "empty": torch.zeros(0, 4, dtype=torch.int8),
    }
    save_file(tensors | strange, source / "model.safetensors", {"format": "pt"})
    tiny_tokenizer.save_pretrained(source)
    for _, pruned, left_out in prune_both_ways(source, tmp_path, asked):
        assert left_out == []
        check_pruned(source, pruned, main, getattr(torch, asked.value))
        told = AutoConfig.from_pretrained(pruned)
        assert told.dtype == getattr(torch, asked.value)


def test_a_model_with_a_vision_tower_keeps_it_and_its_processor(make_tiny_model, tiny_tokenizer, tmp_path):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model(
        "gemma3",
        text_config=SMALL | {"sliding_window": 16},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_id=5,
        boi_token_id=6,
        eoi_token_id=7,
        image_token_index=5,
    )
    source = save_source(tmp_path / "source", tiny_tokenizer, config)
    extra = {
        "preprocessor_config.json": '{"image_size": 28}',
        "processor_config.json": '{"image_seq_length": 4}',
        "added/tables.json": "[]",
    }
    for name, content in extra.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
    for loaded, pruned, left_out in prune_both_ways(source, tmp_path):
        assert (loaded.doubts, left_out) == ((), [])
        changed = check_pruned(source, pruned)
        assert any("vision" in name for name in tensors_of(pruned))
        assert not any("vision" in name for name in changed)
        assert {name: (pruned / name).read_text() for name in extra} == extra
        again = AutoModelForCausalLM.from_pretrained(pruned, local_files_only=True)
        assert torch.equal(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_comes_along_or_is_told_with_its_reason(tiny_model_folder, tmp_path):
    source = shutil.copytree(tiny_model_folder("llama"), tmp_path / "source")
    same = {
        "README.md": "about", "LICENSE": "free", ".gitattributes": "x", "chat_template.jinja": "{{ x }}",
        "modeling_mine.py": "x = 1", "additional_chat_templates/tools.jinja": "{{ y }}", "package/inner/part.py": "y = 2",
        "vocab.bin": "abc",
    }  # fmt: skip
    other = {
        "consolidated.safetensors": "weights that were not read", "pytorch_model.bin": "not read",
        "pytorch_model.bin.index.json": "not read", "selfprune.json": "record of an earlier pruning",
        "original/params.json": "holds weights", "checkpoint-9/config.json": "another checkpoint",
    }  # fmt: skip
    no_part = {".git/HEAD": "x", ".cache/huggingface/x.lock": "x", "__pycache__/a.pyc": "x", "package/__pycache__/b.pyc": "x"}
    for name, content in (same | other | no_part | {"original/consolidated.00.pth": "x"}).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    (tmp_path / "elsewhere").mkdir()
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "gone.json").symlink_to(tmp_path / "nothing")
    # the output may lie in the source, where it must not copy itself
    for loaded, pruned, left_out in prune_both_ways(source, source):
        assert {name: (pruned / name).read_text() for name in same} == same
        own = files_of(pruned) - set(same)
        weights = {name for name in own if name.startswith("model") and "safetensors" in name}
        assert own - weights == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
        (told,) = left_out
        for name in (*(name for name in other if "/" not in name), "original/", "checkpoint-9/", "linked/", "gone.json"):
            assert f"{name}: it " in told, name
        assert "git" not in told
        shutil.rmtree(pruned)
        assert loaded.source == source


def test_a_pickled_checkpoint_gives_all_of_its_tensors(make_tiny_model, tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    model = make_tiny_model("gpt2").bfloat16()
    model.save_pretrained(source)
    (source / "model.safetensors").unlink()
    tiny_tokenizer.save_pretrained(source)
    content = model.state_dict() | {
        "h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "transformer.wte.weight": model.transformer.wte.weight,
    }
    torch.save({name: tensor.clone() for name, tensor in content.items()}, source / "pytorch_model.bin")
    for loaded, pruned, left_out in prune_both_ways(source, tmp_path):
        assert left_out == []
        found = tensors_of(pruned)
        assert found.keys() == content.keys()
        assert found["h.0.attn.bias"].dtype == torch.float32
        assert not (pruned / "pytorch_model.bin").exists()
        again = AutoModelForCausalLM.from_pretrained(pruned, local_files_only=True)
        assert torch.equal(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)


def test_a_pickle_of_the_old_form_is_told_to_be_written_from_the_model(make_tiny_model, tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    model = make_tiny_model("gpt2")
    model.save_pretrained(source)
    (source / "model.safetensors").unlink()
    tiny_tokenizer.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    for loaded, pruned, left_out in prune_both_ways(source, tmp_path):
        assert [told.split(" of its source")[0] for told in left_out] == [
            "the pruned model holds only what GPT2LMHeadModel has read"
        ]
        again, loading = AutoModelForCausalLM.from_pretrained(pruned, output_loading_info=True, local_files_only=True)
        assert not any(loading.values())
        assert torch.equal(again(input_ids=WINDOWS_NT).logits, loaded.model(input_ids=WINDOWS_NT).logits)


def test_a_source_that_is_taken_away_is_told(tiny_model_folder, tmp_path):
    source = shutil.copytree(tiny_model_folder("llama"), tmp_path / "source")
    loaded = load_model(ModelConfig(str(source), device="cpu"))
    checkpoint = PrunedCheckpoint(loaded, tmp_path / "out")
    shutil.rmtree(source)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"model.safetensors can no longer be read \(No such file or directory\); fetch"):
        checkpoint.write_file(list(checkpoint.files)[-1], tmp_path / "out", "try again")


CUSTOM = {
    "configuration_mine.py": """
from transformers import LlamaConfig
class MineConfig(LlamaConfig):
    model_type = "mine"
""",
    "modeling_mine.py": """
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig
from .shifting import shifted
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
    def forward(self, *arguments, **keywords):
        output = super().forward(*arguments, **keywords)
        output.logits = shifted(output.logits)
        return output
""",
    "shifting.py": """
def shifted(logits):
    return logits + 1
""",
}


def test_a_model_with_code_of_its_own_loads_where_no_module_of_it_is_known(tiny_model_folder, monkeypatch, tmp_path):
    source = shutil.copytree(tiny_model_folder("llama"), tmp_path / "source")
    for name, content in CUSTOM.items():
        (source / name).write_text(content)
    config = json.loads((source / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": auto_map}
    (source / "config.json").write_text(json.dumps(config))
    for loaded, pruned, left_out in prune_both_ways(source, tmp_path, trusting=True):
        assert left_out == []
        assert {name: (pruned / name).read_text() for name in CUSTOM} == CUSTOM
        # dynamic modules are copied to a cache, which a process that knows none must fill from the pruned model alone
        cache = tmp_path / f"modules {pruned.name}"
        with monkeypatch.context() as patched:
            patched.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
            patched.setattr(sys, "path", [path for path in sys.path if path != HF_MODULES_CACHE])
            for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
                patched.delitem(sys.modules, name)
            again = AutoModelForCausalLM.from_pretrained(pruned, trust_remote_code=True, local_files_only=True)
        assert {path.name for path in cache.rglob("*.py")} >= CUSTOM.keys()
        assert type(again).__name__ == "MineForCausalLM"
        assert sys.modules[type(again).__module__] is not sys.modules[type(loaded.model).__module__]
        assert torch.equal(again(input_ids=torch.arange(9)[None]).logits, loaded.model(input_ids=torch.arange(9)[None]).logits)
