"""Whether a config makes sense: each key by itself, and keys that must fit each other."""

import difflib
import itertools

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from dream_jax import objectives, samplers, tasks
from dream_jax.config.keys import KEYS, MOST, MOST_SEED, flatten
from dream_jax.diffusion import KINDS
from dream_jax.errors import UserError
from dream_jax.metrics import chosen
from dream_jax.networks import NETWORKS
from dream_jax.noise_schedule import SCHEDULES
from dream_jax.tasks import beside
from dream_jax.tasks.super_resolution import check_scales

_NEVER_NULL = "its network never saw nothing observed ({}); it is for class_conditional with task.drop_label above 0"
_KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    tuple: "a list like 1,2,4",
}


def validate(config: ConfigDict) -> FrozenConfigDict:
    """Every check that needs no data and no device; raises UserError naming the key and what it allows."""
    check_each(config)
    for check in _CHECKS:
        check(config)
    return FrozenConfigDict(config)


def check_each(config) -> None:
    """The checks of each key by itself; errors as of `validate`."""
    try:
        check_types(config)
        _check_each(config)
    except RecursionError as error:
        raise UserError("the config holds a section within itself") from error


def check_types(config) -> None:
    """Raises UserError for a key that the table does not have, and for a value of another type than there."""
    for key, value in flatten(config).items():
        if key not in KEYS:
            raise unknown(key, KEYS)
        kind = KEYS[key].kind
        fits = isinstance(value, (int, float) if kind is float else kind) and (type(value) is not bool or kind is bool)
        if value is not None and not fits:
            raise UserError(f"config key {key!r} takes {kind_name(kind)}, not {cut(value)}")


def unknown(key, known) -> UserError:
    """What to say of a key that is not among the known ones."""
    inside = [name for name in known if name.startswith(key + ".")]
    near = inside[:3] or difflib.get_close_matches(key[:200], known, n=1, cutoff=0)
    return UserError(f"config key {cut(key)} is unknown; did you mean {' or '.join(map(repr, near))}?")


def kind_name(kind: type) -> str:
    """What values of a type are called."""
    return _KIND_NAMES.get(kind, kind.__name__)


def cut(value) -> str:
    """A value for a message, not longer than a few lines."""
    said = repr(value)
    return said if len(said) <= 200 else f"{said[:200]}..."


def _require(condition, config, key, allowed):
    if not condition:
        raise UserError(f"{key} = {cut(flatten(config)[key])}: {allowed}")


def _check_each(config):
    flat = flatten(config)
    if missing := [name for name in KEYS if name not in flat]:
        raise UserError(f"the config lacks a key: {missing[0]}; build it on configs/base.py")
    for name, key in KEYS.items():
        value = flat[name]
        _require(value is not None or key.optional, config, name, "it must have a value")
        if value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                most = MOST_SEED if "seed" in name else MOST
                _require(number <= most, config, name, f"it must be at most {most}")
                _require(number >= -MOST - 1, config, name, "it must not be negative")
        allowed = key.refuses(value)
        _require(allowed is None, config, name, allowed)
        for number in value if isinstance(value, tuple) else (value,):
            # What is finite in float32.
            _require(not isinstance(number, float) or abs(number) < 2.0**127, config, name, "it must be finite")


def _check_batch(config):
    divides = config.batch_size % config.accumulation == 0
    _require(divides, config, "batch_size", f"it must divide by accumulation = {config.accumulation}")


def _check_rate(config):
    c = config.optimizer
    falls = c.decay != "constant"
    given = (c.decay_steps is not None) == falls
    _require(given, config, "optimizer.decay_steps", "it goes with optimizer.decay = cosine or linear, which need it")
    later = not falls or c.decay_steps > c.warmup_steps
    _require(later, config, "optimizer.decay_steps", f"it must be more than warmup_steps = {c.warmup_steps}")


def _check_data(config):
    c = config.data
    _require(c.folder is None or c.tfds is None, config, "data.tfds", "give data.folder or it, not both")
    alone = c.eval_folder is None or c.folder is not None
    _require(alone, config, "data.eval_folder", "it goes with data.folder, the pictures to train on")
    _check_beside(config, c)
    same = c.tfds is not None and c.eval_split == c.train_split
    _require(not same, config, "data.eval_split", "it must differ from data.train_split: it is never trained on")


