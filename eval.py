"""What came of it: perplexity of a checkpoint, the curves of runs, samples.

    python eval.py perplexity runs/NAME --data stdlib torch
    python eval.py plot runs/A runs/B --out figure.png         (or .pdf, .svg)
    python eval.py lambada EleutherAI/pythia-410m-deduped      proves loader, tokenizer and model together
    python eval.py sample runs/NAME --prompt "def main("

Section 4 of "How to (re)warm your model?" (arXiv 2308.04014): validation loss on the upstream and the downstream
corpus against tokens. The metric is the mean cross-entropy of a token in nats; perplexity is exp of it.
"""

import json
import math
from pathlib import Path

import torch
from tqdm import tqdm

from data import Corpus, OneLineParser, fixed_windows, load_tokenizer, read_documents, run_command, whole_number
from model import GPTNeoX, model_folder, read_json

# Okabe and Ito's colours, told apart with every kind of colour vision; line styles repeat the difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLES = ("-", "--", "-.", ":")
SIDES = ("upstream", "downstream")

# ---------------------------------------------------------------- measuring


@torch.no_grad()
def token_losses(model, windows, micro_batch, precision=None):
    """Loss of every target of windows (N, context + 1): (N, context), fp32 in nats, on the CPU."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses = []
    for rows in windows.split(micro_batch):
        rows = rows.to(device)
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            losses.append(model(rows[:, :-1], rows[:, 1:], per_token=True).float())
    model.train(was_training)
    return torch.cat(losses).cpu()


def validation_loss(model, windows, micro_batch, precision=None):
    """Mean loss of a token, and its standard error over windows: tokens of one window are not independent."""
    by_window = token_losses(model, windows, micro_batch, precision).double().mean(dim=1)
    error = by_window.std() / math.sqrt(len(by_window)) if len(by_window) > 1 else torch.tensor(math.nan)
    return by_window.mean().item(), error.item()


def newest_checkpoint(path):
    """A checkpoint from what people type: a model folder, a run's folder (its last checkpoint), or a hub id."""
    steps = sorted(Path(path).glob("checkpoints/step_*"))
    return steps[-1] if steps else path


def open_checkpoint(flags):
    """(folder, model ready to evaluate) of a command line's checkpoint, revision and device."""
    folder = model_folder(newest_checkpoint(flags.checkpoint), flags.revision)
    return folder, GPTNeoX.from_pretrained(folder).to(flags.device).eval()


def check_tokenizer(folder, corpus):
    """ValueError if the checkpoint's tokenizer is not the one that made the corpus's ids."""
    if (Path(folder) / "tokenizer.json").is_file() and load_tokenizer(folder).sha256 != corpus.tokenizer_sha256:
        raise ValueError(f"{folder} has another tokenizer than data/{corpus.name}; give --tokenizer {folder}")


def perplexity(flags):
    """The table of `eval.py perplexity`: a row for each corpus."""
    folder, model = open_checkpoint(flags)
    context = min(flags.context or model.config.max_position_embeddings, model.config.max_position_embeddings)
    if not flags.json:
        width = 2 + max(map(len, ["corpus", *flags.data]))
        print(f"{'corpus':<{width}}{'tokens':>10}{'loss':>9}{'+-':>8}{'perplexity':>12}{'bits/byte':>11}")
    for name in flags.data:
        corpus = Corpus(name)
        check_tokenizer(folder, corpus)
        if corpus.vocab_size > model.config.vocab_size:
            raise ValueError(f"data/{name} has {corpus.vocab_size} token ids, the model {model.config.vocab_size} rows")
        windows = fixed_windows(corpus, context, flags.eval_tokens)
        loss, error = validation_loss(model, windows, flags.micro_batch_size)
        row = {"corpus": name, "tokens": windows.shape[0] * context, "loss": loss, "standard_error": error}
        row |= {"perplexity": math.exp(min(loss, 700)), "bits_per_byte": loss / math.log(2) / corpus.bytes_per_token}
        if flags.json:
            print(json.dumps(row))
        else:
            print(
                f"{name:<{width}}{row['tokens']:>10,}{loss:>9.4f}{error:>8.4f}"
                f"{row['perplexity']:>12.3f}{row['bits_per_byte']:>11.4f}"
            )


