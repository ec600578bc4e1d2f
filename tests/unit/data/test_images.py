"""Records: what they hold, what loading them gives, and what is noticed when a file changes after the scan."""

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tests.unit.data.hostile_corpus import BLUE, RED, encode, flat, oriented, red_corner
from tuitrain.data.decode import decode_image, decode_mask
from tuitrain.data.files import PathSource
from tuitrain.data.images import DatasetReport, load_image, load_mask, scan_images
from tuitrain.data.sources import Candidate, Listing, list_jsonl
from tuitrain.errors import DatasetError


def scan(listing: Listing, *, max_megapixels: float = 64, on_missing_caption: str = "error") -> DatasetReport:
    return scan_images(
        listing,
        background="white",
        max_megapixels=max_megapixels,
        on_bad_image="error",
        on_missing_caption=on_missing_caption,  # type: ignore[arg-type]
        report=lambda done, total: None,
    )


def one(path: Path, *, caption: str | None = "a caption", mask_path: Path | None = None) -> Listing:
    return Listing([Candidate("0", str(path), PathSource(path), caption, mask_path)])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(encode(flat(), "PNG"))
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    data = encode(red_corner(), "PNG", exif=oriented(orientation))
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert np.array_equal(decode_image(data, background="white", name="a").image, expected)


def test_16_bit_grey_is_divided_by_257() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = decode_image(encode(Image.fromarray(values), "PNG"), background="white", name="a").image
    expected = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(image), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize(
    ("background", "colour"), [("white", 255), ("black", 0), ("grey", 128), ("#336699", (0x33, 0x66, 0x99))]
)
def test_transparency_shows_the_background_in_proportion(background: str, colour: int | tuple[int, ...]) -> None:
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = 255
    pixels[..., 3] = alpha
    image = decode_image(encode(Image.fromarray(pixels), "PNG"), background=background, name="a").image
    weight = alpha[..., None] / 255
    expected = np.array(RED) * weight + np.broadcast_to(colour, 3) * (1 - weight)
    assert np.abs(np.asarray(image, dtype=float) - expected).max() <= 1


def test_truncated_files_must_never_be_filled_with_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(AssertionError):
        decode_image(encode(flat(), "PNG"), background="white", name="a")


def test_a_mask_in_any_mode_is_read_as_grey() -> None:
    for image in (flat(255, mode="L"), flat(1, mode="1"), flat((255, 255, 255)), flat((255, 255, 255, 0), mode="RGBA")):
        mask = decode_mask(encode(image, "PNG"), name="a")
        assert (mask.mode, mask.getpixel((0, 0))) == ("L", 255)
    deep = Image.fromarray(np.full((24, 32), 100 * 257, dtype=np.uint16))
    assert decode_mask(encode(deep, "PNG"), name="a").getpixel((0, 0)) == 100


def test_a_record_holds_upright_size_and_the_hash_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(flat(), "JPEG", exif=oriented(8)))
    [record] = scan(one(path)).records
    assert record.size_hw == (32, 24)
    assert record.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_content_hash_changes_with_the_mask_alone(picture: Path, tmp_path: Path) -> None:
    masks = [tmp_path / "m0.png", tmp_path / "m1.png"]
    for value, path in enumerate(masks):
        path.write_bytes(encode(flat(value + 1, mode="L"), "PNG"))
    hashes = {scan(one(picture, mask_path=path)).records[0].content_hash for path in (None, *masks)}
    assert len(hashes) == 3


def test_the_size_limit_counts_pixels_exactly(picture: Path) -> None:
    assert scan(one(picture), max_megapixels=32 * 24 / 1e6).records
    with pytest.raises(DatasetError, match="max_image_megapixels"):
        scan(one(picture), max_megapixels=(32 * 24 - 1) / 1e6)


def test_a_large_picture_within_the_limit_passes_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 9_100)).save(path)  # above the 89 megapixels at which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scan(one(path), max_megapixels=100).records[0].size_hw == (9_100, 10_000)


def test_a_picture_that_changes_after_the_scan_is_refused_by_name(picture: Path) -> None:
    [record] = scan(one(picture)).records
    assert load_image(record, background="white").getpixel((0, 0)) == RED
    picture.write_bytes(encode(flat(BLUE), "PNG"))
    with pytest.raises(DatasetError, match=r"a\.png: the file has changed since it was scanned"):
        load_image(record, background="white")
    picture.unlink()
    with pytest.raises(DatasetError, match=r"a\.png: it cannot be read: No such file"):
        load_image(record, background="white")


def test_a_mask_that_changes_after_the_scan_is_refused_by_name(picture: Path, tmp_path: Path) -> None:
    mask_path = tmp_path / "mask.png"
    mask_path.write_bytes(encode(flat(255, mode="L"), "PNG"))
    [record] = scan(one(picture, mask_path=mask_path)).records
    mask = load_mask(record)
    assert mask is not None and (mask.mode, mask.size, mask.getextrema()) == ("L", (32, 24), (255, 255))
    mask_path.write_bytes(encode(flat(0, mode="L"), "PNG"))
    with pytest.raises(DatasetError, match=r"mask\.png: the file has changed"):
        load_mask(record)


