"""What the training of the default model fetches: whole, unchanged, or an error."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from xpkern.errors import InputError, XpkernError
from xpkern.train import packages
from xpkern.train.__main__ import main


def package(content: bytes, filename: str = "thing-1.0.tar.gz") -> packages.Package:
    return packages.Package("thing==1.0", filename, hashlib.sha256(content).hexdigest())


def test_a_whole_download_is_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "thing-1.0.tar.gz").write_bytes(b"whole")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert package(b"whole").fetch(tmp_path) == tmp_path / "thing-1.0.tar.gz"


def test_a_broken_download_is_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "thing-1.0.tar.gz").write_bytes(b"who")

    def pip(command, **_):
        folder = command[command.index("--dest") + 1]
        assert "--no-deps" in command
        with open(f"{folder}/thing-1.0.tar.gz", "wb") as file:
            file.write(b"whole")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert package(b"whole").fetch(tmp_path).read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["thing-1.0.tar.gz"]


def test_what_pip_says_when_it_fails_is_passed_on(tmp_path, monkeypatch):
    tried = []

    def pip(command, **_):
        tried.append("--no-build-isolation" in command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no such thing\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(XpkernError, match=r"thing==1\.0: ERROR: no such thing"):
        package(b"whole").fetch(tmp_path)
    assert tried == [False, True]
    assert list(tmp_path.iterdir()) == []


def test_another_file_under_the_same_name_is_refused(tmp_path, monkeypatch):
    def pip(command, **_):
        with open(f"{command[command.index('--dest') + 1]}/thing-1.0-py3-none-any.whl", "wb") as file:
            file.write(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(InputError, match="not the release"):
        package(b"whole", "thing-1.0-py3-none-any.whl").fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_in_one_line_what_went_wrong(tmp_path, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert main(["default", "-o", str(tmp_path / "x.h5"), "--cache", str(tmp_path / "cache")]) == 1
    assert "ERROR: no network" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.h5").exists()
