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
from torch.optim import SGD, AdamW

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
# Early epochs may see smaller images, which cost less: side, and share of the epochs.
SIZES = ((0.5, 0.4), (0.75, 0.3), (1.0, 0.3))
WARMUP = 0.15

Batch = tuple[Tensor, Tensor]


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
    batch: int = 512
    rate: float = 0.4
    decay: float = 5e-4
    adam: bool = False
    grows: bool = False
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
    "digits-cnn": Recipe(60, DIGITS, 50, 3e-3, 0.05, adam=True, half=False),
    "resnet20": Recipe(120),
    "resnet56": Recipe(75),
    "densenet-bc-100": Recipe(45, grows=True),
    "mobilenetv2": Recipe(80, decay=4e-4, half=False),
    "mobilenetv3": Recipe(100, decay=4e-4, half=False),
    "vit": Recipe(70, rate=1.5e-3, decay=0.05, adam=True),
    "segmenter": Recipe(3, SHAPES, batch=128, rate=0.05),
}


class Step:
    """One step of training.

    On a GPU it is recorded once for each size of images and then replayed: so small a network
    takes longer to launch than to compute.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, device: str) -> None:
        on_gpu = device == "cuda"
        self.net, self.half = net, recipe.half or on_gpu
        self.recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Batch, Batch]] = {}
        # What is recorded reads the rate from memory; on a CPU it is a number, in double precision.
        self.memory = torch.zeros((), device=device) if on_gpu else None
        # Biases and what normalizes do not decay.
        decayed = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": others}]
        self.optimizer: torch.optim.Optimizer
        if recipe.adam:
            self.optimizer = AdamW(groups, weight_decay=0, fused=on_gpu, capturable=on_gpu)
        else:
            self.optimizer = SGD(groups, momentum=0.9, nesterov=True, fused=on_gpu)
        self.rate = 0.0

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @rate.setter
    def rate(self, rate: float) -> None:
        if self.memory is not None:
            self.memory.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self.memory is None else self.memory

    def __call__(self, x: Tensor, y: Tensor) -> Batch:
        """Learn from images and labels; the loss, and how many were classified right."""
        if x.device.type == "cpu":
            return self.run(x, y)
        if x.shape not in self.recorded:
            self.recorded[x.shape] = self.record(x.clone(), y.clone())
        graph, inputs, results = self.recorded[x.shape]
        inputs[0].copy_(x)
        inputs[1].copy_(y)
        graph.replay()
        return results

    def run(self, x: Tensor, y: Tensor) -> Batch:
        """The step itself."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            logits = self.net(x)
        loss = cross_entropy(logits.float(), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.argmax(1) == y).sum()

    def record(self, x: Tensor, y: Tensor) -> tuple[torch.cuda.CUDAGraph, Batch, Batch]:
        """Record the step on these tensors, after a few at rate 0 that choose kernels."""
        rate, self.rate = self.rate, 0.0
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.run(x, y)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.run(x, y)
        self.rate = rate
        return graph, (x, y), results


def batches(images: Labeled, recipe: Recipe, size: int) -> Iterator[Batch]:
    """One epoch of shuffled and augmented batches, the incomplete last one left out."""
    order = torch.randperm(len(images.labels)).to(images.labels.device)
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
    step = Step(net, recipe, device)
    first = resume(name, recipe, seed, net, step)
    images = Labeled(*(x.to(device) for x in images))
    steps, start = len(images.labels) // recipe.batch, time.monotonic()
    cost = [recipe.size(epoch) ** 2 for epoch in range(recipe.epochs)]
    for epoch in range(first, recipe.epochs):
        torch.manual_seed(seed + 1000 * (epoch + 1))
        net.train()
        total, right = torch.zeros(2, device=device)
        for i, (x, y) in enumerate(batches(images, recipe, recipe.size(epoch))):
            step.rate = recipe.rate_at((epoch + i / steps) / recipe.epochs)
            loss, hits = step(x.contiguous(memory_format=torch.channels_last), y)
            total, right = total + loss / steps, right + hits / (steps * y.numel())
        left = (time.monotonic() - start) * sum(cost[epoch + 1 :]) / sum(cost[first : epoch + 1])
        print(
            f"{name} epoch {epoch + 1}/{recipe.epochs}  size {recipe.size(epoch)}  "
            f"loss {float(total):.4f}  training top-1 {float(right):.2%}  {left / 60:.0f} min left",
            flush=True,
        )
        keep(name, recipe, seed, net, step, epoch + 1)
    return net.eval()


def keep(name: str, recipe: Recipe, seed: int, net: nn.Module, step: Step, done: int) -> None:
    """Write the checkpoint after ``done`` epochs, whole or not at all."""
    state = {
        "net": net.state_dict(),
        "optimizer": step.optimizer.state_dict()["state"],
        "done": done,
    }
    training = {"seed": seed, "epochs": recipe.epochs, "torch": str(torch.__version__)}
    CHECKPOINTS.mkdir(exist_ok=True)
    temporary = CHECKPOINTS / f"{name}.tmp"
    torch.save(state | training, temporary)
    temporary.replace(CHECKPOINTS / f"{name}.pt")


def resume(name: str, recipe: Recipe, seed: int, net: nn.Module, step: Step) -> int:
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
    groups = step.optimizer.state_dict()["param_groups"]  # saved ones may be of another device
    step.optimizer.load_state_dict({"state": saved["optimizer"], "param_groups": groups})
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
    torch.backends.cudnn.benchmark = True
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
