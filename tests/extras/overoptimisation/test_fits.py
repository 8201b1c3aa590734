"""Fits of over-optimisation curves, against curves with known coefficients."""

import math

import numpy as np
import pytest

from minirlhf.errors import InputError
from minirlhf.extras.overoptimisation.fits import Curve, fit, gain_at, peak_of

D = np.array([0.0, 0.3, 0.7, 1.2, 1.9, 2.6])
FORMS = ("best_of_n", "rl")


def exact(form, alpha, beta, d=D):
    return Curve(d, gain_at(form, d, alpha, beta))


def test_the_forms_are_those_of_the_paper():
    # d = 2: best of n 2 (0.9 - 0.3 * 2) = 0.6; RL 2 (0.9 - 0.3 log 2)
    two = np.array([2.0])
    assert gain_at("best_of_n", two, 0.9, 0.3)[0] == pytest.approx(0.6)
    assert gain_at("rl", two, 0.9, 0.3)[0] == pytest.approx(1.8 - 0.6 * math.log(2))
    assert gain_at("rl", np.zeros(1), 0.9, 0.3)[0] == 0  # the limit of d log d


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 0.3), (1.5, -0.2), (-0.4, 0.1), (0.0, 0.0)])
def test_an_exact_curve_gives_alpha_and_beta_back(form, alpha, beta):
    found = fit(form, [exact(form, alpha, beta)])
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-10)
    assert found.r2 == (pytest.approx(1) if alpha else None)  # a gain of 0 everywhere has no variance to explain
    assert found(D) == pytest.approx(gain_at(form, D, alpha, beta), abs=1e-10)


def test_the_fit_is_the_least_squares_solution():
    """The gradient of the squared error is 0, found by moving each coefficient."""
    gain = gain_at("rl", D, 1.0, 0.4) + np.array([0.0, 0.1, -0.2, 0.05, 0.1, -0.1])
    found = fit("rl", [Curve(D, gain)])

    def error(alpha, beta):
        return np.square(gain - gain_at("rl", D, alpha, beta)).sum()

    best = error(found.alpha, found.beta)
    for step in (1e-3, -1e-3):
        assert error(found.alpha + step, found.beta) > best < error(found.alpha, found.beta + step)
    assert found.r2 == pytest.approx(1 - best / np.square(gain - gain.mean()).sum())


@pytest.mark.parametrize("form", FORMS)
def test_the_peak_is_the_greatest_gain(form):
    grid = np.linspace(0, 10, 100_001)
    assert peak_of(form, 0.9, 0.3) == pytest.approx(grid[gain_at(form, grid, 0.9, 0.3).argmax()], abs=1e-3)
    assert peak_of(form, 0.9, -0.3) is None and peak_of(form, 0.9, 0.0) is None


def test_a_curve_that_only_falls_has_no_peak_and_a_late_peak_is_finite():
    assert peak_of("best_of_n", -0.1, 0.3) is None
    assert math.isfinite(peak_of("rl", 1.0, 1e-9))


@pytest.mark.parametrize("form", FORMS)
def test_the_band_spans_the_seeds_and_has_no_width_if_they_agree(form):
    equal = fit(form, [exact(form, 0.9, 0.3)] * 5)
    assert equal.band(D) == pytest.approx(np.stack([equal(D)] * 2), abs=1e-9)
    found = fit(form, [exact(form, alpha, 0.3) for alpha in (0.7, 0.8, 0.9, 1.0, 1.1)])
    low, high = found.band(D)
    assert (low[1:] < found(D)[1:]).all() and (found(D)[1:] < high[1:]).all()
    (alpha_low, alpha_high), beta_ends = found.intervals()
    assert 0.7 <= alpha_low < 0.9 < alpha_high <= 1.1
    assert beta_ends == pytest.approx([0.3, 0.3], abs=1e-9)


def test_the_bootstrap_repeats():
    curves = [exact("rl", alpha, 0.3) for alpha in (0.7, 0.9, 1.1)]
    assert (fit("rl", curves).draws == fit("rl", curves).draws).all()


def test_whole_seeds_are_drawn():
    """Alpha of two exact curves is always a mean of the curves' own alphas: 0, 1/2 or 1 of the second."""
    found = fit("best_of_n", [exact("best_of_n", alpha, 0.3) for alpha in (0.6, 1.0)])
    assert set(np.unique(found.draws[:, 0].round(9))) == {0.6, 0.8, 1.0}


def test_a_single_seed_has_no_band():
    found = fit("rl", [exact("rl", 0.9, 0.3)])
    assert found.band(D) is None and found.intervals() is None


@pytest.mark.parametrize("d", [[0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0]])
def test_too_few_distances_are_refused(d):
    with pytest.raises(InputError, match="needed two different distances above 0"):
        fit("rl", [exact("rl", 0.9, 0.3), exact("rl", 0.9, 0.3, np.array(d))])
