"""GPT-NeoX, the architecture of Pythia: config, forward, loss, initial weights, load, save, generate.

    from model import GPTNeoX
    model = GPTNeoX.from_pretrained("EleutherAI/pythia-70m-deduped", revision="step10000")
    logits = model(tokens)              # (B, T) -> (B, T, V)
    loss = model(tokens, targets)       # mean cross-entropy in nats
    model.save_pretrained("folder")     # config.json + model.safetensors, as transformers reads them

Section 3 of "How to (re)warm your model?" (arXiv 2308.04014): the study continues Pythia 410M.
The parameters have the names they have on the hub, so loading and saving rename nothing.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.files import check_fields, read_json, to_json
from engine.flags import field_table
from engine.weights import check_tensors, list_tensors, model_folder, read_tensors

PYTHIA_IDS = 50277  # token ids of its tokenizer; its embedding has more rows
# Pythia's sizes, and three that a laptop trains in minutes. The peak learning rates are those of pre-training.
#         layers width heads  max LR  embedding rows  context
SIZES = {
    "nano": (2, 64, 2, 8e-3, 50304, 256),
    "micro": (3, 96, 3, 4e-3, 50304, 256),
    "tiny": (4, 128, 4, 2e-3, 50304, 256),
    "14m": (6, 128, 4, 1e-3, 50304, 2048),
    "31m": (6, 256, 8, 1e-3, 50304, 2048),
    "70m": (6, 512, 8, 1e-3, 50304, 2048),
    "160m": (12, 768, 12, 6e-4, 50304, 2048),
    "410m": (24, 1024, 16, 3e-4, 50304, 2048),
    "1b": (16, 2048, 8, 3e-4, 50304, 2048),
    "1.4b": (24, 2048, 16, 2e-4, 50304, 2048),
    "2.8b": (32, 2560, 32, 1.6e-4, 50304, 2048),
    "6.9b": (32, 4096, 32, 1.2e-4, 50432, 2048),
    "12b": (36, 5120, 40, 1.2e-4, 50688, 2048),
}

# Pythia was trained with tanh GELU, but its config.json says "gelu": the exact erf form, as everyone runs it. The two
# differ by less than 5e-4.
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}
ACTIVATIONS |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), lambda x: F.gelu(x, approximate="tanh"))

# Buffers that old checkpoints carry in each layer: the causal mask, its filler, the rotary frequencies.
OLD_BUFFERS = re.compile(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)")

# AttentionInBlocks: rows of Q at a time; the longest context that saves its probabilities for the backward pass.
BLOCK, SAVED_CONTEXT = 128, 1024
# Logits formed at a time in the loss. On a CPU 64 MiB in fp32, some 330 tokens at Pythia's vocabulary. On a GPU four
# times as many (estimated, not measured): each chunk reads and writes the unembedding's gradient. For 16,384 tokens of
# the 410M that is 20 GB in chunks of 330 tokens (about 6 ms of 85 on an H100), and 5 GB in these.
LOGIT_CHUNK, GPU_LOGIT_CHUNK = 2**24, 2**26

# ---------------------------------------------------------------- the config


@dataclass
class GPTNeoXConfig:
    """The fields of the hub's config.json that change the computation. Defaults are transformers'."""

    vocab_size: int = 50432
    hidden_size: int = 6144
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    intermediate_size: int = 24576
    hidden_act: str = "gelu"
    rotary_pct: float = 0.25
    rotary_emb_base: float = 10000
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    extra: dict = field(default_factory=dict)  # other entries of config.json; to_dict overrides some

    @classmethod
    def from_dict(cls, hub: dict, where="config.json") -> "GPTNeoXConfig":
        """From the contents of a config.json, in the published or in the current spelling of the rotary fields.

        Raises ValueError, naming `where`, for another architecture or a value that cannot be."""
        check_fields(hub, {}, where)
        hub = dict(hub)
        if hub.pop("model_type", None) != "gpt_neox":
            raise ValueError(f"{where}: model_type is not gpt_neox; only GPT-NeoX models (such as Pythia) can be read")
        rope = hub.pop("rope_parameters", None) or {}  # current transformers' spelling
        if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default" or hub.get("rope_scaling"):
            raise ValueError(f"{where}: scaled rotary embeddings are not supported; use a model without them")
        for name in ("dtype", "torch_dtype", "extra"):  # precision is the run's business: weights are saved as fp32
            hub.pop(name, None)
        hub.setdefault("rotary_pct", rope.get("partial_rotary_factor", cls.rotary_pct))
        hub.setdefault("rotary_emb_base", rope.get("rope_theta", cls.rotary_emb_base))
        names = {f.name for f in fields(cls)} - {"extra"}
        config = cls(**{k: v for k, v in hub.items() if k in names})
        config.extra = {k: v for k, v in hub.items() if k not in names}
        config.check(where)
        return config

    def check(self, where="config") -> None:
        """Raises ValueError for values that no GPT-NeoX can have."""
        check_fields(vars(self), CONFIG, where)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{where}: {self.num_attention_heads} heads do not divide a width of {self.hidden_size}")
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ValueError(f"{where}: rotary_pct {self.rotary_pct} rotates {self.rotary_size} values, not pairs")
        if self.extra.get("tie_word_embeddings"):
            raise ValueError(f"{where}: tied embeddings are not supported; Pythia's are untied")
        try:
            to_json(self.to_dict())  # as every checkpoint will
        except RecursionError:
            raise ValueError(f"{where}: nested too deeply; restore it or choose another folder") from None

    def to_dict(self) -> dict:
        """The published spelling, which every version of transformers reads."""
        own = asdict(self)
        extra = {"initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 0} | own.pop("extra")
        fixed = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "tie_word_embeddings": False}
        # This program has no dropout, as in the paper, so it writes none.
        dropout = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
        return extra | own | fixed | dropout | {"torch_dtype": "float32"}

    @property
    def rotary_size(self) -> int:
        """How many values of each head are rotated."""
        return int(self.hidden_size // self.num_attention_heads * self.rotary_pct)

    @property
    def parameters(self) -> int:
        """Number of parameters, counted without building the model."""
        d, inner, bias = self.hidden_size, self.intermediate_size, int(self.attention_bias)
        layer = 4 * d + (3 * d * d + d * d) + bias * 4 * d + (2 * d * inner + inner + d)
        return 2 * self.vocab_size * d + self.num_hidden_layers * layer + 2 * d

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to learn from one token: 6 for each weight but the input embedding's, which is
        looked up, and 12 L D T for attention (PaLM, arXiv 2204.02311, appendix B; nothing off for causality)."""
        weights = self.parameters - self.vocab_size * self.hidden_size
        return 6 * weights + 12 * self.num_hidden_layers * self.hidden_size * context


