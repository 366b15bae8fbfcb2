"""Weighted squared error: what the network is asked to be right about."""

from torch import Tensor
from torch.nn import functional as F

from cloudjob.pixels import CLEAR, NO_DATA, UNKNOWN


def pixel_weights(mask: Tensor, clean_valid: Tensor, *, clear_weight: float) -> Tensor:
    """(N, 1, H, W): 1 on cloud, shadow and cirrus, `clear_weight` on clear and unknown pixels, 0 without data.

    `mask` holds mask classes, `clean_valid` is true where the clear date has data; both (N, 1, H, W). `clear_weight`
    must be above 0: a network that is never asked about clear pixels fills them with noise. Unknown pixels are asked
    about no more than clear ones: the result keeps them as observed, and the dates may rightly differ there (new snow).
    """
    kept = (mask == CLEAR) | (mask == UNKNOWN)
    weights = (~kept).float() + clear_weight * kept
    return weights * (mask != NO_DATA) * clean_valid


def weighted_entropy(logit: Tensor, share: Tensor, weights: Tensor) -> Tensor:
    """As `weighted_mse`, of the cross-entropy between a share and its logit; 0 where the share is not known (NaN)."""
    known = share.isfinite()
    each = F.binary_cross_entropy_with_logits(logit.float(), share.where(known, 0.5), reduction="none")
    return (weights * known * each).mean()


def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over all pixels and bands of weights * squared error, in float32.

    The divisor is the fixed pixel count, not the sum of weights: so the mean over ranks is the mean over the batch.
    """
    return (weights * (prediction.float() - target).square()).mean()
