"""What results depend on is asked once, and only of our own source tree."""

import subprocess

from admrl.runs import versions as module


def test_git_is_asked_once_however_many_candidates_are_written(monkeypatch):
    calls, run = [], subprocess.run
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    module._versions.cache_clear()
    found = [module.versions() for _ in range(10)]
    assert len(calls) <= 2 and all(f == found[0] for f in found)
    found[0]["torch"] = "changed by a caller"
    assert module.versions()["torch"] != "changed by a caller"


def test_an_installed_package_has_no_commit_of_the_repository_around_it(monkeypatch, tmp_path):
    """A virtual environment inside somebody's repository: their commit is not ours."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "theirs.txt").write_text("x")
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-qm", "theirs"], check=True)
    installed = tmp_path / "venv" / "admrl" / "runs" / "versions.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(module, "__file__", str(installed))
    assert module._commit() is None
