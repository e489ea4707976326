"""The comparison on real stars, on stars made of the shipped model: nothing is downloaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import xpkern as xk
from bench import real_stars
from bench.__main__ import main
from bench.real_stars import (
    boosted_trees,
    compare_methods,
    half_range,
    lines,
    neighbours,
    networks,
    ours,
    ratio_interval,
    stars_of,
)
from xpkern.grid import N_XP
from xpkern.train.apogee_library import N_OBSERVED, Library, error_correlation

N = 240


@pytest.fixture(scope="module")
def stars():
    """Stars of the shipped model, 1 % of noise in each sample."""
    rng = np.random.default_rng(5)
    model, prior = xk.load_model()
    low, high = prior.support()
    theta = prior.sample(N, rng).clip(low + 0.1, high - 0.1)
    params = np.column_stack([theta, rng.uniform(0.0, 0.3, N), rng.uniform(0.5, 3.0, N)])
    flux = np.exp(model.ln_flux(params))[:, :N_OBSERVED]
    error = 0.01 * flux
    flux = flux + error * rng.standard_normal(flux.shape)
    g = 12.0 - 2.5 * np.log10(flux[:, :N_XP].mean(axis=1) / flux[:, :N_XP].mean())
    return stars_of(Library(np.arange(N) * 7 + 1, flux, error, theta, np.full((N, 3), 0.02), np.full(N, np.nan), g))


def test_ours_is_the_fit_in_the_units_of_the_library(stars):
    model, prior = xk.load_model()
    few = stars.select(np.arange(24))
    estimate = ours(model, prior, "auto")(stars, few)
    observed = real_stars.observations(few.library, model.noise, correlation=error_correlation())
    found = xk.fit(observed, model, prior)
    np.testing.assert_array_equal(estimate, found.params[:, :3])


@pytest.mark.parametrize("method", ["boosted trees", "neighbours", "networks"])
def test_peers_learn(stars, method, monkeypatch):
    if method == "networks":
        jax_mlp = pytest.importorskip("bench.peers.jax_mlp")
        monkeypatch.setattr(jax_mlp, "HIDDEN", (16,))
        monkeypatch.setattr(jax_mlp, "BATCH", 50)
    learner = {"boosted trees": boosted_trees(15), "neighbours": neighbours, "networks": networks(1, True, 30)}[method]
    training, judges = stars.select(np.arange(200)), stars.select(np.arange(200, N))
    with threadpool_limits(1):
        off = learner(training, judges) - judges.library.theta
    # far better than to say the same of every star
    assert half_range(off)[0] < 0.7 * half_range(judges.library.theta)[0]


def test_figures_and_ratios_are_those_of_the_same_stars(stars, monkeypatch):
    monkeypatch.setattr(real_stars, "RESAMPLED", 20)
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((N, 3))

    def with_noise(scale, *, lost=0):
        def method(training, judges):
            estimate = judges.library.theta + scale * noise
            estimate[:lost] = np.nan
            return estimate

        return method

    methods = {"ours": with_noise(0.1, lost=5), "worse": with_noise(0.2), "same": with_noise(0.1)}
    result = compare_methods(stars, stars, methods, print)
    assert result["stars"] == {"training": N, "judged by": N - 5, "without an estimate": 5}
    expected = half_range(0.1 * noise[5:]) * [1000, 1, 1]
    np.testing.assert_allclose(result["figures"]["all"]["ours"]["scatter"], expected, rtol=1e-9)
    np.testing.assert_allclose(result["ratios"]["all"]["worse"]["ratio"], 0.5, rtol=1e-9)
    for end in ("lower", "upper"):
        np.testing.assert_allclose(result["ratios"]["all"]["same"][end], 1.0, rtol=1e-9)
    assert np.mean(np.abs(100 * noise[5:, 0]) > 300) == result["figures"]["all"]["ours"]["outliers"][0]
    by_giants = result["figures"]["giants"]["stars"] + result["figures"]["dwarfs"]["stars"]
    by_magnitude = sum(found["stars"] for name, found in result["figures"].items() if name.startswith("G "))
    assert by_giants == by_magnitude == N - 5
    json.dumps(result)
    text = lines(result)
    assert any("0.50 (0.50-0.50)" in line for line in text)


def test_an_interval_has_the_true_ratio_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(real_stars, "RESAMPLED", 60)
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = rng.standard_normal((150, 1)), 2.0 * rng.standard_normal((150, 1))
        interval = ratio_interval(a, b, seed)
        inside += interval["lower"][0] <= 0.5 <= interval["upper"][0]
    # 38 expected; fewer than 31 of 40 has a probability below 1e-4 at 95 %
    assert inside >= 31


def test_the_command_judges_by_the_part_that_is_asked_for(stars, monkeypatch, tmp_path):
    seen = {}

    def judged(training, judges, methods, log):
        seen[name] = (set(training.library.source_id % 5), set(judges.library.source_id % 5), list(methods))
        return {"stars": {}, "figures": {}, "ratios": {}}

    monkeypatch.setattr(real_stars, "read_stars", lambda cache: stars)
    monkeypatch.setattr(real_stars, "compare_methods", judged)
    for name, arguments in (("default", []), ("test", ["--part", "test"])):
        assert main(["real_stars", "--output", str(tmp_path), *arguments]) == 0
        written = json.loads((tmp_path / "real_stars.json").read_text())
        assert written["machine"]["part"] == {"default": "validation", "test": "test"}[name]
    assert seen["default"][:2] == ({2, 3, 4}, {1})
    assert seen["test"][:2] == ({2, 3, 4}, {0})
    assert seen["default"][2][0] == "xpkern"
