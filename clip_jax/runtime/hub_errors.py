"""What huggingface_hub raises, in one line."""

from collections.abc import Callable
from typing import Any

from huggingface_hub import constants, errors

from clip_jax.runtime.messages import brief


class NoRepository(ValueError):
    """A repository or a revision of it that is not there, or that is not accessible."""


def explained(address: str, repository: str, revision: str | None, call: Callable[[], Any]) -> Any:
    """Calls huggingface_hub; its errors become a ValueError in one line.

    Args:
        address: for messages.
        repository: OWNER/NAME, of a data set datasets/OWNER/NAME.
        revision: a branch, tag or commit; None for main.
        call: what to do.

    Returns:
        What the call returns.

    Raises:
        ValueError: the call failed; a NoRepository if there is no such repository or revision.
    """
    kind = ValueError
    try:
        return call()
    except errors.GatedRepoError:
        where, kind = f'{constants.ENDPOINT}/{repository}', NoRepository
        why = f'access is restricted; ask for it at {where}, then log in'
    except errors.RepositoryNotFoundError:
        kind = NoRepository
        why = 'there is no such repository, or it is private; for a private one, log in'
    except errors.RevisionNotFoundError:
        kind = NoRepository
        why = f'the repository has no revision {revision or "main"}'
    except errors.CachedRepoTreeNotFoundError:
        why = 'offline, and the list of its files is not cached, so that nothing says what it needs'
    except errors.LocalEntryNotFoundError as error:
        why = f'not all of it is cached, and the hub cannot be reached ({_cause(error)})'
    except errors.HfHubHTTPError as error:
        why = _status(error)
    except errors.OfflineModeIsEnabled:
        why = 'HF_HUB_OFFLINE is set'
    except (OSError, RuntimeError) as error:
        why = brief(error)
    except Exception as error:
        # The errors of its HTTP library, which is httpx or httpx2.
        if not type(error).__module__.startswith('httpx'):
            raise
        why = f'the hub cannot be reached ({brief(error)})'
    hint = '`hf auth login` or HF_TOKEN' if 'log in' in why else ''
    raise kind(f'{address}: {why}{f" with {hint}" if hint else ""}') from None


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    if isinstance(cause, errors.HfHubHTTPError):
        return _status(cause)
    return brief(cause) if cause else 'offline'


def _status(error: errors.HfHubHTTPError) -> str:
    code = error.response.status_code
    meaning = {401: 'log in', 403: 'forbidden', 404: 'not found', 429: 'too many requests; wait'}
    return f'the hub answered {code} ({meaning.get(code, "try again later")})'
