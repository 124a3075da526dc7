"""Train a network of the zoo: `python models/train.py NAME --data ../shared/data/cifar10`.

A killed run goes on from its last whole epoch when the command is given again.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from images import Labeled, crop_and_flip, normalize, paint, read
from networks import NETWORKS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
# Early epochs see smaller images, which cost less: side in pixels, and share of the epochs.
SIZES = ((16, 0.4), (24, 0.3), (32, 0.3))
FULL = 32
BATCH = 128
WARMUP = 0.15


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        rate: Peak learning rate; it rises linearly over the first WARMUP of all steps and then
            falls to zero along a cosine.
        decay: Weight decay.
        adam: AdamW instead of SGD with Nesterov momentum, which does not train transformers well.
        grows: Early epochs see smaller images.
        half: bfloat16 on a CPU, too; depthwise convolutions are slower in it there.
        painted: Targets are shapes drawn on the images, pixel by pixel.
    """

    epochs: int
    rate: float = 0.2
    decay: float = 5e-4
    adam: bool = False
    grows: bool = True
    half: bool = True
    painted: bool = False


RECIPES = {
    "resnet20": Recipe(epochs=30),
    "resnet56": Recipe(epochs=18),
    "densenet-bc-100": Recipe(epochs=6),
    "mobilenetv2": Recipe(epochs=12, decay=1e-4, half=False),
    "mobilenetv3": Recipe(epochs=20, decay=1e-4, half=False),
    "vit": Recipe(epochs=12, rate=1e-3, decay=0.05, adam=True, grows=False),
    "segmenter": Recipe(epochs=3, rate=0.05, grows=False, painted=True),
}


def image_size(recipe: Recipe, epoch: int) -> int:
    """Side of the images that an epoch sees, in pixels."""
    if not recipe.grows:
        return FULL
    done = 0.0
    for size, share in SIZES:
        done += share
        if epoch < round(done * recipe.epochs):
            return size
    return FULL


def rate(recipe: Recipe, progress: float) -> float:
    """Learning rate after a share of all steps."""
    if progress < WARMUP:
        return recipe.rate * progress / WARMUP
    angle = torch.pi * (progress - WARMUP) / (1 - WARMUP)
    return recipe.rate * (1 + float(torch.cos(torch.tensor(angle)))) / 2


def batches(images: Labeled, recipe: Recipe, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled and augmented batches, the incomplete last one left out."""
    order = torch.randperm(len(images.labels))
    for rows in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
        pixels, labels = crop_and_flip(images.pixels[rows]), images.labels[rows]
        if recipe.painted:
            pixels, labels = paint(pixels)
        yield normalize(pixels, size), labels


def optimizer_of(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer; biases and what normalizes do not decay."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": others}]
    if recipe.adam:
        return torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=0.0)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)


def accuracy(net: nn.Module, images: Labeled, recipe: Recipe, device: str) -> float:
    """Share of images, or of pixels, that are labeled right."""
    torch.manual_seed(0)
    pixels, labels = paint(images.pixels) if recipe.painted else images
    right = 0
    with torch.inference_mode():
        for x, y in zip(pixels.split(500), labels.split(500), strict=True):
            found = net(normalize(x, FULL).to(device)).argmax(1).cpu()
            right += int((found == y).sum())
    return right / labels.numel()


def train(name: str, images: Labeled, seed: int, epochs: int | None, device: str) -> nn.Module:
    """Train for a fixed number of epochs: nothing is chosen by looking at other images."""
    recipe = RECIPES[name]
    if epochs is not None:
        recipe = Recipe(**vars(recipe) | {"epochs": epochs})
    torch.manual_seed(seed)
    net = NETWORKS[name]().to(device, memory_format=torch.channels_last)
    optimizer = optimizer_of(net, recipe)
    file = CHECKPOINTS / f"{name}.pt"
    first = 0
    if file.exists():
        saved = torch.load(file, map_location=device)
        if (saved["seed"], saved["epochs"]) != (seed, recipe.epochs):
            raise click.UsageError(f"{file} is of another seed or length: move it away")
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["done"]
    half = recipe.half or device == "cuda"
    steps, start = len(images.labels) // BATCH, time.monotonic()
    cost = [image_size(recipe, e) ** 2 for e in range(recipe.epochs)]
    for epoch in range(first, recipe.epochs):
        torch.manual_seed(seed + 1000 * (epoch + 1))
        net.train()
        total, right, seen = 0.0, 0, 0
        for step, (x, y) in enumerate(batches(images, recipe, image_size(recipe, epoch))):
            for group in optimizer.param_groups:
                group["lr"] = rate(recipe, (epoch + step / steps) / recipe.epochs)
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
            f"{name} epoch {epoch + 1}/{recipe.epochs}  size {image_size(recipe, epoch)}  "
            f"loss {total / seen:.4f}  training top-1 {right / seen:.2%}  {left / 60:.0f} min left",
            flush=True,
        )
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "done": epoch + 1}
        CHECKPOINTS.mkdir(exist_ok=True)
        temporary = file.with_suffix(".tmp")
        torch.save(state | {"seed": seed, "epochs": recipe.epochs}, temporary)
        temporary.replace(file)
    return net.eval()


@click.command()
@click.argument("name", type=click.Choice(list(NETWORKS)))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of images.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's number.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [default: all cores].")
def main(name: str, data: Path, epochs: int | None, seed: int, threads: int | None) -> None:
    """Train the network NAME and leave it in checkpoints/NAME.pt."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        net = train(name, read(data, "train"), seed, epochs, device)
        found = accuracy(net, read(data, "val"), RECIPES[name], device)
    except FileNotFoundError as cause:
        sys.exit(str(cause))
    print(f"{name}: {found:.2%} on val", flush=True)


if __name__ == "__main__":
    main()
