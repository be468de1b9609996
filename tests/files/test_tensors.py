import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from benchmarks.torch_files import dictionary, parameter, save, save_stream, stream_tensor, tensor, value
from dream_jax.errors import UserError
from dream_jax.files import tensors

NUMBERS = np.arange(12, dtype=np.float32)
STORAGES = {"0": NUMBERS.tobytes()}
TENSOR = tensor("0", (3, 4), (4, 1))


def test_tensors_of_every_layout(tmp_path):
    half, bf16 = np.float16([1, 2.5]), np.asarray([1, -3], ml_dtypes.bfloat16)
    program = dictionary(
        ordered=True,
        plain=TENSOR,
        transposed=tensor("0", (4, 3), (1, 4)),
        part=tensor("0", (2, 2), (4, 1), offset=5),
        parameter=parameter(TENSOR),
        scalar=tensor("0", (), (), offset=7),
        empty=tensor("0", (0, 3), (3, 1)),
        half=tensor("h", (2,), (1,), "HalfStorage"),
        bf16=tensor("b", (2,), (1,), "BFloat16Storage"),
        double=tensor("d", (1,), (1,), "DoubleStorage"),
        long=tensor("l", (1,), (1,), "LongStorage"),
        truth=tensor("t", (2,), (1,), "BoolStorage"),
    )
    # As torch.save leaves it: the state dict's _metadata set as an attribute.
    program += b"}" + value("_metadata") + b"}sb"
    storages = STORAGES | {"h": half.tobytes(), "b": bf16.tobytes(), "d": np.float64([0.1]).tobytes()}
    storages |= {"l": np.int64([2**40]).tobytes(), "t": b"\x00\x01"}
    read = tensors.read_weights(save(tmp_path / "a.pth", program, storages))
    a = NUMBERS.reshape(3, 4)
    expected = {
        "plain": a,
        "transposed": a.T,
        "part": a[1:3, 1:3],
        "parameter": a,
        "scalar": np.float32(7),
        "empty": np.zeros((0, 3), np.float32),
        "half": half.astype(np.float32),
        "bf16": bf16.astype(np.float32),
        "double": np.float64([0.1]),
        "long": np.int64([2**40]),
        "truth": np.asarray([False, True]),
    }
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


def test_the_format_before_pytorch_1_6(tmp_path):
    storages = {"0": NUMBERS, "1": np.int64([7])}
    plain, first = stream_tensor("0", (3, 4), (4, 1)), stream_tensor("0", (4, 3), (1, 4), rebuild="_rebuild_tensor")
    state = b"(\x88\x89ccollections\nOrderedDict\n)Rtb"
    items = {
        "plain": plain,
        "first": first,
        "long": stream_tensor("1", (), (), "LongStorage"),
        "parameter": b"ctorch.nn.parameter\nParameter\n" + plain + b"\x85\x81" + state,
    }
    pairs = b"".join(b"](" + value(k) + v + b"e" for k, v in items.items())
    python_2 = b"ccollections\nOrderedDict\n](" + pairs + b"e\x85R"
    for program in (python_2, dictionary(**items), dictionary(epoch=value(1), state_dict=python_2)):
        read = tensors.read_weights(save_stream(tmp_path / "a.pth", program, storages))
        assert read.keys() == items.keys() and read["long"] == 7
        for name, a in {"plain": NUMBERS.reshape(3, 4), "first": NUMBERS.reshape(3, 4).T}.items():
            np.testing.assert_array_equal(read[name], a)
        np.testing.assert_array_equal(read["parameter"], read["plain"])

    for bad, message in (
        ({"keys": ["0", "2"]}, "damaged"),
        ({"keys": 3}, "damaged"),
        ({"keys": []}, "damaged"),
        ({"protocol": 1002}, "protocol"),
        ({"little_endian": False}, "big-endian"),
    ):
        with pytest.raises(UserError, match=message):
            tensors.read_weights(save_stream(tmp_path / "b.pth", python_2, storages, **bad))
    part = stream_tensor("0", (3, 4), (4, 1), part=value(("1", 0, 12)))
    two = dictionary(a=plain, b=stream_tensor("0", (1,), (1,), "DoubleStorage"))
    for program, message in (
        (dictionary(a=part), "parts of others"),
        (two, "two types"),
        (b"cos\nsystem\n)R", "run"),
        (b"ccollections\nOrderedDict\n)\x85R", "no list"),
    ):
        with pytest.raises(UserError, match=message):
            tensors.read_weights(save_stream(tmp_path / "c.pth", program, storages))

    path = save_stream(tmp_path / "d.pth", python_2, storages)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for length in range(0, len(whole), 23):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged|not"):
            tensors.read_weights(path)
    for _ in range(600):
        changed = bytearray(whole)
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            assert sum(a.size for a in tensors.read_weights(path).values()) <= 48
        except UserError:
            refused += 1
    assert refused > 200


def test_one_level_of_nesting(tmp_path):
    weights, other = dictionary(a=TENSOR), dictionary(z=TENSOR)
    for items in (
        {"epoch": value(3), "state_dict": weights, "ema": other, "optimizer": value({"lr": [1e-4, None, True]})},
        {"model": weights, "zzz": other},
        {"anything": weights, "note": value("x")},
    ):
        path = save(tmp_path / "a.pt", dictionary(**items), STORAGES)
        assert tensors.read_weights(path).keys() == {"a"}
    with pytest.raises(UserError, match="several sets of weights, p, q"):
        tensors.read_weights(save(tmp_path / "b.pt", dictionary(p=weights, q=other), STORAGES))


