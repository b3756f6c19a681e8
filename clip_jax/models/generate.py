"""Captions token by token: greedy, sampled, and by beam search; pure functions for any jit."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax import lookup
from clip_jax.data.preprocess import normalize
from clip_jax.models.attention import CACHE

METHODS = ('greedy', 'sample', 'beam')
NEVER = -1e9  # the logit of a token that must not follow; finite, so that sums are numbers


@dataclasses.dataclass(frozen=True)
class Generation:
    """How captions are generated.

    Args:
        start_id: the first token.
        end_id: the token that ends a caption.
        pad_id: what fills up tokens after the end; where it is generated, a caption ends too.
        method: 'greedy': always the most probable token; 'sample': a random one by its probability;
            'beam': beam search for the most probable caption.
        max_length: the most tokens of a caption, with the first and the last one.
        min_length: the least tokens, counted in the same way (open_clip's min_seq_len is one less).
        temperature: divides logits, for 'sample'.
        top_k: the number of tokens to sample from, the most probable ones; 0: all.
        top_p: sample from the fewest tokens that have this probability together; 1: all.
        beams: the number of captions that the beam search follows.
        length_penalty: the beam search divides log-probabilities by the number of generated tokens
            to this power.
    """

    start_id: int
    end_id: int
    pad_id: int = 0
    method: str = 'greedy'
    max_length: int = 30
    min_length: int = 6
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 6
    length_penalty: float = 1.0

    def __post_init__(self):
        lookup.check(self.method, METHODS, what='captions: method')
        for name, least in (('max_length', 2), ('min_length', 2), ('beams', 1), ('top_k', 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f'captions: {name} is {value!r}; expected at least {least}')
        if self.min_length > self.max_length:
            raise ValueError(
                f'captions: min_length is {self.min_length}; expected at most max_length, '
                f'{self.max_length}'
            )
        if not self.temperature > 0:
            raise ValueError(f'captions: temperature is {self.temperature}; expected more than 0')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'captions: top_p is {self.top_p}; expected more than 0, at most 1')


class _State(NamedTuple):
    """What a decoding loop carries; L is the model's context length."""

    index: jax.Array  # position of the newest token
    tokens: jax.Array  # int32 [B, L]
    cache: Any


def generate(
    model: Any,
    variables: Mapping[str, Any],
    images: jax.Array,
    how: Generation,
    key: jax.Array | None = None,
    example_index: jax.Array | None = None,
) -> jax.Array:
    """Generates captions.

    Args:
        model: a model with a decoder.
        variables: its variables.
        images: float [B, H, W, 3], normalized by mean and std.
        how: how captions are generated; static under jit.
        key: a random key, for the method 'sample'.
        example_index: int32 [B]; random numbers of an image depend on its index. None: 0, 1, 2, …

    Returns:
        int32 [B, max_length]: the first token, the caption, its end and padding.

    Raises:
        ValueError: the model has no decoder, or its context is shorter than `max_length`.
    """
    length = context_length(model)
    if how.max_length > length:
        raise ValueError(
            f'captions: max_length is {how.max_length}; expected at most {length}, the '
            'context_length of the model'
        )
    # Parameters are the same without a scan over blocks.
    text = model.text.clone(scan=False) if hasattr(model.text, 'scan') else model.text
    model = model.clone(text=text)
    image_tokens = cast(jax.Array, model.apply(variables, images, method='image_tokens'))

    def logits(tokens: jax.Array, image: jax.Array, index: Any, cache: Any) -> tuple:
        kept = {CACHE: cache} if cache else {}
        found: Any = model.apply(
            {**variables, **kept}, tokens, image, index, method='next_token_logits', mutable=[CACHE]
        )
        return found[0], found[1][CACHE]

    tokens = jnp.full((len(images), length), how.pad_id, jnp.int32).at[:, 0].set(how.start_id)
    if how.method == 'beam':
        found = _beam_search(logits, tokens, image_tokens, how)
    else:
        found = _one_by_one(logits, tokens, image_tokens, how, _choice(how, key, example_index))
    return found[:, : how.max_length]


def context_length(model: Any) -> int:
    """Returns the most tokens of a model's captions; ValueError if it has no decoder."""
    return model.captioner().context_length


def _allowed(logits: jax.Array, length: Any, how: Generation) -> jax.Array:
    """Logits [B, vocab] of the token that makes a caption `length` tokens long: its end comes
    neither before the least length nor after the largest.
    """
    is_end = jnp.arange(logits.shape[-1]) == how.end_id
    logits = jnp.where(is_end & (length < how.min_length), NEVER, logits)
    return jnp.where(~is_end & (length >= how.max_length), NEVER, logits)


def _choice(
    how: Generation, key: jax.Array | None, example_index: jax.Array | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the function (logits [B, vocab], position) -> tokens [B]."""
    if how.method == 'greedy':
        return lambda logits, index: jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if key is None:
        raise ValueError("captions: the method 'sample' needs a random key")
    start: jax.Array = key

    def sample(logits: jax.Array, index: jax.Array) -> jax.Array:
        examples = jnp.arange(len(logits)) if example_index is None else example_index
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(start, i), index))(examples)
        logits = filtered(logits / how.temperature, how.top_k, how.top_p)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

    return sample


def filtered(logits: jax.Array, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Leaves the most probable tokens in logits [B, vocab]; others become NEVER.

    Args:
        logits: float [B, vocab].
        top_k: the number of tokens that stay (of equal ones, more); 0: all.
        top_p: the fewest tokens with this probability together stay (arXiv 1904.09751, section
            3.1), of those that top_k leaves.
    """
    if 0 < top_k < logits.shape[-1]:
        least = lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, NEVER, logits)
    if top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        kept = jnp.where(before < top_p, ordered, jnp.inf)
        logits = jnp.where(logits < kept.min(axis=-1, keepdims=True), NEVER, logits)
    return logits


def _one_by_one(
    logits: Callable, tokens: jax.Array, image: jax.Array, how: Generation, choose: Callable
) -> jax.Array:
    """Appends one chosen token after another until all captions have ended: int32 [B, L]."""

    def advance(state: _State) -> _State:
        found, cache = logits(state.tokens, image, state.index, state.cache)
        last = lax.dynamic_index_in_dim(state.tokens, state.index, axis=1, keepdims=False)
        chosen = choose(_allowed(found, state.index + 2, how), state.index)
        new = jnp.where(_ended(last, how), how.pad_id, chosen)
        tokens = state.tokens.at[:, state.index + 1].set(new)
        return _State(state.index + 1, tokens, cache)

    def unfinished(state: _State) -> jax.Array:
        last = lax.dynamic_index_in_dim(state.tokens, state.index, axis=1, keepdims=False)
        return (state.index + 1 < how.max_length) & ~jnp.all(_ended(last, how))

    # The first step makes the cache.
    state = advance(_State(jnp.int32(0), tokens, None))
    return lax.while_loop(unfinished, advance, state).tokens


def _ended(last: jax.Array, how: Generation) -> jax.Array:
    return (last == how.end_id) | (last == how.pad_id)


class _Beams(NamedTuple):
    """The beam search of K beams: those that go on, and the best that ended."""

    state: _State  # tokens int32 [B * K, L]
    scores: jax.Array  # log-probabilities, float32 [B, K]
    ended: jax.Array  # tokens, int32 [B, K, L]
    ended_scores: jax.Array  # normalized by length, float32 [B, K]


def _beam_search(
    logits: Callable, tokens: jax.Array, image: jax.Array, how: Generation
) -> jax.Array:
    """Returns the best caption of each image, int32 [B, L]."""
    (batch, length), beams = tokens.shape, how.beams
    image = jnp.repeat(image, beams, axis=0)

    def normalized(scores: jax.Array, count: Any) -> jax.Array:
        return scores / jnp.float32(count) ** how.length_penalty

    def advance(old: _Beams) -> _Beams:
        index, tokens, cache = old.state
        found, cache = logits(tokens, image, index, cache)
        found = _allowed(jax.nn.log_softmax(found), index + 2, how)
        # Padding is no token of a caption.
        found = jnp.where(jnp.arange(found.shape[-1]) == how.pad_id, NEVER, found)
        scores = found.reshape(batch, beams, -1) + old.scores[..., None]
        tokens = tokens.reshape(batch, beams, length)
        ended = tokens.at[:, :, index + 1].set(how.end_id)
        every = jnp.concatenate([old.ended, ended], axis=1)
        of_ended = normalized(scores[..., how.end_id], index + 1)
        every_score = jnp.concatenate([old.ended_scores, of_ended], axis=1)
        ended_scores, best = lax.top_k(every_score, beams)
        ended = jnp.take_along_axis(every, best[..., None], axis=1)
        # Those that go on.
        vocab = scores.shape[-1]
        going = scores.at[..., how.end_id].set(NEVER).reshape(batch, -1)
        scores, best = lax.top_k(going, beams)
        parent, new = best // vocab, (best % vocab).astype(jnp.int32)
        tokens = jnp.take_along_axis(tokens, parent[..., None], axis=1)
        tokens = tokens.at[:, :, index + 1].set(new)
        rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows] if x.ndim else x, cache)
        state = _State(index + 1, tokens.reshape(-1, length), cache)
        return _Beams(state, scores, ended, ended_scores)

    def unfinished(now: _Beams) -> jax.Array:
        # Log-probabilities only fall: no caption that goes on can become better than this.
        longest = how.max_length - 1 if how.length_penalty > 0 else now.state.index + 1
        bound = normalized(now.scores[:, 0], longest)
        better = bound > now.ended_scores[:, 0]
        return (now.state.index + 1 < how.max_length) & jnp.any(better)

    # All beams begin equal, so that one of them counts.
    first = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)
    start = _Beams(
        _State(jnp.int32(0), jnp.repeat(tokens, beams, axis=0), None),
        jnp.broadcast_to(first, (batch, beams)),
        jnp.repeat(tokens[:, None], beams, axis=1),
        jnp.full((batch, beams), 10 * NEVER),
    )
    found = lax.while_loop(unfinished, advance, advance(start))
    return found.ended[:, 0]


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std', 'how', 'where'))
def captions(
    variables,
    images,
    key,
    example_index,
    *,
    model: Any,
    mean: tuple,
    std: tuple,
    how: Generation,
    where: jax.sharding.Sharding,
) -> jax.Array:
    """`generate`, compiled, of uint8 images, with the sharding `where`."""
    images = normalize(images, mean, std)
    found = generate(model, variables, images, how, key, example_index)
    return lax.with_sharding_constraint(found, where)
