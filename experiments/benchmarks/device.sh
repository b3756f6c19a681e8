#!/bin/bash
# Everything that wants an accelerator, in one command of at most nine minutes; see device.py.
#
#     bash experiments/benchmarks/device.sh --out=device
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch's comparison shares the device with JAX
exec python experiments/benchmarks/device.py "$@"
