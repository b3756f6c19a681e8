"""One file = one way to score a model: `evaluate(encode_image, encode_text, data, **options) ->
report`.

`encode_image(images)` and `encode_text(texts)` give unit rows, float32 [N, D]; `data` is a source
(see data/sources). `report` is a dict that can be written as JSON; its numbers at the top level are
the scores, `examples` feeds the figures.
"""
