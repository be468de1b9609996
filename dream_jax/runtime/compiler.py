"""Options for XLA that differ from its defaults."""

import functools
import os

import jax

# By default XLA:CPU computes convolutions with YNNPACK. That takes up to 1.5 times as long as Eigen, and for weight
# gradients up to three times as long. This value is the default without convolutions. It keeps reductions, because
# with matrix products alone they take ten times as long.
NAME = "xla_cpu_experimental_ynn_fusion_type"
VALUE = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"


@functools.cache
def options(deterministic: bool = False) -> dict:
    """`compiler_options` for an outermost jit with convolutions; {} where there are none to set.

    There are none on CPU where jaxlib does not know the option or XLA_FLAGS sets it.

    Args:
      deterministic: on GPU, use only operations that give the same bits in every run. XLA then chooses among them
        without timing them, so compiling again gives the same program.
    """
    if deterministic and jax.default_backend() == "gpu":
        return {"xla_gpu_deterministic_ops": True}
    if jax.default_backend() != "cpu" or NAME in os.environ.get("XLA_FLAGS", ""):
        return {}
    chosen = {NAME: VALUE}
    try:
        # An unknown option is an exception here; in XLA_FLAGS it would end the process.
        jax.jit(lambda x: x, compiler_options=chosen).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return chosen
