"""CUDA C++ source -> PTX with NVRTC (through ctypes; needs no GPU and no driver)."""

import ctypes
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile


class CompileError(RuntimeError):
    pass


def _wheel_dirs(sub):
    """Folders <site-packages>/nvidia/*/<sub> of the pip wheels, if any; also where a wheel is in a
    folder of its own on the path of Python."""
    return [d for r in sys.path for d in sorted(glob.glob(os.path.join(r, "nvidia", "*", sub)))]


def _toolkit_roots():
    roots = [os.environ.get(k) for k in ("CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc:
        roots.append(os.path.dirname(os.path.dirname(os.path.realpath(nvcc))))
    roots += sorted(glob.glob("/usr/local/cuda*"), reverse=True)
    return [r for i, r in enumerate(roots) if r and os.path.isdir(r) and r not in roots[:i]]


@functools.lru_cache(None)
def libraries():
    """Paths of every libnvrtc: PTXEMU_NVRTC alone if it names one, else those of pip wheels, that
    of CUDA 12 before that of CUDA 13, then those of toolkits."""
    explicit = os.environ.get("PTXEMU_NVRTC")
    if explicit:
        return [explicit]
    name = re.compile(r"libnvrtc\.so(\.\d+)*$")
    paths = []
    for folders in _wheel_dirs("lib"), [os.path.join(r, "lib64") for r in _toolkit_roots()]:
        group = [p for d in folders for p in glob.glob(d + "/libnvrtc.so*") if name.search(p)]
        paths += sorted(group, key=os.path.basename)
    return [p for i, p in enumerate(paths) if not any(os.path.samefile(p, q) for q in paths[:i])]


@functools.lru_cache(None)
def find_nvrtc():
    """-> (path of the first of `libraries`, [include folders that match it])."""
    if not libraries():
        raise CompileError(
            "no libnvrtc found: pip install nvidia-cuda-nvrtc-cu12, or name one in PTXEMU_NVRTC"
        )
    incs = list(_wheel_dirs("include"))
    for r in _toolkit_roots():
        incs += [d for d in (r + "/include", r + "/include/cccl") if os.path.isdir(d)]
    have = lambda d: os.path.exists(os.path.join(d, "cuda_fp16.h"))
    fp = [d for d in incs if have(d)]
    rest = [d for d in incs if not have(d)]
    return libraries()[0], fp[:1] + rest


def _check(lib, rc, what):
    if rc:
        lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f"{what}: {lib.nvrtcGetErrorString(rc).decode()}")


@functools.lru_cache(None)
def _load(path):
    """Its builtins first: NVRTC opens them by their name alone, and the wheels of CUDA 13 do not
    say where that is. One failure would last: NVRTC tries once in a process."""
    for builtins in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so*")):
        ctypes.CDLL(builtins)
    return ctypes.CDLL(path)


def nvrtc_version(path=None):
    """Of a library, by default of the one that `find_nvrtc` chooses."""
    lib = _load(path or find_nvrtc()[0])
    a, b = ctypes.c_int(), ctypes.c_int()
    _check(lib, lib.nvrtcVersion(ctypes.byref(a), ctypes.byref(b)), "nvrtcVersion")
    return a.value, b.value


def _norm_arch(arch):
    m = re.fullmatch(r"(?:compute_|sm_)?(\d+[af]?)", str(arch))
    if not m:
        raise CompileError(f"bad arch {arch!r}")
    return "compute_" + m.group(1)


@functools.lru_cache(512)
def _compile(source, arch, include_dirs, options, name_expressions, filename):
    path, sys_inc = find_nvrtc()
    opts = [f"--gpu-architecture={arch}"]
    opts += [f"-I{d}" for d in include_dirs] + list(options)
    opts += [f"-I{d}" for d in sys_inc]
    if not any("-std=" in o for o in opts):
        opts.append("--std=c++17")
    if not any("lineinfo" in o or "line-info" in o for o in opts):
        opts.append("--generate-line-info")
    return compile_with(path, source, opts, name_expressions, filename)


def compile_with(path, source, options, name_expressions=(), filename="kernel.cu"):
    """Run a library with these options -> (PTX, {name expression: lowered name}, log).

    A compilation takes up to half a minute. Processes share the results, in a folder of files."""
    given = path, os.path.getmtime(path), source, options, name_expressions, filename
    folder = os.path.join(tempfile.gettempdir(), f"ptxemu-{os.getuid()}")
    kept = os.path.join(folder, hashlib.sha256(json.dumps(given).encode()).hexdigest() + ".json")
    if os.path.exists(kept):
        with open(kept) as file:
            return tuple(json.load(file))
    result = _run(path, source, options, name_expressions, filename)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump(result, file)
    os.replace(file.name, kept)
    return result


def _run(path, source, options, name_expressions, filename):
    lib = _load(path)
    prog = ctypes.c_void_p()
    _check(
        lib,
        lib.nvrtcCreateProgram(
            ctypes.byref(prog), source.encode(), filename.encode(), 0, None, None
        ),
        "nvrtcCreateProgram",
    )
    try:
        for n in name_expressions:
            _check(lib, lib.nvrtcAddNameExpression(prog, n.encode()), f"name expression {n}")
        arr = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        rc = lib.nvrtcCompileProgram(prog, len(options), arr)
        n = ctypes.c_size_t()
        lib.nvrtcGetProgramLogSize(prog, ctypes.byref(n))
        log = ctypes.create_string_buffer(n.value + 1)
        lib.nvrtcGetProgramLog(prog, log)
        log = log.value.decode(errors="replace")
        if rc:
            raise CompileError(f"NVRTC failed ({rc}) with {options}\n{log}")
        _check(lib, lib.nvrtcGetPTXSize(prog, ctypes.byref(n)), "nvrtcGetPTXSize")
        buf = ctypes.create_string_buffer(n.value)
        _check(lib, lib.nvrtcGetPTX(prog, buf), "nvrtcGetPTX")
        lowered = {}
        for e in name_expressions:
            p = ctypes.c_char_p()
            _check(lib, lib.nvrtcGetLoweredName(prog, e.encode(), ctypes.byref(p)), e)
            lowered[e] = p.value.decode()
        return buf.value.decode(), lowered, log
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(prog))


def compile_cuda(
    source,
    arch="compute_80",
    include_dirs=(),
    options=(),
    name_expressions=(),
    defines=None,
    filename="kernel.cu",
):
    """-> (PTX text, {name expression: lowered name}, compiler log)."""
    opts = list(options)
    for k, v in (defines or {}).items():
        opts.append(f"-D{k}" if v is None else f"-D{k}={v}")
    clean = []
    for o in opts:  # the arch argument wins over an option of that kind
        m = re.match(r"(?:--gpu-architecture|-arch)=(.*)", o)
        if m:
            arch = m.group(1)
        else:
            clean.append(o)
    ptx, lowered, log = _compile(
        source,
        _norm_arch(arch),
        tuple(map(str, include_dirs)),
        tuple(clean),
        tuple(name_expressions),
        filename,
    )
    return ptx, dict(lowered), log