@pytest.mark.parametrize("module", ["posix", "os", "builtins", "torch", "torch._utils"])
def test_no_code_is_run(tmp_path, module):
    flag = tmp_path / "run"
    for function in ("system", "eval", "load"):
        call = f"c{module}\n{function}\n(".encode() + value(f"touch {flag}") + b"tR"
        for program in (call, dictionary(a=TENSOR, b=call), dictionary(a=b"(" + call + b"t")):
            with pytest.raises(UserError, match=r"refused: it asks to call \w*.*nothing was run"):
                tensors.read_weights(save(tmp_path / "a.pth", program, STORAGES))
    assert not flag.exists()


@pytest.mark.parametrize(
    "bad",
    [
        tensor("0", (3, 5), (5, 1)),
        tensor("0", (13,), (1,)),
        tensor("0", (2, 2), (12, 1)),
        tensor("0", (4,), (1,), offset=9),
        tensor("0", (4,), (1,), offset=-1),
        tensor("0", (4,), (-1,), offset=3),
        tensor("0", (-3, -4), (4, 1)),
        tensor("0", (10**9, 4), (0, 1)),
        tensor("0", (2**61, 8), (1, 1)),
        tensor("0", (2**200,), (1,)),
        tensor("0", (3, 4), (4,)),
        tensor("0", (3.0, 4.0), (4, 1)),
        tensor("0", "ab", (4, 1)),
        tensor("missing", (3, 4), (4, 1)),
        tensor("../data.pkl", (1,), (1,)),
        tensor("0", (3, 4), (4, 1), "DoubleStorage"),
        tensor("0", (3, 4), (4, 1), "ComplexFloatStorage"),
    ],
)
def test_lies_about_a_tensor(tmp_path, bad):
    with pytest.raises(UserError, match=r"a\.pth"):
        tensors.read_weights(save(tmp_path / "a.pth", dictionary(a=bad), STORAGES))


def test_bombs(tmp_path):
    zeros = {"0": bytes(10**7)}
    path = save(tmp_path / "a.pth", dictionary(a=tensor("0", (10,), (1,))), zeros, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="larger than the file"):
        tensors.read_weights(path)
    many = dictionary(**{f"a{i}": TENSOR for i in range(1000)})
    path = save(tmp_path / "b.pth", dictionary(a=many), {"0": bytes(48)})
    assert len(tensors.read_weights(path)) == 1000
    # A dict of one dict a thousand times over, a list within a list within ..., a tuple of ever the same tuples.
    shared = dictionary(a=TENSOR) + b"q\x00" + b"}(" + b"".join(value(i) + b"h\x00" for i in range(10**4)) + b"u"
    tuples = b")" + 40 * b"q\x00h\x00\x86"
    # A list of pairs made into a dict again and again.
    pairs = b"](" + 10**4 * b"](NNe" + b"eq\x00" + 10**5 * b"ccollections\nOrderedDict\nh\x00\x85R0"
    nested = dictionary(a=10**5 * b"]" + 99_999 * b"a")
    for program in (shared, nested, b"}" + tuples + b"Ns", tuples + b"Q", pairs):
        with pytest.raises(UserError):
            tensors.read_weights(save(tmp_path / "c.pth", program, STORAGES))


def test_damage_is_reported(tmp_path):
    """Cut and changed at random: a message or an honest reading, and nothing else."""
    path = tmp_path / "a.pth"
    program = dictionary(ordered=True, a=TENSOR, b=parameter(TENSOR), c=tensor("0", (4, 3), (1, 4)))
    whole = save(path, program, STORAGES).read_bytes()
    for length in range(0, len(whole), 23):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged|not"):
            tensors.read_weights(path)
    rng = random.Random(0)
    refused = 0
    for i in range(600):
        if i % 2:
            changed = bytearray(whole)
            changed[rng.randrange(len(changed))] = rng.randrange(256)
            path.write_bytes(changed)
        else:
            changed = bytearray(program)
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            save(path, bytes(changed), STORAGES)
        try:
            assert sum(a.size for a in tensors.read_weights(path).values()) <= 48
        except UserError:
            refused += 1
    assert refused > 300


def test_other_files(tmp_path):
    (tmp_path / "old.pth").write_bytes(b"sys_info" + bytes(504))
    with pytest.raises(UserError, match="newer PyTorch"):
        tensors.read_weights(tmp_path / "old.pth")
    with pytest.raises(UserError, match="no such file"):
        tensors.read_weights(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"\.safetensors"):
        tensors.read_weights(tmp_path / "a.npz")
    with pytest.raises(UserError, match="big-endian"):
        tensors.read_weights(save(tmp_path / "a.pth", dictionary(a=TENSOR), STORAGES, byteorder=b"big"))
    with pytest.raises(UserError, match="no tensors"):
        tensors.read_weights(save(tmp_path / "a.pth", value([1, 2]), STORAGES))
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"data\.pkl"):
        tensors.read_weights(tmp_path / "a.bin")


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"a": NUMBERS.reshape(3, 4), "h": np.float16([1.5]), "b": np.asarray([2], ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(arrays, path)
    read = tensors.read_weights(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], array.astype(np.float32))
    whole = path.read_bytes()
    for bad in (b"", whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], whole.replace(b"[3,4]", b"[3,9]")):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"a\.safetensors"):
            tensors.read_weights(path)
