"""One file = one image encoder: `Encoder(nn.Module)`, float [B, H, W, 3] -> [B, width], and
`VARIANTS`.

`Encoder.__call__(images, *, train=False)`. Images are normalised by the card's mean and std.
"""
