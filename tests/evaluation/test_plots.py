from dream_jax.files import images


def test_a_run_shows_its_training(tiny_workdir):
    assert images.read(tiny_workdir / "training.png").std() > 0
