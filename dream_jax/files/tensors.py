"""Tensors by name, from files of PyTorch and safetensors: read without PyTorch, running nothing of the file."""

import math
import mmap
import pathlib
import pickletools
import struct
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from dream_jax.errors import UserError, shown, some
from dream_jax.files import zips


def read_weights(path) -> dict[str, np.ndarray]:
    """Reads name -> array from a .safetensors file or a file of torch.save (.pth, .pt, .bin).

    Nothing of the file is ever imported or called: of PyTorch's pickle only names, numbers, containers and tensors are
    understood, anything else is refused. The tensors may be the values of the saved dict or of one inside it
    ("state_dict", "model_state_dict", "model", or the only one). float16 and bfloat16 come as float32.

    Raises:
        UserError: for a file that is missing, damaged, of another kind, or holds more than tensors.
    """
    path = pathlib.Path(path)
    readers = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch, ".bin": _read_torch}
    if path.suffix.lower() not in readers:
        raise UserError(f"{shown(path)}: weights are read from {', '.join(readers)} files")
    if not path.is_file():
        raise UserError(f"{shown(path)}: no such file")
    try:
        arrays = readers[path.suffix.lower()](path)
    except UserError as e:
        raise UserError(f"{shown(path)}: {e}") from None
    except OSError as e:
        raise UserError(f"{shown(path)}: cannot be read ({e.strerror})") from e
    halves = (np.float16, ml_dtypes.bfloat16)
    return {name: a.astype(np.float32) if a.dtype in halves else a for name, a in arrays.items()}


