"""What came of it: perplexity of a checkpoint, samples, the curves of runs, the paper's claims.

    python eval.py perplexity runs/NAME --data stdlib torch
    python eval.py lambada EleutherAI/pythia-410m-deduped      proves loader, tokenizer and model together
    python eval.py sample runs/NAME --prompt "def main("
    python eval.py plot runs/A runs/B --out figure.png         (or .pdf, .svg)
    python eval.py plot runs/* --figure 4                      as the paper draws its figures 1 to 9; frontier, ...
    python eval.py claims runs/*                               the paper's claims, tested on these runs

Section 4 of "How to (re)warm your model?" (arXiv 2308.04014): validation loss on the upstream and the downstream
corpus against tokens. The metric is the mean cross-entropy of a token in nats; perplexity is exp of it.
"""

import itertools
import json
import math
import re
import sys
from pathlib import Path
from statistics import fmean

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import schedule
from data import Corpus, OneLineParser, fixed_windows, load_tokenizer, read_documents, run_command, whole_number
from model import GPTNeoX, model_folder, read_json

SIDES = ("upstream", "downstream")

# ---------------------------------------------------------------- measuring a checkpoint


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
    """Loss, perplexity and bits per byte of a checkpoint on the validation text of prepared corpora, a row each."""
    folder, model = open_checkpoint(flags)
    longest = model.config.max_position_embeddings
    context = min(flags.context or longest, longest)
    corpora = [Corpus(name) for name in flags.data]
    if max(len(corpus.splits["val"]) for corpus in corpora) <= context:
        raise ValueError(f"{' '.join(flags.data)}: no val.bin has {context + 1} tokens; give a smaller --context")
    width = 2 + max(map(len, ["corpus", *flags.data]))
    if not flags.json:
        print(f"{'corpus':<{width}}{'tokens':>10}{'loss':>9}{'+-':>8}{'perplexity':>12}{'bits/byte':>11}")
    for corpus in corpora:
        if len(corpus.splits["val"]) <= context:
            print(f"data/{corpus.name}/val.bin is shorter than {context + 1} tokens; passed over", file=sys.stderr)
            continue
        check_tokenizer(folder, corpus)
        if corpus.vocab_size > model.config.vocab_size:
            has = f"{corpus.vocab_size} token ids, the model {model.config.vocab_size} rows"
            raise ValueError(f"data/{corpus.name} has {has}")
        windows = fixed_windows(corpus, context, flags.eval_tokens)
        loss, error = validation_loss(model, windows, flags.micro_batch_size)
        per_token, bits = math.exp(min(loss, 700)), loss / math.log(2) / corpus.bytes_per_token
        tokens = windows.shape[0] * context
        if flags.json:
            row = {"corpus": corpus.name, "tokens": tokens, "loss": loss, "standard_error": error}
            print(json.dumps(row | {"perplexity": per_token, "bits_per_byte": bits}))
        else:
            print(f"{corpus.name:<{width}}{tokens:>10,}{loss:>9.4f}{error:>8.4f}{per_token:>12.3f}{bits:>11.4f}")


def encode(text, tokenizer, model):
    """Token ids of a text, at least the end of text; ValueError if the model has no row for one of them."""
    ids = tokenizer.encode(text) or [tokenizer.eot]
    if max(ids) >= model.config.vocab_size:
        raise ValueError(f"the tokenizer gives id {max(ids)}, the model has {model.config.vocab_size} rows")
    return ids


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
        ids = encode(text, tokenizer, model)
        start = len(tokenizer.encode(text.rsplit(" ", 1)[0]))
        if not 0 < start < len(ids):
            raise ValueError(f"{file}: a text without a last word: {text[:40]!r}")
        cut = max(0, len(ids) - 1 - model.config.max_position_embeddings)  # what does not fit goes, on the left
        rows.append((ids[cut:], max(1, start - cut)))
    if not rows:
        raise ValueError(f"{file}: holds no text")
    rows.sort(key=lambda row: len(row[0]), reverse=True)  # like lengths together: little padding
    total, right = 0.0, 0
    for first in tqdm(range(0, len(rows), flags.micro_batch_size), disable=None, desc="lambada"):
        batch = rows[first : first + flags.micro_batch_size]
        # Padded on the right: a causal model never looks there.
        tokens = pad_sequence([torch.tensor(ids) for ids, _ in batch], batch_first=True)  # (B, T + 1)
        log_probability = model(tokens[:, :-1].to(flags.device)).float().log_softmax(dim=-1).cpu()  # (B, T, V)
        for scores, (ids, start) in zip(log_probability, batch, strict=True):
            target = torch.tensor(ids[start:])
            scores = scores[start - 1 : len(ids) - 1]
            total += scores.gather(1, target[:, None]).sum().item()
            right += torch.equal(scores.argmax(dim=1), target)
    result = {"texts": len(rows), "perplexity": math.exp(min(-total / len(rows), 700)), "accuracy": right / len(rows)}
    print(json.dumps(result) if flags.json else "  ".join(f"{name} {value:.5g}" for name, value in result.items()))


