"""The formats of datasets: which pictures they name, in which order, under which ids, and what is said about them."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from tests.unit.data.hostile_corpus import BLUE, RED, encode, flat
from tuitrain.data.files import HFSource
from tuitrain.data.images import DatasetReport, load_image, scan_images
from tuitrain.data.sources import Candidate, Listing, list_caption_dir, list_hf, list_image_dir, list_jsonl
from tuitrain.errors import DatasetError, printable

PICTURE = encode(flat(), "PNG")


def candidates(listing: Listing) -> list[Candidate]:
    assert all(isinstance(entry, Candidate) for entry in listing.entries)
    return [entry for entry in listing.entries if isinstance(entry, Candidate)]


def scan(listing: Listing) -> DatasetReport:
    return scan_images(
        listing,
        background="white",
        max_megapixels=64,
        on_bad_image="skip",
        on_missing_caption="skip",
        report=lambda done, total: None,
    )


def write_jsonl(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_jsonl_reads_past_blank_lines_and_numbers_the_others(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('\n{"pic": "a.png", "t": "A"}\n  \n{"pic": "b.png", "t": "B"}\n\n')
    listing = list_jsonl(tmp_path / "data.jsonl", image_column="pic", caption_column="t", use_masks=False)
    assert [(c.id, c.caption, c.where) for c in candidates(listing)] == [
        ("0", "A", f"{tmp_path}/data.jsonl:2"),
        ("1", "B", f"{tmp_path}/data.jsonl:4"),
    ]


def test_jsonl_paths_start_at_its_folder_and_those_outside_are_counted(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    inside = tmp_path / "set"
    inside.mkdir()
    (inside / "link.png").symlink_to(outside)
    for path in (outside, inside / "a.png"):
        path.write_bytes(PICTURE)
    names = ["a.png", "./a.png", str(inside / "a.png"), "../set/a.png", "../outside.png", str(outside), "link.png"]
    jsonl = write_jsonl(inside / "data.jsonl", *({"image": name, "text": "a"} for name in names))
    listing = list_jsonl(jsonl, image_column="image", caption_column="text", use_masks=False)
    assert [note.what for note in listing.notes] == ["3 of its paths lie outside its folder"]
    assert len(scan(listing).records) == len(names)


def test_jsonl_masks_are_read_only_when_asked_for(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "data.jsonl", {"image": "a.png", "text": "a", "mask": "masks/a.png"})
    for use_masks, mask_path in ((True, tmp_path / "masks/a.png"), (False, None)):
        listing = list_jsonl(str(jsonl), image_column="image", caption_column="text", use_masks=use_masks)
        assert candidates(listing)[0].mask_path == mask_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.jsonl", "cannot be read: No such file"),
        ("folder.jsonl", "not an ordinary file"),
        ("16.jsonl", "UTF-16"),
    ],
)
def test_a_jsonl_that_cannot_be_read_is_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "16.jsonl").write_text('{"image": "a.png"}', encoding="utf-16")
    with pytest.raises(DatasetError, match=reason) as caught:
        list_jsonl(tmp_path / name, image_column="image", caption_column="text", use_masks=False)
    assert caught.value.problems[0].where == str(tmp_path / name)


def test_a_caption_folder_pairs_sorted_pictures_with_their_whole_text(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.jpeg", "c.d.png"):
        (tmp_path / name).write_bytes(PICTURE)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf first\nline two \n")
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "c.d.txt").write_text("")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "z.png").write_bytes(PICTURE)
    report = scan(list_caption_dir(tmp_path))
    assert [(r.id, r.source.name, r.caption) for r in report.records] == [
        ("0", f"{tmp_path}/a.jpeg", "first\nline two"),
        ("1", f"{tmp_path}/b.JPG", "second"),
        ("2", f"{tmp_path}/c.d.png", ""),
    ]


def test_a_folder_says_what_it_leaves_out_and_what_may_surprise(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.webp", "c.webp", "d.gif", "caf\u00e9.png", "cafe\u0301.png"):
        (tmp_path / name).write_bytes(PICTURE)
    (tmp_path / "a.txt").write_text("a")
    notes = [note.what for note in list_caption_dir(tmp_path).notes]
    assert notes == [
        "1 .gif files were left out: a folder dataset takes .jpg, .jpeg, .png",
        "2 .webp files were left out: a folder dataset takes .jpg, .jpeg, .png",
        "2 pictures have names that look the same: caf\u00e9.png",
        "2 pictures take their caption from this file",
    ]


def test_a_name_that_is_not_utf_8_is_used_and_shown_escaped(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(raw)).write_bytes(PICTURE)
    [record] = scan(list_image_dir(tmp_path, caption="a", id_prefix="")).records
    assert record.source.name == f"{tmp_path}/caf\\udce9.png"
    assert load_image(record, background="white").getpixel((0, 0)) == RED


def test_dreambooth_folders_get_their_caption_prefix_and_weight(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(PICTURE)
    listing = list_image_dir(tmp_path, caption="a sks gnome", id_prefix="instance_") + list_image_dir(
        tmp_path, caption="a gnome", id_prefix="class_", loss_weight=0.5, class_image=True
    )
    assert [(r.id, r.caption, r.loss_weight, r.class_image) for r in scan(listing).records] == [
        ("instance_0", "a sks gnome", 1.0, False),
        ("instance_1", "a sks gnome", 1.0, False),
        ("class_0", "a gnome", 0.5, True),
        ("class_1", "a gnome", 0.5, True),
    ]


@pytest.mark.parametrize("name", ["absent", "file", "bad\0name"])
def test_a_folder_that_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for read in (list_caption_dir, lambda path: list_image_dir(path, caption="", id_prefix="")):
        with pytest.raises(DatasetError, match="the folder cannot be read") as caught:
            read(tmp_path / name)
        assert caught.value.problems[0].where == printable(tmp_path / name)


def test_printable_leaves_letters_of_any_script_and_escapes_what_steers() -> None:
    assert printable("日本語 é [b] \\") == "日本語 é [b] \\"
    assert printable("\x1b[2J\u202e\x9b\ud800\x00\u2028") == r"\x1b[2J\u202e\x9b\ud800\x00\u2028"


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved datasets `plain`, `splits` (train and test), and `pictures`, a folder with a metadata.jsonl."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hf")
    cells = [{"bytes": encode(flat(colour), "PNG"), "path": None} for colour in (RED, BLUE)]
    cells += [{"bytes": b"not a picture", "path": None}, None]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    plain = datasets.Dataset.from_dict({"image": cells, "text": ["red", None, "bad", "none"]}, features=features)
    plain.save_to_disk(folder / "plain")
    datasets.DatasetDict({"train": plain, "test": plain.select([0])}).save_to_disk(folder / "splits")
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(PICTURE)
    (pictures / "b.png").write_bytes(encode(flat(BLUE), "PNG"))
    write_jsonl(pictures / "metadata.jsonl", *({"file_name": f"{name}.png", "text": name} for name in "ab"))
    return folder


def read_hf(
    name: object, *, cache_dir: Path | None = None, caption_column: str = "text", image_column: str = "image"
) -> Listing:
    return list_hf(
        str(name),
        config_name=None,
        cache_dir=str(cache_dir) if cache_dir else None,
        image_column=image_column,
        caption_column=caption_column,
    )


@pytest.mark.parametrize("name", ["plain", "splits"])
def test_a_saved_hf_dataset_is_judged_row_by_row(name: str, hf_dir: Path) -> None:
    report = scan(read_hf(hf_dir / name))
    where = str(hf_dir / name)
    assert [(record.id, record.caption, record.size_hw) for record in report.records] == [("0", "red", (24, 32))]
    assert load_image(report.records[0], background="white").getpixel((0, 0)) == RED
    assert [(problem.where, problem.what[:24]) for problem in report.rejected] == [
        (f"{where}[1]", "it has no caption"),
        (f"{where}[2]", "it is not a picture, or "),
        (f"{where}[3]", "the row has no picture"),
    ]


def test_a_folder_of_pictures_is_read_as_hf_dataset(hf_dir: Path, tmp_path: Path) -> None:
    report = scan(read_hf(hf_dir / "pictures", cache_dir=tmp_path))
    assert [(record.id, record.caption) for record in report.records] == [("0", "a"), ("1", "b")]
    copy = pickle.loads(pickle.dumps(report.records[1]))
    assert isinstance(copy.source, HFSource)
    assert load_image(copy, background="white").getpixel((0, 0)) == BLUE


def test_a_wrong_hf_column_is_refused_with_the_columns_there_are(hf_dir: Path) -> None:
    with pytest.raises(DatasetError, match=r"no column 'caption'; its columns are \['image', 'text'\]"):
        read_hf(hf_dir / "plain", caption_column="caption")
    with pytest.raises(DatasetError, match=r"column 'text' is not a column of pictures"):
        read_hf(hf_dir / "plain", image_column="text")
    with pytest.raises(DatasetError, match=r"column 'photo' is not a column of pictures"):
        read_hf(hf_dir / "plain", image_column="photo")


@pytest.mark.parametrize("name", ["nobody/no-such-dataset", "/no/such/folder", "not a name!"])
def test_an_hf_dataset_that_does_not_exist_is_refused_by_name(name: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DatasetError, match="it cannot be opened") as caught:
        read_hf(name, cache_dir=tmp_path)
    assert caught.value.problems[0].where == name


def test_without_the_datasets_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError) as caught:
        read_hf("some/name")
    assert caught.value.problems[0].hint == "pip install 'tuitrain[hf]'"
