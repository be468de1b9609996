"""The family of metrics: each says here all that tables, plots and configs need to know of it.

A new metric is a function of `Compared` and its entry in METRICS.
"""

import functools
import warnings
from collections import ChainMap
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from dream_jax.metrics import dense, distributions, efficientnet, perceptual, pixels
from dream_jax.metrics.compared import SEEN_AT_ONCE, Array, Compared, each, in_batches, rgb8


class Metric(NamedTuple):
    """A metric, and what others must know of it.

    Attributes:
      title: its name in tables and plots.
      digits: the format of its values.
      higher_is_better: whether larger values are better.
      about: what it is, one line; result files hold it.
      function: its value for each picture [N], or one of the whole set; None where the task lacks what it needs.
      weights: the learned network that it needs, one of `weights.NETWORKS`; None: it needs none.
      paired: it compares each result with its own original.
      unpaired: it says something of results that have no original only.
      measures: "distortion" (how far from the original) or "perception" (how alike the sets look), the two axes of
        the trade-off (Blau & Michaeli 2018). The first measured one of each kind is plotted. None: neither.
      smallest: the smallest side of pictures that it takes.
      fewest: the fewest pictures that it takes.
      comparable_above: values from so many pictures or fewer compare only with values from as many.
      logarithmic: its axis is logarithmic.
      over_seeds: it compares the samples of several seeds, and says nothing of one.
      of: what it measures, of `Task.measured_as`.
      of_set: it compares each result with its own original, and says nothing of one pair.
    """

    title: str
    digits: str
    higher_is_better: bool
    about: str
    function: Callable[[Compared], Array | float | None]
    weights: str | None = None
    paired: bool = False
    unpaired: bool = False
    measures: Literal["distortion", "perception"] | None = None
    smallest: int = 1
    fewest: int = 1
    comparable_above: int = 0
    logarithmic: bool = False
    over_seeds: bool = False
    of: Literal["picture", "depth", "classes"] = "picture"
    of_set: bool = False


def chosen(protocol: str, learned: Collection[str], paired: bool, of: str = "picture") -> dict[str, Metric]:
    """The metrics of a protocol for results with originals or without, that need no other networks than the learned.

    of: what the results are, "picture", "depth" or "classes".
    """
    return {
        name: metric
        for name, metric in PROTOCOLS[protocol].items()
        if metric.of == of
        and (metric.weights is None or metric.weights in learned)
        and not (metric.unpaired if paired else metric.paired)
    }


def first_that_measures(what: Literal["distortion", "perception"], names: Collection[str]) -> str | None:
    """The first of METRICS among the names that measures it: the most telling one."""
    return next((name for name, metric in METRICS.items() if name in names and metric.measures == what), None)


def _of_channel(measure):
    def function(compared):
        return each(functools.partial(measure, channel=compared.channel, crop=compared.border))(compared)

    return function


def _of_depth(measure):
    return lambda compared: measure(*_pictures(compared), compared.span)


def _of_classes(measure):
    return lambda compared: measure(*_pictures(compared))


def _pictures(compared):
    return compared.results.pictures, compared.originals.pictures


def _consistency(compared):
    if compared.consistency is None:
        return None
    pair = compared.results.pictures, compared.observed
    return in_batches(compared.consistency, *pair, size=compared.batch_size)


def _consistency_official(compared):
    values = _consistency(compared)
    return None if values is None else 1e5 * values


def _signed(levels):
    """Grey levels to [-1, 1]."""
    return jnp.asarray(levels, jnp.float32) / 127.5 - 1


def _unsigned(levels):
    """Grey levels to [0, 1]."""
    return jnp.asarray(levels, jnp.float32) / 255


def _lpips(net, to_float, compared):
    weights = compared.weights[f"lpips_{net}"]
    return each(lambda a, b: perceptual.lpips(weights, to_float(rgb8(a)), to_float(rgb8(b)), net))(compared)


def _lpips_diversity(net, compared):
    weights = compared.weights[f"lpips_{net}"]
    of_picture = (np.stack(samples) for samples in zip(*compared.samples, strict=True))
    return np.array([perceptual.lpips_diversity(weights, _signed(rgb8(samples)), net) for samples in of_picture])


def _swd(compared):
    # Sets of training pictures may be smaller than the held-out one.
    a, b = compared.results.pictures, compared.originals.pictures
    count = min(len(a), len(b))
    return distributions.sliced_wasserstein(a[:count], b[:count])