# What the fields of a config.json may be.
WIDTHS = dict.fromkeys(("hidden_size", "intermediate_size"), (1, 2**20))
COUNTS = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), (1, 2**12))
LENGTHS = dict.fromkeys(("vocab_size", "max_position_embeddings"), (1, 2**24))
NUMBERS = {"rotary_pct": (1e-30, 1)} | dict.fromkeys(("rotary_emb_base", "layer_norm_eps"), (1e-30, 1e30))
CONFIG = field_table(GPTNeoXConfig, WIDTHS | COUNTS | LENGTHS | NUMBERS, {"hidden_act": ACTIVATIONS})


def config_of(size: str, vocab_size: int | None = None) -> GPTNeoXConfig:
    """GPTNeoXConfig of a key of SIZES. Pythia's tokenizer gets as many embedding rows as Pythia has, one with another
    `vocab_size` as many as it needs."""
    layers, width, heads, _, rows, context = SIZES[size]
    rows = rows if vocab_size in (None, 0, PYTHIA_IDS) else vocab_size
    # vocabulary, width, layers, heads, inner width
    return GPTNeoXConfig(rows, width, layers, heads, 4 * width, max_position_embeddings=context)


def pretraining_peak(config: GPTNeoXConfig, name: str | None = None) -> float | None:
    """The peak learning rate of the pre-training of this shape. A shape not in SIZES gives None, or ValueError if the
    model's `name` is given, for the message."""
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.max_position_embeddings)
    peak = {(*row[:3], row[5]): row[3] for row in SIZES.values()}.get(shape)
    if name and not peak:
        raise ValueError(f"{name} is none of Pythia's sizes, so its pre-training peak is unknown; give --max-lr")
    return peak


