"""How layers come to their parameters."""

import flax.linen as nn


class Layer(nn.Module):
    """A layer that takes the parameters that it is given as they are.

    Flax traces their initializers again, to compare shapes, which is half of the tracing of a network. Here the shapes
    of a file's arrays are compared where it is read.
    """

    def param(self, name, init_fn, *init_args, **options):
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return super().param(name, init_fn, *init_args, **options)


class Conv(Layer, nn.Conv):
    """`nn.Conv`."""
