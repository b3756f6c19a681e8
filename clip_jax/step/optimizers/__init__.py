"""Optimizers: how gradients become updates. One file is one method; see adamw.py for an example.

An optimizer of your own is a module with this function, named in the config by its file here
(`optimizer.name='adamw'`) or by its import path (`optimizer.name='my_package.my_optimizer'`):

    def create(decay, rate, *, schedule, **options):
        return optax.chain(my_direction(**options), decay, rate)

Args that the program passes:
  decay: a transformation that adds each parameter's weight decay, times the parameter.
  rate: a transformation that multiplies by minus the learning rate of each parameter.
  schedule: step -> learning rate. Passed only to a function that has this parameter.

All other parameters are the optimizer's own options: the config sets them by name
(`c.optimizer.update(name='sgd', momentum=0.9)`), and an option that the function does not have is
an error. A parameter without a default must be set.

Returns:
  A gradient transformation of optax. It sees only parameters that are trained, as a nested dict.
  Gradients are clipped before it, and the logit scale is bounded after it.

Optional module attribute:
  average(opt_state, params): returns the parameters to evaluate, where these are others than those
    that are trained. `opt_state` is the whole state; optax.tree.get finds a field in it.
"""
