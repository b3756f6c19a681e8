"""Writes two small sets of pictures as folders, a sub-folder a class, in `train/` and `test/`.

    python experiments/flickr8k/pictures.py pictures
    python experiments/flickr8k/pictures.py pictures --pixels

`digits`: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, the last 597 for the test.
`tiles`: sixteen photographs that come with scikit-image and scikit-learn, each cut into 8 x 6 tiles
and a class of its own, 16 of its tiles, drawn by chance, for the test. --pixels also scores, in
some minutes, logistic regression on the pixels alone, which features have to beat.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

ACROSS, DOWN, TEST = 8, 6, 16
LAST = 1200  # of the digits for training


def digits(folder: pathlib.Path) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    for i, (pixels, digit) in enumerate(zip(found.images, found.target, strict=True)):
        image = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
        save(image, folder / ('train' if i < LAST else 'test') / str(digit) / f'{i:04}.png')


def tiles(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for name, photograph in photographs().items():
        test = rng.permutation(ACROSS * DOWN)[:TEST]
        for i in range(ACROSS * DOWN):
            y, x = divmod(i, ACROSS)
            width, height = photograph.width / ACROSS, photograph.height / DOWN
            box = x * width, y * height, (x + 1) * width, (y + 1) * height
            tile = photograph.crop([round(edge) for edge in box])
            save(tile, folder / ('test' if i in test else 'train') / name / f'{y}_{x}.png')


def photographs() -> dict[str, Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = (
        *('astronaut', 'cat', 'coffee', 'rocket', 'hubble_deep_field', 'retina'),
        *('camera', 'coins', 'moon', 'brick', 'grass', 'gravel'),
    )
    arrays = {name: getattr(data, name)() for name in names}
    arrays |= {'tissue': data.immunohistochemistry(), 'motorcycle': data.stereo_motorcycle()[0]}
    arrays |= dict(zip(('china', 'flower'), load_sample_images().images, strict=True))
    return {name: Image.fromarray(array).convert('RGB') for name, array in arrays.items()}


def save(image: Image.Image, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def pixel_score(folder: pathlib.Path, size: int, mode: str) -> float:
    """Returns the share of test pictures that logistic regression on the pixels of pictures of this
    size gets right, with the best C of seven by cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    def rows(part: str) -> tuple[np.ndarray, list[str]]:
        paths = sorted((folder / part).glob('*/*.png'))
        images = [Image.open(p).convert(mode).resize((size, size), Image.BOX) for p in paths]
        return np.stack(images).reshape(len(paths), -1) / 255, [p.parent.name for p in paths]

    search = GridSearchCV(LogisticRegression(max_iter=1000), {'C': np.logspace(-3, 3, 7)}, cv=5)
    return search.fit(*rows('train')).score(*rows('test'))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('--pixels', action='store_true')
    args = parser.parse_args()
    folder = args.folder
    digits(folder / 'digits')
    tiles(folder / 'tiles')
    for path in sorted(folder.glob('*/*')):
        count = sum(1 for _ in path.glob('*/*.png'))
        print(f'{path}: {count:,} pictures of {len(list(path.iterdir()))} classes')
    if args.pixels:
        print(f'digits, pixels: {pixel_score(folder / "digits", 8, "L"):.1%}')
        print(f'tiles, pixels: {pixel_score(folder / "tiles", 16, "RGB"):.1%}')


if __name__ == '__main__':
    main()
