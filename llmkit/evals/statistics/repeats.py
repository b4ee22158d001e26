"""Chances over repeats of a sample: that one of several is right, and that all are."""

from __future__ import annotations

from scipy import special

__all__ = ["estimate_pass_at_k", "estimate_pass_hat_k"]


def estimate_pass_at_k(n: int, correct: int, k: int) -> float:
    """Estimate the chance that at least one of `k` repeats is right, from `correct` of `n`.

    Unbiased: `1 - C(n-c, k) / C(n, k)`.

    Source: M. Chen et al., "Evaluating Large Language Models Trained on Code" (2021), arXiv:2107.03374, equation 1.

    Raises:
        ValueError: Not `0 <= correct <= n` and `1 <= k <= n`.
    """
    _require_counts(n, correct, k)
    return float(1 - special.comb(n - correct, k, exact=True) / special.comb(n, k, exact=True))


def estimate_pass_hat_k(n: int, correct: int, k: int) -> float:
    """Estimate the chance that all of `k` repeats are right (pass^k), from `correct` of `n`.

    Unbiased: `C(c, k) / C(n, k)`.

    Source: S. Yao et al., "τ-bench: A Benchmark for Tool-Agent-User Interaction in Real-World Domains" (2024),
    arXiv:2406.12045, section 3.

    Raises:
        ValueError: Not `0 <= correct <= n` and `1 <= k <= n`.
    """
    _require_counts(n, correct, k)
    return float(special.comb(correct, k, exact=True) / special.comb(n, k, exact=True))


def _require_counts(n: int, correct: int, k: int) -> None:
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n; got n={n}, correct={correct}, k={k}")
