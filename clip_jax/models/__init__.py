"""The encoders, the layers that they are made of, and the CLIP model that joins two of them."""
