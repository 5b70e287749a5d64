"""The paper's figures 1 to 9, drawn from one's own runs, and three that it does not have.

python -m paper figure 4 runs/* --out figure-4.pdf
"""

from statistics import fmean

from engine import figures
from engine.figures import BEFORE, COLORS, draw_arms, draw_band, in_tokens, level_before, new_figure, over_seeds
from engine.log import SIDES
from paper.arms import CONSTANT, SCRATCH, arms, pick, studies
from train import PAPER_STOPS

BEGINNING = PAPER_STOPS["50B"]  # the share of the schedule that the paper's 50B figures show
# What a legend says of arms, in which settings they differ, and what else sets them apart from the base.
RATES = [("", ["peak"], {}), ("constant ", ["peak"], CONSTANT)]
SAME_DATA = [(words, free, arm | {"replay": 1.0}) for words, free, arm in RATES]
STARTS = [("", ["start"], {}), ("no warm-up, ", ["start"], {"warmup": 0.0})]
FROM_SCRATCH = [("from scratch", [], SCRATCH)]
PATH = ()  # instead of sides: upstream against downstream
FIGURES = {  # the arms, whose loss is drawn (or the path through both perplexities), up to which share of the run
    "1": ([("", ["warmup"], {})], SIDES[::-1], BEGINNING),
    "2": (RATES + FROM_SCRATCH, ("downstream",), 1),
    "3": (RATES + FROM_SCRATCH, ("upstream",), 1),
    "4": (RATES, PATH, 1),
    "5": (SAME_DATA, ("upstream",), BEGINNING),
    "6": (SAME_DATA, PATH, BEGINNING),
    "7": (STARTS, ("downstream",), BEGINNING),
    "8": (STARTS, ("upstream",), BEGINNING),
    "9": (STARTS + FROM_SCRATCH, ("upstream",), BEGINNING),
}


def draw_figure(runs, number):
    """One of FIGURES or OURS. ValueError if too few of its arms are among the runs, or runs of other studies."""
    if len(names := studies(runs)) > 1:
        raise ValueError(f"these runs are of {len(names)} studies ({'; '.join(names)}); give those of one")
    (runs,) = names.values()
    if number in OURS:
        if not pick(runs):
            raise ValueError(f"figure {number}: the base arm is not here; see python -m paper run")
        return OURS[number](runs)
    (selection, sides, until), groups = FIGURES[number], {}
    for words, free, arm in selection:
        for name, group in arms(runs, free, **arm).items():
            groups[f"{words}{name}".replace("constant max LR", "constant")] = group
    if len(groups) < 2:
        raise ValueError(f"figure {number}: fewer than two of its arms are here; see python -m paper run")
    until *= max(run["flags"]["tokens"] for group in groups.values() for run in group)
    return draw_arms(groups, "loss", sides, until) if sides else draw_paths(groups, until)


def draw_paths(groups, until):
    """Upstream against downstream perplexity, colored by tokens, as in figures 4 and 6."""
    figure, (panel,) = new_figure(5.5, 4)
    warm = []  # where the warm-ups end
    for marker, (label, group) in zip("osD^vP", groups.items(), strict=False):
        new, old = (over_seeds(group, f"{side}_perplexity") for side in ("downstream", "upstream"))
        tokens = [place for place in new if place <= 1.001 * until]
        points = [(fmean(new[place]), fmean(old[place])) for place in tokens]
        x, y = zip(*points, strict=True)
        panel.plot(x, y, lw=1, marker=marker, markevery=[-1], ms=7, mfc="w", zorder=4, label=label)
        dots = panel.scatter(x, y, 8, tokens, vmin=0, vmax=until, zorder=3)
        if end := figures.warmup_end(group[0]["flags"]):
            warm.append(min(zip(tokens, points, strict=True), key=lambda place: abs(place[0] - end))[1])
    if warm:
        panel.plot(*zip(*warm, strict=True), "kx", ms=6, zorder=5, label="end of warm-up")
    panel.plot(*points[0], "k*", ms=12, label="start")
    name_axes(panel, group[0]["flags"])
    in_tokens(figure.colorbar(dots, pad=0.02).ax.yaxis)
    panel.legend()
    return figure