def _read_safetensors(path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_DESCRIPTION:
        raise UserError(f"not a sound safetensors file: its header claims {length} bytes, more than any has")
    try:
        return safetensors.numpy.load_file(path)
    except AttributeError as e:  # a type that numpy lacks
        raise UserError(f"holds a tensor of a type that is not supported ({e})") from e
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as e:
        raise UserError(f"not a sound safetensors file ({shown(e)[:300]})") from e


# Bytes of names and shapes, and steps of a pickle: of 30,000 tensors, and as much as takes no more than seconds.
_LONGEST_DESCRIPTION, _MOST_STEPS = 2**24, 2**20


_STORAGE_DTYPES = {
    "torch.FloatStorage": np.float32,
    "torch.DoubleStorage": np.float64,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}


# What zipfile, pickletools and numpy raise on damaged data, and the interpreter below on an ill-formed program.
_DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: type


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    stride: tuple


# How a file of torch.save before PyTorch 1.6 begins: a pickle of one large number.
_STREAM_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def _read_torch(path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            if file.read(len(_STREAM_MAGIC)) == _STREAM_MAGIC:
                # Read through a map: a file would set aside what a damaged length asks for before it finds the end.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                    stream.seek(len(_STREAM_MAGIC))
                    return _read_torch_stream(stream)
        if not zipfile.is_zipfile(path):
            raise UserError(
                "damaged, or saved by a PyTorch of before 2017; with a newer PyTorch, "
                "torch.save(torch.load(old, map_location='cpu', weights_only=True), new) converts it"
            )
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            return _read_torch_archive(archive, path.stat().st_size)
    except UserError:
        raise
    except _DAMAGE as e:
        raise UserError(f"damaged, or not written by torch.save ({type(e).__name__}: {shown(e)[:200]})") from e


def _check_directory(path):
    """Raises UserError for a zip whose list of members is longer than any of torch.save: it is read as a whole."""
    if zips.directory_length(path) > _LONGEST_DESCRIPTION:
        raise UserError("its list of members claims to be longer than torch.save writes any")


def _read_torch_archive(archive, file_size) -> dict[str, np.ndarray]:
    pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError("not a file of torch.save: it should hold one data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    read = 0

    def member(name):
        nonlocal read
        info = archive.getinfo(root + name)
        # torch.save does not compress, so what is read in all never exceeds the file: no bomb fits.
        read += info.file_size
        if info.compress_type != zipfile.ZIP_STORED or read > file_size:
            raise UserError(f"{name} inside claims to be larger than the file; torch.save writes no such file")
        return archive.read(info)

    if root + "byteorder" in archive.namelist() and member("byteorder") != b"little":
        raise UserError("written on a big-endian machine; load and save it again on a usual one")

    tensors = _tensors(_unpickle(member("data.pkl")))
    keys = {tensor.storage.key for tensor in tensors.values()}
    return _arrays(tensors, {key: member(f"data/{key}") for key in keys}, file_size)


def _read_torch_stream(file) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6: pickles one after the other, then each storage as its length and its numbers."""
    protocol, system = _unpickle(file), _unpickle(file)
    if protocol != 1001 or type(system) is not dict:
        raise ValueError("an unknown protocol")
    if system.get("little_endian") is not True:
        raise UserError("written on a big-endian machine; load and save it again on a usual one")
    dtypes, storages = {}, {}
    tensors = _tensors(_unpickle(file, dtypes))
    for key in _unpickle(file):
        (length,) = struct.unpack("<q", file.read(8))
        size = length * np.dtype(dtypes[key]).itemsize
        if not 0 <= size <= file.size() - file.tell():
            raise UserError("damaged: it ends before its numbers do")
        storages[key] = file.read(size)
    return _arrays(tensors, storages, file.size())


def _arrays(tensors, storages, file_size) -> dict[str, np.ndarray]:
    arrays, total = {}, 0
    for name, tensor in tensors.items():
        key, dtype = tensor.storage
        size = math.prod(tensor.shape) * np.dtype(dtype).itemsize
        total += size
        # Tied weights share a storage, so a sound file may hold somewhat more in tensors than in bytes.
        if size > len(storages[key]) or total > 4 * file_size:
            raise UserError(f"the tensor {name!r:.200} claims the shape {tensor.shape}, more than the file holds")
        stride = [s * np.dtype(dtype).itemsize for s in tensor.stride]
        offset = tensor.offset * np.dtype(dtype).itemsize
        # numpy holds offset, shape and strides against the buffer and raises where they reach beyond it.
        arrays[name] = np.ndarray(tensor.shape, dtype, storages[key], offset, stride)
    return arrays


def _tensors(saved) -> dict[str, _Tensor]:
    """The tensors of the saved dict, or of one dict inside it."""

    def own(d):
        return {name: v for name, v in d.items() if isinstance(name, str) and isinstance(v, _Tensor)}

    if isinstance(saved, dict):
        if own(saved):
            return own(saved)
        distinct = {id(d): (name, d) for name, d in saved.items() if isinstance(d, dict)}
        inner = {name: own(d) for name, d in distinct.values() if own(d)}
        for name in ("state_dict", "model_state_dict", "model"):
            if name in inner:
                return inner[name]
        if len(inner) == 1:
            return next(iter(inner.values()))
        if inner:
            raise UserError(f"holds several sets of weights, {some(map(str, inner))}: save the one wanted by itself")
    raise UserError("holds no tensors by name: save model.state_dict()")


class _Machine(NamedTuple):
    """What the interpreter of a pickle works on.

    dtypes: {key of a storage: its dtype}.
    """

    stack: list
    marks: list[int]
    memo: dict
    dtypes: dict[str, type]

    def pop_to_mark(self) -> list:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _unpickle(data, dtypes=None):
    """What the pickle describes: an interpreter of those opcodes that torch.save writes for tensors in containers.

    `data` are bytes, or a map of a file that is read up to the pickle's end. `dtypes`, a dict, is given each storage's.
    """
    machine = _Machine([], [], {}, {} if dtypes is None else dtypes)
    for step, (op, arg, _) in enumerate(pickletools.genops(data)):
        if step == _MOST_STEPS:
            raise UserError("holds more than tensors: their names and shapes are never so long")
        if op.name == "STOP":
            (result,) = machine.stack
            return result
        if op.name not in _OPCODES:
            raise UserError(f"holds more than tensors (the opcode {op.name}): save model.state_dict()")
        _OPCODES[op.name](machine, arg)


def _push(machine, value):
    machine.stack.append(value)


def _push_tuple(size):
    return lambda machine, arg: machine.stack.append(tuple(_pop(machine.stack, size)))


def _append(machine, items):
    if type(machine.stack[-1]) is not list:
        raise ValueError("items appended to what is no list")
    machine.stack[-1].extend(items)


def _set(machine, items):
    target = machine.stack[-1]
    if type(target) is not dict or len(items) % 2:
        raise ValueError("items set on what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value


def _remember(machine, place):
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _push_storage(machine, arg):
    storage = _storage(machine.stack.pop())
    if machine.dtypes.setdefault(storage.key, storage.dtype) is not storage.dtype:
        raise ValueError("one storage of two types")
    machine.stack.append(storage)


def _build(machine, arg):
    # A state dict carries its _metadata as an attribute, a parameter its hooks; nothing here needs them.
    _, target = machine.stack.pop(), machine.stack[-1]
    if type(target) not in (dict, _Tensor):
        raise UserError("holds more than tensors: save model.state_dict()")


# What each opcode does, given its argument; no other is obeyed.
_OPCODES = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, arg: None),
    "MARK": lambda machine, arg: machine.marks.append(len(machine.stack)),
    "NONE": _push,
    "NEWTRUE": lambda machine, arg: _push(machine, True),
    "NEWFALSE": lambda machine, arg: _push(machine, False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), _push),
    "EMPTY_DICT": lambda machine, arg: _push(machine, {}),
    "EMPTY_LIST": lambda machine, arg: _push(machine, []),
    "EMPTY_TUPLE": lambda machine, arg: _push(machine, ()),
    "TUPLE": lambda machine, arg: _push(machine, tuple(machine.pop_to_mark())),
    "TUPLE1": _push_tuple(1),
    "TUPLE2": _push_tuple(2),
    "TUPLE3": _push_tuple(3),
    "APPEND": lambda machine, arg: _append(machine, _pop(machine.stack, 1)),
    "APPENDS": lambda machine, arg: _append(machine, machine.pop_to_mark()),
    "SETITEM": lambda machine, arg: _set(machine, _pop(machine.stack, 2)),
    "SETITEMS": lambda machine, arg: _set(machine, machine.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, arg: _push(machine, machine.memo[arg])),
    "GLOBAL": lambda machine, arg: _push(machine, _Global(arg.replace(" ", "."))),
    "STACK_GLOBAL": lambda machine, arg: _push(machine, _Global(".".join(_pop(machine.stack, 2)))),
    "BINPERSID": _push_storage,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, arg: _push(machine, _reduce(*_pop(machine.stack, 2)))),
    "BUILD": _build,
}


def _pop(stack, n) -> list:
    if len(stack) < n:
        raise ValueError("the pickle takes more than it has put")
    items = stack[-n:]
    del stack[-n:]
    return items


def _key(key):
    # Keys of other types have no place in a state dict. Nested ones, and large numbers that all have one hash, could be
    # made to take for ever.
    if not isinstance(key, str | int | float | None) or (isinstance(key, int) and abs(key) >= 2**63):
        raise ValueError("a dict key that is neither text nor a number")
    return key


def _storage(pid) -> _Storage:
    """("storage", type, key, device, size): the size is the file's word only, its bytes are what counts.

    Before PyTorch 1.6 a sixth names the part of another storage that this one is; None is a storage by itself.
    """
    kind, storage_type, key, _, _, *part = pid
    if part not in ([], [None]):
        raise UserError("holds storages that are parts of others: load it with a newer PyTorch and save it again")
    if kind != "storage" or type(storage_type) is not _Global or type(key) is not str:
        raise ValueError("a persistent id that is no storage")
    if storage_type.name not in _STORAGE_DTYPES:
        raise UserError(f"holds a tensor of the type {storage_type.name:.100}, which is not supported")
    return _Storage(key, _STORAGE_DTYPES[storage_type.name])


def _reduce(function, args):
    name = function.name if type(function) is _Global else None
    if type(args) is not tuple:
        raise ValueError("arguments that are no tuple")
    if name == "collections.OrderedDict" and len(args) <= 1:
        # Python 2 wrote the items as a list of pairs, one for each dict: emptied, none can be used a million times.
        pairs = args[0] if args else []
        if type(pairs) is not list:
            raise ValueError("items that are no list")
        items = {_key(key): value for key, value in pairs}
        pairs.clear()
        return items
    parameters = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
    if name in parameters and args and type(args[0]) is _Tensor:
        return args[0]
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor") and len(args) >= 4:
        tensor = _Tensor(*args[:4])
        sizes = (tensor.offset, *tensor.shape, *tensor.stride)
        if (
            type(tensor.storage) is not _Storage
            or not all(type(n) is int and 0 <= n < 2**62 for n in sizes)
            or type(tensor.shape) is not tuple
            or len(tensor.shape) != len(tensor.stride)
            or len(tensor.shape) > 32
        ):
            raise ValueError("a tensor with an impossible storage, offset, shape or stride")
        return tensor
    raise UserError(f"refused: it asks to call {str(name)[:100]}, which no file of tensors needs; nothing was run")
