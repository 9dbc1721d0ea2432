"""The backbone and the head for one row as loops for numba; see cpu_candidates.py."""

import numba
import numpy as np

jit = numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")


@jit
def product(w, x):
    y = np.empty(w.shape[0], np.float32)
    for i in range(w.shape[0]):
        total = np.float32(0)
        for k in range(w.shape[1]):
            total += w[i, k] * x[k]
        y[i] = total
    return y


@jit
def norm(x, weight, group):
    y = np.empty_like(x)
    for first in range(0, x.size, group):
        part = x[first : first + group]
        scale = np.float32(1) / np.sqrt(np.mean(part * part) + np.float32(1e-6))
        y[first : first + group] = part * scale
    return y * weight


@jit
def silu(x):
    return x / (np.float32(1) + np.exp(-x))


@jit
def softplus(x):
    return np.maximum(x, np.float32(0)) + np.log1p(np.exp(-np.abs(x)))


@jit
def block(i, x, m, window, state, rank, group):
    inner = window.shape[1]
    both = product(m[1][i], norm(x, m[0][i], x.size))
    window[:-1] = window[1:].copy()
    window[-1] = both[:inner]
    total = m[3][i].copy()
    for tap in range(window.shape[0]):
        total += window[tap] * m[2][i, tap]
    active = silu(total)
    low = product(m[4][i], active)
    step = np.float32(0.5) * softplus(product(m[7][i], low[2 * rank : 3 * rank]) + m[11][i])
    a = step * softplus(product(m[5][i], low[:rank]) + m[8][i])
    w = step * m[10][i] * (product(m[6][i], low[rank : 2 * rank]) + m[9][i])
    y = np.empty(inner, np.float32)
    for c in range(inner):
        b_re = low[3 * rank + c // group] + np.float32(1)
        b_im = low[3 * rank + inner // group + c // group]
        re, im, u = state[0, c], state[1, c], step[c] * active[c]
        p_re = u * b_re - (a[c] * re - w[c] * im)
        p_im = u * b_im - (a[c] * im + w[c] * re)
        one = np.float32(1) + a[c]
        gain = np.float32(2) / (one * one + w[c] * w[c])
        state[0, c] = re + gain * (one * p_re + w[c] * p_im)
        state[1, c] = im + gain * (one * p_im - w[c] * p_re)
        y[c] = m[12][i, c] * state[0, c] + m[13][i, c] * state[1, c]
    mixed = (norm(y, m[15][i], group) + m[14][i] * active) * silu(both[inner:])
    x = x + product(m[16][i], mixed)
    up = product(m[18][i], norm(x, m[17][i], x.size))
    half = up.size // 2
    return x + product(m[19][i], silu(up[:half]) * up[half:])


@jit
def run(features, ends, m, windows, states, numbers):
    x = product(ends[0], features) + ends[1]
    for i in range(windows.shape[0]):
        x = block(i, x, m, windows[i], states[i], numbers[0], numbers[1])
    hidden = silu(product(ends[3], norm(x, ends[2], x.size)))
    return product(ends[4], hidden) + ends[5]
