"""Writes activation_tables.h: h(a) of gelu and gelu_tanh as polynomials on intervals of a, fitted by Lawson's method.

python csrc/gemm/fit_activation.py > csrc/gemm/activation_tables.h   (needs mpmath; then clang-format)
"""

from collections.abc import Callable

import mpmath as mp
import numpy as np

INTERVALS = 16  # lanes of a 512-bit table; the last one is zero and takes everything beyond
DEGREE = 5
STEP = 0.375  # of a, per interval: h(15 * STEP) < 1e-8 is below the rounding of any z there
LIMIT = 5.99  # of a: inside the last interval
SAMPLES, ROUNDS = 80, 100

HEADER = """// Written by fit_activation.py: h(a) = sum_d TABLE[d][i] * f^d with i + f = a / STEP, for activation.h.
#pragma once

namespace dsf {
namespace {
"""


def gelu(a: float) -> float:
    return float(mp.erfc(mp.mpf(a) / mp.sqrt(2)) / 2)


def gelu_tanh(a: float) -> float:
    u = mp.sqrt(2 / mp.pi) * (mp.mpf(a) + mp.mpf("0.044715") * mp.mpf(a) ** 3)
    return float(1 / (1 + mp.exp(2 * u)))


def fit(h: Callable[[float], float]) -> tuple[np.ndarray, float]:
    """(DEGREE + 1, INTERVALS) float32, and the largest error of the fit before rounding."""
    table, worst = np.zeros((DEGREE + 1, INTERVALS), np.float32), 0.0
    f = (1 - np.cos(np.pi * (np.arange(SAMPLES) + 0.5) / SAMPLES)) / 2
    powers = np.vander(f, DEGREE + 1, increasing=True)
    for i in range(INTERVALS - 1):
        wanted = np.array([h((i + x) * STEP) for x in f])
        weight = np.ones(SAMPLES)
        for _ in range(ROUNDS):  # reweighted least squares: the largest errors come to weigh most
            root = np.sqrt(weight)
            coefficients = np.linalg.lstsq(powers * root[:, None], wanted * root, rcond=None)[0]
            error = abs(powers @ coefficients - wanted)
            weight *= error + 1e-18
            weight /= weight.max()
        table[:, i] = coefficients
        worst = max(worst, float(error.max()))
    table[0, 0] = 0.5  # h(0) exactly
    return table, worst


def literal(value: np.float32) -> str:
    digits = f"{float(value):.9g}"
    return digits + ("f" if "." in digits or "e" in digits else ".0f")


def main() -> None:
    mp.mp.dps = 30
    print(HEADER)
    print(f"inline constexpr int TABLE_DEGREE = {DEGREE};")
    print(f"inline constexpr float TABLE_STEPS = {literal(np.float32(1 / STEP))};  // 1 / STEP")
    print(f"inline constexpr float TABLE_LIMIT = {LIMIT}f;  // of a\n")
    for name, h in (("GELU", gelu), ("GELU_TANH", gelu_tanh)):
        table, worst = fit(h)
        print(f"// largest error of the fit {worst:.1e}")
        print(f"alignas(64) inline constexpr float {name}_TABLE[TABLE_DEGREE + 1][{INTERVALS}] = {{")
        for row in table:
            print("    {" + ", ".join(literal(value) for value in row) + "},")
        print("};\n")
    print("}  // namespace\n}  // namespace dsf")


if __name__ == "__main__":
    main()
