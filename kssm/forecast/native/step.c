/* One sample for each of many rows of a SignalForecaster, on one core, in fp32.
 *
 * Built by build.py, called by library.py. No globals, no I/O, reentrant.
 */
#include <stdlib.h>

#include "block.h"
#include "signal.h"

#define EXPORT __attribute__((visibility("default")))
#define TILE 32 /* rows that go through the model together: the weights are read once for them */

/* The arena: pointers to [rows, ...] contiguous entries. */
typedef struct {
    int64_t rows;
    double *scaler;  /* [rows, 7] */
    float *forecast; /* [rows, head_horizon, 9] */
    float **windows; /* layers x [rows, conv_width - 1, d_inner] */
    float **states;  /* layers x [rows, d_inner, 2] */
} Arena;

typedef struct {
    int64_t rows;
    int64_t slots[TILE], outputs[TILE];
    double values[TILE], dt[TILE];
    Statistics before[TILE], after[TILE];
} Tile;

typedef struct {
    Activations activations;
    float *staged; /* TILE x layers x (window, state): written to the arena once a row is healthy */
    float *quantiles; /* TILE x [head_horizon, 9] */
} Workspace;

static int64_t window_size(const Sizes *s) { return (s->conv_width - 1) * s->d_inner; }

static int64_t staged_size(const Sizes *s) { return window_size(s) + 2 * s->d_inner; }

static int64_t widest(const Sizes *s) {
    int64_t sizes[] = {s->d_model, 2 * s->d_inner, 2 * s->d_mlp, selected(s), s->head_hidden,
                       s->head_horizon * HEAD_WIDTH};
    int64_t most = s->features;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        most = sizes[i] > most ? sizes[i] : most;
    return padded(most);
}

static float *reserve(const Sizes *s, int64_t rows, Workspace *space) {
    Activations *t = &space->activations;
    float **arrays[] = {&t->x, &t->normed, &t->wide, &t->active, &t->low,
                        &t->alpha, &t->omega, &t->dt, &t->mixed, &t->narrow};
    int64_t count = sizeof arrays / sizeof *arrays, quantiles = s->head_horizon * LEVELS;
    t->stride = widest(s);
    int64_t size = rows * (count * t->stride + s->layers * staged_size(s) + quantiles);
    float *memory = malloc((size_t)size * sizeof *memory);
    for (int64_t i = 0; i < count && memory; i++) *arrays[i] = memory + i * rows * t->stride;
    space->staged = memory + count * rows * t->stride;
    space->quantiles = space->staged + rows * s->layers * staged_size(s);
    return memory;
}

static void mix_tokens(const Sizes *s, const Layer *layer, const Arena *arena, int64_t number,
                       const Tile *tile, const Workspace *space) {
    const Activations *t = &space->activations;
    int64_t stride = t->stride, rows = tile->rows, inner = s->d_inner, rank = s->rank;
    for (int64_t r = 0; r < rows; r++)
        rms_norm(t->x + r * stride, layer->norm, s->d_model, s->d_model, s->eps,
                 t->normed + r * stride);
    linear(rows, layer->in_proj, 2 * inner, s->d_model, t->normed, stride, t->wide, stride);
    for (int64_t r = 0; r < rows; r++)
        convolve(s, layer, t->wide + r * stride,
                 arena->windows[number] + tile->slots[r] * window_size(s),
                 space->staged + (r * s->layers + number) * staged_size(s), t->active + r * stride);
    linear(rows, layer->select, selected(s), inner, t->active, stride, t->low, stride);
    linear(rows, layer->alpha_up, inner, rank, t->low, stride, t->alpha, stride);
    linear(rows, layer->omega_up, inner, rank, t->low + rank, stride, t->omega, stride);
    linear(rows, layer->dt_up, inner, rank, t->low + 2 * rank, stride, t->dt, stride);
    for (int64_t r = 0; r < rows; r++) {
        float *next = space->staged + (r * s->layers + number) * staged_size(s) + window_size(s);
        float *y = t->normed + r * stride;
        scan_row(s, layer, t, r, (float)tile->dt[r],
                 arena->states[number] + tile->slots[r] * 2 * inner, next, y);
        gate_row(s, layer, y, t->active + r * stride, t->wide + r * stride + inner,
                 t->mixed + r * stride);
    }
    linear(rows, layer->out_proj, s->d_model, inner, t->mixed, stride, t->narrow, stride);
}

static void embed(const Sizes *s, const Ends *ends, const Arena *arena, Tile *tile,
                  const Activations *t) {
    for (int64_t r = 0; r < tile->rows; r++) {
        memcpy(&tile->before[r], arena->scaler + tile->slots[r] * FIELDS, sizeof *tile->before);
        tile->after[r] = update(&tile->before[r], tile->values[r], tile->dt[r]);
        features(tile->values[r], tile->dt[r], &tile->before[r], &tile->after[r],
                 t->normed + r * t->stride);
    }
    linear(tile->rows, ends->embed, s->d_model, FEATURES, t->normed, t->stride, t->x, t->stride);
    for (int64_t r = 0; r < tile->rows; r++)
        for (int64_t i = 0; i < s->d_model; i++) t->x[r * t->stride + i] += ends->embed_bias[i];
}

