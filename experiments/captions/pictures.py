"""Scores the captions of unseen pictures, and draws some of them.

    python experiments/captions/pictures.py runs/captions --out=experiments/captions/captions.png

A caption is right if the words for color and shape in it are those of the picture's object.
"""

import argparse

import matplotlib.pyplot as plt

import clip_jax
from clip_jax.data import shapes

SPLITS = ('test_seen', 'test_heldout')
COUNT, ROWS, COLUMNS = 200, 3, 6


def named(caption: str, words: tuple[str, ...]) -> set[str]:
    """Those of the words that a caption has."""
    return {*caption.split()} & {*words}


def scores(captions: list[str], things: list[shapes.Thing]) -> dict[str, float]:
    """The shares of captions with the right color, the right shape, and both."""
    found = [
        (named(text, tuple(shapes.COLORS)) == {x.color}, named(text, shapes.SHAPES) == {x.shape})
        for text, x in zip(captions, things, strict=True)
    ]
    count = len(found)
    return {
        'color': sum(color for color, _ in found) / count,
        'shape': sum(shape for _, shape in found) / count,
        'both': sum(color and shape for color, shape in found) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model')
    parser.add_argument('--out', required=True)
    args = parser.parse_args()
    clip = clip_jax.load(args.model)
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(13, 7.5))
    for split in SPLITS:
        scenes = [shapes.scene(split, i) for i in range(COUNT)]
        pictures = [shapes.draw(things, backdrop) for things, backdrop, _ in scenes]
        for method in ('greedy', 'beam'):
            captions = clip.caption(pictures, method=method, max_length=20)
            found = scores(captions, [things[0] for things, _, _ in scenes])
            print(split, method, {name: f'{share:.1%}' for name, share in found.items()})
            if method == 'greedy' and split == SPLITS[0]:
                shown = [*zip(pictures, captions, strict=True)][: ROWS * COLUMNS // 2]
            elif method == 'greedy':
                shown += [*zip(pictures, captions, strict=True)][: ROWS * COLUMNS // 2]
    for axis, (picture, caption) in zip(axes.flat, shown, strict=True):
        axis.imshow(picture)
        axis.set_title(caption.replace(' background', '\nbackground'), fontsize=9, wrap=True)
        axis.axis('off')
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == '__main__':
    main()
