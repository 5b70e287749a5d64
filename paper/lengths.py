"""How high to re-warm, depending on the length of the continuation: the experiment `length`, as a figure and a table.

python -m paper run length --seeds 3
python -m paper lengths runs/* --markdown
python -m paper figure length runs/*
"""

from statistics import fmean

from engine.figures import BEFORE, COLOURS, level_before, new_figure
from engine.log import SIDES
from paper.arms import CONSTANT, pick, setting
from paper.experiments import PYTHIA_TOKENS, from_upstream
from paper.figures import final, final_range
from paper.statistics import estimate, holm
from paper.tables import print_markdown
from plan import Flags

REPLAYS = (0.0, 0.05)
RATES = {"0.1 x peak, constant": "o", "0.1 x peak": "v", "0.5 x peak": "s", "the peak": "D", "2 x peak": "^"}
MULTIPLES = (0.1, 0.5, 1.0, 2.0)


def rate_of(found):
    """The key of RATES of a run's setting; None for a run of another experiment."""
    if all(found[name] == value for name, value in CONSTANT.items()):
        return next(iter(RATES))
    if found["warmup"] == 0.01 and found["schedule"] in ("cosine", "cosine-clipped") and found["peak"] in MULTIPLES:
        return list(RATES)[1 + MULTIPLES.index(found["peak"])]
    return None


def by_length(runs):
    """{share of the pre-training: {(replay, rate): runs, one a seed}}, in order."""
    groups = {}
    for run in pick(runs, ("tokens", "replay", "schedule", "peak", "warmup")):
        found, flags = setting(run), Flags(**{name: run["flags"][name] for name in ("init", "upstream_tokens")})
        whole = found["upstream_tokens"] if from_upstream(flags) else PYTHIA_TOKENS
        if (rate := rate_of(found)) and found["replay"] in REPLAYS:
            length = groups.setdefault(round(found["tokens"] / whole, 3), {})
            length.setdefault((found["replay"], rate), []).append(run)
    if len(groups) < 2:
        raise ValueError("fewer than two lengths are here; see python -m paper run length")
    return dict(sorted(groups.items()))


def draw_lengths(runs):
    """Final downstream against final upstream perplexity, one panel per length; open markers have 5 % replay."""
    lengths = by_length(runs)
    figure, panels = new_figure(1.0 + 1.75 * len(lengths), 3.0, columns=len(lengths))
    for panel, (length, groups) in zip(panels, lengths.items(), strict=True):
        for replay in REPLAYS:
            path = {rate: groups[replay, rate] for rate in RATES if (replay, rate) in groups}
            x, y = (final_range(path.values(), side)[0] for side in SIDES[::-1])
            panel.plot(x, y, color="0.6", ls="-" if not replay else ":", lw=0.8, zorder=1)
            for rate, group in path.items():
                colour = COLOURS[list(RATES).index(rate)]
                fill = {"mfc": "w"} if replay else {}
                label = rate if not replay else None
                points = [[final(run, side) for run in group] for side in SIDES[::-1]]
                panel.plot(*points, RATES[rate], color=colour, ms=2.5, alpha=0.5, ls="", zorder=2)
                panel.plot(*map(fmean, points), RATES[rate], color=colour, ms=6, ls="", label=label, zorder=3, **fill)
        before = next(iter(groups.values()))
        panel.axhline(level_before(before, "upstream_perplexity"), **BEFORE, label="upstream before")
        panel.set_title(f"length {100 * length:.3g} %")
        panel.locator_params(nbins=4)
    panels[-1].plot([], [], "o", color="0.4", mfc="w", ls="", label="with 5 % replay")
    figure.supxlabel("final downstream perplexity", fontsize=9)
    figure.supylabel("final upstream perplexity", fontsize=9)
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def leaders(groups, replay):
    """The rates, of the arms with this replay, with the lowest final downstream loss: the best, then those that t-tests
    paired by seed, with Holm's correction, do not tell from it; none where no two seeds have all arms."""
    arms = {rate: group for (share, rate), group in groups.items() if share == replay}
    losses = {rate: {run["flags"]["seed"]: run["eval"][-1]["downstream_loss"] for run in arms[rate]} for rate in arms}
    seeds = set.intersection(*map(set, losses.values())) if losses else set()
    if len(seeds) < 2:
        return []
    first, *others = sorted(losses, key=lambda rate: fmean(losses[rate][seed] for seed in seeds))
    worse = [estimate([losses[rate][seed] - losses[first][seed] for seed in seeds]).above(0) for rate in others]
    return [first] + [rate for rate, told in zip(others, holm(worse), strict=True) if not told]


def print_lengths(runs, markdown):
    """The table: final perplexities, upstream / downstream, and which rates end best on the new text."""
    heads, rows = ["length", "replay", *RATES, "best downstream"], []
    for length, groups in by_length(runs).items():
        for replay in REPLAYS:
            cells = []
            for rate in RATES:
                group = groups.get((replay, rate), [])
                ends = [fmean(final(run, side) for run in group) for side in SIDES if group]
                cells.append(" / ".join(f"{end:.2f}" for end in ends) or "no runs")
            best = " or ".join(leaders(groups, replay)) or "cannot tell"
            rows.append([f"{length:.3g}", f"{replay:.0%}", *cells, best])
    if markdown:
        print_markdown(heads, rows)
        return
    for row in (heads, *rows):
        print("  ".join(row))
