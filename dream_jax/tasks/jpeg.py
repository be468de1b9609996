"""JPEG: pictures from what a lossy file kept of them."""

from dream_jax.errors import UserError
from dream_jax.tasks import draws, host, jpeg_coding
from dream_jax.tasks.task import Task, degraded, observed_again


def jpeg(quality: tuple[int, ...] = (30, 95), residual: bool = False, gain: float = 1.0, channels: int = 3) -> Task:
    """Pictures as they come back of JPEG files, of a quality that is drawn for each and not told.

    Args:
      quality: 1 to 100, as Pillow's: one number, or LOW, HIGH.
      residual, gain: see `restoration`.
      channels: of pictures, 1 or 3.
    """
    check_channels(channels, "jpeg")

    @draws.each
    def observe(key, picture):
        return jpeg_coding.code(picture, draws.whole_within(key, quality))

    return degraded(
        observe,
        "jpeg",
        residual=residual,
        gain=gain,
        classical=("total variation", total_variation),
        consistency=observed_again(observe) if draws.is_fixed(quality) else None,
        channels=channels,
    )


def check_channels(channels: int, name: str) -> None:
    """Raises UserError for pictures that JPEG files do not hold."""
    if channels not in (1, 3):
        raise UserError(f"data.channels = {channels}: {name} makes JPEG files, which hold 1 or 3")


def total_variation(observed, weight: float = 0.01):
    """Chambolle 2004, by scikit-image; levels [H, W, C] on the host."""
    from skimage import restoration as classical

    found = classical.denoise_tv_chambolle(host.to_unit(observed), weight=weight, channel_axis=-1)
    return host.to_levels(found, observed.dtype)
