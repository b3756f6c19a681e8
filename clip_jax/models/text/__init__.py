"""Text encoders. One file is one encoder; see transformer.py for an example.

As in models/image: `Encoder`, and optionally `VARIANTS` and `LOGICAL_AXES`. A text encoder has the
fields `vocab_size` and `context_length`, `eot_id` if it reads the end-of-text token, and `pad_id`
if it masks padding; the tokenizer of the config sets them.

`Encoder.__call__(tokens, *, train=False, example_index=None)` maps token ids, int32 [B, L], to
features [B, width]. It keeps all 'tokens' as an image encoder keeps 'patches'.
"""
