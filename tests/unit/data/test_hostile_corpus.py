"""Every hostile picture, mask, caption and line gets its verdict, nothing else is raised, and no file is touched."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Literal

import pytest

from tests.unit.data.hostile_corpus import BLUE, CASES, Accepted, Case, Rejected, encode, flat, oriented
from tuitrain.data.images import DatasetReport, load_image, scan_images
from tuitrain.data.sources import Listing, list_caption_dir, list_jsonl
from tuitrain.errors import DatasetError

Policy = Literal["error", "skip"]
PICTURE = encode(flat(), "PNG")


def scan(listing: Listing, *, on_bad_image: Policy = "error", on_missing_caption: str = "error") -> DatasetReport:
    return scan_images(
        listing,
        background="white",
        max_megapixels=64,
        on_bad_image=on_bad_image,
        on_missing_caption=on_missing_caption,  # type: ignore[arg-type]
        report=lambda done, total: None,
    )


def read_jsonl(path: Path, *, use_masks: bool = False) -> Listing:
    return list_jsonl(path, image_column="image", caption_column="text", use_masks=use_masks)


def write_corpus(folder: Path, cases: list[Case]) -> Path:
    """The files of `cases` and a JSONL with one line for each."""
    for case in cases:
        case.build(folder / case.name)
    jsonl = folder / "data.jsonl"
    jsonl.write_text("".join(json.dumps({"image": case.name, "text": "a caption"}) + "\n" for case in cases))
    return jsonl


def fingerprint(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Kind and mode, size, time of change and content of everything in `folder`."""
    prints = {}
    for path in folder.iterdir():
        status = path.lstat()
        small_file = path.is_file() and not path.is_symlink() and status.st_size < 1 << 28
        content = hashlib.sha256(path.read_bytes()).hexdigest() if small_file else ""
        prints[path.name] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return prints


@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.verdict, Rejected)], ids=lambda case: case.name)
def test_a_bad_picture_is_refused_with_file_line_and_reason(case: Case, tmp_path: Path) -> None:
    assert isinstance(case.verdict, Rejected)
    jsonl = write_corpus(tmp_path, [case])
    with pytest.raises(DatasetError) as caught:
        scan(read_jsonl(jsonl))
    summary, problem = caught.value.problems
    assert summary.what == "1 of 1 pictures cannot be trained on"
    assert problem.where == f"{jsonl}:1"
    assert problem.what.startswith(f"{tmp_path / case.name}: ")
    assert case.verdict.reason in problem.what
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.verdict, Accepted)], ids=lambda case: case.name)
def test_an_unusual_picture_is_used_with_its_true_pixels(case: Case, tmp_path: Path) -> None:
    verdict = case.verdict
    assert isinstance(verdict, Accepted)
    report = scan(read_jsonl(write_corpus(tmp_path, [case])))
    [record] = report.records
    image = load_image(record, background="white")
    assert record.size_hw == verdict.size_hw == (image.height, image.width)
    assert image.mode == "RGB"
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    assert all(abs(got - want) <= verdict.tolerance for got, want in zip(pixel, verdict.pixel, strict=True)), pixel
    assert [verdict.note in note.what for note in report.notes] == [True] * bool(verdict.note)


def test_the_whole_corpus_is_judged_at_once_and_no_file_is_touched(tmp_path: Path) -> None:
    jsonl = write_corpus(tmp_path, CASES)
    before = fingerprint(tmp_path)
    expected = {f"{jsonl}:{number}": case for number, case in enumerate(CASES, 1) if isinstance(case.verdict, Rejected)}
    with pytest.raises(DatasetError) as caught:
        scan(read_jsonl(jsonl))
    problems = {problem.where: problem.what for problem in caught.value.problems[1:]}
    assert list(problems) == list(expected)
    assert all(case.verdict.reason in problems[where] for where, case in expected.items())  # type: ignore[union-attr]
    assert fingerprint(tmp_path) == before
    assert len(CASES) >= 45


def test_skipping_keeps_every_good_picture_in_order_and_lists_the_rest(tmp_path: Path) -> None:
    jsonl = write_corpus(tmp_path, CASES)
    report = scan(read_jsonl(jsonl), on_bad_image="skip")
    good = [index for index, case in enumerate(CASES) if isinstance(case.verdict, Accepted)]
    assert [record.id for record in report.records] == [str(index) for index in good]
    assert len(report.rejected) == len(CASES) - len(good)


def test_no_message_carries_a_character_that_steers_a_terminal(tmp_path: Path) -> None:
    jsonl = write_corpus(tmp_path, CASES)
    report = scan(read_jsonl(jsonl), on_bad_image="skip")
    with pytest.raises(DatasetError) as caught:
        scan(read_jsonl(jsonl))
    texts = [text for problem in (*report.rejected, *report.notes) for text in (problem.where, problem.what)]
    texts += [record.source.name for record in report.records]
    texts += [str(problem) for problem in caught.value.problems]
    assert all(text.isprintable() for text in texts)
    assert f"{tmp_path}/escape\\x1b]52;c;UE9D\\x07\\n\\u202e.png" in texts


