"""Training the zoo: a killed run goes on where it was, and to the same weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="only training needs torch")
train = pytest.importorskip("train")

RECIPE = train.Recipe(3, train.DIGITS, batch=20, rate=0.1)


@pytest.fixture
def images() -> Iterator:
    """Forty random digits, and one thread, with which sums have one order."""
    draw, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(1)
    pixels = torch.randint(17, (40, 1, 8, 8), dtype=torch.uint8, generator=draw)
    yield train.Labeled(pixels, torch.randint(10, (40,), generator=draw))
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINTS", tmp_path / "checkpoints")


def weights(recipe, images, seed=0):
    return train.train("digits-cnn", recipe, images, seed, "cpu").state_dict()


@pytest.mark.parametrize("adam", [False, True])
def test_a_killed_training_goes_on_to_the_same_weights(images, adam, tmp_path, monkeypatch):
    recipe = train.replace(RECIPE, adam=adam, rate=1e-2)
    whole = weights(recipe, images)
    (tmp_path / "checkpoints" / "digits-cnn.pt").unlink()
    keep = train.keep

    def keep_and_die(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train, "keep", keep_and_die)
        weights(recipe, images)
    left = []
    with monkeypatch.context() as patched:
        patched.setattr(train, "keep", lambda *arguments: left.append(arguments[-1]))
        again = weights(recipe, images)
    assert left == [2, 3]
    assert all(torch.equal(again[name], w) for name, w in whole.items())
    first = train.NETWORKS["digits-cnn"]().state_dict()
    assert not all(torch.equal(first[name], w) for name, w in whole.items())


def test_a_checkpoint_of_another_training_is_refused(images):
    weights(RECIPE, images)
    for recipe, seed in ((RECIPE, 1), (train.replace(RECIPE, epochs=4), 0)):
        with pytest.raises(train.click.UsageError, match="of another seed or length"):
            weights(recipe, images, seed)


def test_the_rate_rises_and_falls_to_zero():
    rates = [RECIPE.rate_at(i / 100) for i in range(101)]
    peak = rates.index(max(rates))
    assert (rates[0], peak, rates[peak]) == (0, 15, pytest.approx(0.1))
    assert rates[-1] == pytest.approx(0, abs=1e-7)
    assert rates[:16] == sorted(rates[:16]) and rates[15:] == sorted(rates[15:], reverse=True)


def test_early_epochs_see_smaller_images():
    recipe = train.Recipe(10, grows=True)
    assert [recipe.size(e) for e in range(10)] == [16] * 4 + [24] * 3 + [32] * 3
    assert {train.replace(recipe, grows=False).size(e) for e in range(10)} == {32}


def test_images_are_moved_and_mirrored_and_keep_their_labels():
    torch.manual_seed(0)
    some = train.Labeled(torch.arange(1, 3 * 32 * 32 + 1).view(1, 3, 32, 32), torch.tensor([7]))
    found = train.CIFAR10.augment(train.Labeled(*(x.repeat(50, *[1] * (x.ndim - 1)) for x in some)))
    assert (found.labels == 7).all() and found.pixels.shape == (50, 3, 32, 32)
    windows = torch.nn.functional.pad(some.pixels, (4,) * 4).unfold(2, 32, 1).unfold(3, 32, 1)
    windows = windows[0].movedim(0, 2).reshape(-1, 3, 32, 32)
    known = torch.cat([windows, windows.flip(3)]).flatten(1)
    hits = [(known == x).all(1).nonzero() for x in found.pixels.flatten(1)]
    assert all(len(hit) == 1 for hit in hits)
    assert len({int(hit) for hit in hits}) > 25
