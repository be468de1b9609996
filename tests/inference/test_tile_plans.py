import jax
import numpy as np
import pytest

from dream_jax.errors import UserError
from dream_jax.inference import drawing, tile_plans, trained
from dream_jax.inference.tile_plans import Planner, Shape


def test_less_memory_gives_smaller_tiles_and_too_little_is_refused(tiny_workdir):
    model = trained.load(tiny_workdir)
    rows = drawing.make_rows(model.experiment, "ddpm", 2)
    shape = Shape((256, 192))
    whole = Planner(model, rows, 2**40)(shape)
    assert whole.tile is None
    least = Planner(model, rows, 0, tile=32)(shape)
    assert least.tile == 32 and least.used < whole.used
    limit = (least.used + whole.used) / 2
    tiled = Planner(model, rows, limit)(shape)
    assert 32 <= tiled.tile < 256 and tiled.used <= limit
    with pytest.raises(UserError, match="smallest tiles"):
        Planner(model, rows, limit + 1, program=limit)(shape)
    counted = Planner(model, rows, limit + 2**30, program=2**30)(shape)
    assert (counted.tile, counted.used) == (tiled.tile, tiled.used)


def test_on_an_accelerator_as_many_tiles_are_drawn_at_once_as_memory_holds(tiny_workdir, monkeypatch):
    model = trained.load(tiny_workdir)
    planner = Planner(model, drawing.make_rows(model.experiment, "ddpm", 2), 4.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def at_once(side, bytes_of_a_tile):
        return planner._tiles_at_once(Shape((256, 256)), side, lambda side, each: each * bytes_of_a_tile)

    # Four fit, none of two fit, eight are the most; and one tile is the whole picture.
    assert [at_once(32, 1), at_once(32, 3), at_once(32, 0), at_once(256, 0)] == [4, 1, 8, 1]


@pytest.mark.parametrize("divisor", [1, 4, 12])
def test_network_sides(divisor):
    sides = np.arange(1, 2000)
    filled = np.array([tile_plans.network_side(int(side), divisor) for side in sides])
    assert np.all(filled % divisor == 0) and np.all(filled >= sides)
    assert np.all((filled - sides < divisor) | (filled <= sides * 9 / 8))
    for start in 64, 500, 1000:
        assert len(set(filled[(sides > start) & (sides <= 2 * start)])) <= 10
