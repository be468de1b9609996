"""Every key of a config, in one table: its default, what it is, and what it may be.

The table is read by `defaults`, by checking, by the command line, and by docs/keys.md. To add a key, add its line.
"""

import json
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dream_jax import diffusion, dream, noise_schedule, objectives, optimizers, samplers, sampling
from dream_jax.metrics import METRICS, PROTOCOLS
from dream_jax.networks import NETWORKS
from dream_jax.tasks import TASKS, blur, masks, resize
from dream_jax.tasks.paired import TARGETS
from dream_jax.tasks.super_resolution import DEGRADATIONS

# Whole numbers without a bound of their own end here; seeds use all 32 bits.
MOST = 2**31 - 1
MOST_SEED = 2**32 - 1
# Bytes of names of classes in a config.json, half of what `records` reads, and of what stands around each.
_MOST_OF_NAMES, _AROUND_A_NAME = 2**19, 8


class Key(NamedTuple):
    """One key.

    Attributes:
      default: its value where nothing is said.
      about: what it is, for a person.
      allowed: `value -> None, or what is allowed instead`.
      optional: the type of its values, where None is one of them.
      choices: the names that its value, or each item of a list, may be: a family's table.
    """

    default: bool | int | float | str | tuple | None
    about: str
    allowed: Callable[[object], str | None] = lambda value: None
    optional: type | None = None
    choices: Collection[str] = ()

    @property
    def kind(self) -> type:
        """The type of its values."""
        return self.optional or type(self.default)

    def refuses(self, value) -> str | None:
        """What is allowed instead of a value; None where it is allowed."""
        names, choices = value if isinstance(value, tuple) else (value,), tuple(self.choices)
        if choices and not all(name in choices for name in names):
            return f"choose {'from' if isinstance(value, tuple) else 'one of'} {', '.join(self.choices)}"
        return self.allowed(value)

    def described(self) -> str:
        """What it is, with its choices."""
        return f"{self.about}: {', '.join(self.choices)}" if self.choices else self.about


def whole(least: int = 1, most: int = MOST):
    """Whole numbers of this range."""

    def allowed(value):
        if value < least:
            return "it must not be negative" if least == 0 else f"it must be at least {least}"
        return f"it must be at most {most}" if value > most else None

    return allowed


def number(test: Callable[[float], bool], said: str):
    """Numbers that pass a test, which says what it wants."""
    return lambda value: None if test(value) else said


def all_are(kinds, values) -> bool:
    """Whether all are of a type; True and False are no numbers."""
    return all(isinstance(value, kinds) and not isinstance(value, bool) for value in values)


def at_least_one(value):
    """A list that is not empty."""
    return None if value else "it must name at least one"


def seeds(value):
    """A seed, or a list of different ones."""
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        return "it must name at least one"
    if not all_are(int, values) or not all(0 <= seed <= MOST_SEED for seed in values):
        return "a seed is a whole number from 0 to 2^32 - 1"
    return "each once" if len(set(values)) < len(values) else None


def step_counts(value):
    """A list of sampling steps; `checks` holds them against the noise schedule."""
    if not value:
        return "it must name at least one"
    good = all_are(int, value) and min(value) >= 1
    return None if good else "sampling steps are whole numbers, from 1 on"


def multipliers(value):
    """Channels by level, over network.channels."""
    good = 0 < len(value) <= 16 and all_are(int, value) and all(1 <= m <= 2**10 for m in value)
    return None if good else "a list of up to 16 whole numbers from 1 to 1024"


def interval(value):
    """Nothing, or two rising numbers."""
    good = not value or (len(value) == 2 and all_are(int | float, value) and value[0] < value[1])
    return None if good else "two rising numbers, like 0,4095"


