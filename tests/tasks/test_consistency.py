import jax.numpy as jnp
import numpy as np
import pytest
from photos import PHOTOS

from dream_jax import tasks
from dream_jax.files import images
from dream_jax.tasks import resize


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_result_is_compared_with_what_was_observed_in_whole_grey_levels(dtype):
    high = np.stack([images.read(PHOTOS / name)[:128, :128] for name in ("coffee.png", "astronaut.png")]).astype(dtype)
    low = resize.resize(high, 32, 32)
    task = tasks.super_resolution(4)
    np.testing.assert_array_equal(task.consistency(high, low), 0)
    shifted = jnp.where(low > 127, low - 3, low + 3)
    np.testing.assert_allclose(task.consistency(high, shifted.astype(np.uint8)), (3 / 255) ** 2, rtol=1e-5)
    assert np.all(np.asarray(tasks.super_resolution(4, "pil_box").consistency(high, low)) > 0)


def test_where_nothing_is_observed_there_is_nothing_to_agree_with():
    assert tasks.unconditional().consistency is None
