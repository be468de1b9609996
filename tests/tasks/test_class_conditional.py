import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photos import noise

from dream_jax import tasks
from dream_jax.errors import UserError

LABELS = np.array([2, 0, 3, 255], np.uint8)[:, None, None, None]


def test_cond_is_a_plane_for_each_class():
    task, picture = tasks.class_conditional(4, drop_label=0.0), noise(4, 8, 8, 3)
    x0, cond = jax.jit(task.make_pair)(jax.random.split(jax.random.key(0), 4), picture, LABELS)
    np.testing.assert_allclose(x0, picture / 127.5 - 1, atol=1e-6)
    expected = np.zeros((4, 4), np.float32)
    expected[0, 2] = expected[1, 0] = expected[2, 3] = 1
    np.testing.assert_array_equal(cond, np.broadcast_to(expected[:, None, None], (4, 8, 8, 4)))
    for dtype in (np.uint16, np.float32):
        np.testing.assert_array_equal(task.condition(LABELS.astype(dtype), (8, 8)), cond)
    assert task.null is None, "its network never sees that"


def test_labels_are_dropped_by_the_share_and_by_keys_alone():
    task, count = tasks.class_conditional(3, drop_label=0.3), 4000
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), count)
    picture = jnp.zeros((count, 1, 1, 3), jnp.uint8)

    def dropped(keys, label):
        _, cond = task.make_pair(keys, picture[: len(keys)], jnp.full((len(keys), 1, 1, 1), label, jnp.uint8))
        cond = np.asarray(cond)
        gone = ~cond.any((1, 2, 3))
        assert np.all(cond[~gone, 0, 0] == np.eye(3)[label])
        return gone

    gone = dropped(keys, 1)
    assert abs(gone.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / count)
    np.testing.assert_array_equal(dropped(keys, 2), gone)
    np.testing.assert_array_equal(dropped(keys[::-1][:7], 2), gone[::-1][:7])


def test_use_drops_no_label():
    task = tasks.class_conditional(4, drop_label=1.0)
    observed = task.given_beside(noise(4, 8, 8, 3), LABELS)
    cond = task.condition(observed, (8, 8))
    assert cond[:3].any((1, 2, 3)).all() and not task.null(cond).any()


def test_classes_are_not_made_up():
    with pytest.raises(UserError, match=r"data\.label_key"):
        tasks.class_conditional(0)
    with pytest.raises(UserError, match=r"data\.label_key"):
        tasks.class_conditional(3).make_pair(None, noise(1, 8, 8, 3))