# ---------------------------------------------------------------- the network


class Attention(nn.Module):
    """Causal self-attention with rotary positions on the first part of each head."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.rotary_size = config.num_attention_heads, config.rotary_size
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, x, cos, sin):  # (B, T, D), (T, R), (T, R) -> (B, T, D)
        B, T, D = x.shape
        # The trap: the rows of query_key_value are stored head by head, each head's q, k and v together.
        qkv = self.query_key_value(x).view(B, T, self.heads, 3 * D // self.heads)
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)  # 3 x (B, H, T, D/H)
        query, key = rotate(query, cos, sin, self.rotary_size), rotate(key, cos, sin, self.rotary_size)
        if x.device.type == "cpu" and query.dtype == torch.bfloat16:  # where torch's own is slower than in fp32
            mixed = AttentionInBlocks.apply(query, key, value)
        else:
            with torch.autocast("cpu", enabled=False):  # would cast back; on a CPU torch's own is computed in fp32
                exact = (t.float() if t.is_cpu else t for t in (query, key, value))
                mixed = F.scaled_dot_product_attention(*exact, is_causal=True).to(query.dtype)  # (B, H, T, D/H)
        return self.dense(mixed.transpose(1, 2).reshape(B, T, D))


class AttentionInBlocks(torch.autograd.Function):
    """Causal softmax(Q K^T / sqrt(d)) V, BLOCK rows of Q at a time: after FlashAttention (arXiv 2205.14135), but each
    row's softmax is whole. Blocks of future keys are skipped: nearly half the square at long contexts.

    Beyond SAVED_CONTEXT tokens backward computes the probabilities again: memory is then linear in the context."""

    @staticmethod
    def forward(ctx, *inputs):  # 3 x (B, H, T, d) -> (B, H, T, d)
        query, key, value = (t.flatten(0, 1) for t in inputs)  # (N, T, d), a product for each of the N heads at once
        out, saved, T = torch.empty_like(value), [], value.shape[1]
        for rows in (slice(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)):
            probabilities = causal_probabilities(query, key, rows)
            out[:, rows] = probabilities @ value[:, : rows.stop]
            saved += [probabilities] if T <= SAVED_CONTEXT else []
        ctx.save_for_backward(query, key, value, out, *saved)
        return out.view_as(inputs[2])

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, *saved = ctx.saved_tensors
        shape, grad, T = grad.shape, grad.flatten(0, 1), value.shape[1]
        exact = torch.promote_types(value.dtype, torch.float32)
        grad_query, grad_key, grad_value = (torch.zeros_like(t, dtype=exact) for t in (query, key, value))
        # The gradient of the scores is probabilities * (grad V^T - delta), delta = sum(grad * out) over d. Two extra
        # columns on grad and V let the matrix product subtract delta before it rounds to bf16.
        delta = (grad.to(exact) * out).sum(dim=-1, keepdim=True)  # (N, T, 1)
        rounded = delta.to(value.dtype)
        grad_delta = torch.cat((grad, -rounded, (rounded - delta).to(value.dtype)), dim=-1)
        value = F.pad(value, (0, 2), value=1.0)
        for number, rows in enumerate(slice(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)):
            probabilities, past = saved[number] if saved else causal_probabilities(query, key, rows), slice(rows.stop)
            grad_scores = (grad_delta[:, rows] @ value[:, past].mT).mul_(probabilities)  # (N, rows, past)
            grad_query[:, rows] = grad_scores @ key[:, past]
            grad_key[:, past] += grad_scores.mT @ query[:, rows]
            grad_value[:, past] += probabilities.mT @ grad[:, rows]
        scale = 1 / math.sqrt(query.shape[-1])
        grads = grad_query.mul_(scale), grad_key.mul_(scale), grad_value
        return tuple(t.to(query.dtype).view(shape) for t in grads)


def causal_probabilities(query, key, rows):
    """softmax(Q K^T / sqrt(d)) of some rows of queries (N, T, d) over the keys up to them: (N, rows, rows.stop)."""
    mask = key.new_full((rows.stop - rows.start, rows.stop), -math.inf).triu_(rows.start + 1)
    scores = torch.baddbmm(mask, query[:, rows], key[:, : rows.stop].mT, alpha=1 / math.sqrt(key.shape[-1]))
    return scores.softmax(dim=-1)  # sums in fp32


def rotary_tables(length, config, device):
    """cos and sin of the rotary angles, each (T, R): position times base^(-2i/R), halves repeated."""
    size = config.rotary_size
    frequency = config.rotary_emb_base ** -(torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency).repeat(1, 2)
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


# ---------------------------------------------------------------- the loss


class LinearCrossEntropy(torch.autograd.Function):
    """Unembedding and cross-entropy, chunk by chunk, so that all logits never exist at once.

    At Pythia's vocabulary a batch's logits are large: 1.6 GB in fp32 for 4 x 2048 tokens, like the 410M's weights.
    The gradient of the summed loss with respect to the logits is softmax - one hot, known as soon as they are. So
    forward forms it, uses it for the gradients of both inputs, and drops it; backward, good for one pass, divides by N.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype):
        """(N, D), (V, D), (N,) -> mean loss, and the loss of each token (N,), both fp32 in nats."""
        ctx.dtypes, ctx.learning = (hidden.dtype, weight.dtype), any(ctx.needs_input_grad)
        at_once = (LOGIT_CHUNK if hidden.device.type == "cpu" else GPU_LOGIT_CHUNK) // len(weight)
        N, chunk = len(targets), max(1, min(at_once, len(targets)))
        losses = torch.empty(N, device=hidden.device, dtype=torch.float32)
        if ctx.learning:
            grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        # The same memory for all chunks, worked on in place: allocating it anew costs a CPU a third of the time.
        products = hidden.new_empty(chunk, len(weight))
        floats = products if dtype == torch.float32 else torch.empty_like(products, dtype=torch.float32)
        for start in range(0, N, chunk):
            rows = slice(start, min(start + chunk, N))  # C of them
            product, logits = products[: rows.stop - start], floats[: rows.stop - start]  # (C, V)
            torch.mm(hidden[rows], weight.T, out=product)
            if dtype != torch.float32:
                logits.copy_(product)
            target = targets[rows, None]  # (C, 1)
            highest = logits.amax(dim=1, keepdim=True)
            losses[rows] = (highest - logits.gather(1, target)).squeeze(1)
            total = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
            losses[rows] += total.log().squeeze(1)
            if ctx.learning:
                # Softmax less one hot. Divided by N only in backward: in fp16 the small entries would vanish here.
                error = logits.div_(total)
                error.scatter_add_(1, target, torch.full_like(target, -1, dtype=error.dtype))
                if dtype != torch.float32:
                    error = product.copy_(error)
                grad_hidden[rows] = error @ weight
                add_product(grad_weight, error, hidden[rows])
        if ctx.learning:
            ctx.gradients = grad_hidden, grad_weight
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx, grad_mean, _):
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None  # scaled in place, so good for one pass only
        scale = grad_mean.float() / len(grad_hidden)
        return grad_hidden.mul_(scale).to(ctx.dtypes[0]), grad_weight.mul_(scale).to(ctx.dtypes[1]), None, None


