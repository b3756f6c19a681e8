"""Where the package's files are; pyproject.toml describes everything else."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=['clip_jax', 'clip_jax.*']),
        'clip_jax.prompts.templates',
        'clip_jax.configs',
        'clip_jax.configs.suites',
    ],
    # Configs are files for people to copy, at the top of the repository; a wheel has them inside.
    package_dir={'clip_jax.configs': 'configs', 'clip_jax.configs.suites': 'configs/suites'},
    package_data={
        'clip_jax': ['py.typed', 'reports/*.j2', 'reports/*.css'],
        'clip_jax.places': ['*.tsv'],
        'clip_jax.prompts.templates': ['*.txt'],
    },
)
