"""The attentive probe: its shapes, its grid, and a task that means of tokens cannot solve."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa.evaluation import probes_attentive, probes_linear
from jepa.evaluation.probes_attentive import Options, Probes
from jepa.models.attentive_probe import AttentiveProbe, fitting_heads
from jepa.parallel import mesh as meshes


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh({}, jax.devices()[:1])


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def count(model, width):
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, width)))
    shapes = made["params"]
    return shapes, sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


def test_parameters_are_those_of_the_papers():
    shapes, number = count(AttentiveProbe(classes=174, depth=4, heads=16), 1024)
    block = 12 * 1024**2 + 13 * 1024
    cross = 3 * (1024**2 + 1024) + 8 * 1024**2 + 5 * 1024 + 4 * 1024  # no output projection
    assert number == 3 * block + cross + 1024 + 174 * 1025
    assert shapes["blocks"]["attention"]["qkv"]["kernel"].shape[0] == 3
    assert set(shapes["cross"]) == {"query", "keys", "values"}
    shapes, number = count(AttentiveProbe(classes=10, depth=1, heads=16), 1024)
    assert "blocks" not in shapes and number == cross + 1024 + 10 * 1025


def test_the_order_of_tokens_is_of_no_matter_unless_they_say_it():
    model = AttentiveProbe(classes=3, depth=3, heads=2)
    tokens = jax.random.normal(jax.random.key(1), (2, 5, 8))
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    logits = jax.jit(model.apply)(params, tokens)
    assert logits.shape == (2, 3) and not np.allclose(logits[0], logits[1])
    again = jax.jit(model.apply)(params, tokens[:, ::-1])
    np.testing.assert_allclose(again, logits, atol=1e-5)


def test_heads_fit_the_width():
    assert [fitting_heads(width) for width in (1024, 1408, 192, 128, 24, 15)] == [
        16, 16, 12, 8, 1, 1,
    ]  # fmt: skip


def ordered(number, seed=0):
    """Four tokens, each a thing and a place; the class is which of two things comes first.

    Things and places are the same in every clip, so the mean of the tokens is too.
    """
    rng = np.random.default_rng(seed)
    tokens = np.zeros((number, 4, 16), np.float16)
    labels = np.zeros(number, np.int32)
    for row in range(number):
        things = rng.permutation(4)
        for place, thing in enumerate(things):
            tokens[row, place, [thing, 8 + place]] = 3
        labels[row] = int(np.argmax(things == 0) < np.argmax(things == 1))
    return tokens, labels


def test_a_probe_learns_an_order_that_pooled_features_have_lost(mesh):
    tokens, labels = ordered(160)
    fit, test = np.arange(120), np.arange(120, 160)
    options = Options(
        depth=1, epochs=20, batch_size=8, learning_rates=(1e-2,), weight_decays=(0.01,)
    )
    probes = Probes(classes=2, width=16, options=options, mesh=mesh)
    params = probes.train(tokens, labels, fit, seed=0)
    hits = probes.logits(params, tokens, test)[0].argmax(axis=1) == labels[test]
    assert hits.mean() > 0.95
    pooled = tokens.mean(axis=1, dtype=np.float32)
    linear = probes_linear.fit(pooled[fit], labels[fit], classes=2, l2=(1e-3,))
    assert (linear.logits(pooled[test])[0].argmax(axis=1) == labels[test]).mean() < 0.8


def test_the_grid_is_the_same_as_one_probe_at_a_time_and_a_mesh_changes_nothing(mesh):
    tokens, labels = ordered(20)
    options = {"depth": 1, "epochs": 3, "batch_size": 8}
    rates, decays = (1e-2, 1e-3), (0.0, 0.8)
    grid = Options(learning_rates=rates, weight_decays=decays, **options)
    assert grid.grid == [(1e-2, 0.0), (1e-2, 0.8), (1e-3, 0.0), (1e-3, 0.8)]

    def said(options, mesh):
        probes = Probes(classes=2, width=16, options=options, mesh=mesh)
        params = probes.train(tokens, labels, np.arange(20), seed=3)
        return probes.logits(params, tokens, [0, 1, 2])

    together = said(grid, meshes.make_mesh({"data": 2}, jax.devices()[:2]))
    assert together.shape == (4, 3, 2)
    assert len({float(x) for x in together[:, 0, 0]}) == 4
    for place in (0, 3):
        rate, decay = grid.grid[place]
        one = Options(learning_rates=(rate,), weight_decays=(decay,), **options)
        np.testing.assert_allclose(said(one, mesh)[0], together[place], atol=1e-3)


def test_a_step_is_optax_adamw_without_decay_of_biases(mesh):
    tokens, labels = ordered(8)
    options = Options(depth=1, epochs=2, batch_size=8, learning_rates=(1e-2,), weight_decays=(0.5,))
    probes = Probes(classes=2, width=16, options=options, mesh=mesh)
    found = probes.train(tokens, labels, np.arange(8), seed=0)
    init = jax.jit(probes.model.init)
    params = init(jax.random.key(0), jnp.zeros((1, 4, 16)))["params"]

    def decayed(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key not in ("bias", "scale"), tree
        )

    # Half a cosine over two steps: the full rate, then half of it.
    adamw = optax.adamw(lambda step: 1e-2 * (1 - step / 2), weight_decay=0.5, mask=decayed)
    state = jax.jit(adamw.init)(params)

    @jax.jit
    def advance(params, state):
        def loss(params):
            logits = probes.model.apply({"params": params}, jnp.asarray(tokens))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = adamw.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = advance(params, state)
    logits = jax.jit(probes.model.apply)({"params": params}, jnp.asarray(tokens))
    np.testing.assert_allclose(probes.logits(found, tokens, range(8))[0], logits, atol=1e-4)
    # The query is decayed, being no bias.
    np.testing.assert_allclose(found["query"][0], params["query"], atol=1e-5)


def test_only_the_given_rows_are_trained_on(mesh):
    tokens, labels = ordered(24)
    options = Options(
        depth=1, epochs=1, batch_size=8, learning_rates=(1e-2,), weight_decays=(0.01,)
    )
    probes = Probes(classes=2, width=16, options=options, mesh=mesh)
    rows = np.arange(8, 24)
    clean = probes.train(tokens, labels, rows, seed=0)
    tokens[:8], labels[:8] = np.nan, 1 - labels[:8]
    poisoned = probes.train(tokens, labels, rows, seed=0)
    for one, other in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_probes_read_no_more_clips_at_once_than_they_train_on(mesh, monkeypatch):
    tokens, _ = ordered(20)
    sizes = []

    def forward(model, params, rows):
        sizes.append(len(rows))
        return np.asarray(rows, np.float32).sum(axis=(1, 2))[None, :, None]

    monkeypatch.setattr(probes_attentive, "_forward", forward)
    probes = Probes(classes=2, width=16, options=Options(batch_size=8), mesh=mesh)
    found = probes.logits(None, tokens, np.arange(20))
    assert sizes == [8, 8, 8]
    np.testing.assert_allclose(found[0, :, 0], tokens.sum(axis=(1, 2), dtype=np.float32))


def test_the_default_grid_is_v_jepa_2s():
    grid = Options().grid
    assert len(grid) == 20 and grid[0] == (5e-3, 0.01) and grid[-1] == (1e-4, 0.8)
