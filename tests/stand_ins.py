"""Stand-ins for trained models, whose networks are plain functions, and for trained weights of metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from rich.console import Console

from dream_jax import experiment
from dream_jax.config import records
from dream_jax.data import held_out
from dream_jax.inference import drawing
from dream_jax.runtime import sharding
from dream_jax.training import checkpoint, weights
from dream_jax.training.train_state import TrainState

QUIET = Console(quiet=True)


def fake(residual_of, *changes, step=1):
    """A model whose network is a plain function of (x_t, level).

    changes are of the tiny config, given as for `tiny.tiny_config`.
    """

    built = experiment.build(tiny.tiny_config(*changes))

    class Network:
        divisor = built.network.divisor

        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None, mutable=False):
            out = residual_of(inputs[..., -built.task.channels :], level)
            # Without norms there are no statistics.
            return (out, {}) if mutable else out

    built = built._replace(network=Network())
    return drawing.Model(built, {"w": np.zeros(1, np.float32)}, step, sharding.make_mesh(), "nowhere")


def random_params(built, rng):
    """Weights of an experiment's network, of which none is zero."""
    shapes = weights.shapes_of(built)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, leaf.dtype)), shapes)


def untrained_run(workdir, step=7, *changes):
    """Makes a workdir with a checkpoint of random weights; returns (workdir, its TrainState on the host).

    changes are of the tiny config.
    """
    config = tiny.tiny_config(*changes)
    workdir.mkdir()
    records.save(config, workdir / "config.json")
    rng, built = np.random.default_rng(0), experiment.build(config)
    params, ema = (random_params(built, rng) for _ in range(2))
    state = TrainState(jnp.asarray(step, jnp.int32), params, ema, ())
    with checkpoint.open_manager(workdir / "checkpoints") as manager:
        checkpoint.save(manager, state, {"config": config.to_dict(), "versions": {}, "data": "9 pictures, crc32 1"})
        checkpoint.wait(manager)
    return workdir, jax.device_get(state)


def nothing(x_t, level):
    return 0 * x_t


def its_input(x_t, level):
    return 0.3 * x_t


def pictures_of(model):
    """The held-out pictures of a model."""
    return held_out.eval_pictures(model.experiment.config)


def random_weights(shapes, seed=0):
    """Weights {name: array} of a learned metric's network {name: shape}, under which its features are of usual size."""
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            spread = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
            weights[name] = np.abs(spread) if name.startswith("lin") else spread
        elif name.endswith(("running_mean", "bias")):
            weights[name] = 0.1 * rng.standard_normal(shape, np.float32)
        else:
            weights[name] = 0.5 + rng.random(shape, np.float32)
    return weights
