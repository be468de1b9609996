"""What XLA is told beyond its defaults."""

import functools
import os

import jax

# By default XLA:CPU gives convolutions too to YNNPACK, which takes up to 1.5 times as long as Eigen for them, and up to
# three times for their weight gradients. This is the default without them: naming matrix products alone would make sums
# ten times slower.
_NAME = "xla_cpu_experimental_ynn_fusion_type"
_VALUE = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"


@functools.cache
def options(deterministic: bool = False) -> dict:
    """`compiler_options` for an outermost jit with convolutions; {} where they do not apply.

    On CPU that is with a jaxlib that does not know the option, and where XLA_FLAGS sets it.

    Args:
      deterministic: on GPU, only operations that give the same bits whenever they are run. It also leaves the choice
        among them to no timing, so that what is compiled again is the same program.
    """
    if deterministic and jax.default_backend() == "gpu":
        return {"xla_gpu_deterministic_ops": True}
    if jax.default_backend() != "cpu" or _NAME in os.environ.get("XLA_FLAGS", ""):
        return {}
    chosen = {_NAME: _VALUE}
    try:
        # Given like this an unknown option is an error to catch; in XLA_FLAGS it would end the process.
        jax.jit(lambda x: x, compiler_options=chosen).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return chosen
