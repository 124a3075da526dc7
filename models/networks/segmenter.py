"""A small encoder and decoder that labels every pixel: Resize, Concat and ConvTranspose."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

CLASSES = 4


def conv(c_in: int, c_out: int) -> nn.Sequential:
    """A 3x3 convolution with normalization and LeakyReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.LeakyReLU(0.1)
    )


class Segmenter(nn.Module):
    """A U-Net of three sizes: one step up by a transposed convolution, one by bilinear resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv(3, 16), conv(16, 16))
        self.down2 = nn.Sequential(conv(16, 32), conv(32, 32))
        self.bottom = nn.Sequential(conv(32, 64), conv(64, 64))
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.merge2 = nn.Sequential(conv(64, 32), conv(32, 32))
        self.merge1 = nn.Sequential(conv(48, 16), conv(16, 16))
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, 3, H, W)`, sizes divisible by 4, to logits `(N, CLASSES, H, W)`."""
        fine = self.down1(x)
        middle = self.down2(max_pool2d(fine, 2))
        coarse = self.bottom(max_pool2d(middle, 2))
        middle = self.merge2(torch.cat([self.up(coarse), middle], 1))
        wide = interpolate(middle, scale_factor=2.0, mode="bilinear", align_corners=False)
        logits: Tensor = self.head(self.merge1(torch.cat([wide, fine], 1)))
        return logits


def segmenter() -> Segmenter:
    """0.13 M parameters."""
    return Segmenter()
