"""GPT-NeoX, the architecture of Pythia: config, forward, loss, initial weights, load, save, generate.

    from model import GPTNeoX
    model = GPTNeoX.from_pretrained("EleutherAI/pythia-70m-deduped", revision="step10000")
    logits = model(tokens)              # (B, T) -> (B, T, V)
    loss = model(tokens, targets)       # mean cross-entropy in nats
    model.save_pretrained("folder")     # config.json + model.safetensors, as transformers reads them

Section 3 of "How to (re)warm your model?" (arXiv 2308.04014): the study continues to train Pythia 410M.
The parameters have the names they have on the hub, so loading and saving rename nothing.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from engine import kernels
from engine.config import read_config
from engine.files import read_json, to_json
from engine.processes import placed_as
from engine.weights import check_tensors, model_folder, save_tensors, stored_weights

PYTHIA_IDS = 50277  # how many token ids Pythia's tokenizer has; its models have more embedding rows


class Size(NamedTuple):
    layers: int
    width: int
    heads: int
    peak: float  # learning rate of its pre-training
    rows: int = 50304  # embedding rows: PYTHIA_IDS, padded
    context: int = 2048


# Pythia's sizes with the peaks of their pre-training; and three that a laptop trains in minutes, with the best peak
# of a sweep (paper/README.md).
SIZES = {
    "nano": Size(2, 64, 2, 8e-3, context=256),
    "micro": Size(3, 96, 3, 4.6e-3, context=256),
    "tiny": Size(4, 128, 4, 4.3e-3, context=256),
    "14m": Size(6, 128, 4, 1e-3),
    "31m": Size(6, 256, 8, 1e-3),
    "70m": Size(6, 512, 8, 1e-3),
    "160m": Size(12, 768, 12, 6e-4),
    "410m": Size(24, 1024, 16, 3e-4),
    "1b": Size(16, 2048, 8, 3e-4),
    "1.4b": Size(24, 2048, 16, 2e-4),
    "2.8b": Size(32, 2560, 32, 1.6e-4),
    "6.9b": Size(32, 4096, 32, 1.2e-4, rows=50432),
    "12b": Size(36, 5120, 40, 1.2e-4, rows=50688),
}

# Pythia was trained with tanh GELU; its config.json says "gelu", the erf form, which loaders use (at most 5e-4 apart).
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}
ACTIVATIONS |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), lambda x: F.gelu(x, approximate="tanh"))

# ---------------------------------------------------------------- the config


@dataclass
class GPTNeoXConfig:
    """The fields of the hub's config.json that change the computation. Defaults as in transformers.

    extra: further entries for to_dict(), such as the special token ids of a config.json that was read."""

    vocab_size: int = 50432
    hidden_size: int = 6144
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    intermediate_size: int = 24576
    hidden_act: str = "gelu"
    rotary_pct: float = 0.25
    rotary_emb_base: float = 10000.0
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    extra: dict = field(default_factory=dict)

    @classmethod
    def from_dict(cls, hub: dict, where="config.json") -> "GPTNeoXConfig":
        """From the contents of a config.json, with the rotary fields as on the hub or as in current transformers.

        Raises ValueError, naming `where`, for another architecture or an impossible value."""
        defaults = {each.name: each.default for each in fields(cls) if each.name != "extra"}
        return cls(**read_config(hub, where, defaults, ACTIVATIONS))

    def to_dict(self) -> dict:
        """For config.json, spelled as on the hub, which every version of transformers reads."""
        own = asdict(self)
        ids = {"bos_token_id": 0, "eos_token_id": 0} | own.pop("extra")  # else transformers takes 2 for eos
        fixed = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "tie_word_embeddings": False}
        return ids | own | fixed | {"attention_dropout": 0.0, "hidden_dropout": 0.0}  # none, as in the paper

    @property
    def rotary_size(self) -> int:
        """How many values of each head are rotated."""
        return int(self.hidden_size // self.num_attention_heads * self.rotary_pct)

    @property
    def parameters(self) -> int:
        """Number of parameters, counted on a model of shapes alone."""
        return sum(parameter.numel() for parameter in GPTNeoX(self, empty=True).parameters())


def config_of(size: str, vocab_size: int = PYTHIA_IDS) -> GPTNeoXConfig:
    """The config of a key of SIZES. vocab_size: embedding rows; that of Pythia's tokenizer is padded to Size.rows."""
    shape = SIZES[size]
    return GPTNeoXConfig(
        vocab_size=shape.rows if vocab_size == PYTHIA_IDS else vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.context,
    )


