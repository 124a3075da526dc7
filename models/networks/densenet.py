"""DenseNet-BC for 32x32 images (Huang et al. 2017): concatenation, normalization first."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

GROWTH = 12


class DenseLayer(nn.Module):
    """A bottleneck and a 3x3 convolution whose GROWTH channels are appended to what came in."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, 4 * GROWTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * GROWTH)
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, c_in, H, W)` to `(N, c_in + GROWTH, H, W)`."""
        y = self.conv1(relu(self.bn1(x)))
        y = self.conv2(relu(self.bn2(y)))
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    """Halves channels and size."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_in // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, c_in, H, W)` to `(N, c_in / 2, H / 2, W / 2)`."""
        return avg_pool2d(self.conv(relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions between them, a linear head."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        width = 2 * GROWTH
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for stage in range(3):
            if stage:
                stages.append(Transition(width))
                width //= 2
            for _ in range(layers):
                stages.append(DenseLayer(width))
                width += GROWTH
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, 3, 32, 32)` to logits `(N, 10)`."""
        x = relu(self.bn(self.stages(self.conv1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def densenet_bc_100() -> DenseNet:
    """100 layers, growth 12: 0.77 M parameters, 292 M multiply-accumulates."""
    return DenseNet(16)
