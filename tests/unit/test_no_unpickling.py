"""Nothing in the package can be made to run what came over a socket or lies in a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SOURCES = sorted(path for name in ("zswarm", "brokers", "stages") for path in (TOP / name).rglob("*.py"))
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "pickletools",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "code",
    "yaml",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"recv_pyobj", "send_pyobj", "recv_serialized", "allow_pickle"}
LOADERS = {("torch", "load"), ("torch", "save"), ("jit", "load"), ("serialization", "load"), ("serialization", "save")}
LOADERS |= {("np", "load"), ("numpy", "load"), ("numpy", "save"), ("np", "save")}
LOADERS |= {("yaml", name) for name in ("load", "load_all", "unsafe_load", "full_load")}
WRITERS = {"zswarm/slots.py": ["compile", "exec"], "zswarm/wire/fields.py": ["compile", "exec"]}
"""They write functions from the fields of our own classes, when they are imported: before anything has been received."""


def is_loader(owner: str, name: str) -> bool:
    """Is this a function that makes any object of bytes, or writes what only such a function reads?"""
    return not owner.startswith("safetensors") and (owner.rpartition(".")[2], name) in LOADERS


def violations(text: str) -> list[str]:
    """Return what a source has that could run somebody else's bytes."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.partition(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                found += [module] * (module.partition(".")[0] in MODULES)
                found += [f"{module}.{name.name}" for name in names if is_loader(module, name.name)]
                found += [name.name for name in names if module == "builtins" and name.name in BUILTINS]
            case ast.Name(id=name) if name in BUILTINS:
                found.append(name)
            case ast.Call(keywords=keywords) if any(keyword.arg == "allow_pickle" for keyword in keywords):
                found.append("allow_pickle")
            case (
                ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(name)), *_])
                | ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_])
            ) if name.partition(".")[0] in MODULES:
                found.append(name)
            case ast.Attribute(value=value, attr=name):
                is_builtin = isinstance(value, ast.Name) and value.id == "builtins" and name in BUILTINS
                found += [name] * (name in METHODS or is_builtin or is_loader(ast.unparse(value), name))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_no_source_unpickles_or_evaluates(path):
    """torch.load and numpy's object arrays unpickle, yaml.load makes any object."""
    assert violations(path.read_text()) == WRITERS.get(path.relative_to(TOP).as_posix(), [])


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as harmless",
        "from pickle import loads",
        "import marshal",
        "import shelve",
        "def f():\n    import dill",
        "importlib.import_module('pickle')",
        "import_module('marshal')",
        "import yaml",
        "from yaml import load",
        "yaml.load(f)",
        "from torch import load",
        "from torch import save as write",
        "torch.load(f, weights_only=True)",
        "torch.save(x, f)",
        "torch.jit.load(f)",
        "torch.serialization.load(f)",
        "numpy.load(f)",
        "np.load(f, allow_pickle=True)",
        "read(f, allow_pickle=True)",
        "socket.recv_pyobj()",
        "self.sockets[0].recv_pyobj()",
        "socket.send_pyobj(x)",
        "def f(x):\n    return eval(x)",
        "exec(x)",
        "run = exec",
        "builtins.eval(x)",
        "from builtins import exec",
        "__import__(x)",
        "compile(x, '', 'exec')",
    ],
)
def test_what_it_looks_for_is_found(text):
    """A search that finds nothing proves nothing."""
    assert violations(text)


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "re.compile(x)",
        "json.load(f)",
        "tomllib.load(f)",
        "safetensors.torch.load(f)",
        "from json import load",
    ],
)
def test_what_is_harmless_is_left_alone(text):
    """Or the list of exceptions would grow until nobody reads it."""
    assert violations(text) == []


def test_all_three_packages_are_searched():
    """A path that is wrong finds nothing."""
    assert {path.relative_to(TOP).parts[0] for path in SOURCES} == {"zswarm", "brokers", "stages"}
    assert len(SOURCES) > 100


def test_sockets_are_made_in_one_package():
    """What makes sockets elsewhere would make them without the options, and without the key."""
    makers = {path.relative_to(TOP).as_posix() for path in SOURCES if "zmq.Context" in path.read_text()}
    assert makers == {
        "zswarm/transport/switchboard.py",
        "zswarm/transport/curve.py",  # names the type
        "zswarm/benchmarks/traffic.py",  # both ends of a benchmark, over loopback
        "zswarm/benchmarks/strangers.py",  # an attacker, who does as he likes
    }
