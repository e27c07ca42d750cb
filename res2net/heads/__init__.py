"""Heads turn a backbone's feature maps into outputs such as masks. Importing their values imports no torch."""

from res2net.heads.value import Deconv, DeepLab, Dss, FasterRcnn, Head, KeypointRcnn, MaskRcnn

__all__ = ["Deconv", "DeepLab", "Dss", "FasterRcnn", "Head", "KeypointRcnn", "MaskRcnn"]
