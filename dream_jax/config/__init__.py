"""Config files: loading, overriding from the command line, checking, and comparing with a run's own."""

import ast
import copy
import difflib
import functools
import json
import math
import os
import runpy
import sys
from fractions import Fraction
from pathlib import Path

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from dream_jax import diffusion, dream, noise_schedule, samplers, sampling
from dream_jax.errors import UserError, shown
from dream_jax.metrics import METRICS, PROTOCOLS
from dream_jax.tasks import resize
from dream_jax.training import optimizer, watch

# A run may be continued with other values of these: they do not change what the steps before would have been.
_CHANGEABLE = (
    *(
        "steps",
        "epochs",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.keep_best",
        "samples.",
        "sampling.",
        "evaluation.",
    ),
    *("data.workers", "data.cache_dir", "supervision.", "watch.", "deterministic"),
)

# Keys of training that came into configs/base.py later, and what runs without them did.
_ADDED = {
    "objective.start_step": 0,
    "objective.estimate_share": 1.0,
    "objective.estimate_pick": "random",
    "objective.estimate_every": 1,
    "objective.estimate_dtype": "same",
}

# Keys that may be None, and what they are otherwise.
_OPTIONAL = {
    **dict.fromkeys(("epochs", "data.resize", "evaluation.crop", "sampling.start_seed"), int),
    **dict.fromkeys(("objective.p", "objective.min_snr_gamma", "optimizer.clip", "supervision.hang_minutes"), float),
    **dict.fromkeys(("data.folder", "data.eval_folder", "data.cache_dir", "checkpoint.directory"), str),
    **dict.fromkeys(("data.tfds", "data.tfds_dir", "data.image_key", "network.weights"), str),
    "evaluation.weights": str,
}

_COUNTS = (
    *("batch_size", "accumulation", "image_size", "task.scale", "schedule.num_steps", "mesh.shard"),
    *("network.channels", "network.num_res_blocks", "network.norm_groups", "network.num_heads", "network.patch"),
    *("checkpoint.every", "checkpoint.keep", "samples.every", "samples.count", "samples.steps", "log_every"),
    *("evaluation.pictures", "evaluation.batch_size", "data.workers", "objective.estimate_every"),
    *("supervision.heartbeat_seconds", "supervision.meet_seconds", "watch.warmup", "watch.memory", "watch.limit"),
)
_NOT_NEGATIVE = (
    *("seed", "checkpoint.keep_best", "objective.start_epoch", "objective.start_step", "objective.ramp_epochs"),
    *("optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.epsilon"),
    *("watch.deviations", "watch.threshold"),
    *("sampling.shift_window", "sampling.shift_cutoff"),
)
_FRACTIONS = (
    *("ema_decay", "objective.threshold", "objective.minimum", "objective.maximum", "objective.mix", "network.dropout"),
    "objective.estimate_share",
    *("sampling.eta", "sampling.momentum", "sampling.percentile"),
)

# What no machine has the time or memory for; other whole numbers end at 2^31 - 1.
_MOST = {
    **dict.fromkeys(("image_size", "evaluation.crop", "data.resize", "network.patch", "task.scale"), 2**13),
    **dict.fromkeys(("batch_size", "accumulation", "evaluation.batch_size", "schedule.num_steps"), 2**20),
    **dict.fromkeys(("network.channels", "network.norm_groups", "network.num_heads"), 2**14),
    **{"network.num_res_blocks": 64, "data.workers": 2**10, "samples.count": 2**12},
}
_MOST_LEVELS, _MOST_MULTIPLIER = 16, 2**10

# Bytes of a config.json.
_LONGEST = 2**20

_BASE = Path(__file__).resolve().parents[2] / "configs" / "base.py"

SCHEDULES = {
    "linear": lambda c: noise_schedule.linear(c.num_steps, c.beta_start, c.beta_end),
    "cosine": lambda c: noise_schedule.cosine(c.num_steps, c.beta_min, c.beta_max),
    "flow": lambda c: noise_schedule.flow(c.num_steps),
}
TASKS = ("super_resolution", "unconditional")
OBJECTIVES = ("standard", "dream", "conservative_dream")
NETWORKS = ("sr3", "generation")
LEARNED = tuple(dict.fromkeys(metric.weights for metric in METRICS.values() if metric.weights))
DTYPES = ("auto", "float32", "bfloat16", "float64")
PICKS = ("random", "heaviest")


