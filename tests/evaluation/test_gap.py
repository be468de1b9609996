import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from stand_ins import QUIET, fake, its_input, nothing, pictures_of, random_weights

from dream_jax import samplers
from dream_jax.evaluation import fixed_point, gap, two_sample
from dream_jax.files import images
from dream_jax.inference import drawing
from dream_jax.metrics import perceptual

CHANGES = "evaluation.samplers=ddim,ddpm", "evaluation.steps=1,4"
# Nothing keeps predictions in range; a sampler whose own error is small beside 3%.
EXACT = "task.name=unconditional", "task.residual=False", "sampling.clip=none", "image_size=16", "schedule.name=cosine"
EXACT = (
    *EXACT,
    "evaluation.samplers=dpmpp_2m",
    "sampling.spacing=quadratic",
    "evaluation.steps=40",
    "evaluation.batch_size=64",
)


def uint8(x0):
    return np.clip(np.round(127.5 * (x0 + 1)), 0, 255).astype(np.uint8)


def gaussian(gains_of):
    """(model, pictures) of white Gaussian pictures, and a network that multiplies by `gains_of(alpha, sigma)`."""
    pictures = uint8(0.3 * np.random.default_rng(0).standard_normal((256, 16, 16, 3)))

    def network(x, alpha):
        alpha = alpha[:, None, None, None]
        return gains_of(alpha, jnp.sqrt(1 - alpha**2)) * x

    return fake(network, *EXACT), pictures


def best_gain(alpha, sigma):
    return 0.09 * alpha / (0.09 * alpha**2 + sigma**2)


def mixture():
    """The same of pixels that are a mixture of two Gaussians, with the exact posterior mean."""
    rng = np.random.default_rng(0)
    centres = 0.4 * rng.choice([-1, 1], (256, 16, 16, 3))

    def network(x, alpha):
        alpha = alpha[:, None, None, None]
        variance = (0.1 * alpha) ** 2 + 1 - alpha**2
        means = jnp.stack([0.4 * sign + alpha * 0.01 / variance * (x - 0.4 * sign * alpha) for sign in (-1, 1)])
        shares = jnp.stack([jnp.exp(sign * 0.4 * alpha * x / variance) for sign in (-1, 1)])
        return (jnp.where(jnp.isfinite(shares), shares, 1e30) * means).sum(0) / jnp.minimum(shares, 1e30).sum(0)

    return fake(network, *EXACT), uint8(centres + 0.1 * rng.standard_normal(centres.shape))


@pytest.mark.parametrize("make", [lambda: gaussian(best_gain), mixture], ids=["gaussian", "mixture"])
def test_a_perfect_denoiser_has_no_gap(make):
    model, pictures = make()
    found = gap.measure({"perfect": model}, pictures, QUIET)["models"]["perfect"]
    assert found["gap"] == pytest.approx(1, abs=0.03) and found["variance"] == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(found["spectrum"], 1, atol=0.1)
    for row in found["rows"]:
        # Where hardly anything of it can be predicted, a slope is uncertain.
        slopes = {"x0_slope": row["logsnr"] > 0, "eps_slope": row["logsnr"] < 4}
        for name in ("eps_hat_square_ratio", "x_variance_ratio", *(name for name in slopes if slopes[name])):
            assert row[name] == pytest.approx(1, abs=0.03), (row["logsnr"], name)
    assert np.mean([row["x_distance_p"] > 0.05 for row in found["rows"]]) > 0.8


def test_a_known_bias_is_a_known_gap():
    # Drawn towards the mean, as DREAM's fixed point is.
    model, pictures = gaussian(lambda alpha, sigma: 0.9 * best_gain(alpha, sigma))
    found = gap.measure({"biased": model}, pictures, QUIET)["models"]["biased"]
    rows = drawing.make_rows(model.experiment, "dpmpp_2m", 40)
    rows = samplers.Rows(*(np.asarray(part, float) for part in rows))
    expected = fixed_point.sampled_variance(rows, 0.9 * best_gain(rows.alpha, rows.sigma)) / 0.09
    assert expected < 0.8 and found["variance"] == pytest.approx(expected, abs=0.03)
    for row in found["rows"]:
        if row["logsnr"] > 0:
            assert row["x0_slope"] == pytest.approx(1 / 0.9, abs=0.03)
    assert found["rows"][-1]["x_distance_p"] < 0.02


