"""Which part of a train step an instruction of the compiled program belongs to.

JAX names each operation after the modules that it is in, for instance
`jit(train_step)/transpose(jvp(CLIP))/CLIP.encode_image/image/transformer/Block/mlp/in/dot_general`.
"""

import re

from clip_jax.planning.program import Instruction, Program, Run

TOWERS = ('image', 'text')
LAYERS = ('attention', 'MLP', 'norms', 'embedding', 'copies', 'rest')
TOWER_PARTS = tuple(f'{tower} {layer}' for tower in TOWERS for layer in LAYERS)
PARTS = (
    *TOWER_PARTS,
    'teachers',
    'loss',
    'optimizer',
    'copies',
    'other',
)
# What only moves numbers, or stores them in another type.
MOVES = {'bitcast', 'copy', 'transpose', 'reshape', 'slice', 'dynamic-slice', 'convert'}
MOVES |= {'dynamic-update-slice', 'concatenate', 'pad', 'parameter', 'constant', 'tuple'}
MOVES |= {'broadcast', 'get-tuple-element', 'add-dependency'}
PRODUCTS = ('convolution', 'dot')


def of(compiled: Program, run: Run) -> tuple[str, str]:
    """The part of an instruction, one of PARTS, and its direction: forward, backward or ''.

    Args:
        compiled: the program.
        run: one of its instructions that are scheduled by themselves.
    """
    one = run.instruction
    inner = _inner(compiled, one)
    opcodes = {x.opcode.removesuffix('-start').removesuffix('-done') for x in inner}
    # A fusion is named after its last operation; what is fused to a product is small beside it.
    name = next((x for x in inner if x.opcode in PRODUCTS), one).op_name
    part = of_name(name)
    tower = part.partition(' ')[0] if part in TOWER_PARTS else ''
    if opcodes <= MOVES:
        part = f'{tower} copies'.strip()
    if not tower and part != 'loss':
        return part, ''
    return part, 'backward' if 'transpose(' in name else 'forward'


def _inner(compiled: Program, one: Instruction) -> list[Instruction]:
    """The instructions in a fusion, those of fusions in it too; else the instruction itself."""
    if one.opcode != 'fusion':
        return [one]
    inside = compiled.computations.get(one.calls, {}).values()
    return [x for each in inside for x in _inner(compiled, each)]


def of_name(name: str) -> str:
    """The part of an operation by its name, as JAX gives it; one of PARTS."""
    modules = name.split('/')[1:-1]
    if 'teachers' in modules:
        return 'teachers'
    tower = next((x for x in TOWERS if f'CLIP.encode_{x}' in modules), '')
    if tower:
        return f'{tower} {_layer(modules)}'
    if not any('jvp(' in module for module in modules):
        return 'optimizer' if name.startswith('jit(') else 'other'
    # The loss is no module; the scale of its logits and norms of embeddings are in the model.
    return 'loss'


def _layer(modules: list[str]) -> str:
    for module in reversed(modules):
        if re.search(r'norm', module):
            return 'norms'
        if module == 'mlp':
            return 'MLP'
        if re.search(r'attention', module):
            return 'attention'
        if re.search(r'embedding', module):
            return 'embedding'
    return 'rest'
