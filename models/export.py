"""Export trained networks to ONNX, the ways people do: `python models/export.py NAME...`.

Writes the file of the zoo, the test inputs beside it and the entry in the manifest. Nothing of the
machine is left in the files: what torch writes on the nodes about source lines is taken out.
"""

import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import tomli_w
import torch
from datasets import DIGITS, Dataset
from networks import NETWORKS
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from train import CHECKPOINTS, RECIPES
from zoo import MANIFEST, ROOT, digest, entries, score

from onnxq.graph.protos import without_traces
from onnxq.runtime import Session
from onnxq.samples.preprocess import METADATA_KEY

# The form of the zoo's file, first, and of its test inputs.
FORMS = ("torchscript", "dynamo")
OTHER_FORMS = {
    "digits-cnn": ("unfolded", "torchscript", "dynamo"),
    "mobilenetv2": ("torchscript", "dynamo", "unfolded"),
}
FILES = {"digits-cnn": "../onnxq/demo/digits.onnx"}
DIGITS_DATA = "../onnxq/demo/digits.npz"
# Weights smaller than this, in bytes, are not worth a reference.
SMALL = 1024
# Two exporters fold batch normalization in different orders of float32.
ROUNDING = 1e-5
TOLERANCE = 1e-3


def trained(name: str) -> nn.Module:
    """The network with the weights of its last checkpoint."""
    net = NETWORKS[name]()
    saved = torch.load(CHECKPOINTS / f"{name}.pt", map_location="cpu")
    net.load_state_dict(saved["net"])
    return net.eval()


def export(net: nn.Module, form: str, dataset: Dataset, path: Path) -> None:
    """Write one form of a network: its batch open, its preprocessing in the metadata."""
    example = (torch.zeros(2, *dataset.shape),)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "dynamo":
            shapes = ({0: torch.export.Dim("N")},)
            options = {"dynamic_shapes": shapes, "external_data": False, "verbose": False}
            torch.onnx.export(net, example, path, dynamo=True, **names, **options)
        else:
            options = {"dynamic_axes": {"image": {0: "N"}, "logits": {0: "N"}}}
            if form == "unfolded":
                # Every mode but PRESERVE folds BatchNormalization into Conv.
                options |= {
                    "training": torch.onnx.TrainingMode.PRESERVE,
                    "do_constant_folding": False,
                }
            torch.onnx.export(
                net, example, path, dynamo=False, opset_version=17, **names, **options
            )
    model = onnx.load(path)
    for node in model.graph.node:
        node.CopyFrom(without_traces({"": node})[""])
    model.graph.ClearField("value_info")
    del model.graph.metadata_props[:], model.metadata_props[:]
    if dataset is not DIGITS:  # whose pixels end at 16: they come as tensors, not as images
        model.metadata_props.add(key=METADATA_KEY, value=dataset.preprocess.model_dump_json())
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        tensor.ClearField("doc_string")
    path.write_bytes(model.SerializeToString(deterministic=True))


def borrow(path: Path, lender: Path) -> None:
    """Let a test input refer to the equal weights that lie in another file beside it.

    The repository then holds each weight once. A weight within rounding of the lender's is equal.
    """
    content = lender.read_bytes()
    model = onnx.load(path)
    theirs = onnx.load(lender, load_external_data=False).graph.initializer
    lent = {t.name: (numpy_helper.to_array(t), t.raw_data) for t in theirs if not t.external_data}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < SMALL or tensor.data_type != TensorProto.FLOAT:
            continue
        x = numpy_helper.to_array(tensor)
        for y, raw in lent.values():
            if x.shape == y.shape and np.abs(x - y).max() <= ROUNDING * np.abs(y).max():
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": lender.name, "offset": content.index(raw), "length": len(raw)}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                break
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_digits(path: Path) -> None:
    """Write the demo's images: calibration without labels, test with them."""
    calib, test = (DIGITS.read(path, part) for part in ("calib", "val"))
    arrays = {"calib": calib.pixels, "test": test.pixels, "labels": test.labels.byte()}
    np.savez_compressed(path, **{name: x.numpy() for name, x in arrays.items()})


