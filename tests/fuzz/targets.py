"""What reads each kind of input: returns a digest of each thing that it found.

What lies in an input but cannot be used is `BAD` and its kind.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import clip_jax
from clip_jax import prompts, tokenizers
from clip_jax.convert import _table
from clip_jax.data.embedding_store import Embeddings
from clip_jax.data.errors import BadRecord
from clip_jax.data.preprocess import Preprocess
from clip_jax.data.sources import open_source
from clip_jax.tokenizers import huggingface
from clip_jax.tokenizers import sentencepiece as pieces

BAD = 'bad: '
TEXTS = ['a cat', 'a </s> \u00e9 \U0001f600 cat ' + 'x ' * 40]


def digest(*parts: Any) -> str:
    """Hashes arrays, bytes and JSON values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f'{part.dtype}{part.shape}'.encode() + part.tobytes())
        else:
            found.update(
                part if isinstance(part, bytes) else json.dumps(part, default=str).encode()
            )
    return found.hexdigest()[:16]


def checkpoint(folder: Path) -> str:
    (path,) = [*folder.glob('*.pt'), *folder.glob('*.npz')] or [folder]
    clip = clip_jax.load(path)
    flat = {name: np.asarray(x) for name, x in _table.flat(clip.variables).items()}
    for name, array in flat.items():
        assert np.isfinite(array).all(), f'{name} is not finite'
    if clip.tokenizer:
        tokens = _tokens(clip.tokenizer)
        assert tokens.max() < clip.model.text.vocab_size, 'ids beyond the vocabulary'
    about = json.loads(json.dumps(clip.card))
    return digest(about, *(x for pair in sorted(flat.items()) for x in pair))


def _tokens(tokenizer: Any) -> np.ndarray:
    tokens = tokenizer(TEXTS)
    assert tokens.shape == (len(TEXTS), tokenizer.context_length) and tokens.min() >= 0
    assert tokens.max() < tokenizer.vocab_size, 'ids beyond the vocabulary'
    tokenizer.decode(tokens[0])
    return tokens


def tokenizer_json(folder: Path) -> str:
    made = huggingface.create([], context_length=9, path=str(folder / 'tokenizer.json'))
    return digest(_tokens(made))


def sentencepiece(folder: Path) -> str:
    made = pieces.create([], context_length=9, path=str(folder / 'spiece.model'))
    return digest(_tokens(made))


def tokenizer_card(folder: Path) -> str:
    from clip_jax.runtime import foreign_json

    return digest(
        *(_tokens(tokenizers.from_card(foreign_json.read(x))) for x in sorted(folder.iterdir()))
    )


def image(folder: Path) -> list[str]:
    return [_pixels(path.read_bytes()) for path in sorted(folder.iterdir())]


def _pixels(data: Any) -> str:
    try:
        return digest(Preprocess(16)(data))
    except BadRecord as error:
        return BAD + error.kind


def data(folder: Path, spec: str, **options: Any) -> list[str]:
    source = open_source(spec.format(folder), **options)
    found = [BAD + kind for kind, lost in source.skipped.items() for _ in range(lost.count)]
    for i in range(len(source)):
        try:
            example = source[i]
        except BadRecord as error:
            found.append(BAD + error.kind)
            continue
        pixels = _pixels(example['image'])
        about = pixels, example.get('texts'), str(example.get('label'))
        found.append(pixels if pixels.startswith(BAD) else digest(about))
    return found


def tfds(folder: Path) -> list[str]:
    return data(folder, 'tfds:pictures/train', data_dir=str(folder))


def embeddings(folder: Path) -> str:
    found = Embeddings(str(folder))
    texts, rows = found.texts()
    return digest(len(found), found.embeddings(), rows, texts, found.records())


def probe(folder: Path) -> str:
    from clip_jax.evals._probe import Probe

    found = Probe.load(folder / 'x.npz')
    return digest(found.weights, found.bias, found.classes)


def run(folder: Path) -> str:
    from clip_jax.reports import files, html_report

    found = html_report.read_run(folder)
    page = html_report.run_page(found, {}, files.read_folder(folder / 'evals'))
    compared = html_report.compare_page([found]) if found.rows else ''
    return digest(page, compared)


def plot(folder: Path) -> str:
    from clip_jax import build
    from clip_jax.reports import drawing

    load_images = build.image_loader({}, remote=False)
    drawn = drawing.write_run(folder, load_images, folder / 'plots')
    return digest(sorted(path.name for paths in drawn.values() for path in paths))


def texts(folder: Path) -> str:
    return digest(
        prompts.class_names(str(folder / 'classes.txt')),
        prompts.class_names(str(folder / 'classes.json')),
        *(
            str(prompts.templates(str(folder / f'{name}.json')))
            for name in ('templates', 'prompts')
        ),
    )


def _data(spec: str) -> Callable[[Path], list[str]]:
    return lambda folder: data(folder, spec)


TARGETS: dict[str, Callable[[Path], str | list[str]]] = {
    'checkpoint': checkpoint,
    'tokenizer_json': tokenizer_json,
    'sentencepiece': sentencepiece,
    'tokenizer_card': tokenizer_card,
    'image': image,
    'tars': _data('tars:{}/a.tar'),
    'csv': _data('table:{}/a.csv'),
    'jsonl': _data('table:{}/a.jsonl'),
    'parquet': _data('table:{}/a.parquet'),
    'folder': _data('folder:{}'),
    'tfds': tfds,
    'embeddings': embeddings,
    'probe': probe,
    'run': run,
    'plot': plot,
    'texts': texts,
}
