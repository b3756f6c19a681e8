"""Adds files of the repository that lie outside docs/ to the site, under the same relative path.

Links of the form `../configs/default.py` work on GitHub as they are; here they are rewritten.
"""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
ADDED = (
    'experiments/*/README.md',
    'experiments/*/*.png',
    'experiments/*/*.py',
    'configs/**/*.py',
    'configs/suites/README.md',
    'colabs/*.ipynb',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'CITATION.cff',
    'LICENSE',
)
_OUTSIDE = re.compile(r'\]\((?:\.\./)+((?:experiments|configs|colabs)/|[A-Z]+(?:\.md|\.cff|\)))')


def on_files(files, config):
    """Adds the files, with their paths in the repository."""
    known = {file.src_uri for file in files}
    for pattern in ADDED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if name not in known and not name.startswith('docs/'):
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links between docs/ and the rest of the repository."""
    if page.file.src_uri.startswith(('CONTRIBUTING', 'experiments/', 'configs/')):
        return re.sub(r'\]\(((?:\.\./)*)docs/', r'](\1', markdown)
    up = '../' * page.file.src_uri.count('/')
    return _OUTSIDE.sub(lambda found: f']({up}{found[1]}', markdown)
