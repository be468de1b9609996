"""Is it so on other pictures than faces? Two variants of compare_faces_cpu.py, for photographs of things and animals.

    python -m dream_jax compare --config compare_photos_cpu --workdir runs/photos \\
        --config.data.folder=PICTURES --config.data.eval_folder=OTHER_PICTURES

Pictures of any size are brought to 16 pixels, CIFAR-10's for example.
"""

from dream_jax.config import command_line


def get_config():
    return command_line.load("compare_faces_cpu")


def get_comparison():
    return {
        "variants": {
            "standard": {"objective.name": "standard"},
            "p=1": {"objective.p": 1.0},
        },
        "seeds": (0, 1, 2),
        "points": (1000, 2000),
    }
