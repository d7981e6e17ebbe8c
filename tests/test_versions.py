"""Versions on disk: complete or absent, growing numbers, one writer at a time, also after a process was killed."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from q2s_tf.errors import InputError
from q2s_tf.serving.folders import versions_in
from q2s_tf.serving.versions import SERVABLES, keep_newest, new_version, next_version

ROOT = Path(__file__).parents[1]


def publish(models: Path, content: str = "model", servables: Sequence[str] = SERVABLES) -> int:
    with new_version(models, servables) as (version, folders):
        for folder in folders.values():
            (folder / "variables").mkdir()
            (folder / "saved_model.pb").write_text(content)
    return version


def numbers(models: Path) -> dict[str, list[int]]:
    return {name: sorted(versions_in(models / name)) for name in SERVABLES}


def leftovers(models: Path) -> list[str]:
    return sorted(path.name for path in models.glob(".*") if path.is_dir())


def test_all_servables_of_one_export_have_one_number(tmp_path: Path) -> None:
    assert next_version(tmp_path) == 1
    assert [publish(tmp_path), publish(tmp_path)] == [1, 2]
    assert numbers(tmp_path) == {name: [1, 2] for name in SERVABLES}
    assert sorted(path.name for path in (tmp_path / "retriever/2").iterdir()) == ["saved_model.pb", "variables"]
    assert leftovers(tmp_path) == []


def test_the_next_version_is_beyond_the_highest_of_any_servable(tmp_path: Path) -> None:
    for folder in ("query_tower/3", "retriever/12", "document_tower/70.tmp", "other/99", "document_tower/notes"):
        (tmp_path / folder).mkdir(parents=True)
    assert next_version(tmp_path) == 13


def test_a_subset_of_the_servables_can_be_published(tmp_path: Path) -> None:
    publish(tmp_path)
    assert publish(tmp_path, servables=["retriever"]) == 2
    assert publish(tmp_path) == 3
    assert numbers(tmp_path) == {"query_tower": [1, 3], "document_tower": [1, 3], "retriever": [1, 2, 3]}


def test_a_number_does_not_come_back_when_its_folder_is_removed(tmp_path: Path) -> None:
    for _ in range(10):
        publish(tmp_path, servables=["retriever"])
    for version in (8, 9, 10):
        os.rename(tmp_path / f"retriever/{version}", tmp_path / f"gone-{version}")
    assert next_version(tmp_path) == 11
    assert publish(tmp_path) == 11


def test_a_last_version_that_is_no_number_is_reported(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / ".last_version").write_text("two\n")
    with pytest.raises(InputError, match="must hold the last version's number, got 'two'"):
        publish(tmp_path)
    (tmp_path / ".last_version").write_text("")  # what a loss of power may leave of it
    assert publish(tmp_path) == 2


def test_an_interrupted_publication_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), new_version(tmp_path) as (_, folders):
        (folders["query_tower"] / "half").write_text("half")
        raise RuntimeError("stop")
    assert (numbers(tmp_path), leftovers(tmp_path)) == ({name: [] for name in SERVABLES}, [])
    assert publish(tmp_path) == 1


def test_where_one_servable_cannot_be_put_none_is_published(tmp_path: Path) -> None:
    (tmp_path / "retriever").write_text("a file where a folder has to be")
    with pytest.raises(InputError, match="cannot be written .File exists"):
        publish(tmp_path)
    assert not list(tmp_path.rglob("saved_model.pb"))


def test_a_full_disk_while_a_version_is_written_publishes_nothing(tmp_path: Path) -> None:
    publish(tmp_path)
    refused = pytest.raises(
        InputError, match="models folder .* cannot be written .No space left on device.; free space"
    )
    with refused, new_version(tmp_path) as (_, folders):
        (folders["query_tower"] / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (numbers(tmp_path), leftovers(tmp_path)) == ({name: [1] for name in SERVABLES}, [])


def test_a_file_is_no_folder_of_models(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(InputError, match="must be a folder, and it is a file"):
        publish(tmp_path / "models")


def test_nothing_appears_before_all_of_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[str] = set()
    fsync, rename = os.fsync, Path.rename

    def note(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path.resolve()))

    def check(path: Path, target: Path) -> Path:
        if path.name == ".writing-1":
            files = {str(child.relative_to(tmp_path)) for child in [path, *path.rglob("*")]}
            assert files | {".last_version"} <= flushed
        else:
            assert "." in flushed  # the folder that lists the version as complete
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", check)
    publish(tmp_path)
    assert {"retriever", "query_tower", "document_tower"} <= flushed


def writer(code: str, models: Path) -> subprocess.Popen:
    lines = "import os, sys\nfrom pathlib import Path\nfrom q2s_tf.serving.versions import new_version, keep_newest\n"
    command = [sys.executable, "-c", f"{lines}models = Path(sys.argv[1])\n{code}", str(models)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)


WRITE_AND_WAIT = """
with new_version(models) as (version, folders):
    (folders["retriever"] / "saved_model.pb").write_text("half")
    print(version, flush=True)
    sys.stdin.readline()
