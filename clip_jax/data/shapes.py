"""Draws colored shapes with captions: the pictures of the data set shapes_captions."""

import colorsys
import dataclasses
import functools
import io
import math
import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw

from clip_jax import lookup

COLORS = {
    'red': (214, 28, 36),
    'orange': (250, 140, 10),
    'yellow': (250, 225, 40),
    'green': (40, 150, 50),
    'cyan': (30, 205, 215),
    'blue': (30, 60, 215),
    'purple': (125, 35, 170),
    'pink': (250, 130, 190),
    'white': (248, 248, 248),
    'black': (16, 16, 16),
}
SHAPES = (
    'circle',
    'square',
    'triangle',
    'star',
    'ring',
    'cross',
    'heart',
    'crescent',
    'arrow',
    'hourglass',
)
PAIRS = [f'{color} {shape}' for color in COLORS for shape in SHAPES]
# Every color and every shape is held out exactly twice.
HELD_OUT = sorted(PAIRS[10 * i + (i + shift) % 10] for i in range(10) for shift in (0, 4))
SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]

# Ranges of diameters as fractions of the picture's width; two objects are PAIRED times as large.
SIZES = {'small': (0.46, 0.52), 'medium': (0.58, 0.66), 'large': (0.72, 0.82)}
PAIRED = 0.57
TEXTURES = ('plain', 'striped', 'dotted', 'checkered')
BACKGROUNDS = ('plain', 'gradient', 'noisy', 'striped', 'checkered')
SPLITS = {'train': 20_000, 'test': 500, 'test_seen': 1_200, 'test_heldout': 1_200}

RGB = tuple[int, int, int]
# Backgrounds are muted: dark, middling and light tones of little saturation.
TONES = [
    cast(RGB, tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue / 6, lightness, 0.12)))
    for lightness in (0.14, 0.20, 0.48, 0.55, 0.82, 0.90)
    for hue in range(6)
]
# An object's color is at least this far from its background (Euclidean, RGB of 0 to 255).
CONTRAST = 100
INVERSE = {'above': 'below', 'below': 'above', 'to the left of': 'to the right of'}
INVERSE['to the right of'] = 'to the left of'

# Captions that name color and shape alone, and captions that say more.
SINGLE_PLAIN = (
    'a {pair}',
    'one {pair}',
    'there is a {pair}',
    'a picture of a {pair}',
    'a drawing of a {pair}',
    'the {shape} is {color}',
)
SINGLE_DETAILED = (
    'a {full}',
    'a picture of a {full}',
    'a {full} {where}',
    'a {pair} {where}',
    'the {shape} {where} is {color}',
    'a {full} on a {ground} background',
    'a {ground} background with a {pair}',
)
DOUBLE_PLAIN = (
    'a {pair} and a {other_pair}',
    'a {pair} {relation} a {other_pair}',
    'a {other_pair} {inverse} a {pair}',
    'a picture of a {pair} and a {other_pair}',
    'the {pair} is {relation} the {other_pair}',
    'two shapes, a {pair} and a {other_pair}',
    '{relation} a {other_pair} there is a {pair}',
)
DOUBLE_DETAILED = (
    'a {full} {relation} a {other_full}',
    'a {other_full} {inverse} a {full}',
    'a picture of a {full} {relation} a {other_full}',
    'a {full} and, {inverse} it, a {other_full}',
    'a {full} {relation} a {other_pair} on a {ground} background',
    'a {ground} background with a {pair} {relation} a {other_full}',
)
# Most captions are plain: shapes are much harder to learn than colors, and captions that differ in
# size, place and background delay learning them.
CAPTIONS, PLAIN_CAPTIONS = 5, 4
TWO_OBJECTS = 1 / 8  # fraction of the pictures


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a picture; lengths are shares of the picture's width, angles are in degrees.

    `size` is one of SIZES (less where there are two) or a diameter, `position` the center (x, y)
    with y downwards; objects without a position are put next to each other.
    """

    color: str
    shape: str
    size: str | float = 'medium'
    position: tuple[float, float] | None = None
    texture: str = 'plain'
    rotation: float = 0.0

    def __post_init__(self):
        lookup.check(self.color, COLORS, what='color')
        lookup.check(self.shape, SHAPES, what='shape')
        lookup.check(self.texture, TEXTURES, what='texture')
        if isinstance(self.size, str):
            lookup.check(self.size, SIZES, what='size')
        elif not 0 < self.size <= 1:
            raise ValueError(f"size {self.size} is not a fraction (0 to 1) of the picture's width.")

    @classmethod
    def parse(cls, text: str) -> 'Thing':
        """Parses an object such as 'red star' or 'small striped red star'."""
        if len(text.split()) < 2:
            raise ValueError(f"object {text!r}: expected color and shape, for example 'red star'.")
        *extras, color, shape = text.split()
        for word in extras:
            lookup.check(word, [*SIZES, *TEXTURES], what='size or texture')
        fields: dict[str, Any] = {'size' if word in SIZES else 'texture': word for word in extras}
        return cls(color, shape, **fields)

    @property
    def pair(self) -> str:
        """Color and shape, the name of the object's class."""
        return f'{self.color} {self.shape}'

    @property
    def diameter(self) -> float:
        """The diameter as a fraction of the picture's width."""
        return sum(SIZES[self.size]) / 2 if isinstance(self.size, str) else self.size


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """The background: a pattern of BACKGROUNDS in shades of one tone.

    Attributes:
        pattern: one of BACKGROUNDS.
        tone: RGB from 0 to 255; None for the one of TONES with the highest contrast to the objects.
        seed: selects the direction and the noise.
    """

    pattern: str = 'plain'
    tone: RGB | None = None
    seed: int = 0

    def __post_init__(self):
        lookup.check(self.pattern, BACKGROUNDS, what='background')


