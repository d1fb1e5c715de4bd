"""ResNet-20 for 32 x 32 images (He et al., 2016), as a plain torch module."""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from laconic.models.safetensors import find_shards, read_header, read_tensor


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected where the width changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, width_in, H, W) to (B, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """Nine blocks of widths 16, 32, 64 between a stem and a classifier.

    Args:
        classes: outputs.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2
        widths += [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.ModuleList(BasicBlock(*shape) for shape in widths)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, 3, 32, 32), normalised, to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(dim=(2, 3)))


def resnet20(path: str | None = None) -> ResNet20:
    """The model; with the weights of the directory `path` where one is given."""
    model = ResNet20()
    if path is not None:
        entries = read_header(find_shards(Path(path))[0])
        model.load_state_dict({name: read_tensor(entry) for name, entry in entries.items()})
    return model