@torch.no_grad()
def lambada(flags):
    """Perplexity and accuracy on LAMBADA (OpenAI's version), as published for Pythia by its authors' harness.

    The context is all but the last word, the target a space and the last word. Perplexity is exp of minus the mean
    log-probability of a target; a target counts as right if each of its tokens is the likeliest.
    """
    folder, model = open_checkpoint(flags)
    tokenizer = load_tokenizer(flags.tokenizer or folder)
    file = flags.file
    if file is None:
        from huggingface_hub import hf_hub_download

        file = hf_hub_download("EleutherAI/lambada_openai", "data/lambada_test_en.jsonl", repo_type="dataset")
    rows = []
    for _, text in read_documents([Path(file)], tqdm(disable=True)):
        context = text.rsplit(" ", 1)[0]
        ids, start = tokenizer.encode(text), len(tokenizer.encode(context))
        if not 0 < start < len(ids):
            raise ValueError(f"{file}: a text without a last word: {text[:40]!r}")
        if max(ids) >= model.config.vocab_size:
            raise ValueError(f"the tokenizer gives id {max(ids)}, the model has {model.config.vocab_size} rows")
        cut = max(0, len(ids) - 1 - model.config.max_position_embeddings)  # what does not fit goes, on the left
        rows.append((ids[cut:], max(1, start - cut)))
    if not rows:
        raise ValueError(f"{file}: holds no text")
    rows.sort(key=lambda row: len(row[0]), reverse=True)  # like lengths together: little padding
    total, right = 0.0, 0
    for first in tqdm(range(0, len(rows), flags.micro_batch_size), disable=None, desc="lambada"):
        batch = rows[first : first + flags.micro_batch_size]
        tokens = torch.zeros(len(batch), len(batch[0][0]), dtype=torch.int64)
        for row, (ids, _) in zip(tokens, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)  # padded on the right: a causal model never looks there
        log_probability = model(tokens[:, :-1].to(flags.device)).float().log_softmax(dim=-1).cpu()  # (B, T, V)
        for scores, (ids, start) in zip(log_probability, batch, strict=True):
            target = torch.tensor(ids[start:])
            scores = scores[start - 1 : len(ids) - 1]
            total += scores.gather(1, target[:, None]).sum().item()
            right += torch.equal(scores.argmax(dim=1), target)
    result = {"texts": len(rows), "perplexity": math.exp(min(-total / len(rows), 700)), "accuracy": right / len(rows)}
    print(json.dumps(result) if flags.json else "  ".join(f"{name} {value:.5g}" for name, value in result.items()))


# ---------------------------------------------------------------- reading runs


NEEDED = {"train": ["loss"], "eval": [f"{s}_{what}" for s in SIDES for what in ("loss", "perplexity")]}


