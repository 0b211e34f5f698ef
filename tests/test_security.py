"""What SECURITY.md promises: the state below Python is a short list, and calls touch no file, no network, no environment."""

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchconv
from torchconv import _C

ROOT = Path(__file__).parent.parent
PACKAGE = Path(torchconv.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMED = {str(path.relative_to(PACKAGE)): path for path in SOURCES}


def nm(*options: str) -> list[str]:
    result = subprocess.run(["nm", *options, _C.__file__], capture_output=True, text=True, check=True)
    return [line for line in result.stdout.splitlines() if line.strip()]


# --- the extension -----------------------------------------------------------------------------------------------------

#: Every variable of the extension that lies in writable memory, as a pattern, and why that is no state between calls.
WRITABLE = {
    # Counters, and memory that belongs to one thread and is written before it is read.
    r"torchconv::cpu::\(anonymous namespace\)::(touched|needed|epoch)": "atomics that count bytes, for scratch_bytes and explain",
    r"torchconv::cpu::\(anonymous namespace\)::region": "thread-local: the working memory of a thread",
    r"torchconv::\(anonymous namespace\)::enabled": "atomic: the switch of the fast path",
    r"torchconv::\(anonymous namespace\)::has_foreign_kernels\(\)::(known_size|found)": "atomics: what the last search found",
    # Set once, at import or at first use, and the same for ever after.
    r"torchconv::\(anonymous namespace\)::torch": "torch's objects, found at import",
    r"torchconv::bind_fast_path\(.*\)::methods": "a table of functions, filled at import: CPython keeps a pointer to it",
    r"torchconv::implementations\(\)::all": "the grid, made at first use",
    r"torchconv::cpu::cpu_features\(\)::found": "what this machine has, queried once",
    r"torchconv::\(anonymous namespace\)::chosen\(.*\)::dtypes": "a table of names",
    r"torchconv::STABLE_TORCH_LIBRARY\w*_static_init_torchconv\w*": "the registrations of the operators",
    r"PyInit__C::(def|mod_def_slots)": "the module's definition",
    # Of others.
    r"pybind11::.*": "pybind11's types, and its frames of calls, which are thread-local",
    r"std::__ioinit": "of <iostream>",
    r"DW\.ref\..*": "addresses of types of exceptions",
    r"__dso_handle|__TMC_END__|__bss_start|_edata|_end|completed\.\d+|__tls_guard": "of the compiler and the linker",
}


#: The CUDA runtime, where it is linked in, keeps state of its own, reads the environment, and loads the driver.
without_cuda = pytest.mark.skipif(_C.build_info()["cuda"] != "no", reason="says nothing of NVIDIA's runtime")


def writable_variables() -> list[str]:
    names = []
    for line in nm("--demangle", "--format=sysv", "--defined-only"):
        fields = line.split("|")
        if re.fullmatch(r"\.t?(data|bss)(\..+)?", fields[-1].strip()) and fields[-1].strip() != ".data.rel.ro":
            names.append("|".join(fields[:-6]).strip().removeprefix("guard variable for "))
    assert names, "an extension that has been stripped of its symbols tells nothing"
    if any("__asan" in name or "__ubsan" in name for name in names):
        pytest.skip("sanitizers have variables of their own")
    return sorted(set(names))


def strangers(names: list[str]) -> list[str]:
    return [name for name in names if not any(re.fullmatch(pattern, name) for pattern in WRITABLE)]


@without_cuda
def test_the_extension_has_no_other_writable_state():
    names = writable_variables()
    assert strangers(names) == []
    # The list itself: nothing in it that is gone, so that no one can hide behind it.
    ours = [pattern for pattern in WRITABLE if "torchconv" in pattern]
    assert [pattern for pattern in ours if not any(re.fullmatch(pattern, name) for name in names)] == []
    assert strangers(["torchconv::cache"]) == ["torchconv::cache"]


#: Functions by which a C++ library reads files and the environment, runs programs, loads code or opens connections.
FORBIDDEN = re.compile(
    r"(secure_)?getenv|setenv|putenv|f?open(64|at)?(64)?|fdopen|freopen(64)?|creat(64)?|tmpfile|mkstemp|f?read|f?write"
    r"|pread(64)?|pwrite(64)?|unlink|remove|rename|opendir|readdir|system|popen|exec[vl]\w*|posix_spawnp?|fork|vfork"
    r"|dlopen|dlsym|dlmopen|socket|connect|bind|listen|accept4?|send(to|msg)?|recv(from|msg)?|getaddrinfo|gethostbyname"
    r"|mprotect|memfd_create|shm_open|ioctl|ptrace|syscall|signal|sigaction|std::(basic_)?[io]?f(stream|ilebuf).*"
    r"|std::filesystem.*|PyRun_\w+|Py_CompileString\w*|PyMarshal_\w+|PyEval_EvalCode\w*|PyImport_ExecCodeModule\w*|_?Py_fopen\w*|gets|sprintf|strcpy|strcat|alloca"
)


@without_cuda
def test_the_extension_links_nothing_that_reads_files_or_the_environment():
    names = [line.split(maxsplit=1)[1].split("@")[0] for line in nm("--demangle", "--undefined-only")]
    names = [re.sub(r"\(.*", "", name) for name in names]
    assert [name for name in names if FORBIDDEN.fullmatch(name)] == []
    # The working memory, and the permission for AMX tiles; what is seen here is what is linked.
    assert {"mmap", "arch_prctl"} <= set(names) or sys.platform != "linux" or platform.machine() != "x86_64"
    for name in "getenv", "fopen64", "std::basic_ifstream<char>::open", "std::ifstream", "socket", "execve", "openat":
        assert FORBIDDEN.fullmatch(name), name


def test_no_memory_of_the_extension_can_be_written_and_executed_or_redirect_calls():
    result = subprocess.run(["readelf", "-ldW", _C.__file__], capture_output=True, text=True, check=True).stdout
    flags = {line.split()[0]: line for line in result.splitlines() if line.strip().startswith(("GNU_", "LOAD"))}
    assert re.search(r" RW +0x", flags["GNU_STACK"])
    assert "GNU_RELRO" in flags, "tables of functions are read-only once they are loaded"
    assert "BIND_NOW" in result, "of all functions, since all are looked up while loading"
    segments = [line for line in result.splitlines() if line.strip().startswith("LOAD")]
    assert not any("RWE" in line for line in segments)


# --- calls, in a process of their own ----------------------------------------------------------------------------------

CALLS = """
import json, os, sys
import torch, torchconv
from torchconv import Conv1d, Conv2d, ConvTranspose2d, MaxPool2d, functional, tf

model = torch.nn.Sequential(
    Conv2d(3, 40, 3, padding="same", activation="relu"), Conv2d(40, 40, 3, padding=1), MaxPool2d(2),
    Conv2d(40, 40, 3, groups=40, bias=False), ConvTranspose2d(40, 8, 3, 2), torch.nn.Flatten(2), Conv1d(8, 4, 3),
)
rows = [row.name for row in torchconv.implementations() if row.available and row.device == "cpu"]
x = torch.randn(2, 3, 16, 15)

def calls():
    for row in rows:
        with torchconv.use(row, "cpu.reference"):
            model(x).sum().backward()
    for memory_format in torch.contiguous_format, torch.channels_last:
        for dtype in torch.float64, torch.float32, torch.bfloat16, torch.float16:
            y = x.to(dtype, memory_format=memory_format)
            functional.conv2d(y, y[:, :, :3, :3])
            torch.ops.torchconv.conv2d(y, y[:, :, :3, :3], (1, 1), (0,) * 4, (1, 1), 1)
    tf.conv2d(x, torch.randn(3, 3, 15, 4), 1, "SAME")
    torchconv.chosen("conv2d", x, x, (1, 1), (0,) * 4, (1, 1), 1)
    torchconv.scratch_bytes()
    for wrong in {"stride": 0}, {"padding": 2**62}, {"groups": 2}:
        try:
            functional.conv2d(x, x, **wrong)
        except RuntimeError:
            pass
"""

AUDITED = (
    CALLS
    + """
calls()
events, listening = [], False

def hook(event, args):
    if listening and event.partition(".")[0] not in ("object", "gc", "sys", "cpython", "builtins"):
        events.append(event)

sys.addaudithook(hook)
environ = type(os.environ)
original = environ.__getitem__

def read(self, key):
    if listening:
        events.append(f"environment {key}")
    return original(self, key)

environ.__getitem__ = read
listening = True
EXTRA
calls()
listening = False
print(json.dumps(sorted(set(events))))
"""
)


def audited(extra: str = "") -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TORCHCONV_USE"}
    command = [sys.executable, "-W", "ignore", "-c", AUDITED.replace("EXTRA", extra)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def test_calls_access_no_files_imports_or_network():
    """After a first call: no file, import, program, connection, or code that is made at run time, by Python's own log."""
    assert audited() == []


def test_the_audit_records_each_kind_of_access():
    extras = {
        "open": "open('/dev/null').close()",
        "os.listdir": "os.listdir('/')",
        "compile": "eval('1')",
        "environment HOME": "os.environ.get('HOME')",
        "import": "__import__('wave')",
    }
    assert set(extras) <= set(audited("\n".join(extras.values())))


TRACED = CALLS + "\ncalls()\nos.path.exists('/torchconv begins')\ncalls()\nEXTRA\nos.path.exists('/torchconv ends')\n"


def traced(tmp_path: Path, extra: str = "") -> list[str]:
    """The system calls about files, connections and programs that all threads make between the two marks."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace here")
    log = tmp_path / "log"
    command = [strace, "-f", "-qq", "-o", str(log), "-e", "trace=%file,%network,execve,fork,vfork,memfd_create,ioctl"]
    script = [sys.executable, "-W", "ignore", "-c", TRACED.replace("EXTRA", extra)]
    result = subprocess.run([*command, *script], capture_output=True, text=True, timeout=300, check=False)
    if result.returncode != 0 and "ptrace" in result.stderr:
        pytest.skip("no tracing here")
    assert result.returncode == 0, result.stderr
    _, _, after = log.read_text().partition("/torchconv begins")
    between, mark, _ = after.partition("/torchconv ends")
    assert mark
    return between.splitlines()[1:-1]


def test_the_kernels_make_no_system_call_about_files(tmp_path):
    assert traced(tmp_path) == []


def test_a_system_call_is_recorded(tmp_path):
    assert any("/dev/null" in line for line in traced(tmp_path, "os.close(os.open('/dev/null', 0))"))


# --- the sources -------------------------------------------------------------------------------------------------------

#: Modules that no source may import, but for these files: pickle, network, programs, the environment.
MODULES = {
    "pickle", "marshal", "shelve", "socket", "ssl", "urllib", "http", "ftplib", "smtplib", "asyncio", "subprocess",
    "multiprocessing", "ctypes", "os", "shutil", "tempfile", "pathlib", "io", "requests", "dill", "importlib",
}  # fmt: skip
MAY_IMPORT = {
    ("registry.py", "os"): "TORCHCONV_USE",
    ("__init__.py", "importlib"): "torchconv.keras, onnx, opacus and tf, when they are first used",
    ("_diagnose.py", "importlib"): "after an import that failed",
    ("_torch_private.py", "importlib"): "torch's own modules",
    ("_diagnose.py", "pathlib"): "the same",
}

#: Names that no source may use, but for these files: of code made at run time, files, and what torch loads.
NAMES = {
    "eval", "exec", "compile", "open", "__import__", "breakpoint", "load", "loads", "load_state_dict", "hub",
    "load_inline", "cpp_extension", "getenv", "putenv", "environb", "system", "popen", "from_file", "from_buffer",
    "frombuffer", "read_text", "read_bytes", "write_text", "write_bytes", "set_", "data_ptr", "as_strided_", "ctypes",
    "savefig", "environ", "recompile", "GraphModule", "import_module", "CDLL", "pickle", "dill", "globals",
}  # fmt: skip
ALLOWED = {
    ("__init__.py", "import_module"): "torchconv.keras, onnx, opacus and tf, when they are first used",
    ("_torch_private.py", "import_module"): "torch's own modules",
    ("registry.py", "environ"): "TORCHCONV_USE, once, at import",
    ("_diagnose.py", "read_text"): "what pip noted about this package, after an import that failed",
    ("_diagnose.py", "read_bytes"): "the extension itself, after an import that failed",
    ("_diagnose.py", "loads"): "of JSON: pip's note",
    ("models/explain.py", "savefig"): "Explanation.plot(path)",
    ("models/fold.py", "recompile"): "torch.fx writes the forward of the model that it has traced",
    ("models/fold.py", "GraphModule"): "the same",
    ("models/fuse.py", "GraphModule"): "the same, for a part of a model",
}


def used(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def imported(tree: ast.AST) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "torchconv").split(".")[0])
    return modules


def complaints(name: str, text: str) -> set[str]:
    tree = ast.parse(text)
    modules = {module for module in imported(tree) & MODULES if (name, module) not in MAY_IMPORT}
    return modules | {word for word in used(tree) & NAMES if (name, word) not in ALLOWED}


@pytest.mark.parametrize("name", NAMED)
def test_sources_use_no_forbidden_module_or_name(name):
    assert complaints(name, NAMED[name].read_text()) == set()


def test_forbidden_names_are_found():
    assert complaints("a.py", "import pickle, os; from urllib import request; eval(os.environ['A'])") == {
        "pickle", "os", "urllib", "eval", "environ",
    }  # fmt: skip
    assert complaints("registry.py", "import os; os.environ") == set()
    texts = {name: used(ast.parse(path.read_text())) for name, path in NAMED.items()}
    assert [pair for pair in ALLOWED if pair[1] not in texts[pair[0]]] == [], "exceptions that no source needs"


def test_one_environment_variable_is_read():
    found = []
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Subscript) and "environ" in used(node.value):
                found.append((source.name, ast.literal_eval(node.slice)))
            elif isinstance(node, ast.Compare) and any("environ" in used(c) for c in node.comparators):
                found.append((source.name, ast.literal_eval(node.left)))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert "environ" not in used(node.func), ast.unparse(node)
    assert set(found) == {("registry.py", "TORCHCONV_USE")}


def test_the_policy_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    paths = set(re.findall(r"`(tests/\w+\.py|csrc/\w+\.cpp)`", text))
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert "TORCHCONV_USE" in text
