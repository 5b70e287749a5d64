"""schedule.py against the numbers that the paper, its authors' code and Pythia's own logs give."""

import math

import pytest
from conftest import command, refused

from schedule import SCHEDULES, learning_rate, warmup_updates

PAPER = {"updates": 131_296, "max_lr": 3e-4, "min_lr": 3e-5, "warmup": 0.01}


def test_warmup_updates_are_the_papers():
    assert [warmup_updates(131_296, share) for share in (0, 0.005, 0.01, 0.02)] == [0, 656, 1313, 2626]


@pytest.mark.parametrize("share, ratio", [(0.05, 1.000), (0.168, 0.995), (0.5, 0.926), (0.7, 0.758), (0.8, 0.559)])
def test_clipped_cosine_against_the_textbook(share, ratio):
    update = round(share * PAPER["updates"])
    clipped = learning_rate(update, **PAPER, schedule="cosine-clipped")
    assert clipped / learning_rate(update, **PAPER, schedule="cosine") == pytest.approx(ratio, abs=5e-4)


def test_pythias_own_rates():
    pythia = {"updates": 143_000, "max_lr": 3e-4, "min_lr": 3e-5, "warmup": 0.01, "schedule": "cosine-clipped"}
    assert learning_rate(10_000, **pythia) == pytest.approx(2.973e-4, abs=5e-8)
    assert learning_rate(27_000, **pythia) == pytest.approx(2.769e-4, abs=6e-8)
    assert learning_rate(115_138, **pythia) > 3e-5
    assert learning_rate(115_139, **pythia) == learning_rate(143_000, **pythia) == 3e-5


def test_clipped_cosine_is_constant_from_240_billion_tokens():
    floor = 105_716  # 80.5 % of all updates
    before, after = (learning_rate(u, **PAPER, schedule="cosine-clipped") for u in (floor - 1, floor))
    assert before > after == 3e-5
    assert floor * 1104 * 2048 == pytest.approx(239.0e9, rel=0.003)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_from_zero_to_its_peak_and_stays_at_its_minimum(name):
    rates = [learning_rate(u, 1000, 2.0, 0.2, 0.1, name) for u in range(1, 1001)]
    assert rates[0] == pytest.approx(0.02)  # the first update moves already
    assert rates[99] == 2.0 == max(rates)  # update W has the peak
    assert rates[:100] == sorted(rates[:100])
    assert learning_rate(1200, 1000, 2.0, 0.2, 0.1, name) == rates[-1]  # after the end
    assert learning_rate(1, 10_000, 1.0, 0.1, 0.0, name) == pytest.approx(1.0, abs=2e-3)  # without a warm-up
    if name == "constant":
        assert set(rates[99:]) == {2.0}
    else:
        assert rates[-1] == pytest.approx(0.2)
        assert rates[99:] == sorted(rates[99:], reverse=True)


def test_infinite_schedules_phases():
    def rate(update, name):
        return learning_rate(update, 1010, 3e-4, 3e-5, 0.01, name)  # 10 updates of warm-up, 1,000 after it

    for name in ("infinite-cosine", "infinite-rsqrt"):
        assert {rate(u, name) for u in range(610, 861)} == {(3e-4 + 3e-5) / 2}  # 1.65e-4, the follow-up's
        halfway = rate(935, name)  # the annealing is exponential: the middle is the geometric mean
        assert halfway == pytest.approx(math.sqrt(1.65e-4 * 3e-5))
    assert rate(310, "infinite-cosine") == pytest.approx((3e-4 + 1.65e-4) / 2)
    f = 1 / math.sqrt(1 + 10 * 0.5) - 1
    assert rate(310, "infinite-rsqrt") == pytest.approx(3e-4 + (1.65e-4 - 3e-4) * f / (1 / math.sqrt(11) - 1))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup, min_lr", [(0.7, 0.1), (0.9, 0.1), (1.0, 0.1), (0.0, 0.0), (0.9, 0.0)])
def test_odd_shares_stay_within_bounds(name, warmup, min_lr):
    rates = [learning_rate(u, 50, 1.0, min_lr, warmup, name) for u in range(1, 51)]
    assert all(0 <= r <= 1.0 for r in rates)


def test_drawing(tmp_path):  # whatever screen a notebook names
    for name in ("a.png", "b.pdf"):
        notebook = "module://matplotlib_inline.backend_inline"
        assert command("schedule.py", "--out", name, cwd=tmp_path, MPLBACKEND=notebook).returncode == 0
        assert (tmp_path / name).stat().st_size > 5000
    for name in ("no/such/folder.png", "figure"):
        refused(command("schedule.py", "--out", name, cwd=tmp_path), f"cannot write {name}:")
