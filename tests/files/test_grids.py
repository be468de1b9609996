import numpy as np
import pytest
from photos import noise

from dream_jax.files import grids


def test_grid_holds_every_picture_enlarged():
    high, low = noise(2, 32, 48, 3), noise(2, 8, 12, 3)
    picture = grids.grid({"LR": low, "a label that is far wider than its column is": high}, ["first", "second"])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    for cells, factor in ((low, 16), (high, 4)):
        for cell in cells:
            enlarged = cell.repeat(factor, 0).repeat(factor, 1)
            assert enlarged.tobytes() in {
                picture[y : y + 128, x : x + 192].tobytes()
                for y, x in zip(*np.nonzero((picture == enlarged[0, 0]).all(-1)), strict=True)
            }
    with pytest.raises(ValueError, match="captions"):
        grids.grid({"HR": high}, ["one"])
    for wrong in (noise(2, 10, 12, 3), noise(1, 8, 12, 3), noise(2, 8, 8, 3)):
        with pytest.raises(ValueError, match="whole fraction"):
            grids.grid({"HR": high, "LR": wrong})
