"""Train the digits demo network and write it, its images and its manifest entry.

Run from anywhere, with the `zoo` extra installed: `python models/train_digits.py`.
"""

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import tomli_w
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, relu

SEED = 0
EPOCHS = 60
BATCH = 50
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WIDTH = 40
TRAIN, CALIBRATION = 900, 300
PIXEL_MAX = 16

MODELS = Path(__file__).resolve().parent
DEMO = MODELS.parent / "onnxq" / "demo"
MODEL_FILE = DEMO / "digits.onnx"
DATA_FILE = DEMO / "digits.npz"
MANIFEST = MODELS / "manifest.toml"

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, width, H, W)` to the same shape."""
        y = relu(self.bn1(self.conv1(x)))
        return relu(x + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """A small classifier with the layers quantization must handle.

    Full and depthwise convolutions, batch normalization, ReLU and ReLU6, residual additions, a
    global mean and a linear head.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.block1 = Residual(width)
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.block2 = Residual(2 * width)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(N, 1, 8, 8)` in [0, 1] to logits `(N, 10)`."""
        x = self.block1(self.stem(image))
        x = self.block2(self.pointwise(self.depthwise(x)))
        logits: Tensor = self.head(self.dropout(x).mean(dim=(2, 3)))
        return logits


class Split(NamedTuple):
    """The images of each part, `(N, 1, 8, 8)`; the calibration images come without labels."""

    train: Bytes
    train_labels: Bytes
    calib: Bytes
    test: Bytes
    test_labels: Bytes


def load_split() -> Split:
    """Split the digits into training, calibration and test images, stratified by class."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    labels = digits.target.astype(np.uint8)
    train, rest, train_labels, rest_labels = train_test_split(
        images, labels, train_size=TRAIN, stratify=labels, random_state=SEED
    )
    calib, test, _, test_labels = train_test_split(
        rest, rest_labels, train_size=CALIBRATION, stratify=rest_labels, random_state=SEED
    )
    return Split(train, train_labels, calib, test, test_labels)


def scale(images: Bytes) -> Floats:
    """Return pixels 0..16 as floats in [0, 1], which is what the network takes."""
    return images.astype(np.float32) / np.float32(PIXEL_MAX)


def shift(images: Tensor) -> Tensor:
    """Move each image by -1, 0 or 1 pixel along each axis, filling with background."""
    count, _, height, width = images.shape
    windows = pad(images, (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)
    dy, dx = torch.randint(3, (2, count))
    return windows[torch.arange(count), :, dy, dx]


def batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled, shifted batches."""
    for rows in torch.randperm(len(images)).view(-1, BATCH):
        yield shift(images[rows]), labels[rows]


def train(images: Bytes, labels: Bytes) -> DigitsNet:
    """Train for a fixed number of epochs: nothing is chosen by looking at other images."""
    x, y = torch.from_numpy(scale(images)), torch.from_numpy(labels).long()
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for batch, target in batches(x, y):
            loss = cross_entropy(net(batch), target)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        if epoch % 10 == 0:
            print(f"epoch {epoch:3d}  training loss {total / len(x):.4f}")
    return net.eval()


def export(net: DigitsNet, path: Path) -> None:
    """Write `net` as ONNX with its batch normalization unfolded."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 8, 8),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        # The exporter folds BatchNormalization into Conv in every mode but PRESERVE, which also
        # keeps the evaluation semantics of a network in eval mode.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )


def run(path: Path, images: Floats) -> Floats:
    """Return the logits ONNX Runtime computes for `images`."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    return np.asarray(logits, dtype=np.float32)


def check(net: DigitsNet, path: Path, images: Floats) -> None:
    """Raise unless the file is valid and computes what `net` computes."""
    onnx.checker.check_model(path, full_check=True)
    with torch.inference_mode():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(path, images), expected, rtol=0, atol=1e-4)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entry(net: nn.Module, correct: int, count: int) -> dict[str, Any]:
    """Describe the written files and how they came about as one `[[model]]` of the manifest."""
    return {
        "name": "digits-cnn",
        "file": f"../onnxq/demo/{MODEL_FILE.name}",
        "sha256": digest(MODEL_FILE),
        "params": sum(p.numel() for p in net.parameters()),
        "input": {
            "name": "image",
            "shape": ["N", 1, 8, 8],
            "scaling": f"float32, pixel / {PIXEL_MAX}",
        },
        "output": {"name": "logits", "shape": ["N", 10]},
        "accuracy": {
            "top1": round(correct / count, 4),
            "correct": correct,
            "images": count,
            "split": "test",
        },
        "training": {
            "command": "python models/train_digits.py",
            "seed": SEED,
            "epochs": EPOCHS,
            "images": TRAIN,
            "torch": torch.__version__,
        },
        "data": {
            "file": f"../onnxq/demo/{DATA_FILE.name}",
            "sha256": digest(DATA_FILE),
            "calibration_images": CALIBRATION,
            "test_images": count,
        },
        "source": {
            "images": "sklearn.datasets.load_digits: the 1,797 images of the test part of UCI "
            "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998)",
            "url": "https://doi.org/10.24432/C50P49",
            "license": "CC-BY-4.0",
        },
    }


def record(model: dict[str, Any]) -> None:
    """Put `model` into the manifest in place of the entry of the same name."""
    known = tomllib.loads(MANIFEST.read_text())["model"] if MANIFEST.exists() else []
    others = [m for m in known if m["name"] != model["name"]]
    MANIFEST.write_text(tomli_w.dumps({"model": [*others, model]}))


def main() -> None:
    """Train, export, check, measure and record."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    # The order of floating-point sums, and so the trained weights, depends on the thread count.
    torch.set_num_threads(1)

    split = load_split()
    np.savez_compressed(DATA_FILE, calib=split.calib, test=split.test, labels=split.test_labels)

    net = train(split.train, split.train_labels)
    export(net, MODEL_FILE)
    test = scale(split.test)
    check(net, MODEL_FILE, test)

    correct = int((run(MODEL_FILE, test).argmax(axis=1) == split.test_labels).sum())
    record(entry(net, correct, len(test)))
    print(f"test top-1 {correct / len(test):.2%} ({correct} of {len(test)} images)")


if __name__ == "__main__":
    main()
