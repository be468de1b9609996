"""What models draw from in an evaluation, and what their results are compared with."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from dream_jax.config.keys import flatten
from dream_jax.data import held_out
from dream_jax.data.indexed import Pair
from dream_jax.errors import UserError
from dream_jax.experiment import Experiment
from dream_jax.inference import drawing
from dream_jax.inference.drawing import Model
from dream_jax.tasks.beside import BESIDE


class Inputs(NamedTuple):
    """Held-out pictures and what was made of them, all on the host.

    Attributes:
      pictures: the held-out ones, uint8 [N, H, W, 3].
      given: what `drawing.draw_pictures` takes as inputs, {name: array [N, ...]}.
      observed: what models see of the pictures, uint8 [N, ...]; None for unconditional models.
      baselines: what can be had of it without a model, {name: uint8 [N, H, W, 3]}.
      found: whether observed was there, instead of being made of the pictures: how it was made is not known.
      painted: of how many pictures a mask leaves something to paint; None without masks.
    """

    pictures: np.ndarray
    given: dict[str, np.ndarray]
    observed: np.ndarray | None = None
    baselines: Mapping[str, np.ndarray] = MappingProxyType({})
    found: bool = False
    painted: int | None = None

    def first(self, count: int) -> "Inputs":
        """Those of the first pictures."""
        given = {name: array[:count] for name, array in self.given.items()}
        baselines = {name: pictures[:count] for name, pictures in self.baselines.items()}
        observed = None if self.observed is None else self.observed[:count]
        return self._replace(pictures=self.pictures[:count], given=given, observed=observed, baselines=baselines)

    @property
    def baseline(self) -> np.ndarray | None:
        """The first of the baselines."""
        return next(iter(self.baselines.values()), None)

    @property
    def notes(self) -> list[str]:
        """What is to be known of measures."""
        return [f"without consistency: {_NO_KERNEL}"] if self.found else []


# What models that are measured side by side may differ by of the keys that say what their pictures are, and which keys
# these are; of what their pictures are; and how files are read.
_OWN = "task.residual", "task.gain", "task.scales", "task.drop_label"
_ALIKE = "task.", "data.channels", "data.bits", "data.condition_channels", "data.condition_bits"
_DATA = "folder", "eval_folder", "eval_percent", "tfds", "train_split", "eval_split", "resize", "bundled"
_BESIDE = (key for kind in BESIDE.values() for key in (kind.folder, kind.eval_folder, kind.feature) if key)
_DATA = tuple(f"data.{name}" for name in (*_DATA, *_BESIDE))
_READ_BY = "data.range", "data.clip", "data.condition_range"

_NO_KERNEL = "the low-resolution pictures were there, and what made them is not known"


def make_inputs(
    built: Experiment,
    pictures: np.ndarray | Pair,
    classical: bool = False,
    numbers=None,
    console: Console | None = None,
) -> Inputs:
    """Of pictures uint8 [N, H, W, 3], or of such with what lies beside them.

    Args:
      classical: the baselines are also those of a classical method, which takes its time.
      numbers: what the random draws of each picture depend on, see `drawing.observe`.
      console: where the classical method shows how far it is; None shows nothing.
    """
    pictures, beside = pictures if isinstance(pictures, Pair) else (pictures, None)
    if not built.task.paired and beside is None:
        return Inputs(pictures, drawing.no_inputs(*pictures.shape[:3]))
    observed, cond, baseline = drawing.observe(built, pictures, numbers, beside)
    baselines = {} if baseline is None else {built.task.baseline_name: baseline}
    if classical and built.task.classical is not None:
        name, restore = built.task.classical
        with drawing.progress_bar(console or Console(quiet=True)) as bar:
            baselines[name] = np.stack([restore(each) for each in bar.track(observed, description=name)])
    # Some models project and others do not: all are given what projecting takes.
    found = beside is not None and built.task.beside == "low"
    painted = int(observed[..., -1].any((1, 2)).sum()) if built.task.beside == "mask" else None
    return Inputs(pictures, {"cond": cond, "observed": observed}, observed, baselines, found, painted)


def consistency_of(built: Experiment, inputs: Inputs):
    """The task's measure of consistency, jitted; None where it has none, or where another kernel may have been used."""
    return None if built.task.consistency is None or inputs.found else jax.jit(built.task.consistency)


def check_models(models: dict[str, Model], given: bool = False) -> str | None:
    """Raises UserError where models cannot be measured side by side; returns what is to be known of their data.

    given: the pictures are a person's, not the held-out ones of the first model.
    """
    configs = {name: model.experiment.config for name, model in models.items()}
    (first_name, first), *others = configs.items()
    for name, other in others:
        ours_all, theirs_all = flatten(first), flatten(other)
        for key in (key for key in ours_all if key.startswith(_ALIKE) and key not in _OWN):
            ours, theirs = ours_all[key], theirs_all[key]
            if ours != theirs:
                ours, theirs = (f"{value:g}" if isinstance(value, float) else value for value in (ours, theirs))
                raise UserError(f"{first_name} and {name} cannot be compared: their {key} are {ours} and {theirs}")
    side = held_out.side_of(first)
    for name, model in models.items():
        divisor = model.experiment.network.divisor
        if side % divisor:
            raise UserError(f"evaluation.crop = {side}: it must divide by {divisor}, by which {name} downsamples")
        for sampler in first.evaluation.samplers:
            for steps in first.evaluation.steps:
                try:
                    drawing.make_rows(model.experiment, sampler, steps)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from error
    notes = []
    if not given and _differ(configs, _DATA):
        notes.append(
            f"the held-out pictures are {first_name}'s; others have other data, and may have been trained on these"
        )
    if _differ(configs, _READ_BY):
        notes.append(f"pictures are read by data.range and data.clip of {first_name}; others were trained with others")
    return "; ".join(notes) or None


def _differ(configs, names):
    first, *others = (flatten(config) for config in configs.values())
    return any(other[name] != first[name] for other in others for name in names)
