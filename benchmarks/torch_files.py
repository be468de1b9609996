"""Files of torch.save made by hand, and the official network's arrays: for tests and benchmarks."""

import pickle
import zipfile

import numpy as np


def official_weights(inner=8, multipliers=(1, 2), attention=(1,), blocks=1, channels=6):
    """Names and shapes as the official code's modules make them, in its order of construction."""
    rng = np.random.default_rng(0)
    weights = {}

    def put(name, *shape, bias=True):
        weights[f"{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
        if bias:
            weights[f"{name}.bias"] = rng.standard_normal(shape[0]).astype(np.float32)

    def block(name, cin, cout, attend):
        put(f"{name}.res_block.noise_func.noise_func.0", cout, inner)
        for part, c in (("block1", cin), ("block2", cout)):
            put(f"{name}.res_block.{part}.block.0", c)
            put(f"{name}.res_block.{part}.block.3", cout, c, 3, 3)
        if cin != cout:
            put(f"{name}.res_block.res_conv", cout, cin, 1, 1)
        if attend:
            put(f"{name}.attn.norm", cout)
            put(f"{name}.attn.qkv", 3 * cout, cout, 1, 1, bias=False)
            put(f"{name}.attn.out", cout, cout, 1, 1)

    put("noise_level_mlp.1", 4 * inner, inner)
    put("noise_level_mlp.3", inner, 4 * inner)
    put("downs.0", inner, channels, 3, 3)
    place, c, skips = 1, inner, [inner]
    for i, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            block(f"downs.{place}", c, inner * multiplier, i in attention)
            place, c = place + 1, inner * multiplier
            skips.append(c)
        if i < len(multipliers) - 1:
            put(f"downs.{place}.conv", c, c, 3, 3)
            place += 1
            skips.append(c)
    block("mid.0", c, c, True)
    block("mid.1", c, c, False)
    place = 0
    for i in reversed(range(len(multipliers))):
        for _ in range(blocks + 1):
            block(f"ups.{place}", c + skips.pop(), inner * multipliers[i], i in attention)
            place, c = place + 1, inner * multipliers[i]
        if i > 0:
            put(f"ups.{place}.conv", c, c, 3, 3)
            place += 1
    put("final_conv.block.0", c)
    put("final_conv.block.3", 3, c, 3, 3)
    return weights


def value(x) -> bytes:
    return pickle.dumps(x, protocol=2)[2:-1]


def tensor(key, shape, stride, storage="FloatStorage", offset=0, size=0) -> bytes:
    kind = f"ctorch\n{storage}\n".encode()
    storage = b"(" + value("storage") + kind + value(key) + value("cpu") + value(size) + b"tQ"
    rest = value(offset) + value(shape) + value(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def parameter(t: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_parameter\n(" + t + b"\x88" + b"ccollections\nOrderedDict\n)RtR"


def dictionary(ordered=False, **items: bytes) -> bytes:
    start = b"ccollections\nOrderedDict\n)R" if ordered else b"}"
    return start + b"(" + b"".join(value(k) + v for k, v in items.items()) + b"u"


def save(path, program: bytes, storages, byteorder=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("w/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"w/data/{key}", data)
    return path


def save_stream(path, program: bytes, storages, keys=None, little_endian=True, protocol=1001):
    """The format before PyTorch 1.6; storages are numpy arrays."""
    pickles = [0x1950A86A20F9469CFC6C, protocol, {"protocol_version": 1001, "little_endian": little_endian}]
    pickles = [pickle.dumps(x, protocol=2) for x in pickles] + [b"\x80\x02" + program + b"."]
    pickles.append(pickle.dumps(sorted(storages) if keys is None else keys, protocol=2))
    raw = [np.int64(a.size).tobytes() + a.tobytes() for _, a in sorted(storages.items())]
    path.write_bytes(b"".join(pickles + raw))
    return path


def stream_tensor(key, shape, stride, storage="FloatStorage", part=b"N", rebuild="_rebuild_tensor_v2") -> bytes:
    kind = f"ctorch\n{storage}\n".encode()
    text = b"U" + bytes([len(key)]) + key.encode()
    storage = b"(U\x07storage" + kind + text + b"U\x06cuda:0" + b"\x8a\x01\x0c" + part + b"tQ"
    rest = b"\x89" + b"ccollections\nOrderedDict\n)R" if rebuild.endswith("v2") else b""
    return f"ctorch._utils\n{rebuild}\n(".encode() + storage + value(0) + value(shape) + value(stride) + rest + b"tR"
