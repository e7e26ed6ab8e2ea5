import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.models.projector import Projector
from jepa.nn.norms import BatchNorm
from jepa.parallel import mesh as meshes
from jepa.parallel import partition

X = np.random.default_rng(0).normal(2.0, 3.0, (24, 5)).astype("float32")


def test_batch_norm_is_the_textbook_one():
    module = BatchNorm(momentum=0.25)
    variables = module.init(jax.random.key(0), X, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)  # drawing moves nothing
    y, new = module.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.25 * X.mean(0), rtol=1e-5)
    wanted = 0.75 + 0.25 * X.var(0, ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["variance"], wanted, rtol=1e-5)
    y = module.apply({**variables, **new}, X, train=False)
    wanted = (X - 0.25 * X.mean(0)) / np.sqrt(wanted + 1e-5)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_batch_norm_sees_the_global_batch():
    """Each device's rows have another mean, which a batch norm of its own would take away."""
    module = BatchNorm()
    x = np.arange(16, dtype="float32")[:, None] * np.ones((16, 3), "float32")
    variables = module.init(jax.random.key(0), x, train=True)
    mesh = meshes.make_mesh({"data": 4}, jax.devices()[:4])
    apply = jax.jit(lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"]))
    y, new = apply(jax.device_put(x, meshes.batch_sharding(mesh)))
    np.testing.assert_allclose(y, (x - 7.5) / np.sqrt(x.var(0) + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.75, rtol=1e-6)


@pytest.mark.parametrize(("norm", "hidden"), [("batch", (8, 6)), ("layer", (8,)), ("none", ())])
def test_a_projector_has_what_its_table_and_its_flops_say(norm, hidden):
    module = Projector(4, hidden=hidden, norm=norm)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((3, 5)), train=True))
    partition.specs(module.partition_table(), variables["params"])
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim == 2]
    assert module.flops(3, 5) == 2 * 3 * sum(x.size for x in kernels)
    assert ("batch_stats" in variables) == (norm == "batch")


def test_an_unknown_norm_is_named():
    with pytest.raises(UserError, match="'group'"):
        Projector(4, norm="group").init(jax.random.key(0), X, train=True)
