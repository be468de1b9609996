"""Every example of docs/extending.md, run as it stands in the page and then used as any member of its family."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from stand_ins import QUIET, fake, its_input, pictures_of

from dream_jax import experiment, sampling
from dream_jax.evaluation import inputs, measuring, tables
from dream_jax.inference import drawing
from dream_jax.metrics import METRICS
from dream_jax.networks import NETWORKS
from dream_jax.noise_schedule import SCHEDULES
from dream_jax.objectives import OBJECTIVES
from dream_jax.samplers import SAMPLERS
from dream_jax.tasks import TASKS
from dream_jax.training.train_step import make_losses

PAGE = (tiny.ROOT / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"^## An? (.+?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(autouse=True)
def example(request):
    """Runs the page's example of a family, and takes its member out again."""
    family = (TASKS, NETWORKS, OBJECTIVES, SCHEDULES, METRICS, SAMPLERS)
    before = [dict(table) for table in family]
    name = request.node.get_closest_marker("example").args[0]
    try:
        exec(compile(EXAMPLES[name], f"docs/extending.md, {name}", "exec"), {"__name__": "example"})
        yield
    finally:
        for table, old in zip(family, before, strict=True):
            table.clear()
            table.update(old)


def loss_of(built):
    """The losses of two examples, by the experiment's own objective."""
    losses = make_losses(built, jax.random.key(0, impl="threefry2x32"), 1)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    batch = {"image": jnp.asarray(pictures), "row": jnp.arange(2, dtype=jnp.int32)}
    params = built.network.init(jax.random.key(1), jnp.zeros(built.inputs_shape()), jnp.ones(1))["params"]
    loss, facts = jax.jit(lambda params: losses(params, batch, jnp.int32(0), True))(params)
    assert loss.shape == (2,) and np.isfinite(loss).all()
    return loss, facts


@pytest.mark.example("task")
def test_a_task():
    built = experiment.build(tiny.tiny_config("task.name=dequantising"))
    loss_of(built)
    model = fake(its_input, "task.name=dequantising")
    pictures = pictures_of(model)
    made = inputs.make_inputs(model.experiment, pictures)
    record, columns = measuring.evaluate({"model": model}, pictures, QUIET)
    assert set(np.unique(made.observed).tolist()) == {0, 85, 170, 255}
    assert np.abs(made.observed.astype(int) - pictures).max() < 64
    assert list(columns) == ["quantised", "DREAM, ddim 1 step", "original"]
    assert record["rows"][0]["name"] == "quantised" and 10 < record["rows"][0]["psnr"] < 25


@pytest.mark.example("network")
def test_a_network():
    built = experiment.build(tiny.tiny_config("network.name=plain"))
    loss_of(built)
    assert drawing.divisor(built) == built.task.divisor


@pytest.mark.example("objective")
def test_an_objective():
    half, plain, dream = (
        loss_of(experiment.build(tiny.tiny_config(f"objective.name={name}")))[0]
        for name in ("half", "standard", "dream")
    )
    np.testing.assert_allclose(half, (plain + dream) / 2, rtol=1e-5)
    built = experiment.build(tiny.tiny_config("objective.name=half"))
    assert tables.label(built, "ddim", 2) == "half DREAM, ddim 2 steps"


@pytest.mark.example("noise schedule")
def test_a_noise_schedule():
    config = tiny.tiny_config("schedule.name=sigmoid", "schedule.num_steps=50")
    built = experiment.build(config)
    loss_of(built)
    rows = drawing.make_rows(built, "unipc_2", 10)
    assert all(np.isfinite(part).all() for part in rows)


@pytest.mark.example("metric")
def test_a_metric():
    model = fake(its_input)
    pictures = pictures_of(model)
    record, _ = measuring.evaluate({"model": model}, pictures, QUIET)
    enlarged = inputs.make_inputs(model.experiment, pictures).baseline
    expected = np.abs(enlarged.astype(float) - pictures).mean()
    assert record["rows"][0]["mae"] == pytest.approx(expected, rel=1e-5)
    assert "mae" in tables.measured(record["rows"]) and record["about_protocol"]["mae"].startswith("mean absolute")


@pytest.mark.example("sampler")
def test_a_sampler():
    built = experiment.build(tiny.tiny_config("evaluation.samplers=averaged,"))
    rows = drawing.make_rows(built, "averaged", 8)
    truth = jnp.full((1, 4, 4, 3), 0.25)
    x0 = sampling.run(jax.random.key(0), lambda x, alpha, sigma: truth, truth.shape, rows)
    np.testing.assert_allclose(x0, truth, atol=1e-6)


@pytest.mark.example("task")
def test_the_page_has_an_example_of_each_family():
    assert set(EXAMPLES) == {"task", "network", "objective", "noise schedule", "metric", "sampler"}
    assert "dequantising" in TASKS
