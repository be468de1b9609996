"""Files that hold many pictures: arrays in .npy, .npz and HDF5, and zips of picture files.

Nothing is unpacked to the disk, and no pickle is read.
"""

import io
import math
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dream_jax.errors import UserError, shown, some
from dream_jax.files import formats, images, limits, zips
from dream_jax.files.numbers import CLASSES, levels_of, span_of_mask
from dream_jax.files.picture import Reading, as_wanted

# What is more than so many bytes must not be so many times larger than the file that it comes from.
_SMALL, _RATIO = 2**26, 200
# An array of an .npz is held in memory.
_MOST_IN_MEMORY = 2**32
# Bytes of a zip's list of members: a million of them.
_LONGEST_DIRECTORY = 2**26
_LONGEST_HEADER = 2**16
_MOST_ARRAYS = 2**12
_MOST_BANDS = 2**10
# Bytes of a chunk of HDF5, which is read as a whole.
_LARGEST_CHUNK = 2**28
_MOST_PICTURES = 2**22
# Bytes of a picture beyond which it is prepared alone.
_LARGE = 3 * 2**24
_WANTED = "pictures are arrays of numbers [N, H, W] or [N, H, W, C]"


class Member(NamedTuple):
    """A picture inside a file.

    Attributes:
      file: the file; place: its number or name there, with the array's key.
      read: `Reading -> levels [H, W, C]`.
      large: whether it takes so much memory that it is to be read alone.
    """

    file: Path
    place: str
    read: Callable[[Reading], np.ndarray]
    large: bool = False

    def __str__(self):
        return f"{self.file}/{self.place}"


class _Array(NamedTuple):
    """An array of a file, not read yet: `open() -> an array` whose [i] is a picture."""

    shape: tuple
    dtype: np.dtype
    open: Callable[[], np.ndarray]


def file_of(where) -> Path:
    """The file that a text names: itself, or FILE of FILE:KEY."""
    return _file_and_key(where)[0]


def key_of(where) -> str | None:
    """KEY of a text like FILE:KEY, None where it names no array."""
    return _file_and_key(where)[1]


def is_archive(where) -> bool:
    """Whether a text names a file that may hold many pictures, by its suffix."""
    path = file_of(where)
    return path.suffix.lower() in _READERS and path.is_file()


def members(where) -> dict[str, Member]:
    """{name: picture} of a file, in its order; FILE:KEY names an array of .npz and HDF5 where there are several.

    Raises UserError for a file that is damaged, holds no pictures, or claims more than a file of its size can hold.
    """
    path, key = _file_and_key(where)
    try:
        return _READERS[path.suffix.lower()](path, key)
    except UserError:
        raise
    except Exception as error:  # NumPy, zipfile and h5py raise almost anything on damaged files.
        raise UserError(f"{shown(path)}: cannot be read ({type(error).__name__}: {shown(error)[:200]})") from error


def _file_and_key(where):
    path = Path(where).expanduser()
    before, colon, key = str(path).rpartition(":")
    keyed = colon and not path.exists() and Path(before).suffix.lower() in (".npz", ".h5", ".hdf5")
    return (Path(before), key) if keyed else (path, None)


def _of_zip(path, key):
    archive = _opened(path)
    found = [info for info in archive.infolist() if _is_picture(info.filename)]
    if not found:
        raise UserError(
            f"{shown(path)}: holds no pictures; files ending in {' '.join(formats.SUFFIXES)} are looked for"
        )
    _check_size(path, "its pictures", sum(info.file_size for info in found))

    def reader(info):
        def read(reading):
            try:
                if info.file_size > limits.most_bytes():
                    raise UserError(f"{info.file_size} bytes are more than the {limits.most_bytes()} allowed")
                return images.read(_content(archive, info), reading)
            except Exception as error:
                said = str(error).removeprefix("picture: ")
                raise UserError(f"{shown(path)}/{shown(info.filename)}: {said[:500]}") from error

        return read

    # A zip may hold a name twice; the last one counts.
    return {info.filename: Member(path, info.filename, reader(info), info.file_size > _LARGE) for info in found}


def _is_picture(name):
    last = name.rpartition("/")[2]
    hidden = last.startswith("._") or name.startswith("__MACOSX/")
    return last.lower().endswith(formats.SUFFIXES) and not hidden


def _of_npz(path, key):
    archive = _opened(path)
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if len(infos) > _MOST_ARRAYS:
        raise UserError(f"{shown(path)}: {len(infos)} arrays are more than the {_MOST_ARRAYS} allowed")
    arrays = {info.filename.removesuffix(".npy"): _array_in_zip(path, archive, info) for info in infos}
    return _pictures(path, *_chosen(path, arrays, key))


def _array_in_zip(path, archive, info):
    with archive.open(info) as file:
        shape, fortran, dtype, start = _header(file)
    _check_size(path, info.filename, info.file_size)

    def opened():
        if info.file_size > _MOST_IN_MEMORY:
            raise UserError(
                f"{shown(path)}: {shown(info.filename)} takes {info.file_size / 2**30:.1f} GiB of memory; save it as "
                "an .npy file, which is read where it lies"
            )
        numbers = np.frombuffer(_content(archive, info), dtype, offset=start)
        return numbers.reshape(shape, order="F" if fortran else "C")

    _check_length(path, shape, dtype, info.file_size - start)
    return _Array(shape, dtype, opened)


