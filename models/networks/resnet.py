"""Residual networks for 32x32 images (He et al. 2016, section 4.2)."""

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A).

    Where the size halves and the width doubles, the shortcut keeps every second pixel and fills
    the new channels with zeros.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.stride = 1 if c_in == c_out else 2
        self.fill = (c_out - c_in) // 2
        self.conv1 = nn.Conv2d(c_in, c_out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, c_in, H, W)` to `(N, c_out, H / stride, W / stride)`."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            x = pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.fill, self.fill))
        return relu(x + y)


class ResNet(nn.Module):
    """6n + 2 layers: a stem, three stages of n blocks at widths 16, 32 and 64, a linear head."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] * (n + 1) + [32] * n + [64] * n
        self.blocks = nn.Sequential(*map(Block, widths, widths[1:]))
        self.fc = nn.Linear(64, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, 3, 32, 32)` to logits `(N, 10)`."""
        x = self.blocks(relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def resnet20() -> ResNet:
    """0.27 M parameters, 41 M multiply-accumulates."""
    return ResNet(3)


def resnet56() -> ResNet:
    """0.85 M parameters, 125 M multiply-accumulates."""
    return ResNet(9)
