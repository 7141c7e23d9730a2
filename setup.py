"""Packaging: everything that can change is written in settings.ini and only read here."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
s = settings["DEFAULT"]

setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=s["author"],
    author_email=s["author_email"],
    url=s["git_url"],
    license="Apache-2.0",
    keywords=s["keywords"],
    python_requires=f">={s['min_python']}",
    packages=find_packages(include=["cegen", "cegen.*"]),
    package_data={"cegen": ["py.typed"]},
    install_requires=s["requirements"].split(),
    extras_require={name: s[f"{name}_requirements"].split() for name in s["extras"].split()},
    entry_points={"console_scripts": s["console_scripts"].split()},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
    ],
)
