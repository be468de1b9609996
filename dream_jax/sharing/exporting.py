"""A trained model, written for use elsewhere in one of several forms."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dream_jax.errors import UserError, shown
from dream_jax.files.names import check_folder, is_bucket
from dream_jax.inference import trained
from dream_jax.sharing import folders, official, programs
from dream_jax.training import model_folder


class Form(NamedTuple):
    """A form in which models leave their runs.

    Attributes:
      files: `output -> the files that are written`.
      check: `(experiment, output, options) -> None`; raises UserError for what it cannot hold, before weights are read.
      write: `(model, output, options, console) -> None`.
      takes_options: whether it takes options and config arguments.
    """

    files: Callable
    check: Callable
    write: Callable
    takes_options: bool = False


FORMS = {
    "dream": Form(folders.files, folders.check, folders.write),
    "pytorch_sr3": Form(official.files, official.check, official.write),
    "stablehlo": Form(programs.files, programs.check, programs.write, takes_options=True),
}


def export(
    place,
    output,
    console: Console,
    form: str = "dream",
    options: dict | None = None,
    weights: str | None = None,
    checkpoint: str = "latest",
    overwrite: bool = False,
    overrides=(),
) -> None:
    """Writes the trained model of a place, a workdir or a model's folder, in one of FORMS.

    Args:
      output: a folder, or of pytorch_sr3 a file.
      options: sampler, steps and size of a stablehlo program, None where nothing is said.
      weights: ema or live; None is ema of a run, and of a model those that it has.
      checkpoint: latest, best or a step.
      overrides: `--config.KEY=VALUE` arguments of a stablehlo program, of its sampling above all.

    Raises UserError for what a form cannot hold, for a place or an output that will not do, and for files that are
    there already, unless overwrite.
    """
    chosen, output = FORMS[form], Path(output).expanduser()
    options = {name: value for name, value in (options or {}).items() if value is not None}
    given = [*(f"--{name}" for name in options), *overrides]
    if given and not chosen.takes_options:
        raise UserError(f"{shown(given[0])[:200]}: it is for --format stablehlo; choose it when pictures are drawn")
    experiment = trained.open_experiment(place, overrides)
    chosen.check(experiment, output, options)
    files = chosen.files(output)
    _check_output(place, files, overwrite)
    step = trained.step_of(place, experiment, checkpoint)
    model = trained.load_weights(place, experiment, step, weights or "ema")
    if weights not in (None, model.weights):
        raise UserError(f"--weights {weights}: {shown(place)} holds the {model.weights} weights alone")
    chosen.write(model, output, options, console)
    console.print(f"the {model.weights} weights of step {model.step}: {', '.join(map(str, files))}", markup=False)


def _check_output(place, files, overwrite):
    """Raises UserError where files would be replaced that nobody asked to replace, or a run's own."""
    folder = files[0].parent
    if is_bucket(folder):
        raise UserError(f"{shown(folder)}: --output lies on this machine; copy it from there")
    names = ("metrics.jsonl", "checkpoints") if (folder / model_folder.CONFIG).exists() else ()
    if any((folder / name).exists() for name in names) or os.path.realpath(folder) == os.path.realpath(
        model_folder.find(place)
    ):
        raise UserError(f"{shown(folder)}: a run or the model itself is there; choose another --output")
    there = [file for file in files if os.path.lexists(file)]
    for file in there:
        if not overwrite or file.is_dir():
            mend = "choose another --output" + ("" if file.is_dir() else ", or pass --overwrite")
            raise UserError(f"{shown(file)}: is there already; {mend}")
    check_folder(folder)
