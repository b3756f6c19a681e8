"""Calls of the libraries of GPUs in a compiled program: cuDNN and cuBLAS."""

import math
import re

from clip_jax.planning import convolution
from clip_jax.planning.convolution import Shape
from clip_jax.planning.program import Array, Instruction

MAKERS = {'__cudnn$fmha': 'cuDNN attention', '__cudnn': 'cuDNN', '__cublas': 'cuBLAS'}


def target(one: Instruction) -> str:
    """What a custom call calls; '' of another instruction."""
    found = re.search(r'custom_call_target="([^"]+)"', one.line)
    return found[1] if found else ''


def maker(one: Instruction) -> str:
    """The library that an instruction calls, one of the values of MAKERS; '' if it calls none."""
    called = target(one)
    return next((name for start, name in MAKERS.items() if called.startswith(start)), '')


def results(one: Instruction) -> tuple[Array, ...]:
    """The results of a library's call without its scratch memory, which is the last."""
    scratch = len(one.results) > 1 and one.results[-1].dtype in ('s8', 'u8')
    return one.results[:-1] if scratch else one.results


def flops(one: Instruction, operands: list[tuple[Array, ...]]) -> int:
    """FLOPs of a product by cuBLAS, a convolution or attention of cuDNN; 0 of other calls.

    Args:
        one: the call.
        operands: the arrays of each operand.
    """
    shapes = [x[0].shape if x else () for x in operands]
    if maker(one) == 'cuDNN attention':
        # Two products of queries [B, L, heads, head_dim] and keys; five in the backward pass.
        return (10 if 'Backward' in target(one) else 4) * math.prod(shapes[0]) * shapes[1][1]
    if target(one).startswith('__cudnn$conv'):
        return _convolution_flops(one, *shapes[:2])
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.line)
    if not contracted:
        return 0
    length = math.prod(shapes[0][int(i)] for i in re.findall(r'\d+', contracted[1]))
    return 2 * math.prod(one.results[0].shape) * length


def _convolution_flops(one: Instruction, first: Shape, second: Shape) -> int:
    """FLOPs of a convolution, or of one of its gradients, which keeps the forward one's window."""
    result = one.results[0].shape
    if target(one) == '__cudnn$convBackwardInput':  # of the output's gradient and the kernel
        return convolution.flops(one.line, result, second, first)
    if target(one) == '__cudnn$convBackwardFilter':  # of the input and the output's gradient
        return convolution.flops(one.line, first, result, second)
    return convolution.flops(one.line, first, second, result)