def sample(flags):
    """A checkpoint's continuation of a prompt."""
    folder, model = open_checkpoint(flags)
    tokenizer = load_tokenizer(flags.tokenizer or folder)
    ids = encode(flags.prompt, tokenizer, model)
    generator = torch.Generator(flags.device).manual_seed(flags.seed)
    tokens = torch.tensor([ids], device=flags.device)
    continued = model.generate(tokens, flags.tokens, flags.temperature, flags.top_k, generator)[0, len(ids) :].tolist()
    if tokenizer.eot in continued:
        continued = continued[: continued.index(tokenizer.eot)]
    print(flags.prompt + tokenizer.decode(continued))


# ---------------------------------------------------------------- reading runs

# What a record of each kind must hold. A record without a kind is of interpolation.jsonl: weights between the start's
# and the end's.
NEEDED = {
    "train": ("step", "tokens", "lr", "loss"),
    "eval": ("step", "tokens", "lr", *(f"{side}_{what}" for side in SIDES for what in ("loss", "perplexity"))),
    "interpolation": ("share", "upstream_loss", "downstream_loss"),
}


def read_records(file, run):
    """Appends the records of a .jsonl file, each a dict of numbers, to the run's list of their kind.

    ValueError for a damaged line, but for a last one that is still being written."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                kind = record.pop("kind", "interpolation")
                # JSON has no infinity: the norm of an fp16 overflow is null. What is not finite is not drawn.
                record = {
                    name: math.nan if value in (None, math.inf) else float(value) for name, value in record.items()
                }
                for name in NEEDED[kind]:
                    if record[name] < name.endswith("perplexity") or record[name] > 1e305:  # a perplexity is 1 or more
                        raise ValueError
                run[kind].append(record)
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError, OverflowError):
                if line.endswith(b"\n"):
                    raise ValueError(f"{file}:{number}: damaged line; remove it") from None


def read_run(folder):
    """A run's folder as {"folder", "flags", "parameters", "pretraining_peak", "train", "eval", "interpolation"}.

    The last three are lists of records. Raises ValueError for what is not a run."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder}: not a run (no config.json and metrics.jsonl); give a folder that train.py wrote")
    config = read_json(folder / "config.json")
    flags = config.get("flags") if isinstance(config, dict) else None
    fits = isinstance(flags, dict) and all(isinstance(flags.get(side), str) for side in SIDES)
    fits = fits and all(isinstance(flags.get(name), int | float) for name in ("warmup", "tokens", "overlap"))
    for value in flags.values() if fits else ():
        fits = fits and (isinstance(value, str | None) or (isinstance(value, int | float) and abs(value) < 1e30))
    if not fits:
        raise ValueError(f"{folder}/config.json: not of a run, or damaged; restore it, or begin a new run")
    run = {"folder": folder, "flags": flags} | {kind: [] for kind in NEEDED}
    run |= {name: config.get(name) for name in ("parameters", "pretraining_peak")}
    for name in ("metrics.jsonl", "interpolation.jsonl"):
        if (folder / name).is_file():
            read_records(folder / name, run)
    if not run["eval"]:
        raise ValueError(f"{folder}: no evaluation yet; wait for the first, or --resume the run")
    return run


# ---------------------------------------------------------------- telling runs apart

LAST = math.inf  # the step from which a run starts, if it is the end of the pre-training
USUAL = {"start": LAST, "replay": 0.0, "peak": 1.0, "warmup": 0.01, "decay": 0.1}  # where an arm says nothing else
CONSTANT = {"schedule": "constant", "peak": 0.1, "warmup": 0.0}  # the paper's baseline


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


def name_of(flag, value):
    """A flag and its value as a legend says it: "warm-up 1 %", "max LR 8e-3", "cosine"."""
    if flag == "start":
        return {0: "from scratch", LAST: "the last checkpoint"}.get(value, f"step {value}")
    says = {"init": "", "schedule": "", "downstream": "", "max_lr": "max LR ", "peak": "max LR ", "warmup": "warm-up "}
    name = says.get(flag, flag.replace("_", " ") + " ")
    if not isinstance(value, int | float):
        return f"{name}{value}"[:80]
    if flag in ("warmup", "overlap", "replay"):
        return f"{name}{100 * value:g} %"
    if flag in ("max_lr", "peak"):
        digits, power = f"{value:e}".split("e")
        return f"{name}{float(digits):g}e{int(power)}"
    return f"{name}{value:g}"


