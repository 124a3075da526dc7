"""The networks of the zoo, each built by name and untrained."""

from collections.abc import Callable

from torch import nn

from networks.densenet import densenet_bc_100
from networks.digits import digits_cnn
from networks.mobilenet import mobilenetv2, mobilenetv3
from networks.resnet import resnet20, resnet56
from networks.segmenter import segmenter
from networks.vit import vit

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits-cnn": digits_cnn,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "densenet-bc-100": densenet_bc_100,
    "mobilenetv2": mobilenetv2,
    "mobilenetv3": mobilenetv3,
    "vit": vit,
    "segmenter": segmenter,
}
