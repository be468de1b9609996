"""A trained model, opened from its workdir, or from the folder that it was exported to."""

import sys

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax.config import checks, command_line, keys, records
from dream_jax.errors import UserError
from dream_jax.experiment import Experiment, build
from dream_jax.inference.drawing import Model
from dream_jax.runtime import sharding
from dream_jax.tasks.beside import BESIDE
from dream_jax.training import mirror, model_folder, weights
from dream_jax.training.workdir import checkpoint_folder

# Keys without which weights mean nothing; others may be given for a use of them, how pictures are degraded among them.
# A network for one scale can be used at another, as in the paper's Table 4.
_TRAINED_AS = (
    *("task.name", "task.kernel", "task.residual", "task.gain", "task.target", "task.num_classes", "task.drop_label"),
    *("schedule.", "objective.", "network.", "image_size"),
    *("data.channels", "data.condition_channels", "data.classes"),
)


def open_experiment(workdir, overrides=(), only_sampling: bool = False, scale: float | None = None) -> Experiment:
    """What was trained in a workdir, without its weights; overrides are `--config.KEY=VALUE` arguments.

    scale: how many times super-resolution is to enlarge, instead of as many as it was trained to.

    Everywhere in this file a workdir may also be a model's folder, or its address on the Hub: see `model_folder`.

    Raises UserError where there is no run, and for overrides of what the weights were trained as; with only_sampling,
    for overrides of anything but `sampling.KEY`.
    """
    saved = model_folder.read_config(model_folder.find(workdir))
    chosen = command_line.override(saved, list(overrides))
    if only_sampling:
        _check_only_sampling(saved, chosen)
    if scale is not None:
        chosen = _at_scale(workdir, chosen, scale)
    chosen = checks.validate(chosen)
    changed = [line for line in records.differences(saved, chosen) if line.startswith(_TRAINED_AS)]
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(f"{workdir}: its weights were trained as they are, and these keys are theirs:\n  {listed}")
    return build(chosen)


def scales_of(workdir) -> tuple[float, float]:
    """The smallest and the largest number of times that the super-resolution of a workdir was trained to enlarge."""
    settings = model_folder.read_config(model_folder.find(workdir)).task
    return tuple(settings.scales) or (settings.scale,) * 2


def _at_scale(workdir, config, scale):
    if config.task.name != "super_resolution":
        raise UserError(f"--scale {scale:g}: {config.task.name} makes pictures of the size that they have")
    low, high = scales_of(workdir)
    if low < high and not low <= scale <= high:
        raise UserError(f"--scale {scale:g}: {workdir} was trained to enlarge {low:g} to {high:g} times")
    scale = int(scale) if scale % 1 == 0 else scale
    # Crops of training need not divide by it, and low-resolution pictures that lay beside them were of another scale.
    beside = BESIDE["low"]
    there = (f"--config.data.{key}=None" for key in (beside.folder, beside.eval_folder, beside.feature))
    return command_line.override(config, [f"--config.task.scale={scale}", "--config.evaluation.whole=True", *there])


def _check_only_sampling(saved, chosen):
    before = keys.flatten(saved)
    for key, value in keys.flatten(chosen).items():
        if value != before[key] and not key.startswith("sampling."):
            raise UserError(f"--config.{key}: the model is trained; only --config.sampling.KEY=VALUE can be chosen")


def load(workdir, overrides=(), which: str = "latest") -> Model:
    """A trained model: `open_experiment`, and its weights by `load_weights`; which as for `weights.step_of`."""
    experiment = open_experiment(workdir, overrides)
    return load_weights(workdir, experiment, step_of(workdir, experiment, which))


def step_of(workdir, experiment: Experiment, which: str) -> int | None:
    """The step of the checkpoint "latest", "best" or of a number; None is the newest. See `weights.step_of`."""
    folder = model_folder.find(workdir)
    if model_folder.is_model(folder):
        return model_folder.step_of(folder, which)
    mirror.check(experiment.config.checkpoint.directory)
    return weights.step_of(checkpoint_folder(folder, experiment.config), which)


def load_weights(workdir, experiment: Experiment, step: int | None = None, field: str = "ema") -> Model:
    """An opened experiment with the weights of the newest checkpoint of its run, or of the one of a step.

    field: ema, or live; a model's folder holds one of the two. Damage and errors as in `weights.read` and
    `model_folder.read`; damage is named on stderr.
    """
    folder, shapes, mesh = model_folder.find(workdir), weights.shapes_of(experiment), sharding.make_mesh()
    if model_folder.is_model(folder):
        params, about = model_folder.read(folder, shapes)
        params = jax.device_put(params, NamedSharding(mesh, P()))
        return Model(experiment, params, about["step"], mesh, str(workdir), about["weights"])
    mirror.check(experiment.config.checkpoint.directory)
    directory = checkpoint_folder(folder, experiment.config)
    params, step = weights.read(directory, shapes, mesh, _say, step, field)
    return Model(experiment, params, step, mesh, str(workdir), field)


def _say(message):
    print(message, file=sys.stderr)
