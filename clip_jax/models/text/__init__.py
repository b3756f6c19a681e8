"""One file = one text encoder: `Encoder(nn.Module)`, int32 [B, L] -> [B, width], and `VARIANTS`.

`Encoder.__call__(tokens, *, train=False)`.
"""
