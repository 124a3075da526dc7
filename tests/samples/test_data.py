"""Samples in, batches out: nothing lost, nothing mixed, nothing counted twice."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxq.errors import CalibrationError, InputError, UsageError
from onnxq.graph.loading import from_proto
from onnxq.runtime import Input, Session
from onnxq.samples import data
from onnxq.samples.data import Arrays, Batch, Feeds, Images, Samples, batch_size, batches
from onnxq.samples.preprocess import PRESETS
from onnxq.samples.sources import open_samples

RAW = PRESETS["raw"]
FLOAT = np.dtype(np.float32)


def image_input(*shape: int | None) -> list[Input]:
    return [Input("x", FLOAT, shape or (None, 3, None, None))]


def save_images(folder: Path, *names: str, size: tuple[int, int] = (5, 4)) -> list[Path]:
    """Images of distinct colors under ``folder``; the first is (0, 0, 0), then (1, 1, 1) ..."""
    for value, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (value,) * 3).save(file)
    return [folder / name for name in names]


def files_of(samples: Samples) -> list[str]:
    assert isinstance(samples, Images)
    return [file.name for file in samples.files]


# -- folders of images ----------------------------------------------------------------------------


def test_a_folder_is_searched_recursively_and_in_order(tmp_path: Path) -> None:
    save_images(tmp_path, "b/2.png", "a.PNG", "b/deep/1.jpg", "b/3.bmp", "c.webp")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "d.png").mkdir()
    samples = open_samples(tmp_path, image_input(), RAW)
    assert files_of(samples) == ["a.PNG", "2.png", "3.bmp", "1.jpg", "c.webp"]
    assert samples.total == 5
    found = list(samples.items())
    assert [key for key, _ in found] == [0, 1, 2, 3, 4]
    assert [feed["x"].shape for _, feed in found] == [(1, 3, 4, 5)] * 5
    assert [int(feed["x"][0, 0, 0, 0]) for _, feed in found[:3]] == [1, 0, 3]


def test_the_seed_alone_decides_the_draw(tmp_path: Path) -> None:
    save_images(tmp_path, *(f"{i:02}.png" for i in range(30)))

    def draw(size: int | None, seed: int) -> list[str]:
        return files_of(open_samples(tmp_path, image_input(), RAW, size, seed))

    assert draw(8, 0) == draw(8, 0)
    assert draw(8, 0) != draw(8, 1)
    assert draw(8, 0) == sorted(set(draw(8, 0)))
    assert len(draw(8, 0)) == 8
    assert draw(30, 0) == draw(99, 1) == draw(None, 2) == [f"{i:02}.png" for i in range(30)]


def test_a_broken_image_is_skipped_and_named(tmp_path: Path) -> None:
    _, cut, _ = save_images(tmp_path, "a.png", "b.png", "e.png")
    cut.write_bytes(cut.read_bytes()[:50])
    (tmp_path / "c.jpg").write_text("no image")
    (tmp_path / "d.gif").touch()
    samples = open_samples(tmp_path, image_input(), RAW)
    assert [key for key, _ in samples.items()] == [0, 4]
    assert sorted(Path(name).name for name in samples.skipped) == ["b.png", "c.jpg", "d.gif"]
    assert all(reason and "\n" not in reason for reason in samples.skipped.values())
    assert [key for key, _ in samples.items()] == [0, 4]
    assert len(samples.skipped) == 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_absurdly_large_image_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path, "small.png")
    save_images(tmp_path, "large.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    samples = open_samples(tmp_path, image_input(), RAW)
    assert len(list(samples.items())) == 1
    assert [Path(name).name for name in samples.skipped] == ["large.png"]


def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("no image")
    samples = open_samples(tmp_path, image_input(), RAW)
    with pytest.raises(CalibrationError, match="none of its images can be read"):
        list(samples.items())


def test_images_of_floats_are_skipped_with_the_reason(tmp_path: Path) -> None:
    save_images(tmp_path, "a.png")
    Image.fromarray(np.ones((4, 5), np.float32)).save(tmp_path / "b.tif")
    samples = open_samples(tmp_path, image_input(), RAW)
    assert [key for key, _ in samples.items()] == [0]
    assert list(samples.skipped) == [str(tmp_path / "b.tif")]
    assert "floats" in samples.skipped[str(tmp_path / "b.tif")]


def test_images_in_hidden_folders_are_left_out_and_the_folders_named(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "images"  # what lies above the folder does not matter
    save_images(root, "a/1.png", "a/.trash/deep/1.png", "__MACOSX/a/1.png", "b/2.png")
    samples = open_samples(root, image_input(), RAW)
    assert files_of(samples) == ["1.png", "2.png"]
    hidden = [str(root / "__MACOSX"), str(root / "a" / ".trash")]
    assert samples.skipped == dict.fromkeys(hidden, "a hidden folder")
    # Folders left out are not taken for images that could not be read.
    assert len(list(samples.items())) == 2


def test_images_take_on_the_fixed_size_of_the_model(tmp_path: Path) -> None:
    save_images(tmp_path, "a.png", size=(9, 7))
    fixed = open_samples(tmp_path, image_input(None, 3, 4, 5), RAW)
    assert next(fixed.items())[1]["x"].shape == (1, 3, 4, 5)
    assert isinstance(fixed, Images)
    assert fixed.resized
    nhwc = RAW.model_copy(update={"layout": "nhwc"})
    fixed = open_samples(tmp_path, image_input(None, 4, 5, 3), nhwc)
    assert next(fixed.items())[1]["x"].shape == (1, 4, 5, 3)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ([*image_input(), Input("y", FLOAT, None)], "feeds one input, the model has x, y"),
        (image_input(None, 64), "has 2 axes, an image batch has 4"),
    ],
)
def test_a_folder_feeds_one_image_input(
    tmp_path: Path, inputs: list[Input], complaint: str
) -> None:
    save_images(tmp_path, "a.png")
    with pytest.raises(CalibrationError, match=complaint):
        open_samples(tmp_path, inputs, RAW)


def test_a_source_must_exist_and_hold_something(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    for path, complaint in [
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "a.txt", "not a folder, .npz or .npy"),
        (tmp_path, "no images in it"),
    ]:
        with pytest.raises(CalibrationError, match=complaint):
            open_samples(path, image_input(), RAW)


def test_images_are_read_once_while_there_is_room(tmp_path: Path, monkeypatch: Any) -> None:
    save_images(tmp_path, *(f"{i}.png" for i in range(4)))
    samples = open_samples(tmp_path, image_input(), RAW)
    assert isinstance(samples, Images)
    before = [(key, feed["x"]) for key, feed in samples.items()]
    one = before[0][1].nbytes
    opened: list[str] = []
    read = Image.open

    def counting(file: Path) -> Image.Image:
        opened.append(file.name)
        return read(file)

    monkeypatch.setattr(Image, "open", counting)
    samples.spare = 2 * one + 1
    for names in (["0.png", "1.png", "2.png", "3.png"], ["2.png", "3.png"], ["2.png", "3.png"]):
        opened.clear()
        after = [(key, feed["x"]) for key, feed in samples.items()]
        assert opened == names
        assert [key for key, _ in after] == [key for key, _ in before]
        assert all(np.array_equal(x, y) for (_, x), (_, y) in zip(before, after, strict=True))
    assert samples.spare == 1


def test_a_thinned_folder_has_its_own_images(tmp_path: Path) -> None:
    save_images(tmp_path, *(f"{i}.png" for i in range(6)))
    samples = open_samples(tmp_path, image_input(), RAW)
    assert isinstance(samples, Images)
    samples.spare = 2**20
    values = [int(feed["x"].max()) for _, feed in samples.items()]
    few = data.thinned(samples, 3)
    assert [int(feed["x"].max()) for _, feed in few.items()] == values[::2]


# -- labels ---------------------------------------------------------------------------------------


def test_class_folders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    save_images(tmp_path, "dog/1.png", "cat/deep/2.png", "cat/1.png", "eel/1.png")
    samples = open_samples(tmp_path, image_input(), RAW, labels="auto")
    assert (files_of(samples), samples.labels) == (
        ["1.png", "2.png", "1.png", "1.png"],
        [0, 0, 1, 2],
    )
    assert open_samples(tmp_path, image_input(), RAW).labels is None
    few = open_samples(tmp_path, image_input(), RAW, 2, seed=3, labels="auto")
    classes = {"cat": 0, "dog": 1, "eel": 2}
    assert isinstance(few, Images)
    assert few.labels == [classes[f.relative_to(tmp_path).parts[0]] for f in few.files]


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX"])
def test_hidden_folders_are_no_classes(tmp_path: Path, hidden: str, filled: bool) -> None:
    save_images(tmp_path, "dog/1.png", "eel/1.png", "fox/1.png")
    (tmp_path / hidden).mkdir()
    if filled:
        save_images(tmp_path / hidden, "1.png")
    samples = open_samples(tmp_path, image_input(), RAW, labels="auto")
    assert isinstance(samples, Images)
    assert [file.parent.name for file in samples.files] == ["dog", "eel", "fox"]
    assert samples.labels == [0, 1, 2]
    assert samples.skipped == ({str(tmp_path / hidden): "a hidden folder"} if filled else {})


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["only/1.png"], ""),
        (["1.png", "2.png"], ""),
        (["only/1.png", "1.png"], ""),
        (["a/1.png", "b/1.png", "c.png"], "1 images lie beside the class folders, first c.png"),
    ],
)
def test_other_folders_are_no_classes(tmp_path: Path, names: list[str], why: str) -> None:
    save_images(tmp_path, *names)
    samples = open_samples(tmp_path, image_input(), RAW, labels="auto")
    assert isinstance(samples, Images)
    assert samples.labels is None
    assert samples.unlabeled == why
    samples = open_samples(tmp_path, image_input(), RAW)
    assert isinstance(samples, Images)
    assert not samples.unlabeled


def test_a_csv_gives_labels_by_path_or_name(tmp_path: Path) -> None:
    images = tmp_path / "images"
    save_images(images, "a.png", "b/a.png", "c.png")
    table = tmp_path / "labels.csv"
    table.write_text("name,class\nc.png,7\na.png, 3\nb/a.png,5\nother.png,1\n\n")
    assert open_samples(images, image_input(), RAW, labels=table).labels == [3, 5, 7]
    table.write_text("a.png,3\n")
    with pytest.raises(InputError, match=r"1 images have no class in it, first c\.png"):
        open_samples(images, image_input(), RAW, labels=table)
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        open_samples(images, image_input(), RAW, labels=table)


@pytest.mark.parametrize("source", ["images", "x.npz", "x.npy", "feeds"])
def test_a_csv_that_is_missing_or_has_no_images_is_refused(tmp_path: Path, source: str) -> None:
    save_images(tmp_path / "images", "a.png")
    x = np.zeros((2, 3, 4, 4), np.float32)
    np.savez(tmp_path / "x.npz", x=x, labels=[0, 1])
    np.save(tmp_path / "x.npy", x)
    where: Any = [{"x": x}] if source == "feeds" else tmp_path / source
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        open_samples(where, image_input(), RAW, labels=tmp_path / "none.csv")
    (tmp_path / "labels.csv").write_text("a.png,1\n")
    if source == "images":
        assert open_samples(where, image_input(), RAW, labels=tmp_path / "labels.csv").labels == [1]
        return
    with pytest.raises(UsageError, match="an array named labels"):
        open_samples(where, image_input(), RAW, labels=tmp_path / "labels.csv")


# -- arrays ---------------------------------------------------------------------------------------


def test_an_npy_feeds_the_first_input(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float64).reshape(4, 3, 2)
    np.save(tmp_path / "x.npy", x)
    samples = open_samples(tmp_path / "x.npy", [Input("x", FLOAT, None)], RAW)
    found = list(samples.items())
    assert [key for key, _ in found] == [0, 1, 2, 3]
    assert all(feed["x"].dtype == FLOAT for _, feed in found)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for _, feed in found]), x)


def test_an_npz_feeds_every_input_by_name(tmp_path: Path) -> None:
    inputs = [Input("a", FLOAT, (None, 2)), Input("b", np.dtype(np.int64), (None,))]
    a, b = np.random.default_rng(0).random((9, 2)).astype(np.float32), np.arange(9)
    np.savez(tmp_path / "x.npz", b=b, a=a, labels=b % 3, other=np.zeros(2))
    samples = open_samples(tmp_path / "x.npz", inputs, RAW, size=4, seed=1, labels="auto")
    assert samples.labels == list(b % 3)
    rows = []
    for key, feed in samples.items():
        rows.append(key)
        assert list(feed) == ["a", "b"]
        np.testing.assert_array_equal(feed["a"], a[key : key + 1])
        np.testing.assert_array_equal(feed["b"], b[key : key + 1])
    assert rows == sorted(set(rows))
    assert samples.total == len(rows) == 4
    assert open_samples(tmp_path / "x.npz", inputs, RAW).labels is None


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"a": np.zeros((3, 2))}, "no array named x; the model's inputs are x, the file holds a"),
        ({}, "the file holds nothing"),
        ({"x": np.zeros((0, 2))}, "empty"),
        ({"x": np.zeros(())}, "empty"),
        ({"x": np.array([None, "a"])}, r"not a readable \.npz file"),
    ],
)
def test_an_npz_must_hold_the_inputs(
    tmp_path: Path, arrays: dict[str, Any], complaint: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CalibrationError, match=complaint):
        open_samples(tmp_path / "x.npz", [Input("x", FLOAT, None)], RAW)


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros((3, 2)), b=np.zeros((4, 2)))
    with pytest.raises(CalibrationError, match="different lengths"):
        open_samples(tmp_path / "x.npz", [Input(n, FLOAT, None) for n in "ab"], RAW)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    file = tmp_path / f"x{suffix}"
    x = np.random.default_rng(0).random((50, 4))
    np.save(file, x) if suffix == ".npy" else np.savez_compressed(file, x=x)
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[1 if suffix == ".npy" else len(good) // 2] ^= 0xFF
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"empty": b"", "text": b"no numbers", "cut": good[:-300], "flipped": flipped}[damage]
        )
    with pytest.raises(CalibrationError, match="not a readable") as caught:
        open_samples(file, [Input("x", FLOAT, None)], RAW)
    assert "\n" not in str(caught.value)


def test_a_wrong_suffix_is_refused(tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    np.savez(tmp_path / "a.npz", x=x)
    np.save(tmp_path / "b.npy", x)
    for old, new in [("a.npz", "c.npy"), ("b.npy", "d.npz")]:
        wrong = (tmp_path / old).rename(tmp_path / new)
        with pytest.raises(CalibrationError, match="not a readable"):
            open_samples(wrong, [Input("x", FLOAT, None)], RAW)


# -- what no source can give ----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["images", "x.npy", "feeds"])
@pytest.mark.parametrize(
    ("inputs", "size", "seed", "error", "complaint"),
    [
        (image_input(), 0, 0, UsageError, "0 samples: give 1 or more"),
        (image_input(), -3, 0, UsageError, "-3 samples: give 1 or more"),
        (image_input(), 1, -1, UsageError, "seed -1: give 0 or more"),
        ([], 1, 0, InputError, "the model has no inputs"),
    ],
)
def test_wrong_calls_are_refused(
    tmp_path: Path,
    source: str,
    inputs: list[Input],
    size: int,
    seed: int,
    error: type[Exception],
    complaint: str,
) -> None:
    save_images(tmp_path / "images", "a.png")
    x = np.zeros((2, 3, 4, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    where: Any = [{"x": x}] if source == "feeds" else tmp_path / source
    with pytest.raises(error, match=complaint):
        open_samples(where, inputs, RAW, size, seed)


# -- batches --------------------------------------------------------------------------------------


def arrays(count: int, *shape: int) -> Arrays:
    x = np.arange(count * int(np.prod(shape)), dtype=np.float32).reshape(count, *shape)
    return Arrays({"x": x}, range(count))


@given(st.integers(1, 20), st.integers(1, 7), st.none() | st.integers(1, 7))
def test_every_sample_counts_once(count: int, size: int, fixed: int | None) -> None:
    samples = arrays(count, 2)
    found = list(batches(samples, [Input("x", FLOAT, (fixed, 2))], size))
    rows = np.concatenate([batch.trim(batch.feeds["x"]) for batch in found])
    np.testing.assert_array_equal(rows, samples.arrays["x"])
    assert [key for batch in found for key in batch.keys] == list(range(count))
    assert [batch.valid for batch in found] == [len(batch.keys) for batch in found]
    sizes = {len(batch.feeds["x"]) for batch in found}
    assert sizes == {fixed} if fixed else max(sizes) <= size


def test_a_short_last_batch_is_filled_with_its_own_samples() -> None:
    *_, last = batches(arrays(10, 1), [Input("x", FLOAT, (4, 1))], 64)
    assert last.feeds["x"].ravel().tolist() == [8, 9, 8, 9]
    assert (last.keys, last.valid) == ([8, 9], 2)
    assert last.trim(np.arange(12).reshape(4, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    for whole in (np.arange(3), np.array(5), np.zeros((8, 4))):
        assert last.trim(whole) is whole


def test_sizes_never_share_a_batch(tmp_path: Path) -> None:
    for name, size in zip("abcde", [(4, 4), (4, 4), (4, 5), (4, 4), (4, 4)], strict=True):
        save_images(tmp_path, f"{name}.png", size=size)
    samples = open_samples(tmp_path, image_input(), RAW)
    found = list(batches(samples, image_input(), 64))
    assert [batch.keys for batch in found] == [[0, 1], [2], [3, 4]]
    assert [batch.feeds["x"].shape[2:] for batch in found] == [(4, 4), (5, 4), (4, 4)]
    found = list(batches(samples, image_input(4, 3, None, None), 1))
    assert [batch.valid for batch in found] == [2, 1, 2]
    assert {len(batch.feeds["x"]) for batch in found} == {4}


def test_feeds_are_passed_on_as_they_come() -> None:
    feeds = [{"x": np.full((rows, 2), rows, np.float32)} for rows in (3, 1, 2)]
    inputs = [Input("x", FLOAT, (None, 2))]
    found = list(batches(open_samples(feeds, inputs, RAW), inputs, 64))
    assert [batch.keys for batch in found] == [[0, 1, 2], [3], [4, 5]]
    assert all(b.feeds["x"] is f["x"] for b, f in zip(found, feeds, strict=True))
    assert sum(b.valid for b in batches(open_samples(feeds, inputs, RAW, 3), inputs, 64)) == 3


def test_an_iterator_can_be_read_again() -> None:
    feeds = [{"x": np.full((2, 2), i, np.float32)} for i in range(3)]
    samples = open_samples(iter(feeds), image_input(), RAW)
    for _ in range(2):
        assert [(key, feed["x"][0, 0]) for key, feed in samples.items()] == [(0, 0), (2, 1), (4, 2)]


@pytest.mark.parametrize("nothing", [[], iter([])], ids=["a list", "an iterator"])
def test_no_feeds_at_all_are_refused(nothing: Any) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        list(open_samples(nothing, image_input(), RAW).items())


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (Input("y", FLOAT, (None, 2)), "no data for input y; given: x"),
        (Input("x", FLOAT, (None, 3)), r"input x takes \['any', 3\], the data are \[2, 2\]"),
        (Input("x", FLOAT, (None, 2, 1)), r"takes \['any', 2, 1\], the data are \[2, 2\]"),
    ],
)
def test_data_that_do_not_fit_are_refused(wanted: Input, complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        list(batches(arrays(2, 2), [wanted], 2))


@pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
def test_thinning_is_even_and_leaves_the_source_alone(tmp_path: Path, size: int) -> None:
    files = save_images(tmp_path, *(f"{i}.png" for i in range(10)))
    images = open_samples(tmp_path, image_input(), RAW)
    feeds = Feeds([{"x": np.zeros((1, 2))}] * 10, 10)
    few = data.thinned(images, size)
    assert isinstance(few, Images)
    positions = [files.index(file) for file in few.files]
    assert 1 <= len(positions) <= size
    assert len(set(np.diff(positions))) <= 1
    assert list(data.thinned(arrays(10, 2), size).rows) == positions
    assert len(list(data.thinned(feeds, size).items())) == min(size, 10)
    assert images.total == feeds.size == 10


# -- how many at once -----------------------------------------------------------------------------


def session(text: str) -> Session:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> main {text}')
    return Session(from_proto(proto))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("(float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Relu(x) }", 64),
        ("(float[5, 3, 4] x) => (float[5, 3, 4] y) { y = Relu(x) }", 5),
        ("(float[1, 3, 4] x) => (float[1, 3, 4] y) { y = Relu(x) }", 1),
        # One sample only: the shape is written out, and two samples do not fit it,
        (
            "(float[N, 3, 4] x) => (float[1, 12] y) <int64[2] s = {1, 12}>"
            " { y = Reshape(x, s) }",
            1,
        ),
        # or they do, and come out as one,
        (
            "(float[N, 3, 4] x) => (float[1, M] y) <int64[2] s = {1, -1}>"
            " { y = Reshape(x, s) }",
            1,
        ),
        # or there is one number for them all.
        ("(float[N, 3, 4] x) => (float y) { y = ReduceMean<keepdims=0>(x) }", 1),
    ],
)  # fmt: skip
def test_the_batch_size_is_what_the_model_can_take(text: str, size: int) -> None:
    assert batch_size(session(text), arrays(10, 3, 4)) == size


@pytest.mark.parametrize(("elements", "size"), [(1, 64), (2**9, 64), (2**10, 32), (2**16, 1)])
def test_large_samples_make_small_batches(elements: int, size: int) -> None:
    relu = session("(float[N, C] x) => (float[N, C] y) { y = Relu(x) }")
    assert batch_size(relu, arrays(3, elements)) == size


def test_ready_feeds_are_not_regrouped() -> None:
    relu = session("(float[N, C] x) => (float[N, C] y) { y = Relu(x) }")
    assert batch_size(relu, Feeds([{"x": np.zeros((3, 2), np.float32)}], 9)) == 1


def test_a_batch_without_filling_is_not_trimmed() -> None:
    x = np.zeros((2, 3))
    assert Batch({"x": x}, [0, 1], 2).trim(x) is x
