"""Does DREAM help beyond enlarging? One task at a time on small faces, at equal time, in half an hour on one CPU core.

    python -m dream_jax compare --config compare_tasks_cpu --workdir runs/inpainting \\
        --config.task.name=inpainting --config.data.folder=FACES --config.data.eval_folder=OTHER_FACES

The network is that of compare_faces_cpu.py: it predicts eps and starts from pure noise.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("compare_faces_cpu")
    config.log_every = 20
    config.checkpoint.every = 200
    config.evaluation.steps = (5, 20)
    return config


def get_comparison():
    return {
        "variants": {
            "standard": {"objective.name": "standard"},
            "p=0.5": {"objective.p": 0.5},
            "p=1": {"objective.p": 1.0},
            "p=2": {"objective.p": 2.0},
            "p=1, fresh": {"objective.noise": "fresh"},
        },
        "seeds": (0, 1),
        "points": (40, 80),
        "unit": "seconds",
    }