def name_axes(panel, flags, words=""):
    panel.set_xlabel(f"{words}downstream perplexity ({flags['downstream']})")
    panel.set_ylabel(f"{words}upstream perplexity ({flags['upstream']})")


# ---------------------------------------------------------------- figures that the paper does not have


def final(run, side):
    return run["eval"][-1][f"{side}_perplexity"]


def draw_frontier(runs):
    """The trade-off: every arm's final perplexities, means over seeds, upstream against downstream."""
    base = pick(runs)
    kinds = {
        "replay": [group for name, group in arms(runs, ["replay"]).items() if name != "replay 100 %"],
        "max LR": arms(runs, ["peak"]).values(),
        "warm-up": arms(runs, ["warmup"]).values(),
        "schedule": [*arms(runs, ["schedule"]).values(), pick(runs, **CONSTANT)],
        "earlier checkpoint": arms(runs, ["start"]).values(),
    }
    figure, (panel,) = new_figure(5.5, 4)
    for (kind, groups), marker in zip(kinds.items(), "^oDsv", strict=True):
        points = [[fmean(final(run, side) for run in group) for side in SIDES[::-1]] for group in groups if group]
        panel.plot(*zip(*points, strict=True), marker, label=kind)
    panel.plot(*(fmean(final(run, side) for run in base) for side in SIDES[::-1]), "k*", ms=14, label="base")
    panel.axhline(level_before(base, "upstream_perplexity"), **BEFORE, label="upstream before")
    name_axes(panel, base[0]["flags"], "final ")
    panel.legend()
    return figure


def draw_shares(groups, words, *panels):
    """Measures of a run against its replay in percent, mean and range over seeds; panels: (title, {side: measure})."""
    shares = [100 * group[0]["flags"]["replay"] for group in groups.values()]
    figure, drawn = new_figure(5.5, 2.6, columns=len(panels))
    for panel, (title, measures) in zip(drawn, panels, strict=True):
        for side, measure in measures.items():
            values = [[measure(run, side) for run in group] for group in groups.values()]
            draw_band(panel, shares, values, marker="o", ms=4, color=COLORS[SIDES.index(side)], label=side)
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xticks(shares, ["" if share == 75 else f"{share:g}" for share in shares], fontsize=7)
        panel.minorticks_off()
        panel.set(title=title, xlabel=words)
    return figure, drawn[0]


def draw_replay(runs):
    """What replay costs on the new text and what it keeps of the old."""
    groups = {name: group for name, group in arms(runs, ["replay"]).items() if name != "replay 100 %"}
    measures = [(f"final {side} perplexity", {side: final}) for side in SIDES]
    figure, panel = draw_shares(groups, "replay (% of each batch)", *measures)
    panel.axhline(level_before(pick(runs), "upstream_perplexity"), **BEFORE, label="before")
    panel.legend()
    return figure


def rise(run, side):
    """By how many nats the highest loss after the start exceeds the start's; below 0 where it only falls.

    A run with replay x is read as one on a mixture with a share x of old text, which trains on the same windows: its
    loss on the mixture is (1 - x) new + x old."""
    old = run["flags"]["replay"] if side == "downstream" else 1.0
    before, *after = [(1 - old) * record["downstream_loss"] + old * record["upstream_loss"] for record in run["eval"]]
    return max(after) - before


def draw_overlap(runs):
    """Height of the stability gap against the share of upstream text in the downstream distribution."""
    height = ("highest loss, minus before (nats)", dict.fromkeys(SIDES, rise))
    figure, panel = draw_shares(arms(runs, ["replay"]), "upstream text in the mixture (%)", height)
    panel.axhline(0, **BEFORE)
    panel.legend()
    return figure


OURS = {"frontier": draw_frontier, "replay": draw_replay, "overlap": draw_overlap}
