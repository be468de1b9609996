"""DREAM beside others that mend what training and sampling differ in, on the faces of compare_faces_cpu.py.

    python -m dream_jax compare --config compare_rivals_cpu --workdir runs/rivals \
        --config.data.folder=FACES --config.data.eval_folder=OTHER_FACES

Input perturbation, scheduled sampling and self-conditioning; dream_jax/objectives.py says where they are from. Epsilon
scaling and time-shift are options of sampling, for any model: `sampling.eps_scale`, `sampling.shift_window`.
"""

from dream_jax.config import command_line


def get_config():
    return command_line.load("compare_faces_cpu")


def get_comparison():
    names = "standard", "input_perturbation", "scheduled_sampling", "self_conditioning"
    others = {name.replace("_", " "): {"objective.name": name} for name in names}
    return {"variants": others | {"p=1": {"objective.p": 1.0}}, "seeds": (0, 1, 2), "points": (1000, 2000)}
