import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import draw, run

from jepa.errors import UserError
from jepa.models import vit
from jepa.models.vit import VITS, PatchEmbedding, VideoTransformer


def make(**options):
    return VideoTransformer(**{"width": 24, "depth": 2, "heads": 2, "patch": 4, **options})


@pytest.fixture(scope="module")
def video():
    return jax.random.normal(jax.random.key(0), (2, 4, 12, 20, 3))


@pytest.fixture(scope="module")
def variables(video):
    return draw(make(), video)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_patches_are_a_strided_convolution(video, platform, monkeypatch):
    monkeypatch.setattr(vit, "platform", lambda: platform)
    module = PatchEmbedding(5, patch=4, tubelet=2)
    variables = draw(module, video)
    params = variables["params"]
    convolved = jax.lax.conv_general_dilated(
        video,
        params["kernel"],
        window_strides=(2, 4, 4),
        padding="VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    assert convolved.shape == (2, 2, 3, 5, 5)
    expected = convolved.reshape(2, 30, 5) + params["bias"]
    # Not by `run`, which keeps what it has compiled.
    got = jax.jit(module.apply)(variables, video)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_any_grid_with_the_same_parameters(video, variables):
    module = make()
    assert run(module, variables, video).shape == (2, 30, 24)
    for shape in ((1, 2, 4, 4, 3), (1, 6, 4, 28, 3)):
        assert run(module, variables, jnp.ones(shape)).shape == (
            1,
            np.prod(module.grid(*shape[1:4])),
            24,
        )


def test_an_image_is_a_still_clip(video, variables):
    image = video[:, :1]
    still = jnp.concatenate([image, image], axis=1)
    got = run(make(), variables, image)
    np.testing.assert_allclose(got, run(make(), variables, still), atol=1e-6)


def test_seen_tokens_do_not_depend_on_the_order_they_are_listed_in(video, variables):
    module = make()
    everything = run(module, variables, video)
    order = jax.random.permutation(jax.random.key(2), 30)
    ids = jnp.broadcast_to(order, (2, 30))
    got = run(module, variables, video, ids)
    np.testing.assert_allclose(got, everything[:, order], atol=1e-4)


def test_unseen_tokens_have_no_influence_and_positions_travel(video, variables):
    module = make()
    ids = jnp.array([[0, 9, 29], [3, 4, 11]])
    got = run(module, variables, video, ids)
    assert got.shape == (2, 3, 24)
    # Pixels of token 1 (row 0, column 1) changed: seen by nobody.
    changed = video.at[:, :2, :4, 4:8].set(9.0)
    np.testing.assert_array_equal(got, run(module, variables, changed, ids))
    # The same cubes elsewhere in the grid make other tokens: a uniform video, other positions.
    still = jnp.broadcast_to(video[:, :1, :4, :4], (2, 4, 4, 4, 3))
    uniform = jnp.tile(still, (1, 1, 3, 5, 1)) * jnp.linspace(1, 2, 4)[None, :, None, None, None]
    near = run(module, variables, uniform, jnp.array([[0, 1, 15]] * 2))
    far = run(module, variables, uniform, jnp.array([[0, 14, 29]] * 2))
    assert jnp.abs(near - far).max() > 1e-3


def test_positions_matter(video, variables):
    # Without positions a permutation of the cubes would permute the tokens.
    flipped = run(make(), variables, video[:, ::-1, ::-1, ::-1])
    back = flipped[:, ::-1]
    ones = {"params": dict(variables["params"])}
    kernel = variables["params"]["patches"]["kernel"]
    ones["params"]["patches"] = {
        **variables["params"]["patches"],
        "kernel": kernel[::-1, ::-1, ::-1],
    }
    same_cubes = run(make(), ones, video)
    assert jnp.abs(back - same_cubes).max() > 1e-3


def test_stretched_positions(video, variables):
    # Nothing to stretch when the grid is the pretraining grid; a difference elsewhere.
    square = video[:, :, :12, :12]
    plain = run(make(), variables, square)
    np.testing.assert_allclose(run(make(pretrain_grid=3), variables, square), plain, atol=1e-6)
    assert jnp.abs(run(make(pretrain_grid=16), variables, square) - plain).max() > 1e-3
    assert np.isfinite(run(make(pretrain_grid=16), variables, video[:, :, :4, :4])).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 12, 12), "3 frames"), ((2, 10, 12), "10x12"), ((2, 12, 13), "12x13")],
)
def test_videos_that_cannot_be_cut_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        make().init(jax.random.key(0), jnp.zeros((1, *shape, 3)))


def test_unknown_positions_are_refused(video):
    with pytest.raises(UserError, match="rope is 'learnt'"):
        make(rope="learnt").init(jax.random.key(0), video)


@pytest.mark.parametrize(
    ("name", "millions"), [("large", 304), ("huge", 633), ("giant", 1012), ("gigantic", 1840)]
)
def test_published_sizes(name, millions):
    module = VideoTransformer(**VITS[name])
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2, 16, 16, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_all_sizes_fit_their_rotary_embedding():
    for size in VITS.values():
        assert size["width"] % size["heads"] == 0
        assert size["width"] // size["heads"] % 2 == 0