def class_names(value):
    """Nothing, or different names, as many as labels of 16 bits can number and as a config.json can hold."""
    good = all(isinstance(name, str) and name for name in value) and len(value) != 1
    if good and (size := sum(len(json.dumps(name)) + _AROUND_A_NAME for name in value)) > _MOST_OF_NAMES:
        return f"the {len(value)} names take {size} bytes of config.json; {_MOST_OF_NAMES} are allowed: shorten them"
    return None if good and len(set(value)) == len(value) <= 2**16 else "at least two different names, like cat,dog"


def betas(value):
    """Adam's two decay rates."""
    good = len(value) == 2 and all_are(int | float, value) and all(0 <= b < 1 for b in value)
    return None if good else "two numbers from 0 to 1 (excluded), like 0.9,0.999"


def drawn(least: float, most: float, kind: type = float):
    """One number of this range, or two that do not fall: what is drawn for each picture lies between them."""
    kinds, said = (int, "whole number") if kind is int else (int | float, "number")

    def allowed(value):
        good = len(value) in (1, 2) and all_are(kinds, value) and least <= value[0] <= value[-1] <= most
        return None if good else f"one {said} or two rising ones, like LOW,HIGH, from {least} to {most}"

    return allowed


def scales(value):
    """Nothing, or the smallest and the largest scale."""
    good = len(value) == 2 and all_are(int | float, value) and 1 <= value[0] <= value[1] <= LARGE_SIDE
    good = good or not value
    return None if good else "two rising numbers from 1 on, like 2,4"


POSITIVE = number(lambda value: math.isfinite(value) and value > 0, "it must be greater than 0")
NOT_NEGATIVE = number(lambda value: math.isfinite(value) and value >= 0, "it must be finite and not negative")
FRACTION = number(lambda value: 0 <= value <= 1, "it must lie between 0 and 1")
LARGE_SIDE, LARGE_COUNT, LARGE_CHANNELS = 2**13, 2**20, 2**14  # what no machine has the time or memory for
# The networks that metrics need.
LEARNED = tuple(dict.fromkeys(metric.weights for metric in METRICS.values() if metric.weights))
DTYPES = ("auto", "float32", "bfloat16", "float64")