def _check_beside(config, c):
    """What lies beside pictures that are there."""
    task, flat = tasks.make(config), flatten(config)
    for kind, about in beside.BESIDE.items():
        for key in about.keys if kind != task.beside else ():
            usual = flat[f"data.{key}"] in (KEYS[f"data.{key}"].default, "none")
            takes = beside.BESIDE[task.beside].nouns if task.beside else "no pictures that are there"
            _require(usual, config, f"data.{key}", f"it is of {about.nouns}; {config.task.name} takes {takes}")
    if task.measured_as == "classes":
        _check_numbers_of_classes(config, c)
    if not task.beside:
        return
    about = beside.BESIDE[task.beside]
    feature = c[about.feature] if about.feature else None
    asked = feature not in (None, "none")
    _require(
        not asked or c.tfds is not None, config, f"data.{about.feature}", "it is a feature of a dataset: data.tfds"
    )
    if task.beside in ("low", "condition"):
        _check_folders(config, c, about)
        # Scenes come with their conditions.
        bundled = task.beside == "condition" and c.folder is None and c.tfds is None
        there = c[about.folder] is not None or asked or bundled
        fixed = f"{about.nouns} that are there do not fit resized originals"
        _require(c.resize is None or not there, config, "data.resize", fixed)
        if task.beside == "low" and there:
            beside.check_scale(config)


def _check_numbers_of_classes(config, c):
    """Numbers of classes are read as they are."""
    said = "numbers of classes have no black and white; conditions have data.condition_range"
    _require(not c.range, config, "data.range", said)
    _require(c.percentile is None, config, "data.percentile", said)
    _require(not c.clip or c.condition_range, config, "data.clip", said)


def _check_folders(config, c, about):
    """What folders of low-resolution pictures or conditions need."""
    for key, other in ((about.folder, "folder"), (about.eval_folder, "eval_folder")):
        _require(c[key] is None or c[other] is not None, config, f"data.{key}", f"it goes with data.{other}")
    both = c.eval_folder is None or (c[about.folder] is None) == (c[about.eval_folder] is None)
    said = f"data.folder and eval_folder both have {about.nouns}, or none"
    _require(both, config, f"data.{about.eval_folder}", said)


def _check_families(config):
    """What a schedule, a task and an objective say of their settings and of each other."""
    schedule, task = SCHEDULES[config.schedule.name](config.schedule), tasks.make(config)
    counted, names = config.task.num_classes, config.data.classes
    agree = counted is None or not names or counted == len(names)
    _require(agree, config, "task.num_classes", f"data.classes names {len(names)}; leave it None")
    most = 2**config.data.bits - 1
    numbered = task.measured_as != "classes" or task.classes <= most
    said = f"levels of data.bits = {config.data.bits} number at most {most} classes, as white is void"
    _require(numbered, config, "task.num_classes", said)
    c = config.objective
    _require(c.minimum <= c.maximum, config, "objective.maximum", f"it must be at least minimum = {c.minimum}")
    objectives.chosen(c).check(config, task)
    straight = np.allclose(schedule.alpha + schedule.sigma, 1)
    fits = KINDS[c.kind].straight == straight
    _require(fits, config, "objective.kind", "the kind flow and the schedule flow go together")
    # A division by zero is one by a tiny number there.
    tells = schedule.alpha[-1] > 0 or KINDS[c.kind].x0_error_scale(schedule.alpha[-1], schedule.sigma[-1]) < 1e6
    alone = f"the schedule {config.schedule.name} ends in noise alone, where this says nothing of the picture"
    _require(tells, config, "objective.kind", f"{alone}; use x0 or v")


