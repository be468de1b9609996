"""What error does the self-estimate bear? DREAM with noise added to it, on the faces of compare_faces_cpu.py.

    python -m dream_jax compare --config compare_robustness_cpu --workdir runs/robustness \\
        --config.data.folder=FACES --config.data.eval_folder=OTHER_FACES

A size of 1 is noise as strong as the one that is estimated.
"""

from dream_jax.config import command_line


def get_config():
    config = command_line.load("compare_faces_cpu")
    config.evaluation.steps = (100,)
    return config


def get_comparison():
    sizes = {f"p=1, noise {size:g}": {"objective.estimate_noise": size} for size in (0.1, 0.3, 1.0, 3.0)}
    return {
        "variants": {"standard": {"objective.name": "standard"}, "p=1": {"objective.p": 1.0}} | sizes,
        "seeds": (0, 1, 2),
        "points": (1000,),
    }
