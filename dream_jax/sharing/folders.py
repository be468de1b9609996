"""The form dream: a model's folder, with a card that says what it is."""

import json
from pathlib import Path

import jax

from dream_jax import __version__
from dream_jax.data import listing
from dream_jax.errors import UserError, shown
from dream_jax.inference.drawing import Model
from dream_jax.runtime import sharding
from dream_jax.sharing import card
from dream_jax.training import checkpoint, integrity, model_folder
from dream_jax.training.workdir import checkpoint_folder

_FILES_END_IN = ".safetensors", ".pth", ".pt", ".bin", ".stablehlo"
# What the choices of data.bundled are called.
_BUNDLED = {"photographs": "the photographs inside scikit-image", "scenes": "made scenes of shapes"}


def files(output: Path) -> list[Path]:
    """The files of a model in this folder."""
    return [output / name for name in model_folder.FILES]


def check(experiment, output: Path, options) -> None:
    """Raises UserError for an output that looks like a file."""
    if output.suffix in _FILES_END_IN or output.is_file():
        raise UserError(f"{shown(output)}: --output is a folder in this form")


def write(model: Model, output: Path, options, console) -> None:
    """Writes the folder; raises UserError for a model that is in one already."""
    folder = model_folder.find(model.workdir)
    if model_folder.is_model(folder):
        raise UserError(f"{shown(model.workdir)}: it is exported already; copy its folder")
    params = sharding.on_host(model.params)
    about = _about(model, folder, integrity.digest(params))
    record = card.record_of(_read(folder / "evaluation.json"), about)
    if record is None:
        console.print("the card says: not measured; evaluation.json is not there, or of other weights", markup=False)
    text = card.text(Path(folder).resolve().name, model.experiment, about, record)
    model_folder.write(output, model.experiment.config, params, about, text)


def _about(model, folder, sha256) -> dict:
    """What model.json says of a run's weights."""
    config = model.experiment.config
    facts = checkpoint.facts(checkpoint_folder(folder, config), model.step)
    parent = _read(folder / "parent.json")
    # Not where it lay.
    parent = {name: parent[name] for name in ("step", "weights", "partial", "sha256") if name in parent}
    return {
        "program": __version__,
        "step": model.step,
        "weights": model.weights,
        "sha256": sha256,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "data": _data(config) | {"fingerprint": facts.get("data")},
        "versions": facts.get("versions"),
        "parent": parent or None,
    }


def _data(config) -> dict:
    data = config.data
    if data.folder is not None:
        return {"kind": "folder", "name": listing.title(data.folder)}
    if data.tfds is not None:
        return {"kind": "tfds", "name": data.tfds}
    return {"kind": "bundled", "name": _BUNDLED[data.bundled]}


def _read(path) -> dict:
    """A record that the run wrote; {} where there is none."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
