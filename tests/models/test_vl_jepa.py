import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import draw, run

from jepa.errors import UserError
from jepa.models.llama import LLAMAS
from jepa.models.vl_jepa import Predictor, SharedHead

IDS = jnp.array([[2, 5, 3, 0], [2, 9, 4, 3]])
MASK = IDS != 0


def make(**options):
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "features": 6, "vocab": 12}
    return Predictor(**{**sizes, "table_width": 10, **options})


@pytest.fixture(scope="module")
def visual():
    return jax.random.normal(jax.random.key(0), (2, 5, 8))


@pytest.fixture(scope="module")
def variables(visual):
    return draw(make(), visual, IDS, MASK)


@pytest.mark.parametrize("pool", ["all", "query"])
def test_both_streams_count_and_pads_do_not(visual, variables, pool):
    module = make(pool=pool)
    got = run(module, variables, visual, IDS, MASK)
    assert got.shape == (2, 6)
    pads = run(module, variables, visual, jnp.where(MASK, IDS, 7), MASK)
    np.testing.assert_allclose(pads, got, atol=1e-5)
    question = run(module, variables, visual, IDS.at[0, 1].set(8), MASK)
    scene = run(module, variables, visual.at[0, 2].add(1.0), IDS, MASK)
    for changed in (question, scene):
        assert jnp.abs(changed[0] - got[0]).max() > 1e-3
        np.testing.assert_allclose(changed[1], got[1], atol=1e-6)


def test_pooling_is_the_mean_that_its_name_says(visual, variables):
    """With the blocks silenced, the output is a linear map of the mean of normalised inputs."""
    silent = jax.tree_util.tree_map_with_path(
        lambda path, p: p * 0 if "out" in [k.key for k in path] else p, variables
    )
    params = silent["params"]
    words = params["table"]["embedding"][IDS] @ params["table_projection"]["kernel"]
    seen = visual @ params["visual_projection"]["kernel"] + params["visual_projection"]["bias"]
    x = np.concatenate([seen, words], axis=1)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params["llama"]["norm"]["scale"]
    everything = np.concatenate([np.ones((2, 5), bool), MASK], axis=1)
    for pool, counted in (("all", everything), ("query", everything & (np.arange(9) >= 5))):
        mean = (x * counted[..., None]).sum(1) / counted.sum(1)[:, None]
        out = params["out_projection"]
        expected = mean @ out["kernel"] + out["bias"]
        got = run(make(pool=pool), silent, visual, IDS, MASK)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_causal_switch_hides_the_query_from_the_scene(visual, variables):
    both = run(make(), variables, visual, IDS, MASK)
    causal = run(make(causal=True), variables, visual, IDS, MASK)
    assert jnp.abs(both - causal).max() > 1e-3


def test_the_table_is_apart_and_needs_no_projection_when_it_fits(visual, variables):
    params = variables["params"]
    assert jax.tree.map(jnp.shape, params["table"]) == {"embedding": (12, 10)}
    assert params["table_projection"]["kernel"].shape == (10, 16)
    for width in (None, 16):
        shapes = jax.eval_shape(make(table_width=width).init, jax.random.key(0), visual, IDS, MASK)
        assert "table_projection" not in shapes["params"]
        assert shapes["params"]["table"]["embedding"].shape == (12, 16)


def test_unknown_pool_is_refused(visual):
    with pytest.raises(UserError, match="pool is 'first'"):
        make(pool="first").init(jax.random.key(0), visual, IDS, MASK)


def test_the_paper_s_predictor_has_490_million_parameters_beside_the_table():
    fields = {**LLAMAS["llama-3.2-1b"], "depth": 8}
    module = Predictor(features=1536, vocab=128256, **fields)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, 2, 1024)), IDS[:1], MASK[:1]
    )["params"]
    table = shapes.pop("table")["embedding"]
    assert table.shape == (128256, 2048)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(491.8, abs=0.1)


def test_shared_head_is_linear():
    head = SharedHead(3)
    x = jax.random.normal(jax.random.key(0), (4, 5))
    variables = draw(head, x)
    projection = variables["params"]["projection"]
    expected = x @ projection["kernel"] + projection["bias"]
    np.testing.assert_allclose(run(head, variables, x), expected, atol=1e-6)