def test_the_discrepancy_falls_where_answers_are_drawn_to_their_mean():
    """So it is no measure of a gap: the network that says nothing has none by it, and no variance."""
    model = fake(nothing, *CHANGES)
    record = gap.measure({"constant": model}, pictures_of(model), QUIET)
    assert (record["sampler"], record["steps"], record["pictures"]) == ("ddim", 4, 2)
    found = record["models"]["constant"]
    assert found["discrepancy"] == pytest.approx(1, abs=1e-4) and found["variance"] == pytest.approx(0, abs=1e-6)
    x0, _ = model.experiment.task.make_pair(None, pictures_of(model))
    for row in found["rows"]:
        for where in ("training", "sampling"):
            assert row[f"x0_error_{where}"] == pytest.approx(np.mean(np.square(x0)), rel=1e-4)
            each = np.square(x0).mean((1, 2, 3))
            assert row[f"x0_error_{where}_spread"] == pytest.approx(np.std(each), rel=1e-3)


@pytest.mark.parametrize("channels", [3, 1])
def test_lpips_of_predictions_is_measured_where_it_is_asked_for(monkeypatch, channels):
    weights = {name: jnp.asarray(a) for name, a in random_weights(perceptual.shapes("alex")).items()}
    monkeypatch.setattr(gap.weights, "load", lambda name, folder: (weights, {}))
    model = fake(nothing, *CHANGES, "evaluation.learned=lpips_alex,", f"data.channels={channels}")
    (row, *_) = gap.measure({"constant": model}, pictures_of(model), QUIET)["models"]["constant"]["rows"]
    assert (
        row["x0_lpips_training"] == pytest.approx(row["x0_lpips_sampling"], rel=1e-4) and row["x0_lpips_training"] > 0
    )


def test_without_originals_sets_are_compared():
    model = fake(nothing, "task.name=unconditional", "task.residual=False")
    record = gap.measure({"black": model}, pictures_of(model), QUIET)
    found = record["models"]["black"]
    assert "discrepancy" not in found and "x0_error_ratio" not in found["rows"][0]
    assert found["rows"][0]["eps_hat_square_ratio"] > 0 and len(gap.panels_of(record)) == 6


def test_tables_and_plots_are_written_and_kept(tmp_path, capsys):
    models = {name: fake(residual, *CHANGES) for name, residual in (("a", nothing), ("b", its_input))}
    record = gap.measure(models, pictures_of(models["a"]), QUIET)
    gap.show(record, Console(width=250))
    assert "variance 0.000" in capsys.readouterr().out
    for _ in range(2):
        gap.write(record, tmp_path / "gap.json", overwrite=False)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"gap{step}.{kind}" for step in ("", "-1") for kind in ("json", "csv", "png")
    }
    assert json.loads((tmp_path / "gap.json").read_text()) == record
    assert images.read(tmp_path / "gap.png").std() > 0


def test_a_batch_changes_nothing():
    small, large = (fake(its_input, *CHANGES, f"evaluation.batch_size={size}") for size in (1, 2))
    a, b = (gap.measure({"m": model}, pictures_of(model), QUIET)["models"]["m"] for model in (small, large))
    assert a["gap"] == pytest.approx(b["gap"], rel=1e-5)
    assert drawing.make_rows(small.experiment, "ddim", 4).alpha[0] == pytest.approx(a["rows"][0]["alpha"])


def test_the_energy_distance_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((400, 60, 1, 4))
    sets = shared + rng.standard_normal((400, 60, 2, 4))
    found = np.array([two_sample.energy_test(pair[:, 0], pair[:, 1], 19) for pair in sets])
    assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / 20
    assert found[:, 1].mean() == pytest.approx(0.525, abs=0.06)
    assert two_sample.energy_test(sets[0, :, 0], sets[0, :, 1] + 1)[1] < 0.01


def test_octaves_share_out_the_variance():
    x = np.random.default_rng(0).standard_normal((3, 24, 16, 2)).astype(np.float32)
    spectrum = two_sample.spectrum(jnp.asarray(x))
    np.testing.assert_allclose(spectrum.sum(-1), x.var((1, 2)).mean(-1), rtol=1e-5)
    wave = np.cos(2 * np.pi * 5 * np.arange(16) / 16)[None, None, :, None] * np.ones((1, 24, 1, 1))
    np.testing.assert_allclose(two_sample.spectrum(jnp.asarray(wave)), [[0, 0, 0.5, 0]], atol=1e-6)
