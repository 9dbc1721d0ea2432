"""Triton arithmetic of one token, shared by the scan's kernels: coefficients, update, adjoint.

With z = tau (a + i w), tau = D / 2, the update is written with P - i Q = 2 / (1 + z):

    fast (16-bit inputs)   h' = (P - i Q) (h + tau b x) - h
    exact (fp32 inputs)    h' = h + (P - i Q) tau b x - (S + i Q) h,   S = Re(2 z / (1 + z))

The fast form takes a third fewer instructions; it rounds λ = P - 1 - i Q itself, which 16-bit
inputs cannot tell. The exact form keeps λ - 1 to full relative accuracy.
"""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import exp2, reciprocal, token_gates

LOG2E = tl.constexpr(1.4426950408889634)
HALF_LN2 = tl.constexpr(0.34657359027997264)


@triton.jit
def _softplus_base_2(x, DEGREE: tl.constexpr):
    """log2(1 + 2^x) = max(x, 0) + e P(e) with e = 2^-|x|, P a minimax fit of log2(1 + e) / e.

    Relative error 6e-5 for DEGREE 4, 9e-6 for 5. NaN stays.
    """
    e = exp2(-tl.abs(x))
    if DEGREE == 4:
        fit = 0.0596509515
        fit = fit * e - 0.227116986
        fit = fit * e + 0.441896142
        fit = fit * e - 0.71698644
        fit = fit * e + 1.44261312
    else:
        fit = -0.0344356914
        fit = fit * e + 0.146031901
        fit = fit * e - 0.303034825
        fit = fit * e + 0.469173296
        fit = fit * e - 0.720426
        fit = fit * e + 1.44268291
    return fit * e + tl.maximum(x, 0.0)


@triton.jit
def gates(alpha, omega, dt, factor, channel, EXACT: tl.constexpr):
    """(tau, P, Q, S, a / 2, w / 2, log2 of softplus' slopes at alpha and at dt) of one token.

    ``channel`` is ``load_channel``'s. The step matters more than the decay (its error turns the
    phase of a slow oscillation), so its softplus is the more accurate one.
    """
    if EXACT:
        raw_alpha, raw_dt, a, w, step, tau, p, q, s, i2 = token_gates(
            alpha, omega, dt, factor, channel, True
        )
        found = (
            tau, i2 * p, i2 * q, i2 * s, 0.5 * a, 0.5 * w,
            (raw_alpha - a) * LOG2E, (raw_dt - step) * LOG2E,
        )  # fmt: skip
    else:
        raw_alpha = alpha * LOG2E + channel[0]
        raw_dt = dt * LOG2E + channel[3]
        a = _softplus_base_2(raw_alpha, 4)
        step = _softplus_base_2(raw_dt, 5)
        tau = tl.minimum(step * (HALF_LN2 * factor), 5e9, propagate_nan=tl.PropagateNan.ALL)
        half_a = a * HALF_LN2
        half_w = omega * channel[2] + channel[1]
        p = tau * half_a + 0.5
        q = tau * half_w
        inverse = reciprocal(p * p + q * q)
        found = (
            tau, p * inverse, q * inverse, 0.0, half_a, half_w, raw_alpha - a, raw_dt - step,
        )  # fmt: skip
    return found


@triton.jit
def load_channel(parameters, channels, mask, EXACT: tl.constexpr):
    """(alpha_bias, w's shift, w's scale, dt_bias) of the program's channels.

    For the fast form the biases are in units of ln 2 and w is halved.
    """
    alpha_bias = tl.load(parameters[0] + channels, mask=mask)
    scale = tl.load(parameters[2] + channels, mask=mask)
    shift = tl.load(parameters[1] + channels, mask=mask) * scale
    dt_bias = tl.load(parameters[3] + channels, mask=mask)
    found = (alpha_bias, shift, scale, dt_bias)
    if not EXACT:
        found = (alpha_bias * LOG2E, shift * 0.5, scale * 0.5, dt_bias * LOG2E)
    return found


@triton.jit
def evolve(h_re, h_im, drive, b_re, b_im, gate, EXACT: tl.constexpr):
    """The state after a token; drive = tau x."""
    P, Q, S = gate[1], gate[2], gate[3]
    if EXACT:
        new_re = h_re + (drive * (P * b_re + Q * b_im) - S * h_re + Q * h_im)
        new_im = h_im + (drive * (P * b_im - Q * b_re) - S * h_im - Q * h_re)
    else:
        v_re = drive * b_re + h_re
        v_im = drive * b_im + h_im
        new_re = P * v_re + (Q * v_im - h_re)
        new_im = P * v_im - (Q * v_re + h_im)
    return new_re, new_im


@triton.jit
def grow(re, im, gate, EXACT: tl.constexpr):
    """A product of λ, one token longer: less one when EXACT (a slow decay's would be lost)."""
    P, Q, S = gate[1], gate[2], gate[3]
    if EXACT:
        new_re = re + (Q * im - S * re - S)
        new_im = im - (S * im + Q * re + Q)
    else:
        new_re = P * re + (Q * im - re)
        new_im = P * im - (Q * re + im)
    return new_re, new_im


@triton.jit
def pull(g_re, g_im, gate, EXACT: tl.constexpr):
    """(R, E) = (conj(2 / (1 + z)) G, conj(λ) G) of an adjoint G, real and imaginary parts."""
    P, Q, S = gate[1], gate[2], gate[3]
    r_re = P * g_re - Q * g_im
    r_im = P * g_im + Q * g_re
    if EXACT:
        e_re = g_re - (S * g_re + Q * g_im)
        e_im = g_im - (S * g_im - Q * g_re)
    else:
        e_re = r_re - g_re
        e_im = r_im - g_im
    return r_re, r_im, e_re, e_im
