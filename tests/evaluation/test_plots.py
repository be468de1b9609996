import math

import pytest

from dream_jax.evaluation import plots
from dream_jax.files import images


def test_a_run_shows_its_training(tiny_workdir):
    assert images.read(tiny_workdir / "training.png").std() > 0


@pytest.mark.parametrize("consistency", [0.0, 1e-4])
def test_a_measure_that_is_zero_throughout_has_a_plot(consistency, tmp_path):
    """What is known of a masked picture comes back to the bit; warnings are errors here."""
    head = {"model": "m", "sampler": "ddim", "psnr": 30.0, "consistency": consistency}
    rows = [{**head, "model": None, "sampler": None, "steps": 0, "name": "masked"}]
    rows += [{**head, "name": "ddim", "steps": n, "consistency": n * consistency, "psnr": 30.0 + n} for n in (2, 5)]
    plots.metrics_against_steps({"rows": rows}, ["psnr", "consistency"], tmp_path / "plot.png")
    assert images.read(tmp_path / "plot.png").std() > 0


def test_a_run_of_one_log_line_shows_it(tmp_path):
    lines = [{"step": 12, "loss": 0.5, "loss_quartile_1": 0.5}, {"step": 24, "loss": 0.4, "loss_quartile_1": 0.4}]
    drawn = []
    for count in 0, 1, 2:
        plots.training(lines[:count] or [{"step": 12, "loss": math.nan}], None, tmp_path / f"{count}.png")
        picture = images.read(tmp_path / f"{count}.png").astype(int)
        # Lines and markers alone have colours; the legend is there in the first too.
        drawn.append((picture.max(-1) - picture.min(-1) > 50).sum())
    assert drawn[1] > drawn[0] + 20 and drawn[2] > drawn[0] + 20


def test_a_measure_that_is_infinite_throughout_has_no_plot(tmp_path):
    """Of a masked picture with nothing to paint all results are the picture itself."""
    head = {"model": "m", "sampler": "ddim", "name": "ddim", "psnr": math.inf, "ssim": 0.9, "swd": 1.0}
    record = {"rows": [{**head, "steps": n} for n in (1, 5)]}
    plots.metrics_against_steps(record, ["psnr", "ssim"], tmp_path / "all.png")
    plots.metrics_against_steps(record, ["ssim"], tmp_path / "finite.png")
    assert (images.read(tmp_path / "all.png") == images.read(tmp_path / "finite.png")).all()
    plots.perception_against_distortion(record, ["psnr", "swd"], tmp_path / "tradeoff.png")
    assert not (tmp_path / "tradeoff.png").exists()
