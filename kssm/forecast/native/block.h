/* One KSSM block for some rows: the formulas of kssm/models/kssm.py and kssm/ops/kssm_scan. */
#ifndef KSSM_BLOCK_H
#define KSSM_BLOCK_H

#include "maths.h"
#include "model.h"

/* Activations of up to a tile of rows; each array has `stride` numbers a row. */
typedef struct {
    int64_t stride;
    Aside aside;
    float *x, *normed, *wide, *active, *low, *alpha, *omega, *dt, *mixed, *narrow;
} Activations;

static float sum_of_squares(const float *x, int64_t size) {
    float lanes[16] = {0}, sum = 0.0f;
    int64_t i = 0;
    for (; i + 16 <= size; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] += x[i + j] * x[i + j];
    for (; i < size; i++) lanes[i % 16] += x[i] * x[i];
    for (int j = 0; j < 16; j++) sum += lanes[j];
    return sum;
}

static void rms_norm(const float *restrict x, const float *restrict weight, int64_t size,
                     int64_t group, double eps, float *restrict out) {
    for (int64_t first = 0; first < size; first += group) {
        float mean = sum_of_squares(x + first, group) / (float)group;
        float scale = 1.0f / sqrtf(mean + (float)eps);
        for (int64_t i = first; i < first + group; i++) out[i] = x[i] * scale * weight[i];
    }
}

/* The filtered and gated token; the window [conv_width - 1, inner] moves on to include it. */
static void convolve(const Sizes *s, const Layer *layer, const float *restrict token,
                     float *restrict window, float *restrict active) {
    int64_t inner = s->d_inner, kept = s->conv_width - 1;
    for (int64_t i = 0; i < inner; i++)
        active[i] = layer->conv_bias[i] + token[i] * layer->conv[kept * inner + i];
    for (int64_t tap = 0; tap < kept; tap++)
        for (int64_t i = 0; i < inner; i++)
            active[i] += window[tap * inner + i] * layer->conv[tap * inner + i];
    for (int64_t i = 0; i < inner; i++) active[i] = silu(active[i]);
    memmove(window, window + inner, (size_t)((kept - 1) * inner) * sizeof *window);
    memcpy(window + (kept - 1) * inner, token, (size_t)inner * sizeof *window);
}

/* Channels [first, last), which share the input coefficient b: advances their pairs, reads y. */
static void recur(const Layer *layer, int64_t first, int64_t last, float b_re, float b_im,
                  float factor, const float *restrict alpha, const float *restrict omega,
                  const float *restrict dt, const float *restrict x, float *restrict state,
                  float *restrict y) {
    const float *restrict alpha_bias = layer->alpha_bias, *restrict dt_bias = layer->dt_bias;
    const float *restrict omega_bias = layer->omega_bias;
    const float *restrict omega_scale = layer->omega_scale;
    const float *restrict c_re = layer->c_re, *restrict c_im = layer->c_im;
    for (int64_t i = first; i < last; i++) {
        float step = softplus(dt[i] + dt_bias[i]) * factor;
        step = step > 1e10f ? 1e10f : step;
        float a = softplus(alpha[i] + alpha_bias[i]);
        float w = omega_scale[i] * (omega[i] + omega_bias[i]);
        float z_re = 1.0f + 0.5f * step * a, z_im = 0.5f * step * w;
        float gain = step / (z_re * z_re + z_im * z_im);
        float gain_re = gain * z_re, gain_im = -gain * z_im;
        float h_re = state[2 * i], h_im = state[2 * i + 1];
        float push_re = b_re * x[i] - (a * h_re - w * h_im);
        float push_im = b_im * x[i] - (a * h_im + w * h_re);
        float new_re = h_re + (gain_re * push_re - gain_im * push_im);
        float new_im = h_im + (gain_re * push_im + gain_im * push_re);
        state[2 * i] = new_re;
        state[2 * i + 1] = new_im;
        y[i] = c_re[i] * new_re + c_im[i] * new_im;
    }
}

static void scan_row(const Sizes *s, const Layer *layer, const Activations *t, int64_t row,
                     float factor, float *state, float *y) {
    int64_t at = row * t->stride, size = s->d_inner / s->groups;
    const float *b = t->low + at + 3 * s->rank;
    for (int64_t g = 0; g < s->groups; g++)
        recur(layer, g * size, (g + 1) * size, b[g] + 1.0f, b[s->groups + g], factor,
              t->alpha + at, t->omega + at, t->dt + at, t->active + at, state, y);
}

/* (group norm of y + skip of the input) gated. */
static void gate_row(const Sizes *s, const Layer *layer, const float *restrict y,
                     const float *restrict active, const float *restrict gate,
                     float *restrict out) {
    rms_norm(y, layer->out_norm, s->d_inner, s->d_inner / s->groups, s->eps, out);
    for (int64_t i = 0; i < s->d_inner; i++)
        out[i] = (out[i] + layer->skip[i] * active[i]) * silu(gate[i]);
}

static void feed_forward(const Sizes *s, const Layer *layer, const Activations *t, int64_t rows) {
    int64_t stride = t->stride, hidden = s->d_mlp;
    for (int64_t r = 0; r < rows; r++)
        rms_norm(t->x + r * stride, layer->mlp_norm, s->d_model, s->d_model, s->eps,
                 t->normed + r * stride);
    linear(rows, &layer->up, &t->aside, t->normed, t->wide, stride);
    for (int64_t r = 0; r < rows; r++) {
        const float *gate = t->wide + r * stride, *value = gate + hidden;
        float *mixed = t->mixed + r * stride;
        for (int64_t i = 0; i < hidden; i++) mixed[i] = silu(gate[i]) * value[i];
    }
    linear(rows, &layer->down, &t->aside, t->mixed, t->narrow, stride);
}

static void add(const Sizes *s, const Activations *t, int64_t rows) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < s->d_model; i++)
            t->x[r * t->stride + i] += t->narrow[r * t->stride + i];
}

#endif
