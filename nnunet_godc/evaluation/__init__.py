"""Cases -> metrics -> statistics: what nnU-Net predicted, measured against the references."""
