"""The claims at a glance: every measure with its 95 % interval, and the range that its claim expects.

python -m paper figure claims runs/* --out claims.pdf
"""

import math

import numpy as np

from engine.figures import COLORS, new_figure
from paper.arms import studies
from paper.claims import CLAIMS, NOT_RUN, RANGES, SINGLE, verdicts

LINEAR, LIMIT = 0.01, 1.0  # nats: the axis is linear within the one, logarithmic beyond, and ends at the other
TICKS = (-1, -0.1, -0.01, 0, 0.01, 0.1, 1)
CLAIMED, MARKERS = "0.92", "oDs^vPX*"


def draw_claims(runs):
    """A forest plot of all measures that have runs: a row each, grouped by claim; a color and a marker each study."""
    judged = {name: verdicts(group) for name, group in studies(runs).items()}
    judged = {name: each for name, each in judged.items() if any(any(v.found.values()) for v in each.values())}
    rows = []  # (number of a claim, measure; None for its heading)
    for number, (_, _, measures) in CLAIMS.items():
        present = [m for m in measures if any(each[number].found.get(m) for each in judged.values())]
        rows += [(number, measure) for measure in (None, *present)] if present else []
    if not rows:
        raise ValueError("figure claims: no runs that a claim compares; see python -m paper run claims")
    figure, (panel,) = new_figure(7.2, 0.8 + (0.13 + 0.02 * len(judged)) * len(rows))
    for place, (number, measure) in enumerate(rows):
        here = [each[number] for each in judged.values()]
        if measure:
            draw_measure(panel, place, measure, [verdict.found.get(measure) for verdict in here])
        else:
            draw_heading(panel, place, f"{number}  {CLAIMS[number][0]}", here)
    for index, (name, each) in enumerate(judged.items()):
        single = all(verdict.word in (SINGLE, NOT_RUN) for verdict in each.values())
        look = {"mfc": "w", "ls": "", "label": f"{name} (one run)"} if single else {"ls": "-", "label": name}
        panel.plot([], [], MARKERS[index], color=COLORS[index], ms=4, lw=1.2, **look)
    panel.bar([0], [0], color=CLAIMED, label="claimed")
    figure.legend(loc="outside upper center", ncols=2)
    panel.set(xlim=(-LIMIT, LIMIT), ylim=(len(rows) - 0.5, -0.5))
    panel.set_xscale("symlog", linthresh=LINEAR, linscale=0.8)
    panel.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], fontsize=8)
    panel.minorticks_off()
    panel.set_xlabel("difference (nats), logarithmic beyond 0.01; 95 % intervals over seeds", fontsize=8)
    places = [place for place, (_, measure) in enumerate(rows) if measure]
    panel.set_yticks(places, [rows[place][1].words for place in places], fontsize=7)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", visible=False)
    panel.spines["left"].set_visible(False)
    panel.axvline(0, color="0.3", lw=0.8, zorder=2)
    return figure


def draw_heading(panel, place, claim, here):
    """A claim above its measures, and its verdict in the color of each study."""
    panel.axhspan(place - 0.5, place + 0.5, color="w", zorder=2.5)
    look = {"xycoords": ("figure fraction", "data"), "va": "center", "in_layout": False}
    panel.annotate(claim, (0.005, place), weight="bold", size=7.5, **look)
    words = [(v.word, COLORS[i]) for i, v in enumerate(here) if any(v.found.values()) and v.word != SINGLE]
    for column, (word, color) in enumerate(reversed(words)):
        at = (0.995 - 0.11 * column, place)
        panel.annotate(word.removesuffix(" to tell"), at, ha="right", size=7, color=color, **look)


def draw_measure(panel, place, measure, here):
    """The range that a claim expects; each study's mean and interval, a single run as an open marker without one."""
    low, high = np.clip(RANGES[measure.expected], -LIMIT, LIMIT)
    panel.barh(place, high - low, 1, low, color=CLAIMED, zorder=0)
    for index, found in enumerate(here):
        if found:
            at, look = place + 0.7 * ((index + 0.5) / len(here) - 0.5), {"color": COLORS[index], "zorder": 4}
            fill, ends = (COLORS[index], found.interval) if found.error else ("w", ())
            panel.plot(np.clip(found.mean, -LIMIT, LIMIT), at, MARKERS[index], mfc=fill, ms=3.5, ls="", **look)
            panel.plot(np.clip(ends, -LIMIT, LIMIT), [at] * len(ends), "-", lw=1.2, **look)
            for end in ends:
                if abs(end) > LIMIT:
                    panel.plot(math.copysign(LIMIT, end), at, "<" if end < 0 else ">", ms=3.5, clip_on=False, **look)
