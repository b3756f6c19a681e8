"""The training step, which runs under jit: its state, optimizer, gradients and skip rule."""