def _efficientnet(compared):
    parts = range(-(-len(compared.results.pictures) // SEEN_AT_ONCE))
    pairs = ((compared.results.seen(number), compared.originals.seen(number)) for number in parts)
    return np.concatenate([efficientnet.distance(*pair) for pair in pairs])


def _lpips_pairs(net, compared):
    samples = _signed(rgb8(compared.results.pictures[:_PAIRED]))
    return perceptual.lpips_diversity(compared.weights[f"lpips_{net}"], samples, net)


def _frechet(features, compared):
    with warnings.catch_warnings():
        # The result file says it once, see `comparable_above`.
        warnings.simplefilter("ignore", UserWarning)
        return distributions.frechet_distance(features(compared.results), features(compared.originals))


def _kernel(features, compared):
    return distributions.kernel_distance(features(compared.results), features(compared.originals))


def _pool3(pictures, resize="linear"):
    return pictures.inception(resize)[0]


def _pooled(pictures):
    return pictures.efficientnet()


def _inception_score(compared):
    _, logits = compared.results.inception()
    return distributions.inception_score(logits, min(10, len(logits)))[0]


def _inception_spread(compared):
    _, logits = compared.results.inception()
    return distributions.inception_score(logits, min(10, len(logits)))[1]


def _lpips_metric(net, to_float, about):
    name = f"lpips_{net}"
    function = functools.partial(_lpips, net, to_float)
    smallest = perceptual.NETS[net].smallest
    return Metric(
        f"LPIPS {net}", ".4f", False, about, function, name, paired=True, measures="perception", smallest=smallest
    )


def _diversity_metric(net):
    return Metric(
        title=f"LPIPS {net} diversity",
        digits=".4f",
        higher_is_better=True,
        about="mean LPIPS over pairs of samples of one input, pictures in [-1, 1]",
        function=functools.partial(_lpips_diversity, net),
        weights=f"lpips_{net}",
        paired=True,
        smallest=perceptual.NETS[net].smallest,
        over_seeds=True,
    )


def _pairs_metric(net):
    return Metric(
        title=f"LPIPS {net} between samples",
        digits=".4f",
        higher_is_better=True,
        about=f"mean LPIPS over all pairs of the first {_PAIRED} pictures generated, in [-1, 1]",
        function=functools.partial(_lpips_pairs, net),
        weights=f"lpips_{net}",
        unpaired=True,
        smallest=perceptual.NETS[net].smallest,
        fewest=2,
    )


_ABOUT_INCEPTION = "Inception of pytorch-fid; 8-bit pictures against the held-out ones"
_ABOUT_EFFICIENTNET = "features of EfficientNet-lite0, neither FID's nor LPIPS's network"
_ABOUT_DEPTH = "where the true one is above 0, in the numbers of data.range, else 0..1; mean over pictures"
_ABOUT_VOID = "without void pixels"
_FEATURES = 2048
# Pictures whose pairs the diversity of a set is taken from; all go through the network at once.
_PAIRED = 100

# The most telling of a kind come first. swd needs no network, so that perception is always measured.
METRICS = {
    "psnr": Metric(
        title="PSNR, dB",
        digits=".2f",
        higher_is_better=True,
        about="dB, mean over pictures; of evaluation.channel without evaluation.border",
        function=_of_channel(pixels.psnr),
        paired=True,
        measures="distortion",
    ),
    "ssim": Metric(
        title="SSIM",
        digits=".4f",
        higher_is_better=True,
        about="Gaussian window 11 with sigma 1.5, mean over pictures; channel and border as of psnr",
        function=_of_channel(pixels.ssim),
        paired=True,
        measures="distortion",
        smallest=11,
    ),
    "consistency": Metric(
        title="consistency",
        digits=".2e",
        higher_is_better=False,
        about="mean squared error in [0, 1] between what is observed of the result and what it was made from",
        function=_consistency,
        paired=True,
        logarithmic=True,
    ),
    "mean_colour": Metric(
        title="colour error",
        digits=".3f",
        higher_is_better=False,
        about="absolute difference of the mean colours, grey levels",
        function=each(pixels.mean_colour_error),
        paired=True,
    ),
    **{f"lpips_{net}": _lpips_metric(net, _signed, "LPIPS 0.1 of pictures in [-1, 1]") for net in perceptual.NETS},
    "fid": Metric(
        title="FID",
        digits=".2f",
        higher_is_better=False,
        about=f"Fréchet distance; {_ABOUT_INCEPTION}",
        function=functools.partial(_frechet, _pool3),
        weights="inception",
        measures="perception",
        fewest=2,
        comparable_above=_FEATURES,
    ),
    "kid": Metric(
        title="KID",
        digits=".4f",
        higher_is_better=False,
        about=f"kernel distance; {_ABOUT_INCEPTION}",
        function=functools.partial(_kernel, _pool3),
        weights="inception",
        fewest=2,
    ),
    "is": Metric(
        title="IS",
        digits=".4f",
        higher_is_better=True,
        about="Inception Score of pytorch-fid's Inception; 8-bit pictures",
        function=_inception_score,
        weights="inception",
        fewest=2,
    ),
    "is_spread": Metric(
        title="IS, spread",
        digits=".4f",
        higher_is_better=False,
        about="standard deviation of the Inception Score over its 10 splits, in the order of the pictures",
        function=_inception_spread,
        weights="inception",
        fewest=2,
    ),
    "efficientnet": Metric(
        title="EfficientNet distance",
        digits=".4f",
        higher_is_better=False,
        about=f"distance of unit-length {_ABOUT_EFFICIENTNET}, mean over five resolutions and pictures",
        function=_efficientnet,
        weights="efficientnet_lite0",
        paired=True,
        measures="perception",
    ),
    "efficientnet_frechet": Metric(
        title="EfficientNet Fréchet",
        digits=".3f",
        higher_is_better=False,
        about=f"Fréchet distance of pooled {_ABOUT_EFFICIENTNET}; 8-bit pictures against the held-out ones",
        function=functools.partial(_frechet, _pooled),
        weights="efficientnet_lite0",
        measures="perception",
        fewest=2,
        comparable_above=1280,
    ),
    "efficientnet_kernel": Metric(
        title="EfficientNet kernel, x 1e3",
        digits=".3f",
        higher_is_better=False,
        about=f"kernel distance of pooled {_ABOUT_EFFICIENTNET}, times 1e3",
        function=lambda compared: 1e3 * _kernel(_pooled, compared),
        weights="efficientnet_lite0",
        fewest=2,
    ),
    "swd": Metric(
        title="SWD, x 1e3",
        digits=".2f",
        higher_is_better=False,
        about="sliced Wasserstein distance of Laplacian pyramids' patches, times 1e3; it needs no network",
        function=_swd,
        measures="perception",
        smallest=16,
    ),
    **{f"lpips_{net}_diversity": _diversity_metric(net) for net in perceptual.NETS},
    **{f"lpips_{net}_pairs": _pairs_metric(net) for net in perceptual.NETS},
    "abs_rel": Metric(
        title="abs-rel",
        digits=".4f",
        higher_is_better=False,
        about=f"absolute difference over the true depth, {_ABOUT_DEPTH}",
        function=_of_depth(dense.abs_rel),
        paired=True,
        measures="distortion",
        of="depth",
    ),
    "rmse": Metric(
        title="RMSE",
        digits=".4g",
        higher_is_better=False,
        about=f"root of the mean squared difference, {_ABOUT_DEPTH}",
        function=_of_depth(dense.rmse),
        paired=True,
        of="depth",
    ),
    "miou": Metric(
        title="mIoU",
        digits=".4f",
        higher_is_better=True,
        about=f"intersection over union, both summed over all pictures, mean over classes; {_ABOUT_VOID}",
        function=_of_classes(dense.mean_iou),
        paired=True,
        measures="distortion",
        of="classes",
        of_set=True,
    ),
    "picture_miou": Metric(
        title="mIoU of pictures",
        digits=".4f",
        higher_is_better=True,
        about=f"intersection over union, mean over the classes of a picture, then over pictures; {_ABOUT_VOID}",
        function=_of_classes(dense.picture_iou),
        paired=True,
        measures="distortion",
        of="classes",
    ),
    "boundary_f": Metric(
        title="boundary F",
        digits=".4f",
        higher_is_better=True,
        about=f"F-measure of classes' boundaries within 0.75% of the diagonal, as of picture_miou; {_ABOUT_VOID}",
        function=_of_classes(dense.boundary_f),
        paired=True,
        of="classes",
    ),
    "pixel_accuracy": Metric(
        title="pixel accuracy",
        digits=".4f",
        higher_is_better=True,
        about=f"share of pixels of the right class, mean over pictures; {_ABOUT_VOID}",
        function=_of_classes(dense.pixel_accuracy),
        paired=True,
        of="classes",
    ),
}

_CONSISTENCY, _FID = METRICS["consistency"], METRICS["fid"]

# dream_official is for comparing with numbers of DREAM's own code, whose conventions these follow.
_OFFICIAL = {
    "consistency": _CONSISTENCY._replace(function=_consistency_official, about=f"{_CONSISTENCY.about}, times 1e5"),
    "fid": _FID._replace(about=f"{_FID.about}; that code compares 100 with 100, which biases FID upwards"),
    **{
        f"lpips_{net}": _lpips_metric(
            net,
            _unsigned,
            "LPIPS 0.1 of pictures in [0, 1] although the networks expect [-1, 1]; that code reports lpips_vgg",
        )
        for net in perceptual.NETS
    },
}

# Of the same name as clean-fid's numbers, whose resizing these use.
_CLEAN = {
    name: METRICS[name]._replace(
        function=functools.partial(function, functools.partial(_pool3, resize="clean")),
        about=f"{METRICS[name].about}; resized as clean-fid does",
    )
    for name, function in {"fid": _frechet, "kid": _kernel}.items()
}

# A view, so that a metric that is added later is in both.
PROTOCOLS = {
    "standard": METRICS,
    "dream_official": ChainMap(_OFFICIAL, METRICS),
    "clean_fid": ChainMap(_CLEAN, METRICS),
}
