"""A trained model in a folder by itself, away from its run: weights, config, where they are from, and a card."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from dream_jax.config import checks, keys, records
from dream_jax.errors import UserError, shown, some
from dream_jax.files import atomic, hub, tensors
from dream_jax.training import integrity
from dream_jax.training.weights import FIELDS

WEIGHTS, CONFIG, CARD, ABOUT = FILES = "model.safetensors", "config.json", "README.md", "model.json"

# What model.json begins with. A later version may hold more; one that this program cannot read has a larger number.
FORMAT, VERSION = "dream_jax model", 1

# Bytes of a safetensors file besides its numbers.
_LONGEST_HEADER = 2**24

# Texts of a config that are no paths, though they may be None.
_NAMES = "data.tfds", "data.image_key", "data.lr_key", "data.condition_key", "data.label_key"


def find(place) -> Path:
    """The folder of a place, which may be an address on the Hub: then it is fetched. Errors as in `hub.fetch`."""
    return hub.fetch(str(place), FILES) if hub.is_address(place) else Path(place).expanduser()


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model by itself, sound or not, rather than a run."""
    return any(os.path.lexists(folder / name) for name in (WEIGHTS, ABOUT))


def check(place) -> None:
    """Raises UserError where a place, found, is no model by itself."""
    if not is_model(find(place)):
        raise UserError(f"{shown(place)}: there is no {WEIGHTS}; a run's folder is given with --workdir")


def read_config(folder: Path) -> ConfigDict:
    """The config of a folder, a run's or a model's; of a model's, which may be anyone's, paths are not taken.

    Raises UserError, with the file's name, for one that is not sound; of a run's, `checks.validate` says the rest.
    """
    config = records.read(folder / CONFIG)
    if not is_model(folder):
        return config
    try:
        checks.validate(config)
    except UserError as error:
        raise UserError(f"{shown(folder / CONFIG)}: {error}") from error
    return portable(config)


def portable(config) -> ConfigDict:
    """A run's config without what means nothing elsewhere: paths, and the weights that it began with."""

    def is_local(name):
        key = keys.KEYS[name]
        return name.startswith("init.") or (key.optional is str and name not in _NAMES)

    flat = keys.flatten(config)
    return keys.nest({name: keys.KEYS[name].default if is_local(name) else value for name, value in flat.items()})


def write(folder: Path, config, params: dict, about: dict, card: str) -> None:
    """Writes the four files of a model.

    Args:
      config: of the run.
      params: the network's parameters, arrays on the host.
      about: step, weights (ema or live), sha256 by `integrity.digest`, and whatever else is known of them.
      card: the text of README.md.
    """
    about = {"format": FORMAT, "version": VERSION, **about}
    # Last comes the one without which the folder is no model.
    atomic.write_bytes(folder / WEIGHTS, weights_file(params))
    records.save(portable(config), folder / CONFIG)
    atomic.write_text(folder / CARD, card)
    atomic.write_json(folder / ABOUT, about)


def weights_file(params: dict) -> bytes:
    """A safetensors file of parameters, by names like `conv_in.kernel`."""
    arrays = traverse_util.flatten_dict(params, sep=".")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(arrays, {"format": "flax"})


def read_about(folder: Path) -> dict:
    """What model.json says, with step and weights among it; raises UserError for one of another program or version."""

    def checked(about):
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        version, step = about.get("version"), about.get("step")
        if type(version) is int and version > VERSION:
            raise UserError(f"{shown(folder / ABOUT)}: of a later version of this program; use that, or a newer one")
        if type(step) is not int or not 0 <= step < 2**31 or about.get("weights") not in FIELDS:
            raise ValueError("it has no step, or does not say which weights of the run these are")
        return about

    return records.read_json(folder / ABOUT, "export the model again", "a description", checked)


def step_of(folder: Path, which: str) -> int:
    """The step of the weights; raises UserError where `which` is neither "latest" nor that step."""
    step = read_about(folder)["step"]
    if which not in ("latest", str(step)):
        raise UserError(f"{shown(folder)}: this model holds the weights of step {step} alone, not of {shown(which)}")
    return step


def read(folder: Path, shapes: dict) -> tuple[dict, dict]:
    """(parameters with the given shapes and dtypes, on the host; what model.json says).

    Raises UserError, with the names of file and array, for weights that are damaged or of another network.
    """
    about, path = read_about(folder), folder / WEIGHTS
    wanted = traverse_util.flatten_dict(shapes, sep=".")
    _check_size(path, wanted)
    arrays = tensors.read_weights(path)
    if surplus := arrays.keys() - wanted.keys():
        raise UserError(f"{shown(path)}: {some(surplus)}: no such array in the network of its {CONFIG}")
    params = {name: _fitting(path, name, arrays, leaf) for name, leaf in wanted.items()}
    params = traverse_util.unflatten_dict(params, sep=".")
    if about.get("sha256") not in (None, integrity.digest(params)):
        raise UserError(
            f"{shown(path)}: its arrays are not those that were exported (sha256 in {ABOUT}); get the file again, or "
            f"remove sha256 from {ABOUT} if you changed them"
        )
    return params, about


def _check_size(path, wanted):
    """Raises UserError for a file of more than the network: it would be read into memory as a whole."""
    most = sum(leaf.size * leaf.dtype.itemsize for leaf in wanted.values()) + _LONGEST_HEADER
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror or error})") from None
    if size > most:
        raise UserError(f"{shown(path)}: it has {size} bytes, and the network of its {CONFIG} takes at most {most}")


def _fitting(path, name, arrays, leaf):
    if name not in arrays:
        raise UserError(f"{shown(path)}: {name} is missing")
    array = arrays[name]
    if array.shape != leaf.shape:
        raise UserError(f"{shown(path)}: {name} has the shape {array.shape}; {leaf.shape} was expected")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{shown(path)}: {name} has the type {array.dtype}, which is no floating point")
    if not np.isfinite(array).all():
        raise UserError(f"{shown(path)}: {name} holds values that are not finite")
    return np.asarray(array, leaf.dtype)