KEYS = {
    "seed": Key(0, "of the weights, the order of pictures, and all training noise", seeds),
    "steps": Key(10_000, "updates in all", whole(0)),
    "epochs": Key(None, "instead of steps: passes over the training pictures", whole(), int),
    "batch_size": Key(16, "pictures an update, over all devices", whole(1, LARGE_COUNT)),
    "accumulation": Key(1, "microbatches that each update is computed in", whole(1, LARGE_COUNT)),
    "image_size": Key(128, "side of the square training crop, pixels", whole(16, LARGE_SIDE)),
    "compute_dtype": Key("auto", "auto is bfloat16 on GPU and TPU, float32 on CPU", choices=DTYPES),
    "deterministic": Key(False, "on GPU: the same bits in every run, which CPUs give anyway; slower"),
    "ema_decay": Key(0.9999, "of the averaged weights that are used", FRACTION),
    "task.name": Key("super_resolution", "what is trained", choices=TASKS),
    "task.scale": Key(
        4.0,
        "super_resolution: how many times pictures are enlarged",
        number(lambda scale: 1 <= scale <= LARGE_SIDE, f"a number from 1 to {LARGE_SIDE}"),
    ),
    "task.scales": Key(
        (), "super_resolution: LOW,HIGH, instead, a scale drawn for each picture that is trained on", scales
    ),
    "task.kernel": Key("pil_bicubic", "super_resolution: the kernel that shrinks and enlarges", choices=resize.KERNELS),
    "task.blur": Key(
        0.0,
        "super_resolution: the width in pixels of a Gaussian before shrinking",
        number(lambda width: 0 <= width <= 32, "a number from 0 to 32"),
    ),
    "task.degradation": Key(
        "kernel",
        "super_resolution: shrinking by the kernel; or mixed, also blur up to task.width, noise up to task.deviation "
        "and JPEG of task.quality, in random order",
        choices=DEGRADATIONS,
    ),
    "task.masks": Key(
        tuple(masks.MASKS), "inpainting: the random masks, each as likely", at_least_one, choices=masks.MASKS
    ),
    "task.unknown": Key(
        (0.1, 0.5), "inpainting: the share of a picture that is unknown, or LOW,HIGH", drawn(0.01, 0.99)
    ),
    "task.blurs": Key(blur.BLURS, "deblurring: what blurs, each as likely", at_least_one, choices=blur.BLURS),
    "task.width": Key((0.5, 3.0), "deblurring: the Gaussian's width in pixels, or LOW,HIGH", drawn(0, 32)),
    "task.length": Key((3.0, 15.0), "deblurring: of motion in pixels, or LOW,HIGH", drawn(1, 255)),
    "task.deviation": Key((25.0,), "denoising: of the noise, in levels of 255, or LOW,HIGH", drawn(0, 255)),
    "task.quality": Key((30, 95), "jpeg: of the files, or LOW,HIGH", drawn(1, 100, int)),
    "task.residual": Key(
        False, "model the difference to what is observed (enlarged, masked, ...) instead of the picture"
    ),
    "task.gain": Key(1.0, "the difference is multiplied by this", POSITIVE),
    "task.target": Key("picture", "paired: what is made of the condition", choices=TARGETS),
    "task.num_classes": Key(
        None,
        "paired with target classes: how many; class_conditional: as many as data.classes",
        whole(1, 65535),
        int,
    ),
    "task.drop_label": Key(
        0.1,
        "class_conditional: the share of examples that are trained on without their class, which sampling.guidance "
        "needs; 0 is none",
        number(lambda share: 0 <= share < 1, "it must lie between 0 and 1 (excluded)"),
    ),
    "schedule.name": Key("linear", "the noise schedule", choices=noise_schedule.SCHEDULES),
    "schedule.num_steps": Key(2000, "steps of the noise schedule, of resfusion before it ends", whole(1, LARGE_COUNT)),
    "schedule.beta_start": Key(1e-6, "linear"),
    "schedule.beta_end": Key(1e-2, "linear"),
    "schedule.beta_min": Key(1e-4, "cosine"),
    "schedule.beta_max": Key(0.9999, "cosine"),
    "schedule.kappa": Key(2.0, "resshift: the noise's deviation over sqrt(eta), eta is 1 - alpha", POSITIVE),
    "schedule.sqrt_eta_start": Key(0.02, "resshift: sqrt(eta) at t = 1"),
    "schedule.sqrt_eta_end": Key(0.99, "resshift: at the end"),
    "schedule.power": Key(0.3, "resshift: how early sqrt(eta) grows; below 1 early", POSITIVE),
    "schedule.sum_scale": Key(1.0, "rddm: the variance of the noise at the end; its authors use 1 and 0.01", POSITIVE),
    "schedule.max_sigma": Key(10.0, "ir_sde: the deviation of the noise at the end, in grey levels of 255", POSITIVE),
    "schedule.alpha_end": Key(0.005, "ir_sde: alpha at the end"),
    "schedule.continuous": Key(True, "draw levels between table entries, not only at them"),
    "schedule.per_example": Key(True, "draw t for every example, not one for the batch"),
    "objective.name": Key("dream", "what is minimised, standard without DREAM", choices=objectives.OBJECTIVES),
    "objective.kind": Key("eps", "what the network predicts", choices=diffusion.KINDS),
    "objective.distance": Key("l1", "between prediction and target", choices=dream.DISTANCES),
    "objective.weight": Key("power", "dream: the family of the rectification weight lam", choices=dream.WEIGHTS),
    "objective.p": Key(
        1.0,
        "power: lam = sigma^p; None is the same as objective.name = standard",
        number(
            lambda p: math.isfinite(p) and p >= 0,
            "it must be finite and not negative; to switch DREAM off use null (None)",
        ),
        float,
    ),
    # Beyond 50 the weight is a step at the last level, and its exponential leaves float32.
    "objective.rate": Key(
        5.0, "exponential", number(lambda rate: 0 < rate <= 50, "it must lie between 0 (excluded) and 50")
    ),
    "objective.threshold": Key(0.5, "step", FRACTION),
    "objective.minimum": Key(0.0, "the weight runs from here", FRACTION),
    "objective.maximum": Key(1.0, "to here", FRACTION),
    "objective.start_epoch": Key(0, "the standard objective before", whole(0)),
    "objective.start_step": Key(0, "the same in steps; the later of the two counts", whole(0)),
    "objective.stop_step": Key(
        None, "the standard objective from here on, whose fixed point is unbiased", whole(), int
    ),
    "objective.ramp_epochs": Key(0, "the weight grows over these, counted from epoch 0", whole(0)),
    "objective.mix": Key(0.7, "conservative_dream: the share of the standard loss", FRACTION),
    "objective.estimate_every": Key(1, "dream: all steps but every so many-th are of the standard objective", whole()),
    "objective.noise": Key("same", "dream: of the second pass, the first's or fresh", choices=objectives.NOISES),
    "objective.estimate_noise": Key(
        0.0, "dream: noise of this deviation is added to the self-estimate, to see what it bears", NOT_NEGATIVE
    ),
    "objective.perturbation": Key(
        0.1, "input_perturbation: the deviation of the noise that inputs have more", NOT_NEGATIVE
    ),
    "objective.rollout": Key(2, "scheduled_sampling: the sampler's steps before each input", whole(1, 64)),
    "objective.span": Key(0.02, "scheduled_sampling: what these cover, as a share of the schedule", FRACTION),
    "objective.min_snr_gamma": Key(
        None, "weight l2 losses by min(snr, gamma) on x0's error; 5.0 is usual", POSITIVE, float
    ),
    "network.name": Key("sr3", "the network", choices=NETWORKS),
    "network.channels": Key(64, "at full resolution", whole(1, LARGE_CHANNELS)),
    "network.channel_multipliers": Key((1, 2, 4, 8, 8), "channels of each level, over those", multipliers),
    "network.attention_resolutions": Key(
        (16,),
        "feature-map sides at the training size",
        number(lambda sides: all_are(int, sides), "a list of whole numbers, like 16,8"),
    ),
    "network.num_res_blocks": Key(2, "residual blocks of each level", whole(1, 64)),
    "network.norm_groups": Key(32, "groups of every GroupNorm", whole(1, LARGE_CHANNELS)),
    "network.num_heads": Key(8, "generation: of every attention", whole(1, LARGE_CHANNELS)),
    "network.dropout": Key(
        0.0, "inside the residual blocks", number(lambda rate: 0 <= rate < 1, "it must lie between 0 and 1 (excluded)")
    ),
    "network.weights": Key(None, "sr3: start from official PyTorch weights, .pth or .safetensors", optional=str),
    "network.patch": Key(
        1, "sr3: work on patches of this many pixels a side, for a cheap network", whole(1, LARGE_SIDE)
    ),
    "network.remat": Key(False, "recompute blocks in the backward pass to save memory"),
    "init.path": Key(
        None,
        "begin with trained weights: a run's workdir, an exported model, hf://OWNER/NAME, or a file of PyTorch weights",
        optional=str,
    ),
    "init.checkpoint": Key("latest", "of a workdir: latest, best (by its loss) or a step"),
    "init.weights": Key(
        "ema", "of a workdir: the average that is used, or the last step's own", choices=("ema", "live")
    ),
    "init.partial": Key(False, "arrays that do not fit begin at random, instead of being refused"),
    "optimizer.name": Key("adam", "the optimizer", choices=optimizers.OPTIMIZERS),
    "optimizer.learning_rate": Key(1e-4, "after the warmup", NOT_NEGATIVE),
    "optimizer.warmup_steps": Key(0, "over which the rate grows to it", whole(0)),
    "optimizer.decay": Key("constant", "how the rate falls after the warmup", choices=optimizers.DECAYS),
    "optimizer.decay_steps": Key(
        None, "cosine, linear: the step at which it has fallen, most often steps", whole(), int
    ),
    "optimizer.final": Key(0.0, "cosine, linear: to this share of learning_rate", FRACTION),
    "optimizer.betas": Key((0.9, 0.999), "of adam and adamw", betas),
    "optimizer.epsilon": Key(1e-8, "of adam and adamw", NOT_NEGATIVE),
    "optimizer.weight_decay": Key(0.0, "adamw", NOT_NEGATIVE),
    "optimizer.clip": Key(None, "the gradient's largest global norm", POSITIVE, float),
    "data.folder": Key(
        None,
        "of pictures to train on, or a .npz, .npy, .h5 or .zip file, or several: A,B; else tfds; else the photographs "
        "within scikit-image",
        optional=str,
    ),
    "data.eval_folder": Key(None, "of pictures to evaluate on; else a share of folder is held out", optional=str),
    "data.lr_folder": Key(
        None, "super_resolution: low-resolution pictures of folder by the same names; else they are made", optional=str
    ),
    "data.eval_lr_folder": Key(None, "super_resolution: those of eval_folder", optional=str),
    "data.condition_folder": Key(
        None, "paired: what pictures are made from, by the same names as folder", optional=str
    ),
    "data.eval_condition_folder": Key(None, "paired: that of eval_folder", optional=str),
    "data.mask_folder": Key(
        None,
        "inpainting: masks by the names of folder's pictures, or any, of which each example gets one; else drawn ones",
        optional=str,
    ),
    "data.eval_mask_folder": Key(None, "inpainting: those to evaluate with; mask_folder", optional=str),
    "data.eval_percent": Key(10, "that share", number(lambda share: 0 < share < 100, "it must lie between 0 and 100")),
    "data.bundled": Key(
        "photographs",
        "without folder and tfds: the photographs within scikit-image, or made scenes of shapes, for the tasks paired "
        "and class_conditional",
        choices=("photographs", "scenes"),
    ),
    "data.tfds": Key(None, "name of a prepared TensorFlow Datasets dataset", optional=str),
    "data.tfds_dir": Key(None, "where it lies; ~/tensorflow_datasets", optional=str),
    "data.image_key": Key(None, "the feature that holds the pictures", optional=str),
    "data.lr_key": Key(
        None,
        "super_resolution: the feature that holds low-resolution pictures, lr beside hr where there is one; none: they "
        "are made",
        optional=str,
    ),
    "data.condition_key": Key(None, "paired: the feature that holds what pictures are made from", optional=str),
    "data.label_key": Key(None, "class_conditional: the feature that holds classes; label", optional=str),
    "data.classes": Key(
        (),
        "class_conditional: their names in the order of their numbers; found in the data, and written into the run",
        class_names,
    ),
    "data.train_split": Key("train", "tfds: the split to train on"),
    "data.eval_split": Key("test", "tfds: the split to evaluate on"),
    "data.resize": Key(None, "bring the shorter side to this many pixels first", whole(1, LARGE_SIDE), int),
    "data.crop": Key("random", "where training crops lie; aligned faces want the centre", choices=("random", "centre")),
    "data.limit": Key(None, "train on the first so many pictures only", whole(), int),
    "data.channels": Key(
        3, "of pictures: 1 is grey, 3 colours, others are bands of TIFF files and arrays", whole(1, 2**10)
    ),
    "data.bits": Key(
        8,
        "of levels: 16 keeps those of deeper files, 8 rounds them",
        number(lambda bits: bits in (8, 16), "8 or 16"),
    ),
    "data.range": Key(
        (),
        "LOW,HIGH, the numbers that mean black and white in files of more than 8 bits; else 0..65535, floats 0..1 or "
        "0..255",
        interval,
    ),
    "data.percentile": Key(
        None,
        "instead of range: of the training pictures' numbers, so that as many lie above; written into the run as range",
        number(lambda share: 50 < share <= 100, "it must lie between 50 (excluded) and 100"),
        float,
    ),
    "data.clip": Key(False, "cut off numbers outside the range, instead of refusing the picture"),
    "data.condition_channels": Key(3, "paired: of conditions, as channels", whole(1, 2**10)),
    "data.condition_bits": Key(8, "paired: of conditions, as bits", number(lambda bits: bits in (8, 16), "8 or 16")),
    "data.condition_range": Key((), "paired: of conditions, as range", interval),
    "data.flip": Key(True, "mirror at random"),
    "data.skip_unreadable": Key(False, "leave out files that cannot be read, instead of stopping"),
    "data.cache_dir": Key(None, "prepared folders; ~/.cache/dream_jax", optional=str),
    "data.workers": Key(
        2, "threads that read, for each device of a process, if there are so many cores", whole(1, 2**10)
    ),
    "mesh.shard": Key(1, "devices that each copy of the training state is spread over", whole()),
    "log_every": Key(100, "steps between lines of the log", whole()),
    "checkpoint.every": Key(1000, "steps", whole()),
    "checkpoint.keep": Key(2, "the newest", whole()),
    "checkpoint.keep_best": Key(0, "and so many with the lowest mean loss since the line of the log before", whole(0)),
    "checkpoint.directory": Key(None, "workdir/checkpoints; may be a bucket", optional=str),
    "supervision.hang_minutes": Key(
        20.0, "without a step: the run says where it hangs, and ends; None is never", POSITIVE, float
    ),
    "supervision.first_minutes": Key(60.0, "the same for the first step, which is compiled", POSITIVE),
    "supervision.heartbeat_seconds": Key(30, "of silence, after which a process is lost and ends the others", whole()),
    "supervision.meet_seconds": Key(300, "that processes wait for each other at the start", whole()),
    "watch.not_finite": Key(
        "stop",
        "at a loss or gradient that is not finite, which is never applied; rollback goes on from the last checkpoint "
        "without that step",
        choices=("stop", "skip", "rollback"),
    ),
    "watch.rise": Key(
        "warn",
        "when the loss rises and stays up; rollback goes to before it",
        choices=("off", "warn", "rollback"),
    ),
    "watch.deviations": Key(
        1.0, "what a loss may lie above its mean, in mean absolute deviations of its logarithm", NOT_NEGATIVE
    ),
    "watch.threshold": Key(20.0, "the sum of what is beyond that, at most 3 a step, that makes a rise", NOT_NEGATIVE),
    "watch.memory": Key(1000, "steps that the mean goes back", whole()),
    "watch.warmup": Key(200, "steps before the loss is watched", whole()),
    "watch.limit": Key(
        5, "stop at so many steps in a row that are not finite, or rollbacks to one checkpoint", whole()
    ),
    "sampling.spacing": Key("uniform_t", "of the sampling levels", choices=samplers.SPACINGS),
    "sampling.eta": Key(0.0, "the noise that ddim adds: from 0, none, to 1, as much as ddpm", FRACTION),
    "sampling.momentum": Key(
        0.8,
        "ghvb: above 0, to 1, which is none; below 1 damps its moves",
        number(lambda beta: 0 < beta <= 1, "it must lie between 0 (excluded) and 1"),
    ),
    "sampling.clip": Key(
        "range", "how predicted pictures are kept in range; dynamic is thresholding", choices=sampling.LIMITS
    ),
    "sampling.percentile": Key(0.995, "dynamic: the share of values that is kept", FRACTION),
    "sampling.eps_scale": Key(
        1.0, "epsilon scaling: predicted noise is divided by eps_scale + eps_scale_slope t / T", POSITIVE
    ),
    "sampling.eps_scale_slope": Key(0.0, "see eps_scale"),
    "sampling.shift_window": Key(
        0.0, "time-shift: times, in steps of the schedule, to choose from; 0 is off", NOT_NEGATIVE
    ),
    "sampling.shift_cutoff": Key(0.0, "time-shift: only at times above it", NOT_NEGATIVE),
    "sampling.project": Key(
        False, "pull predictions to what gives the observation: super_resolution, inpainting, colourisation"
    ),
    "sampling.guidance": Key(
        1.0,
        "class_conditional: how far predictions go from those without a class to those with it; 1 is none, and more "
        "takes two network evaluations a step",
        NOT_NEGATIVE,
    ),
    "sampling.start_seed": Key(None, "one starting noise for all pictures, instead of one for each", seeds, int),
    "samples.every": Key(1000, "steps between the grids that are drawn during training", whole()),
    "samples.count": Key(4, "pictures in a grid", whole(1, 2**12)),
    "samples.sampler": Key("ddim", "of these grids", choices=samplers.SAMPLERS),
    "samples.steps": Key(20, "network evaluations", whole()),
    "evaluation.samplers": Key(("ddim", "ddpm"), "to measure", at_least_one, choices=samplers.SAMPLERS),
    "evaluation.steps": Key((1, 5, 10, 50), "network evaluations", step_counts),
    "evaluation.against": Key(
        "eval",
        "what generated pictures are compared with: held-out ones, or train, as some report FID",
        choices=("eval", "train"),
    ),
    "evaluation.whole": Key(False, "restoration: whole pictures of any size instead of middle crops"),
    "evaluation.tile": Key(
        None, "whole: the side of tiles, in pixels of the result, instead of one found by memory", whole(16), int
    ),
    "evaluation.overlap": Key(None, "whole: by how many pixels tiles overlap; a quarter, 64 at most", whole(0), int),
    "evaluation.channel": Key("rgb", "of PSNR and SSIM; y is luma (BT.601)", choices=("rgb", "y")),
    "evaluation.border": Key(0, "PSNR and SSIM: pixels that are cut off at each side", whole(0, LARGE_SIDE)),
    "evaluation.pictures": Key(100, "at most", whole()),
    "evaluation.crop": Key(None, "side of the middle crop; image_size", whole(16, LARGE_SIDE), int),
    "evaluation.batch_size": Key(8, "pictures at once", whole(1, LARGE_COUNT)),
    "evaluation.seeds": Key((0,), "of the noise; with several, tables hold mean and spread", seeds),
    "evaluation.protocol": Key(
        "standard", "dream_official and clean_fid have the conventions of those codes", choices=PROTOCOLS
    ),
    "evaluation.learned": Key((), "networks whose measures are wanted", choices=LEARNED),
    "evaluation.weights": Key(None, "folder of these networks' weights; ~/.cache/dream_jax/weights", optional=str),
}


def defaults() -> ConfigDict:
    """A config of all defaults, in sections, that takes no other keys."""
    return nest({name: key.default for name, key in KEYS.items()}).lock()


def flatten(config, prefix: str = "") -> dict:
    """{"a.b": value} for every key of a config, or of nested dicts."""
    flat = {}
    for key, value in config.items():
        inside = isinstance(value, ConfigDict | dict)
        flat |= flatten(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat


def nest(flat: dict) -> ConfigDict:
    """The config of {"a.b": value}; keys that may be None are placeholders, and lists become tuples."""
    config = ConfigDict()
    for name, value in flat.items():
        *sections, leaf = name.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        if name in KEYS and KEYS[name].optional:
            section[leaf] = placeholder(KEYS[name].optional)
        section[leaf] = tuple(value) if isinstance(value, list) else value
    return config


def markdown() -> str:
    """The table as docs/keys.md holds it."""
    rows = [f"| `{name}` | `{key.default}` | {key.about} |" for name, key in KEYS.items()]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows]) + "\n"
