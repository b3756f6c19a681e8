"""What libtpu reads from the environment, where it compiles and there is no TPU."""

# Compilation runs on the CPU whatever devices are attached, and libtpu should neither look for a
# TPU, nor report that it found none, nor ask for exclusive use. To be set before JAX is imported.
VARIABLES = {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',  # of an imagined host
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
