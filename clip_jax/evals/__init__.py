"""One file = one way to score a model: `evaluate(encode_image, encode_text, data, **options) ->
report`.

`encode_image(images)` and `encode_text(texts)` give unit rows, float32 [N, D]; `data` is a source
(see data/sources). `report` is a dict that can be written as JSON; its floats at the top level are
the scores. Some keys become figures (see plots):

    per_class     [[name, examples, score], ...]
    confusion     {'classes': [...], 'matrix': [[...], ...], 'of': number of all classes}; a line is
                  the right class, a column what it is taken for
    mistakes      [{'index', 'label', 'guess', 'score', 'score_of_label'}, ...]; the last may lack
    examples      [{'index', 'label', 'top': [[name, score], ...]}, ...]
    similarity    {'indices', 'texts', 'matrix'} of a few images and texts
    queries       {'image_to_text': [{'index', 'rank', 'top': [[caption, score, right], ...]}, ...],
                  'text_to_image': [{'text', 'index', 'rank', 'top': [[index, score, right], ...]}]}
    sweep         [[C, score on validation], ...]; 'C' of 'fit' is marked
    shots         [[examples a class, mean, spread, [score of each draw]], ...]
"""
