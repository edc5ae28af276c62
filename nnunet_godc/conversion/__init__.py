"""Writing a raw nnU-Net dataset from a collection of CT scans: geometry, labels, splits, workers, checks."""
