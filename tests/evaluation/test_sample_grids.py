import numpy as np
import pytest
from stand_ins import fake, its_input, pictures_of

from dream_jax.evaluation.sample_grids import make_sampler


@pytest.mark.parametrize(("change", "across"), [("seed=0", 4), ("task.name=unconditional", 3)])
def test_training_shows_the_same_inputs_and_noise_each_time(change, across):
    """Low resolution, bicubic, drawn, original; or as many pictures as asked for, even more than are held out."""
    model = fake(its_input, change, "samples.count=3", "evaluation.pictures=2")
    sampler = make_sampler(model.experiment, pictures_of(model), model.mesh)
    grid = sampler(model.params)
    np.testing.assert_array_equal(sampler(model.params), grid)
    assert across * 128 < grid.shape[1] < (across + 1) * 128 and grid.dtype == np.uint8