def load(path: str) -> ConfigDict:
    """Runs a config file, as any program of Python, and returns the ConfigDict that its `get_config()` returns.

    Raises UserError for a file that is missing or does not run, and for keys and types that configs/base.py lacks.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{shown(path)}: there is no such config file")
    # Experiments say `from configs import base`; this finds it whatever the current folder.
    root = str(file.resolve().parent.parent)
    sys.path.insert(0, root)
    try:
        module = runpy.run_path(str(file))
        if "get_config" not in module:
            raise UserError("a config file must define get_config()")
        config = module["get_config"]()
        if not isinstance(config, ConfigDict):
            raise UserError(f"its get_config() must return a ConfigDict, not {_cut(config)}")
        if file.resolve() != _BASE:
            _check_keys(config)
        return config
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {shown(error)[:500]}"
        raise UserError(f"{shown(path)}: this config file does not run ({said})") from error
    finally:
        sys.path.remove(root)


def _cut(value):
    said = repr(value)
    return said if len(said) <= 200 else f"{said[:200]}..."


@functools.cache
def _known():
    """{key: type} of configs/base.py; None where it is not installed."""
    if not _BASE.is_file():
        return None
    base = load(_BASE)

    def kind(key):
        *sections, leaf = key.split(".")
        return functools.reduce(lambda section, name: section[name], sections, base).get_type(leaf)

    return {key: kind(key) for key in flatten(base)}


def _check_keys(config):
    """Raises UserError for a key that configs/base.py does not have, and for a value of another type than there."""
    known = _known()
    for key, value in flatten(config).items() if known else ():
        if key not in known:
            raise _unknown(key, known)
        kind = known[key]
        fits = isinstance(value, (int, float) if kind is float else kind) and (type(value) is not bool or kind is bool)
        if value is not None and not fits:
            raise UserError(f"config key {key!r} takes {_name(kind)}, not {_cut(value)}")


def _unknown(key, known):
    inside = [name for name in known if name.startswith(key + ".")]
    near = inside[:3] or difflib.get_close_matches(key[:200], known, n=1, cutoff=0)
    return UserError(f"config key {_cut(key)} is unknown; did you mean {' or '.join(map(repr, near))}?")


def flatten(config, prefix: str = "") -> dict:
    """{"a.b": value} for every key."""
    flat = {}
    for key in config:
        value = config[key]
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return flat


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Applies `--config.key=value` (or `--config.key value`) arguments to a copy."""
    config = copy.deepcopy(config)
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        name, equals, text = argument.partition("=")
        if not name.startswith("--config."):
            raise UserError(f"{shown(argument)[:200]}: not an option; a config key is given as --config.KEY=VALUE")
        if not equals:
            if not arguments:
                name = shown(argument)[:200]
                raise UserError(f"{name}: its value is missing; write {name}=VALUE")
            text = arguments.pop(0)
        key = name.removeprefix("--config.")
        _set(config, key, text)
        if key == "steps" and "epochs" in config:
            # The two say the same thing; the one given last counts.
            config.epochs = None
    return config


def _set(config, key, text):
    known = flatten(config)
    if key not in known:
        raise _unknown(key, known)
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    kind = config.get_type(last)
    value = _parse(text, kind)
    try:
        # ConfigDict would take None for anything, and True for a number.
        if (value is None and key not in _OPTIONAL) or (isinstance(value, bool) and kind is not bool):
            raise TypeError
        config[last] = value
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"config key {key!r} takes {_name(kind)}, not {_cut(text)}") from None


def _parse(text, kind):
    if kind is str:
        return None if text in ("None", "null") else text
    if text in ("None", "null"):
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is tuple:
        items = [item for item in text.strip("()[] ").split(",") if item.strip()]
        return tuple(_literal(item.strip()) for item in items)
    return _literal(text)


def _literal(text):
    try:
        return float(text) if text.lower().strip("+-") in ("inf", "nan") else ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text


def _name(kind):
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", tuple: "a list like 1,2,4"}
    return names.get(kind, kind.__name__)


