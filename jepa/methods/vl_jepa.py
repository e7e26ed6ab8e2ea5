"""VL-JEPA: predict the embedding of the answer, not its tokens (arXiv 2512.10942).

The X-encoder turns a clip into visual tokens; the predictor reads them together with a text query
and predicts one vector; the Y-encoder embeds the answer. Both sides meet in a shared space of
`shared_dim` numbers, where the loss lives: InfoNCE over the global batch (the paper's), latent
regression and SIGReg on either side, mixed by weights.

Letters: B clips, P query-answer pairs a clip (the text streams have B*P rows, clip by clip),
T frames, H, W pixels, N visual tokens, K query tokens, L answer tokens, D width, S `shared_dim`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from ml_collections import ConfigDict

from jepa.errors import UserError, check_keys
from jepa.interop import starting
from jepa.methods import text_towers, x_encoders
from jepa.methods.base import Batch, Metrics, Outputs, Params, Requirements
from jepa.methods.paired_loss import PairedLoss, default_loss
from jepa.methods.vl_jepa_model import default_model, make_predictor, predictor_weights
from jepa.models import flops as count
from jepa.models.vl_jepa import SharedHead
from jepa.nn.frames import frames_shape
from jepa.parallel import partition


class VLJEPA:
    """The method; see `jepa.methods.base.Method` for the protocol."""

    def __init__(self, config: ConfigDict):
        """Builds the networks from `config.model`, `config.loss`, `config.dtype`, `config.seed`.

        Raises:
          UserError: a key of `model` or `loss` that does not exist, an unknown text tower, or an
            X-encoder that cannot be.
        """
        for section, default in (("model", default_model()), ("loss", default_loss())):
            check_keys(section, config[section], default)
        self.model: ConfigDict = config.model
        self.loss = PairedLoss(config.loss, config.seed)
        self.dtype = jnp.dtype(config.dtype)
        # Master weights stay in float32 whatever the compute type, except in a float64 run.
        self.param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.x_encoder = x_encoders.make(self.model.x_encoder, types)
        self.predictor = make_predictor(self.model, types)
        self.tower = text_towers.make(self.model.y_encoder, types)
        has_head = self.model.y_encoder.head
        self.head = SharedHead(self.model.shared_dim, **types) if has_head else None
        self.partition_table = self._partition_table()
        self.requirements = self._requirements()

    def _partition_table(self) -> Any:
        table = [
            *partition.prefixed("x_encoder", self.x_encoder.partition_table()),
            *partition.prefixed("predictor", self.predictor.partition_table()),
            *partition.prefixed("y_encoder/tower", self.tower.partition_table()),
        ]
        if self.head is not None:
            table += partition.prefixed("y_encoder/head", self.head.partition_table())
        return (*table, *self.loss.partition_table())

    def _requirements(self) -> Requirements:
        x, y = self.model.x_encoder, self.model.y_encoder
        frozen = []
        if x.frozen:
            frozen.append("x_encoder/.*")
        if self.model.predictor.frozen_table:
            frozen.append("predictor/table/.*")
        if y.frozen:
            frozen.append("y_encoder/tower/.*")
        frozen += self.loss.frozen()
        groups = [
            ("x_encoder/.*", x.learning_rate_factor),
            ("y_encoder/tower/.*", y.learning_rate_factor),
        ]
        if self.head is not None:
            groups.append(("y_encoder/head/.*", y.head_learning_rate_factor))
        return Requirements(frozen=tuple(frozen), learning_rate_groups=tuple(groups))

    def check(self, config: ConfigDict) -> None:
        """Checks what must fit the rest of the config, and that there is something to learn from.

        Raises:
          UserError: heads that the tensor axis does not divide, a text tower that is frozen at its
            random initial values or gets another's tokens, one without a head whose width is not
            that of the shared space, features cached of an X-encoder that trains, or a loss that
            cannot be (`PairedLoss.check`).
        """
        x, y = config.model.x_encoder, config.model.y_encoder
        if x.cache_features and not x.frozen:
            raise UserError(
                "config.model.x_encoder.cache_features is True, but the encoder is trained; set "
                "config.model.x_encoder.frozen to True, or cache_features to False"
            )
        text_towers.check(y, config.data)
        if self.head is None and self.tower.width != config.model.shared_dim:
            raise UserError(
                f"config.model.shared_dim is {config.model.shared_dim}, and config.model.y_encoder."
                f"head is False, which leaves the tower {y.tower!r} with {self.tower.width} "
                "numbers; make them equal"
            )
        tensor = config.mesh.tensor
        for name in ("x_encoder", "predictor"):
            heads = config.model[name].heads
            if heads % tensor:
                raise UserError(
                    f"config.model.{name}.heads is {heads}, which config.mesh.tensor={tensor} does "
                    "not divide; change one of them"
                )
        self.loss.check()

    def check_vocabulary(self, sizes: Mapping[str, int | None]) -> None:
        """Checks the tokenizers of the streams `query` and `text` against the token tables.

        Args:
          sizes: number of ids of each tokenizer; None where no ids are read (cached features).

        Raises:
          UserError: a tokenizer has more ids than its table, which would give NaN, or is another
            one than a published tower's.
        """
        size, entries = sizes.get("query"), self.predictor.vocab
        if size is not None and size > entries:
            raise UserError(
                f"config.model.predictor.vocab is {entries}, but the tokenizer of the stream "
                f"'query' has {size} ids; set it to at least {size}"
            )
        if size is not None and self.model.predictor.weights and not text_towers.own(size, entries):
            raise UserError(
                f"data.query_tokenizer has {size} ids, and the table of config.model.predictor."
                f"weights {entries}; set it to the directory with its own tokenizer.json"
            )
        size = sizes.get("text")
        if size is not None:
            text_towers.check_vocabulary(self.model.y_encoder, self.tower, size)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Params]:
        """Draws parameters for a batch of this structure; there is no mutable state."""
        keys = jax.random.split(rng, 4)
        cached = _is_cached(batch["video"])
        video = x_encoders.cell(self.x_encoder) if cached else batch["video"]
        video = jax.tree.map(lambda x: x[:1], video)
        video = x_encoders.read(self.x_encoder, video, self.dtype)
        tokens, x_params = self.x_encoder.init_with_output(keys[0], video)
        query = batch["query"]
        ids = jnp.zeros((1, 2), jnp.int32)
        mask = jnp.ones((1, 2), bool)
        features, tower_params = self.tower.init_with_output(keys[2], ids, mask)
        params = {
            "x_encoder": x_params["params"],
            "predictor": self.predictor.init(keys[1], tokens, query["ids"][:1], query["mask"][:1])[
                "params"
            ],
            "y_encoder": {"tower": tower_params["params"]},
            **self.loss.learnt(self.param_dtype),
        }
        if self.head is not None:
            params["y_encoder"]["head"] = self.head.init(keys[3], features)["params"]
        return unfreeze(params), {}

    def pretrained(self) -> Mapping[str, Any]:
        """The weights that the config names, and MiniLM's where it is the Y-encoder.

        UserError where they are of other networks than the config's.
        """
        found: dict[str, Any] = {}
        x_encoder = x_encoders.weights(self.model.x_encoder, self.x_encoder)
        if x_encoder is not None:
            found["x_encoder"] = x_encoder
        for name, tree in predictor_weights(self.model.predictor, self.predictor).items():
            found[f"predictor/{name}"] = tree
        tower = text_towers.weights(self.model.y_encoder, self.tower)
        if tower is not None:
            found["y_encoder/tower"] = tower
        return found

    def visual_tokens(self, params: Params, video: Any) -> jax.Array:
        """Returns the X-encoder's tokens `[B, N, D]` of a clip stream, computed or as cached."""
        if _is_cached(video):
            return video["features"].astype(self.dtype)
        return self._encode_video(params["x_encoder"], video)

    def cached_video_tower(self) -> tuple[str, Any, str] | None:
        """Returns the frozen X-encoder for `jepa.training.video_features`, if it is cached."""
        x = self.model.x_encoder
        cached = x.cache_features and x.frozen
        return ("x_encoder", self._encode_video, x.cache_dtype) if cached else None

    def _encode_video(self, encoder: Params, video: Any) -> jax.Array:
        return _apply(self.x_encoder, encoder, x_encoders.read(self.x_encoder, video, self.dtype))

    def predict(self, params: Params, tokens: jax.Array, query: Batch) -> jax.Array:
        """Returns predictions `[B*P, S]` from visual tokens `[B, N, D]` and B*P queries."""
        pairs = query["ids"].shape[0] // tokens.shape[0]
        tokens = jnp.repeat(tokens, pairs, axis=0) if pairs > 1 else tokens
        return _apply(self.predictor, params["predictor"], tokens, query["ids"], query["mask"])

    def text_features(self, params: Params, text: Batch) -> jax.Array:
        """Returns the Y-encoder tower's features `[B, F]`, computed or as cached in the stream."""
        if "features" in text:
            return text["features"].astype(self.dtype)
        return self._encode_text(params["y_encoder"]["tower"], text["ids"], text["mask"])

    def cached_text_tower(self) -> tuple[Any, Any] | None:
        """Returns the frozen tower for `jepa.training.features`; None if it is not cached."""
        y = self.model.y_encoder
        tower = text_towers.weights(y, self.tower) if y.cache_features and y.frozen else None
        return None if tower is None else (starting.read(tower), self._encode_text)

    def _encode_text(self, tower: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return _apply(self.tower, tower, ids, mask)

    def target(self, params: Params, text: Batch) -> jax.Array:
        """Returns the embeddings `[B, S]` of answers."""
        features = self.text_features(params, text)
        if self.head is None:
            return features
        return _apply(self.head, params["y_encoder"]["head"], features)

    def represent(
        self,
        params: Params,
        target_params: Params | None,
        state: Params,
        batch: Batch,
        rng: jax.Array,
    ) -> tuple[Outputs, Params]:
        """Returns `pooled["prediction"]` and `pooled["target"]`, both `[B*P, S]`, unnormalised."""
        del target_params, rng
        tokens = self.visual_tokens(params, batch["video"])
        outputs = Outputs(
            pooled={
                "prediction": self.predict(params, tokens, batch["query"]),
                "target": self.target(params, batch["text"]),
            },
            scalars={
                **{name: params[name] for name, _ in self.loss.partition_table()},
                "target_hash": batch["text"]["hash"],
            },
        )
        return outputs, state

    def objective(self, outputs: Outputs, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mixes the losses of `config.loss`; see `jepa.methods.paired_loss`."""
        return self.loss(
            outputs.pooled["prediction"],
            outputs.pooled["target"],
            learnt=outputs.scalars,
            target_hash=outputs.scalars["target_hash"],
            step=step,
        )

    def embed(self, params: Params, state: Params, batch: Batch) -> Outputs:
        """Returns unit vectors: `prediction` if there is a video, `target` if there is a text.

        A video without a query gives the X-encoder's `tokens["video"]` `[B, N, D]` and their mean,
        `pooled["video"]`, as they are.
        """
        del state
        if "video" in batch and "query" not in batch:
            tokens = self.visual_tokens(params, batch["video"])
            wide = jnp.promote_types(tokens.dtype, jnp.float32)
            mean = jnp.mean(tokens, axis=1, dtype=wide)
            return Outputs(tokens={"video": tokens}, pooled={"video": mean})
        pooled = {}
        if "tokens" in batch:
            pooled["prediction"] = self.predict(params, batch["tokens"], batch["query"])
        elif "video" in batch:
            tokens = self.visual_tokens(params, batch["video"])
            pooled["prediction"] = self.predict(params, tokens, batch["query"])
        if "text" in batch:
            pooled["target"] = self.target(params, batch["text"])
        return Outputs(pooled=jax.tree.map(_unit, pooled))

    def flops(self, batch: Batch) -> float:
        """Analytic FLOPs of a train step: forward, and twice that again where gradients flow.

        A frozen X-encoder or text tower counts its forward pass only; cached features nothing.
        """
        video = batch["video"]
        pairs, query_length = batch["query"]["ids"].shape
        if _is_cached(video):
            clips, tokens, _ = video["features"].shape
            x_encoder = 0.0
        else:
            clips, frames, height, width = frames_shape(video)
            tokens = math.prod(self.x_encoder.grid(frames, height, width))
            x_encoder = count.x_encoder(self.x_encoder, frames, height, width)
        predictor = count.predictor(
            self.predictor,
            visual_tokens=tokens,
            visual_width=self.x_encoder.width,
            query_length=query_length,
        )
        head = 0.0 if self.head is None else count.shared_head(self.head, self.tower.width)
        total = clips * x_encoder * (1.0 if self.model.x_encoder.frozen else 3.0)
        total += pairs * 3.0 * (predictor + head)
        if "ids" in batch["text"]:
            tower = count.text_tower(self.tower, batch["text"]["ids"].shape[1])
            total += pairs * tower * (1.0 if self.model.y_encoder.frozen else 3.0)
        return total


def _is_cached(video: Any) -> bool:
    return isinstance(video, Mapping) and "features" in video


def _apply(module: nn.Module, params: Params, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