def _line(**fields: object) -> bytes:
    return json.dumps({"image": "a.png", "text": "a caption", **fields}).encode()


BAD_LINES = {
    "malformed": (b'{"image": "a.png", "text": ', "it is not JSON: Expecting value at column 28"),
    "cut in a text": (b'{"image": "a.png", "text": "a cap', "it is not JSON: Unterminated string"),
    "trailing comma": (b'{"image": "a.png", "text": "a caption",}', "it is not JSON"),
    "single quotes": (b"{'image': 'a.png'}", "it is not JSON"),
    "two objects": (_line() + b" " + _line(), "it is not JSON: Extra data"),
    "a list": (b'["a.png", "a caption"]', "it is a list, it must be an object"),
    "a text": (b'"a.png"', "it is a text, it must be an object"),
    "null": (b"null", "it is null, it must be an object"),
    "a number": (b"17", "it is a number, it must be an object"),
    "deep nesting": (b"[" * 100_000, "its JSON is nested too deeply"),
    "5000 digits": (b'{"image": "a.png", "text": "a", "n": ' + b"1" * 5000 + b"}", "it is not JSON that can be read"),
    "NaN": (b'{"image": "a.png", "text": "a", "score": NaN}', "NaN is not a number in JSON"),
    "infinity": (b'{"image": "a.png", "text": "a", "score": -Infinity}', "-Infinity is not a number in JSON"),
    "a key twice": (b'{"image": "a.png", "text": "a", "text": "b"}', "key 'text' stands there more than once"),
    "latin-1": (b'{"image": "a.png", "text": "caf\xe9"}', "byte 32 of the line is not UTF-8"),
    "no picture": (b'{"file": "a.png", "text": "a"}', "there is no 'image'; its keys are ['file', 'text']"),
    "picture is a number": (_line(image=7), "'image' is a number, it must be a path"),
    "picture is null": (_line(image=None), "'image' is null, it must be a path"),
    "picture is empty": (_line(image=""), "'image' is '', which is not a path"),
    "NUL in a path": (_line(image="a.png\0.jpg"), "which is not a path"),
    "surrogate in a path": (_line(image="\ud800.png"), "which is not a path"),
    "endless path": (_line(image="a" * 5000), "it cannot be read: File name too long"),
    "the folder itself": (_line(image="."), "it is not an ordinary file"),
    "caption is a number": (_line(text=7), "'text' is a number, it must be a text"),
    "caption is a list": (_line(text=["a", "b"]), "'text' is a list, it must be a text"),
    "caption is an object": (_line(text={"en": "a"}), "'text' is an object, it must be a text"),
    "caption is true": (_line(text=True), "'text' is true or false, it must be a text"),
    "caption is null": (_line(text=None), "it has no caption"),
    "no caption": (b'{"image": "a.png"}', "it has no caption"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_refused_with_its_number_and_reason(line: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    jsonl = tmp_path / "data.jsonl"
    jsonl.write_bytes(_line() + b"\n\n" + line + b"\n" + _line() + b"\n")
    with pytest.raises(DatasetError) as caught:
        scan(read_jsonl(jsonl))
    _, problem = caught.value.problems
    assert problem.where == f"{jsonl}:3"
    assert reason in problem.what
    assert str(caught.value).replace("\n", "").isprintable()
    report = scan(read_jsonl(jsonl), on_bad_image="skip", on_missing_caption="skip")
    assert [record.id for record in report.records] == ["0", "2"]
    assert [rejected.where for rejected in report.rejected] == [f"{jsonl}:3"]


GOOD_LINES = {
    "NUL": (_line(text="a\0b"), "ab", "control characters were removed"),
    "terminal escape": (_line(text="a \x1b[31mcat"), "a [31mcat", "control characters were removed"),
    "special token": (_line(text="cat<|endoftext|>dog"), "cat<| endoftext |>dog", "special token"),
    "special token by NUL": (_line(text="<|end\0oftext|>"), "<| endoftext |>", "special token"),
    "lone surrogate": (b'{"image": "a.png", "text": "a \\ud83d cat"}', "a \ufffd cat", "lone surrogates"),
    "1 MB": (_line(text="x" * 1_000_000), "x" * 16384, "its caption of 1000000 bytes was cut to 16384"),
    "10 MB": (_line(text="\u00e9" * 5_000_000), "\u00e9" * 8192, "its caption of 10000000 bytes was cut to 16384"),
    "empty": (_line(text=""), "", "its caption is empty"),
    "spaces": (_line(text=" \n\t"), "", "its caption is empty"),
    "markup": (_line(text="[/] [@click=app.quit]"), "[/] [@click=app.quit]", ""),
    "line separator": ('{"image": "a.png", "text": "a\u2028b"}'.encode(), "a\u2028b", ""),
    "CRLF": (_line() + b"\r", "a caption", ""),
    "more keys": (_line(score=1, tags=["x"]), "a caption", ""),
    "BOM": (b"\xef\xbb\xbf" + _line(), "a caption", ""),
}


@pytest.mark.parametrize(("line", "caption", "note"), GOOD_LINES.values(), ids=GOOD_LINES)
def test_an_unusual_line_is_used_with_its_repaired_caption(
    line: bytes, caption: str, note: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "data.jsonl").write_bytes(line + b"\n")
    report = scan(read_jsonl(tmp_path / "data.jsonl"))
    assert [record.caption for record in report.records] == [caption]
    assert note in "; ".join(found.what for found in report.notes)
    assert bool(report.notes) == bool(note)


CAPTION_FILES = {
    "latin-1": (b"caf\xe9", "byte 4 is not UTF-8"),
    "UTF-16": ("a cat".encode("utf-16"), "byte 1 is not UTF-8"),
    "absent": (None, "it has no caption"),
}


@pytest.mark.parametrize(("text", "reason"), CAPTION_FILES.values(), ids=CAPTION_FILES)
def test_a_bad_caption_file_is_refused_by_name(text: bytes | None, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    if text is not None:
        (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(DatasetError, match=reason) as caught:
        scan(list_caption_dir(tmp_path))
    assert Path(caught.value.problems[1].where).stem == "a"


@pytest.mark.parametrize("kind", ["folder", "link to nowhere", "device"])
def test_a_caption_that_is_no_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    caption = tmp_path / "a.txt"
    match kind:
        case "folder":
            caption.mkdir()
        case "link to nowhere":
            caption.symlink_to("nowhere")
        case "device":
            caption.symlink_to("/dev/zero")
    with pytest.raises(DatasetError, match=r"a\.txt: it (is not an ordinary file|cannot be read)"):
        scan(list_caption_dir(tmp_path))


MASKS = {
    "absent key": (None, "there is no 'mask'"),
    "a number": (7, "'mask' is a number, it must be a path"),
    "no such file": ("nowhere.png", "nowhere.png: it cannot be read"),
    "not a picture": ("text.png", "text.png: it is not a picture"),
    "another size": ("small.png", "small.png: the mask is 16x12, its picture is 32x24"),
    "floating point": ("float.tif", "float.tif: its pixels are floating-point numbers"),
}


@pytest.mark.parametrize(("mask", "reason"), MASKS.values(), ids=MASKS)
def test_a_bad_mask_is_refused_with_file_line_and_reason(mask: object, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "small.png").write_bytes(encode(flat(255, mode="L").resize((16, 12)), "PNG"))
    (tmp_path / "float.tif").write_bytes(encode(flat(0.5, mode="F"), "TIFF"))
    jsonl = tmp_path / "data.jsonl"
    jsonl.write_bytes(_line() if mask is None else _line(mask=mask))
    with pytest.raises(DatasetError) as caught:
        scan(read_jsonl(jsonl, use_masks=True))
    _, problem = caught.value.problems
    assert problem.where == f"{jsonl}:1"
    assert reason in problem.what


def test_a_mask_has_the_size_of_the_upright_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(flat(), "PNG", exif=oriented(6)))
    (tmp_path / "upright.png").write_bytes(encode(flat(255, mode="L").resize((24, 32)), "PNG"))
    (tmp_path / "lying.png").write_bytes(encode(flat(255, mode="L"), "PNG"))
    jsonl = tmp_path / "data.jsonl"
    jsonl.write_bytes(_line(mask="upright.png") + b"\n" + _line(mask="lying.png"))
    report = scan(read_jsonl(jsonl, use_masks=True), on_bad_image="skip")
    assert [record.size_hw for record in report.records] == [(32, 24)]
    assert "the mask is 32x24, its picture is 24x32 (upright)" in report.rejected[0].what


@pytest.mark.parametrize("name", ["a.png", "a.txt", "data.jsonl"])
def test_a_pipe_that_nobody_writes_to_blocks_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(PICTURE)
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "data.jsonl").write_bytes(_line())
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    errors: list[DatasetError] = []

    def attempt() -> None:
        try:
            scan(read_jsonl(tmp_path / name) if name == "data.jsonl" else list_caption_dir(tmp_path))
        except DatasetError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert "it is not an ordinary file" in str(errors[0])


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "blue.png").write_bytes(encode(flat(BLUE), "PNG"))
    (tmp_path / "empty.png").touch()
    jsonl = tmp_path / "data.jsonl"
    jsonl.write_bytes(b"\n".join([_line(), b"{", _line(image="empty.png"), b'{"image": "blue.png"}']))
    with pytest.raises(DatasetError) as caught:
        scan(read_jsonl(jsonl))
    assert [problem.where for problem in caught.value.problems] == ["", *(f"{jsonl}:{n}" for n in (2, 3, 4))]
    assert caught.value.problems[0].what == "3 of 4 pictures cannot be trained on"
    report = scan(read_jsonl(jsonl), on_bad_image="skip", on_missing_caption="skip")
    assert [record.id for record in report.records] == ["0"]
