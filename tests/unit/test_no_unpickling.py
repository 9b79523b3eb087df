"""Nothing in the package can be made to run what came over a socket or lies in a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SOURCES = sorted(path for name in ("zswarm", "brokers", "stages") for path in (TOP / name).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
BUILTINS = {"eval", "exec", "compile"}
METHODS = {"recv_pyobj", "send_pyobj", "recv_serialized", "allow_pickle"}
WRITERS = {"zswarm/slots.py": ["compile", "exec"], "zswarm/wire/fields.py": ["compile", "exec"]}
"""They write functions from the fields of our own classes, when they are imported: before anything has been received."""
TORCH_FUNCTIONS = {("torch", "load"), ("torch", "save"), ("jit", "load"), ("np", "load"), ("numpy", "load")}


def violations(text: str) -> list[str]:
    """Return what a source has that could run somebody else's bytes."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.partition(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                found += [module] * (module.partition(".")[0] in MODULES)
                found += [f"{module}.{name.name}" for name in names if (module, name.name) in TORCH_FUNCTIONS]
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Call(keywords=keywords) if any(keyword.arg == "allow_pickle" for keyword in keywords):
                found.append("allow_pickle")
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
                found += [name] * (name in METHODS or (owner, name) in TORCH_FUNCTIONS)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_no_source_unpickles_or_evaluates(path):
    """torch.load and numpy's object arrays unpickle, yaml.load makes any object."""
    assert violations(path.read_text()) == WRITERS.get(path.relative_to(TOP).as_posix(), [])


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from yaml import load",
        "from torch import load",
        "import torch\ntorch.load(f)",
        "torch.jit.load(f)",
        "numpy.load(f, allow_pickle=True)",
        "socket.recv_pyobj()",
        "def f(x):\n    return eval(x)",
        "exec(x)",
    ],
)
def test_what_it_looks_for_is_found(text):
    """A search that finds nothing proves nothing."""
    assert violations(text)


def test_sockets_are_made_in_one_package():
    """What makes sockets elsewhere would make them without the options, and without the key."""
    makers = {path.relative_to(TOP).as_posix() for path in SOURCES if "zmq.Context" in path.read_text()}
    assert makers == {
        "zswarm/transport/switchboard.py",
        "zswarm/transport/curve.py",  # names the type
        "zswarm/benchmarks/traffic.py",  # both ends of a benchmark, over loopback
    }
