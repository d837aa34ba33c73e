"""Bundles: found by image, copied once by digest, swept when nothing runs them."""

import json
import shutil

import pytest

from infless_core.errors import InvalidInput, StateError
from infless_provider import bundles


def make(folder, image=None, handler="def predict(batch): return batch\n"):
    """A bundle as the two builders leave it: with a manifest, or without."""
    (folder / "function").mkdir(parents=True)
    (folder / "infless_watchdog").mkdir()
    (folder / "function" / "handler.py").write_text(handler)
    if image is not None:
        bundles.write_manifest(folder, image)
    return folder


def test_found_by_the_image_in_its_manifest(tmp_path):
    """Whatever the function is called."""
    folder = make(tmp_path / "a", "repo/hello:1")
    assert bundles.find_bundle(tmp_path, "other", "repo/hello:1") == folder


def test_found_by_the_functions_name(tmp_path):
    """A folder of `faas-cli build --shrinkwrap` names no image."""
    folder = make(tmp_path / "hello")
    assert bundles.find_bundle(tmp_path, "hello", "repo/hello:1") == folder


def test_another_image_is_not_what_was_asked_for(tmp_path):
    """Deploying version 2 must not run version 1."""
    make(tmp_path / "hello", "repo/hello:1")
    with pytest.raises(InvalidInput, match="no bundle for image 'repo/hello:2'"):
        bundles.find_bundle(tmp_path, "hello", "repo/hello:2")


def test_an_unfinished_build_is_none(tmp_path):
    """Its folder's name begins with a dot."""
    make(tmp_path / ".hello.new", "repo/hello:1")
    with pytest.raises(InvalidInput):
        bundles.find_bundle(tmp_path, "hello", "repo/hello:1")


def test_nothing_built_names_the_commands(tmp_path):
    """Where it was looked for, and what makes one."""
    with pytest.raises(InvalidInput, match=r"none: build it with `infless build .*` or `faas-cli build --shrinkwrap`"):
        bundles.find_bundle(tmp_path / "none", "hello", "i")


@pytest.mark.parametrize("manifest", ["[]", "{", '"text"', "{}"])
def test_a_damaged_manifest_is_passed_over(tmp_path, manifest):
    """It must not keep other functions from being deployed."""
    (make(tmp_path / "bad") / bundles.MANIFEST).write_text(manifest)
    good = make(tmp_path / "good", "i")
    assert bundles.find_bundle(tmp_path, "x", "i") == good


def test_the_digest_is_of_names_and_contents(tmp_path):
    """Caches do not count, a moved or changed file does."""
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    (a / "function" / "__pycache__").mkdir()
    (a / "function" / "__pycache__" / "handler.pyc").write_bytes(b"x")
    assert bundles.digest_of(a) == bundles.digest_of(b)
    (b / "function" / "handler.py").rename(b / "function" / "model.py")
    assert bundles.digest_of(a) != bundles.digest_of(b)


def test_the_copy_stays_when_the_build_changes(tmp_path):
    """It is what runs; another digest is another copy."""
    built, kept = make(tmp_path / "hello", "i"), tmp_path / "kept"
    digest, folder = bundles.keep_copy(built, kept)
    (built / "function" / "handler.py").write_text("new")
    assert bundles.digest_of(folder) == digest
    assert bundles.keep_copy(built, kept)[1] != folder
    assert len(list(kept.iterdir())) == 2


def test_the_same_bundle_is_kept_once(tmp_path):
    """The second deployment copies nothing."""
    built, kept = make(tmp_path / "hello", "i"), tmp_path / "kept"
    assert bundles.keep_copy(built, kept) == bundles.keep_copy(built, kept)
    assert len(list(kept.iterdir())) == 1


def test_a_build_that_runs_meanwhile_gets_its_own_digest(tmp_path, monkeypatch):
    """The digest is the copy's, not that of the folder it was taken from."""
    built, kept = make(tmp_path / "hello", "i"), tmp_path / "kept"
    before, real = bundles.digest_of(built), shutil.copytree

    def changed_meanwhile(source, *rest, **named):
        (built / "function" / "handler.py").write_text("new")
        return real(source, *rest, **named)

    monkeypatch.setattr(shutil, "copytree", changed_meanwhile)
    digest, folder = bundles.keep_copy(built, kept)
    assert digest != before
    assert digest == bundles.digest_of(folder)


def test_a_full_disk_leaves_nothing_half_done(tmp_path, monkeypatch):
    """No folder under the digest, no draft, and the system's own words."""

    def full(*_, **__):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(StateError, match="could not be kept in .*No space left on device"):
        bundles.keep_copy(make(tmp_path / "hello", "i"), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_file_that_vanishes(tmp_path, monkeypatch):
    """A build runs: the caller tries again."""
    monkeypatch.setattr(bundles, "_files", lambda folder: [folder / "gone"])
    with pytest.raises(StateError, match="cannot be read"):
        bundles.digest_of(tmp_path)


def test_the_profile_key_is_of_code_and_variables():
    """The order of variables does not matter."""
    assert bundles.profile_key("d", {"a": "1", "b": "2"}) == bundles.profile_key("d", {"b": "2", "a": "1"})
    assert bundles.profile_key("d", {"a": "1"}) != bundles.profile_key("d", {})
    assert bundles.profile_key("d", {}) != bundles.profile_key("e", {})


def test_sweeping(tmp_path):
    """What nothing runs goes, drafts too."""
    kept = tmp_path / "kept"
    _, used = bundles.keep_copy(make(tmp_path / "a", "i"), kept)
    bundles.keep_copy(make(tmp_path / "b", "j"), kept)
    (kept / ".draft-x").mkdir()
    bundles.sweep(kept, {str(used)})
    assert list(kept.iterdir()) == [used]


def test_the_manifest_is_json(tmp_path):
    """For people and other tools."""
    bundles.write_manifest(tmp_path, "i")
    assert json.loads((tmp_path / bundles.MANIFEST).read_text()) == {"image": "i"}
