import shutil
from importlib import resources

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from onnxq.cli import main

PREPROCESS = 'color = "gray"\nscale = 0.004166666666666667\n'  # pixels 0..240 to 0..1


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The demo's model and data, as a user would have them.

    model.onnx, calib.npz and val.npz; images/, without labels; val/, in class folders; flat/ with
    labels.csv; gray.toml, which says how the images become inputs.
    """
    folder = tmp_path_factory.mktemp("digits")
    assets = resources.files("onnxq.demo")
    with resources.as_file(assets / "digits.onnx") as model:
        shutil.copy(model, folder / "model.onnx")
    with resources.as_file(assets / "digits.npz") as file:
        data = dict(np.load(file))
    calib, test = (data[part].reshape(-1, 1, 8, 8) for part in ("calib", "test"))
    np.savez(folder / "calib.npz", image=calib[:64].astype(np.float32) / 16)
    np.savez(
        folder / "val.npz",
        image=test[:100].astype(np.float32) / 16,
        labels=data["labels"][:100].astype(np.int64),
    )
    (folder / "gray.toml").write_text(PREPROCESS, encoding="utf-8")
    rows = []
    for i, (pixels, label) in enumerate(zip(test[:100, 0], data["labels"], strict=False)):
        image = Image.fromarray((15 * pixels).astype(np.uint8))
        for place in (f"val/{label}", "flat"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            image.save(folder / place / f"{i}.png")
        rows.append(f"{i}.png,{label}\n")
    (folder / "labels.csv").write_text("".join(rows), encoding="utf-8")
    (folder / "images").mkdir()
    for i, pixels in enumerate(calib[:40, 0]):
        Image.fromarray((15 * pixels).astype(np.uint8)).save(folder / f"images/{i}.png")
    return folder


@pytest.fixture
def here(digits, tmp_path, monkeypatch):
    """A copy of the digits to work in, as the current folder."""
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def onnxq():
    """Run a command line: its exit code, and what it said on either stream."""

    def run(*args):
        result = CliRunner().invoke(main, [str(a) for a in args], prog_name="onnxq")
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        return result

    return run
