"""Analytic floating-point operations of a forward pass, for one example.

A multiplication and an addition are two operations. Only matrix products are counted (norms,
activations, softmax and table look-ups are not), and attention over all pairs of tokens, since
every model here looks both ways; a causal mask saves nothing in what is computed. A backward pass
through everything costs twice a forward pass.

These counts, not a compiler's, are what utilisation is relative to: XLA counts the body of a
scanned stack once, whatever its depth.
"""

from __future__ import annotations

from jepa.models.gemma import EmbeddingGemma
from jepa.models.image_tower import ImageTower
from jepa.models.llama import Llama, LlamaStack
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.minilm import MiniLM
from jepa.models.qwen import QwenEmbedding
from jepa.models.text import TextTransformer
from jepa.models.vit import VideoTransformer
from jepa.models.vl_jepa import Predictor, SharedHead

TextTower = TextTransformer | MiniLM | EmbeddingGemma | QwenEmbedding


def linear(rows: int, inputs: int, outputs: int) -> float:
    """A product of `[rows, inputs]` and `[inputs, outputs]`."""
    return 2.0 * rows * inputs * outputs


def blocks(
    *,
    tokens: int,
    depth: int,
    width: int,
    heads: int,
    mlp_width: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    gated: bool = False,
) -> float:
    """A stack of transformer blocks over `tokens` tokens.

    Args:
      tokens: N.
      depth: number of blocks.
      width: D.
      heads: number of query heads.
      mlp_width: hidden width of the MLP.
      kv_heads: number of key and value heads; as many as `heads` when None.
      head_dim: width / heads when None.
      gated: whether the MLP has a third matrix (SwiGLU).
    """
    head_dim = head_dim or width // heads
    projected = (heads + 2 * (kv_heads or heads)) * head_dim
    attention = (
        linear(tokens, width, projected)
        + 2 * linear(tokens, tokens, heads * head_dim)
        + linear(tokens, heads * head_dim, width)
    )
    mlp = (3 if gated else 2) * linear(tokens, width, mlp_width)
    return depth * (attention + mlp)


def video_transformer(
    model: VideoTransformer, frames: int, height: int, width: int, *, visible: int | None = None
) -> float:
    """One video of this size in pixels; `visible` is the number of tokens seen, all when None.

    All tubelets are embedded, even those that are then dropped.
    """
    rows, high, wide = model.grid(frames, height, width)
    tokens = rows * high * wide
    deep = 1 if frames == 1 and model.image_tokenizer else model.tubelet
    cube = deep * model.patch**2 * 3
    return linear(tokens, cube, model.width) + blocks(
        tokens=tokens if visible is None else visible,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width(),
    )


def image_tower(model: ImageTower, frames: int, height: int, width: int) -> float:
    """One clip of this size in pixels, frame by frame."""
    _, high, wide = model.grid(frames, height, width)
    each = linear(high * wide, model.patch**2 * 3, model.width) + blocks(
        tokens=model.prefix() + high * wide,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width(),
        gated=model.gated,
    )
    return frames * each


def x_encoder(model: VideoTransformer | ImageTower, frames: int, height: int, width: int) -> float:
    """One clip of this size in pixels, through either kind of X-encoder."""
    count = image_tower if isinstance(model, ImageTower) else video_transformer
    return count(model, frames, height, width)  # type: ignore[arg-type]


def mask_predictor(model: MaskPredictor, *, context: int, targets: int, inputs: int) -> float:
    """One clip's prediction of `targets` tokens from `[context, inputs]`."""
    hidden = model.embed_hidden
    embedding = linear(context, hidden or inputs, model.width)
    if hidden is not None:
        embedding += linear(context, inputs, hidden)
    predicted = targets + (context if model.predicts_context else 0)
    return (
        embedding
        + blocks(
            tokens=context + targets,
            depth=model.depth,
            width=model.width,
            heads=model.heads,
            mlp_width=model.mlp_width(),
        )
        + linear(predicted, model.width, model.features)
    )


def llama(model: LlamaStack | Predictor | QwenEmbedding, tokens: int) -> float:
    """One sequence of `tokens` tokens (of larger models, through their Llama blocks only)."""
    return blocks(
        tokens=tokens,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        gated=True,
    )


def predictor(
    model: Predictor, *, visual_tokens: int, visual_width: int, query_length: int
) -> float:
    """One prediction from `[visual_tokens, visual_width]` and a query of `query_length` ids."""
    table_width = model.table_width or model.width
    table = 0.0
    if table_width != model.width:
        table = linear(query_length, table_width, model.width)
    return (
        linear(visual_tokens, visual_width, model.width)
        + table
        + llama(model, visual_tokens + query_length)
        + linear(1, model.width, model.features)
    )


def text_transformer(model: TextTransformer, length: int) -> float:
    """One text of `length` ids, pads included."""
    projection = linear(1, model.width, model.width) if model.projection else 0.0
    return projection + blocks(
        tokens=length,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width(),
    )


def minilm(model: MiniLM, length: int) -> float:
    """One text of `length` ids, pads included."""
    return blocks(
        tokens=length,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width,
    )


def language_model(model: Llama, tokens: int) -> float:
    """One sequence of `tokens` tokens, with the logits of all."""
    stack = model.stack()
    return llama(stack, tokens) + linear(tokens, stack.width, model.vocab)


def embedding_gemma(model: EmbeddingGemma, length: int) -> float:
    """One text of `length` ids, pads included; layers that see near tokens compute all pairs."""
    dense = 0.0
    if model.dense_width is not None:
        dense = 2 * linear(1, model.width, model.dense_width)
    return dense + blocks(
        tokens=length,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        mlp_width=model.mlp_width,
        gated=True,
    )


def text_tower(model: TextTower, length: int) -> float:
    """One text of `length` ids, pads included, through any of the towers here."""
    if isinstance(model, EmbeddingGemma):
        return embedding_gemma(model, length)
    if isinstance(model, QwenEmbedding):
        return llama(model, length)
    return minilm(model, length) if isinstance(model, MiniLM) else text_transformer(model, length)


def shared_head(model: SharedHead, width: int) -> float:
    """One vector of `width` numbers."""
    return linear(1, width, model.features)


def sigreg(samples: int, width: int, slices: int, knots: int) -> float:
    """SIGReg's forward and backward pass together, for one batch; it is no network.

    Projecting `[samples, width]` on the slices and pulling the gradient back; for each projection
    a sine and a cosine in either pass (33 operations); and for each projection and knot a rotation
    (6), a difference and two sums forward, and one step of Horner's rule for complex numbers (8)
    backward. Drawing the slices is not counted: it costs `width * slices` normal numbers, most of
    it in integers.

    Args:
      samples: N, of the global batch.
      width: D.
      slices: S.
      knots: K.
    """
    return 2 * linear(samples, width, slices) + samples * slices * (2 * 33.0 + 17.0 * knots)
