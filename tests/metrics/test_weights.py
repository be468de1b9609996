import hashlib
import http.client
import io
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
import safetensors.numpy

from benchmarks.torch_files import dictionary, save, save_stream, stream_tensor, tensor
from dream_jax.errors import UserError
from dream_jax.metrics import features, perceptual, weights

NET = "squeeze"


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in perceptual.shapes(NET).items()}


@pytest.fixture(scope="module")
def published(network, tmp_path_factory):
    """name -> bytes of stand-ins for the two official files: ImageNet's as a zip, the heads in the older format."""
    folder = tmp_path_factory.mktemp("published")
    backbone = {"features." + name.split(".", 2)[2]: a for name, a in network.items() if name.startswith("net.")}
    backbone["classifier.1.bias"] = np.zeros(1000, np.float32)
    heads = {name: a for name, a in network.items() if name.startswith("lin")}

    def strides(a):
        return tuple(s // 4 for s in a.strides)

    program = dictionary(**{n: tensor(str(i), a.shape, strides(a)) for i, (n, a) in enumerate(backbone.items())})
    zipped = save(folder / "b.pth", program, {str(i): a.tobytes() for i, a in enumerate(backbone.values())})
    program = dictionary(**{n: stream_tensor(n[3], a.shape, strides(a)) for n, a in heads.items()})
    stream = save_stream(folder / "h.pth", program, {n[3]: a for n, a in heads.items()})
    names = [file.name for file in weights.NETWORKS[f"lpips_{NET}"].files]
    return dict(zip(names, (zipped.read_bytes(), stream.read_bytes()), strict=True))


@pytest.fixture
def official(published, monkeypatch):
    """As `published`, with their checksums taken for the official ones."""
    files = [
        file._replace(sha256=hashlib.sha256(published[file.name]).hexdigest())
        for file in weights.NETWORKS[f"lpips_{NET}"].files
    ]
    network = weights.NETWORKS[f"lpips_{NET}"]._replace(files=tuple(files))
    monkeypatch.setitem(weights.NETWORKS, f"lpips_{NET}", network)
    return published


@pytest.fixture
def internet(official, monkeypatch):
    """What addresses give: name -> bytes, an error to raise on opening, or a stream; and how often it was asked."""
    gives, asked = dict(official), []

    def urlopen(url, timeout):
        assert timeout == 7 and url.startswith("https://")
        name = url.rsplit("/", 1)[1]
        asked.append(name)
        if isinstance(gives[name], Exception):
            raise gives[name]
        return io.BytesIO(gives[name]) if isinstance(gives[name], bytes) else gives[name]

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return gives, asked


def load(cache):
    return weights.load(f"lpips_{NET}", cache_dir=cache, timeout=7)


def test_downloaded_once_checked_and_joined(network, official, internet, tmp_path):
    _, asked = internet
    for _ in range(2):
        loaded, about = load(tmp_path / "new" / "cache")
        assert loaded.keys() == network.keys()
        for name, array in network.items():
            np.testing.assert_array_equal(loaded[name], array)
        assert about == {
            "name": f"lpips_{NET}",
            "files": [
                {"file": str(tmp_path / "new" / "cache" / name), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in official.items()
            ],
        }
        assert asked == list(official)
    assert sorted(p.name for p in (tmp_path / "new" / "cache").iterdir()) == sorted(official)


class Torn(io.BytesIO):
    def read(self, n=-1):
        if self.tell():
            raise http.client.IncompleteRead(b"")
        return super().read(1000)


class Still(io.BytesIO):
    def read(self, n=-1):
        raise TimeoutError("timed out")


def test_what_does_not_come_whole_is_not_kept(official, internet, tmp_path):
    gives, _ = internet
    first, second = official
    for bad, message in (
        (official[first][:-1], "bytes that are not"),
        (b"<html>404</html>", "bytes that are not"),
        (Torn(official[first]), "IncompleteRead"),
        (Still(), "timed out"),
        (urllib.error.URLError(socket.gaierror("Name or service not known")), "not known"),
        (urllib.error.HTTPError("https://x", 404, "Not Found", {}, None), "404"),
    ):
        gives[first] = bad
        with pytest.raises(UserError, match=message) as e:
            load(tmp_path)
        # Offline, the person is told what to put where.
        for part in (first, *(file.url for file in weights.NETWORKS[f"lpips_{NET}"].files), str(tmp_path)):
            assert part in str(e.value)
        assert not list(tmp_path.iterdir())
        if isinstance(bad, urllib.error.HTTPError):
            bad.close()
    gives[first], gives[second] = official[first], b""
    with pytest.raises(UserError, match=second):
        load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [first]
    gives[second] = official[second]
    load(tmp_path)


def test_the_cache_is_below_the_folder_that_the_environment_names(internet, official, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name, root in ((None, tmp_path / "xdg" / "dream_jax"), ("DREAM_JAX_CACHE", tmp_path / "chosen")):
        monkeypatch.delenv("DREAM_JAX_CACHE", raising=False)
        if name:
            monkeypatch.setenv(name, str(root))
        load(None)
        assert sorted(path.name for path in (root / "weights").iterdir()) == sorted(official)


def test_a_cache_that_cannot_be_one(internet, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="by hand"):
        load(tmp_path / "file")


def test_a_wrong_file_in_the_cache_is_not_used(internet, official, tmp_path):
    first = next(iter(official))
    (tmp_path / first).write_bytes(official[first] + b"x")
    with pytest.raises(UserError, match="remove it"):
        load(tmp_path)
    assert (tmp_path / first).read_bytes() == official[first] + b"x"


def test_a_persons_own_files(network, published, tmp_path, monkeypatch):
    def urlopen(*args, **kwargs):
        raise AssertionError("no download was asked for")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    whole = tmp_path / "lpips.safetensors"
    safetensors.numpy.save_file(network | {"scaling_layer.scale": np.ones(3, np.float32)}, whole)
    folder = tmp_path / "folder"
    folder.mkdir()
    first, second = published
    (folder / first).write_bytes(published[first])
    with pytest.raises(UserError, match=rf"lacks .*or else {second}, .*https://"):
        weights.load(f"lpips_{NET}", folder)
    (folder / second).write_bytes(published[second])
    for path, files in ((whole, 1), (folder, 2)):
        loaded, about = weights.load(f"lpips_{NET}", path)
        assert loaded.keys() == network.keys() and len(about["files"]) == files
        assert all(np.array_equal(loaded[name], array) for name, array in network.items())

    halves = {name: a.astype(np.float16) for name, a in network.items()}
    safetensors.numpy.save_file(halves, whole)
    assert all(a.dtype == np.float32 for a in weights.load(f"lpips_{NET}", whole)[0].values())
    with pytest.raises(UserError, match="no such file"):
        weights.load("inception", tmp_path / "missing.pth")


def test_a_network_is_checked_whole(network, tmp_path):
    name = "net.slice4.9.expand1x1.bias"
    path = tmp_path / "a.safetensors"
    for bad, message in (
        ({n: a for n, a in network.items() if n != name}, "lack"),
        ({**network, name: network[name][:-1]}, "shape"),
        ({**network, name: np.full_like(network[name], np.inf)}, "not finite"),
    ):
        safetensors.numpy.save_file(bad, path)
        with pytest.raises(UserError, match=message) as e:
            weights.load(f"lpips_{NET}", path)
        assert name in str(e.value)
    with pytest.raises(UserError, match=r"Conv2d_1a_3x3\.conv\.weight"):
        weights.load("inception", path)
    with pytest.raises(UserError, match="lpips_alex, lpips_vgg, lpips_squeeze, inception"):
        weights.load("lpips")


def test_the_published_names_begin_as_their_checksums():
    """torchvision's and pytorch-fid's files carry the beginning of their sha256 in their names."""
    for files in (network.files for network in weights.NETWORKS.values() if network.files):
        assert files[0].name.removesuffix(".pth").rsplit("-", 1)[1] == files[0].sha256[:8]
        assert all(len(file.sha256) == 64 for file in files)


def test_the_shapes_of_the_networks():
    for net, size, arrays in (("alex", 2_470_848, 15), ("vgg", 14_716_160, 31), ("squeeze", 724_736, 57)):
        shapes = perceptual.shapes(net)
        assert len(shapes) == arrays and sum(int(np.prod(s)) for s in shapes.values()) == size
    assert len(features.shapes()) == 94 * 5 + 2
