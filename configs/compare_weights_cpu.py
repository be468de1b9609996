"""Which family of rectification weights? All with the same mean over the levels, on the faces of compare_faces_cpu.py.

    python -m dream_jax compare --config compare_weights_cpu --workdir runs/weights \\
        --config.data.folder=FACES --config.data.eval_folder=OTHER_FACES

The mean is 0.418, that of the exponential family with rate 1, the largest that all can have.
"""

from dream_jax.config import command_line

MEAN = 0.418
# Of sigma over the levels of the paper's schedule, and of t / T.
MEAN_SIGMA, MEAN_TIME = 0.8015, 0.5


def get_config():
    config = command_line.load("compare_faces_cpu")
    config.evaluation.steps = (100,)
    return config


def get_comparison():
    return {
        "variants": {
            "power, p=1": {"objective.maximum": MEAN / MEAN_SIGMA},
            "linear": {"objective.weight": "linear", "objective.maximum": MEAN / MEAN_TIME},
            "exponential": {"objective.weight": "exponential", "objective.rate": 1.0},
            "step": {"objective.weight": "step", "objective.maximum": MEAN / MEAN_TIME},
            "constant": {"objective.weight": "constant", "objective.maximum": MEAN},
        },
        "seeds": (0, 1, 2),
        "points": (1000,),
    }
