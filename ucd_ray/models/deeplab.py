"""The DeepLabV3 head: atrous spatial pyramid pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from ucd_ray.models.norm import freeze_norm, norms

ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""Output stride -> dilation of the three atrous branches (DeepLabV3)."""


class DeepLabHead(nn.Module):
    """torchvision's ASPP without its dropout, which the published incremental heads do not have.

    in_channels: channels of the body; width: channels D of the result.
    pooling_frozen: the image-pooling branch sees one position per image, and its batch norm cannot
    train on one image; frozen, a micro-batch may hold a single image.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 256,
        output_stride: int = 16,
        pooling_frozen: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.aspp = ASPP(in_channels, ATROUS_RATES[output_stride], width)
        self.aspp.project[-1] = nn.Identity()
        if pooling_frozen:
            self.freeze_pooling_norm()

    def forward(self, body: Tensor) -> Tensor:
        """Body [B,Cb,h,w] -> features [B,D,h,w], what the classifiers read."""
        return self.aspp(body)

    def freeze_pooling_norm(self) -> None:
        """Freeze the batch norm of the image-pooling branch, and nothing else."""
        for norm in norms(self.aspp.convs[-1]):
            freeze_norm(norm)
