import os
from pathlib import Path

import pytest

from pointsman.config.files import FilesError, fingerprint, manifest_files


def mounted_config_map(folder: Path, version: str, text: str) -> None:
    """Write a file as the kubelet does: a new folder, and one atomic swap of `..data`."""
    data = folder / f"..2026_{version}"
    data.mkdir()
    (data / "rules.yaml").write_text(text, encoding="utf-8")
    (folder / "..data_tmp").symlink_to(data.name)
    (folder / "..data_tmp").rename(folder / "..data")
    if not (folder / "rules.yaml").is_symlink():
        (folder / "rules.yaml").symlink_to("..data/rules.yaml")


def test_a_folder_is_read_in_order_without_dotfiles_subfolders_and_other_files(
    tmp_path: Path,
) -> None:
    for name in ("b.yml", "a.yaml", "c.json", ".hidden.yaml", "notes.txt", "a.yaml~"):
        (tmp_path / name).touch()
    (tmp_path / "sub.yaml").mkdir()
    (tmp_path / "sub.yaml" / "d.yaml").touch()
    assert [f.name for f in manifest_files(tmp_path)] == ["a.yaml", "b.yml", "c.json"]


def test_a_single_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "rules.conf").touch()
    assert manifest_files(tmp_path / "rules.conf") == [tmp_path / "rules.conf"]


def test_a_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    mounted_config_map(tmp_path, "1", "a: 1")
    assert [f.name for f in manifest_files(tmp_path)] == ["rules.yaml"]


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    assert manifest_files(tmp_path) == []


def test_a_missing_path_and_a_folder_of_other_things_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="no such file or directory"):
        manifest_files(tmp_path / "missing")
    (tmp_path / "sub").mkdir()
    with pytest.raises(FilesError, match=r"no \*\.yaml.*subfolders are not read"):
        manifest_files(tmp_path)


def test_the_fingerprint_stays_while_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1")
    assert fingerprint(tmp_path) == fingerprint(tmp_path)


def test_the_fingerprint_changes_with_content_names_and_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1")
    seen = [fingerprint(tmp_path)]
    file.write_text("a: 22")
    assert fingerprint(file) == fingerprint(tmp_path) != seen[0]
    seen.append(fingerprint(tmp_path))
    file.rename(tmp_path / "b.yaml")
    seen.append(fingerprint(tmp_path))
    (tmp_path / "c.yaml").touch()
    seen.append(fingerprint(tmp_path))
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_a_symlink_swap_changes_the_fingerprint_even_with_equal_times_and_size(
    tmp_path: Path,
) -> None:
    mounted_config_map(tmp_path, "1", "a: 1")
    before = fingerprint(tmp_path)
    mounted_config_map(tmp_path, "2", "a: 2")
    times = (tmp_path / "..2026_1" / "rules.yaml").stat()
    os.utime(tmp_path / "..2026_2" / "rules.yaml", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(tmp_path) != before


def test_the_fingerprint_never_raises_for_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("nowhere")
    (tmp_path / "b.yaml").symlink_to("b.yaml")
    dangling = fingerprint(tmp_path)
    gone = fingerprint(tmp_path / "gone")
    assert dangling == fingerprint(tmp_path)
    assert gone == fingerprint(tmp_path / "gone")
    assert gone != dangling
    assert fingerprint(Path("\0")) is not None
