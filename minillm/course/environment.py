"""`environment.yml` for conda, mamba and repo2docker, generated from `pyproject.toml`."""

import re
import tomllib
from pathlib import Path

# Most packages carry one name on PyPI and on conda-forge. These do not.
_CONDA_NAMES = {
    "huggingface-hub": "huggingface_hub",
    "matplotlib": "matplotlib-base",
    "torch": "pytorch",
}


def environment_yml(pyproject: Path) -> str:
    """The learner's environment: conda packages for the base dependencies, then the course.

    Python is written `python=3.12`, the one form from which repo2docker reads the version.
    """
    dependencies = tomllib.loads(pyproject.read_text("utf-8"))["project"]["dependencies"]
    packages = "\n".join(f"  - {_conda(requirement)}" for requirement in dependencies)
    return (
        "# Generated from pyproject.toml by `python -m minillm.course environment`.\n"
        "name: minillm\n"
        "channels:\n"
        "  - conda-forge\n"
        "  - nodefaults\n"
        "dependencies:\n"
        "  - python=3.12\n"
        f"{packages}\n"
        "  - pip:\n"
        "      - -e .\n"
    )


def _conda(requirement: str) -> str:
    name, version = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()
    return _CONDA_NAMES.get(name, name) + version