def draw(
    objects: str | Thing | Sequence[str | Thing],
    background: str | Backdrop = 'plain',
    size: int = 64,
) -> Image.Image:
    """Draws objects on a background.

    `draw('red star')`, `draw(['small blue ring', Thing('pink', 'heart')], 'striped', size=128)`.

    Args:
        objects: one or several objects, as words or Things.
        background: one of BACKGROUNDS, or a Backdrop.
        size: width and height in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: if a word is unknown.
    """
    things = [objects] if isinstance(objects, (str, Thing)) else objects
    things = [Thing.parse(t) if isinstance(t, str) else t for t in things]
    backdrop = Backdrop(background) if isinstance(background, str) else background
    if backdrop.tone is None:
        tone = max(TONES, key=lambda t: contrast(t, [thing.color for thing in things]))
        backdrop = dataclasses.replace(backdrop, tone=tone)
    canvas = _paint_backdrop(backdrop, size)
    for i, thing in enumerate(things):
        if thing.position is None:
            thing = dataclasses.replace(thing, position=((i + 0.5) / len(things), 0.5))
        if isinstance(thing.size, str) and len(things) > 1:
            thing = dataclasses.replace(thing, size=PAIRED * thing.diameter)
        canvas += _mask(thing, size)[..., None] * (_paint_thing(thing, size) - canvas)
    return Image.fromarray(np.uint8(np.clip(np.rint(canvas), 0, 255)))


def contrast(tone: RGB, colors: Sequence[str]) -> float:
    """Returns the RGB distance of a background tone to the nearest of the colors."""
    return min((math.dist(COLORS[c], tone) for c in colors), default=0)


def _circle(radius: float, x: float = 0.0) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + radius * np.cos(t), radius * np.sin(t)], axis=1)


def _star(outer: float, inner: float) -> np.ndarray:
    t = np.pi * (np.arange(10) / 5 - 0.5)
    radius = np.where(np.arange(10) % 2, inner, outer)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 16


@functools.cache
def _outlines() -> dict[str, list[np.ndarray]]:
    """Each shape's polygon [N, 2] in about the unit circle, y downwards, and its hole, if any."""
    points = {
        'square': '-80 -80  80 -80  80 80  -80 80',
        'triangle': '0 -95  95 75  -95 75',
        'cross': '-30 -95  30 -95  30 -30  95 -30  95 30  30 30  30 95  -30 95  -30 30  -95 30'
        '  -95 -30  -30 -30',
        'arrow': '-100 -28  5 -28  5 -75  100 0  5 75  5 28  -100 28',
        'hourglass': '-78 -95  78 -95  14 0  78 95  -78 95  -14 0',
    }
    shapes = {k: [np.array(v.split(), float).reshape(-1, 2) / 100] for k, v in points.items()}
    shapes['circle'] = [_circle(0.92)]
    shapes['ring'] = [_circle(0.98), _circle(0.52)]
    shapes['crescent'] = [_circle(0.98), _circle(0.80, x=0.45)]
    shapes['star'] = [_star(1.08, 0.46)]
    shapes['heart'] = [_heart()]
    return shapes


