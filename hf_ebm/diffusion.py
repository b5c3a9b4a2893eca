"""The variance-preserving diffusion of DDAEBM: every coefficient, once.

A chain of ``T + 1`` states ``x_0 .. x_T`` joins the data to noise in few, large steps:

    x_t    = sqrt(abar_t) x + sqrt(1 - abar_t) n                       (marginal)
    x_next = sqrt(1 - beta_{t+1}) x_t + sqrt(beta_{t+1}) n'            (step, x_next = x_{t+1})
    q(x_t | x_next, x0) = N(coef_x0 x0 + coef_xnext x_next, variance)  (posterior, Bayes' rule on the two)

``t`` in 0..T-1 always indexes the *cleaner* state of the pair ``(x_t, x_next)``. Even ``x_0`` carries a little noise
(std 0.0105 with the defaults), because the chain starts at time ``1e-3`` and not at 0.

Source: Geng et al., "Improving Adversarial Energy-Based Model via Diffusion Process", ICML 2024, section on the
diffusion setting; the forward process is the VP process of Song et al. 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_ebm.utils.validation import check_count

BETA_MAX_CLAMP = 0.999  # no step may destroy everything: the posterior would divide by zero
LOG_VARIANCE_MIN = math.log(1e-4)  # lower clamp of the posterior's log-variance
SPACINGS = ("uniform", "dense_start", "quadratic")


def vp_times(num_timesteps: int, spacing: str) -> Tensor:
    """Continuous times ``u_0 .. u_T`` in [0, 1] of the chain's states, shape (T + 1,), float64 on the CPU.

    ``"uniform"``: ``u_k = eps + (1 - eps) k / T`` with ``eps = 1e-3``. ``"dense_start"`` (the published LSUN setting):
    multiples of ``floor(1000 / (2 (T - 1)))`` and then 999, divided by 999; it needs T >= 2. ``"quadratic"`` (ours, for
    data with narrow modes): ``u_k = eps + (1 - eps) (k / T)^2``, small steps near the data.
    """
    # on the CPU whatever torch's default device is: MPS has no float64
    eps, fraction = 1e-3, torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
    if spacing == "uniform":
        return eps + (1.0 - eps) * fraction
    if spacing == "quadratic":
        return eps + (1.0 - eps) * fraction**2
    if spacing == "dense_start":
        if num_timesteps < 2:
            raise ValueError(f"spacing='dense_start' needs num_timesteps >= 2, got {num_timesteps}; use 'uniform'.")
        stride = 1000 // (2 * (num_timesteps - 1))
        times = [*(k * stride for k in range(num_timesteps)), 999]
        return torch.tensor(times, dtype=torch.float64, device="cpu") / 999.0
    raise ValueError(f"spacing must be one of {SPACINGS}, got {spacing!r}.")


def clamped_log(variance: Tensor) -> Tensor:
    """Log of a variance, clamped below at ``log 1e-4``."""
    return variance.log().clamp(min=LOG_VARIANCE_MIN)


def per_sample(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """``values[t]`` in the dtype and on the device of `like`, shaped (B, 1, ..., 1) to broadcast over it."""
    picked = values.to(device=like.device, dtype=like.dtype)[t.to(like.device)]
    return picked.reshape(-1, *([1] * (like.ndim - 1)))


@dataclass(frozen=True, eq=False)
class DiffusionCoefficients:
    """All coefficients of the chain, float32, and the four operations that use them.

    Attributes:
        betas: Variance added on the way *into* each state, shape (T + 1,); index 0 is the noise of the cleanest state.
        alphas_cumprod: ``abar``, the share of the data's variance left in each state, shape (T + 1,).
        posterior_mean_coef_x0: Weight of the predicted clean sample in the posterior mean, shape (T,).
        posterior_mean_coef_xnext: Weight of ``x_next`` in the posterior mean, shape (T,).
        posterior_variance: Variance of ``q(x_t | x_next, x0)``, shape (T,), not clamped.
        sampling_std: Standard deviation of the noise that sampling adds, shape (T,): 0 at t = 0, above it that of the
            posterior, clamped as in `posterior_log_variance`.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    posterior_mean_coef_x0: Tensor
    posterior_mean_coef_xnext: Tensor
    posterior_variance: Tensor
    sampling_std: Tensor

    @classmethod
    def vp(
        cls,
        num_timesteps: int = 4,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        spacing: str = "uniform",
    ) -> DiffusionCoefficients:
        """The variance-preserving chain ``abar(u) = exp(-u^2 (beta_max - beta_min) / 2 - u beta_min)``.

        Args:
            num_timesteps: T >= 1, the number of denoising steps.
            beta_min: Rate of the noise at u = 0, >= 0.
            beta_max: Rate of the noise at u = 1, > beta_min.
            spacing: How the times are laid on [0, 1]: ``"uniform"``, ``"dense_start"``, ``"quadratic"``; `vp_times`.

        Raises:
            ValueError: If an argument is out of its range.
        """
        check_count("num_timesteps", num_timesteps, 1)
        if not (0.0 <= beta_min < beta_max < math.inf):
            raise ValueError(f"0 <= beta_min < beta_max must hold, got beta_min={beta_min}, beta_max={beta_max}.")
        u = vp_times(num_timesteps, spacing)
        abar = torch.exp(-0.5 * u**2 * (beta_max - beta_min) - u * beta_min)
        abar_prev = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
        return cls.from_betas((1.0 - abar / abar_prev).clamp(max=BETA_MAX_CLAMP))

    @classmethod
    def from_betas(cls, betas: Tensor) -> DiffusionCoefficients:
        """The chain of given ``betas``, shape (T + 1,), each in [0, 1); computed in float64 on the CPU."""
        betas = betas.cpu().double()
        abar = torch.cumprod(1.0 - betas, dim=0)
        abar_t, abar_next, beta_next = abar[:-1], abar[1:], betas[1:]
        variance = (beta_next * (1.0 - abar_t) / (1.0 - abar_next)).float()
        std = (0.5 * clamped_log(variance)).exp()
        return cls(
            betas=betas.float(),
            alphas_cumprod=abar.float(),
            posterior_mean_coef_x0=(beta_next * abar_t.sqrt() / (1.0 - abar_next)).float(),
            posterior_mean_coef_xnext=((1.0 - abar_t) * (1.0 - beta_next).sqrt() / (1.0 - abar_next)).float(),
            posterior_variance=variance,
            sampling_std=torch.cat([torch.zeros_like(std[:1]), std[1:]]),
        )

    @property
    def num_timesteps(self) -> int:
        """T, the number of denoising steps (and of energies)."""
        return len(self.betas) - 1

    def to(self, device: torch.device | str) -> DiffusionCoefficients:
        """The same coefficients on another device, so that a loop does not copy them at every step."""
        return DiffusionCoefficients(**{name: value.to(device) for name, value in vars(self).items()})

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``x_t ~ q(x_t | x)``, the marginal: ``sqrt(abar_t) x + sqrt(1 - abar_t) noise``.

        Args:
            x: Clean data, shape (B, ...), images in [-1, 1].
            t: State index of each sample, 0..T, integer, shape (B,).
            noise: Standard normal, shape of `x`.
        """
        abar = per_sample(self.alphas_cumprod, t, x)
        return abar.sqrt() * x + (1.0 - abar).sqrt() * noise

    def q_step(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``x_next ~ q(x_{t+1} | x_t)``: ``sqrt(1 - beta_{t+1}) x_t + sqrt(beta_{t+1}) noise``, `t` in 0..T-1."""
        beta = per_sample(self.betas, t + 1, x_t)
        return (1.0 - beta).sqrt() * x_t + beta.sqrt() * noise

    def log_q_step(self, x_next: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``log q(x_next | x_t)`` in nats with its constant, summed over the data dimensions, shape (B,)."""
        beta = per_sample(self.betas, t + 1, x_t)
        residual = x_next - (1.0 - beta).sqrt() * x_t
        log_density = -0.5 * (residual**2 / beta + beta.log() + math.log(2.0 * math.pi))
        return log_density.flatten(1).sum(dim=1)

    def log_q_step_grad(self, x_next: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``grad_{x_t} log q(x_next | x_t)`` in closed form, shape of `x_t`."""
        beta = per_sample(self.betas, t + 1, x_t)
        root = (1.0 - beta).sqrt()
        return root * (x_next - root * x_t) / beta

    def posterior_mean(self, x0_pred: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        """Mean of ``q(x_t | x_next, x0_pred)``, shape of `x_next`; `t` in 0..T-1, shape (B,)."""
        coef_x0 = per_sample(self.posterior_mean_coef_x0, t, x_next)
        coef_xnext = per_sample(self.posterior_mean_coef_xnext, t, x_next)
        return coef_x0 * x0_pred + coef_xnext * x_next

    def posterior_noise(self, x_t: Tensor, x: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        """The noise that makes `x_t` out of the posterior given the clean data: ``(x_t - mean(x, x_next)) / std``.

        By Bayes' rule it is standard normal and independent of ``(x, x_next)``. A fake drawn with it has the right
        distribution, and shares the noise of the real sample it is compared with.
        """
        std = per_sample((0.5 * self.posterior_log_variance).exp(), t, x_t)
        return (x_t - self.posterior_mean(x, x_next, t)) / std

    @property
    def posterior_log_variance(self) -> Tensor:
        """Log of the posterior variance, clamped below at ``log 1e-4``, shape (T,)."""
        return clamped_log(self.posterior_variance)

    def posterior_sample(
        self, x0_pred: Tensor, x_next: Tensor, t: Tensor, noise: Tensor, noise_at_t0: bool = False
    ) -> Tensor:
        """``x_t ~ q(x_t | x_next, x0_pred)``; no noise is added where ``t = 0``. Shapes as in `posterior_mean`.

        With `noise_at_t0` the cleanest state gets its noise too, as the real ``x_0`` of the chain has it.
        """
        std = (0.5 * self.posterior_log_variance).exp() if noise_at_t0 else self.sampling_std
        return self.posterior_mean(x0_pred, x_next, t) + per_sample(std, t, x_next) * noise
