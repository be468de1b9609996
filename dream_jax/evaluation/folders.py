"""Measures between the pictures of two folders, whoever made them: no model is needed."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dream_jax.errors import UserError, shown
from dream_jax.evaluation import measuring
from dream_jax.files import atomic, images, picture_files
from dream_jax.files.numbers import of_bits
from dream_jax.files.picture import Reading, of_channels
from dream_jax.inference import drawing
from dream_jax.metrics import METRICS, Compared, picture_set

# Of the pictures without a partner, a message names so many.
_NAMED = 5
# Of every file what it has.
ITS_OWN = Reading(channels=None, bits=None)
# Of maps; classes that need 16 bits are refused when they are read.
_READ_AS = {
    "picture": {},
    "depth": {"channels": 1, "bits": 16},
    "classes": {"channels": 1, "bits": 8, "classes": True},
}
# The networks whose features are taken of pictures of any size.
_ANY_SIZE = "inception"


def measure(results, originals, settings, console: Console, reading: Reading = ITS_OWN, kind: str = "picture") -> dict:
    """Every metric of `config.evaluation` between two folders: the result file's content.

    Pictures with the same name (and folder below; the suffix may differ) are pairs. Where there are none, the folders
    are two sets. Measures of sets need pictures of one size, but for those of Inception.

    Args:
      results, originals: folders; metrics that are not symmetric take the second one for the truth.
      settings: `config.evaluation`.
      reading: how pictures are read; of two, the one of fewer bits or channels is given those of the other.
      kind: what they are, "picture", or maps of "depth" or of "classes"; maps are compared in pairs.

    Raises UserError for folders without pictures, pairs of different sizes, and weights that cannot be had.
    """
    named = [_named(folder) for folder in (results, originals)]
    common = [name for name in named[0] if name in named[1]]
    both = set(common)
    alone = [str(files[name]) for files in named for name in files if name not in both] if common else []
    if kind != "picture" and not common:
        raise UserError(f"{shown(results)} and {shown(originals)} have no name in common; maps are compared in pairs")
    reading = reading._replace(**_READ_AS[kind])
    asked, about, learned = measuring.load_metrics(settings, bool(common), kind)
    asked = {name: metric for name, metric in asked.items() if not metric.over_seeds}
    paths = [[files[name] for name in common or files] for files in named]
    by_picture = []
    with drawing.progress_bar(console) as bar:
        for name, *pair in bar.track(list(zip(common, *paths, strict=True)) if common else [], description="measuring"):
            by_picture.append({"picture": name} | _of_pair(asked, pair, settings, learned, reading))
    of_pairs = [name for name in METRICS if by_picture and all(name in row for row in by_picture)]
    values = {name: float(np.mean([row[name] for row in by_picture])) for name in of_pairs}
    of_sets, notes = _of_sets(asked, paths, settings, learned, reading)
    if alone:
        listed = ", ".join(map(shown, alone[:_NAMED])) + (", ..." if len(alone) > _NAMED else "")
        notes.append(f"{len(alone)} pictures have no partner of their name, and are left out: {listed}")
    values |= of_sets
    return {
        "protocol": settings.protocol,
        "results": str(results),
        "originals": str(originals),
        "pairs": len(common),
        "pictures": [len(each) for each in paths],
        "about_protocol": {name: asked[name].about for name in METRICS if name in values},
        "values": {name: values[name] for name in METRICS if name in values},
        "by_picture": by_picture,
        "learned": about,
        "notes": notes,
    }


def _named(folder) -> dict[str, Path]:
    """{name without its suffix: file} of a folder's pictures."""
    found = {}
    for path in picture_files.list_pictures(folder):
        name = shown(path.relative_to(Path(folder).expanduser()).with_suffix("").as_posix())
        if name in found:
            raise UserError(f"{shown(found[name])} and {shown(path)} have one name; which is to be measured?")
        found[name] = path
    return found


def _compared(a, b, settings, learned, reading):
    sets, size = (picture_set(a, learned), picture_set(b, learned)), min(settings.batch_size, len(a))
    kept = {"channel": settings.channel, "border": settings.border, "span": reading.span or (0.0, 1.0)}
    return Compared(*sets, None, None, learned, size, **kept)


