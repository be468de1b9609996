"""Files of torch.save, written without PyTorch."""

import io
import struct
import zipfile

import numpy as np

_EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """A file that torch.load reads, with weights_only=True as well: float32 arrays by name, in an OrderedDict."""
    names = {name: str(number) for number, name in enumerate(arrays)}
    items = b"".join(_text(name) + _tensor(names[name], np.shape(array)) for name, array in arrays.items())
    members = {
        "data.pkl": b"\x80\x02" + _EMPTY_ORDERED_DICT + b"(" + items + b"u.",
        "byteorder": b"little",
        **{f"data/{names[name]}": np.asarray(array, "<f4").tobytes() for name, array in arrays.items()},
        "version": b"3\n",
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            # Without the time of day, so that the same arrays make the same file.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return file.getvalue()


# The opcodes of pickle's protocol 2 that follow are all that a tensor takes.


def _tensor(storage, shape) -> bytes:
    """The call that makes a contiguous tensor of the storage with this name, by a reference that PyTorch resolves."""
    size = int(np.prod(shape))
    strides = np.cumprod([1, *shape[:0:-1]])[::-1].tolist() if shape else []
    kind = b"ctorch\nFloatStorage\n"
    reference = _tuple(_text("storage"), kind, _text(storage), _text("cpu"), _integer(size)) + b"Q"
    numbers = (_tuple(*map(_integer, values)) for values in (shape, strides))
    arguments = _tuple(reference, _integer(0), *numbers, b"\x89", _EMPTY_ORDERED_DICT)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _tuple(*items) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(text) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)
