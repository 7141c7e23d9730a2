"""Cross-entropy training inverts the data-generating process: sample a world, train on it, see how linearly its latents come back."""

__version__ = "0.1.0"

from importlib import import_module

# The public names and the modules they live in. They are imported when first used, so that `import cegen` costs nothing
# and a program that only samples latents never loads scikit-learn or pandas.
_HOMES = {
    "core": ["AssumptionViolated", "Batch", "CheckpointError", "MissingExtra", "Source", "TrainingDiverged"],
    "sphere": [
        "ProjectedAnisotropicNormal", "ProjectedGeneralizedNormal", "ProjectedLaplace", "ProjectedNormal", "SphereMixture", "SphericalCauchy",
    ],
    "vmf": ["VonMisesFisher"],
    "dgp": ["ClusterDGP"],
    "mixing": ["InvertibleMLP"],
    "source": ["ArraySource", "PairedSource", "SyntheticSource"],
    "model": ["AuxiliaryHead", "Encoder", "Head", "SampledHead", "Similarity"],
    "train": ["FitResult", "fit", "fit_many"],
    "probe": ["identifiability_report"],
    "run": ["Config", "Result", "identify"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ["probe", "theory"]

__all__ = sorted([*_MODULE_OF, *_MODULES])


def __getattr__(name):
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
