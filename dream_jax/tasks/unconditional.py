"""Generation: pictures from noise alone."""

from dream_jax.tasks.task import Task, clip


def unconditional(channels: int = 3) -> Task:
    """Generation: x0 is the picture, of so many channels, and cond has none."""
    return Task(
        observe=lambda keys, picture: picture[..., :0],
        condition=lambda observed, sides=None: observed.astype("float32"),
        encode=lambda picture, cond: picture,
        to_picture=lambda x0, cond: clip(x0),
        constrain=lambda x0, cond, limit=clip: limit(x0),
        channels=channels,
    )
