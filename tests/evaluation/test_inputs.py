import io

import numpy as np
import pytest
from rich.console import Console
from stand_ins import fake, nothing, pictures_of

from dream_jax.data.indexed import Pair
from dream_jax.errors import UserError
from dream_jax.evaluation import inputs
from dream_jax.tasks import value_range


def test_the_baseline_is_the_low_resolution_picture_enlarged():
    model = fake(nothing)
    pictures = pictures_of(model)
    made = inputs.make_inputs(model.experiment, pictures)
    assert made.observed.shape[1:3] == (pictures.shape[1] // 2, pictures.shape[2] // 2)
    assert made.observed.dtype == np.uint8
    np.testing.assert_array_equal(value_range.to_uint8(made.given["cond"]), made.baseline)
    assert [len(array) for array in (made.first(1).pictures, *made.first(1).given.values())] == [1, 1, 1]


def test_a_classical_method_shows_its_name_and_how_far_it_is():
    model, file = fake(nothing, "task.name=denoising", "image_size=16"), io.StringIO()
    made = inputs.make_inputs(
        model.experiment, pictures_of(model), classical=True, console=Console(file=file, width=99)
    )
    assert list(made.baselines) == ["noisy", "non-local means"] and len(made.baselines["non-local means"]) == 2
    assert "non-local means" in file.getvalue() and "2/2" in file.getvalue()
    inputs.make_inputs(model.experiment, pictures_of(model), console=Console(file=file))
    assert file.getvalue().count("non-local means") == 1, "which was not asked for"


def test_pictures_of_which_a_mask_leaves_something_to_paint_are_counted():
    model = fake(nothing, "task.name=inpainting")
    pictures = pictures_of(model)
    masks = np.zeros((*pictures.shape[:3], 1), np.uint8)
    masks[0, :3] = 255
    assert inputs.make_inputs(model.experiment, Pair(pictures, masks)).painted == 1
    assert inputs.make_inputs(model.experiment, pictures).painted == len(pictures) == 2


def test_unconditional_models_draw_from_nothing():
    model = fake(nothing, "task.name=unconditional")
    pictures = pictures_of(model)
    made = inputs.make_inputs(model.experiment, pictures)
    assert made.observed is None and made.baseline is None and made.first(1).observed is None
    assert made.given["cond"].shape == (*pictures.shape[:3], 0)


def test_what_cannot_be_measured_is_refused_before_the_work(tmp_path):
    models = {"long": fake(nothing, "evaluation.steps=1,300"), "short": fake(nothing, "schedule.num_steps=200")}
    with pytest.raises(UserError, match="short: 300 sampling steps"):
        inputs.check_models(models)
    coarse = fake(nothing, "network.channel_multipliers=1,2,2,2,2,2", "image_size=64")
    models = {"fine": fake(nothing, "evaluation.crop=48"), "coarse": coarse}
    with pytest.raises(UserError, match=r"evaluation\.crop = 48.* 64, by which coarse"):
        inputs.check_models(models)
    assert inputs.check_models({"a": fake(nothing)}) is None
    other = fake(nothing, f"data.folder={tmp_path}")
    assert "a's; others" in inputs.check_models({"a": fake(nothing), "b": other})


def test_models_of_other_levels_are_not_measured_side_by_side():
    for change, said in (
        ("data.channels=1", r"data\.channels are 3 and 1"),
        ("data.bits=16", r"data\.bits are 8 and 16"),
    ):
        with pytest.raises(UserError, match=f"a and b cannot be compared: their {said}"):
            inputs.check_models({"a": fake(nothing), "b": fake(nothing, change)})
    for change in ("data.range=0,9", "data.clip=True"):
        note = inputs.check_models({"a": fake(nothing), "b": fake(nothing, change)})
        assert "read by data.range and data.clip of a" in note and "held-out" not in note


def test_of_a_persons_own_pictures_alone_it_does_not_matter_what_else_models_had(tmp_path):
    models = {"a": fake(nothing), "b": fake(nothing, f"data.folder={tmp_path}", "data.clip=True")}
    assert "held-out" in inputs.check_models(models) and "data.clip" in inputs.check_models(models)
    given = inputs.check_models(models, given=True)
    assert "held-out" not in given and "data.clip" in given
