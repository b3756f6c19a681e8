"""What runs inside jit at every step: the train step, its state, optimizer and skip rule."""
