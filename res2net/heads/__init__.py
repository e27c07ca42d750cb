"""Heads turn a backbone's feature maps into outputs such as masks. Their values and costs do not import torch."""

from res2net.heads.value import Deconv, DeepLab, Dss, FasterRcnn, Head, KeypointRcnn, MaskRcnn

__all__ = ["Deconv", "DeepLab", "Dss", "FasterRcnn", "Head", "KeypointRcnn", "MaskRcnn"]
