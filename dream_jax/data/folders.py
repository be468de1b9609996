"""Folders of pictures, prepared once into ArrayRecord datasets."""

import collections
import contextlib
import functools
import hashlib
import io
import itertools
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dream_jax.data import indexed, listing, packing, prepared_folders
from dream_jax.data.catalog import builder_source
from dream_jax.data.indexed import Source
from dream_jax.data.prepared_folders import Making
from dream_jax.errors import UserError, shown
from dream_jax.files import cache, images, limits
from dream_jax.files.picture import USUAL, Reading

# Pixels beyond which pictures are prepared one after the other.
_LARGE = 2**24


class Pictures(tfds.core.GeneratorBasedBuilder):
    """The dataset that a folder becomes. examples: {split: iterator of (key, example)}, in the order to be kept.

    paired: whether examples have low-resolution pictures, "low", beside "image"; packed: whether these are packed, see
    `packing`; bits: of their levels.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, examples, paired=False, packed=False, bits=8, **options):
        self._examples, self._paired, self._packed, self._bits = examples, paired, packed, bits
        super().__init__(**options)

    def _info(self):
        shape, dtype = (None, None, 1 if self._packed else 3), np.uint16 if self._bits == 16 else np.uint8
        picture = tfds.features.Image(shape=shape, dtype=dtype, encoding_format="png")
        features = {
            "image": picture,
            **({"low": picture} if self._paired else {}),
            "name": tfds.features.Text(),
            "top": np.int64,
            "left": np.int64,
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return self._examples

    def _generate_examples(self):
        raise NotImplementedError("the splits are given to the constructor")


def prepare_folder(
    folder,
    *,
    crop: int,
    eval_folder=None,
    cache_dir=None,
    resize: int | None = None,
    skip_unreadable: bool = False,
    eval_percent: float = 10.0,
    whole: bool = False,
    lr_folder=None,
    eval_lr_folder=None,
    scale: int = 1,
    reading: Reading = USUAL,
) -> Path:
    """Makes pictures into an ArrayRecord dataset with the splits "train" and "eval"; returns its path.

    It is made once, under cache_dir (default: `cache.root()`), in a folder named after the files' names, sizes and
    times and these arguments, so a folder that changed is prepared anew. Where no picture has to be cut, one folder
    serves several crops, see `prepared_folders`. It appears there only when complete, and the
    first of several processes that prepare the same one wins.

    eval is all of eval_folder, whose files are then never in train, or about eval_percent of the folder: by a CRC-32 of
    each file's name, so adding files moves none. With resize, the shorter side becomes that many pixels. Evaluation
    pictures are kept whole; training pictures longer than 4 * crop are cut by `tiles`, since decoding a large PNG for
    every crop is slow. `whole` keeps these whole, too.

    Args:
      folder, eval_folder: folders, or files that hold many pictures; several with commas between, see
        `listing.pictures`.
      lr_folder, eval_lr_folder: as many, of the low-resolution pictures; scale: how many times smaller these are.
      reading: how files are read.

    Raises UserError if no picture is left, the cache cannot be written, or, unless skip_unreadable, a picture cannot be
    read, is smaller than the crop, or has no low-resolution picture that fits: all of them are named.
    """
    splits = split_files(folder, eval_folder, eval_percent, lr_folder, eval_lr_folder, scale)
    making = Making(crop, resize, skip_unreadable, whole, None if lr_folder is None else scale, reading)
    parent = Path(cache_dir).expanduser() if cache_dir else cache.root()
    place = prepared_folders.Place(parent, listing.title(folder), splits, making, str(Pictures.VERSION))
    prepared = place.find()
    if not prepared.exists():
        _prepare(splits, making, prepared, place)
        said = f"prepared pictures of {shown(folder)}: {cache.size_of(prepared) / 2**20:.1f} MiB in {prepared}"
        listed = "" if cache_dir else "; `python -m dream_jax cache` lists and removes such folders"
        print(f"{said}{listed}", file=sys.stderr)
    return prepared


def _prepare(splits, making, prepared, place):
    parent, unfinished = prepared.parent, None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
        _warn_of_duplicates(splits)
        made, sides = _write(splits, unfinished, making)
        place.note(made, sides)
        try:
            os.rename(made, prepared)
        except OSError:  # another process was first, with the same files
            if not prepared.exists():
                raise
    except OSError as error:
        raise UserError(
            f"data.cache_dir: prepared pictures cannot be written to {parent} ({error}); choose another folder "
            "there or in DREAM_JAX_CACHE"
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def tiles(size: int, crop: int) -> list[tuple[int, int]]:
    """Intervals (start, stop) of at most 4 * crop that overlap by crop - 1 and hold each crop of `size` in exactly one.

    The size - crop + 1 places where a crop can start are shared out evenly: a tile serves at most 3 * crop + 1 of them.
    """
    starts = size - crop + 1
    count = -(-starts // (3 * crop + 1))
    edges = [starts * i // count for i in range(count + 1)]
    return [(a, b + crop - 1) for a, b in itertools.pairwise(edges)]


def split_files(folder, eval_folder, eval_percent, lr_folder=None, eval_lr_folder=None, scale=1):
    """{"train": {name: listing.Entry}, "eval": {...}}, in order."""
    files = listing.pictures(folder, lr_folder, scale)
    if eval_folder is not None:
        held_out = listing.pictures(eval_folder, eval_lr_folder, scale)
        # The one may lie inside the other.
        never_train = {listing.identity(entry.picture) for entry in held_out.values()}
        train = {name: entry for name, entry in files.items() if listing.identity(entry.picture) not in never_train}
        if not train:
            raise UserError(
                f"data.folder: every picture of {shown(folder)} is also in data.eval_folder {shown(eval_folder)}"
            )
        return {"train": train, "eval": held_out}
    if len(files) < 2:
        raise UserError(
            f"data.folder: {shown(folder)} has one picture; to hold one out it needs two, or set data.eval_folder"
        )
    by_crc = sorted(files, key=lambda name: (zlib.crc32(os.fsencode(name)), name))
    below = sum(zlib.crc32(os.fsencode(name)) < eval_percent / 100 * 2**32 for name in files)
    chosen = set(by_crc[: min(max(below, 1), len(files) - 1)])
    return {
        "train": {name: entry for name, entry in files.items() if name not in chosen},
        "eval": {name: entry for name, entry in files.items() if name in chosen},
    }


def _warn_of_duplicates(splits):
    """Files of the two splits with the same bytes; only those of equal size are read."""

    def digest(path):
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return path

    def files(split):
        paths = [entry.picture for entry in splits[split].values() if isinstance(entry.picture, Path)]
        return [(listing.state(path)[0] or 0, path) for path in paths]

    train, held_out = files("train"), files("eval")
    # What is no picture is not read: it may have no end.
    common = {size for size, _ in train if 0 < size <= limits.most_bytes()} & {size for size, _ in held_out}
    trained_on = {digest(path): path for size, path in train if size in common}
    found = [(path, trained_on.get(digest(path))) for size, path in held_out if size in common]
    same = [f"{shown(path)} = {shown(other)}" for path, other in found if other is not None]
    if same:
        _warn(f"{len(same)} evaluation pictures are also trained on, byte for byte: {listing.first(same)}")


def _write(splits, unfinished, making):
    left_out, sides, notes, total = (
        [],
        set(),
        collections.defaultdict(list),
        sum(len(files) for files in splits.values()),
    )
    # A few threads: decoding and encoding release the interpreter's lock, and each holds a whole picture.
    threads = min(os.cpu_count() or 1, 8)
    with _progress_bar(total) as advance, ThreadPoolExecutor(threads) as pool:

        def examples(split):
            some = False
            kept_whole = making.whole or split == "eval"
            make = functools.partial(_made_of, making=making._replace(whole=kept_whole))
            for made in in_order(pool, make, splits[split].items(), 2 * threads, _is_large):
                some |= bool(made.examples)
                left_out.extend(made.problem)
                sides.update(made.sides)
                for note, name in made.notes:
                    notes[note].append(name)
                yield from made.examples
                advance()
            _check_left_out(split, some, left_out, total, making.skip_unreadable)

        builder = Pictures(
            data_dir=unfinished,
            file_format="array_record",
            examples={split: examples(split) for split in splits},
            paired=making.scale is not None,
            packed=packing.is_packed(making.reading),
            bits=making.reading.bits,
        )
        tfds.display_progress_bar(False)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it announces a download, to the unfinished folder
                builder.download_and_prepare()
        finally:
            tfds.display_progress_bar(True)
    if left_out:
        _warn(f"{len(left_out)} of {total} pictures are left out: {listing.first(left_out)}")
    for note, names in notes.items():
        _warn(f"{len(names)} of {total} pictures {note}: {listing.first(names, 3)}")
    return Path(builder.data_dir), None if left_out else sides


class Made(NamedTuple):
    """What became of a picture: [(key, example)], [why there are none], [(what is said of it, its name)], its sides."""

    examples: list
    problem: Sequence[str] = ()
    notes: Sequence[tuple[str, str]] = ()
    sides: Sequence[int] = ()


def _made_of(item, making):
    """The examples of a picture's tiles; `whole` makes one of the picture."""
    name, entry = item
    try:
        picture, notes = _picture(entry, making)
    except UserError as error:
        return Made([], [str(error)])
    grid, step = (picture.beside, picture.scale) if isinstance(picture, indexed.Pair) else (picture, 1)
    rows, columns = ([(0, size)] if making.whole else tiles(size, making.crop // step) for size in grid.shape[:2])
    found = []
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        parts = {} if grid is picture else {"low": grid[top:bottom, left:right]}
        top, bottom, left, right = (place * step for place in (top, bottom, left, right))
        parts["image"] = indexed.images_of(picture)[top:bottom, left:right]
        # A name may be any bytes, a text may not.
        example = {"name": shown(name), "top": top, "left": left}
        found.append(
            (f"{os.fsencode(name)!r} {top} {left}", example | {key: packing.pack(part) for key, part in parts.items()})
        )
    return Made(found, notes=notes, sides=indexed.images_of(picture).shape[:2])


def _picture(entry, making):
    """(the picture, or pair, of an entry; notes as in `Made`); raises UserError, which names it."""
    name = shown(entry.picture)
    if entry.problem is not None:
        raise UserError(entry.problem)
    picture, notes = listing.read_noting(entry.picture, making.reading)
    if making.resize is not None:
        try:
            picture = images.resize_shorter_side(picture, making.resize)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    height, width = picture.shape[:2]
    if min(height, width) < making.crop:
        raise UserError(f"{name}: {width}x{height} is smaller than the crop of {making.crop}")
    if making.scale is None:
        return picture, [(note, name) for note in notes]
    paired = indexed.pair(picture, listing.read(entry.beside, making.reading), making.scale, name)
    if paired.image.shape != picture.shape:
        cut = f"are cut at the right and below, as task.scale = {making.scale} does not divide their sides"
        return paired, [(cut, f"{name}: {width}x{height}"), *((note, name) for note in notes)]
    return paired, [(note, name) for note in notes]


def _is_large(item):
    # A large picture takes up to a GiB.
    picture = item[1].picture
    return images.claimed_pixels(picture) > _LARGE if isinstance(picture, Path) else picture.large


def _check_left_out(split, some, left_out, total, skip_unreadable):
    if not some and skip_unreadable:
        raise UserError(
            f"no {split} picture can be used; add some, or set data.eval_folder or another data.eval_percent: "
            + listing.first(left_out)
        )
    if left_out and not skip_unreadable and (split == "eval" or not some):
        raise UserError(
            f"{len(left_out)} of {total} pictures cannot be used; set data.skip_unreadable=True to leave them "
            "out: " + listing.first(left_out)
        )


@contextlib.contextmanager
def _progress_bar(total):
    """`advance()`: a bar of files on stderr, with their rate and the time left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("preparing pictures", total=total, rate="")

        def advance():
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def in_order(pool, function, items, ahead, alone):
    """function(item) for each item, in order, at most `ahead` of them computed or waiting at a time.

    Those for which `alone(item)` is true are computed only when their turn has come.
    """
    running = collections.deque()
    for item in items:
        running.append(functools.partial(function, item) if alone(item) else pool.submit(function, item).result)
        if len(running) >= ahead:
            yield running.popleft()()
    while running:
        yield running.popleft()()


def _warn(message):
    print(f"warning: {message}", file=sys.stderr)


def folder_source(folder, *, split: str, **options) -> Source:
    """The split "train" or "eval" of a folder of pictures; options are those of `prepare_folder`, which prepares it."""
    path, paired = prepare_folder(folder, **options), options.get("lr_folder") is not None
    builder = tfds.builder_from_directory(path)
    low_key, reading = "low" if paired else "none", options.get("reading", USUAL)
    decode = packing.make_unpack(reading)
    return builder_source(builder, split, "image", decode, "name", low_key, options.get("scale", 1))
