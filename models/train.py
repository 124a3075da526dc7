"""Train a network of the zoo: `python models/train.py NAME --data ../shared/data/cifar10`.

A killed run goes on from its last whole epoch when the command is given again.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from datasets import CIFAR10, DIGITS, SHAPES, Dataset, Labeled
from networks import NETWORKS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
# Early epochs may see smaller images, which cost less: side, and share of the epochs.
SIZES = ((0.5, 0.4), (0.75, 0.3), (1.0, 0.3))
WARMUP = 0.15


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        dataset: The images.
        batch: Images of a step.
        rate: Peak learning rate; it rises linearly over the first WARMUP of all steps and then
            falls to zero along a cosine.
        decay: Weight decay.
        adam: AdamW instead of SGD with Nesterov momentum, which does not train transformers well.
        grows: Early epochs see smaller images.
        half: bfloat16 on a CPU, too; depthwise convolutions are slower in it there.
    """

    epochs: int
    dataset: Dataset = CIFAR10
    batch: int = 128
    rate: float = 0.2
    decay: float = 5e-4
    adam: bool = False
    grows: bool = True
    half: bool = True

    def size(self, epoch: int) -> int:
        """Side of the images that an epoch sees, in pixels."""
        full, done = self.dataset.shape[-1], 0.0
        for side, share in SIZES if self.grows else ():
            done += share
            if epoch < round(done * self.epochs):
                return round(side * full)
        return full

    def rate_at(self, progress: float) -> float:
        """Learning rate after a share of all steps."""
        if progress < WARMUP:
            return self.rate * progress / WARMUP
        angle = torch.pi * (progress - WARMUP) / (1 - WARMUP)
        return self.rate * (1 + float(torch.cos(torch.tensor(angle)))) / 2


RECIPES = {
    "digits-cnn": Recipe(60, DIGITS, 50, 3e-3, 0.05, adam=True, grows=False, half=False),
    "resnet20": Recipe(30),
    "resnet56": Recipe(10),
    "densenet-bc-100": Recipe(5),
    "mobilenetv2": Recipe(12, decay=1e-4, half=False),
    "mobilenetv3": Recipe(40, decay=1e-4, half=False),
    "vit": Recipe(10, rate=1e-3, decay=0.05, adam=True, grows=False),
    "segmenter": Recipe(3, SHAPES, rate=0.05, grows=False),
}


def optimizer_of(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer; biases and what normalizes do not decay."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": others}]
    if recipe.adam:
        return torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=0.0)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)


def batches(images: Labeled, recipe: Recipe, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled and augmented batches, the incomplete last one left out."""
    order = torch.randperm(len(images.labels))
    for rows in order[: len(order) // recipe.batch * recipe.batch].view(-1, recipe.batch):
        some = recipe.dataset.augment(Labeled(images.pixels[rows], images.labels[rows]))
        yield recipe.dataset.tensor(some.pixels, size), some.labels


def accuracy(net: nn.Module, images: Labeled, dataset: Dataset, device: str) -> float:
    """Share of images, or of pixels, that are labeled right."""
    right = 0
    with torch.inference_mode():
        for x, y in zip(images.pixels.split(500), images.labels.split(500), strict=True):
            found = net(dataset.tensor(x).to(device)).argmax(1).cpu()
            right += int((found == y).sum())
    return right / images.labels.numel()


def train(name: str, recipe: Recipe, images: Labeled, seed: int, device: str) -> nn.Module:
    """Train for a fixed number of epochs: nothing is chosen by looking at other images."""
    torch.manual_seed(seed)
    net = NETWORKS[name]().to(device, memory_format=torch.channels_last)
    optimizer = optimizer_of(net, recipe)
    first = resume(name, recipe, seed, net, optimizer)
    half = recipe.half or device == "cuda"
    steps, start = len(images.labels) // recipe.batch, time.monotonic()
    cost = [recipe.size(epoch) ** 2 for epoch in range(recipe.epochs)]
    for epoch in range(first, recipe.epochs):
        torch.manual_seed(seed + 1000 * (epoch + 1))
        net.train()
        total, right, seen = 0.0, 0, 0
        for step, (x, y) in enumerate(batches(images, recipe, recipe.size(epoch))):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at((epoch + step / steps) / recipe.epochs)
            x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
            with torch.autocast(device, torch.bfloat16, enabled=half):
                logits = net(x)
            loss = cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, seen = total + loss.item() * y.numel(), seen + y.numel()
            right += int((logits.argmax(1) == y).sum())
        left = (time.monotonic() - start) * sum(cost[epoch + 1 :]) / sum(cost[first : epoch + 1])
        print(
            f"{name} epoch {epoch + 1}/{recipe.epochs}  size {recipe.size(epoch)}  "
            f"loss {total / seen:.4f}  training top-1 {right / seen:.2%}  {left / 60:.0f} min left",
            flush=True,
        )
        keep(name, recipe, seed, net, optimizer, epoch + 1)
    return net.eval()


def keep(
    name: str,
    recipe: Recipe,
    seed: int,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    done: int,
) -> None:
    """Write the checkpoint after ``done`` epochs, whole or not at all."""
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
    CHECKPOINTS.mkdir(exist_ok=True)
    temporary = CHECKPOINTS / f"{name}.tmp"
    torch.save(state | {"seed": seed, "epochs": recipe.epochs}, temporary)
    temporary.replace(CHECKPOINTS / f"{name}.pt")


def resume(
    name: str, recipe: Recipe, seed: int, net: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Load the checkpoint, if there is one; the number of epochs done.

    Raises:
        click.UsageError: It is of another training.
    """
    file = CHECKPOINTS / f"{name}.pt"
    if not file.exists():
        return 0
    saved = torch.load(file, map_location="cpu")
    if (saved["seed"], saved["epochs"]) != (seed, recipe.epochs):
        raise click.UsageError(f"{file} is of another seed or length: move it away")
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["done"])


@click.command()
@click.argument("name", type=click.Choice(list(NETWORKS)))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("../shared/data/cifar10"),
    show_default=True,
    help="Folder with train and val, as class folders or .tar files; the digits need none.",
)
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's number.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all cores].")
def main(name: str, data: Path, epochs: int | None, seed: int, threads: int | None) -> None:
    """Train the network NAME and leave it in checkpoints/NAME.pt."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = RECIPES[name]
    recipe = replace(recipe, epochs=epochs or recipe.epochs)
    try:
        net = train(name, recipe, recipe.dataset.read(data, "train"), seed, device)
        found = accuracy(net, recipe.dataset.test_images(data), recipe.dataset, device)
    except FileNotFoundError as cause:
        sys.exit(str(cause))
    print(f"{name}: {found:.2%} on val", flush=True)


if __name__ == "__main__":
    main()
