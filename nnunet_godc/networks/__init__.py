"""The networks of the paper's Table III that nnU-Net does not have itself.

Nothing is imported here: `from_monai` needs MONAI, an extra (`pip install 'nnunet-godc[comparison]'`).
"""