def pretraining_peak(config: GPTNeoXConfig) -> float | None:
    """The peak learning rate of the pre-training of this shape; None if it is not in SIZES."""
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.max_position_embeddings)
    for size in SIZES.values():
        if (size.layers, size.width, size.heads, size.context) == shape:
            return size.peak
    return None


# ---------------------------------------------------------------- the network


class Attention(nn.Module):
    """Causal self-attention with rotary positions on the first part of each head."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.rotary_size = config.num_attention_heads, config.rotary_size
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, x, cos, sin):  # (B, T, D), (T, R), (T, R) -> (B, T, D); R: rotary_size
        B, T, D = x.shape
        # Careful: the rows go head by head (q, k, v of head 0, then of head 1), not all of q first as in GPT-2.
        qkv = self.query_key_value(x).view(B, T, self.heads, 3 * D // self.heads)
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)  # 3 x (B, H, T, D/H)
        query, key = rotate(query, cos, sin, self.rotary_size), rotate(key, cos, sin, self.rotary_size)
        mixed = attention(query, key, value)  # (B, H, T, D/H)
        return self.dense(mixed.transpose(1, 2).reshape(B, T, D))


def attention(query, key, value):  # 3 x (B, H, T, D/H) -> (B, H, T, D/H)
    """softmax(Q K^T / sqrt(D/H)) V with a causal mask."""
    if query.is_cpu and query.dtype == torch.bfloat16:  # torch's own is slow there: the same in blocks
        return kernels.AttentionInBlocks.apply(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def rotary_tables(length, config, device, dtype=torch.float32):
    """cos and sin of the rotary angles, each (T, R): position times base^(-2i/R), the R/2 columns twice."""
    size = config.rotary_size
    frequency = config.rotary_emb_base ** -(torch.arange(0, size, 2, device=device, dtype=dtype) / size)  # (R/2,)
    angle = torch.outer(torch.arange(length, device=device, dtype=dtype), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin, size):
    """Rotary embedding of the first `size` values of each head, pairing i with i + size/2. (B, H, T, D/H)"""
    rotated, passed = x[..., :size], x[..., size:]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated.to(x.dtype), passed), dim=-1)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x):  # (B, T, D) -> (B, T, D)
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.parallel = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin):  # (B, T, D) -> (B, T, D)
        attended = self.attention(self.input_layernorm(x), cos, sin)
        if self.parallel:  # Pythia: both branches read the same x
            return x + attended + self.mlp(self.post_attention_layernorm(x))
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


def cross_entropy(hidden, weight, targets):  # (B, T, D), (V, D), (B, T) -> (), (B, T)
    """-log softmax(W h) of each target in nats: their mean, and each."""
    if targets.numel() * len(weight) > kernels.LOGIT_CHUNK:  # (B, T, V) can be gigabytes: the same in chunks
        return kernels.linear_cross_entropy(hidden, weight, targets)
    logits = F.linear(hidden, weight)  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return losses.mean(), losses


# ---------------------------------------------------------------- the model


class Body(nn.Module):
    """All but the unembedding, called `gpt_neox` in the hub's parameter names. GPTNeoX.forward runs it."""

    def __init__(self, config):
        super().__init__()
        weight = torch.empty(config.vocab_size, config.hidden_size)  # no values yet; nn.Embedding(V, D) would draw some
        self.embed_in = nn.Embedding.from_pretrained(weight, freeze=False)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class GPTNeoX(nn.Module):
    """A GPT-NeoX language model with initial weights; with empty=True only shapes, until load_weights()."""

    def __init__(self, config: GPTNeoXConfig, seed: int = 0, empty: bool = False):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        with torch.device("meta"):  # shapes only, so that weights are written once
            self.gpt_neox = Body(config)
            self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not empty:
            self.load_weights(self.initial_weights(seed))

    def forward(self, tokens: Tensor, targets: Tensor | None = None, per_token: bool = False) -> Tensor:
        """Logits (B, T, V) of token ids (B, T); with targets (B, T), their mean cross-entropy in nats, a scalar.

        per_token=True gives the loss of each target instead, (B, T), for evaluation: it may have no gradient."""
        x = self.gpt_neox.embed_in(tokens)  # (B, T, D)
        at_least_fp32 = torch.promote_types(x.dtype, torch.float32)  # a model in bf16 would round the angles
        cos, sin = rotary_tables(tokens.shape[1], self.config, x.device, at_least_fp32)  # (T, R)
        for layer in self.gpt_neox.layers:
            if self.activation_checkpointing and self.training:
                x = recompute(layer, x, cos, sin, use_reentrant=False)  # in the backward pass
            else:
                x = layer(x, cos, sin)
        x = self.gpt_neox.final_layer_norm(x)
        if targets is None:
            return self.embed_out(x)
        mean, losses = cross_entropy(x, self.embed_out.weight, targets)
        return losses if per_token else mean

    def initial_weights(self, seed: int = 0):
        """Yields (name, tensor) of Pythia's initial weights: "Wang init" out of each branch, "small init" elsewhere."""
        width, layers = self.config.hidden_size, self.config.num_hidden_layers
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            tensor = torch.zeros(parameter.shape)
            if "norm" in name and name.endswith("weight"):
                tensor.fill_(1)
            elif name.endswith("weight"):
                out_projection = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
                std = 2 / (layers * math.sqrt(width)) if out_projection else math.sqrt(2 / (5 * width))
                tensor.normal_(0, std, generator=generator)
            yield name, tensor

    @torch.no_grad()
    def load_weights(self, weights, device="cpu") -> None:
        """Allocates an empty model on a device and copies `weights`, pairs (name, tensor), into it."""
        self.to_empty(device=device)
        parameters = dict(self.named_parameters())
        for name, tensor in weights:  # one at a time; fp16 on the hub, fp32 master weights here
            parameters[name].copy_(placed_as(parameters[name], tensor))

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, generator=None
    ) -> Tensor:
        """Continues token ids (B, T) to (B, T + max_new_tokens). temperature 0 takes the most likely token;
        top_k samples from the k most likely. The model sees the last max_position_embeddings tokens."""
        for _ in range(max_new_tokens):
            logits = self(tokens[:, -self.config.max_position_embeddings :])[:, -1].float()  # (B, V)
            if temperature == 0:
                chosen = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                logits = logits / temperature
                if top_k:
                    smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                    logits = logits.masked_fill(logits < smallest, -math.inf)
                chosen = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
            tokens = torch.cat((tokens, chosen), dim=1)
        return tokens

    @classmethod
    def from_pretrained(cls, id_or_folder: str | Path, revision: str | None = None, empty: bool = False) -> "GPTNeoX":
        """Reads a hub id (EleutherAI/pythia-70m, with a revision such as step1000) or a model folder, as fp32.

        With empty=True only the shapes are checked; load_weights(stored_weights(folder)) reads the weights later.
        Raises ValueError or OSError, naming the file and the fault; for a hub id also huggingface_hub's errors."""
        folder = model_folder(id_or_folder, revision)
        config = GPTNeoXConfig.from_dict(read_json(folder / "config.json"), folder / "config.json")
        # All shapes are checked before anything is allocated: a bad config.json can ask for terabytes.
        model = cls(config, empty=True)
        check_tensors(folder, model.named_parameters())
        if not empty:
            model.load_weights(stored_weights(folder))
        return model

    def save_pretrained(self, folder: str | Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes config.json and model.safetensors, which transformers reads; creates the folder if needed.

        weights: {name: tensor} to write instead of the model's own, if those are sharded."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = weights or {name: parameter.detach() for name, parameter in self.named_parameters()}
        weights = {name: tensor.contiguous() for name, tensor in weights.items()}
        dtype = str(weights["embed_out.weight"].dtype).removeprefix("torch.")
        (folder / "config.json").write_bytes(to_json(self.config.to_dict() | {"torch_dtype": dtype}))
        save_tensors(weights, folder / "model.safetensors")
