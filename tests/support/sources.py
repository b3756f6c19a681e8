"""The same small data set in every kind of storage."""

import io
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from clip_jax.data import embedding_index, embedding_store, kept_list
from clip_jax.data.sources import open_source
from clip_jax.runtime import atomic

CAPTIONS = [f'picture {i}' for i in range(6)]


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (4, 3), (shade, 0, 0)).save(file, 'PNG')
    return file.getvalue()


def make_tars(path, captions) -> str:
    with tarfile.open(path / 'a.tar', 'w') as tar:
        for i, caption in enumerate(captions):
            for ext, data in ('png', png(i)), ('txt', caption), ('cls', b'%d' % (i % 2)):
                member = tarfile.TarInfo(f'{i}.{ext}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return f'tars:{path}/a.tar'


def make_table(path, captions) -> str:
    lines = [b'image,caption,label']
    for i, caption in enumerate(captions):
        (path / f'{i}.png').write_bytes(png(i))
        lines.append(b'%d.png,%b,%d' % (i, caption, i % 2))
    (path / 'a.csv').write_bytes(b'\n'.join(lines))
    return f'table:{path}/a.csv'


def make_folder(path, captions) -> str:
    for i, caption in enumerate(captions):
        folder = path / ('odd' if i % 2 else 'even')
        folder.mkdir(exist_ok=True)
        (folder / f'{i}.png').write_bytes(png(i))
        (folder / f'{i}.txt').write_bytes(caption)
    return f'folder:{path}'


class Pictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    captions: list[bytes]

    def _info(self):
        features = {
            'image': tfds.features.Image(),
            'captions': tfds.features.Text(),
            'label': tfds.features.ClassLabel(names=['even', 'odd']),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for i, caption in enumerate(self.captions):
            yield i, {'image': png(i), 'captions': caption, 'label': i % 2}


def make_tfds(path, captions) -> str:
    Pictures.captions = captions
    Pictures(data_dir=path, file_format='array_record').download_and_prepare()
    return 'tfds:pictures/train'


def row(shade: int) -> np.ndarray:
    """What stands for picture `shade` in a folder of embeddings."""
    return np.eye(8, dtype=np.float32)[shade]


def make_embeddings(path, captions) -> str:
    """Two shards; captions that are not UTF-8 were left out when they were embedded."""
    usable = [i for i, caption in enumerate(captions) if caption.isascii()]
    for shard, own in enumerate((usable[:4], usable[4:])):
        embedding_store.write_shard(
            epath.Path(path),
            shard,
            images=np.stack([row(i) for i in own]),
            texts=np.stack([row(i) for i in own]),
            records=[
                {
                    'record': i,
                    'where': f'p/{i}',
                    'image_hash': embedding_index.hash_of(png(i)),
                    'label': i % 2,
                    'texts': [captions[i].decode()],
                }
                for i in own
            ],
            bad=[],
            span=range(shard * 4, min(shard * 4 + 4, len(captions))),
        )
    values = {
        'complete': True,
        'model': '/no/model',
        'card': {},
        'scale': 10.0,
        'compute_dtype': 'float32',
        'captions': 'embedding',
        'source_records': len(captions),
        'shard_size': 4,
        'batch_size': 4,
        'image_options': {},
        'images': len(usable),
        'texts': len(usable),
        'fingerprint': 'f',
        'data': 'folder:p',
        'data_options': {},
        'features': 'embedding',
        'dim': 0,
        'save_dtype': 'float32',
        'shape': [8],
        'text_shape': [8],
        'label_names': ['even', 'odd'],
        'bad': {'not_utf8': {'count': 1, 'examples': ['p/4']}} if len(usable) < 6 else {},
        'shards': [[4, 4], [len(usable) - 4] * 2],
    }
    description = embedding_store.Description(**values)
    atomic.write_json(epath.Path(path) / embedding_store.DESCRIPTION, description.to_json())
    return f'embeddings:{path}'


def write_pictures(path) -> list[str]:
    """Writes pictures 0 to 5 into a folder; returns their names."""
    (path / 'pictures').mkdir(exist_ok=True)
    names = [f'{i}.png' for i in range(6)]
    for i, name in enumerate(names):
        (path / 'pictures' / name).write_bytes(png(i))
    return names


def make_karpathy(path, captions) -> str:
    entry = b'{"filename": "%s", "filepath": "pictures", "split": "test", "sentences": [%s]}'
    pairs = zip(write_pictures(path), captions, strict=True)
    images = [entry % (name.encode(), b'{"raw": "%s"}' % caption) for name, caption in pairs]
    (path / 'dataset.json').write_bytes(b'{"images": [%s]}' % b', '.join(images))
    return f'karpathy:{path}/dataset.json'


def make_multilingual(path, captions) -> str:
    (path / 'filenames.txt').write_text('\n'.join(write_pictures(path)))
    (path / 'eng_Latn.txt').write_bytes(b'\n'.join(captions))
    return f'multilingual:{path}/eng_Latn.txt'


def make_choices(path, captions) -> str:
    row = b'{"image": "%s", "caption": "%s", "negative_caption": "not it"}'
    pairs = zip(write_pictures(path), captions, strict=True)
    rows = [row % (name.encode(), caption) for name, caption in pairs]
    (path / 'questions.jsonl').write_bytes(b'\n'.join(rows))
    return f'choices:{path}/questions.jsonl'


WITHOUT_LABELS = ('karpathy', 'multilingual', 'choices')


def make_kept(path, captions) -> str:
    """A list that leaves the last of seven records of a tar out."""
    data = make_tars(path, [*captions, b'left out'])
    of = kept_list.DataSet.of(open_source(data), data, {})
    kept_list.KeptList(of, np.arange(len(captions))).write(epath.Path(path) / 'kept.parquet')
    return f'kept:{path}/kept.parquet'


MAKERS = {
    'tars': make_tars,
    'table': make_table,
    'folder': make_folder,
    'tfds': make_tfds,
    'embeddings': make_embeddings,
    'karpathy': make_karpathy,
    'multilingual': make_multilingual,
    'choices': make_choices,
    'kept': make_kept,
}
