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
from dream_jax.data.beside import Beside
from dream_jax.data.catalog import builder_source
from dream_jax.data.indexed import Source
from dream_jax.data.prepared_folders import Making
from dream_jax.errors import UserError, shown
from dream_jax.files import cache, images, limits
from dream_jax.files.picture import MASK, USUAL, Reading
from dream_jax.tasks.beside import BESIDE

# Pixels beyond which pictures are prepared one after the other.
_LARGE = 2**24


class Pictures(tfds.core.GeneratorBasedBuilder):
    """The dataset that a folder becomes. examples: {split: iterator of (key, example)}, in the order to be kept.

    making: how they were read; what lies beside "image" is called by its kind.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, examples, making, **options):
        self._examples, self._making = examples, making
        super().__init__(**options)

    def _info(self):
        beside, reading = self._making.beside, self._making.reading
        features = {
            "image": _feature(reading),
            **({beside.kind: _feature(beside.read_as(reading))} if beside else {}),
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


def _feature(reading):
    shape = None, None, 1 if packing.is_packed(reading) else 3
    return tfds.features.Image(shape=shape, dtype=np.uint16 if reading.bits == 16 else np.uint8, encoding_format="png")


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
    beside: Beside | None = None,
    reading: Reading = USUAL,
    only: str | None = None,
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
      beside: what lies beside each picture, as many folders, or classes.
      reading: how files are read.
      only: the one split that is made.

    Raises UserError if no picture is left, the cache cannot be written, or, unless skip_unreadable, a picture cannot be
    read, is smaller than the crop, or has nothing beside it that fits: all of them are named.
    """
    splits = split_files(folder, eval_folder, eval_percent, beside)
    making = Making(crop, resize, skip_unreadable, whole, beside, reading)
    return _prepared(folder, splits, making, cache_dir, only)


def _prepared(folder, splits, making, cache_dir, only=None):
    """The folder in which these splits, or one of them only, are prepared, made where it is not there."""
    everything, splits = splits, splits if only is None else {only: splits[only]}
    parent = Path(cache_dir).expanduser() if cache_dir else cache.root()
    place = prepared_folders.Place(parent, listing.title(folder), splits, making, str(Pictures.VERSION))
    prepared = place.find()
    if not prepared.exists():
        if {"train", "eval"} <= set(everything) and only != "eval":
            _warn_of_duplicates(everything)
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


def split_files(folder, eval_folder, eval_percent, beside: Beside | None = None):
    """{"train": {name: listing.Entry}, "eval": {...}}, in order."""
    files = _listed(folder, beside, beside and beside.folder)
    if eval_folder is not None:
        held_out = _listed(eval_folder, beside, beside and beside.eval_folder)
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


def _listed(folder, beside, its_folder):
    if beside is None:
        return listing.pictures(folder)
    if beside.kind == "label":
        return listing.labelled(folder, beside.classes)
    return listing.pictures(folder, its_folder, beside.scale, beside.kind)


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
            _check_left_out(split, some, left_out, total, making, split == list(splits)[-1])

        builder = Pictures(
            data_dir=unfinished,
            file_format="array_record",
            examples={split: examples(split) for split in splits},
            making=making,
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
    paired = isinstance(picture, indexed.Pair)
    grid, step = (picture.grid, picture.scale) if paired else (picture, 1)
    rows, columns = ([(0, size)] if making.whole else tiles(size, making.crop // step) for size in grid.shape[:2])
    found = []
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        parts = {}
        if paired:
            beside = picture.beside
            parts[making.beside.kind] = beside if picture.of_whole else beside[top:bottom, left:right]
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
        raise UserError(f"{name}: {width}x{height} is smaller than the crop of {making.crop} (image_size)")
    notes = [(note, name) for note in notes]
    if making.beside is None:
        if making.reading.mask and not picture.any():
            raise UserError(f"{name}: nothing of it is to be painted, for it is black")
        return picture, notes
    beside, more = _beside(entry, making)
    notes += more
    paired = indexed.pair(picture, beside, making.beside.scale, name, making.beside.kind)
    if paired.image.shape != picture.shape:
        cut = f"are cut at the right and below, as task.scale = {making.beside.scale} does not divide their sides"
        return paired, [(cut, f"{name}: {width}x{height}"), *notes]
    return paired, notes


def _beside(entry, making):
    """(what lies beside the picture of an entry, notes as in `Made`)."""
    kind = making.beside.kind
    if kind == "label":
        return np.full((1, 1, 1), entry.beside, np.uint16), []
    found, notes = listing.read_noting(entry.beside, making.beside.read_as(making.reading))
    if kind == "mask" and not found.any():
        notes.append("are black, so that nothing is to be painted")
    return found, [(f"have {BESIDE[kind].nouns} that {note}", shown(entry.beside)) for note in notes]


def _is_large(item):
    # A large picture takes up to a GiB.
    picture = item[1].picture
    return images.claimed_pixels(picture) > _LARGE if isinstance(picture, Path) else picture.large


def _check_left_out(split, some, left_out, total, making, last):
    if not some and making.skip_unreadable:
        said = f"no {split} picture can be used; add some, or set data.eval_folder or another data.eval_percent: "
        if making.reading.mask:
            said = "no mask can be used; add some, or leave out data.mask_folder: masks are then drawn: "
        raise UserError(said + listing.first(left_out))
    if left_out and not making.skip_unreadable and (last or not some):
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
    beside, reading = options.get("beside"), options.get("reading", USUAL)
    builder = tfds.builder_from_directory(prepare_folder(folder, **options))
    found = beside and (beside._replace(key=beside.kind), packing.make_unpack(beside.read_as(reading)))
    return builder_source(builder, split, "image", packing.make_unpack(reading), "name", found)


def masks_source(folder, cache_dir=None, skip_unreadable: bool = False) -> Source:
    """Masks of any number and size, uint8 [H, W, 1], from folders and files as `listing.pictures` names them.

    They are prepared as pictures are. Raises UserError for those that cannot be read, and for black ones: nothing of
    these is to be painted.
    """
    splits = {"masks": listing.pictures(folder)}
    making = Making(1, None, skip_unreadable, True, None, MASK)
    builder = tfds.builder_from_directory(_prepared(folder, splits, making, cache_dir))
    return builder_source(builder, "masks", "image", packing.make_unpack(MASK), "name")
