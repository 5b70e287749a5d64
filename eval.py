"""What came of it: perplexity of a checkpoint, the curves of runs, samples.

    python eval.py perplexity runs/NAME --data stdlib torch
    python eval.py plot runs/A runs/B --out figure.png         (or .pdf, .svg)
    python eval.py plot runs/* --figure 4                      as the paper draws its figures 1 to 9; frontier, ...
    python eval.py claims runs/*                               the paper's claims, tested on these runs
    python eval.py lambada EleutherAI/pythia-410m-deduped      proves loader, tokenizer and model together
    python eval.py sample runs/NAME --prompt "def main("

Section 4 of "How to (re)warm your model?" (arXiv 2308.04014): validation loss on the upstream and the downstream
corpus against tokens. The metric is the mean cross-entropy of a token in nats; perplexity is exp of it.
"""

import itertools
import json
import math
import re
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import schedule
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
    try:
        torch.zeros(1, device=flags.device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {flags.device} is not to be had on this machine; try --device cpu") from None
    folder = model_folder(newest_checkpoint(flags.checkpoint), flags.revision)
    return folder, GPTNeoX.from_pretrained(folder).to(flags.device).eval()


def check_tokenizer(folder, corpus):
    """ValueError if the checkpoint's tokenizer is not the one that made the corpus's ids."""
    if (Path(folder) / "tokenizer.json").is_file() and load_tokenizer(folder).sha256 != corpus.tokenizer_sha256:
        way_out = f"prepare the corpus anew with data.py --tokenizer {folder}"
        raise ValueError(f"{folder} has another tokenizer than data/{corpus.name}; {way_out}")


def perplexity(flags):
    """The table of `eval.py perplexity`: a row for each corpus that has at least one window of validation text."""
    folder, model = open_checkpoint(flags)
    context = min(flags.context or model.config.max_position_embeddings, model.config.max_position_embeddings)
    corpora = [Corpus(name) for name in flags.data]
    if max(len(corpus.splits["val"]) for corpus in corpora) <= context:
        raise ValueError(f"{' '.join(flags.data)}: no val.bin has {context + 1} tokens; give a smaller --context")
    if not flags.json:
        width = 2 + max(map(len, ["corpus", *flags.data]))
        print(f"{'corpus':<{width}}{'tokens':>10}{'loss':>9}{'+-':>8}{'perplexity':>12}{'bits/byte':>11}")
    for name, corpus in zip(flags.data, corpora, strict=True):
        if len(corpus.splits["val"]) <= context:
            print(f"data/{name}/val.bin is shorter than {context + 1} tokens; passed over", file=sys.stderr)
            continue
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
    run = {"folder": folder, "flags": flags, "train": [], "eval": [], "interpolation": []}
    run |= {name: config.get(name) for name in ("parameters", "pretraining_peak")}
    if (folder / "interpolation.jsonl").is_file():
        try:
            lines = [json.loads(line) for line in open(folder / "interpolation.jsonl", "rb")]
            run["interpolation"] = [{f"{side}_loss": float(line[f"{side}_loss"]) for side in SIDES} for line in lines]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{folder}/interpolation.jsonl: damaged; remove it, and repeat the experiment") from None
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
    said = ("init", "revision", "model", "upstream", "downstream", "overlap", "replay", "schedule", "max_lr")
    said += ("warmup", "tokens", "batch_size", "weight_decay", "decay_to_start", "upstream_tokens")
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


def over_seeds(runs, key):
    """{tokens: values of `key`, one a seed}, in order, where every run of the arm was evaluated."""
    by_tokens = {}
    for run in runs:
        for record in run["eval"]:
            by_tokens.setdefault(record["tokens"], []).append(record[key])
    return {tokens: by_tokens[tokens] for tokens in sorted(by_tokens) if len(by_tokens[tokens]) == len(runs)}


def style(index):
    """How the curve of arm number `index` looks."""
    return {"color": COLOURS[index % len(COLOURS)], "ls": STYLES[index // 2 % len(STYLES)]}


def draw_band(axes, x, seeds, **look):
    """Over x the mean over seeds as a line and their range as a band; seeds: for each x a list of values."""
    axes.plot(x, [sum(values) / len(values) for values in seeds], **look)
    axes.fill_between(x, [min(v) for v in seeds], [max(v) for v in seeds], color=look["color"], alpha=0.2, lw=0)


def draw_arms(axes, groups, key):
    """`key` of each arm against tokens, its mean over seeds and a band from the least to the most; the level before."""
    for index, (label, runs) in enumerate(groups.items()):
        shared = over_seeds(runs, key)
        draw_band(axes, [*shared], [*shared.values()], label=label, **style(index))
    starts = [run for label, runs in groups.items() for run in runs if label != "from scratch"]
    before = {round(run["eval"][0][key], 3) for run in starts if run["eval"][0]["step"] == 0}
    if len(before) == 1:  # runs from different starts have no common level
        axes.axhline(*before, color="0.4", ls=(0, (4, 3)), lw=1, label="before")


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
    groups = {}  # the same arm with several seeds is one curve
    for run, label in zip(runs, label_runs(runs), strict=True):
        groups.setdefault(label, []).append(run)
    for panel, side in zip(panels, titles, strict=False):
        draw_arms(panel, groups, f"{side}_perplexity")
        panel.set_title(titles[side], loc="left", fontsize=9, fontweight="bold")
        panel.set_ylabel("perplexity")
    for index, group in enumerate(groups.values()):
        rates = [(r["tokens"], r["lr"]) for r in group[0]["train"]]
        panels[2].plot(*zip(*rates, strict=True), **style(index), lw=1) if rates else None
    # The end of every warm-up is marked, and named once.
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


# ---------------------------------------------------------------- the paper's figures

LAST = math.inf  # the step from which a run starts, if it is the end of the pre-training
BEGINNING = schedule.PAPER_STOPS["50B"]  # the share of the schedule that the paper's 50B figures show


def setting(run):
    """What the experiments vary, read off a run's flags; the learning rate's peak in multiples of pre-training's."""
    flags = run["flags"]
    try:
        step = re.search(r"step_?0*(\d+)$", flags["revision"] or flags["init"])
        numbers = ("parameters", "upstream_tokens", "tokens", "batch_size", "overlap", "replay", "warmup", "seed")
        found = {name: float((flags | run)[name]) for name in numbers} | {"schedule": str(flags["schedule"])}
        found["corpora"] = f"{flags['upstream']} {flags['downstream']}"
        found["start"] = 0 if flags["init"] == "scratch" else int(step[1]) if step else LAST  # step of the pre-training
        found["peak"] = round(flags["max_lr"] / run["pretraining_peak"], 3)
        found["decay"] = flags["weight_decay"] * (-1 if flags["decay_to_start"] else 1)  # minus: towards the start
        return found
    except (KeyError, TypeError, ValueError, ArithmeticError) as fault:
        raise ValueError(f"{run['folder']}/config.json: not of an experiment ({fault!r}); leave it out") from None


USUAL = {"start": LAST, "replay": 0.0, "peak": 1.0, "warmup": 0.01, "decay": 0.1}  # where an arm says nothing else
CONSTANT = {"schedule": "constant", "peak": 0.1, "warmup": 0.0}  # the paper's baseline


def pick(runs, vary=(), **wanted):
    """The runs of an arm: `wanted`, and otherwise the base of the experiments; the settings in `vary` are free.

    The base's corpora, sizes, lengths and decay schedule are the commonest among the runs."""
    settings = [setting(run) for run in runs]
    usual = {}
    for key in settings[0]:
        values = [s[key] for s in settings if key != "schedule" or s[key].startswith("cosine")]
        usual[key] = max(dict.fromkeys(values), key=values.count) if values else "cosine"
    wanted = usual | USUAL | wanted
    free = {"seed", *vary}
    chosen = [r for r, s in zip(runs, settings, strict=True) if all(s[k] == wanted[k] for k in s.keys() - free)]
    return sorted(chosen, key=lambda run: run["flags"]["seed"])


def arms(runs, key, **wanted):
    """{value of `key`: the runs with it, one a seed}, in order."""
    groups = {}
    for run in pick(runs, vary=(key,), **wanted):
        groups.setdefault(setting(run)[key], []).append(run)
    return dict(sorted(groups.items()))


def peaks(runs, **wanted):
    """{label: runs} of the maximal learning rates, and the constant one."""
    found = {name_of("max_lr", group[0]["flags"]["max_lr"]): group for group in arms(runs, "peak", **wanted).values()}
    if baseline := pick(runs, **CONSTANT, **wanted):
        found[f"constant {baseline[0]['flags']['max_lr']:.0e}".replace("e-0", "e-")] = baseline
    return found


def scratch(runs):
    found = pick(runs, start=0)
    return {"from scratch": found} if found else {}


def starts(runs):
    """{label: runs} of the checkpoints, without and with warm-up."""
    found = {}
    for warmup in (0.0, 0.01):
        for start, group in arms(runs, "start", warmup=warmup).items():
            if start:
                name = "the last checkpoint" if start == LAST else f"step {start}"
                found[f"{name}, {name_of('warmup', warmup)}"] = group
    return found


def warmups(runs):
    return {name_of("warmup", share): group for share, group in arms(runs, "warmup").items()}


# What each figure of the paper shows: which arms, whose loss (or the path through both), up to which share of the run.
FIGURES = {
    "1": (warmups, ("downstream", "upstream"), BEGINNING),
    "2": (lambda runs: peaks(runs) | scratch(runs), ("downstream",), 1),
    "3": (lambda runs: peaks(runs) | scratch(runs), ("upstream",), 1),
    "4": (peaks, "path", 1),
    "5": (lambda runs: peaks(runs, replay=1.0), ("upstream",), BEGINNING),
    "6": (lambda runs: peaks(runs, replay=1.0), "path", BEGINNING),
    "7": (starts, ("downstream",), BEGINNING),
    "8": (starts, ("upstream",), BEGINNING),
    "9": (lambda runs: starts(runs) | scratch(runs), ("upstream",), BEGINNING),
}


def draw_figure(runs, number, out):
    """One of the paper's figures 1 to 9, or of those that it does not have: frontier, replay, overlap."""
    plt = plot_style()
    if number in OURS:
        if not pick(runs):
            raise ValueError(f"--figure {number}: the base arm is not here; see train.py --experiment")
        figure = OURS[number](plt, runs)
    else:
        groups, sides, until = FIGURES[number]
        groups = groups(runs)
        if len(groups) < 2:
            raise ValueError(f"--figure {number}: fewer than two of its arms are here; see train.py --experiment")
        until *= max(run["flags"]["tokens"] for group in groups.values() for run in group)
        figure = (draw_paths if sides == "path" else draw_losses)(plt, groups, sides, until)
    save_figure(figure, out)
    plt.close(figure)


def limits(groups, side, until):
    """Where an axis should end: around all curves but that of a random start, which begins far above."""
    seen = [
        record[f"{side}_loss"]
        for label, group in groups.items()
        for run in group
        for record in (run["eval"][-1:] if label == "from scratch" else run["eval"])
        if record["tokens"] <= 1.001 * until
    ]
    margin = 0.06 * (max(seen) - min(seen))
    return min(seen) - margin, max(seen) + margin


def draw_losses(plt, groups, sides, until):
    """Validation loss against tokens, a panel a side, as in figures 1 to 3, 5 and 7 to 9."""
    figure, panels = plt.subplots(
        len(sides), 1, figsize=(5.5, 0.9 + 2.2 * len(sides)), sharex=True, layout="constrained", squeeze=False
    )
    first = next(iter(groups.values()))[0]
    for panel, side in zip(panels[:, 0], sides, strict=True):
        draw_arms(panel, groups, f"{side}_loss")
        panel.set_title(f"{side.capitalize()}: {first['flags'][side]}", loc="left", fontsize=9, fontweight="bold")
        panel.set(ylabel="validation loss (nats)", ylim=limits(groups, side, until), xlim=(-0.01 * until, 1.01 * until))
    in_millions(panels[-1, 0].xaxis)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) > 20 else 3
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    return figure


def draw_paths(plt, groups, _, until):
    """Upstream against downstream perplexity, coloured by tokens, as in figures 4 and 6."""
    from matplotlib.collections import LineCollection

    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for marker, (label, group) in zip("osD^vP", groups.items(), strict=False):
        new, old = (over_seeds(group, f"{side}_perplexity") for side in ("downstream", "upstream"))
        path = [(t, sum(new[t]) / len(group), sum(old[t]) / len(group)) for t in new if t <= 1.001 * until]
        points = [(x, y) for _, x, y in path]
        lines = LineCollection(list(itertools.pairwise(points)), cmap="viridis", lw=1.5)
        lines.set_array([tokens for tokens, *_ in path[1:]])
        lines.set_clim(0, until)
        axes.add_collection(lines)
        axes.plot(*points[-1], marker, color="k", ms=6, mfc="w", zorder=4, label=label)
        warm = group[0]["flags"]["warmup"] * group[0]["flags"]["tokens"]
        if warm:
            peak = min(path, key=lambda place: abs(place[0] - warm))
            axes.plot(*peak[1:], "x", color="k", ms=6, zorder=4, label="end of warm-up")
    axes.plot(*points[0], "*", color="k", ms=11, zorder=5, label="start")
    axes.autoscale_view()
    flags = group[0]["flags"]
    axes.set(
        xlabel=f"downstream perplexity ({flags['downstream']})", ylabel=f"upstream perplexity ({flags['upstream']})"
    )
    in_millions(figure.colorbar(lines, label="tokens", pad=0.02).ax.yaxis)
    entries = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))  # each label once, the arms first
    names = sorted(entries, key=lambda name: name not in groups)
    axes.legend([entries[name] for name in names], names, frameon=False, fontsize=8)
    return figure


