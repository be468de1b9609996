import jax
import numpy as np
import pytest
from scipy import ndimage

from dream_jax.tasks import masks

KEYS = jax.random.split(jax.random.key(3), 48)


def drawn(kinds, share, sides=(48, 64), keys=KEYS):
    made = jax.jit(jax.vmap(lambda key: masks.draw(key, *sides, kinds, share)))(keys)
    assert made.shape == (len(keys), *sides, 1) and made.dtype == np.uint8
    assert set(np.unique(made).tolist()) <= {0, 255}
    return np.asarray(made)[..., 0] > 0


@pytest.mark.parametrize("kind", masks.MASKS)
def test_the_share_that_is_unknown_is_about_what_is_asked(kind):
    made = jax.jit(jax.vmap(lambda key, share: masks.draw(key, 48, 64, (kind,), share), (0, None)))
    for share in (0.1, 0.3, 0.5):
        found = (np.asarray(made(KEYS, share)) > 0).mean((1, 2, 3))
        assert abs(found.mean() - share) < 0.06 and found.min() > share / 2 and found.max() < share + 0.25
    assert len({mask.tobytes() for mask in np.asarray(made(KEYS, 0.3))}) > 0.4 * len(KEYS)


def is_a_box(part):
    (rows, columns), *others = ndimage.find_objects(part.astype(int))
    return not others and part[rows, columns].all()


def test_kinds_have_their_shapes():
    assert all(is_a_box(~mask) for mask in drawn(("outpainting",), 0.4))
    around = [mask[0].all() and mask[-1].all() and mask[:, 0].all() for mask in drawn(("outpainting",), 0.4)]
    assert any(around) and not all(around)
    boxes = drawn(("box",), 0.2)
    assert any(is_a_box(mask) for mask in boxes) and not all(is_a_box(mask) for mask in boxes)
    # No thinner than a pen anywhere, and no more of them than there are strokes.
    for mask in drawn(("strokes",), 0.3):
        assert 1 <= ndimage.label(mask, np.ones((3, 3)))[1] <= masks.STROKES
        assert ndimage.binary_opening(np.pad(mask, 2, "edge"), np.ones((2, 2)))[2:-2, 2:-2].sum() > 0.95 * mask.sum()
    assert all(ndimage.label(mask)[1] > 100 for mask in drawn(("pixels",), 0.3))


def test_all_kinds_that_are_named_come_and_each_picture_has_its_own():
    kinds = tuple(masks.MASKS)
    mixed = drawn(kinds, 0.3)
    looks = {
        "pixels": lambda mask: ndimage.label(mask)[1] > 100,
        "outpainting": lambda mask: is_a_box(~mask),
        "box": is_a_box,
    }
    for look in looks.values():
        assert 0 < sum(map(look, mixed)) < 0.6 * len(KEYS)
    assert sum(any(look(mask) for look in looks.values()) for mask in mixed) < 0.95 * len(KEYS)
    np.testing.assert_array_equal(drawn(kinds, 0.3, keys=KEYS[5:6]), mixed[5:6])


@pytest.mark.parametrize("sides", [(1, 1), (2, 9)])
def test_small_pictures_have_masks_too(sides):
    made = drawn(("box", "strokes", "outpainting"), 0.5, sides)
    assert made.any() and not made.all()
