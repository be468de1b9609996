import numpy as np
import pytest

from dream_jax.inference import bands
from dream_jax.tasks import super_resolution


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("scale", "kernel", "size"),
    [
        (2, "pil_bicubic", (70, 83)),
        (3, "pil_lanczos", (61, 50)),
        (8, "pil_bilinear", (20, 23)),
    ],
)
def test_bands_of_cond_are_those_of_the_whole_to_the_bit(scale, kernel, size):
    task, low = super_resolution(scale, kernel), noise(*size, 3)
    has = tuple(scale * side for side in size)
    sides = tuple(-(-side // 16) * 16 for side in has)
    whole = np.asarray(task.condition(low[None]))[0]
    whole = np.pad(whole, [(0, sides[0] - has[0]), (0, sides[1] - has[1]), (0, 0)], mode="reflect")
    asked = []

    def low_rows(start, stop):
        asked.append(stop - start)
        return low[start:stop]

    rows = bands.filled(bands.enlarged(low_rows, size, scale, task.condition), has, sides)
    for start, stop in ((0, 1), (5, 70), (63, 66), (sides[0] - 20, sides[0]), (sides[0] - 1, sides[0])):
        np.testing.assert_array_equal(rows(start, stop), whole[start:stop])
    assert max(asked) <= bands.BLOCK // scale + 8


def test_rolling_reads_each_row_once():
    picture, read = noise(50, 4, 3), []

    def rows(start, stop):
        read.extend(range(start, stop))
        return picture[start:stop]

    rolling = bands.Rolling(rows)
    for start, stop in ((0, 16), (0, 16), (10, 26), (20, 50), (45, 50)):
        np.testing.assert_array_equal(rolling(start, stop), picture[start:stop])
    assert read == list(range(50))


def test_what_is_on_the_disk_is_read_as_it_was_written_and_leaves_nothing(tmp_path):
    pictures = {name: noise(40, 7, 3).astype(np.float32) + i for i, name in enumerate(("y", "h0"))}
    with bands.Scratch(tmp_path, pictures, (40, 7, 3)) as scratch:
        for start, stop in ((16, 40), (0, 16)):
            for name, picture in pictures.items():
                scratch.write(name, start, picture[start:stop])
        # It has no name, so that not even a process that is killed leaves it.
        assert not list(tmp_path.iterdir())
        for name, picture in pictures.items():
            np.testing.assert_array_equal(scratch.read(name, 10, 33), picture[10:33])
