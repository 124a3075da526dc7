"""Mobile networks for 32x32 images: depthwise convolutions, the hardest case for quantizers."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, hardsigmoid, relu

Activation = Callable[[], nn.Module]


def conv_bn(
    c_in: int, c_out: int, kernel: int, stride: int, groups: int, activation: Activation
) -> nn.Sequential:
    """A convolution that keeps the size up to its stride, normalization and an activation."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        activation(),
    )


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.expand = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, width, H, W)` to the same shape."""
        gate = self.expand(relu(self.reduce(adaptive_avg_pool2d(x, 1))))
        return x * hardsigmoid(gate)


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter depthwise, optionally gate, project by a linear 1x1."""

    def __init__(
        self,
        c_in: int,
        hidden: int,
        c_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        gate: bool = False,
        activation: Activation = nn.ReLU6,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and c_in == c_out
        expand = [] if hidden == c_in else [conv_bn(c_in, hidden, 1, 1, 1, activation)]
        self.body = nn.Sequential(
            *expand,
            conv_bn(hidden, hidden, kernel, stride, hidden, activation),
            SqueezeExcite(hidden) if gate else nn.Identity(),
            conv_bn(hidden, c_out, 1, 1, 1, nn.Identity),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, c_in, H, W)` to `(N, c_out, H / stride, W / stride)`."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """A stem, inverted residuals, a 1x1 convolution and a linear head."""

    def __init__(
        self, stem: int, blocks: list[InvertedResidual], head: int, activation: Activation
    ) -> None:
        super().__init__()
        c_out = blocks[-1].body[-1][0].out_channels
        self.features = nn.Sequential(
            conv_bn(3, stem, 3, 1, 1, activation),
            *blocks,
            conv_bn(c_out, head, 1, 1, 1, activation),
        )
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(head, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, 3, 32, 32)` to logits `(N, 10)`."""
        x = adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def mobilenetv2() -> MobileNet:
    """MobileNetV2 (Sandler et al. 2018) at half width; stem and second stage keep the size."""
    # Expansion, width, repeats, stride; widths are half the paper's, in multiples of 8.
    stages = [
        (1, 8, 1, 1),
        (6, 16, 2, 1),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    ]
    blocks, width = [], 16
    for expansion, c_out, repeats, stride in stages:
        for i in range(repeats):
            step = stride if i == 0 else 1
            blocks.append(InvertedResidual(width, width * expansion, c_out, stride=step))
            width = c_out
    return MobileNet(16, blocks, 640, nn.ReLU6)


def mobilenetv3() -> MobileNet:
    """MobileNetV3-Small (Howard et al. 2019) made narrower, for 32x32 images."""
    re, hs = partial(nn.ReLU), partial(nn.Hardswish)
    # Kernel, hidden, width, gate, activation, stride.
    stages: list[tuple[int, int, int, bool, Activation, int]] = [
        (3, 16, 16, True, re, 1),
        (3, 64, 24, False, re, 2),
        (3, 72, 24, False, re, 1),
        (5, 96, 32, True, hs, 2),
        (5, 160, 32, True, hs, 1),
        (5, 160, 32, True, hs, 1),
        (5, 128, 40, True, hs, 1),
        (5, 160, 40, True, hs, 1),
        (5, 240, 64, True, hs, 2),
        (5, 320, 64, True, hs, 1),
    ]
    blocks, width = [], 16
    for kernel, hidden, c_out, gate, activation, stride in stages:
        blocks.append(
            InvertedResidual(
                width, hidden, c_out, kernel=kernel, stride=stride, gate=gate, activation=activation
            )
        )
        width = c_out
    return MobileNet(16, blocks, 384, hs)
