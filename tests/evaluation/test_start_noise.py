import pytest
from stand_ins import QUIET, fake, its_input, nothing, pictures_of

from dream_jax.errors import UserError
from dream_jax.evaluation import measuring, start_noise


def test_starting_noises_are_ranked():
    model = fake(its_input, "evaluation.steps=1,")
    ranking = start_noise.find_start(model, pictures_of(model), 3, QUIET)
    assert sorted(entry["start_seed"] for entry in ranking) == [0, 1, 2]
    scores = [entry["psnr"] for entry in ranking]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    best = fake(its_input, "evaluation.steps=1,", f"sampling.start_seed={ranking[0]['start_seed']}")
    record, _ = measuring.evaluate({"a": best}, pictures_of(best), QUIET)
    assert record["rows"][1]["psnr"] == pytest.approx(scores[0], rel=1e-6)


def test_starting_noises_of_grey_pictures_of_16_bits_are_ranked():
    model = fake(its_input, "evaluation.steps=1,", "data.channels=1", "data.bits=16")
    (entry,) = start_noise.find_start(model, pictures_of(model), 1, QUIET)
    started = fake(its_input, "evaluation.steps=1,", "data.channels=1", "data.bits=16", "sampling.start_seed=0")
    record, _ = measuring.evaluate({"a": started}, pictures_of(started), QUIET)
    assert record["rows"][1]["psnr"] == pytest.approx(entry["psnr"], rel=1e-6)


def test_unconditional_models_have_no_common_start():
    model = fake(nothing, "task.name=unconditional")
    with pytest.raises(UserError, match="unconditional"):
        start_noise.find_start(model, pictures_of(model), 2, QUIET)
