"""Packaging of clip_jax. Lower bounds are the oldest versions that the tests were run with."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'clip_jax/__init__.py').read_text()).group(1)
NOTEBOOK = ['ipykernel>=6.29', 'nbclient>=0.10', 'scikit-image>=0.26', 'scikit-learn>=1.8']

setup(
    name='clip_jax',
    version=VERSION,
    description='CLIP in JAX and Flax: train, evaluate and use contrastive image-text models',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['clip_jax', 'clip_jax.*']),
    package_data={'clip_jax': ['py.typed', 'prompts/templates/*.txt']},
    entry_points={'console_scripts': ['clip-jax = clip_jax.cli.main.main:main']},
    install_requires=[
        'absl-py>=2.1',
        'array_record>=0.8; platform_system != "Windows"',
        'clu>=0.0.12',
        'etils[epath]>=1.9',
        'flax>=0.12.8',
        'fsspec>=2025.2',
        'ftfy>=6.3',
        'grain>=0.2.18,<0.3',
        'importlib_resources>=6.4',  # tensorflow-datasets imports it without asking for it
        'jax>=0.10.2',
        'matplotlib>=3.9',
        'ml-collections>=1.1',
        'ml_dtypes>=0.5',
        'numpy>=2.0',
        'opencv-python-headless>=4.11',
        'openai-clip>=1.0.1',  # read for CLIP's vocabulary alone, never imported
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'pillow>=11',
        'pyarrow>=18',
        'regex>=2024.11.6',
        'safetensors>=0.8',
        'scipy>=1.13',
        'sentencepiece>=0.2.1',
        'simplejpeg>=1.9',
        'tensorboard>=2.19',
        'tensorflow-datasets>=4.9.10',
        'tokenizers>=0.23',
        'tqdm>=4.66',
    ],
    extras_require={
        'tpu': ['jax[tpu]>=0.10.2'],
        'cuda': ['jax[cuda13]>=0.10.2'],
        'beam': ['apache-beam>=2.60'],
        'gcs': ['gcsfs>=2025.2'],
        'test': [
            'aiohttp>=3.10',
            'pytest>=8.3',
            'pytest-xdist>=3.8',
            'ruff>=0.12',
            *NOTEBOOK,
        ],
        'colab': NOTEBOOK,
    },
)