def _check_sizes(config):
    task, entry = tasks.make(config), NETWORKS[config.network.name]
    network = entry.build(config, task, jnp.float32)
    readers = [name for name, other in NETWORKS.items() if other.load]
    known = config.network.weights is None or entry.load is not None
    _require(known, config, "network.weights", f"they are read for the network {', '.join(readers)} only")
    if task.drawn_condition is not None:
        check_scales(config.image_size, config.task)
    c = config.init
    for key, value in (("checkpoint", "latest"), ("weights", "ema"), ("partial", False)):
        alone = c.path is not None or c[key] == value
        _require(alone, config, f"init.{key}", "it belongs to init.path (--init_from), the run to begin from")
    one = config.network.weights is None or c.path is None
    _require(one, config, "init.path", "give it or network.weights, not both")
    for key in ("image_size", "evaluation.crop"):
        size = flatten(config)[key]
        if size is None:
            continue
        _require(size >= task.scale, config, key, f"it must be at least task.scale = {task.scale}")
        downsampled = size % network.divisor == 0
        _require(downsampled, config, key, f"it must divide by {network.divisor}, by which the network downsamples")
        # Whole pictures are cut to fit, at whatever scale.
        shrinks = size % task.divisor == 0 or config.evaluation.whole
        _require(shrinks, config, key, f"it must divide by {task.divisor}, by which the task shrinks pictures")


def _check_sampling(config):
    c, task = config.sampling, tasks.make(config)
    least = c.eps_scale + c.eps_scale_slope
    _require(least > 0, config, "sampling.eps_scale_slope", "eps_scale + eps_scale_slope must be greater than 0")
    _require(task.project or not c.project, config, "sampling.project", f"{config.task.name} has no exact projection")
    guides = c.guidance == 1 or task.null is not None
    _require(guides, config, "sampling.guidance", _NEVER_NULL.format(config.task.name))
    alone = c.start_seed is None or task.paired
    _require(alone, config, "sampling.start_seed", f"{config.task.name} would make the same picture every time")
    schedule = SCHEDULES[config.schedule.name](config.schedule)
    limit, name = schedule.num_steps, config.schedule.name
    said = "schedule.num_steps" if limit == config.schedule.num_steps else f"the steps of the schedule {name}"
    for key, steps in (("samples.steps", (config.samples.steps,)), ("evaluation.steps", config.evaluation.steps)):
        allowed = all(value <= limit for value in steps)
        _require(allowed, config, key, f"sampling steps run from 1 to {said} = {limit}")
    _check_samplers(config, "samples.sampler", schedule, (config.samples.sampler,), (config.samples.steps,))
    _check_samplers(config, "evaluation.samplers", schedule, config.evaluation.samplers, config.evaluation.steps)


def _check_samplers(config, key, schedule, names, steps):
    """Samplers that are not for this schedule are refused here, before training."""
    c = config.sampling
    for name, count in itertools.product(names, steps):
        try:
            levels = samplers.levels_of(schedule, count, c.spacing)
            samplers.make_rows(name, levels, eta=c.eta, momentum=c.momentum)
        except UserError as error:
            _require(False, config, key, str(error))


def _check_channels(config):
    c, channels, kind = config.evaluation, config.data.channels, tasks.make(config).measured_as
    of_pictures = kind == "picture" or not c.learned
    _require(of_pictures, config, "evaluation.learned", f"these networks take pictures, not {kind}")
    of_photographs = channels in (1, 3) or not c.learned
    _require(of_photographs, config, "evaluation.learned", f"these networks take colours, not {channels} channels")
    luma = c.channel == "rgb" or channels == 3
    _require(luma, config, "evaluation.channel", f"y is of three colours, not of {channels} channels")


def _check_evaluation(config):
    c, task = config.evaluation, tasks.make(config)
    key = "image_size" if c.crop is None else "evaluation.crop"
    side = flatten(config)[key]
    held_out = f"{config.task.name} is measured on pictures that it was not trained on"
    _require(c.against == "eval" or not task.paired, config, "evaluation.against", held_out)
    if not c.whole:
        for name, metric in chosen(c.protocol, c.learned, task.paired, task.measured_as).items():
            smallest = metric.smallest + (2 * c.border if metric.measures == "distortion" else 0)
            _require(side >= smallest, config, key, f"{name} needs pictures of at least {smallest} pixels")
    _require(task.paired or not c.whole, config, "evaluation.whole", f"{config.task.name} restores no pictures")


_CHECKS = (
    *(_check_batch, _check_rate, _check_data, _check_families, _check_sizes),
    *(_check_sampling, _check_channels, _check_evaluation),
)
