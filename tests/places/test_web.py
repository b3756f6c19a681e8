"""Files at a web address: cached, resumed, verified, and used from the cache without a server."""

import hashlib

import pytest
from support.hub import hub  # noqa: F401
from support.layouts import equal, exported
from support.small_models import made

from clip_jax import pretrained
from clip_jax.places import resolve, web


@pytest.fixture
def weights(hub):  # noqa: F811
    """The path of a file in a folder that its checksum names, as OpenAI's addresses have it."""
    files = exported('big_vision', 'siglip')
    (content,) = (x for name, x in files.items() if name.endswith('.npz'))
    path = f'/{hashlib.sha256(content).hexdigest()}/siglip.npz'
    hub.files[path] = content
    return path


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(web, '_WAIT', 0.0)


def got(hub, path):  # noqa: F811
    return hub.asked.count(('GET', path))


def test_a_file_comes_once_and_again_when_it_changed(hub, weights):  # noqa: F811
    assert equal(pretrained.read(hub.url + weights)[1], made('siglip')[1])
    resolve.local(hub.url + weights)
    assert got(hub, weights) == 1
    hub.files['/notes.txt'] = b'one'
    assert resolve.local(f'{hub.url}/notes.txt').path.read_bytes() == b'one'
    hub.files['/notes.txt'] = b'two'
    assert resolve.local(f'{hub.url}/notes.txt').path.read_bytes() == b'two'


def test_a_cut_transfer_continues_where_it_was(hub, weights, monkeypatch):  # noqa: F811
    hub.cut[weights] = 2
    place = resolve.local(hub.url + weights)
    assert place.path.read_bytes() == hub.files[weights] and got(hub, weights) == 3
    hub.cut['/big'] = 99
    hub.files['/big'] = b'x' * 10_000
    with pytest.raises(ValueError, match=r'was cut 5 times; the same command continues at 9,'):
        resolve.local(f'{hub.url}/big')
    hub.cut.clear()
    assert resolve.local(f'{hub.url}/big').path.read_bytes() == b'x' * 10_000


def test_a_partial_file_of_another_version_is_not_continued(hub):  # noqa: F811
    hub.files['/big'], hub.cut['/big'] = b'x' * 10_000, 99
    with pytest.raises(ValueError, match='was cut'):
        resolve.local(f'{hub.url}/big')
    hub.cut.clear()
    hub.files['/big'] = b'y' * 12_000
    assert resolve.local(f'{hub.url}/big').path.read_bytes() == b'y' * 12_000


def test_a_damaged_file_is_refused_and_deleted(hub, weights):  # noqa: F811
    hub.damaged.append(weights)
    with pytest.raises(ValueError, match=r'has the sha256 \w+, expected \w+; it was deleted'):
        resolve.local(hub.url + weights)
    hub.damaged.clear()
    assert resolve.local(hub.url + weights).path.read_bytes() == hub.files[weights]


def test_without_a_server_the_cache_is_used(hub, weights, monkeypatch):  # noqa: F811
    path = resolve.local(hub.url + weights).path

    def unreachable(*args, **options):
        raise OSError('no route')

    monkeypatch.setattr('urllib.request.urlopen', unreachable)
    assert resolve.local(hub.url + weights).path == path
    with pytest.raises(ValueError, match=r'/other\.pt: cannot be reached \(no route\)'):
        resolve.local(f'{hub.url}/other.pt')


def test_a_busy_server_is_asked_again_and_an_absent_file_is_one_line(hub, weights):  # noqa: F811
    hub.busy[weights] = 2
    assert resolve.local(hub.url + weights).path.read_bytes() == hub.files[weights]
    hub.busy['/never'] = 99
    for path, code in (('/nothing.pt', 404), ('/never', 429)):
        with pytest.raises(ValueError, match=f'{path}: the server answered {code}'):
            resolve.local(hub.url + path)
    with pytest.raises(ValueError, match='names no file'):
        resolve.local(f'{hub.url}/')
