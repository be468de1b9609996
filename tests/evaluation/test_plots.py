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
