"""Calls of the libraries of GPUs in a compiled program: cuDNN and cuBLAS."""

import math
import re

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
    """FLOPs of a product by cuBLAS or of cuDNN's attention; 0 of other calls.

    Args:
        one: the call.
        operands: the arrays of each operand.
    """
    shapes = [x[0].shape if x else () for x in operands]
    if maker(one) == 'cuDNN attention':
        # Two products of queries [B, L, heads, head_dim] and keys; five in the backward pass.
        return (10 if 'Backward' in target(one) else 4) * math.prod(shapes[0]) * shapes[1][1]
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.line)
    if not contracted:
        return 0
    length = math.prod(shapes[0][int(i)] for i in re.findall(r'\d+', contracted[1]))
    return 2 * math.prod(one.results[0].shape) * length