def test_a_record_without_a_mask_loads_none(picture: Path) -> None:
    assert load_mask(scan(one(picture)).records[0]) is None


def test_a_mask_that_hides_everything_is_noted(picture: Path, tmp_path: Path) -> None:
    mask_path = tmp_path / "mask.png"
    mask_path.write_bytes(encode(flat(0, mode="L"), "PNG"))
    [note] = scan(one(picture, mask_path=mask_path)).notes
    assert "its mask is black everywhere" in note.what


def test_records_travel_to_another_process(picture: Path) -> None:
    [record] = scan(one(picture)).records
    copy = pickle.loads(pickle.dumps(record))
    assert copy == record
    assert load_image(copy, background="white").getpixel((0, 0)) == RED


def test_a_missing_caption_follows_the_policy(picture: Path) -> None:
    listing = one(picture, caption=None) + Listing([Candidate("1", "other", PathSource(picture), "a caption")])
    with pytest.raises(DatasetError, match="it has no caption") as caught:
        scan(listing)
    assert "on_missing_caption" in caught.value.problems[1].hint
    empty = scan(listing, on_missing_caption="empty")
    assert [record.caption for record in empty.records] == ["", "a caption"]
    assert [note.what for note in empty.notes] == ["its caption is empty"]
    skipped = scan(listing, on_missing_caption="skip")
    assert [record.id for record in skipped.records] == ["1"]
    assert [problem.what for problem in skipped.rejected] == ["it has no caption"]


def test_the_same_bytes_under_two_names_are_noted(picture: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin.png"
    twin.write_bytes(picture.read_bytes())
    report = scan(one(picture) + one(twin) + one(picture))
    assert [(note.where, note.what) for note in report.notes] == [(str(twin), f"it is the same picture as {picture}")]


def test_progress_is_reported_in_order_by_the_calling_thread(tmp_path: Path) -> None:
    names = [f"{i:03}.png" for i in range(30)]
    for i, name in enumerate(names):  # the first are the slowest to decode
        (tmp_path / name).write_bytes(encode(Image.new("RGB", (32 * (30 - i), 24), RED), "PNG"))
    jsonl = tmp_path / "data.jsonl"
    jsonl.write_text("\n".join(json.dumps({"image": name, "text": name}) for name in names))
    seen: list[tuple[int, int]] = []
    report = scan_images(
        list_jsonl(jsonl, image_column="image", caption_column="text", use_masks=False),
        background="white",
        max_megapixels=64,
        on_bad_image="error",
        on_missing_caption="error",
        report=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 30) for done in range(1, 31)]
    assert [record.caption for record in report.records] == names


@pytest.mark.parametrize("listing", [Listing(), Listing(notes=[])])
def test_a_dataset_without_pictures_is_refused(listing: Listing) -> None:
    with pytest.raises(DatasetError, match="no picture is left to train on, of 0"):
        scan(listing)


def test_a_dataset_of_which_nothing_is_left_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        scan_images(
            one(tmp_path / "absent.png"),
            background="white",
            max_megapixels=64,
            on_bad_image="skip",
            on_missing_caption="error",
            report=lambda done, total: None,
        )
    assert "no picture is left to train on, of 1" in caught.value.problems[0].what
    assert "absent.png" in str(caught.value.problems[1])


@dataclass(frozen=True)
class CountingSource:
    """Counts how often it is read."""

    name: str
    reads: list[str]

    def read_bytes(self) -> bytes:
        self.reads.append(self.name)
        return encode(flat(), "PNG")


def scan_counting(reads: list[str], num_pictures: int, report: Callable[[int, int], None]) -> DatasetReport:
    sources = [CountingSource(str(index), reads) for index in range(num_pictures)]
    return scan_images(
        Listing([Candidate(source.name, source.name, source, "a caption") for source in sources]),  # type: ignore[arg-type]
        background="white",
        max_megapixels=64,
        on_bad_image="error",
        on_missing_caption="error",
        report=report,
    )


def test_each_picture_is_read_once() -> None:
    reads: list[str] = []
    scan_counting(reads, 40, lambda done, total: None)
    assert sorted(reads, key=int) == [str(index) for index in range(40)]


def test_an_interrupt_stops_the_scan_without_reading_the_rest() -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    reads: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        scan_counting(reads, 2000, interrupt)
    assert len(reads) < 1000


def test_photographs_with_masks_scan_clean(gnome_dir: Path) -> None:
    listing = list_jsonl(gnome_dir / "data_masked.jsonl", image_column="image", caption_column="text", use_masks=True)
    report = scan(listing)
    assert [record.size_hw for record in report.records] == [(2016, 1512), (2016, 1512)]
    assert (report.rejected, report.notes) == ([], [])
