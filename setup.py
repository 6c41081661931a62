"""Packaging of the fairseq plugin. The workflow beside it runs from the clone and is not installed."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# The package states its version. Importing the package would require what is being installed.
INIT = Path(__file__).resolve().parent / "fairseq_prefix" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE)[1]

setup(
    name="fairseq-prefix",
    version=VERSION,
    description="Prefix-tuning of pretrained BART, mBART and GPT-2 in fairseq, with a workflow from raw data to score",
    long_description="Prefix-tuning (Li and Liang, 2021) as a fairseq plugin, and a Snakemake workflow around it.",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["fairseq_prefix*"]),
    python_requires=">=3.11",
    install_requires=[
        "fairseq-fixed>=0.12.3.1,<0.13",  # fairseq's main branch, fixed for Python 3.11; provides the module `fairseq`
        "hydra-core>=1.3,<1.4",
        "numpy>=1.26,<3",
        "omegaconf>=2.3,<2.4",
        "safetensors>=0.4,<1",
        "torch>=2.10",  # in older ones torch.load with weights_only can be made to run code (docs/safety.md)
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "workflow": [
            "defusedxml>=0.7,<1",
            "jsonschema>=4.20,<5",
            "matplotlib>=3.8,<4",
            "psutil>=5.9",
            "pyyaml>=6,<7",
            "regex>=2023.1",
            "rouge-score>=0.1.2,<0.2",
            "sacrebleu>=2.4,<3",
            "sentencepiece>=0.2.3,<0.3",
            "snakemake>=9.11,<10",
            "unidecode>=1.3,<2",
        ],
        "cluster": ["snakemake-executor-plugin-cluster-generic>=1.0.9,<2", "snakemake-executor-plugin-slurm>=2.8,<3"],
        "parquet": ["pyarrow>=14.0.1"],
        "transformers": ["transformers>=4.53,<6"],  # a prefix on its models (hugging_face.py)
        "tensorboard": ["tensorboard>=2.14"],  # trainings of the workflow then write to it
        # METEOR, CIDEr and the Treebank tokeniser, which also need Java; the irregular forms of ROUGE-1.5.5
        "scores": ["pycocoevalcap>=1.2,<2", "py-rouge>=1.1,<2"],
        "bertscore": ["bert-score>=0.3.13,<0.4"],
        "test": [
            "hypothesis>=6",
            "mypy>=1.18",
            "pyarrow>=14.0.1",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "snakefmt>=1,<3",
            "transformers>=4.53,<6",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