def _alike(paths, pictures, learned, channel="rgb"):
    """Pictures with the most bits and channels of any of them; grey ones with three for the luma, channel "y".

    Raises UserError for pictures that cannot be given the same, and for other channels than those of colours where
    networks or the luma are asked for.
    """
    bits = max(8 * picture.dtype.itemsize for picture in pictures)
    channels = max(3 if channel == "y" else 1, *(picture.shape[2] for picture in pictures))
    for path, picture in zip(paths, pictures, strict=True):
        asked = ["evaluation.learned"] * bool(learned) + ["--channel y"] * (channel == "y")
        if asked and picture.shape[2] not in (1, 3):
            said = f"{shown(path)}: it has {picture.shape[2]} channels"
            raise UserError(f"{said}; {' and '.join(asked)} measure grey or three colours, leave them out")
    found = []
    for path, picture in zip(paths, pictures, strict=True):
        try:
            found.append(of_channels(of_bits(picture, bits), channels))
        except ValueError:
            said = f"{shown(path)}: it has {picture.shape[2]} channels, and others {channels}"
            raise UserError(f"{said}; they cannot be compared") from None
    return found


def _of_pair(asked, pair, settings, learned, reading):
    a, b = _alike(pair, [images.read(path, reading) for path in pair], learned, settings.channel)
    if a.shape != b.shape:
        sizes = " and ".join(f"{shown(path)} {p.shape[1]}x{p.shape[0]}" for path, p in zip(pair, (a, b), strict=True))
        raise UserError(f"a pair must have one size: {sizes}")
    if min(a.shape[:2]) <= 2 * settings.border:
        raise UserError(
            f"{shown(pair[0])}: {a.shape[1]}x{a.shape[0]} pixels leave none within a border of {settings.border}"
        )
    compared = _compared(a[None], b[None], settings, learned, reading)
    kind = next((metric.of for metric in asked.values()), "picture")
    measuring.check_known(kind, [b], compared.span, lambda _: str(pair[1]))
    return measuring.of_pair(asked, compared)


def _of_sets(asked, paths, settings, learned, reading):
    """({metric: value}, notes) of the two sets."""
    of_sets = {name: metric for name, metric in asked.items() if not metric.paired or metric.of_set}
    if not of_sets:
        return {}, []
    both = [path for each in paths for path in each]
    pictures = _alike(both, [images.read(path, reading) for path in both], learned)
    sets = [pictures[: len(paths[0])], pictures[len(paths[0]) :]]
    one_size, notes = len({picture.shape for each in sets for picture in each}) == 1, []
    fewest, side = min(map(len, sets)), min(min(picture.shape[:2]) for each in sets for picture in each)
    fitting = {
        name: metric
        for name, metric in of_sets.items()
        if fewest >= metric.fewest and side >= metric.smallest and (one_size or metric.weights == _ANY_SIZE)
    }
    left_out = [name for name in of_sets if name not in fitting]
    if left_out:
        why = "they need more or larger pictures" if one_size else "they need pictures of one size"
        notes.append(f"without {', '.join(left_out)}: {why}")
    notes += [
        f"{name} from no more than {metric.comparable_above} pictures compares only with that of as many"
        for name, metric in fitting.items()
        if fewest <= metric.comparable_above
    ]
    sets = [np.stack(pictures) if one_size else pictures for pictures in sets]
    found = measuring.values_of(fitting, _compared(*sets, settings, learned, reading))
    return {name: float(np.mean(value)) for name, value in found.items()}, notes


def show(record: dict, console: Console) -> None:
    """Prints the result file's table."""
    what = (
        f"{record['pairs']} pairs" if record["pairs"] else "two sets of {} and {} pictures".format(*record["pictures"])
    )
    table = Table("", "", title=f"{what}: {record['results']} against {record['originals']}", show_header=False)
    for name, value in record["values"].items():
        table.add_row(METRICS[name].title, format(value, METRICS[name].digits))
    console.print(table)
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)


def write(record: dict, path: Path) -> None:
    """Writes PATH (JSON), and for pairs the values of each picture beside it as CSV."""
    if record["by_picture"]:
        atomic.write_csv(path.with_suffix(".csv"), record["by_picture"])
    atomic.write_json(path, record)
