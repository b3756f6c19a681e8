"""A process that opens inputs, one a line of stdin, and writes what came of it to stdout.

A death or a hang of this process is the fault of the input that it was given last.
"""

import contextlib
import json
import logging
import os
import resource
import sys
import time
import traceback
from pathlib import Path

ADDRESS_SPACE = 16 << 30  # bytes; what asks for more has believed a number of a file


class Warned(logging.Handler):
    """Notes whether a warning was logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def _status(key: str) -> int:
    """A size of this process in bytes: VmRSS is now, VmHWM the highest."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> None:
    Path('/proc/self/clear_refs').write_text('5')


def main() -> None:
    from clip_jax.data.errors import DataNotFound
    from fuzz.targets import TARGETS

    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print
    warned = Warned()
    logging.getLogger().addHandler(warned)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE,) * 2)
    measured = Path('/proc/self/clear_refs').exists()
    for line in sys.stdin:
        folder, target = json.loads(line)
        warned.count = 0
        if measured:
            _reset_peak()
        before, began = _status('VmRSS') if measured else 0, time.process_time()
        try:
            with contextlib.chdir(folder):
                found = TARGETS[target](Path(folder))
            outcome = 'accepted', [found] if isinstance(found, str) else found
        except (ValueError, OSError, DataNotFound) as error:
            outcome = 'refused', str(error)
        except BaseException as error:
            lines = traceback.format_exception(error, limit=-4)
            outcome = 'traceback', ''.join(lines)[-3000:]
        answer = {
            'outcome': outcome[0],
            'detail': outcome[1],
            'warned': warned.count,
            'seconds': time.process_time() - began,
            'memory': (_status('VmHWM') - before) if measured else 0,
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
