"""One file = one image encoder: `Encoder(nn.Module)`, float [B, H, W, 3] -> [B, features], and
`VARIANTS`.

`Encoder.__call__(images, *, train=False)`. Images are normalized by the card's mean and std. With
`train=True` an encoder may update variables beside `params`, such as running statistics.
`Encoder.with_image_size(params, image_size) -> params` makes them fit images of another size.
"""