/* Nine quantiles of one horizon from the head's ten numbers: the median, then outwards. */
static void spread(const float *raw, float last, float *quantiles) {
    float below = 0.0f, above = 0.0f, median = raw[0] + sigmoid(raw[1]) * last;
    quantiles[MEDIAN] = median;
    for (int i = 0; i < MEDIAN; i++) {
        below += softplus(raw[2 + i]);
        above += softplus(raw[2 + MEDIAN + i]);
        quantiles[MEDIAN - 1 - i] = median - below;
        quantiles[MEDIAN + 1 + i] = median + above;
    }
}

static void read_out(const Sizes *s, const Ends *ends, const Tile *tile, const Workspace *space) {
    const Activations *t = &space->activations;
    int64_t stride = t->stride, rows = tile->rows, outputs = s->head_horizon * HEAD_WIDTH;
    for (int64_t r = 0; r < rows; r++)
        rms_norm(t->x + r * stride, ends->norm, s->d_model, s->d_model, s->eps,
                 t->normed + r * stride);
    linear(rows, ends->head_hidden, s->head_hidden, s->d_model, t->normed, stride, t->mixed, stride);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < s->head_hidden; i++)
            t->mixed[r * stride + i] = silu(t->mixed[r * stride + i]);
    linear(rows, ends->head_out, outputs, s->head_hidden, t->mixed, stride, t->wide, stride);
    for (int64_t r = 0; r < rows; r++) {
        float *raw = t->wide + r * stride;
        float last = (float)normalise(tile->after[r].last, &tile->after[r]);
        for (int64_t i = 0; i < outputs; i++) raw[i] += ends->head_bias[i];
        for (int64_t k = 0; k < s->head_horizon; k++)
            spread(raw + k * HEAD_WIDTH, last,
                   space->quantiles + (r * s->head_horizon + k) * LEVELS);
    }
}

static int is_healthy(const float *quantiles, int64_t size) {
    float sum = 0.0f; /* stays 0 unless some number is not finite */
    for (int64_t i = 0; i < size; i++) sum += quantiles[i] * 0.0f;
    return sum == 0.0f;
}

static void commit(const Sizes *s, const Arena *arena, const Tile *tile, const Workspace *space,
                   int64_t r) {
    int64_t slot = tile->slots[r], window = window_size(s), state = 2 * s->d_inner;
    int64_t quantiles = s->head_horizon * LEVELS;
    const float *staged = space->staged + r * s->layers * staged_size(s);
    for (int64_t i = 0; i < s->layers; i++, staged += staged_size(s)) {
        memcpy(arena->windows[i] + slot * window, staged, (size_t)window * sizeof *staged);
        memcpy(arena->states[i] + slot * state, staged + window, (size_t)state * sizeof *staged);
    }
    memcpy(arena->forecast + slot * quantiles, space->quantiles + r * quantiles,
           (size_t)quantiles * sizeof(float));
    memcpy(arena->scaler + slot * FIELDS, &tile->after[r], sizeof tile->after[r]);
}

static void run_tile(const Sizes *s, float *weights, const Arena *arena, Tile *tile,
                     const Workspace *space, double *tail, uint8_t *healthy) {
    int64_t quantiles = s->head_horizon * LEVELS;
    Cursor cursor = {weights, NULL};
    Ends ends = ends_at(&cursor, s);
    embed(s, &ends, arena, tile, &space->activations);
    for (int64_t i = 0; i < s->layers; i++) {
        Layer layer = layer_at(&cursor, s);
        mix_tokens(s, &layer, arena, i, tile, space);
        add(s, &space->activations, tile->rows);
        if (!s->d_mlp) continue;
        feed_forward(s, &layer, &space->activations, tile->rows);
        add(s, &space->activations, tile->rows);
    }
    read_out(s, &ends, tile, space);
    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t out = tile->outputs[r];
        tail[out] = score(tile->values[r], tile->dt[r], &tile->before[r],
                          arena->forecast + tile->slots[r] * quantiles);
        healthy[out] = (uint8_t)is_healthy(space->quantiles + r * quantiles, quantiles);
        if (healthy[out]) commit(s, arena, tile, space, r);
    }
}

/* Floats in a packed buffer; with `sources` also packs them into it. */
EXPORT int64_t kssm_pack(const Sizes *s, const float *const *sources, float *packed) {
    Cursor cursor = {packed, sources};
    ends_at(&cursor, s);
    for (int64_t i = 0; i < s->layers; i++) layer_at(&cursor, s);
    return cursor.at - packed;
}

/* 0; or 1 for a slot outside the arena, 2 for no memory: then nothing was changed. */
EXPORT int kssm_step(const Sizes *s, float *weights, const Arena *arena, int64_t count,
              const double *values, const double *dt, const int64_t *slots, double *tail,
              uint8_t *healthy) {
    for (int64_t i = 0; i < count; i++)
        if (slots[i] >= arena->rows) return 1;
    Workspace space;
    float *memory = reserve(s, count < TILE ? count : TILE, &space);
    if (!memory) return 2;
    Tile tile = {0};
    for (int64_t i = 0; i < count; i++) {
        if (slots[i] < 0) {
            tail[i] = NAN;
            healthy[i] = 1;
        } else {
            tile.slots[tile.rows] = slots[i];
            tile.outputs[tile.rows] = i;
            tile.values[tile.rows] = values[i];
            tile.dt[tile.rows++] = dt ? dt[i] : 1.0;
        }
        if (tile.rows == TILE || (tile.rows && i + 1 == count)) {
            run_tile(s, weights, arena, &tile, &space, tail, healthy);
            tile.rows = 0;
        }
    }
    free(memory);
    return 0;
}