# ---------------------------------------------------------------- figures that the paper does not have


def ends(group, side):
    """Mean perplexity over seeds at the last evaluation, and half the range."""
    values = [run["eval"][-1][f"{side}_perplexity"] for run in group]
    return sum(values) / len(values), (max(values) - min(values)) / 2


def draw_frontier(plt, runs):
    """The trade-off: every arm's final perplexities, downstream against upstream; on the right, the crowded corner."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.8), layout="constrained")
    rates = {label.removeprefix("max LR "): group for label, group in peaks(runs).items()}
    replays = {f"{100 * share:g} %": group for share, group in arms(runs, "replay").items() if share < 1}
    kinds = {
        "max LR": rates,
        "warm-up": warmups(runs),
        "schedule": arms(runs, "schedule"),
        "replay": replays,
        "earlier checkpoint": {str(s): g for s, g in arms(runs, "start").items() if 0 < s < LAST},
        "decay to the start": {str(d): g for d, g in arms(runs, "decay").items() if d < 0},
    }
    between = [run["interpolation"] for run in pick(runs) if run["interpolation"]]
    path = [
        [math.exp(sum(at[f"{side}_loss"] for at in places) / len(places)) for places in zip(*between, strict=True)]
        for side in ("downstream", "upstream")
    ]
    before = pick(runs)[0]["eval"][0]["upstream_perplexity"]
    for panel in panels:
        for index, (kind, groups) in enumerate(kinds.items()):
            style = {"color": COLOURS[index], "ls": "", "marker": "osD^vP"[index], "ms": 5, "elinewidth": 0.8}
            for number, group in enumerate(groups.values()):
                (x, dx), (y, dy) = ends(group, "downstream"), ends(group, "upstream")
                panel.errorbar(x, y, dy, dx, label=None if number else kind, **style)
        if between:
            panel.plot(*path, ".:", color="0.4", ms=4, lw=1, label="between start and end weights")
        panel.axhline(before, color="0.4", ls=(0, (4, 3)), lw=1, label="upstream before")
    near = [group for label, group in (rates | replays).items() if not label.startswith("constant")]
    for name, group in (rates | replays).items():
        if group in near and name != "0 %":  # which is the peak's
            at = ends(group, "downstream")[0], ends(group, "upstream")[0]
            panels[1].annotate(name, at, (5, 3), textcoords="offset points", fontsize=7)
    for side, limit in (("downstream", panels[1].set_xlim), ("upstream", panels[1].set_ylim)):
        places = [ends(group, side)[0] for group in near]
        margin = 0.25 * (max(places) - min(places))
        limit(min(places) - margin, max(places) + margin)
    flags = pick(runs)[0]["flags"]
    figure.supxlabel(f"final downstream perplexity ({flags['downstream']})", fontsize=9)
    figure.supylabel(f"final upstream perplexity ({flags['upstream']})", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=7)
    return figure


def rises(group, side):
    """By how much the loss rises above its start, and for how long, in tokens, each a list over seeds."""
    heights, lengths = [], []
    for run in group:
        first = run["eval"][0][f"{side}_loss"]
        above = [r["tokens"] for r in run["eval"] if r[f"{side}_loss"] > first]
        heights.append(max(r[f"{side}_loss"] for r in run["eval"]) - first)
        lengths.append(max(above, default=0))
    return heights, lengths


def draw_replay(plt, runs):
    """What replay costs on the new text and what it keeps of the old."""
    groups = {share: group for share, group in arms(runs, "replay").items() if share < 1}
    shares = [100 * share for share in groups]
    figure, panels = plt.subplots(1, 2, figsize=(5.5, 2.6), layout="constrained")
    for panel, side, colour in zip(panels, ("upstream", "downstream"), COLOURS, strict=False):
        final = [[run["eval"][-1][f"{side}_perplexity"] for run in group] for group in groups.values()]
        draw_band(panel, shares, final, marker="o", ms=4, color=colour)
        panel.set_title(f"final {side} perplexity", loc="left", fontsize=9, fontweight="bold")
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xticks(shares, [f"{share:g}" for share in shares])
        panel.minorticks_off()
        panel.set_xlabel("replay (% of each batch)")
    panels[0].axhline(
        pick(runs)[0]["eval"][0]["upstream_perplexity"], color="0.4", ls=(0, (4, 3)), lw=1, label="before"
    )
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def draw_overlap(plt, runs):
    """Height and length of the stability gap against the share of upstream text in the downstream distribution."""
    groups = arms(runs, "overlap")
    shares = [100 * share for share in groups]
    figure, panels = plt.subplots(1, 2, figsize=(5.5, 2.6), layout="constrained")
    for side, colour in zip(("downstream", "upstream"), COLOURS, strict=False):
        heights = [rises(group, side)[0] for group in groups.values()]
        draw_band(panels[0], shares, heights, marker="o", ms=4, color=colour, label=side)
    lengths = [rises(group, "downstream")[1] for group in groups.values()]
    draw_band(panels[1], shares, lengths, marker="o", ms=4, color=COLOURS[0])
    panels[0].set_title("height of the rise (nats)", loc="left", fontsize=9, fontweight="bold")
    panels[1].set_title("length of the rise, downstream", loc="left", fontsize=9, fontweight="bold")
    in_millions(panels[1].yaxis)
    panels[1].set_ylabel("tokens")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    for panel in panels:
        panel.set_xlabel("overlap (% upstream text)")
        panel.set_xticks(shares)
    return figure


OURS = {"frontier": draw_frontier, "replay": draw_replay, "overlap": draw_overlap}


# ---------------------------------------------------------------- the paper's claims

SAME = 0.01  # nats: differences within it count as none; 1 % of perplexity
T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, two-sided 95 %, from 2 seeds on
HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot tell at this scale"


def loss_at(run, side, share=1.0):
    """Validation loss at a share of the schedule; None where the run was not evaluated there."""
    tokens = share * run["flags"]["tokens"]
    update = run["flags"]["batch_size"] * run["flags"]["context"]
    record = min(run["eval"], key=lambda record: abs(record["tokens"] - tokens))
    return record[f"{side}_loss"] if abs(record["tokens"] - tokens) <= update else None


def paired(one, other, measure):
    """Differences between two arms in a measure of a run, paired by seed; where it is None, left out."""
    by_seed = {run["flags"]["seed"]: measure(run) for run in other}
    pairs = [(measure(run), by_seed.get(run["flags"]["seed"])) for run in one]
    return [a - b for a, b in pairs if a is not None and b is not None]


def minus(one, other, side, share=1.0):
    """Differences in loss between two arms, paired by seed."""
    return paired(one, other, lambda run: loss_at(run, side, share))


def interval(values):
    """Mean and 95 % confidence interval over seeds (Student's t); None for less than two values."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    half = T_95[min(len(values), 10) - 2] * spread
    return mean, (mean - half, mean + half)


def verdict(values, expected):
    """What an interval says of an expectation: "above" zero, "below" it, or the "same" within SAME."""
    _, bounds = interval(values)
    if bounds is None:
        return UNCLEAR
    low, high = bounds if expected != "below" else (-bounds[1], -bounds[0])
    if expected == "same":
        return HOLDS if low > -SAME and high < SAME else FAILS if low > SAME or high < -SAME else UNCLEAR
    return HOLDS if low > 0 else FAILS if high < 0 else UNCLEAR


def crossing(one, other, side):
    """Share of the schedule after which arm `one` stays below arm `other`, a list over seeds; 1 where it never does."""
    shares = []
    for run in one:
        pairs = [rest for rest in other if rest["flags"]["seed"] == run["flags"]["seed"]]
        theirs = {r["tokens"]: r[f"{side}_loss"] for rest in pairs for r in rest["eval"]}
        behind = [r["tokens"] for r in run["eval"] if r[f"{side}_loss"] >= theirs.get(r["tokens"], math.inf)]
        shares += [max(behind, default=0) / run["flags"]["tokens"]] if pairs else []
    return shares


def the_claims(runs):
    """[(claim, what the paper found, [(measure, its values over seeds, what the claim expects or None)])]."""
    early, stages = BEGINNING, {BEGINNING: "at 17 % of the schedule", 1.0: "at its end"}
    old, new = ("upstream",), ("downstream",)
    arm = dict.fromkeys(("the peak", "1 %", "the last", "none", "the cosine"), pick(runs))  # the base, by many names
    arm |= {"constant": pick(runs, **CONSTANT), "from scratch": pick(runs, start=0)}
    arm |= {"half the peak": pick(runs, peak=0.5), "double the peak": pick(runs, peak=2.0)}
    arm |= {"same data": pick(runs, replay=1.0), "same data, constant": pick(runs, replay=1.0, **CONSTANT)}
    arm |= {"5 % replay": pick(runs, replay=0.05), "no warm-up": pick(runs, warmup=0.0)}
    lengths, steps = warmups(runs), {f"step {s}": g for s, g in arms(runs, "start").items() if 0 < s < LAST}
    infinite = {name: pick(runs, schedule=name) for name in ("infinite-cosine", "infinite-rsqrt")}
    arm |= lengths | steps | infinite

    def less(one, other, sides, expected, *moments):
        """The loss of one arm less another's, a measure a moment and side; at the end, if no moment is given."""
        return [
            (f"{side}, {one} minus {other}, {stages[at]}", minus(arm[one], arm[other], side, at), expected)
            for at in moments or (1.0,)
            for side in sides
        ]

    def rise(one, sides):
        return [(f"{side}, {one}, highest minus start", rises(arm[one], side)[0], "above") for side in sides]

    def overtakes(one):
        words = f"downstream, after which share {one} overtakes constant (1: never)"
        return [(words, crossing(arm[one], arm["constant"], "downstream"), None)]

    spike = paired(arm["no warm-up"], arm["the peak"], lambda run: max(r["downstream_loss"] for r in run["eval"]))
    rates = ("constant", "half the peak", "the peak", "double the peak")
    table = [
        (
            "1. The length of the warm-up does not matter",
            "0, 0.5, 1 and 2 % of the schedule: one curve each for Pile and SlimPajama at 50B tokens (figure 1)",
            *(less(name, "1 %", SIDES, "same", *stages) for name in lengths if lengths[name] != arm["the peak"]),
        ),
        (
            "1b. Without warm-up there is an early spike",
            "a spike that leaves no trace (figure 1)",
            [("downstream, highest, no warm-up minus 1 %", spike, "above")],
        ),
        (
            "2. Re-warming first raises both losses, then beats the constant rate downstream",
            "405M later runs: 2.708 at the peak against 2.642 constant, 2.501 against 2.549 at the end",
            rise("the peak", SIDES),
            less("the peak", "constant", new, "below"),
        ),
        (
            "3. A higher maximum is better downstream and worse upstream",
            "405M later runs, SlimPajama: 2.516 (half), 2.501, 2.507 (double)",
            *(less(two, one, new, "below") + less(two, one, old, "above") for one, two in itertools.pairwise(rates)),
        ),
        (
            "4. Continued runs end better downstream than training from scratch",
            "405M later runs, SlimPajama: 2.516, 2.501, 2.507 against 2.537",
            *(less(name, "from scratch", new, "below") for name in rates[1:]),
        ),
        (
            "5. The constant rate is best downstream early and worst late",
            "best for 100B of 297B tokens (34 %); scratch overtakes it after 200B (67 %)",
            less("constant", "the peak", new, "below", early),
            less("constant", "the peak", new, "above"),
            less("constant", "from scratch", new, "above"),
            *(overtakes(name) for name in ("the peak", "from scratch")),
        ),
        (
            "6. On the same data re-warming raises the loss, which does not recover",
            "seen to 50B tokens, 17 % of the schedule (figure 5); Pile rises by 0.1, doubled peak 0.2 (follow-up)",
            rise("same data", old),
            less("same data", "same data, constant", old, "above", early),
            less("same data", "same data, constant", old, None),
        ),
        (
            "7. Starting from an earlier checkpoint does not help",
            "Pythia's steps 10,000 and 27,000 against 143,000, at 50B tokens (figures 7 to 9)",
            *(less(name, "the last", new, "above", *stages) for name in steps),
        ),
        (
            "8. Replay of 5 % keeps much of the old at little cost (follow-up)",
            "405M: Pile 2.44 to 2.23, SlimPajama 2.50 to 2.51",
            less("5 % replay", "none", old, "below"),
            less("5 % replay", "none", new, "same"),
        ),
        (
            "9. Infinite schedules end where the cosine does (follow-up)",
            "comparable losses after annealing",
            *(less(name, "the cosine", SIDES, "same") for name in infinite),
        ),
    ]
    return [(claim, found, [*itertools.chain(*measures)]) for claim, found, *measures in table]


def claims(flags):
    """`eval.py claims RUNS...`: each claim of the paper and of its follow-up, put to the test on one's own runs.

    A claim holds if all of its measures do, fails if one does, by the 95 % interval over seeds."""
    runs = [read_run(folder) for folder in flags.runs]
    if flags.markdown:
        print("| claim | measured here: mean [95 % interval over seeds] | verdict | the paper |\n|---|---|---|---|")
    for claim, found, measures in the_claims(runs):
        measures = [(words, values, expected) for words, values, expected in measures if values]
        verdicts = {verdict(values, expected) for _, values, expected in measures if expected}
        total = FAILS if FAILS in verdicts else UNCLEAR if UNCLEAR in verdicts else HOLDS if verdicts else "no runs"
        lines = []
        for words, values, expected in measures:
            mean, bounds = interval(values)
            bounds = f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else " (one seed)"
            fails = f" ({verdict(values, expected)})" if expected and verdict(values, expected) != total else ""
            lines.append(f"{words}: {mean:+.3f}{bounds}{fails}")
        if flags.markdown:
            print(f"| {claim} | {'<br>'.join(lines)} | {total} | {found} |")
        else:
            print(f"{claim}: {total.upper()}", *lines, f"the paper: {found}", sep="\n     ")


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
    three.add_argument("--figure", choices=[*FIGURES, *OURS], help="one of the paper's, or ours")
    three.add_argument("--out", help=".png, .pdf or .svg (perplexity.png, or figure-N.png)")
    five = command("claims", "the paper's claims, tested on the runs of experiments")
    five.add_argument("runs", nargs="+", metavar="RUNS", help="folders that train.py wrote, of three seeds or more")
    five.add_argument("--markdown", action="store_true", help="as a table")
    flags = parser.parse_args(argv)
    if getattr(flags, "micro_batch_size", 1) < 1:
        parser.error("--micro-batch-size must be positive")
    if flags.command == "plot":
        out = flags.out or (f"figure-{flags.figure}.png" if flags.figure else "perplexity.png")
        if flags.figure:
            draw_figure([read_run(folder) for folder in flags.runs], flags.figure, out)
        else:
            draw_curves(flags.runs, out)
        print(out)
    else:
        {"perplexity": perplexity, "sample": sample, "lambada": lambada, "claims": claims}[flags.command](flags)


if __name__ == "__main__":
    run_command(main)
