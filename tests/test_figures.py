"""engine/figures.py, on runs with known losses: which arms there are, what is drawn, and how it is called."""

from pathlib import Path

import pytest
from conftest import ROOT, command, well

from engine import figures
from engine.figures import labels_of

FLAGS = {"init": "runs/upstream-nano-old", "upstream": "old", "downstream": "new", "replay": 0.0, "seed": 0}
FLAGS |= {"schedule": "cosine", "max_lr": 8e-3, "min_lr": 8e-4, "warmup": 0.01}
FLAGS |= {"tokens": 2000, "batch_size": 1, "context": 2}


def run_of(*losses, every=1000, **flags):
    """A run that is evaluated after so many tokens each, with these perplexities on both sides."""
    records = [
        {"tokens": float(every * number), "upstream_perplexity": loss, "downstream_perplexity": loss + 1}
        for number, loss in enumerate(losses or (5.0, 7.0, 6.0))
    ]
    train = [{"tokens": every / 10 * step, "lr": 1e-3 / step} for step in range(1, 21)]
    return {"folder": Path("r"), "flags": FLAGS | flags, "eval": records, "train": train}


@pytest.fixture
def drawn(monkeypatch):
    """draw_curves() of runs, as the figure that it would save."""
    monkeypatch.setattr(figures, "save_figure", lambda figure, out: out.append(figure))

    def draw(*runs):
        figures.draw_curves(runs, kept := [])
        return kept[0]

    return draw


def test_arms_are_told_apart_and_seeds_are_averaged(drawn):
    runs = [run_of(5.0, 7.0, 6.0 + seed + arm, seed=seed, max_lr=8e-3 + arm) for seed in (0, 1) for arm in (0, 2e-3)]
    assert labels_of(runs) == ["max LR 8e-3", "max LR 1e-2"] * 2
    panel = drawn(*runs).axes[1]
    curves = [line for line in panel.lines if line.get_label().startswith("max LR")]
    assert len(curves) == 2 and len(panel.collections) == 2  # two means, two bands
    assert curves[0].get_ydata()[-1] == pytest.approx(6.5)
    for run in runs:  # each seed with a pre-training of its own is one arm too
        run["flags"]["init"] += f"-seed-{run['flags']['seed']}"
    assert labels_of(runs) == ["max LR 8e-3", "max LR 1e-2"] * 2


@pytest.mark.parametrize("flags, labels", [
    ([{"min_lr": 8e-4}, {"min_lr": 0.0}], ["min LR 8e-4", "min LR 0e0"]),
    ([{}, {"max_lr": 1.5e-4, "min_lr": 1.5e-5}], ["max LR 8e-3", "max LR 1.5e-4"]),
    ([{}, {"schedule": "linear"}], ["cosine, max LR 8e-3", "linear, max LR 8e-3"]),
    ([{}, {"schedule": "constant", "warmup": 0}], ["cosine, warm-up 1 %, max LR 8e-3", "constant, max LR 8e-3"]),
    ([{}, {"replay": 0.05}], ["replay 0 %", "replay 5 %"]),
    ([{"downstream": "a"}, {"downstream": "b=3,old=1"}], ["a", "b=3,old=1"]),
    ([{"downstream": "x" * 500}, {}], ["x" * 80, "new"]),
    ([{"context": 128}, {"context": 256}], ["context 128", "context 256"]),
    ([{"upstream_tokens": 2_000_000}, {"upstream_tokens": 9}], ["upstream tokens 2M", "upstream tokens 9"]),
    ([{"tokens": 2_000_000}, {"tokens": 3_000_000_000}], ["tokens 2M", "tokens 3B"]),
    ([{"init": "runs/upstream-nano-old/checkpoints/step_00000100"}, {}], ["pre-trained, update 100", "pre-trained"]),
    ([{"warmup": 1e-4}, {"warmup": 0.0}], ["warm-up 0.01 % (0 updates)", "warm-up 0 %"]),
    ([{"seed": 1}, {"seed": 2}], ["max LR 8e-3, warm-up 1 %"] * 2),
])  # fmt: skip
def test_labels_name_what_differs(flags, labels):
    assert labels_of([run_of(**changes) for changes in flags]) == labels


def test_runs_on_different_text_are_different_curves(drawn):
    """A corpus that was replaced between two seeds; one that only some of the runs read makes no difference."""
    one, two, three = ({"stdlib": {"train": text, "val": "v"}} for text in ("a", "a", "b"))
    runs = [run_of(seed=0) | {"corpora": one | {"torch": {"train": "t"}}}]
    runs += [run_of(seed=1) | {"corpora": two}, run_of(seed=2) | {"corpora": three}]
    assert labels_of(runs[:2]) == ["max LR 8e-3, warm-up 1 %"] * 2
    first, second, third = labels_of(runs)
    assert first == second != third and first.startswith("max LR 8e-3, warm-up 1 %, stdlib ")
    assert len([line for line in drawn(*runs).axes[0].lines if "stdlib" in line.get_label()]) == 2


def test_a_legend_has_names_with_an_underscore_and_no_warm_up_that_was_none(drawn):
    figure = drawn(run_of(downstream="_new", warmup=1e-4), run_of(downstream="other", warmup=1e-4))
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_new", "other", "before"]


@pytest.mark.parametrize("downstreams, titles", [
    (["new"], ["Downstream: new", "Upstream: old", ""]),
    (["new", "other"], ["Downstream", "Upstream: old", ""]),
    (["old"], ["Upstream: old", ""]),
])  # fmt: skip
def test_a_title_names_only_what_all_runs_share(drawn, downstreams, titles):
    figure = drawn(*(run_of(downstream=name) for name in downstreams))
    assert [panel.get_title(loc="left") for panel in figure.axes] == titles


def test_a_curve_of_one_point_is_seen(drawn):
    alone = drawn(run_of(5.0)).axes[0].lines[0]
    assert alone.get_marker() == "o" and alone.get_xydata().tolist() == [[0.0, 6.0]]
    assert drawn(run_of()).axes[0].lines[0].get_marker() in ("", "None")


def test_tokens_are_in_units_of_their_size(drawn):
    axis = drawn(run_of()).axes[-1].xaxis
    assert [axis.get_major_formatter()(count) for count in (1000, 10**6, 1.5e9)] == ["1k", "1M", "1.5B"]
    assert "tokens" in axis.get_label_text()


def test_a_legend_stays_inside_its_figure():
    for length, count in ((3, 8), (10, 3), (17, 8), (40, 6), (70, 12)):
        groups = {f"{number} {'x' * length}": [run_of()] for number in range(count)}
        figure = figures.draw_arms(groups, "perplexity", ("downstream", "upstream"), 2000)
        figure.draw_without_rendering()
        box, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and panel.height > 80


def test_the_backend_of_a_notebook_loses_no_figure(tmp_path):
    """As in a notebook's `!python train.py`: the backend in its environment may not be installed here."""
    words = ["eval.py", "plot", ROOT / "paper/results/exercises.jsonl.gz", "--out", "r.png"]
    well(command(*words, cwd=tmp_path, MPLBACKEND="module://matplotlib_inline.backend_inline"))
    assert (tmp_path / "r.png").stat().st_size > 10_000
