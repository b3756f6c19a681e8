"""The CLIP model, its encoders, and the layers that they share."""
