"""Agreement with arrays that the official PyTorch implementation made, where those are at hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax import diffusion, dream, noise_schedule, sampling

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"

pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference arrays are not at ../shared/reference beside this repository"
)


def arrays(name):
    with np.load(REFERENCE / name) as file:
        return dict(file)


def nhwc(a):
    return jnp.asarray(np.moveaxis(a, 1, -1))


def schedule_of(z):
    return noise_schedule.linear(int(z["num_timesteps"]), float(z["beta_start"]), float(z["beta_end"]))


def toy_network(z):
    """The denoiser of the reference runs: tanh(conv(concat[cond, x]) + alpha)."""
    kernel = jnp.asarray(np.transpose(z["toy_conv_oihw"], (2, 3, 1, 0)))

    def predict(cond, x, alpha):
        y = jax.lax.conv_general_dilated(
            jnp.concatenate([cond, x], -1), kernel, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )  # fmt: skip
        return jnp.tanh(y + alpha[:, None, None, None])

    return predict


def test_schedule():
    z = arrays("dream_objective.npz")
    np.testing.assert_allclose(schedule_of(z).alphas_bar[1:], z["alphas_cumprod"], atol=1e-6)


@pytest.mark.parametrize("p", [0, 1, 2])
def test_objective(p):
    z = arrays("dream_objective.npz")
    x0, cond, eps = (nhwc(z[name]) for name in ("hr_nchw", "cond_nchw", "noise_nchw"))
    z_p = {name.removeprefix(f"p_{p}/"): value for name, value in z.items() if name.startswith(f"p_{p}/")}
    predict, alpha = toy_network(z), jnp.asarray(z_p["sqrt_alpha_bar"])
    sigma = jnp.sqrt(1 - alpha**2)

    np.testing.assert_allclose(diffusion.add_noise(x0, eps, alpha, sigma), nhwc(z_p["x_t_nchw"]), atol=1e-5)
    eps_hat = predict(cond, nhwc(z_p["x_t_nchw"]), alpha)
    np.testing.assert_allclose(eps_hat, nhwc(z_p["self_estimate_eps_nchw"]), atol=1e-5)

    lam = dream.power_weight(sigma, float(p))
    x_t, target = dream.training_pair(lambda x: predict(cond, x, alpha), x0, eps, alpha, sigma, lam)
    np.testing.assert_allclose(x_t, nhwc(z_p["x_rectified_nchw"]), atol=1e-5)
    np.testing.assert_allclose(target, nhwc(z_p["target_nchw"]), atol=1e-5)

    def network(x):
        return predict(cond, x, alpha)

    losses, _ = dream.dream(network, network, x0, eps, alpha, sigma, lam)
    np.testing.assert_allclose(jnp.mean(losses), z_p["l1_mean"], atol=1e-5)


def test_ancestral_chain():
    z = arrays("ancestral_chain.npz")
    schedule, predict, cond = schedule_of(z), toy_network(z), nhwc(z["cond_nchw"])

    @jax.jit
    def move(x, alpha, sigma, alpha_to, noise):
        level = jnp.full(x.shape[:1], alpha)
        x0_hat = jnp.clip(diffusion.to_x0("eps", predict(cond, x, level), x, alpha, sigma), -1, 1)
        return sampling.ddpm_step(x, x0_hat, alpha, alpha_to, noise)

    x = nhwc(z["x_T_nchw"])
    for row, t in enumerate(range(schedule.num_steps, 0, -1)):
        levels = map(jnp.float32, (schedule.alpha[t], schedule.sigma[t], schedule.alpha[t - 1]))
        x = move(x, *levels, nhwc(z["noise_per_step"][row]))
        np.testing.assert_allclose(x, nhwc(z["x_per_step"][row]), atol=1e-4)
