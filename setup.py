"""Packaging. The bounds of torch span the releases that the tests ran on."""

from pathlib import Path

from setuptools import find_packages, setup

PILLOW = ["Pillow>=10"]
TEST = ["pytest>=8", "pytest-cov>=5", "pytest-xdist>=3.7", "hypothesis>=6.100", "ruff>=0.8", *PILLOW]
PAGE = ["page.html"]

setup(
    name="minirlhf",
    version="0.1.0",
    description="RLHF for language models in pure PyTorch: small enough to read, fast enough to use",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=["Operating System :: POSIX"],  # Linux and macOS; on Windows in WSL
    packages=find_packages(include=["minirlhf", "minirlhf.*"]),
    package_data={"minirlhf": ["py.typed"], "minirlhf.evaluation.human": PAGE, "minirlhf.seeing": PAGE},
    entry_points={"console_scripts": ["minirlhf = minirlhf.cli.main:main"]},
    python_requires=">=3.11",
    install_requires=["torch>=2.11,<2.14", "tokenizers>=0.21,<1", "safetensors>=0.5", "numpy>=1.26", "tqdm>=4.66"],
    extras_require={
        "parquet": ["pyarrow>=15"],
        "vision": PILLOW,
        "test": TEST,
        "browser": [*TEST, "selenium>=4"],  # and Debian's packages chromium and chromium-driver
        "parity": [
            *TEST,
            "transformers>=5,<6",
            "trl>=1.16,<1.17",
            "peft>=0.21,<0.22",
            "sacrebleu>=2.5,<3",
            "rouge-score>=0.1.2",
            "pyarrow>=15",
            "tensorboard>=2.17",
        ],
    },
)
