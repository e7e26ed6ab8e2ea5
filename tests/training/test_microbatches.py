import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.parallel import mesh as meshes
from jepa.training.microbatches import MicroBatches

EXAMPLES, PAIRS = 64, 3


def rows(count, width=2):
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


BATCH = {"clip": rows(EXAMPLES), "text": {"ids": rows(EXAMPLES * PAIRS)}}


@pytest.mark.parametrize("parts", [1, 2, 8, 64])
def test_an_example_keeps_all_its_rows_and_every_row_comes_back(parts):
    micro = MicroBatches.of(BATCH, parts)
    folded = micro.fold(BATCH)
    back = micro.zeros(BATCH)
    for i in range(parts):
        part = micro.take(folded, jnp.int32(i))
        np.testing.assert_array_equal(part["clip"], BATCH["clip"][i::parts])
        want = BATCH["text"]["ids"].reshape(EXAMPLES, PAIRS, -1)[i::parts]
        np.testing.assert_array_equal(part["text"]["ids"], want.reshape(-1, want.shape[-1]))
        back = micro.put(back, part, jnp.int32(i))
    jax.tree.map(np.testing.assert_array_equal, micro.unfold(back), BATCH)


def test_nothing_crosses_devices():
    def there_and_back(batch, index):
        micro = MicroBatches.of(batch, 4)
        folded = micro.fold(batch)
        part = jax.tree.map(jnp.square, micro.take(folded, index))
        return part, micro.unfold(micro.put(folded, part, index))

    mesh = meshes.make_mesh({"data": 4, "fsdp": 2})
    sharding = meshes.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        jitted = jax.jit(there_and_back, in_shardings=(sharding, None), out_shardings=sharding)
        program = jitted.lower(BATCH, jnp.int32(0)).compile()
    assert not re.findall(r"all-\w+|collective-\w+|reduce-scatter", program.as_text())
    part, _ = program(jax.device_put(BATCH, sharding), jax.device_put(jnp.int32(2)))
    np.testing.assert_array_equal(part["clip"], BATCH["clip"][2::4] ** 2)


@pytest.mark.parametrize(
    "batch, parts, words",
    [
        ({"a": rows(8), "b": {"c": rows(12)}}, 2, "b/c has 12 rows.*8 examples"),
        ({"a": rows(8), "b": np.float32(1)}, 2, "b is a scalar"),
        ({"a": rows(8), "b": rows(24)}, 3, "8 examples.*3 micro-batches"),
    ],
)
def test_batches_that_do_not_split_are_refused(batch, parts, words):
    with pytest.raises(ValueError, match=words):
        MicroBatches.of(batch, parts)
