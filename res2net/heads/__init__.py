"""Heads turn a backbone's feature maps into outputs such as masks. Importing their values imports no torch."""

from res2net.heads.value import Deconv, DeepLab, Dss, Head

__all__ = ["Deconv", "DeepLab", "Dss", "Head"]
