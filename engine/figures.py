"""Figures in the manner of a paper: colours, axes in tokens, bands over seeds, files."""

from statistics import fmean

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


def in_tokens(axis):
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
