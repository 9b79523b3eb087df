from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from zswarm.cli import main
from zswarm.cli.key import default_path
from zswarm.errors import UserError
from zswarm.swarm_key import SwarmKey, _check_owner_only, make_key_file, read_key_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "key"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277])
def test_a_new_key_is_for_its_owner_alone(path, mask):
    """Whatever the umask: pyzmq's own writer leaves secret keys open to everybody."""
    path.parent.mkdir()
    before = os.umask(mask)
    try:
        make_key_file(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_key_file(path).secret) == 32


def test_a_missing_folder_is_made_for_its_owner_alone(path):
    make_key_file(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_keys_differ_and_a_copy_is_the_same(path):
    make_key_file(path)
    make_key_file(path.with_name("other"))
    copy = path.with_name("copy")
    copy.touch(mode=0o600)
    copy.write_bytes(path.read_bytes())
    assert read_key_file(copy) == read_key_file(path) != read_key_file(path.with_name("other"))


def test_a_key_is_never_overwritten(path):
    make_key_file(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="never overwritten"):
        make_key_file(path)
    assert path.read_bytes() == before


def test_a_key_does_not_follow_a_link_that_leads_nowhere(path):
    """Somebody else may have put it there."""
    path.parent.mkdir()
    path.symlink_to(path.with_name("target"))
    with pytest.raises(UserError, match="never overwritten"):
        make_key_file(path)
    assert not path.with_name("target").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o700, 0o601, 0o666])
def test_a_key_that_others_may_use_is_refused(path, mode):
    """Exit code 2 and one line that says which file, which mode and what to do, and nothing of the key."""
    make_key_file(path)
    path.chmod(mode)
    with pytest.raises(UserError, match=f"has mode {mode:04o}.*chmod 600") as caught:
        read_key_file(path)
    assert str(path) in str(caught.value)
    assert path.read_text().split()[-1] not in str(caught.value)


def test_a_narrower_mode_is_fine(path):
    make_key_file(path)
    path.chmod(0o400)
    read_key_file(path)


def test_a_key_of_another_user_is_refused(path, monkeypatch):
    """He may read it and change it."""
    make_key_file(path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(UserError, match="another user"):
        read_key_file(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# nothing but a comment\n",
        b"zswarm-key-1\n",
        b"zswarm-key-1 " + b"0" * 63,
        b"zswarm-key-1 " + b"0" * 65,
        b"zswarm-key-1 " + b"g" * 64,
        b"zswarm-key-2 " + b"0" * 64,
        b"zswarm-key-1 " + b"0" * 64 + b"\nzswarm-key-1 " + b"1" * 64,
        b"\xff" * 100,
        b"x" * 100_000,
    ],
)
def test_what_is_no_key_is_refused(path, content):
    """And not shown: it may be another secret."""
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_key_file(path)
    assert str(caught.value) == f"{path}: is no swarm key: `zswarm key init` makes one"


def test_a_folder_and_a_pipe_are_no_key(tmp_path):
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="is no file"):
            read_key_file(path)


def test_a_key_shows_nothing_of_itself():
    key = SwarmKey(b"\x5a" * 32)
    assert "5a" not in f"{key} {key!r}".lower()
    assert "ZZ" not in f"{key} {key!r}"


def test_each_purpose_has_a_secret_of_its_own():
    """The same for the same key on every machine."""
    key = SwarmKey(bytes(32))
    derived = {key.derive(purpose) for purpose in ("curve server", "curve client")} | {key.secret}
    assert len(derived) == 3
    assert key.derive("curve server") == SwarmKey(bytes(32)).derive("curve server")
    assert key.derive("curve server") != SwarmKey(b"\x01" * 32).derive("curve server")


def test_the_command_makes_a_key_and_says_where_but_not_what(path, capsys):
    assert main.run(["key", "init", str(path)]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (f"{path}\n", "")
    assert main.run(["key", "init", str(path)]) == 2
    assert "never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["", "relative/folder"])
def test_the_default_place_is_the_users_own(monkeypatch, tmp_path, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", variable)
    assert default_path() == tmp_path / ".config" / "zswarm" / "key"


def test_the_default_place_follows_the_xdg_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main.run(["key", "init"]) == 0
    assert read_key_file(tmp_path / "zswarm" / "key")


@pytest.mark.parametrize(
    ("option", "variable", "used"),
    [
        ([], None, "zswarm/key"),
        (["--key"], None, "zswarm/key"),
        (["--key", "NAMED"], None, "named"),
        ([], "NAMED", "named"),
        (["--key"], "NAMED", "zswarm/key"),
    ],
)
def test_which_key_is_used(monkeypatch, tmp_path, option, variable, used):
    """The option without a file stands for the default one, and the option comes before the environment."""
    named = tmp_path / "named"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("ZSWARM_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("ZSWARM_KEY", str(named))
    make_key_file(tmp_path / "zswarm" / "key")
    make_key_file(named)
    told = []
    monkeypatch.setattr(main, "_node", lambda *_: "broker")
    monkeypatch.setattr("brokers.service.serve_broker", lambda **options: told.append(options["key"]) or _Ended)
    words = [str(named) if word == "NAMED" else word for word in option]
    assert main.run(["broker", *words, "--coordinator", "tcp://127.0.0.1:1"]) == 0
    assert told == [None if used is None else read_key_file(Path(tmp_path) / used)]


class _Ended:
    code = 0


# -- credentials -------------------------------------------------------------------------------------

ME = 4711


def check(mode, *, owner, group=0, is_credential=True):
    """Check a regular file with this mode and these owners as a key of the user ME."""
    _check_owner_only(
        Path("key"),
        os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 100, 0, 0, 0)),
        is_credential=is_credential,
    )


@pytest.fixture
def _user(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: ME)


@pytest.mark.usefixtures("_user")
@pytest.mark.parametrize(("mode", "owner"), [(0o400, ME), (0o400, 0), (0o440, 0)])
def test_what_systemd_passes_on_is_a_key(mode, owner):
    """The modes and owners of LoadCredential=, on file systems without access control lists and with them."""
    check(mode, owner=owner)


@pytest.mark.usefixtures("_user")
@pytest.mark.parametrize(
    ("mode", "owner", "group"),
    [
        (0o440, ME, 0),
        (0o440, 0, ME),
        (0o444, 0, 0),
        (0o460, 0, 0),
        (0o640, 0, 0),
        (0o440, ME + 1, 0),
        (0o400, ME + 1, 0),
    ],
)
def test_a_credential_that_others_may_use_is_refused(mode, owner, group):
    with pytest.raises(UserError):
        check(mode, owner=owner, group=group)


@pytest.mark.usefixtures("_user")
@pytest.mark.parametrize("mode", [0o400, 0o440])
def test_a_key_of_root_outside_of_the_credentials_folder_is_refused(mode):
    """Who can read one of these by a group has not been given it."""
    with pytest.raises(UserError, match="belongs to another user"):
        check(mode, owner=0, is_credential=False)


def test_only_the_folder_itself_holds_credentials(path, monkeypatch):
    seen = []
    monkeypatch.setattr("zswarm.swarm_key._check_owner_only", lambda *_, is_credential: seen.append(is_credential))
    make_key_file(path)
    for folder in (path.parent, path.parent.parent, path, None):
        read_key_file(path, credentials=folder)
    assert seen == [True, False, False, False]
