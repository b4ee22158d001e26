"""What repeats of a sample tell: whether one of several is right, and whether all are."""

from __future__ import annotations

from scipy import special

__all__ = ["pass_at_k", "pass_hat_k"]


def estimate_pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of `k` repeats is right, from `correct` of `n`: `1 - C(n-c, k) / C(n, k)`.

    Source: M. Chen et al., "Evaluating Large Language Models Trained on Code" (2021), arXiv:2107.03374, equation 1.

    Raises:
        ValueError: Not `0 <= correct <= n` and `1 <= k <= n`.
    """
    _require(n, correct, k)
    return float(1 - special.comb(n - correct, k, exact=True) / special.comb(n, k, exact=True))


def estimate_pass_hat_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that all of `k` repeats are right, from `correct` of `n`: `C(c, k) / C(n, k)`, called pass^k.

    Source: S. Yao et al., "τ-bench: A Benchmark for Tool-Agent-User Interaction in Real-World Domains" (2024),
    arXiv:2406.12045, section 3.

    Raises:
        ValueError: Not `0 <= correct <= n` and `1 <= k <= n`.
    """
    _require(n, correct, k)
    return float(special.comb(correct, k, exact=True) / special.comb(n, k, exact=True))


def _require(n: int, correct: int, k: int) -> None:
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n; got n={n}, correct={correct}, k={k}")
