"""Prediction for manifests: lists of millions of images, in shards that survive whatever ends a process.

``sources`` reads a manifest range by range, ``shards`` writes the results of a range, ``ledger`` knows which ranges are
finished and which process has which, and ``running`` brings them together. None of them imports PyTorch.
"""
