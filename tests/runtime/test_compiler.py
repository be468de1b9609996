import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dream_jax.networks.convolution import conv_general_dilated
from dream_jax.runtime import compiler

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(autouse=True)
def asked_anew():
    compiler.options.cache_clear()
    yield
    compiler.options.cache_clear()


def test_what_the_user_set_is_left(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{compiler.NAME}=")
    assert compiler.options() == {}


@pytest.mark.parametrize(("attribute", "value"), [("NAME", "xla_unknown_option"), ("VALUE", "UNKNOWN_VALUE")])
def test_an_option_that_jaxlib_does_not_know_is_left_out(monkeypatch, attribute, value):
    monkeypatch.setattr(compiler, attribute, value)
    assert compiler.options() == {}


def test_gradients_are_those_without_options():
    draw = np.random.default_rng(0).normal
    x, w = (jnp.asarray(draw(size=shape), jnp.float32) for shape in ((2, 16, 16, 8), (3, 3, 8, 8)))

    def loss(w):
        # Twice, so that there are gradients of kernels and of pictures.
        h = jnp.tanh(conv_general_dilated(x, w, (1, 1), "SAME"))
        return jnp.mean(conv_general_dilated(h, w, (1, 1), "SAME") ** 2)

    gradient = jax.grad(loss)
    wanted = jax.jit(gradient)(w)
    found = jax.jit(gradient, compiler_options=compiler.options())(w)
    np.testing.assert_allclose(found, wanted, atol=2e-6 * float(jnp.abs(wanted).max()))
