"""How close two results are: SQNR, cosine, KL, SSIM, and how sure a rate is."""

import math

import numpy as np

from onnxq.spec import Floats

# Exponent of the errors of weights in BRECQ, QDrop and OBC (their code): a clipped weight is far
# off and always to the same side, which a square holds too cheap.
NORM = 2.4
# Bins of the histograms that are compared as if they were images.
SSIM_BINS = 256
# Below this, sums of squares in float32 may have lost some of them.
LEAST = 1e-30
# What counts as the largest score: two that are infinite have a difference then, and it is finite.
LARGEST = 1e300


class Fidelity:
    """Running SQNR and cosine similarity of a stream against its reference; memory O(1).

    SQNR = 10 log10(sum r^2 / sum (r - x)^2) in dB. The sums of one update run in the arrays' own
    precision, if it holds the squares: for float32 that moves a figure by less than 0.001 dB.

    Attributes:
        signal: Sum of r^2.
        noise: Sum of (r - x)^2.
        compared: Pairs folded in.
        incomparable: Pairs whose shapes differ, which are left out.
    """

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0
        self._other = 0.0
        self._product = 0.0
        self.compared = 0
        self.incomparable = 0

    def update(self, reference: Floats, x: Floats) -> None:
        """Fold a pair of arrays in; a pair of different shapes is only counted."""
        if reference.shape != x.shape:
            self.incomparable += 1
            return
        self.compared += 1
        # Sums of squares overflow half precision.
        if reference.dtype not in (np.float32, np.float64):
            reference, x = reference.astype(np.float64), x.astype(np.float64)
        r, q = reference.reshape(-1), x.reshape(-1)
        signal, other, noise, product = _sums(r, q)
        if not all(LEAST < squares < np.inf for squares in (signal, other, noise)):
            signal, other, noise, product = _sums(r.astype(np.float64), q.astype(np.float64))
        self.signal += signal
        self._other += other
        self.noise += noise
        self._product += product

    @property
    def sqnr(self) -> float:
        """Signal to noise in dB; inf if equal, -inf without signal, nan if that is infinite."""
        if not self.compared:
            return math.nan
        if self.noise == 0.0:
            return math.inf
        ratio = self.signal / self.noise
        return 10 * math.log10(ratio) if ratio else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine similarity; 1 if both are zero, nan without pairs."""
        if not self.compared:
            return math.nan
        norm = math.sqrt(self.signal) * math.sqrt(self._other)
        return self._product / norm if norm else float(self.signal == self._other)


def _sums(r: Floats, q: Floats) -> tuple[float, float, float, float]:
    """Sums of r^2, q^2, (r - q)^2 and r q, infinite or nan where one does not fit."""
    with np.errstate(over="ignore", invalid="ignore"):
        e = r - q
        return float(r @ r), float(q @ q), float(e @ e), float(r @ q)


def noise_to_signal(noise: Floats, signal: Floats) -> tuple[Floats, Floats]:
    """Noise power relative to the signal over all runs, and its standard error.

    R = sum e_i / sum s_i; SE = sqrt(n / (n - 1) sum (e_i - R s_i)^2) / sum s_i, as of any ratio of
    two means (Cochran, Sampling Techniques, 1977, chapter 6).

    Args:
        noise: Power of the noise e in each run, (n, ...).
        signal: Of the signal s, of the same shape.

    Returns:
        Both of shape (...); inf or nan where there is no signal, and an error of 0 of a single run,
        which tells none.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = signal.sum(axis=0)
        ratio = noise.sum(axis=0) / total
        spread = np.square(noise - ratio * signal).sum(axis=0)
        return ratio, np.sqrt(spread * len(noise) / max(len(noise) - 1, 1)) / total


def log_probabilities(scores: Floats) -> Floats:
    """Log probabilities of rows of scores (n, classes), float64.

    Rows that are distributions already (not negative, sum 1) are taken as such, others as logits.
    """
    z = scores.astype(np.float64)
    if (z >= 0).all() and np.allclose(z.sum(axis=-1), 1.0, atol=1e-3):
        return np.asarray(np.log(np.maximum(z, 1e-12)))
    z = np.clip(z, -LARGEST, LARGEST)
    z -= z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def kl_divergence(reference: Floats, scores: Floats) -> Floats:
    """KL(reference || scores) in nats for each row of (n, classes)."""
    p, q = log_probabilities(reference), log_probabilities(scores)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


def ssim(a: Floats, b: Floats) -> float:
    """Structural similarity of two signals of one length, in one window (Wang et al. 2004, eq. 13).

    SSIM = (2 m_a m_b + C1) (2 c_ab + C2) / ((m_a^2 + m_b^2 + C1) (v_a + v_b + C2)) with
    C1 = (0.01 R)^2, C2 = (0.03 R)^2 and R the range of both signals together. 1 if they are equal.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    reach = float(max(a.max(), b.max()) - min(a.min(), b.min()))
    if reach == 0.0:
        return 1.0
    c1, c2 = (0.01 * reach) ** 2, (0.03 * reach) ** 2
    covariance = np.mean((a - a.mean()) * (b - b.mean()))
    means = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    return float(means * (2 * covariance + c2) / (a.var() + b.var() + c2))


def histogram_ssim(reference: Floats, x: Floats) -> float:
    """SSIM of the histograms of two arrays, over [-max |reference|, max |reference|]; at most 1.

    Yoo & Ban (Sensors 2025, 25(9) 2918) compare weights before and after a transform so. They
    give neither bins nor windows: 256 bins in one window come within a point of their figures.
    """
    largest = float(np.abs(reference).max(initial=0.0)) or 1.0
    edges = np.linspace(-largest, largest, SSIM_BINS + 1)
    return ssim(*(np.histogram(values, edges)[0] for values in (reference, x)))


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of a rate ``hits / n`` (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)
