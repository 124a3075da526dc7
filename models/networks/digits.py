"""The classifier of the demo, for 8x8 images of handwritten digits."""

from torch import Tensor, nn
from torch.nn.functional import relu

WIDTH = 40


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, width, H, W)` to the same shape."""
        y = relu(self.bn1(self.conv1(x)))
        return relu(x + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """A small classifier with the layers quantization must handle.

    Full and depthwise convolutions, batch normalization, ReLU and ReLU6, residual additions, a
    global mean and a linear head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()
        )
        self.block1 = Residual(WIDTH)
        self.depthwise = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, groups=WIDTH, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU6(),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(WIDTH, 2 * WIDTH, 1, bias=False), nn.BatchNorm2d(2 * WIDTH), nn.ReLU()
        )
        self.block2 = Residual(2 * WIDTH)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(N, 1, 8, 8)` in [0, 1] to logits `(N, 10)`."""
        x = self.block1(self.stem(image))
        x = self.block2(self.pointwise(self.depthwise(x)))
        logits: Tensor = self.head(self.dropout(x).mean(dim=(2, 3)))
        return logits


def digits_cnn() -> DigitsNet:
    """0.15 M parameters."""
    return DigitsNet()
