"""Whose model code a worker runs."""

from __future__ import annotations

import functools
import sys

import pytest

from stages.allowed import EVERYTHING, Allowed, NotHere
from stages.compute import Compute
from stages.model import load_model
from stages.tasks import Build, Built, Failed, Unfit
from tests.letters import of_type
from tests.stages.one_worker import ME, TRAINER_AT, Fixture
from zswarm.errors import REFUSED
from zswarm.ids import RejectCode, Stage
from zswarm.limits import MAX_TEXT_CHARS
from zswarm.machine import Exit, Send
from zswarm.messages import Reject
from zswarm.wire import decode_untrusted, encode

ARGUMENTS = {"sequence_length": 12}
GPT = {"d_model": 16, "num_layers": 2, "num_heads": 2, "sequence_length": 12}
COMMAND = ("zswarm", "worker", "--coordinator", "tcp://10.0.0.1:4711", "--name", "my worker")


def only(*modules: str) -> Allowed:
    return Allowed(modules=frozenset(modules), command=COMMAND)


@pytest.fixture
def tempting(tmp_path, monkeypatch):
    """A package that leaves a trace when it is imported, and one of a name that begins alike."""
    for name in ("tempting_models", "tempting_models_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("from stages.transformer import gpt\n")
        (tmp_path / name / "inner.py").write_text(
            "import functools, subprocess\n"
            "from subprocess import check_call\n"
            "from stages.transformer import gpt\n"
            "def build(**arguments):\n    return gpt(**arguments)\n"
            "early = functools.partial(build, d_model=16)\n"
            "call = functools.partial(subprocess.check_call, ['false'])\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("tempting_models")]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["tempting_models.inner", "tempting_models"])
def test_a_module_and_what_is_in_it_may_be_allowed(tempting, module):
    """By its own name, or by that of a package around it."""
    assert len(load_model("tempting_models.inner:build", GPT, only("other", module)).layers) == 4


@pytest.mark.parametrize(
    "modules", [(), ("tempting",), ("tempting_models_2",), ("tempting_models.inner.more",), ("inner",)]
)
def test_nothing_else_is_imported(tempting, modules):
    """Not even to look whether the function is there; the message says what would allow it."""
    with pytest.raises(NotHere) as caught:
        load_model("tempting_models.inner:build", GPT, only(*modules))
    assert not [name for name in sys.modules if name.startswith("tempting_models")]
    assert "which this machine's operator does not allow: nothing of it was run" in str(caught.value)
    command = "zswarm worker --coordinator tcp://10.0.0.1:4711 --name 'my worker' --allow tempting_models.inner"
    assert f"`{command}`" in str(caught.value)


@pytest.mark.parametrize("factory", ["gpt", "stages.transformer:gpt"])
def test_what_zswarm_brings_along_is_always_allowed(factory):
    assert len(load_model(factory, GPT, only()).layers) == 4


@pytest.mark.parametrize("factory", ["subprocess:check_call", "os:system", "stages.model:build_layer", "builtins:exec"])
def test_no_other_function_of_any_installed_module_is_called(factory):
    """It was, with arguments of the trainer's choice."""
    with pytest.raises(NotHere, match="does not allow"):
        load_model(factory, {"args": "false", "sequence_length": 1}, only("lab"))


@pytest.mark.parametrize("name", ["check_call", "call"])
def test_what_an_allowed_module_has_only_imported_is_not_allowed(tempting, name):
    """Every module imports something that does harm."""
    with pytest.raises(NotHere, match="code of the module subprocess"):
        load_model(f"tempting_models.inner:{name}", {"sequence_length": 1}, only("tempting_models"))


def test_a_function_with_some_arguments_given_is_of_its_module(tempting):
    arguments = {name: value for name, value in GPT.items() if name != "d_model"}
    assert len(load_model("tempting_models.inner:early", arguments, only("tempting_models")).layers) == 4


def test_something_that_can_be_called_and_has_no_module_is_of_its_class():
    class Callable:
        __module__ = "lab.models"

        def __call__(self):
            """Do nothing."""

    only("lab").check_function("lab:x", functools.partial(Callable()))
    with pytest.raises(NotHere, match=r"lab\.models"):
        only("other").check_function("lab:x", Callable())


def test_the_users_own_run_file_may_name_anything():
    assert len(load_model("own_models:odd", ARGUMENTS, EVERYTHING).layers) > 1


# -- the compute thread's word -------------------------------------------------------------------------


def built_by(make_config, factory, allowed):
    """Return what comes of building the first stage of a model."""
    config = make_config(model={"factory": factory, **ARGUMENTS})
    task = Build(stage=Stage(0), num_stages=1, configuration=config.canonical_json())
    (outcome,) = Compute(allowed=allowed).perform(task)
    return outcome


@pytest.mark.parametrize(
    ("factory", "kind", "text"),
    [
        ("own_models:odd", Built, ""),
        ("own_modelz:odd", Unfit, "own_modelz"),
        ("own_models:not_in_this_version", Unfit, "has no 'not_in_this_version'"),
        ("needs_what_is_missing:model", Unfit, "No module named 'not_installed_here'"),
        ("own_models:falling", Failed, "raised KeyError"),
        ("raises_when_imported:model", Failed, "RuntimeError: no luck"),
    ],
)
def test_what_is_missing_here_is_told_from_what_is_wrong_everywhere(
    make_config, tmp_path, monkeypatch, factory, kind, text
):
    """The first is one machine's, the second ends the run."""
    (tmp_path / "needs_what_is_missing.py").write_text("import not_installed_here\n")
    (tmp_path / "raises_when_imported.py").write_text("raise RuntimeError('no luck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    allowed = only("own_models", "own_modelz", "needs_what_is_missing", "raises_when_imported")
    outcome = built_by(make_config, factory, allowed)
    assert type(outcome) is kind
    assert text in getattr(outcome, "text", "")


def test_what_is_not_allowed_is_no_failure_of_the_run(make_config):
    outcome = built_by(make_config, "own_models:odd", only())
    assert isinstance(outcome, Unfit)
    assert "own_models" in outcome.text


# -- the machine ---------------------------------------------------------------------------------------


def test_an_unfit_worker_says_so_and_goes():
    """To the trainer's user and to its own, in words that a header holds."""
    worker = Fixture(built=False)
    send, end = worker.do(Unfit(text="model.factory = 'lab:build' ... " + "x" * 600))
    assert isinstance(send, Send)
    assert (send.peer, type(send.message), send.message.session) == (TRAINER_AT, Reject, ME)
    assert (send.message.code, len(send.message.text)) == (RejectCode.UNFIT, MAX_TEXT_CHARS)
    assert decode_untrusted(encode(send.message)).message == send.message
    assert isinstance(end, Exit)
    assert end.code == REFUSED
    assert end.text.startswith("worker-0: model.factory = 'lab:build'")


def test_a_worker_that_was_fenced_while_it_looked_goes_too():
    """Whatever it is given next, this is its machine."""
    worker = Fixture(built=False)
    worker.machine._begin_new_life()
    assert of_type(worker.do(Unfit(text="no")), Exit)
