"""model.py against direct formulas, a fixture made by transformers, and (where installed) transformers itself."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from engine.weights import stored_weights
from model import GPTNeoX, GPTNeoXConfig, config_of

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
PARAMETERS = {
    "14m": 14_067_712, "31m": 30_494_720, "70m": 70_426_624, "160m": 162_322_944, "410m": 405_334_016,
    "1b": 1_011_781_632, "1.4b": 1_414_647_808, "2.8b": 2_775_208_960, "6.9b": 6_857_302_016, "12b": 11_846_072_320,
}  # fmt: skip


def small(**changes):
    base = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    base |= {"intermediate_size": 128, "max_position_embeddings": 32}
    return GPTNeoXConfig(**(base | changes))


def with_formula_weights(network):
    """Fills in weights that any program can make again: scaled sines of a running index."""
    start = 0
    for name, parameter in sorted(network.named_parameters()):
        index = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
        wave = (torch.sin(index * 0.7 + 0.1 * torch.sin(index * 0.013))).view(parameter.shape)
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data.copy_(base + 0.25 * wave)
        start += parameter.numel()
    return network


@pytest.mark.parametrize("size", PARAMETERS)
def test_pythia_parameter_counts(size):
    network = GPTNeoX(config_of(size), empty=True)
    assert sum(p.numel() for p in network.parameters()) == config_of(size).parameters == PARAMETERS[size]


@pytest.mark.parametrize("variant", GOLDEN)
def test_logits_and_loss_of_a_fixture_made_by_transformers(variant):
    golden = GOLDEN[variant]
    network = with_formula_weights(GPTNeoX(GPTNeoXConfig.from_dict(golden["config"])))
    tokens = torch.tensor(golden["tokens"])
    logits = network(tokens)
    assert torch.allclose(logits, torch.tensor(golden["logits"]), rtol=1e-5, atol=1e-5)
    loss = network(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-5)


def test_initial_weights_are_pythias():
    network = GPTNeoX(config_of("31m", 512), seed=0)
    std = {name: p.std().item() for name, p in network.named_parameters() if p.ndim == 2}
    small_init, wang = math.sqrt(2 / (5 * 256)), 2 / (6 * math.sqrt(256))
    for name, value in std.items():
        out = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
        assert value == pytest.approx(wang if out else small_init, rel=0.03), name
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1 if "norm" in name and name.endswith("weight") else 0)).all()
    other = GPTNeoX(network.config, seed=1)
    assert not torch.equal(network.embed_out.weight, other.embed_out.weight)


def test_an_empty_model_loads_the_same_weights_tensor_by_tensor(tmp_path):
    network = GPTNeoX(small(), seed=3)
    network.save_pretrained(tmp_path)
    empty = GPTNeoX(small(), empty=True)
    for weights in (empty.initial_weights(3), stored_weights(tmp_path)):
        assert all(p.is_meta for p in empty.parameters())
        empty.load_weights(weights)
        same_weights(network, empty)
        empty = GPTNeoX.from_pretrained(tmp_path, empty=True)


def test_a_double_model_is_double_all_the_way(tmp_path):
    """Then differences of the loss give its derivative to 7 digits or so; a single fp32 number would leave none."""
    torch.manual_seed(0)
    network = GPTNeoX(small(), seed=3).double()
    tokens, targets = torch.randint(0, 61, (2, 3, 17))
    loss = network(tokens, targets)
    loss.backward()
    assert loss.dtype == network(tokens).dtype == torch.float64
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False)
        direction, step = torch.randn_like(parameter), 1e-5
        sides = []
        for sign in (1, -1):
            parameter += sign * step * direction
            sides.append(network(tokens, targets).item())
            parameter -= sign * step * direction
        slope = (parameter.grad * direction).sum().item()
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(slope, rel=1e-6, abs=1e-9), name
    network.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float64"


def test_evaluation_forms_no_gradients():
    network, tokens = GPTNeoX(small(), seed=3), torch.zeros(2, 8, dtype=torch.int64)
    counts = []
    for targets in (None, tokens):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(tokens, targets)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_generate():
    network = GPTNeoX(small(), seed=2).eval()
    start = torch.randint(0, 61, (2, 3))
    greedy = network.generate(start, 40, temperature=0)  # past the context of 32
    assert greedy.shape == (2, 43) and torch.equal(greedy[:, :3], start)
    assert torch.equal(network.generate(start, 5, top_k=1), greedy[:, :8])
    allowed = network(start)[:, -1].topk(3).indices
    many = network.generate(start.repeat(50, 1), 1, top_k=3)[:, -1].view(50, 2)
    assert all(set(many[:, row].tolist()) <= set(allowed[row].tolist()) for row in range(2))


def same_weights(one, two):
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_save_and_load(tmp_path, umask, mode):
    """Files have the permissions of new files."""
    network = GPTNeoX(small(use_parallel_residual=False, hidden_act="relu", rotary_pct=0.5), seed=4)
    network.config.extra["pad_token_id"] = 1
    before = os.umask(umask)
    try:
        network.save_pretrained(tmp_path / "m")
    finally:
        os.umask(before)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "m" / name).stat().st_mode & 0o777 == mode
    loaded = GPTNeoX.from_pretrained(tmp_path / "m")
    assert replace(loaded.config, extra={}) == replace(network.config, extra={})
    assert loaded.config.extra["pad_token_id"] == 1
    same_weights(network, loaded)


def saved(tmp_path):
    network = GPTNeoX(small(), seed=4)
    network.save_pretrained(tmp_path)
    return network, load_file(tmp_path / "model.safetensors")


def test_loads_fp16_shards_and_skips_old_buffers(tmp_path):
    network, tensors = saved(tmp_path)
    tensors = {name: t.half() for name, t in tensors.items()}
    for layer in range(2):
        prefix = f"gpt_neox.layers.{layer}.attention."
        tensors[prefix + "bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        tensors[prefix + "masked_bias"] = torch.tensor(-1e9)
        tensors[prefix + "rotary_emb.inv_freq"] = torch.ones(1)
    names = sorted(tensors)
    (tmp_path / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same_weights(network.half().float(), GPTNeoX.from_pretrained(tmp_path))


def test_both_spellings_of_config():
    published = small().to_dict() | {"rotary_pct": 0.5, "rotary_emb_base": 500}
    current = {k: v for k, v in published.items() if not k.startswith("rotary")}
    rope = {"rope_theta": 500, "partial_rotary_factor": 0.5, "rope_type": "default"}
    for spelling in ({"rope_parameters": rope}, {"rope_scaling": rope}):
        assert GPTNeoXConfig.from_dict(published) == GPTNeoXConfig.from_dict(current | spelling)
    assert GPTNeoXConfig.from_dict(published | {"rope_parameters": rope | {"rope_theta": 7}}).rotary_emb_base == 7
    for scaling in (None, {}, {"rope_type": "default"}, {"type": "default"}, {"rope_type": None, "type": "default"}):
        for spelling in ("rope_parameters", "rope_scaling"):
            assert GPTNeoXConfig.from_dict(published | {spelling: scaling}) == GPTNeoXConfig.from_dict(published)


def test_what_describes_the_input_is_not_written(tmp_path):
    hub = small().to_dict() | {"bos_token_id": None, "eos_token_id": [0, 5], "pad_token_id": 1}
    described = {
        "quantization_config": {"quant_method": "gptq", "bits": 4}, "_name_or_path": "somebody/model",
        "transformers_version": "4.11", "torch_dtype": "float16", "dtype": "float16", "attention_dropout": 0.3,
        "auto_map": {"AutoModel": "code.Model"}, "_attn_implementation": "flash", "architectures": ["NeoXForTokens"],
        "rope_scaling": {"type": "default"}, "id2label": {"0": "no"}, "num_labels": 9, "task_specific_params": {},
        "use_cache": False, "classifier_dropout": 0.5, "extra": {"a": 1}, "compression_config": {}, "unsloth": True,
    }  # fmt: skip
    GPTNeoX(GPTNeoXConfig.from_dict(hub | described)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == hub | {"torch_dtype": "float32"}


@pytest.mark.parametrize("change, says", [
    ({"model_type": "llama"}, "model_type"),
    ({"hidden_act": "swish"}, "swish"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"hidden_size": 33}, "heads"),
    ({"rotary_pct": 2}, "rotary_pct"),
    ({"tie_word_embeddings": True}, "tied"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rotary"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary"),
    ({"rope_scaling": 7}, "rope_scaling"),
    ({"use_parallel_residual": "yes"}, "use_parallel_residual"),
])  # fmt: skip
def test_config_that_cannot_be(tmp_path, change, says):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=says) as caught:
        GPTNeoX.from_pretrained(tmp_path)
    assert "config.json" in str(caught.value)


def test_tensors_that_do_not_fit(tmp_path):
    _, tensors = saved(tmp_path)
    name, beyond = "gpt_neox.layers.1.mlp.dense_h_to_4h.bias", "gpt_neox.layers.9.attention.dense.bias"
    file, missing = tmp_path / "model.safetensors", {k: v for k, v in tensors.items() if k != name}
    for kept, says in (
        (missing, name),
        (tensors | {beyond: torch.ones(3)}, beyond),
        (missing | {name: torch.ones(3)}, name),
    ):
        save_file(kept, file)
        with pytest.raises(ValueError, match=says):
            GPTNeoX.from_pretrained(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="fetch or save it again"):
        GPTNeoX.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(tmp_path, value, dtype):
    _, tensors = saved(tmp_path)
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    tensors[name][3, 7] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"model.safetensors: {name} .*finite"):
        GPTNeoX.from_pretrained(tmp_path)
    tensors[name][3, 7:9] = torch.tensor([-60000, 60000])  # the largest number of fp16, nearly, is fine
    save_file(tensors, tmp_path / "model.safetensors")
    GPTNeoX.from_pretrained(tmp_path)
    if dtype == torch.float64:
        tensors[name][3, 7] = 1e300  # no fp32
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="finite"):
            GPTNeoX.from_pretrained(tmp_path)


# ---------------------------------------------------------------- transformers as the oracle


def twin(config, folder):
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    torch.manual_seed(0)
    network = GPTNeoX(config, seed=7)
    for parameter in network.parameters():  # biases and norms away from 0 and 1, so that a mistake shows
        parameter.data += 0.05 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    return network, transformers.GPTNeoXForCausalLM.from_pretrained(folder, attn_implementation="eager")


VARIANTS = {
    "pythia": {},
    "sequential": {"use_parallel_residual": False},
    "tanh": {"hidden_act": "gelu_new"},
    "full rotary": {"rotary_pct": 1.0, "rotary_emb_base": 500},
    "no biases": {"attention_bias": False},
    "odd vocabulary": {"vocab_size": 37},
    "one head": {"num_attention_heads": 1, "layer_norm_eps": 1e-3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_with_transformers(variant, tmp_path):
    network, oracle = twin(small(**VARIANTS[variant]), tmp_path)
    for length in (1, 2, 31):
        tokens = torch.randint(0, network.config.vocab_size, (2, length))
        ours, theirs = network(tokens), oracle(tokens).logits
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    loss = network(tokens[:, :-1], tokens[:, 1:])
    expected = oracle(tokens, labels=tokens).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    theirs = {n.replace("lm_head", "embed_out"): p.grad for n, p in oracle.named_parameters()}
    for name, parameter in network.named_parameters():
        assert (parameter.grad - theirs[name]).norm() <= 1e-4 * theirs[name].norm() + 1e-8, name
    start = tokens[:1, :4]
    greedy = oracle.generate(start, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(network.generate(start, 12, temperature=0), greedy)


def test_what_transformers_saves_is_read(tmp_path):
    network, oracle = twin(small(), tmp_path / "ours")
    oracle.half().save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    same_weights(network.half().float(), GPTNeoX.from_pretrained(tmp_path / "theirs"))


@pytest.mark.parametrize("variant", GOLDEN)
def test_the_fixture_is_what_transformers_gives(variant, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    golden, tokens = GOLDEN[variant], torch.tensor(GOLDEN[variant]["tokens"])
    with_formula_weights(GPTNeoX(GPTNeoXConfig.from_dict(golden["config"]))).save_pretrained(tmp_path)
    output = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path)(tokens, labels=tokens)
    assert torch.allclose(output.logits, torch.tensor(golden["logits"]), atol=2e-5)
    assert output.loss.item() == pytest.approx(golden["loss"])
