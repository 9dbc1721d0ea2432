/* Elementary functions in fp32, written so that a compiler turns loops over them into vectors.
 *
 * All are within 3 units in the last place of the exact value, keep NaN, and saturate to the
 * right limit (0, 1, x or infinity) far out. They must be compiled without -ffast-math.
 */
#ifndef KSSM_MATHS_H
#define KSSM_MATHS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float from_bits(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int32_t to_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* e^x = 2^n e^r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to a whole number, whose value can
 * then be read off the low bits. Results below the smallest normal number are 0. */
static inline float exponential(float x) {
    const float magic = 12582912.0f;
    float bounded = x > 89.0f ? 89.0f : x;
    bounded = bounded < -88.0f ? -88.0f : bounded;
    float shifted = bounded * 1.44269504088896341f + magic;
    float n = shifted - magic;
    float r = bounded - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9841270e-4f;
    p = p * r + 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    /* Half the exponent twice, because 2^128 is not a number while 2^64 * 2^64 e^r can be. */
    uint32_t whole = (uint32_t)to_bits(shifted) - (uint32_t)to_bits(magic);
    int32_t half = (int32_t)whole >> 1;
    int32_t rest = (int32_t)(whole - (uint32_t)half);
    float y = p * from_bits((int32_t)((uint32_t)(half + 127) << 23));
    y = y * from_bits((int32_t)((uint32_t)(rest + 127) << 23));
    return x < -87.3f ? 0.0f : y;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float silu(float x) { return x / (1.0f + exponential(-x)); }

/* log(1 + e^x) = max(x, 0) + log1p(t), t = e^-|x| in (0, 1], and log1p(t) = 2 atanh(t / (2 + t)),
 * whose argument is at most 1/3: nine terms of the series reach the last place. */
static inline float softplus(float x) {
    float t = exponential(x > 0.0f ? -x : x);
    float s = t / (2.0f + t);
    float q = s * s;
    float p = 1.0f / 17.0f;
    p = p * q + 1.0f / 15.0f;
    p = p * q + 1.0f / 13.0f;
    p = p * q + 1.0f / 11.0f;
    p = p * q + 1.0f / 9.0f;
    p = p * q + 1.0f / 7.0f;
    p = p * q + 1.0f / 5.0f;
    p = p * q + 1.0f / 3.0f;
    float log1p_t = 2.0f * (s + s * q * p);
    return (x > 0.0f ? x : 0.0f) + log1p_t;
}

#endif