def add_product(total, error, hidden):
    """total (V, D), fp32, += error.T @ hidden of (C, V) and (C, D)."""
    if error.dtype == torch.float32:
        total.addmm_(error.T, hidden)
        return
    size = 4096 if total.device.type == "cpu" else len(total)  # a CPU adds twice as fast what is still in its cache
    for rows, errors in zip(total.split(size), error.T.split(size), strict=True):
        rows += errors @ hidden


# ---------------------------------------------------------------- the model


class Body(nn.Module):
    """What the hub's parameter names call `gpt_neox`."""

    def __init__(self, config):
        super().__init__()
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class GPTNeoX(nn.Module):
    """A GPT-NeoX language model, built from a GPTNeoXConfig with random weights, or with from_pretrained.

    empty=True gives nothing but shapes; fill() gives these memory and weights."""

    def __init__(self, config: GPTNeoXConfig, seed: int = 0, empty: bool = False):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        with torch.device("meta"):  # shapes only: weights are filled in once, below or by from_pretrained
            self.gpt_neox = Body(config)
            self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.weights = lambda: self.initial_weights(seed)  # (name, tensor) of each, one at a time
        if not empty:
            self.fill()

    def forward(self, tokens: Tensor, targets: Tensor | None = None, per_token: bool = False) -> Tensor:
        """Logits (B, T, V) of token ids (B, T); with targets (B, T), their mean cross-entropy in nats, a scalar.

        per_token=True gives the loss of each target instead, (B, T), without a gradient.
        """
        cos, sin = rotary_tables(tokens.shape[1], self.config, tokens.device)  # (T, R)
        x = self.gpt_neox.embed_in(tokens)  # (B, T, D)
        for layer in self.gpt_neox.layers:
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, cos, sin, use_reentrant=False)
            else:
                x = layer(x, cos, sin)
        x = self.gpt_neox.final_layer_norm(x)
        if targets is None:
            return self.embed_out(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        # The loss forms gradients as it goes, so it has to know here whether any are wanted.
        weight = self.embed_out.weight if torch.is_grad_enabled() else self.embed_out.weight.detach()
        mean, losses = LinearCrossEntropy.apply(x.flatten(0, 1), weight, targets.flatten(), dtype)
        return losses.view(targets.shape) if per_token else mean

    def initial_weights(self, seed):
        """Yields Pythia's initial weights: "small init" going in, "Wang init" going out of each branch."""
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
    def fill(self, device="cpu", placed=lambda parameter, tensor: tensor):
        """Gives a model of shapes only its memory and its weights, one tensor at a time.

        placed(parameter, tensor): the part of the whole tensor that this process stores, for a sharded model."""
        self.to_empty(device=device)
        parameters = dict(self.named_parameters())
        for name, tensor in self.weights():
            parameters[name].copy_(placed(parameters[name], tensor))

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, generator=None
    ) -> Tensor:
        """Continues token ids (B, T) to (B, T + max_new_tokens). temperature 0 takes the likeliest token;
        top_k samples among the k likeliest. The model sees the last max_position_embeddings tokens."""
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

        With empty=True only the shapes are checked; fill() reads the weights later.
        Raises ValueError or OSError, naming the file and the fault; for a hub id also huggingface_hub's errors."""
        folder = model_folder(id_or_folder, revision)
        config = GPTNeoXConfig.from_dict(read_json(folder / "config.json"), folder / "config.json")
        # A config.json can ask for terabytes: nothing is allocated before every shape is what a file holds.
        stored = list_tensors(folder, OLD_BUFFERS)
        if config.num_hidden_layers > len(stored):
            raise ValueError(f"{folder}: {len(stored)} tensors; config.json asks for {config.num_hidden_layers} layers")
        model = cls(config, empty=True)
        check_tensors(folder, stored, dict(model.named_parameters()))
        model.weights = lambda: ((name, file.get_tensor(name)) for _, name, file in read_tensors(folder, OLD_BUFFERS))
        if not empty:
            model.fill()  # fp16 on the hub, fp32 master weights here
        return model

    def save_pretrained(self, folder: str | Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes config.json and model.safetensors, which transformers reads, into a folder that exists or not.

        weights: {name: tensor} to write in place of the model's own, where those are spread over processes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(to_json(self.config.to_dict()))
        weights = weights or {name: parameter.detach() for name, parameter in self.named_parameters()}
        weights = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