def check(net: nn.Module, dataset: Dataset, path: Path) -> None:
    """Raise unless a file is valid and computes what the network computes."""
    onnx.checker.check_model(path, full_check=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *dataset.shape, generator=generator)
    with torch.inference_mode():
        expected = net(x).numpy()
    found = Session(path).run({"image": x.numpy()})["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def macs(net: nn.Module, dataset: Dataset) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image."""
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *dataset.shape))
    return int(counter.get_total_flops()) // 2


def describe(name: str, net: nn.Module, paths: dict[str, Path], data: Path) -> dict[str, Any]:
    """The entry of the manifest; measures the accuracy of the zoo's file."""
    recipe = RECIPES[name]
    dataset = recipe.dataset
    saved = torch.load(CHECKPOINTS / f"{name}.pt", map_location="cpu")
    (form, path), *others = paths.items()
    with torch.inference_mode():
        shape = list(net(torch.zeros(1, *dataset.shape)).shape[1:])
    files = [{"file": str(p.relative_to(ROOT)), "sha256": digest(p), "form": f} for f, p in others]
    entry: dict[str, Any] = {
        "name": name,
        "file": FILES.get(name, path.name),
        "sha256": digest(path),
        "form": form,
        "parameters": sum(p.numel() for p in net.parameters()),
        "macs": macs(net, dataset),
        "input": {
            "name": "image",
            "shape": ["N", *dataset.shape],
            "preprocess": dataset.preprocess.model_dump(mode="json", exclude_none=True),
        },
        "output": {"name": "logits", "shape": ["N", *shape]},
        "accuracy": {"of": "pixels" if dataset.painted else "images"},
        "training": {
            "command": f"python models/train.py {name}",
            "seed": saved["seed"],
            "epochs": saved["epochs"],
            "torch": saved["torch"],
        },
        "exports": files,
    }
    if dataset is DIGITS:
        write_digits(ROOT / DIGITS_DATA)
        entry["data"] = {"file": DIGITS_DATA, "sha256": digest(ROOT / DIGITS_DATA)}
        images = "the 597 digits of scikit-learn's load_digits held out by a stratified split"
    else:
        images = "the 5,000 images under val of the folder given with --data"
    right, count = score(entry, path, data)
    targets = "; targets are synthetic shapes drawn on them" if dataset.painted else ""
    entry["accuracy"] |= {
        "top1": round(right / count, 4),
        "correct": right,
        "count": count,
        "split": images + targets,
    }
    return entry


def record(entry: dict[str, Any]) -> None:
    """Put an entry into the manifest in place of the one of the same name, in the zoo's order."""
    known = {e["name"]: e for e in entries()} | {entry["name"]: entry}
    models = [known[name] for name in NETWORKS if name in known]
    MANIFEST.write_text(tomli_w.dumps({"model": models}), encoding="utf-8")


@click.command()
@click.argument("names", type=click.Choice(list(NETWORKS)), nargs=-1, required=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("../shared/data/cifar10"),
    show_default=True,
    help="Folder of the images to measure on.",
)
def main(names: tuple[str, ...], data: Path) -> None:
    """Export the trained networks NAMES and record them in the manifest."""
    for name in names:
        net, dataset = trained(name), RECIPES[name].dataset
        paths: dict[str, Path] = {}
        for form in OTHER_FORMS.get(name, FORMS):
            path = ROOT / (f"{name}.{form}.onnx" if paths else FILES.get(name, f"{name}.onnx"))
            export(net, form, dataset, path)
            for lender in paths.values():
                if lender.parent == path.parent:
                    borrow(path, lender)
            check(net, dataset, path)
            paths[form] = path
        entry = describe(name, net, paths, data)
        record(entry)
        accuracy = entry["accuracy"]
        sizes = ", ".join(f"{form} {path.stat().st_size:,}" for form, path in paths.items())
        print(f"{name}: {accuracy['correct']} of {accuracy['count']} right; bytes: {sizes}")


if __name__ == "__main__":
    main()
