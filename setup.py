"""Packaging. Ranges here are what the code accepts; requirements.txt pins what is tested."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "jepa" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="jepa",
    version=VERSION,
    description="Joint-embedding predictive architectures in JAX, from a laptop to a TPU pod",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["jepa", "jepa.*", "experiments", "experiments.*"]),
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18",
        "array-record>=0.8.3",
        "tensorflow-datasets>=4.9.10",
        "ml-collections>=1.1.0",
        "clu>=0.0.12,<0.1",
        "numpy>=2.0",
        "av>=15",
        "msgpack>=1.1",
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "pillow>=10",
        "pymunk>=7.0",
        "matplotlib>=3.9",
        "tensorboardX>=2.6.2",
        "tqdm>=4.66",
        "absl-py>=2.1",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        # Best in an environment of its own: Beam wants older protobuf and pillow than are pinned.
        "beam": ["apache-beam>=2.77,<3"],
        # torch and transformers are oracles for the parity tests, never imported by the library.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "scipy>=1.14",
            "torch>=2.6",
            "transformers>=5",
            "ruff>=0.9",
            "mypy>=1.14",
        ],
    },
)