def save(config: ConfigDict, path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    os.replace(temporary, path)


def read(path) -> ConfigDict:
    """The config of a workdir, from its config.json.

    Keys that came into configs/base.py after the run are filled in with what it did.
    """
    name = shown(path)
    try:
        if not path.exists():
            raise UserError(f"{name}: not found; is {shown(path.parent)} the workdir of a training run?")
        # A named pipe would block the reader for ever.
        if not path.is_file():
            raise UserError(f"{name}: not a config of this program")
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise UserError(f"{name}: not a config of this program, which are shorter than {_LONGEST} bytes")
        return from_record(json.loads(text))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{name}: not a config of this program ({shown(error)[:300]})") from None


def from_record(values: dict) -> ConfigDict:
    """The config that a run recorded, with the keys that came later."""
    config = from_dict(values)
    if not _BASE.is_file():
        return config
    kept, defaults = flatten(config), flatten(load(_BASE)) | _ADDED
    if "evaluation.seed" in kept:
        kept["evaluation.seeds"] = (kept.pop("evaluation.seed"),)
    if "evaluation.ddim_eta" in kept:
        kept["sampling.eta"] = kept.pop("evaluation.ddim_eta")
    values = {key: value for key, value in kept.items() if key in defaults or not key.startswith(_CHANGEABLE)}
    later = (*_CHANGEABLE, *_ADDED)
    values |= {key: value for key, value in defaults.items() if key not in kept and key.startswith(later)}
    nested = {}
    for key, value in values.items():
        *sections, leaf = key.split(".")
        functools.reduce(lambda inner, name: inner.setdefault(name, {}), sections, nested)[leaf] = value
    return from_dict(nested)


def from_dict(values, prefix=""):
    """A config from nested dicts, in which tuples may have become lists."""
    config = ConfigDict()
    for key, value in values.items():
        if isinstance(value, dict):
            value = from_dict(value, f"{prefix}{key}.")
        if prefix + key in _OPTIONAL:
            config[key] = placeholder(_OPTIONAL[prefix + key])
        config[key] = tuple(value) if isinstance(value, list) else value
    return config


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each key in which a run cannot be continued: `key: old -> new`."""
    old, new = flatten(old), flatten(new)
    keys = [key for key in sorted(old.keys() | new.keys()) if not key.startswith(_CHANGEABLE)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def validate(config: ConfigDict) -> FrozenConfigDict:
    """Every check that needs no data and no device; raises UserError naming the key and what it allows."""
    try:
        _check_keys(config)
        _validate(config)
    except (AttributeError, KeyError) as error:
        raise UserError(f"the config lacks a key: {error}; build it on configs/base.py") from error
    except TypeError as error:
        raise UserError(f"the config holds a value of the wrong type: {error}") from error
    except RecursionError as error:
        raise UserError("the config holds a section within itself") from error
    return FrozenConfigDict(config)


def _validate(config):
    flat = flatten(config)
    for key, value in flat.items():
        _require(value is not None or key in _OPTIONAL, config, key, "it must have a value")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                most = 2**32 - 1 if "seed" in key else _MOST.get(key, 2**31 - 1)
                _require(number <= most, config, key, f"it must be at most {most}")
                _require(number >= -(2**31), config, key, "it must not be negative")
    for key, choices in (
        ("task.name", TASKS),
        ("task.kernel", tuple(resize.KERNELS)),
        ("schedule.name", tuple(SCHEDULES)),
        ("objective.name", OBJECTIVES),
        ("objective.kind", diffusion.KINDS),
        ("objective.distance", tuple(dream.DISTANCES)),
        ("objective.weight", tuple(dream.WEIGHTS)),
        ("network.name", NETWORKS),
        ("optimizer.name", optimizer.OPTIMIZERS),
        ("objective.estimate_pick", PICKS),
        ("objective.estimate_dtype", ("same", *DTYPES[1:])),
        ("compute_dtype", DTYPES),
        ("samples.sampler", tuple(sampling.SAMPLERS)),
        ("sampling.spacing", tuple(samplers.SPACINGS)),
        ("sampling.clip", tuple(sampling.LIMITS)),
        ("evaluation.protocol", tuple(PROTOCOLS)),
        ("watch.not_finite", watch.ON_NOT_FINITE),
        ("watch.rise", watch.ON_RISE),
    ):
        value = flat[key]
        _require(value in choices, config, key, f"choose one of {', '.join(choices)}")
    for key in _COUNTS:
        _require(flat[key] >= 1, config, key, "it must be at least 1")
    _require(config.steps >= 0, config, "steps", "it must not be negative")
    times = "supervision.hang_minutes", "supervision.first_minutes"
    amounts = "epochs", "data.resize", "evaluation.crop", "optimizer.clip", "objective.min_snr_gamma", "task.gain"
    for key in (*amounts, *times):
        value = flat[key]
        _require(value is None or (math.isfinite(value) and value > 0), config, key, "it must be greater than 0")
    for key in _FRACTIONS:
        _require(0 <= flat[key] <= 1, config, key, "it must lie between 0 and 1")
    for key in _NOT_NEGATIVE:
        _require(math.isfinite(flat[key]) and flat[key] >= 0, config, key, "it must be finite and not negative")
    c = config.objective
    _require(c.minimum <= c.maximum, config, "objective.maximum", f"it must be at least minimum = {c.minimum}")
    # Beyond 50 the weight is a step at the last level, and its exponential leaves float32.
    _require(0 < c.rate <= 50, config, "objective.rate", "it must lie between 0 (excluded) and 50")
    betas = config.optimizer.betas
    _require(
        len(betas) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in betas),
        config,
        "optimizer.betas",
        "two numbers from 0 to 1 (excluded), like 0.9,0.999",
    )
    _require(config.network.dropout < 1, config, "network.dropout", "it must be less than 1")
    _require(0 < config.data.eval_percent < 100, config, "data.eval_percent", "it must lie between 0 and 100")
    p = config.objective.p
    _require(
        p is None or (math.isfinite(p) and p >= 0),
        config,
        "objective.p",
        "it must be finite and not negative; to switch DREAM off use null (None)",
    )
    _validate_estimate(config)
    if config.objective.name == "conservative_dream":
        _require(config.objective.kind == "eps", config, "objective.kind", "conservative_dream is defined for eps")
        _require(config.task.name == "unconditional", config, "task.name", "conservative_dream is for unconditional")
        whole = not config.schedule.continuous
        _require(whole, config, "schedule.continuous", "conservative_dream draws whole levels; set it False")
    _require(
        (config.objective.kind == "flow") == (config.schedule.name == "flow"),
        config,
        "objective.kind",
        "the kind flow and the schedule flow go together",
    )
    _require(
        config.batch_size % config.accumulation == 0,
        config,
        "batch_size",
        f"it must divide by accumulation = {config.accumulation}",
    )
    _require(
        config.data.folder is None or config.data.tfds is None, config, "data.tfds", "give data.folder or it, not both"
    )
    _require(
        config.data.eval_folder is None or config.data.folder is not None,
        config,
        "data.eval_folder",
        "it goes with data.folder, the pictures to train on",
    )
    if config.data.tfds is not None:
        same = config.data.eval_split == config.data.train_split
        _require(not same, config, "data.eval_split", "it must differ from data.train_split: it is never trained on")
    seeds = {"seed": (config.seed,), "evaluation.seeds": config.evaluation.seeds}
    if config.sampling.start_seed is not None:
        seeds["sampling.start_seed"] = (config.sampling.start_seed,)
    for key, values in seeds.items():
        allowed = all(isinstance(value, int) and 0 <= value < 2**32 for value in values)
        _require(allowed, config, key, "a seed is a whole number from 0 to 2^32 - 1")
    _require(len(set(config.evaluation.seeds)) == len(config.evaluation.seeds), config, "evaluation.seeds", "each once")
    _require(config.sampling.momentum > 0, config, "sampling.momentum", "it must be greater than 0")
    _require(config.sampling.eps_scale > 0, config, "sampling.eps_scale", "it must be greater than 0")
    least = config.sampling.eps_scale + config.sampling.eps_scale_slope
    _require(least > 0, config, "sampling.eps_scale_slope", "eps_scale + eps_scale_slope must be greater than 0")
    for name in config.evaluation.learned:
        _require(name in LEARNED, config, "evaluation.learned", f"choose from {', '.join(LEARNED)}")
    unconditional = config.task.name == "unconditional"
    _require(not (unconditional and config.sampling.project), config, "sampling.project", "it is for super-resolution")
    alone = config.sampling.start_seed is None or not unconditional
    _require(alone, config, "sampling.start_seed", "it is for super-resolution; all pictures would be the same one")
    for metric in METRICS.values() if unconditional else ():
        asked = metric.paired and metric.weights in config.evaluation.learned
        allowed = f"{metric.weights} compares with originals, which an unconditional model lacks"
        _require(not asked, config, "evaluation.learned", allowed)
    _validate_schedule(config)
    _validate_sizes(config)
    for key, steps in (("samples.steps", (config.samples.steps,)), ("evaluation.steps", config.evaluation.steps)):
        limit = config.schedule.num_steps
        for value in steps:
            allowed = isinstance(value, int) and 1 <= value <= limit
            _require(allowed, config, key, f"sampling steps run from 1 to schedule.num_steps = {limit}")
    for name in config.evaluation.samplers:
        known = ", ".join(sampling.SAMPLERS)
        _require(name in sampling.SAMPLERS, config, "evaluation.samplers", f"choose from {known}")
    for key in ("evaluation.samplers", "evaluation.steps", "evaluation.seeds"):
        _require(len(flat[key]) > 0, config, key, "it must name at least one")
    for key, value in flat.items():
        # What is finite in float32.
        for number in value if isinstance(value, tuple) else (value,):
            _require(not isinstance(number, float) or abs(number) < 2.0**127, config, key, "it must be finite")


def estimate_share(config) -> Fraction:
    """`objective.estimate_share` as the fraction that is meant."""
    return Fraction(config.objective.estimate_share).limit_denominator(64)


def _validate_estimate(config):
    key = "objective.estimate_share"
    share, given = estimate_share(config), config.objective.estimate_share
    _require(0 < given <= 1, config, key, "above 0, to 1; to switch DREAM off use objective.p = None")
    whole = share > 0 and abs(share - given) < 1e-4
    _require(whole, config, key, "a fraction of whole numbers to 64, like 0.5, 0.25 or 0.3333")
    rows = config.batch_size // config.accumulation
    divides = rows % share.denominator == 0
    _require(divides, config, key, f"batch_size / accumulation = {rows} must divide by {share.denominator}")
    if config.objective.name == "conservative_dream":
        for name in ("share", "every", "dtype"):
            default = config.objective[f"estimate_{name}"] == _ADDED[f"objective.estimate_{name}"]
            allowed = "it is for dream: conservative_dream has no extra pass for the self-estimate"
            _require(default, config, f"objective.estimate_{name}", allowed)


def _validate_schedule(config):
    c = config.schedule
    if c.name == "linear":
        _require(0 < c.beta_start <= c.beta_end < 1, config, "schedule.beta_end", "0 < beta_start <= beta_end < 1")
    if c.name == "cosine":
        _require(0 <= c.beta_min < c.beta_max < 1, config, "schedule.beta_max", "0 <= beta_min < beta_max < 1")


def _validate_sizes(config):
    c = config.network
    multipliers = c.channel_multipliers
    _require(
        0 < len(multipliers) <= _MOST_LEVELS
        and all(isinstance(m, int) and 1 <= m <= _MOST_MULTIPLIER for m in multipliers),
        config,
        "network.channel_multipliers",
        f"a list of up to {_MOST_LEVELS} whole numbers from 1 to {_MOST_MULTIPLIER}",
    )
    _require(c.channels % 2 == 0, config, "network.channels", "it must be even, for the noise-level embedding")
    for m in multipliers:
        _require(
            c.channels * m % c.norm_groups == 0,
            config,
            "network.norm_groups",
            f"it must divide every level's channels, {', '.join(str(c.channels * m) for m in multipliers)}",
        )
    _require(c.weights is None or c.name == "sr3", config, "network.weights", "they are read for the network sr3 only")
    divisor = network_divisor(config)
    sizes = {"image_size": config.image_size}
    if config.evaluation.crop is not None:
        sizes["evaluation.crop"] = config.evaluation.crop
    for key, size in sizes.items():
        _require(size % divisor == 0, config, key, f"it must divide by {divisor}, by which the network downsamples")
        least = max(metric.smallest for metric in METRICS.values() if metric.weights is None)
        _require(size >= least, config, key, f"it must be at least {least}, the smallest pictures that are measured")
        for name, metric in METRICS.items() if key != "image_size" or config.evaluation.crop is None else ():
            fits = metric.weights not in config.evaluation.learned or size >= metric.smallest
            _require(fits, config, key, f"{name} needs pictures of at least {metric.smallest} pixels")
        if config.task.name == "super_resolution":
            _require(size % config.task.scale == 0, config, key, f"it must divide by task.scale = {config.task.scale}")
    sides = [config.image_size // c.patch >> level for level in range(len(multipliers))]
    for side in c.attention_resolutions:
        _require(
            side in sides,
            config,
            "network.attention_resolutions",
            f"at image_size = {config.image_size} the levels' sides are {', '.join(map(str, sides))}",
        )
    if c.name == "generation":
        _require(c.patch == 1, config, "network.patch", "the generation network takes 1 only")
        for m in multipliers:
            _require(c.channels * m % c.num_heads == 0, config, "network.num_heads", f"it must divide {c.channels * m}")


def network_divisor(config) -> int:
    """What the sides of a picture must divide by."""
    levels = len(config.network.channel_multipliers)
    return config.network.patch * 2 ** (levels if config.network.name == "generation" else levels - 1)


def _require(condition, config, key, allowed):
    if not condition:
        raise UserError(f"{key} = {_cut(flatten(config)[key])}: {allowed}")
