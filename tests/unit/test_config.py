from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from zswarm import limits
from zswarm.config import RunConfig, load_run_file
from zswarm.errors import RemoteProtocolError, UserError

GOOD = """
[run]
name = "tiny"
steps = 200
[model]
factory = "gpt"
d_model = 256
sequence_length = 128
[batch]
global_batch = 32
microbatch = 4
"""


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    return path


def test_a_short_run_file_gets_the_documented_defaults(run_file):
    config = load_run_file(run_file)
    assert config.num_microbatches == 8
    assert config.sequence_length == 128
    assert config.model.arguments == {"d_model": 256, "sequence_length": 128}
    assert config.run.seed == 0
    assert config.data.source == "stdlib"
    assert config.data.held_out == 0.05
    assert config.pipeline.wiring == "queue"
    assert config.pipeline.split == "auto"
    assert config.wire.codec == "int8"
    assert config.optimizer.name == "adamw"
    assert config.batch.accumulation == "float32"
    assert (config.checkpoint.every, config.checkpoint.keep) == (50, 3)


def test_every_key_can_be_set_on_the_command_line(run_file):
    config = load_run_file(
        run_file,
        [
            "run.steps=7",
            "run.name=other",
            "model.depths=[1, 2]",
            "pipeline.stages=2",
            "pipeline.split=[3,5]",
            'wire.codec="none"',
            "optimizer.lr=1",
            "optimizer.betas=[0, 0.5]",
            "batch.accumulation=exact",
            "checkpoint.every=1",
            "checkpoint.keep=1",
        ],
    )
    assert config.run.steps == 7
    assert config.run.name == "other"
    assert config.model.arguments["depths"] == [1, 2]
    assert config.pipeline.split == (3, 5)
    assert config.wire.codec == "none"
    assert config.optimizer.lr == 1.0
    assert config.optimizer.betas == (0.0, 0.5)
    assert config.batch.accumulation == "exact"
    assert (config.checkpoint.every, config.checkpoint.keep) == (1, 1)
    config = load_run_file(run_file, ["optimizer.name=sgd", "optimizer.momentum=0.5"])
    assert (config.optimizer.name, config.optimizer.momentum) == ("sgd", 0.5)


def test_a_configuration_survives_the_wire(run_file):
    config = load_run_file(run_file, ["pipeline.stages=2", "pipeline.split=[3,5]", "model.nested={a=[1,{b=2.5}]}"])
    sent = config.canonical_json()
    assert RunConfig.from_json_untrusted(sent) == config
    assert RunConfig.from_json_untrusted(sent).canonical_json() == sent


def test_the_order_of_keys_in_the_file_does_not_change_the_bytes(run_file, tmp_path):
    sections = GOOD.strip().split("[")[1:]
    other = tmp_path / "other.toml"
    other.write_text("\n".join("[" + section for section in reversed(sections)))
    assert load_run_file(other).canonical_json() == load_run_file(run_file).canonical_json()


@given(junk=st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)))
def test_bytes_from_the_network_raise_only_remote_protocol_error(junk):
    with pytest.raises(RemoteProtocolError):
        RunConfig.from_json_untrusted(junk)


def test_a_configuration_cannot_be_changed(run_file):
    config = load_run_file(run_file)
    with pytest.raises(ValidationError):
        config.run.steps = 3
    with pytest.raises(ValidationError):
        config.model.factory = "other"


