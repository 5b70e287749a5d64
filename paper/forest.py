"""The claims at a glance: every measure with its 95 % interval, and the range that its claim expects.

python -m paper figure claims runs/* --out claims.pdf
"""

import math

from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from matplotlib.transforms import blended_transform_factory

from engine.figures import COLOURS, new_figure
from paper.arms import studies
from paper.claims import CLAIMS, NOT_RUN, SINGLE, verdicts

LINEAR, LIMIT = 0.01, 1.0  # nats: the axis is linear within the one, logarithmic beyond, and ends at the other
CLAIMED, MARKERS = "0.92", "oDs^vPX*"
TICKS = (-1, -0.1, -0.01, 0, 0.01, 0.1, 1)


def draw_claims(runs):
    """A forest plot of all measures that have runs: a row each, grouped by claim; a colour and a marker each study."""
    judged = {name: verdicts(group) for name, group in studies(runs).items()}
    judged = {name: each for name, each in judged.items() if any(any(verdict.found) for verdict in each.values())}
    rows = []  # (number of a claim, measure; None for its heading)
    for number, (_, _, measures) in CLAIMS.items():
        present = [measure for measure in measures if any(found_of(each[number], measure) for each in judged.values())]
        rows += [(number, measure) for measure in (None, *present)] if present else []
    if not rows:
        raise ValueError("figure claims: no runs that a claim compares; see python -m paper run claims")
    figure, (panel,) = new_figure(7.2, 0.8 + (0.13 + 0.02 * len(judged)) * len(rows))
    panel.set(xlim=(-LIMIT, LIMIT), ylim=(len(rows) - 0.5, -0.5))
    panel.set_xscale("symlog", linthresh=LINEAR, linscale=0.8)
    panel.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], fontsize=8)
    panel.minorticks_off()
    panel.grid(axis="y", visible=False)
    panel.axvline(0, color="0.3", lw=0.8, zorder=2)
    places = [place for place, (_, measure) in enumerate(rows) if measure]
    panel.set_yticks(places, [rows[place][1].words for place in places], fontsize=7)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    for place, (number, measure) in enumerate(rows):
        verdicts_here = {name: each[number] for name, each in judged.items()}
        if measure:
            draw_measure(panel, place, measure, {name: found_of(v, measure) for name, v in verdicts_here.items()})
        else:
            draw_heading(panel, place, number, verdicts_here)
    for index, (name, each) in enumerate(judged.items()):
        single = all(verdict.word in (SINGLE, NOT_RUN) for verdict in each.values())
        look = {"mfc": "w", "ls": "", "label": f"{name} (one run)"} if single else {"ls": "-", "label": name}
        panel.plot([], [], MARKERS[index], color=COLOURS[index], ms=4, lw=1.2, **look)
    panel.bar([0], [0], color=CLAIMED, label="claimed")
    panel.set_xlabel("difference (nats), logarithmic beyond 0.01; 95 % intervals over seeds", fontsize=8)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def found_of(verdict, measure):
    """The Estimate of a measure; None without runs."""
    return dict(zip(verdict.measures, verdict.found, strict=True)).get(measure)


def draw_heading(panel, place, number, verdicts_here):
    """The claim above its measures, and its verdict in the colour of each study."""
    panel.axhspan(place - 0.5, place + 0.5, color="w", zorder=2.5)
    across = blended_transform_factory(panel.figure.transFigure, panel.transData)
    panel.text(0.005, place, f"{number}  {CLAIMS[number][0]}", transform=across, va="center", weight="bold", size=7.5)
    words = [
        TextArea(verdict.word.removesuffix(" to tell"), textprops={"color": COLOURS[index], "size": 7})
        for index, verdict in enumerate(verdicts_here.values())
        if any(verdict.found) and verdict.word != SINGLE
    ]
    box = HPacker(children=words, pad=0, sep=8)
    panel.add_artist(AnnotationBbox(box, (0.995, place), xycoords=across, box_alignment=(1, 0.5), frameon=False, pad=0))
    for artist in (panel.texts[-1], panel.artists[-1]):
        artist.set_in_layout(False)


def draw_measure(panel, place, measure, found):
    """The range that a claim expects, each study's mean and interval; a single run is an open marker without one."""
    low, high = (min(max(end, -LIMIT), LIMIT) for end in measure.expected)
    panel.barh(place, high - low, 1, low, color=CLAIMED, zorder=0)
    for index, each in enumerate(found.values()):
        if not each:
            continue
        at, look = place + 0.7 * ((index + 0.5) / len(found) - 0.5), {"color": COLOURS[index], "zorder": 4}
        fill = COLOURS[index] if each.error else "w"
        panel.plot(min(max(each.mean, -LIMIT), LIMIT), at, MARKERS[index], mfc=fill, ms=3.5, ls="", **look)
        if each.error:
            panel.plot([max(each.interval[0], -LIMIT), min(each.interval[1], LIMIT)], [at, at], "-", lw=1.2, **look)
            for end, marker in zip(each.interval, "<>", strict=True):
                if abs(end) > LIMIT:
                    panel.plot(math.copysign(LIMIT, end), at, marker, ms=3.5, clip_on=False, **look)
