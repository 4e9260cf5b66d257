"""The adversarial term: a classifier tells noised pictures of the data from noised samples of the student, and the
student learns to pass for the data.

DMD2 (arXiv 2405.14867, section 4.3) puts the classifier on features of the fake score and trains both networks by the
non-saturating losses (Goodfellow et al. 2014, arXiv 1406.2661): the teacher's own errors no longer bound the student.
A logit is high where the classifier takes its input for data; its optimum is log p_data - log p_student at x_t, so that
log 4 is the classifier's loss where it cannot tell. All losses are per sample, (B,).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def classifier_loss(of_data: Tensor, of_samples: Tensor) -> Tensor:
    """-log D(data) - log(1 - D(sample)), D = sigmoid of a logit (B,)."""
    return F.softplus(-of_data) + F.softplus(of_samples)


def student_loss(of_samples: Tensor) -> Tensor:
    """-log D(sample): large gradients where the classifier is sure that the student made it."""
    return F.softplus(-of_samples)


def with_gradient(losses: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """`losses` (B,) of samples `x` (B, N, C) with the gradient (B, N, C) that was computed for them: what is behind x
    is trained, and nothing else."""
    return losses.detach() + ((x - x.detach()) * gradient).flatten(1).sum(dim=1)
