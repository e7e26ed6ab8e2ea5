import jax
import jax.numpy as jnp
import pytest

from jepa.errors import UserError
from jepa.parallel import topology
from jepa.parallel.mesh import batch_sharding

needs_libtpu = pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")


@needs_libtpu
def test_a_program_is_compiled_for_chips_that_are_not_there():
    mesh = topology.tpu_mesh("v5e:4x4", {"data": -1, "fsdp": 4})
    assert dict(mesh.shape) == {"data": 4, "fsdp": 4, "tensor": 1, "context": 1}
    x = jax.ShapeDtypeStruct((32, 128), jnp.float32, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        program = topology.compile_for_tpu(lambda x: x.sum(), x)
    assert "all-reduce" in program.as_text()
    assert program.memory_analysis().argument_size_in_bytes == 2 * 128 * 4


@needs_libtpu
def test_a_topology_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="v5q:2x2"):
        topology.tpu_mesh("v5q:2x2", {"data": -1})


def test_without_libtpu_the_mend_is_named(monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    with pytest.raises(UserError, match="pip install"):
        topology.tpu_mesh("v5e:2x2", {"data": -1})