def read_run(folder):
    """{"flags": ..., "train": [...], "eval": [...]} of a run's folder. Raises ValueError for what is not a run."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder}: not a run (no config.json and metrics.jsonl); give a folder that train.py wrote")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("flags"), dict):
        raise ValueError(f"{folder}/config.json: not of a run; give a folder that train.py wrote")
    flags = config["flags"]
    fits = all(isinstance(flags.get(flag), str) for flag in ("upstream", "downstream"))
    fits = fits and all(isinstance(flags.get(flag), int | float) for flag in ("warmup", "tokens"))
    for value in flags.values():
        fits = fits and (isinstance(value, str | None) or (isinstance(value, int | float) and abs(value) < 1e30))
    if not fits:
        raise ValueError(f"{folder}/config.json: its flags are damaged; restore it, or begin a new run")
    run = {"folder": folder, "flags": flags, "train": [], "eval": []}
    with open(folder / "metrics.jsonl", "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                kind = record.pop("kind")
                # JSON has no infinity: the norm of an fp16 overflow is null. What is not finite is not drawn.
                record = {
                    name: math.nan if value in (None, math.inf) else float(value) for name, value in record.items()
                }
                for name in ("step", "tokens", "lr", *NEEDED[kind]):
                    if record[name] < name.endswith("perplexity") or record[name] > 1e305:  # a perplexity is 1 or more
                        raise ValueError
                run[kind].append({"kind": kind} | record)
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError, OverflowError):
                if line.endswith(b"\n"):
                    raise ValueError(f"{folder}/metrics.jsonl:{number}: damaged line; remove it") from None
    if not run["eval"]:
        raise ValueError(f"{folder}: no evaluation yet; wait for the first, or --resume the run")
    return run


def name_of(flag, value):
    """A flag and its value as a legend says it."""
    words = flag.replace("_", " ").replace(" lr", " LR").replace("warmup", "warm-up")
    if not isinstance(value, int | float):
        return f"{value}"[:80] if flag in ("schedule", "init", "downstream") else f"{words} {value}"[:80]
    if flag in ("warmup", "overlap", "replay"):
        return f"{words} {100 * value:g} %"
    if flag == "max_lr":
        digits, power = f"{value:e}".split("e")
        return f"{words} {float(digits):g}e{int(power)}"
    return f"{words} {value:g}"


def label_runs(runs):
    """A label for each run: the flags in which the runs differ; the seed is left out, seeds are averaged."""
    said = ("init", "model", "downstream", "overlap", "replay", "schedule", "max_lr", "warmup", "tokens", "batch_size")
    values = {flag: [run["flags"].get(flag) for run in runs] for flag in said}
    differ = [flag for flag in said if len(set(values[flag])) > 1] or ["max_lr", "warmup"]
    if "schedule" in differ and "max_lr" not in differ:
        differ.append("max_lr")
    labels = []
    for i, run in enumerate(runs):
        shown = [f for f in differ if not (f == "warmup" and run["flags"].get("schedule") == "constant")]
        labels.append(", ".join(name_of(flag, values[flag][i]) for flag in shown))
    return labels


def in_millions(axis):
    """Tokens on x, in units that can be read."""

    def show(tokens, _):
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if abs(tokens) >= size:
                return f"{tokens / size:g}{letter}"
        return f"{tokens:g}"

    axis.set_major_formatter(show)
    axis.set_label_text("tokens of continued pre-training")


def plot_style():
    """matplotlib without a screen, in the manner of a paper."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.5})
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5, "pdf.fonttype": 42})
    return plt


def save_figure(figure, out):
    try:
        figure.savefig(out, dpi=200)
    except (ValueError, OSError) as fault:
        raise ValueError(f"cannot write {out}: {fault}; choose another --out (.png, .pdf, .svg)") from None


def grouped(runs):
    """{label: runs with that label}, in the order given: the same arm with several seeds is one curve."""
    groups = {}
    for run, label in zip(runs, label_runs(runs), strict=True):
        groups.setdefault(label, []).append(run)
    return groups


def draw_mean(axes, runs, key, **style):
    """The mean of `key` over runs of one arm against tokens, and a band from the least to the most over seeds."""
    by_tokens = {}
    for run in runs:
        for record in run["eval"]:
            by_tokens.setdefault(record["tokens"], []).append(record[key])
    shared = sorted(t for t, values in by_tokens.items() if len(values) == len(runs))
    means = [sum(by_tokens[t]) / len(runs) for t in shared]
    axes.plot(shared, means, **style)
    if len(runs) > 1:
        band = [min(by_tokens[t]) for t in shared], [max(by_tokens[t]) for t in shared]
        axes.fill_between(shared, *band, color=style["color"], alpha=0.2, lw=0)


