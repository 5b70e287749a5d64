"""Evaluation: perplexity of a checkpoint, LAMBADA, samples, and plots of runs.

    python eval.py perplexity runs/NAME --data stdlib torch
    python eval.py lambada EleutherAI/pythia-410m-deduped      checks loader, tokenizer and model together
    python eval.py sample runs/NAME --prompt "def main("
    python eval.py plot runs/A runs/B --out figure.png         (or .pdf, .svg)

Section 4 of "How to (re)warm your model?" (arXiv 2308.04014): validation loss on the upstream and the downstream
corpus against tokens. The metric is the mean cross-entropy per token in nats; perplexity is its exp.
The paper's own figures, and its claims, are in paper/. evaluate() is the lesson; the commands may wait.
"""

import math
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from corpora.readers import read_documents
from corpora.tokenizer import load_tokenizer
from data import Corpus, fixed_windows
from engine import processes
from engine.checkpoints import newest
from engine.faults import one_line, run_command
from engine.figures import draw_curves
from engine.files import printable
from engine.flags import COUNT, OneLineParser, whole_number
from engine.folder import read_run as read_run  # for those who import it from here
from engine.folder import read_runs, record_behind
from engine.log import json_line, perplexity_of
from engine.machine import autocast, pick_device, threads_for
from engine.weights import model_folder
from model import GPTNeoX

PADDING_ROWS = 512  # that an embedding may have beyond the tokenizer's ids; Pythia's have 27 to 411

# ---------------------------------------------------------------- the loss on both sides


