"""The config over a published image tower builds for every tower, as shapes alone."""

import jax
import jax.numpy as jnp
import pytest

from configs.vl_jepa import image_tower
from jepa import methods
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.models.image_tower import IMAGE_TOWERS
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training import metrics, video_features

# As published, in millions: of the vision tower alone, without SigLIP's pooling head.
MILLIONS = {
    "vit_base_patch16_224": 85.8,
    "vit_large_patch16_224": 303.3,
    "dinov2_small": 22.1,
    "dinov2_base": 86.6,
    "dinov2_large": 304.4,
    "dinov2_giant": 1136.5,
    "siglip2_base_patch16_224": 85.8,
    "siglip2_so400m_patch14_384": 413.0,
}


# One of each family in every test run.
QUICK = (
    "vit_base_patch16_224",
    "dinov2_small",
    "dinov2_with_registers_giant",
    "siglip2_base_patch16_naflex",
    "siglip2_so400m_patch14_384",
)


@pytest.mark.parametrize(
    "tower",
    [t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in IMAGE_TOWERS],
)
def test_every_tower_builds(tower):
    config = image_tower.get_config(tower)
    config.data.path = "somewhere"
    config = configs.resolve(config)
    data = DataConfig.parse(config.data)
    data.check_one_view("cached")
    method = methods.from_config(config)
    configs.check_run(config, method, devices=2)
    size, pairs = data.size, 2 * data.pairs_per_clip
    tokens = {
        "ids": jnp.ones((pairs, data.query_length), jnp.int32),
        "mask": jnp.ones((pairs, data.query_length), bool),
    }
    batch = {
        "video": jax.ShapeDtypeStruct((2, data.frames, size, size, 3), jnp.uint8),
        "query": tokens,
        "text": {**tokens, "hash": jnp.arange(pairs)},
    }
    params, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
    partition.specs(method.partition_table, params)
    assert method.flops(batch) > 0
    assert video_features.tower_of(method) is not None
    if tower in MILLIONS:
        assert round(metrics.count(params["x_encoder"]) / 1e6, 1) == MILLIONS[tower]


def test_a_tower_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="no tower 'clip'; use one of vit_base_patch16_224"):
        image_tower.get_config("clip")