def _of_npy(path, key):
    with path.open("rb") as file:
        shape, fortran, dtype, start = _header(file)
    _check_length(path, shape, dtype, path.stat().st_size - start)
    order = "F" if fortran else "C"
    array = _Array(shape, dtype, lambda: np.memmap(path, dtype, "r", start, shape, order))
    return _pictures(path, *_chosen(path, {"": array}, None))


def _header(file):
    """(shape, whether in Fortran's order, dtype, bytes before the numbers) of an .npy file."""
    # Only its beginning is read: a header may say that it has 4 GiB.
    file = io.BytesIO(file.read(_LONGEST_HEADER))
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"an .npy file of version {version}")
        shape, fortran, dtype = readers[version](file)
    return shape, fortran, dtype, file.tell()


def _check_length(path, shape, dtype, length):
    if math.prod(shape) * dtype.itemsize != length and not dtype.hasobject:
        raise UserError(f"{shown(path)}: an array of {shape} does not fit into its {length} bytes; is it cut off?")


def _of_hdf5(path, key):
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{shown(path)}: HDF5 is read by h5py: pip install h5py") from error
    file, arrays = h5py.File(path, "r"), {}

    def visit(name, found):
        # Links, which may lead to other files, are not visited.
        if isinstance(found, h5py.Dataset):
            arrays[name] = _Array(found.shape or (), found.dtype, lambda: _checked(path, name, found))
        return True if len(arrays) > _MOST_ARRAYS else None

    file.visititems(visit)
    return _pictures(path, *_chosen(path, arrays, key))


def _checked(path, name, dataset):
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{shown(path)}: {shown(name)} lies in other files, which are not read")
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > _LARGEST_CHUNK:
        raise UserError(
            f"{shown(path)}: {shown(name)} has chunks of more than {_LARGEST_CHUNK} bytes; make them smaller"
        )
    _check_size(path, name, math.prod(dataset.shape) * dataset.dtype.itemsize)
    return dataset


def _chosen(path, arrays, key):
    """(key, array) of the pictures among a file's arrays."""
    if key is not None and key not in arrays:
        raise UserError(f"{shown(path)}: holds no array {shown(key)}; there are {some(arrays, 8) or 'none'}")
    wanted = {name: array for name, array in arrays.items() if key in (None, name)}
    fitting = {name: array for name, array in wanted.items() if _fits(array)}
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        raise UserError(f"{shown(path)}: holds several arrays of pictures, {some(fitting, 8)}; name one as FILE:KEY")
    held = ", ".join(f"{name} {a.dtype} {list(a.shape)}".strip() for name, a in list(wanted.items())[:8]) or "none"
    raise UserError(f"{shown(path)}: {_WANTED}; here are {held[:500]}")


def _fits(array):
    shape = array.shape
    of_pictures = len(shape) == 3 or (len(shape) == 4 and 0 < shape[3] <= _MOST_BANDS)
    numbers = array.dtype.kind in "uif" and array.dtype.itemsize <= 8
    return numbers and of_pictures and 0 < math.prod(shape[1:3]) <= limits.most_pixels() and shape[0] > 0


def _pictures(path, key, array):
    lock, opened = threading.Lock(), []

    def reader(number):
        def read(reading):
            try:
                with lock:
                    if not opened:
                        opened.append(array.open())
                picture = np.array(opened[0][number])
                picture = picture.reshape(*picture.shape[:2], -1)
                span, clip = CLASSES if reading.classes else reading.span, reading.clip
                if reading.mask:
                    span, clip = span_of_mask(picture), True
                elif not reading.classes:
                    reading._replace(told=True).check(picture.dtype)
                levels, numbers = levels_of(picture, span, clip)
                return as_wanted(levels, reading, numbers)
            except UserError:
                raise
            except Exception as error:  # as in `members`
                raise UserError(
                    f"{shown(path)}/{number:07d}: cannot be read ({reading.said(shown(error)[:200])})"
                ) from error

        return read

    each, folder = math.prod(array.shape[1:]) * array.dtype.itemsize, f"{key}/" if key else ""
    # A file that claims pictures without end is seen here, before they are named.
    _check_size(path, key or "its array", array.shape[0] * each)
    if array.shape[0] > _MOST_PICTURES:
        raise UserError(f"{shown(path)}: {array.shape[0]} pictures are more than the {_MOST_PICTURES} allowed")
    return {
        f"{number:07d}": Member(path, f"{folder}{number:07d}", reader(number), each > _LARGE)
        for number in range(array.shape[0])
    }


def _opened(path):
    if zips.directory_length(path) > _LONGEST_DIRECTORY:
        raise UserError(f"{shown(path)}: its list of members claims more than {_LONGEST_DIRECTORY} bytes")
    return zipfile.ZipFile(path)


def _content(archive, info):
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError("it is compressed in another way than by deflate")
    if info.file_size > max(_SMALL, _RATIO * info.compress_size):
        raise UserError(f"it claims to be {info.file_size} bytes, of {info.compress_size} in the file")
    with archive.open(info) as file:
        # No more than it claims: `archive.read` would decompress what there is.
        return file.read(info.file_size)


def _check_size(path, what, size):
    if size > max(_SMALL, _RATIO * path.stat().st_size):
        raise UserError(f"{shown(path)}: {shown(what)} claims {size} bytes, too many for a file of this size")


_READERS = {".zip": _of_zip, ".npz": _of_npz, ".npy": _of_npy, ".h5": _of_hdf5, ".hdf5": _of_hdf5}
