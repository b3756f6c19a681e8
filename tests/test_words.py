"""The words of the field, in American spelling, in code, comments, messages and documentation."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACES = ('clip_jax', 'configs', 'docs', 'colabs', 'README.md', 'CONTRIBUTING.md')
SUFFIXES = ('.py', '.md', '.txt', '.j2', '.css', '.ipynb')
# Paraphrases of the field's words: sharded, negatives, errors, atomic, resumes from, log of.
PARAPHRASES = (
    'dealt out',
    'rivals?',
    'troubles?',
    'whole_file',
    'goes? on at',
    'what the first does',
    'ln of',
)
# Stems of verbs that end in -ize, and British spellings of other words.
STEMS = (
    'anonym|author|capital|categor|character|custom|emphas|final|general|harmon|initial|local|'
    'material|maxim|memor|minim|neutral|normal|optim|organ|parallel|penal|quant|random|raster|'
    'recogn|regular|serial|special|stabil|standard|summar|synchron|token|util|vector|visual'
)
BRITISH = (
    rf'(?:re|un|de|pre)?(?:{STEMS})is(?:e[ds]?|ers?|ing|ations?)',
    'colour(?:ed|ing|s|ful|less|map)?',
    'behaviours?',
    'cent(?:re|red|res|ring)',
    'neighbour(?:s|ing|hood)?',
    '(?:un)?label(?:led|ling)',
    'gr(?:ey|eys|eyscale)',
    'favour(?:s|ed|ite|able)?',
    'honour(?:s|ed)?',
    'analys(?:e|ed|ing)',
    'cancell(?:ed|ing)',
    'model(?:led|ling)',
    'travell(?:ed|ing)',
    'signall(?:ed|ing)',
    'catalogues?',
    'licen[c]es?',
    'defences?',
    'metres?',
    'fibres?',
    'programmes?',
    'artefacts?',
    'whilst',
    'judgement',
    'fulfil',
    'skilful',
)
FOREIGN = 'legacy_behaviour'  # a key in the files of transformers
WORDS = re.compile(
    rf'(?<![^\W_])(?:{"|".join((*PARAPHRASES, *BRITISH))})(?![^\W\d_])', re.IGNORECASE
)


def texts() -> Iterator[tuple[str, str]]:
    """Every text file with its name; of a notebook only the sources of its cells."""
    for place in PLACES:
        root = ROOT / place
        for path in sorted(root.rglob('*')) if root.is_dir() else [root]:
            if path.suffix not in SUFFIXES or '__pycache__' in path.parts:
                continue
            text = path.read_text()
            if path.suffix == '.ipynb':
                text = '\n'.join(''.join(cell['source']) for cell in json.loads(text)['cells'])
            yield str(path.relative_to(ROOT)), text


def test_files_use_the_words_of_the_field():
    found = [
        f'{name}:{number}: {match[0]}'
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        for match in WORDS.finditer(line.replace(FOREIGN, ''))
    ]
    assert not found, '\n'.join(found)


def test_words_are_found():
    for text in 'Colours', 'as_greyscale', 'unnormalised', 'initialiser', 'RIVAL', 'goes on at':
        assert WORDS.search(text), text


def test_american_words_are_fine():
    names = 'color normalized initializer exercise precise noise otherwise rise likewise'
    assert not WORDS.search(names)
