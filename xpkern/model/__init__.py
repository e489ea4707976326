"""What is learned: the flux model, the prior on stellar type, the noise and confidence of both, and their file."""

from xpkern.model.confidence import Confidence
from xpkern.model.flux_model import FluxModel
from xpkern.model.model_file import load_model, save_model
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior

__all__ = ["Confidence", "FluxModel", "Noise", "TypePrior", "load_model", "save_model"]