WRONG = [
    # a single override, what the message must say
    ("run.steps=true", "run.steps = true: must be a whole number, not true or false"),
    ("run.steps=2.0", "run.steps = 2.0: must be a whole number, not a fraction"),
    ("run.steps=0", "run.steps = 0: must be at least 1"),
    ("run.steps=many", "run.steps = 'many': must be a whole number, not a text"),
    ("run.seed=-1", "run.seed = -1: must be at least 0"),
    ("run.seed=9223372036854775808", "must be at most 9223372036854775807"),
    ("run.name=a/b", "run.name = 'a/b': must be 1 to 64 letters"),
    ('run.name=""', "run.name = '': must be 1 to 64 letters"),
    ("run.name=3", "run.name = 3: must be a text in quotes, not a whole number"),
    ("run.step=3", "run.step is no key: [run] has name, seed and steps; did you mean steps?"),
    (
        "optimiser.lr=3",
        "is no section: there are batch, checkpoint, data, model, optimizer, pipeline, run and wire; did you mean optimizer?",
    ),
    ("model.sequence_length=0", "model.sequence_length must not be 0: write a whole number from 1 to"),
    ("model.sequence_length=true", "model.sequence_length must not be True"),
    ("model.vocab_size=255", "model.vocab_size must not be 255: tokens are bytes, write 256 or more"),
    ("model.when=1979-05-27", "model arguments are texts, numbers, true, false, lists or tables"),
    ("model.factory=[1]", "model.factory = [1]: must be a text in quotes, not a list"),
    ("data.source=[]", 'data.source = []: must be "stdlib", a path or glob in quotes, or a list of those'),
    ("data.source=[1]", 'data.source = [1]: must be "stdlib"'),
    ("data.held_out=1", "data.held_out = 1: must be less than 1"),
    ("data.held_out=0", "data.held_out = 0: must be more than 0"),
    (
        "batch.global_batch=30",
        "batch.global_batch = 30 is not a multiple of batch.microbatch = 4: write global_batch = 28 or 32",
    ),
    ("batch.microbatch=64", "is not a multiple of batch.microbatch = 64: write global_batch = 64"),
    ("batch.global_batch=400000", "at most 8192: write microbatch = 49 or more"),
    (f"pipeline.stages={limits.MAX_STAGES + 1}", f"must be at most {limits.MAX_STAGES}"),
    ("pipeline.split=[1,2]", "pipeline.split has 2 numbers and pipeline.stages = 1"),
    ("pipeline.split=[0]", 'pipeline.split = [0]: must be "auto" or a list with the number of layers'),
    ("pipeline.split=[true]", 'pipeline.split = [True]: must be "auto"'),
    ("pipeline.split=even", "pipeline.split = 'even': must be \"auto\""),
    (
        "pipeline.wiring=ivrr",
        """pipeline.wiring = 'ivrr': must be "fixed", "iwrr", "queue" or "uniform"; did you mean iwrr?""",
    ),
    ("pipeline.recompute=sometimes", """pipeline.recompute = 'sometimes': must be "always", "auto" or "never\""""),
    ("pipeline.rebalancing=all", """pipeline.rebalancing = 'all': must be "none", "priced" or "published\""""),
    ("pipeline.precision=16", 'pipeline.precision = 16: must be "bfloat16", "float32" or "tf32"'),
    ("pipeline.window=0", "pipeline.window = 0: must be at least 1"),
    (
        "wire.codec=int4",
        """wire.codec = 'int4': must be "bf16", "bnb8", "int8" or "none"; did you mean int8?""",
    ),
    ("wire.all_reduce=int8", """wire.all_reduce = 'int8': must be "bf16" or "none\""""),
    ("wire.codec=8", 'wire.codec = 8: must be "bf16", "bnb8", "int8" or "none"'),
    ("optimizer.name=adam", """optimizer.name = 'adam': must be "adamw" or "sgd"; did you mean adamw?"""),
    ("optimizer.lr=0", "optimizer.lr = 0: must be more than 0"),
    ("optimizer.lr=nan", "optimizer.lr = nan: must be a finite number"),
    ("optimizer.lr=inf", "optimizer.lr = inf: must be a finite number"),
    ("optimizer.lr=false", "optimizer.lr = false: must be a number, not true or false"),
    ("optimizer.betas=[0.9]", "optimizer.betas = [0.9]: must be two numbers"),
    ("optimizer.betas=[0.9, 1]", "optimizer.betas = [0.9, 1]: must be two numbers"),
    ("optimizer.betas=[true, 0.5]", "must be two numbers"),
    ("optimizer.grad_clip=-1", "optimizer.grad_clip = -1: must be at least 0"),
    (
        "optimizer.momentum=0.9",
        "optimizer.momentum is for sgd only, and optimizer.name = 'adamw': leave momentum out, or",
    ),
    ("optimizer.momentum=0", "--set optimizer.momentum=0: optimizer.momentum is for sgd only"),
    ("optimizer.schedule=cosin", 'must be "constant", "cosine" or "linear"; did you mean cosine?'),
    ("batch.accumulation=exat", 'must be "exact" or "float32"; did you mean exact?'),
    ("checkpoint.every=0", "checkpoint.every = 0: must be at least 1"),
    ("checkpoint.keep=0", "checkpoint.keep = 0: must be at least 1"),
    ("checkpoint.kept=2", "checkpoint.kept is no key: [checkpoint] has every and keep; did you mean keep?"),
    ("steps=3", "--set steps=3: write SECTION.KEY=VALUE, such as --set run.steps=50"),
    ("run.steps", "--set run.steps: write SECTION.KEY=VALUE"),
    ("run.a.b=1", "write SECTION.KEY=VALUE"),
    (".=", "write SECTION.KEY=VALUE"),
]


@pytest.mark.parametrize(("override", "says"), WRONG, ids=[override for override, _ in WRONG])
def test_every_wrong_value_is_told_with_its_place_and_a_way_out(run_file, override, says):
    with pytest.raises(UserError) as raised:
        load_run_file(run_file, [override])
    text = str(raised.value)
    assert says in text
    assert "\n" not in text
    assert "pydantic" not in text


