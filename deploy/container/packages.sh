#!/bin/sh
# What the Dockerfile runs to fill the image's environment: packages.sh cpu|gpu CLUSTER
set -eu
kind=$1 cluster=$2

# A folder of wheels is everything there is, and no index is asked: docs/container.md says how to fill it.
if ls /wheels/*.whl > /dev/null 2>&1; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
fi
set -- "requirements/$kind.txt"
[ "$cluster" = 0 ] || set -- "$@" requirements/cluster.txt
venv/bin/python tools/install.py "$@"
# Nothing can be written there later. Some packages carry templates that are no Python.
venv/bin/python -m compileall -q -j 0 venv/lib > /dev/null || true

# What packages bring for their own tests and, on a CPU, for builds, debuggers and GPUs. Nothing of Polytone's loads it.
cd venv/lib/python3.11/site-packages
rm -rf torch/test
find torch/bin -type f ! -name torch_shm_manager -delete
find matplotlib numba numpy pandas pyarrow scipy sklearn sympy -type d -name tests -prune -exec rm -r {} +
if [ "$kind" = cpu ]; then
    rm -rf torch/include
    find bitsandbytes -name '*.so' ! -name libbitsandbytes_cpu.so -delete
    strip --strip-unneeded torch/lib/libtorch_cpu.so torch/lib/libtorch_python.so vllm/_C*.so
    # Intel's runtimes for offloading; libiomp5 stays for those who preload it.
    rm -rf ../../../opt
    find ../.. -maxdepth 1 ! -type d ! -name libiomp5.so -delete
fi