def draw_curves(folders, out):
    """The figure of a run, or of several: perplexity downstream and upstream as in the paper's figure 1, and the LR."""
    runs = [read_run(folder) for folder in folders]
    plt = plot_style()
    figure, panels = plt.subplots(
        3, 1, figsize=(5.5, 5.6), sharex=True, layout="constrained", gridspec_kw={"height_ratios": [3, 3, 1]}
    )
    first = runs[0]["flags"]
    overlap = f" ({100 * first['overlap']:g} % {first['upstream']})" if first.get("overlap") else ""
    titles = {"downstream": f"Downstream: {first['downstream']}{overlap}", "upstream": f"Upstream: {first['upstream']}"}
    groups = grouped(runs)
    for panel, side in zip(panels, titles, strict=False):
        for index, (label, group) in enumerate(groups.items()):
            style = {"color": COLOURS[index % len(COLOURS)], "ls": STYLES[index // 2 % len(STYLES)]}
            draw_mean(panel, group, f"{side}_perplexity", label=label, **style)
        before = {round(run["eval"][0][f"{side}_perplexity"], 3) for run in runs if run["eval"][0]["step"] == 0}
        if len(before) == 1:  # runs from different starts have no common level
            panel.axhline(*before, color="0.4", ls=(0, (4, 3)), lw=1, label="before")
        panel.set_title(titles[side], loc="left", fontsize=9, fontweight="bold")
        panel.set_ylabel("perplexity")
    for index, group in enumerate(groups.values()):
        rates = [(r["tokens"], r["lr"]) for r in group[0]["train"]]
        style = {"color": COLOURS[index % len(COLOURS)], "ls": STYLES[index // 2 % len(STYLES)], "lw": 1}
        panels[2].plot(*zip(*rates, strict=True), **style) if rates else None
    # The end of warm-up is marked at the first run's, and named once.
    ends = {run["flags"]["warmup"] * run["flags"]["tokens"] for run in runs if run["flags"]["warmup"]}
    for panel in panels:
        for number, end in enumerate(sorted(ends)):
            panel.axvline(end, color="0.4", ls=":", lw=1, label=None if number else "end of warm-up")
    panels[2].set_ylabel("LR")
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    in_millions(panels[2].xaxis)
    panels[2].set_xlim(left=-0.01 * panels[2].get_xlim()[1])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    figure.align_ylabels(panels)
    save_figure(figure, out)
    plt.close(figure)


# ---------------------------------------------------------------- samples


def sample(flags):
    """Prints the model's continuation of a prompt."""
    folder, model = open_checkpoint(flags)
    tokenizer = load_tokenizer(flags.tokenizer or folder)
    ids = tokenizer.encode(flags.prompt) or [tokenizer.eot]
    if max(ids) >= model.config.vocab_size:
        raise ValueError(f"the tokenizer gives id {max(ids)}, the model has {model.config.vocab_size} rows")
    generator = torch.Generator(flags.device).manual_seed(flags.seed)
    tokens = torch.tensor([ids], device=flags.device)
    continued = model.generate(tokens, flags.tokens, flags.temperature, flags.top_k, generator)[0, len(ids) :].tolist()
    if tokenizer.eot in continued:
        continued = continued[: continued.index(tokenizer.eot)]
    print(flags.prompt + tokenizer.decode(continued))


def main(argv=None):
    parser = OneLineParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)

    def command(name, help):
        return commands.add_parser(name, help=help, description=help, prog=f"eval.py {name}")

    one = command("perplexity", "loss, perplexity and bits per byte of a checkpoint on prepared corpora")
    two = command("sample", "a checkpoint's continuation of a prompt")
    four = command("lambada", "perplexity and accuracy on LAMBADA, to compare with the published numbers")
    for each in (one, two, four):
        each.add_argument("checkpoint", help="a run's folder (its last checkpoint), a model folder, or a hub id")
        each.add_argument("--revision", help="of a hub id, such as step1000")
        each.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    one.add_argument("--data", nargs="+", required=True, metavar="NAME", help="prepared corpora; validation is used")
    one.add_argument("--eval-tokens", type=whole_number, default=1_000_000, metavar="N", help="at most (%(default)s)")
    one.add_argument("--context", type=whole_number, metavar="N", help="window in tokens (the model's)")
    for each in (one, four):
        each.add_argument("--micro-batch-size", type=whole_number, default=8, metavar="N", help="rows at a time")
        each.add_argument("--json", action="store_true", help="one JSON object a line")
    four.add_argument("--file", help='rows with a "text" (fetched from the hub)')
    two.add_argument("--prompt", default="", help="text to continue")
    two.add_argument("--tokens", type=whole_number, default=100, metavar="N", help="how many to add (%(default)s)")
    two.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (%(default)s)")
    two.add_argument("--top-k", type=whole_number, metavar="K", help="sample among the K likeliest (all)")
    two.add_argument("--seed", type=whole_number, default=0)
    for each in (two, four):
        each.add_argument("--tokenizer", help="a tokenizer.json, bytes or neox (the checkpoint's)")
    three = command("plot", "the curves of one or more runs; the same arm with several seeds becomes one band")
    three.add_argument("runs", nargs="+", metavar="RUNS", help="folders that train.py wrote")
    three.add_argument("--out", default="perplexity.png", help=".png, .pdf or .svg (%(default)s)")
    flags = parser.parse_args(argv)
    if flags.command == "plot":
        draw_curves(flags.runs, flags.out)
        print(flags.out)
    else:
        {"perplexity": perplexity, "sample": sample, "lambada": lambada}[flags.command](flags)


if __name__ == "__main__":
    run_command(main)