def test_a_value_from_the_command_line_is_blamed_on_it(run_file):
    with pytest.raises(UserError) as raised:
        load_run_file(run_file, ["wire.codec=int9"])
    assert str(raised.value).startswith(f"{run_file}: --set wire.codec=int9: wire.codec = 'int9': ")


def test_all_problems_are_told_at_once(run_file):
    with pytest.raises(UserError) as raised:
        load_run_file(run_file, ["run.steps=0", "wire.codec=x", "batch.microbatch=5"])
    lines = str(raised.value).split("\n")
    assert lines[0] == f"{run_file}: 3 things are wrong:"
    assert [line.startswith("  ") for line in lines[1:]] == [True, True, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[run]\nsteps = \n", "not valid TOML: Invalid value (at line 2, column "),
        ("", "[run] is missing: add the section with steps"),
        ("[run]\nsteps=1\n[batch]\nglobal_batch=4\nmicrobatch=4\n", "[model] is missing: add the section"),
        (GOOD.replace("microbatch = 4", ""), "batch.microbatch is missing: add microbatch = ... to [batch]"),
        (GOOD.replace("sequence_length", "sequence_lenght"), "is missing (model.sequence_lenght is something else)"),
        ("wire = 3\n" + GOOD, "wire must be a section: write [wire] and its keys below it"),
        ("data = [1]\n" + GOOD, "data must be a section"),
        ("seed = 3\n" + GOOD, "[seed] is no section"),
        (GOOD + "[run]\n", "twice (at line 12, column 5)"),
        ("a = " + "[" * 5000, "nested too deeply"),
        (
            GOOD.replace("microbatch = 4", 'microbatch = 4\naccumulation = "exact"') + '[wire]\nall_reduce = "bf16"\n',
            'rounds what batch.accumulation = "exact" keeps exact: write all_reduce = "none"',
        ),
        (
            GOOD + '[optimizer]\nname = "sgd"\nbetas = [0.9, 0.95]\n',
            "run.toml: optimizer.betas is for adamw only, and optimizer.name = 'sgd': leave betas out, or write name = ",
        ),
    ],
)
def test_every_wrong_file_is_told_with_its_place_and_a_way_out(tmp_path, text, says):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_run_file(path)
    assert says in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_missing_a_binary_and_a_folder_run_file_are_told(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for name, says in [("no.toml", "there is no such run file"), ("binary.toml", "UTF-8"), ("", "Is a directory")]:
        with pytest.raises(UserError, match=says):
            load_run_file(tmp_path / name)


def test_an_override_under_something_that_is_no_section_is_told(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("wire = 3\n" + GOOD)
    with pytest.raises(UserError, match="wire must be a section"):
        load_run_file(path, ["wire.codec=none"])


def test_paths_count_from_the_run_file_and_those_of_an_override_from_here(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / "run.toml"
    path.write_text(GOOD + '[data]\nsource = ["a.txt", "/b.txt", "../c/*.txt"]\n')
    monkeypatch.chdir(tmp_path)
    assert load_run_file("runs/run.toml").data.source == (
        str(folder / "a.txt"),
        "/b.txt",
        str(folder / ".." / "c" / "*.txt"),
    )
    assert load_run_file(path, ["data.source=here.txt"]).data.source == (str(tmp_path / "here.txt"),)
    assert load_run_file(path, ["data.source=stdlib"]).data.source == "stdlib"


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
KEYS = [(name, key) for name, field in RunConfig.model_fields.items() for key in field.annotation.model_fields]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(KEYS), value=VALUES)
def test_whatever_a_key_is_set_to_gives_a_configuration_or_a_user_error(run_file, name, value):
    """No value gets through unchecked, and none raises anything but UserError."""
    section, key = name
    override = f"{section}.{key}={json.dumps(value)}"
    try:
        config = load_run_file(run_file, [override])
    except UserError as error:
        assert f"{section}" in str(error)
        return
    assert RunConfig.from_json_untrusted(config.canonical_json()) == config


EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "tiny.toml"


def test_the_example_run_file_has_every_key_and_its_comments_the_defaults():
    """But for the window, whose default is that there is none."""
    uncommented = re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    everything = tomllib.loads(uncommented)
    assert {(section, key) for section, keys in everything.items() for key in keys} >= set(KEYS)
    del everything["pipeline"]["window"]
    assert RunConfig.model_validate(everything) == load_run_file(EXAMPLE)


def test_the_example_run_file_is_valid_and_is_the_tiny_of_the_documents():
    config = load_run_file(EXAMPLE)
    assert config.model.arguments == {
        "d_model": 256,
        "num_layers": 8,
        "num_heads": 4,
        "sequence_length": 128,
        "vocab_size": 256,
    }
    assert (config.batch.global_batch, config.batch.microbatch) == (32, 4)
    assert (config.run.steps, config.pipeline.stages, config.wire.codec) == (200, 4, "int8")
