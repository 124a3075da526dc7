"""Real models on real images: coverage, accuracy, size. They lie beside a checkout, not in it."""

import subprocess
import sys
from pathlib import Path

import pytest

import onnxq
from onnxq.evidence.evaluate import compare
from onnxq.recipes import build
from onnxq.runtime import Session
from onnxq.samples.preprocess import read
from onnxq.samples.sources import open_samples

SHARED = Path(__file__).parents[2].parent / "shared"
RESNET = SHARED / "models" / "resnet20_cifar10.onnx"
DETECTOR = SHARED / "models" / "version-RFB-320.onnx"
SIDECAR = SHARED / "models" / "version-RFB-320.preprocess.toml"
CALIB = SHARED / "data" / "cifar10" / "calib"
VAL = SHARED / "data" / "cifar10" / "val"
PHOTOS = SHARED / "data" / "photos"

pytestmark = pytest.mark.skipif(
    not (RESNET.exists() and VAL.exists()), reason="the shared models and images are not here"
)


@pytest.mark.slow
def test_resnet20_at_8_bits_is_as_accurate_as_float(tmp_path: Path) -> None:
    report = onnxq.convert(
        RESNET, tmp_path / "q.onnx", calib=CALIB, calib_size=512, validate=VAL, max_drop=0.2
    )
    found = report.validation
    assert found is not None
    assert found.samples == 5000
    assert found.float_top1 is not None
    assert found.agreement is not None
    assert 88.0 < found.float_top1.percent < 89.5
    assert found.drop is not None
    assert found.drop <= 0.2
    assert found.agreement.percent >= 98.0
    assert report.exit_code == 0
    assert (len(report.kernels.integer), report.kernels.floating) == (20, [])
    assert report.bytes <= 0.31 * report.float_bytes
    assert not report.warnings


@pytest.mark.slow
def test_outlier_aware_ranges_per_tensor_win_back_half_of_what_4_bits_lose(
    tmp_path: Path, some: Path
) -> None:
    plain = {"recipe": "vanilla", "bits": 4, "per_tensor": True}
    searched = build(bits=4, weight_range="oaq-mse", per_channel=False)
    drops = {}
    for name, flags in {
        "max": plain,
        "oaq": plain | {"oaq": True},
        "oaq-mse": {"recipe": searched},
    }.items():
        data = {"calib": CALIB, "validate": some / "val"}
        report = onnxq.convert(RESNET, tmp_path / f"{name}.onnx", **data, **flags)
        assert len(report.kernels.integer) == 20
        assert report.bytes <= 0.19 * report.float_bytes
        assert report.validation is not None
        assert report.validation.drop is not None
        drops[name] = report.validation.drop
    assert drops["max"] > 8.0
    assert drops["oaq"] < drops["max"] - 3.0
    assert drops["oaq-mse"] < drops["max"] / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "act_bits", "most"), [(4, 8, 0.5), (3, 8, 1.3), (4, 4, 1.5), (2, 8, 5.0)]
)
def test_resnet20_loses_little_at_any_width(
    tmp_path: Path, some: Path, bits: int, act_bits: int, most: float
) -> None:
    report = onnxq.convert(
        RESNET,
        tmp_path / "q.onnx",
        bits=bits,
        act_bits=act_bits,
        calib=CALIB,
        validate=some / "val",
    )
    assert report.validation is not None
    assert report.validation.samples == 1000
    assert report.validation.drop is not None
    assert report.validation.drop <= most
    assert (len(report.kernels.integer), report.kernels.floating) == (20, [])


def test_resnet20_at_4_bits_per_channel_fits_in_a_fifth(tmp_path: Path) -> None:
    report = onnxq.convert(RESNET, tmp_path / "q.onnx", bits=4, calib=CALIB, calib_size=64)
    assert report.bytes <= 0.19 * report.float_bytes
    assert len(report.kernels.integer) == 20
    assert report.fidelity is not None
    assert report.fidelity.outputs["logits"].sqnr >= 20.0


@pytest.mark.parametrize(("bits", "quality", "least"), [(8, "fast", 42.0), (4, "balanced", 26.0)])
def test_the_detector_converts_as_it_was_exported(
    tmp_path: Path, bits: int, quality: str, least: float
) -> None:
    report = onnxq.convert(
        DETECTOR, tmp_path / "q.onnx", bits=bits, quality=quality, calib=PHOTOS, calib_size=32
    )
    assert (len(report.kernels.integer), report.kernels.floating) == (52, [])
    assert len(report.outcomes["absorb-batchnorm"].edits) == 35
    assert f"opset raised from 9 to {21 if bits == 4 else 13}" in report.notes
    assert report.difference is not None
    assert report.difference < 1e-5
    samples = open_samples(
        PHOTOS,
        Session(DETECTOR).inputs,
        read(SIDECAR),
    )
    found = compare(Session(DETECTOR), Session(tmp_path / "q.onnx"), samples)
    assert found.samples == 128
    assert {name: f.sqnr >= least for name, f in found.outputs.items()} == {
        "scores": True,
        "boxes": True,
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    def converted(name: str, seed: int) -> bytes:
        onnxq.convert(RESNET, tmp_path / name, calib=CALIB, calib_size=32, seed=seed)
        return (tmp_path / name).read_bytes()

    first = converted("a.onnx", 0)
    assert first == converted("b.onnx", 0)
    assert first != converted("c.onnx", 1)


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        code = (
            "import onnxq, resource, sys\n"
            f"onnxq.convert({str(RESNET)!r}, {str(tmp_path / 'm.onnx')!r}, calib={str(CALIB)!r}, "
            f"calib_size={count}, recipe='mse', force=True)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        # Elsewhere than here, where the sources would stand in for the installed package.
        return int(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path))

    assert peak(1024) <= 1.1 * peak(64)


@pytest.mark.slow
def test_resnet20_of_2_bits_with_an_sqnr_of_24_db_is_smaller_than_of_4_bits_and_as_good(
    tmp_path: Path, some: Path
) -> None:
    data = {"calib": CALIB, "verify": False}
    plain = onnxq.convert(RESNET, tmp_path / "plain.onnx", bits=2, validate=some / "val", **data)
    report = onnxq.convert(
        RESNET, tmp_path / "q.onnx", bits=2, min_sqnr=24, validate=some / "val", **data
    )
    four = onnxq.convert(RESNET, tmp_path / "four.onnx", bits=4, **data)
    assert plain.validation and report.validation and report.fit
    assert plain.validation.outputs["logits"].sqnr < 17
    assert (report.exit_code, report.fit.judges) == (0, 25)
    assert report.validation.outputs["logits"].sqnr > 23
    assert report.bytes < four.bytes
    assert report.validation.drop is not None
    assert report.validation.drop < 0.5
    assert report.validation.agreement is not None
    assert report.validation.agreement.percent > 97.0