def label_runs(runs):
    """A label for each run: the flags in which the runs differ; the seed is left out, seeds are averaged."""
    said = ("init", "revision", "model", "upstream", "downstream", "overlap", "replay", "schedule", "max_lr")
    said += ("warmup", "tokens", "batch_size", "weight_decay", "decay_to_start", "upstream_tokens")
    differ = [flag for flag in said if len({run["flags"].get(flag) for run in runs}) > 1] or ["max_lr", "warmup"]
    if "schedule" in differ and "max_lr" not in differ:
        differ.append("max_lr")
    labels = []
    for run in runs:
        flags = run["flags"]
        shown = [flag for flag in differ if not (flag == "warmup" and flags.get("schedule") == "constant")]
        # No replay goes without saying, and no overlap, where something else is said.
        shown = [flag for flag in shown if flags.get(flag) or flag not in ("overlap", "replay")] or shown
        labels.append(", ".join(name_of(flag, flags.get(flag)) for flag in shown))
    return labels


def pick(runs, vary=(), **wanted):
    """The runs of an arm: `wanted`, and otherwise the base of the experiments; the settings in `vary` are free.

    The base's corpora, sizes, lengths and decay schedule are the commonest among the runs."""
    settings = [setting(run) for run in runs]
    usual = {}
    for key in settings[0]:
        values = [s[key] for s in settings if key != "schedule" or s[key].startswith("cosine")]
        usual[key] = max(dict.fromkeys(values), key=values.count) if values else "cosine"
    wanted = usual | USUAL | wanted
    fixed = settings[0].keys() - {"seed", *vary}
    return [run for run, s in zip(runs, settings, strict=True) if all(s[key] == wanted[key] for key in fixed)]


def arms(runs, *vary, among=lambda *values: True, **wanted):
    """{label: runs, one a seed} of the arms that differ in the settings `vary`, in their order.

    `among` says which of their values count."""
    groups, labels = {}, {}
    for run in pick(runs, vary, **wanted):
        values = tuple(setting(run)[key] for key in vary)
        groups.setdefault(values, []).append(run)
        shown = setting(run) | {"peak": run["flags"]["max_lr"]}
        labels[values] = ", ".join(name_of(key, shown[key]) for key in vary)
    return {labels[values]: groups[values] for values in sorted(groups) if among(*values)}


def over_seeds(runs, key, kind="eval", against="tokens"):
    """{tokens: values of `key`, one a seed}, in order, where every run of the arm was evaluated."""
    found = {}
    for run in runs:
        for record in run[kind]:
            found.setdefault(record[against], []).append(record[key])
    shared = {place: found[place] for place in sorted(found) if len(found[place]) == len(runs)}
    if runs and not shared:
        raise ValueError(f"{runs[0]['folder']}: the other seeds were evaluated elsewhere; leave it, or them, out")
    return shared


# ---------------------------------------------------------------- drawing

# Okabe and Ito's colours, told apart with every kind of colour vision; line styles repeat the difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", (0, (5, 1)), "-.", (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)), (0, (8, 2, 2, 2)))
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "lines.linewidth": 1.5, "legend.frameon": False, "legend.fontsize": 8,
    "pdf.fonttype": 42,  # letters, which a journal can embed, rather than outlines
}  # fmt: skip
BEFORE = {"color": "0.4", "ls": (0, (4, 3)), "lw": 1}  # the level before the first update


def new_figure(width, height, rows=1, columns=1, **grid):
    """(figure in the manner of a paper, in inches, its panels as a list); needs no screen."""
    import matplotlib  # takes a second, which nothing but figures should wait for
    from matplotlib.figure import Figure

    cycle = matplotlib.cycler(color=COLOURS, linestyle=DASHES)
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycle})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def save_figure(figure, out):
    """Writes .png, .pdf or .svg, as the name says; ValueError if it cannot."""
    try:
        figure.savefig(out, dpi=200)
    except (ValueError, OSError) as fault:
        raise ValueError(f"cannot write {out}: {fault}; choose another --out (.png, .pdf, .svg)") from None


def in_millions(axis):
    """Tokens along an axis, in units that can be read: 800k, 1.5M, 50B."""
    from matplotlib.ticker import EngFormatter

    formatter = EngFormatter(sep="")
    formatter.ENG_PREFIXES = EngFormatter.ENG_PREFIXES | {9: "B"}
    axis.set_major_formatter(formatter)
    axis.set_label_text("tokens of continued pre-training")


def draw_band(panel, x, seeds, **look):
    """Over x the mean over seeds as a line and their range as a band; seeds: for each x a list of values."""
    (line,) = panel.plot(x, [fmean(values) for values in seeds], **look)
    lowest, highest = [min(values) for values in seeds], [max(values) for values in seeds]
    panel.fill_between(x, lowest, highest, color=line.get_color(), alpha=0.2, lw=0)


def title_of(runs, side):
    """A side and its corpus, as the title of a panel; with the overlap, where the runs agree on it."""
    flags, overlaps = runs[0]["flags"], {run["flags"]["overlap"] for run in runs}
    title = f"{side.capitalize()}: {flags[side]}"
    if side == "downstream" and len(overlaps) == 1 and flags["overlap"]:
        title += f" ({100 * flags['overlap']:g} % {flags['upstream']})"
    return title