def _mask(thing: Thing, size: int, oversample: int = 4) -> np.ndarray:
    """The object's coverage of each pixel, float [size, size], antialiased."""
    assert thing.position is not None  # chosen by `draw`
    big = Image.new('L', (size * oversample, size * oversample))
    canvas = ImageDraw.Draw(big)
    turn = math.radians(thing.rotation)
    matrix = [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
    for polygon, fill in zip(_outlines()[thing.shape], (255, 0), strict=False):
        points = thing.position + polygon @ matrix * thing.diameter / 2
        canvas.polygon((points * size * oversample - 0.5).ravel().tolist(), fill=fill)
    return np.asarray(big.reduce(oversample), np.float32) / 255


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    x = (np.arange(size, dtype=np.float32) + 0.5) / size
    return x[None, :], x[:, None]


def _pattern(
    name: str, size: int, *, period: float, angle: float, center: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Each pixel's fraction of the pattern's second tone, float [size, size]; angle in radians."""
    if name == 'plain':
        return np.zeros((size, size), np.float32)
    if name == 'noisy':
        return np.random.default_rng(seed).random((size, size), np.float32)
    x, y = _grid(size)
    x, y = x - center[0], y - center[1]
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    wave = 2 * math.pi / period
    match name:
        case 'gradient':
            return np.clip(0.5 + u / 1.2, 0, 1)
        case 'striped':
            return np.clip(0.5 + 2.5 * (np.cos(wave * u) - 0.4), 0, 1)
        case 'dotted':
            return np.clip(0.5 + 4 * (np.cos(wave * u) + np.cos(wave * v) - 0.7), 0, 1)
        case 'checkered':
            return np.clip(0.5 + 3 * (np.sin(wave / 2 * u) * np.sin(wave / 2 * v) - 0.2), 0, 1)
        case _:
            raise ValueError(f'texture {name!r}: expected one of {", ".join(TEXTURES)}')


@functools.cache
def _marks(name: str) -> np.ndarray:
    """The second color of a texture: dark marks on light colors, light marks on dark ones."""
    color = np.array(COLORS[name], np.float32)
    return color * 0.68 if color.mean() > 120 else color + (255 - color) * 0.35


def _paint_thing(thing: Thing, size: int) -> np.ndarray:
    """The object's colors over the entire picture, without its mask, float [size, size, 3]."""
    color = np.array(COLORS[thing.color], np.float32)
    angle = math.radians(thing.rotation + 40)
    assert thing.position is not None  # chosen by `draw`
    weight = _pattern(thing.texture, size, period=0.1, angle=angle, center=thing.position)
    return color + weight[..., None] * (_marks(thing.color) - color)


def _paint_backdrop(backdrop: Backdrop, size: int) -> np.ndarray:
    """The background, float [size, size, 3]."""
    tone = np.array(backdrop.tone, np.float32)
    angle = math.radians(backdrop.seed % 180)
    weight = _pattern(
        backdrop.pattern, size, period=0.2, angle=angle, center=(0.5, 0.5), seed=backdrop.seed
    )
    return tone + 28 * (weight[..., None] - 0.5)


def _pick(rng: np.random.Generator, choices: Sequence):
    return choices[int(rng.integers(len(choices)))]


def _random_size(rng: np.random.Generator) -> float:
    return float(rng.uniform(*_pick(rng, list(SIZES.values()))))


def _random_thing(
    rng: np.random.Generator, pair: str, size: float, position: tuple[float, float]
) -> Thing:
    # A texture would hide the outline of a small object.
    textured = rng.random() < 0.4 and size > SIZES['small'][1]
    texture = _pick(rng, TEXTURES) if textured else 'plain'
    color, shape = pair.split()
    return Thing(color, shape, size, position, texture, rotation=float(rng.uniform(-8, 8)))


@functools.cache
def _fits(color: str, textured: bool, tone: RGB) -> bool:
    """Whether a color, and its texture, have enough contrast to a background."""
    marks_fit = math.dist(_marks(color), tone) >= CONTRAST / 2
    return contrast(tone, [color]) >= CONTRAST and (marks_fit or not textured)


def _random_backdrop(rng: np.random.Generator, things: Sequence[Thing]) -> Backdrop:
    needs = [(thing.color, thing.texture != 'plain') for thing in things]
    tone = _pick(rng, [tone for tone in TONES if all(_fits(*need, tone) for need in needs)])
    return Backdrop(_pick(rng, BACKGROUNDS), tone, seed=int(rng.integers(1 << 31)))


def _one_thing(rng: np.random.Generator, pair: str) -> list[Thing]:
    size = _random_size(rng)
    low = max(0.35, size / 2 + 0.02)
    x, y = rng.uniform(low, 1 - low, 2).tolist()
    return [_random_thing(rng, pair, size, (x, y))]


def _two_things(rng: np.random.Generator, pairs: Sequence[str], relation: str) -> list[Thing]:
    """Two objects that do not touch, the first `relation` the second."""
    sizes = [PAIRED * _random_size(rng) for _ in range(2)]
    first_comes_first = relation in ('above', 'to the left of')
    before, after = sizes if first_comes_first else sizes[::-1]
    margin = 0.015
    gaps = rng.dirichlet([1, 1, 1]) * (1 - before - after - 3 * margin) + margin
    along = [gaps[0] + before / 2, gaps[0] + before + gaps[1] + after / 2]
    # The objects are roughly aligned, so that the relation is unambiguous.
    half = max(sizes) / 2
    across = rng.uniform(half, 1 - half) + np.array([0, rng.uniform(-0.12, 0.12)])
    across = np.clip(across, half, 1 - half)
    if not first_comes_first:
        along.reverse()
    points = np.stack([across, along] if relation in ('above', 'below') else [along, across], 1)
    return [
        _random_thing(rng, pair, size, tuple(point))
        for pair, size, point in zip(pairs, sizes, points.tolist(), strict=True)
    ]


def scene(split: str, i: int) -> tuple[list[Thing], Backdrop, list[str]]:
    """Returns the objects, the background and the captions of picture `i` of a split."""
    lookup.check(split, SPLITS, what='split')
    rng = np.random.default_rng(np.random.SeedSequence([list(SPLITS).index(split), i]))
    relation = ''
    if split == 'test_seen':
        things = _one_thing(rng, SEEN[i % len(SEEN)])
    elif split == 'test_heldout':
        things = _one_thing(rng, HELD_OUT[i % len(HELD_OUT)])
    elif rng.random() >= TWO_OBJECTS:
        things = _one_thing(rng, _pick(rng, SEEN))
    else:
        pairs = [SEEN[k] for k in rng.choice(len(SEEN), 2, replace=False)]
        relation = _pick(rng, list(INVERSE))
        things = _two_things(rng, pairs, relation)
    backdrop = _random_backdrop(rng, things)
    return things, backdrop, _captions(rng, _words(things, backdrop, relation))


def _captions(rng: np.random.Generator, words: dict[str, str]) -> list[str]:
    """Distinct captions of one picture, plain ones first."""
    double = bool(words['relation'])
    plain = DOUBLE_PLAIN if double else SINGLE_PLAIN
    detailed = DOUBLE_DETAILED if double else SINGLE_DETAILED
    chosen = rng.permutation(plain)[:PLAIN_CAPTIONS].tolist() + rng.permutation(detailed).tolist()
    # A detailed template gives a plain caption if size and texture have no names.
    return list(dict.fromkeys(_caption(template, words) for template in chosen))[:CAPTIONS]


def _words(things: Sequence[Thing], backdrop: Backdrop, relation: str) -> dict[str, str]:
    """The values of the placeholders in caption templates."""
    first, last = things[0], things[-1]
    scale = PAIRED if len(things) > 1 else 1.0
    assert backdrop.tone is not None  # chosen with the objects
    brightness = np.mean(backdrop.tone)
    shade = 'dark ' if brightness < 85 else 'light ' if brightness > 170 else ''
    return {
        'color': first.color,
        'shape': first.shape,
        'pair': first.pair,
        'full': _full_name(first, scale),
        'where': _where(*(first.position or (0.5, 0.5))),
        'ground': shade + backdrop.pattern,
        'other_pair': last.pair,
        'other_full': _full_name(last, scale),
        'relation': relation,
        'inverse': INVERSE.get(relation, ''),
    }


def _full_name(thing: Thing, scale: float) -> str:
    size = next(name for name, (_, most) in SIZES.items() if thing.diameter <= most * scale)
    named = [word for word in (size, thing.texture) if word not in ('medium', 'plain')]
    return ' '.join([*named, thing.pair])


def _where(x: float, y: float) -> str:
    column = 'left' if x < 0.43 else 'right' if x > 0.57 else ''
    row = 'top' if y < 0.43 else 'bottom' if y > 0.57 else ''
    if row and column:
        return f'in the {row} {column} corner'
    return f'at the {row}' if row else f'on the {column}' if column else 'in the middle'


def _caption(template: str, words: dict[str, str]) -> str:
    return re.sub(r'\ba (?=[aeio]|hour)', 'an ', template.format(**words))


def example(split: str, i: int) -> dict:
    """Returns picture `i` of a split: JPEG bytes, captions, index in PAIRS (-1: two objects)."""
    things, backdrop, captions = scene(split, i)
    file = io.BytesIO()
    # Full color resolution (subsampling 0), or small objects lose theirs.
    draw(things, backdrop).save(file, 'JPEG', quality=90, subsampling=0)
    label = PAIRS.index(things[0].pair) if len(things) == 1 else -1
    return {'image': file.getvalue(), 'captions': captions, 'label': label}
