"""Images to measure on where a fifth of them tells as much."""

from pathlib import Path

import pytest

CIFAR10 = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


@pytest.fixture(scope="session")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``val`` has the first 100 labeled images of each class."""
    folder = tmp_path_factory.mktemp("cifar10")
    for kind in (CIFAR10 / "val").iterdir():
        (folder / "val" / kind.name).mkdir(parents=True)
        for image in sorted(kind.iterdir())[:100]:
            (folder / "val" / kind.name / image.name).symlink_to(image)
    return folder