@torch.no_grad()
def token_losses(model: GPTNeoX, windows: Tensor, micro_batch: int, precision: torch.dtype | None = None) -> Tensor:
    """Loss of every target of windows (N, context + 1): (N, context), fp32 in nats, on the CPU."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses = []
    for rows in windows.split(micro_batch):
        rows = rows.to(device)
        with autocast(device, precision):
            losses.append(model(rows[:, :-1], rows[:, 1:], per_token=True).float())
    model.train(was_training)
    return torch.cat(losses).cpu()


def window_losses(model, windows, micro_batch, precision=None):
    """Mean loss of each window (N, context + 1): (N,), fp64 in nats."""
    return token_losses(model, windows, micro_batch, precision).double().mean(dim=1)


def evaluate(
    model: GPTNeoX, windows: dict[str, Tensor], upstream: str, shares: dict[str, float], micro_batch: int,
    precision: torch.dtype | None = None,
) -> dict[str, float]:  # fmt: skip
    """Validation losses in nats: "NAME_loss" of each corpus, "upstream_loss" and "downstream_loss".

    windows: {name of a corpus: token ids (N, context + 1)}; upstream: one of these names; shares: {name: share}
    of the downstream text, shares summing to 1. The loss on a mixture is the share-weighted mean of the losses on its
    corpora; its perplexity is exp of that. All processes must call this: each computes a part, and gets all losses."""
    losses_of = partial(window_losses, model, micro_batch=micro_batch, precision=precision)
    losses = {name: fmean(processes.in_parts(rows, losses_of)) for name, rows in windows.items()}  # means over windows
    downstream = sum(share * losses[name] for name, share in shares.items())
    by_corpus = {f"{name}_loss": loss for name, loss in losses.items()}
    # The sides come last, to override a corpus named "upstream" or "downstream".
    return by_corpus | {"upstream_loss": losses[upstream], "downstream_loss": downstream}


# ---------------------------------------------------------------- the commands


def open_checkpoint(flags):
    """(folder, model ready to evaluate) from the flags checkpoint, revision and device."""
    device = pick_device(flags.device)
    folder = model_folder(newest(flags.checkpoint), flags.revision)
    model = GPTNeoX.from_pretrained(folder).to(device).eval()
    torch.set_num_threads(threads_for(model.config.hidden_size))
    return folder, model


def check_vocabulary(folder, model, corpus):
    """ValueError if the checkpoint in a folder does not have the tokenizer of a corpus, or enough rows for it."""
    way_out = f"prepare the corpus again with data.py --tokenizer {folder}"
    rows, ids = model.config.vocab_size, corpus.vocab_size
    has_tokenizer = (Path(folder) / "tokenizer.json").is_file()
    if has_tokenizer and load_tokenizer(folder).sha256 != corpus.tokenizer_sha256:
        raise ValueError(f"{folder} has another tokenizer than data/{corpus.name}; {way_out}")
    if ids > rows:
        way_out = "resize its embedding with transformers" if has_tokenizer else way_out
        raise ValueError(f"{folder} has {rows} embedding rows, data/{corpus.name} {ids} token ids; {way_out}")
    if not has_tokenizer and rows - ids > PADDING_ROWS:
        fault = f"no tokenizer.json, and {rows} embedding rows where data/{corpus.name} has {ids} token ids"
        raise ValueError(f"{folder}: {fault}; put the model's tokenizer.json there")


def perplexity(flags):
    """Prints loss, perplexity and bits per byte of a checkpoint, in fp32, on the validation text of each corpus."""
    folder, model = open_checkpoint(flags)
    record = record_behind(flags.checkpoint)
    max_context = model.config.max_position_embeddings
    context = flags.context or (record["flags"]["context"] if record else max_context)
    if context > max_context:
        raise ValueError(f"--context {context} is more than the model's {max_context}")
    corpora = [Corpus(name) for name in flags.data]
    width = 2 + max(map(len, ["corpus", *flags.data]))
    if not flags.json:
        print(f"{'corpus':<{width}}{'tokens':>10}{'loss':>9}{'+-':>8}{'perplexity':>12}{'bits/byte':>11}")
    for corpus in corpora:
        check_vocabulary(folder, model, corpus)
        windows = fixed_windows(corpus, context, flags.eval_tokens)  # (N, T + 1)
        parts = tqdm(windows.split(flags.micro_batch_size), disable=None, desc=corpus.name, leave=False)
        by_window = torch.cat([window_losses(model, part, len(part)) for part in parts])  # (N,)
        loss = by_window.mean().item()
        # Over windows, because the tokens within one are not independent; unknown for a single window.
        error = by_window.std().item() / math.sqrt(len(windows)) if len(windows) > 1 else math.nan
        result = {
            "corpus": corpus.name, "tokens": len(windows) * context, "loss": loss, "standard_error": error,
            "perplexity": perplexity_of(loss), "bits_per_byte": loss / math.log(2) / corpus.bytes_per_token,
        }  # fmt: skip
        if flags.json:
            print(json_line(result))
        else:
            name, tokens, *numbers = result.values()
            print(f"{name:<{width}}{tokens:>10,}" + "{:>9.4f}{:>8.4f}{:>12.3f}{:>11.4f}".format(*numbers))


def encode(text: str, tokenizer, model: GPTNeoX) -> list[int]:
    """Token ids of a text (of an empty one: end of text); ValueError if the model has no row for one of them."""
    ids = tokenizer.encode(text) or [tokenizer.eot]
    if max(ids) >= model.config.vocab_size:
        raise ValueError(f"the tokenizer gives id {max(ids)}, the model has {model.config.vocab_size} rows")
    return ids


@torch.no_grad()
def lambada(flags):
    """Perplexity and accuracy on LAMBADA (OpenAI's version), as Pythia's authors report it.

    The context is all but the last word; the target is a space and the last word. Perplexity is exp(-mean of the
    targets' log-probabilities); a target is right if each of its tokens is the most likely."""
    folder, model = open_checkpoint(flags)
    rows = lambada_rows(flags.file, load_tokenizer(flags.tokenizer or folder), model)
    device, total, right = next(model.parameters()).device, 0.0, 0
    for first in tqdm(range(0, len(rows), flags.micro_batch_size), disable=None, desc="lambada"):
        batch = rows[first : first + flags.micro_batch_size]
        # Padded on the right, which a causal model never looks at.
        tokens = pad_sequence([torch.tensor(ids) for ids, _ in batch], batch_first=True)  # (B, T + 1)
        log_probability = model(tokens[:, :-1].to(device)).float().log_softmax(dim=-1).cpu()  # (B, T, V)
        for scores, (ids, start) in zip(log_probability, batch, strict=True):
            target = torch.tensor(ids[start:])
            scores = scores[start - 1 : len(ids) - 1]  # row i scores token i + 1
            total += scores.gather(1, target[:, None]).sum().item()
            right += torch.equal(scores.argmax(dim=1), target)
    result = {"texts": len(rows), "perplexity": perplexity_of(-total / len(rows)), "accuracy": right / len(rows)}
    print(json_line(result) if flags.json else "  ".join(f"{name} {value:.5g}" for name, value in result.items()))


def lambada_rows(file: str | None, tokenizer, model: GPTNeoX) -> list[tuple[list[int], int]]:
    """[(token ids of a text, where its last word begins)], longest first, so that batches need little padding.

    file: its rows have a "text"; None fetches the set from the hub."""
    if file is None:
        from huggingface_hub import hf_hub_download  # imported late: only this needs a network

        try:
            file = hf_hub_download("EleutherAI/lambada_openai", "data/lambada_test_en.jsonl", repo_type="dataset")
        except Exception as fault:  # the client lets through many kinds
            raise ValueError(f"cannot fetch LAMBADA ({one_line(fault)}); give --file FILE") from None
    rows = []
    for _, text in read_documents([Path(file)], tqdm(disable=True)):
        ids = encode(text, tokenizer, model)
        start = len(tokenizer.encode(text.rsplit(" ", 1)[0]))
        if not 0 < start < len(ids):
            raise ValueError(f"{file}: a text without a last word: {text[:40]!r}")
        cut = max(0, len(ids) - 1 - model.config.max_position_embeddings)  # truncated on the left
        rows.append((ids[cut:], max(1, start - cut)))
    if not rows:
        raise ValueError(f"{file}: holds no text")
    return sorted(rows, key=lambda row: len(row[0]), reverse=True)


def sample(flags):
    """Prints a checkpoint's continuation of a prompt."""
    folder, model = open_checkpoint(flags)
    tokenizer = load_tokenizer(flags.tokenizer or folder)
    ids = encode(flags.prompt, tokenizer, model)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(flags.seed)
    tokens = torch.tensor([ids], device=device)
    continued = model.generate(tokens, flags.tokens, flags.temperature, flags.top_k, generator)[0, len(ids) :].tolist()
    if tokenizer.eot in continued:
        continued = continued[: continued.index(tokenizer.eot)]
    print(printable(flags.prompt + tokenizer.decode(continued), keep="\n\t"))


def plot(flags):
    """Draws one or more runs; those that differ in nothing but the seed become one band."""
    draw_curves(read_runs(flags.runs), flags.out)
    print(flags.out)


# ---------------------------------------------------------------- the command line


def main(argv=None):
    parser = OneLineParser(prog="eval.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)

    measuring = commands.add_parser("perplexity", help="loss, perplexity and bits per byte on prepared corpora")
    scoring = commands.add_parser("lambada", help="perplexity and accuracy on LAMBADA (OpenAI's version)")
    sampling = commands.add_parser("sample", help="a checkpoint's continuation of a prompt")
    for command in (measuring, scoring, sampling):
        command.add_argument("checkpoint", help="a run's folder (its last checkpoint), a model folder, or a hub id")
        command.add_argument("--revision", help="of a hub id, such as step1000")
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    for command in (scoring, sampling):
        command.add_argument("--tokenizer", help="a tokenizer.json, bytes or neox (the checkpoint's)")
    for command in (measuring, scoring):
        command.add_argument("--micro-batch-size", **COUNT, default=8, help="windows or texts at a time (%(default)s)")
        command.add_argument("--json", action="store_true", help="one JSON object per line")

    measuring.add_argument("--data", nargs="+", required=True, metavar="NAME", help="prepared corpora (their val.bin)")
    measuring.add_argument("--eval-tokens", **COUNT, default=1_000_000, help="tokens, in whole windows (%(default)s)")
    measuring.add_argument("--context", **COUNT, help="tokens per window (its run's, or the model's maximum)")
    scoring.add_argument("--file", help='rows with a "text" (fetched from the hub)')
    sampling.add_argument("--prompt", default="", help="text to continue")
    sampling.add_argument("--tokens", **COUNT, default=100, help="how many to add (%(default)s)")
    sampling.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely (%(default)s)")
    sampling.add_argument("--top-k", **COUNT, help="sample from the N most likely (all)")
    sampling.add_argument("--seed", type=whole_number, metavar="N", default=0, help="random seed (%(default)s)")

    plotting = commands.add_parser("plot", help="draw runs; those that differ in nothing but the seed become one band")
    plotting.add_argument("runs", nargs="+", metavar="RUNS", help="folders that train.py wrote, or packs of runs")
    plotting.add_argument("--out", default="perplexity.png", help=".png, .pdf or .svg (%(default)s)")

    flags = parser.parse_args(argv)
    if not (getattr(flags, "temperature", 0) == 0 or 1e-3 <= flags.temperature < math.inf):
        parser.error(f"--temperature {flags.temperature} is not 0 or a number from 0.001")
    {"perplexity": perplexity, "lambada": lambada, "sample": sample, "plot": plot}[flags.command](flags)


if __name__ == "__main__":
    run_command(main)