"""


def test_what_a_killed_export_left_is_swept_by_the_next(tmp_path: Path) -> None:
    with writer(WRITE_AND_WAIT, tmp_path) as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "1\n"
        assert leftovers(tmp_path) == [".writing-1"]
        killed.send_signal(signal.SIGKILL)
    assert numbers(tmp_path) == {name: [] for name in SERVABLES}
    assert publish(tmp_path) == 1
    assert leftovers(tmp_path) == []


def test_a_second_export_waits_for_the_first(tmp_path: Path) -> None:
    second = 'with new_version(models) as (version, folders): print(version, *os.listdir(models / "retriever"))'
    with writer(WRITE_AND_WAIT, tmp_path) as first:
        assert first.stdout is not None and first.stdout.readline() == "1\n"
        with writer(second, tmp_path) as waiting:
            assert waiting.stderr is not None and "waiting for it to end" in waiting.stderr.readline()
            assert waiting.poll() is None
            first.communicate("go\n")
            assert waiting.stdout is not None and waiting.stdout.read() == "2 1\n"  # it sees what the first published
    assert numbers(tmp_path) == {name: [1, 2] for name in SERVABLES}


def test_many_writers_never_share_a_number(tmp_path: Path) -> None:
    code = """
for _ in range(6):
    with new_version(models) as (version, folders):
        for folder in folders.values():
            (folder / "saved_model.pb").write_text(str(os.getpid()))
    print(version)
    keep_newest(models, 20)
"""
    writers = [writer(code, tmp_path) for _ in range(3)]
    printed = [process.communicate(timeout=60)[0].split() for process in writers]
    assert sorted(int(version) for versions in printed for version in versions) == list(range(1, 19))
    for process, versions in zip(writers, printed, strict=True):
        for version in versions:
            owners = {(tmp_path / name / version / "saved_model.pb").read_text() for name in SERVABLES}
            assert owners == {str(process.pid)}


def test_a_version_that_was_complete_when_its_export_was_killed_is_moved_into_place(tmp_path: Path) -> None:
    publish(tmp_path)
    for name in ("query_tower", "retriever"):
        (tmp_path / ".ready-2" / name).mkdir(parents=True)
    (tmp_path / "document_tower/2").mkdir()
    (tmp_path / ".last_version").write_text("2\n")
    with new_version(tmp_path, ["retriever"]) as (version, _):
        assert version == 3
        assert numbers(tmp_path) == {name: [1, 2] for name in SERVABLES}
    assert leftovers(tmp_path) == []


def test_only_the_newest_versions_are_kept(tmp_path: Path) -> None:
    for servables in (SERVABLES, SERVABLES, ["retriever"], ["retriever"], SERVABLES, ["retriever"]):
        publish(tmp_path, servables=servables)
    (tmp_path / ".removing-1-retriever").mkdir()  # of a process that was killed
    (tmp_path / "retriever/notes").mkdir()
    removed = keep_newest(tmp_path, 2)
    assert numbers(tmp_path) == {"query_tower": [2, 5], "document_tower": [2, 5], "retriever": [5, 6]}
    assert sorted(str(path.relative_to(tmp_path)) for path in removed) == [
        "document_tower/1", "query_tower/1", "retriever/1", "retriever/2", "retriever/3", "retriever/4",
    ]  # fmt: skip
    assert leftovers(tmp_path) == [] and (tmp_path / "retriever/notes").is_dir()
    assert keep_newest(tmp_path, 2) == []
    assert publish(tmp_path) == 7


def test_versions_are_compared_as_numbers(tmp_path: Path) -> None:
    for version in (9, 10, 100):
        (tmp_path / f"retriever/{version}").mkdir(parents=True)
    keep_newest(tmp_path, 2)
    assert numbers(tmp_path)["retriever"] == [10, 100]


def test_an_old_version_goes_with_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that looks meanwhile sees all of it or nothing."""
    publish(tmp_path)
    publish(tmp_path)
    monkeypatch.setattr("shutil.rmtree", lambda path: pytest.fail(str(path)) if path.name.isdigit() else None)
    keep_newest(tmp_path, 1)
    assert numbers(tmp_path) == {name: [2] for name in SERVABLES}


def test_at_least_one_version_is_kept(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(InputError, match="keep must be at least 1, .* got 0"):
        keep_newest(tmp_path, 0)
    assert numbers(tmp_path) == {name: [1] for name in SERVABLES}
