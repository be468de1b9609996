"""Trained weights that a new run begins with: of any other run, of a model's folder, or of a file."""

from collections.abc import Callable

import jax
import numpy as np

from dream_jax.config import checks
from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment, build
from dream_jax.runtime import sharding
from dream_jax.training import integrity, mirror, model_folder, published_weights, weights
from dream_jax.training.workdir import checkpoint_folder

# Layers that a message names.
_NAMED = 5


def read(experiment: Experiment, shapes, make_fresh: Callable[[], dict], tell: Callable[[str], None]):
    """(parameters with the given shapes and dtypes, what is to be recorded of their origin) by `config.init`.

    Args:
      shapes: of the run's own network.
      make_fresh: makes the parameters, on the host, that a run without a parent would begin with; with `init.partial`
        they stay where the parent's do not fit.
      tell: called with what stays so, and with what of the parent is not used.

    Raises UserError where there is no such run or file, and for layers that do not fit, unless `init.partial`.
    """
    settings = experiment.config.init
    path = model_folder.find(settings.path)
    if not path.exists():
        raise UserError(f"{shown(settings.path)}: there is no such workdir, model or file to begin from")
    if path.is_dir():
        given, about = (_of_model if model_folder.is_model(path) else _of_run)(path, settings, tell)
    else:
        given, about = published_weights.arrays_of(experiment, path), {"file": str(path)}
    named, ours = integrity.named_leaves(given), integrity.named_leaves(shapes)
    unfit = [name for name, leaf in ours.items() if name not in named or np.shape(named[name]) != leaf.shape]
    if unfit:
        listed = "\n  ".join(f"{name}: {_shape(named, name)} -> {ours[name].shape}" for name in unfit[:_NAMED])
        more = f"\n  ... and {len(unfit) - _NAMED} more" if len(unfit) > _NAMED else ""
        what = f"{shown(settings.path)}: {len(unfit)} of {len(ours)} arrays do not fit (its -> this run's)"
        if not settings.partial:
            raise UserError(f"{what}; --partial leaves them as they begin:\n  {listed}{more}")
        tell(f"warning: {what}; they begin at random:\n  {listed}{more}")
    unused = [name for name in named if name not in ours]
    if unused:
        tell(f"warning: {len(unused)} arrays of {shown(settings.path)} are not used, {unused[0]} the first")
    fresh = integrity.named_leaves(make_fresh()) if unfit else {}
    chosen = [np.asarray((fresh if name in unfit else named)[name], leaf.dtype) for name, leaf in ours.items()]
    params = jax.tree.unflatten(jax.tree.structure(shapes), chosen)
    return params, about | {"partial": bool(unfit), "sha256": integrity.digest(given)}


def _shape(named, name):
    return np.shape(named[name]) if name in named else "not there"


def _of_run(path, settings, tell):
    experiment = build(checks.validate(model_folder.read_config(path)))
    mirror.check(experiment.config.checkpoint.directory)
    directory = checkpoint_folder(path, experiment.config)
    step = weights.step_of(directory, settings.checkpoint)
    shapes, mesh = weights.shapes_of(experiment), sharding.make_mesh()
    given, step = weights.read(directory, shapes, mesh, tell, step, settings.weights)
    return given, {"workdir": str(path), "step": step, "weights": settings.weights}


def _of_model(path, settings, tell):
    model_folder.step_of(path, settings.checkpoint)
    experiment = build(checks.validate(model_folder.read_config(path)))
    given, about = model_folder.read(path, weights.shapes_of(experiment))
    if settings.weights not in ("ema", about["weights"]):
        raise UserError(f"{shown(settings.path)}: init.weights = live: this model holds the averaged weights alone")
    return given, {"model": settings.path, "step": about["step"], "weights": about["weights"]}