def draw_arms(groups, measure, sides, until, rates=False):
    """`measure` (loss or perplexity) against tokens, as in the paper's figures 1 to 3, 5 and 7 to 9.

    groups: {label: runs, one a seed}. A panel for each of `sides`, as far as `until` tokens; with `rates` one more, for
    the learning rate."""
    runs = [run for group in groups.values() for run in group]
    # A random start begins far above: beside others it decides neither the level before nor how far up an axis goes.
    trained = [run for run in runs if run["flags"].get("init") != "scratch"] or runs
    heights = [3] * len(sides) + [1] * rates
    figure, panels = new_figure(
        5.5, 0.8 + 0.72 * sum(heights), rows=len(heights), sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for panel, side in zip(panels, sides, strict=False):
        key = f"{side}_{measure}"
        seen = []  # what the axis should show
        for label, group in groups.items():
            shared = over_seeds(group, key)
            draw_band(panel, [*shared], [*shared.values()], label=label)
            shown = [values for tokens, values in shared.items() if tokens <= 1.001 * until]
            seen += itertools.chain(*(shown if group[0] in trained else shown[-1:]))
        before = {round(run["eval"][0][key], 3) for run in trained if run["eval"][0]["step"] == 0}
        if len(before) == 1:  # runs from different starts have no common level
            panel.axhline(*before, **BEFORE, label="before")
        seen = list(filter(math.isfinite, seen))
        if len(set(seen)) > 1:
            margin = 0.06 * (max(seen) - min(seen))
            panel.set_ylim(min(seen) - margin, max(seen) + margin)
        panel.set_title(title_of(runs, side))
        panel.set_ylabel("perplexity" if measure == "perplexity" else "validation loss (nats)")
        panel.locator_params(axis="y", min_n_ticks=5)
    if rates:
        for group in groups.values():
            steps = group[0]["train"]
            panels[-1].plot([step["tokens"] for step in steps], [step["lr"] for step in steps], lw=1)
        panels[-1].set_ylabel("LR")
        panels[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    # The end of every warm-up is marked, and named once.
    ends = {run["flags"]["warmup"] * run["flags"]["tokens"] for run in runs if run["flags"]["warmup"]}
    for panel in panels:
        for number, end in enumerate(sorted(ends)):
            panel.axvline(end, color="0.4", ls=":", lw=1, label=None if number else "end of warm-up")
    panels[-1].set_xlim(-0.01 * until, 1.01 * until)
    in_millions(panels[-1].xaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = next(count for count, fits in ((4, 20), (2, 40), (1, math.inf)) if longest <= fits)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, rows - 3))  # a long legend is not at the panels' cost
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    figure.align_ylabels(panels)
    return figure


def draw_curves(folders, out):
    """The figure of a run, or of several: perplexity downstream and upstream, and the learning rate."""
    runs = [read_run(folder) for folder in folders]
    groups = {}  # the same arm with several seeds is one curve
    for run, label in zip(runs, label_runs(runs), strict=True):
        groups.setdefault(label, []).append(run)
    until = max(1, *(run["eval"][-1]["tokens"] for run in runs))
    save_figure(draw_arms(groups, "perplexity", ("downstream", "upstream"), until, rates=True), out)


# ---------------------------------------------------------------- the paper's figures

BEGINNING = schedule.PAPER_STOPS["50B"]  # the share of the schedule that the paper's 50B figures show
PATH = ()  # instead of sides: upstream against downstream


def peaks(runs, **wanted):
    """The maximal learning rates, and the constant one."""
    constant = arms(runs, "peak", among=lambda peak: peak == CONSTANT["peak"], **CONSTANT, **wanted)
    renamed = {name.replace("max LR", "constant"): group for name, group in constant.items()}
    return arms(runs, "peak", **wanted) | renamed


def scratch(runs):
    return arms(runs, "start", among=lambda step: step == 0)


def starts(runs):
    """The checkpoints, without and with warm-up."""
    return arms(runs, "start", "warmup", among=lambda step, share: step > 0 and share in (0.0, 0.01))


# What each figure shows: which arms, whose loss (or the path through both perplexities), up to which share of the run.
FIGURES = {
    "1": (lambda runs: arms(runs, "warmup"), ("downstream", "upstream"), BEGINNING),
    "2": (lambda runs: peaks(runs) | scratch(runs), ("downstream",), 1),
    "3": (lambda runs: peaks(runs) | scratch(runs), ("upstream",), 1),
    "4": (peaks, PATH, 1),
    "5": (lambda runs: peaks(runs, replay=1.0), ("upstream",), BEGINNING),
    "6": (lambda runs: peaks(runs, replay=1.0), PATH, BEGINNING),
    "7": (starts, ("downstream",), BEGINNING),
    "8": (starts, ("upstream",), BEGINNING),
    "9": (lambda runs: starts(runs) | scratch(runs), ("upstream",), BEGINNING),
}


def draw_figure(runs, number, out):
    """One of the paper's figures 1 to 9, or of those that it does not have: frontier, replay, overlap.

    ValueError if too few of its arms are among the runs."""
    if number in OURS:
        if not pick(runs):
            raise ValueError(f"--figure {number}: the base arm is not here; see train.py --experiment")
        figure = OURS[number](runs)
    else:
        arms_of, sides, until = FIGURES[number]
        groups = arms_of(runs)
        if len(groups) < 2:
            raise ValueError(f"--figure {number}: fewer than two of its arms are here; see train.py --experiment")
        until *= max(run["flags"]["tokens"] for group in groups.values() for run in group)
        figure = draw_arms(groups, "loss", sides, until) if sides else draw_paths(groups, until)
    save_figure(figure, out)


def draw_paths(groups, until):
    """Upstream against downstream perplexity, coloured by tokens, as in figures 4 and 6."""
    figure, (panel,) = new_figure(5.5, 4)
    warm = []  # where the warm-ups end
    for marker, (label, group) in zip("osD^vP", groups.items(), strict=False):
        new, old = (over_seeds(group, f"{side}_perplexity") for side in ("downstream", "upstream"))
        tokens = [place for place in new if place <= 1.001 * until]
        points = [(fmean(new[place]), fmean(old[place])) for place in tokens]
        x, y = zip(*points, strict=True)
        panel.plot(x, y, lw=1, marker=marker, markevery=[-1], ms=7, mfc="w", zorder=4, label=label)
        dots = panel.scatter(x, y, 8, tokens, vmin=0, vmax=until, zorder=3)
        if end := group[0]["flags"]["warmup"] * group[0]["flags"]["tokens"]:
            warm.append(min(zip(tokens, points, strict=True), key=lambda place: abs(place[0] - end))[1])
    if warm:
        panel.plot(*zip(*warm, strict=True), "kx", ms=6, zorder=5, label="end of warm-up")
    panel.plot(*points[0], "k*", ms=12, label="start")
    flags = group[0]["flags"]
    panel.set_xlabel(f"downstream perplexity ({flags['downstream']})")
    panel.set_ylabel(f"upstream perplexity ({flags['upstream']})")
    in_millions(figure.colorbar(dots, pad=0.02).ax.yaxis)
    panel.legend()
    return figure


# ---------------------------------------------------------------- figures that the paper does not have


def final(run, side):
    """Perplexity at the last evaluation."""
    return run["eval"][-1][f"{side}_perplexity"]


def spread(groups, side):
    """Final perplexities of arms: means over seeds, and how far from them the least and the most lie (2, arms)."""
    finals = [[final(run, side) for run in group] for group in groups]
    means = [fmean(values) for values in finals]
    ranges = [(abs(mean - min(values)), abs(max(values) - mean)) for mean, values in zip(means, finals, strict=True)]
    return means, list(zip(*ranges, strict=True))


def draw_frontier(runs):
    """The trade-off: every arm's final perplexities, upstream against downstream; on the right, the crowded corner."""
    base = pick(runs)
    kinds = {
        "replay": arms(runs, "replay", among=lambda share: share < 1),
        "max LR": arms(runs, "peak"),
        "warm-up": arms(runs, "warmup"),
        "schedule": arms(runs, "schedule") | {"constant LR": pick(runs, **CONSTANT)},
        "earlier checkpoint": arms(runs, "start", among=lambda step: 0 < step < LAST),
        "decay to the start": arms(runs, "decay", among=lambda decay: decay < 0),
    }
    between = [run for run in base if run["interpolation"]]
    path = []
    for side in ("downstream", "upstream"):
        losses = over_seeds(between, f"{side}_loss", "interpolation", "share").values()
        path.append([math.exp(min(fmean(values), 700)) for values in losses])
    figure, (whole, corner) = new_figure(7.2, 3.8, columns=2)
    for panel in (whole, corner):
        for (kind, groups), colour, marker in zip(kinds.items(), COLOURS, "^oDsvP", strict=False):
            groups = {name.removeprefix(f"{kind} "): group for name, group in groups.items() if group not in ([], base)}
            (x, dx), (y, dy) = spread(groups.values(), "downstream"), spread(groups.values(), "upstream")
            panel.errorbar(x, y, dy, dx, color=colour, ls="", marker=marker, ms=5, elinewidth=0.6, label=kind)
            if panel is corner and kind in ("replay", "max LR"):
                below = -9 if kind == "replay" else 3  # points
                for name, *place in zip(groups, x, y, strict=True):
                    panel.annotate(name, place, (5, below), textcoords="offset points", fontsize=7)
            if panel is corner and kind == "max LR":
                panel.axis(panel.axis())  # no further than what has been drawn
        (x, _), (y, _) = spread([base], "downstream"), spread([base], "upstream")
        panel.plot(x, y, "k*", ms=9, zorder=4, label="base")
        if between:
            panel.plot(*path, ".:", color="0.4", ms=4, lw=1, label="between start and end weights")
        panel.axhline(base[0]["eval"][0]["upstream_perplexity"], **BEFORE, label="upstream before")
    flags = base[0]["flags"]
    figure.supxlabel(f"final downstream perplexity ({flags['downstream']})", fontsize=9)
    figure.supylabel(f"final upstream perplexity ({flags['upstream']})", fontsize=9)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def rise(run, side):
    """By how much the loss rises above its start, in nats."""
    return max(record[f"{side}_loss"] for record in run["eval"]) - run["eval"][0][f"{side}_loss"]


def rise_length(run, side):
    """For how long the loss is above its start, in tokens."""
    key = f"{side}_loss"
    return max((r["tokens"] for r in run["eval"] if r[key] > run["eval"][0][key]), default=0)


def draw_shares(groups, flag, words, panels, linear):
    """Measures of a run against a flag in percent, mean and range over seeds; panels: {title: {side: measure}}.

    The axis is logarithmic beyond `linear` percent."""
    shares = [100 * group[0]["flags"][flag] for group in groups.values()]
    figure, drawn = new_figure(5.5, 2.6, columns=len(panels))
    for panel, (title, measures) in zip(drawn, panels.items(), strict=True):
        for side, measure in measures.items():
            values = [[measure(run, side) for run in group] for group in groups.values()]
            draw_band(panel, shares, values, marker="o", ms=4, color=COLOURS[SIDES.index(side)], label=side)
        panel.set_xscale("symlog", linthresh=linear)
        panel.set_xticks(shares, [f"{share:g}" for share in shares])
        panel.minorticks_off()
        panel.set(title=title, xlabel=words)
    return figure, drawn


def draw_replay(runs):
    """What replay costs on the new text and what it keeps of the old."""
    groups = arms(runs, "replay", among=lambda share: share < 1)
    measures = {f"final {side} perplexity": {side: final} for side in SIDES}
    figure, panels = draw_shares(groups, "replay", "replay (% of each batch)", measures, linear=1)
    panels[0].axhline(pick(runs)[0]["eval"][0]["upstream_perplexity"], **BEFORE, label="before")
    panels[0].legend()
    return figure


def draw_overlap(runs):
    """Height and length of the stability gap against the share of upstream text in the downstream distribution."""
    measures = {
        "height of the rise (nats)": {"downstream": rise, "upstream": rise},
        "length of the rise, downstream": {"downstream": rise_length},
    }
    groups = arms(runs, "overlap")
    figure, panels = draw_shares(groups, "overlap", "overlap (% upstream text)", measures, linear=100)
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    in_millions(panels[1].yaxis)
    panels[1].set_ylabel("tokens")
    return figure


OURS = {"frontier": draw_frontier, "replay": draw_replay, "overlap": draw_overlap}


# ---------------------------------------------------------------- the claims

CLAIMS = {  # the claim, and what the paper or the authors' later runs found
    "1": ("The length of the warm-up does not matter",
          "0, 0.5, 1 and 2 % of the schedule: one curve each for Pile and SlimPajama at 50B tokens (figure 1)"),
    "1b": ("Without warm-up there is an early spike",
           "a spike that leaves no trace (figure 1)"),
    "2": ("Re-warming first raises both losses, then beats the constant rate downstream",
          "405M later runs: 2.708 at the peak against 2.642 constant, 2.501 against 2.549 at the end"),
    "3": ("A higher maximum is better downstream and worse upstream",
          "405M later runs, SlimPajama: 2.516 (half), 2.501, 2.507 (double)"),
    "4": ("Continued runs end better downstream than training from scratch",
          "405M later runs, SlimPajama: 2.516, 2.501, 2.507 against 2.537"),
    "5": ("The constant rate is best downstream early and worst late",
          "best for 100B of 297B tokens (34 %); scratch overtakes it after 200B (67 %)"),
    "6": ("On the same data re-warming raises the loss, which does not recover",
          "seen to 50B tokens, 17 % of the schedule (figure 5); Pile rises by 0.1, doubled peak 0.2 (follow-up)"),
    "7": ("Starting from an earlier checkpoint does not help",
          "Pythia's steps 10,000 and 27,000 against 143,000, at 50B tokens (figures 7 to 9)"),
    "8": ("Replay of 5 % keeps much of the old at little cost (follow-up)",
          "405M: Pile 2.44 to 2.23, SlimPajama 2.50 to 2.51"),
    "9": ("Infinite schedules end where the cosine does (follow-up)",
          "comparable losses after annealing"),
}  # fmt: skip
# The arms that they compare, by what sets them apart; the base has the name of what a claim varies.
ARMS = {
    "the peak": {}, "1 %": {}, "the last": {}, "none": {}, "the cosine": {},
    "half the peak": {"peak": 0.5}, "double the peak": {"peak": 2.0}, "no warm-up": {"warmup": 0.0},
    "constant": CONSTANT, "from scratch": {"start": 0}, "5 % replay": {"replay": 0.05},
    "same data": {"replay": 1.0}, "same data, constant": {"replay": 1.0} | CONSTANT,
    "infinite-cosine": {"schedule": "infinite-cosine"}, "infinite-rsqrt": {"schedule": "infinite-rsqrt"},
}  # fmt: skip

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot tell at this scale"
SAME = 0.01  # nats: differences within it count as none; 1 % of perplexity
EXPECTED = {"above": (0, math.inf), "below": (-math.inf, 0), "same": (-SAME, SAME)}  # where a measure should lie
T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, two-sided 95 %, from 2 seeds on


def interval(values):
    """Mean and 95 % confidence interval over seeds (Student's t), which for one value is everything."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, (-math.inf, math.inf)
    error = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) * (len(values) - 1))
    half = T_95[min(len(values), 10) - 2] * error
    return mean, (mean - half, mean + half)


def verdict(values, expected):
    """What an interval says of an expectation: "above" zero, "below" it, or the "same" within SAME."""
    (_, (low, high)), (least, most) = interval(values), EXPECTED[expected]
    if least < low and high < most:
        return HOLDS
    return FAILS if low > most or high < least else UNCLEAR


def pairs(one, other):
    """[(run of one arm, run of the other with the same seed)]: the seed decides the order of the data."""
    by_seed = {run["flags"]["seed"]: run for run in other}
    return [(run, by_seed[run["flags"]["seed"]]) for run in one if run["flags"]["seed"] in by_seed]


def loss_at(run, side, share):
    """Validation loss at a share of the schedule; None where the run was not evaluated there."""
    tokens = share * run["flags"]["tokens"]
    update = run["flags"]["batch_size"] * run["flags"]["context"]
    record = min(run["eval"], key=lambda record: abs(record["tokens"] - tokens))
    return record[f"{side}_loss"] if abs(record["tokens"] - tokens) <= update else None


def minus(one, other, side, share=1.0):
    """Differences in loss between two arms, paired by seed, where both were evaluated."""
    losses = [(loss_at(run, side, share), loss_at(rest, side, share)) for run, rest in pairs(one, other)]
    return [loss - reference for loss, reference in losses if loss is not None and reference is not None]


def crossing(one, other, side):
    """Share of the schedule after which arm `one` stays below arm `other`, a list over seeds; 1 where it never does."""
    key, shares = f"{side}_loss", []
    for run, rest in pairs(one, other):
        theirs = {record["tokens"]: record[key] for record in rest["eval"]}
        behind = [r["tokens"] for r in run["eval"] if r[key] >= theirs.get(r["tokens"], math.inf)]
        shares.append(max(behind, default=0) / run["flags"]["tokens"])
    return shares


def the_claims(runs):
    """[(claim, what the paper found, [(measure, its values over seeds, what the claim expects or None)])]."""
    arm = {name: pick(runs, **settings) for name, settings in ARMS.items()}
    lengths = {name: group for name, group in arms(runs, "warmup").items() if group != arm["1 %"]}
    steps = arms(runs, "start", among=lambda step: 0 < step < LAST)
    arm |= lengths | steps
    early, end = stages = {BEGINNING: "at 17 % of the schedule", 1.0: "at its end"}
    old, new = SIDES

    def less(one, other, side, expected, at=end):
        """The loss of one arm less another's."""
        return f"{side}, {one} minus {other}, {stages[at]}", minus(arm[one], arm[other], side, at), expected

    def rises(one, side):
        return f"{side}, {one}, highest minus start", [rise(run, side) for run in arm[one]], "above"

    def overtakes(one):
        words = f"downstream, after which share {one} overtakes constant (1: never)"
        return words, crossing(arm[one], arm["constant"], new), None

    spikes = [rise(run, new) - rise(rest, new) for run, rest in pairs(arm["no warm-up"], arm["1 %"])]
    rates = ("constant", "half the peak", "the peak", "double the peak")
    same, constant = "same data", "same data, constant"
    measures = {
        "1": [less(name, "1 %", side, "same", at) for name in lengths for at in stages for side in SIDES],
        "1b": [("downstream, highest, no warm-up minus 1 %", spikes, "above")],
        "2": [rises("the peak", old), rises("the peak", new), less("the peak", "constant", new, "below")],
        "3": [
            less(higher, lower, side, expected)
            for lower, higher in itertools.pairwise(rates)
            for side, expected in ((new, "below"), (old, "above"))
        ],
        "4": [less(name, "from scratch", new, "below") for name in rates[1:]],
        "5": [
            less("constant", "the peak", new, "below", early),
            less("constant", "the peak", new, "above"),
            less("constant", "from scratch", new, "above"),
            overtakes("the peak"),
            overtakes("from scratch"),
        ],
        "6": [rises(same, old), less(same, constant, old, "above", early), less(same, constant, old, None)],
        "7": [less(name, "the last", new, "above", at) for name in steps for at in stages],
        "8": [less("5 % replay", "none", old, "below"), less("5 % replay", "none", new, "same")],
        "9": [less(f"infinite-{way}", "the cosine", side, "same") for way in ("cosine", "rsqrt") for side in SIDES],
    }
    return [(f"{number}. {claim}", found, measures[number]) for number, (claim, found) in CLAIMS.items()]


def claims(flags):
    """The paper's claims, and its follow-up's, tested on the runs of experiments.

    A claim holds if all of its measures do, fails if one does, by the 95 % interval over seeds."""
    runs = [read_run(folder) for folder in flags.runs]
    if flags.markdown:
        print("| claim | measured here: mean [95 % interval over seeds] | verdict | the paper |\n|---|---|---|---|")
    for claim, found, measures in the_claims(runs):
        measures = [(words, values, expected) for words, values, expected in measures if values]
        verdicts = {verdict(values, expected) for _, values, expected in measures if expected}
        total = next((worst for worst in (FAILS, UNCLEAR, HOLDS) if worst in verdicts), "no runs")
        lines = []
        for words, values, expected in measures:
            mean, (low, high) = interval(values)
            bounds = f"[{low:+.3f}, {high:+.3f}]" if len(values) > 1 else "(one seed)"
            differs = f" ({verdict(values, expected)})" if expected and verdict(values, expected) != total else ""
            lines.append(f"{words}: {mean:+.3f} {bounds}{differs}")
        if flags.markdown:
            print(f"| {claim} | {'<br>'.join(lines)} | {total} | {found} |")
        else:
            print(f"{claim}: {total.upper()}", *lines, f"the paper: {found}", sep="\n     ")


# ---------------------------------------------------------------- the command line


def plot(flags):
    """The curves of one or more runs; the same arm with several seeds becomes one band."""
    out = flags.out or (f"figure-{flags.figure}.png" if flags.figure else "perplexity.png")
    if flags.figure:
        draw_figure([read_run(folder) for folder in flags.runs], flags.figure, out)
    else:
        draw_curves(flags.runs, out)
    print(out)


def main(argv=None):
    parser = OneLineParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)

    def command(function):
        says = function.__doc__.partition("\n")[0]
        added = commands.add_parser(function.__name__, help=says, description=says, prog=f"eval.py {function.__name__}")
        added.set_defaults(command=function)
        return added

    measuring, scoring, sampling = command(perplexity), command(lambada), command(sample)
    plotting, testing = command(plot), command(claims)
    count = {"type": whole_number, "metavar": "N"}
    for each in (measuring, scoring, sampling):
        each.add_argument("checkpoint", help="a run's folder (its last checkpoint), a model folder, or a hub id")
        each.add_argument("--revision", help="of a hub id, such as step1000")
        each.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    measuring.add_argument("--data", nargs="+", required=True, metavar="NAME", help="prepared corpora (their val.bin)")
    measuring.add_argument("--eval-tokens", **count, default=1_000_000, help="at most (%(default)s)")
    measuring.add_argument("--context", **count, help="window in tokens (the model's)")
    for each in (measuring, scoring):
        each.add_argument("--micro-batch-size", **count, default=8, help="rows at a time")
        each.add_argument("--json", action="store_true", help="one JSON object a line")
    scoring.add_argument("--file", help='rows with a "text" (fetched from the hub)')
    for each in (scoring, sampling):
        each.add_argument("--tokenizer", help="a tokenizer.json, bytes or neox (the checkpoint's)")
    sampling.add_argument("--prompt", default="", help="text to continue")
    sampling.add_argument("--tokens", **count, default=100, help="how many to add (%(default)s)")
    sampling.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (%(default)s)")
    sampling.add_argument("--top-k", **count, help="sample among the N likeliest (all)")
    sampling.add_argument("--seed", **count, default=0, help="of the random numbers (%(default)s)")
    for each in (plotting, testing):
        each.add_argument("runs", nargs="+", metavar="RUNS", help="folders that train.py wrote, best of several seeds")
    plotting.add_argument("--figure", choices=[*FIGURES, *OURS], help="one of the paper's, or ours")
    plotting.add_argument("--out", help=".png, .pdf or .svg (perplexity.png, or figure-N.png)")
    testing.add_argument("--markdown", action="store_true", help="as a table")
    flags = parser.parse_args(argv)
    if getattr(flags, "micro_batch_size", 1) < 1:
        parser.error("--micro-batch-size must be positive")
    flags.command(flags)


if __name__ == "__main__":
    run_command(main)
