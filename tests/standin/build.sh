#!/usr/bin/env bash
# build.sh DIR: a virtual environment DIR/venv whose CuPy runs on the stand-in. Run again, it does
# what is missing. PYTHON names the interpreter (default python3; 3.11 or later).
set -euo pipefail
[ $# = 1 ] || { echo "usage: bash build.sh DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
venv=$PWD/venv python=$PWD/venv/bin/python lib=$PWD/venv/lib/standin
cupy=14.2.0 cuda=13.0
step() { printf '== %s (%s s)\n' "$*" "$SECONDS"; }
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
unset PIP_CONSTRAINT

step "packages"
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$python" -m pip install -qq "cupy-cuda13x==$cupy" "nvidia-cuda-nvrtc==$cuda.88" \
    "nvidia-cuda-runtime==$cuda.96" "nvidia-cuda-crt==$cuda.88" numpy scipy threadpoolctl \
    ml_dtypes tqdm hypothesis pytest pytest-xdist "setuptools>=77" wheel "Cython>=3.2,<3.3"
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
headers=$(dirname "$(find "$site/nvidia" -name cuda_runtime.h | head -1)")
extension=$site/cupy_backends/cuda/api/runtime$suffix
cublas=$(echo "$site"/cupy_backends/cuda/libs/cublas.*.so)
mkdir -p "$lib"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ ! -f "$lib/runtime.o" ]; then
    step "CuPy's runtime extension, from the source distribution"
    # Building it whole is not wanted: its metadata step only has to pass.
    CUPY_INSTALL_USE_STUB=1 "$python" -m pip download -qq --no-deps --no-build-isolation \
        --no-binary cupy -d "$work" "cupy==$cupy"
    tar -xzf "$work/cupy-$cupy.tar.gz" -C "$work"
    cd "$work/cupy-$cupy"
    "$python" - <<'PYTHON'
import Cython
from Cython.Build import cythonize
from Cython.Compiler import Errors
from setuptools import Extension

Errors.LEVEL = 9  # no warnings
name = "cupy_backends.cuda.api.runtime"
constants = {
    "CUPY_USE_CUDA_PYTHON": False,
    "CUPY_CUFFT_STATIC": False,
    "CUPY_CYTHON_VERSION": Cython.__version__,
    "CUPY_CUDA_VERSION": 13000,
    "CUPY_HIP_VERSION": 0,
}
extension = Extension(name, [name.replace(".", "/") + ".pyx"], language="c++")
cythonize([extension], language_level="3", compile_time_env=constants, quiet=True)
PYTHON
    mkdir "$work/include"  # the profiler's header is of a package of its own
    printf '%s\n' '#pragma once' '#include <cuda_runtime.h>' \
        'extern "C" { cudaError_t cudaProfilerStart(); cudaError_t cudaProfilerStop(); }' \
        > "$work/include/cuda_profiler_api.h"
    g++ -O2 -fPIC -w -c -I. -Icupy_backends/cuda -I"$work/include" -I"$headers" -I"$include" \
        cupy_backends/cuda/api/runtime.cpp -o "$work/runtime.o"
    mv "$work/runtime.o" "$lib/runtime.o"
fi

step "stand-in libraries"
# missing PREFIX OBJECT: a failing function for each of the symbols read that the object lacks.
missing() {
    grep -o "\b$1[A-Za-z0-9_]*" | sort -u > "$work/needed"
    nm --defined-only "$2" | grep -o "\b$1[A-Za-z0-9_]*" | sort -u > "$work/defined"
    comm -23 "$work/needed" "$work/defined" | sed 's/.*/extern "C" int &() { return 801; }/'
}
g++ -O2 -fPIC -Wall -c -I"$headers" "$here/standin.cpp" -o "$work/standin.o"
nm -u "$lib/runtime.o" | missing cuda "$work/standin.o" > "$work/missing.cpp"
g++ -O2 -fPIC -shared -Wl,-soname,libcuda.so.1 "$work/standin.o" "$work/missing.cpp" \
    -o "$lib/libcuda.so.1"
g++ -O2 -fPIC -Wall -c "$here/blas.cpp" -o "$work/blas.o"
nm -D -u "$cublas" | missing cublas "$work/blas.o" > "$work/missing.cpp"
echo 'libcublas.so.13 { global: *; };' > "$work/versions"
g++ -O2 -fPIC -shared -Wl,-soname,libcublas.so.13 -Wl,--version-script="$work/versions" \
    "$work/blas.o" "$work/missing.cpp" -L"$lib" -l:libcuda.so.1 -Wl,-rpath,'$ORIGIN' \
    -o "$lib/libcublas.so.13"
# cuBLAS needs this one; it is empty.
echo | g++ -shared -x c++ - -Wl,-soname,libcublasLt.so.13 -o "$lib/libcublasLt.so.13"
g++ -shared "$lib/runtime.o" -L"$lib" -l:libcuda.so.1 -Wl,-rpath,"$lib" -o "$work/runtime.so"
mv "$work/runtime.so" "$extension"

step "checks"
cd "$here/../.."
"$python" -m pytest -q -n 0 -p no:cacheprovider tests/standin/check_counts.py
"$python" -m pytest -q -n 0 -p no:cacheprovider -p tests.standin.pytest_device --devices cuda \
    tests/standin/check_values.py
step "done: $python"
