"""Configs of runs, as their workdirs and checkpoints record them."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from dream_jax.config import keys
from dream_jax.config.keys import flatten
from dream_jax.errors import UserError, shown
from dream_jax.files import atomic

# A run may go on with other values of these: they do not change what the steps before would have been. Where pictures
# lie is among them, because a checkpoint knows them by their fingerprint.
CHANGEABLE = (
    *("data.folder", "data.eval_folder", "data.tfds_dir", "data.lr_folder", "data.eval_lr_folder", "data.lr_key"),
    *("data.condition_folder", "data.eval_condition_folder", "data.condition_key", "data.label_key"),
    *("data.mask_folder", "data.eval_mask_folder"),
    "log_every",
    *("steps", "epochs", "checkpoint.every", "checkpoint.keep", "checkpoint.keep_best", "samples.", "sampling."),
    *("evaluation.", "data.workers", "data.cache_dir", "supervision.", "watch.", "deterministic"),
)

# Keys of training that came later, and what runs without them did.
_ADDED = {
    "schedule.kappa": 2.0,
    "schedule.sqrt_eta_start": 0.02,
    "schedule.sqrt_eta_end": 0.99,
    "schedule.power": 0.3,
    "schedule.sum_scale": 1.0,
    "schedule.max_sigma": 10.0,
    "schedule.alpha_end": 0.005,
    "objective.start_step": 0,
    "objective.stop_step": None,
    "objective.estimate_every": 1,
    "objective.noise": "same",
    "objective.estimate_noise": 0.0,
    "objective.perturbation": 0.1,
    "objective.rollout": 2,
    "objective.span": 0.02,
    "init.path": None,
    "init.checkpoint": "latest",
    "init.weights": "ema",
    "init.partial": False,
    "optimizer.decay": "constant",
    "optimizer.decay_steps": None,
    "optimizer.final": 0.0,
    "task.masks": ("box", "strokes", "outpainting", "pixels"),
    "task.unknown": (0.1, 0.5),
    "task.blurs": ("gaussian", "motion"),
    "task.width": (0.5, 3.0),
    "task.length": (3.0, 15.0),
    "task.deviation": (25.0,),
    "task.quality": (30, 95),
    "data.crop": "random",
    "data.limit": None,
    "data.channels": 3,
    "data.bits": 8,
    "data.range": (),
    "data.percentile": None,
    "data.clip": False,
    "data.lr_key": "none",
    "data.bundled": "photographs",
    "data.classes": (),
    "data.condition_channels": 3,
    "data.condition_bits": 8,
    "data.condition_range": (),
    "task.target": "picture",
    "task.num_classes": None,
    "task.drop_label": 0.1,
}

# Keys that are gone, and their one value that this version still does.
_GONE = {
    "objective.estimate_share": 1.0,
    "objective.estimate_pick": None,
    "objective.estimate_dtype": "same",
}

# Bytes of a config.json, or of another record.
_LONGEST = 2**20


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON, whole or not at all."""
    atomic.write_json(path, config.to_dict())


def read(path: Path) -> ConfigDict:
    """The config of a workdir, from its config.json; keys that came after the run are filled in with what it did.

    Raises UserError for a file that is missing, damaged or of another program.
    """
    return read_json(path, f"is {shown(path.parent)} the workdir of a training run?", "a config", from_record)


def read_json(path: Path, missing: str, kind: str, use):
    """`use(record)` of a small JSON file from anyone; raises UserError for one that is missing or not of this program.

    Args:
      missing: what is to be said where the file is not there.
      kind: what it should be, like "a config".
    """
    name, other = shown(path), f"{shown(path)}: not {kind} of this program"
    try:
        if not path.exists():
            raise UserError(f"{name}: not found; {missing}")
        # A named pipe would block the reader for ever.
        if not path.is_file():
            raise UserError(other)
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise UserError(f"{other}, which are shorter than {_LONGEST} bytes")
        return use(json.loads(text))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{other} ({shown(error)[:300]})") from None


def from_record(values: dict) -> ConfigDict:
    """The config that a run recorded, with the keys that came later and without those that are gone."""
    kept = flatten(values)
    if "evaluation.seed" in kept:
        kept["evaluation.seeds"] = (kept.pop("evaluation.seed"),)
    if "evaluation.ddim_eta" in kept:
        kept["sampling.eta"] = kept.pop("evaluation.ddim_eta")
    _drop_gone(kept)
    known = {name: key.default for name, key in keys.KEYS.items()} | _ADDED
    flat = {key: value for key, value in kept.items() if key in known or not key.startswith(CHANGEABLE)}
    later = (*CHANGEABLE, *_ADDED)
    flat |= {key: value for key, value in known.items() if key not in kept and key.startswith(later)}
    return keys.nest(flat)


def _drop_gone(flat):
    estimates_all = flat.get("objective.estimate_share", 1.0) == 1.0
    for key, value in _GONE.items():
        had = flat.pop(key, value)
        # Which pictures are estimated says nothing where all of them are.
        if had != value and not (value is None and estimates_all):
            raise UserError(
                f"the run was trained with {key} = {had}, which this version does not have; use the version that "
                "trained it, or begin anew"
            )


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each key in which a run cannot be continued: `key: old -> new`."""
    old, new = flatten(old), flatten(new)
    names = [key for key in sorted(old.keys() | new.keys()) if not key.startswith(CHANGEABLE)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in names if old.get(key) != new.get(key)]
