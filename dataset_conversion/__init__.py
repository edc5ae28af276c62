"""One script per collection: writes it as a raw nnU-Net dataset."""
