"""Where a checkpoint comes from, so that no run goes on from another run's."""

import importlib.metadata

from dream_jax.config import records
from dream_jax.data import indexed
from dream_jax.errors import UserError

_PACKAGES = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"

_MORE_FORMATS = " (GIF, PPM, JPEG 2000 and AVIF files did not always count: move them out of the folder, or begin anew)"


def facts(config, source) -> dict:
    """What a checkpoint records of its run: the config, the versions of packages and a fingerprint of the pictures."""
    return {"config": config.to_dict(), "versions": versions(), "data": indexed.fingerprint(source)}


def check(about: dict, now: dict, directory) -> None:
    """Raises UserError where the `facts` of a checkpoint name another config or other pictures than the run's own."""
    changed = records.differences(*(records.from_record(recorded["config"]) for recorded in (about, now)))
    if about["data"] != now["data"]:
        changed.append(f"the training pictures: {about['data']} -> {now['data']}{_MORE_FORMATS}")
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"the checkpoints in {directory} are of another run; choose another --workdir (and checkpoint.directory), "
            f"or undo the difference (theirs -> given):\n  {listed}"
        )


def versions() -> dict[str, str]:
    """The installed versions of the packages that a run depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
