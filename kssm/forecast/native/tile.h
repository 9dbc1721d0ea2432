/* A tile: tokens that go through the model together, so that its weights are read once for them.
 *
 * Tokens advance the arena's rows in place. A token is computed alike whatever else is in its
 * tile; tokens of one row follow each other in their order in time, in one tile or in many.
 */
#ifndef KSSM_TILE_H
#define KSSM_TILE_H

#include <stdlib.h>

#include "block.h"
#include "signal.h"

#define TILE 48

/* Pointers to [rows, ...] contiguous entries of one resolution. */
typedef struct {
    int64_t rows;
    double *scaler;  /* [rows, 7] */
    float *forecast; /* [rows, head_horizon, 9] */
    float **windows; /* layers x [rows, conv_width - 1, d_inner] */
    float **states;  /* layers x [rows, d_inner, 2] */
} Arena;

/* What the head reads of a token: nothing, the horizons that scores need, or all. */
typedef enum { NOTHING, SCORED, EVERYTHING } Reading;

typedef struct {
    int64_t count;
    int64_t parts[TILE], slots[TILE]; /* which of the arenas, and its row */
    int64_t outputs[TILE];            /* places in the caller's arrays; -1 = none */
    double values[TILE], dt[TILE], tail[TILE];
    Reading readings[TILE];
    Statistics before[TILE], after[TILE];
} Tile;

typedef struct {
    Activations activations;
    float *quantiles; /* [tokens, head_horizon, 9] */
    float *memory;    /* all of it, to be freed */
} Workspace;

/* There must be room. `outputs` is for the caller to set. */
static void add_token(Tile *tile, int64_t part, int64_t slot, double value, double dt,
                      Reading reading) {
    int64_t r = tile->count++;
    tile->parts[r] = part;
    tile->slots[r] = slot;
    tile->outputs[r] = -1;
    tile->values[r] = value;
    tile->dt[r] = dt;
    tile->readings[r] = reading;
}

static inline int64_t window_size(const Sizes *s) { return (s->conv_width - 1) * s->d_inner; }

static inline int64_t forecast_size(const Sizes *s) { return s->head_horizon * LEVELS; }

static int64_t widest(const Sizes *s) {
    int64_t sizes[] = {s->d_model, 2 * s->d_inner, 2 * s->d_mlp, selected(s), s->head_hidden,
                       s->head_horizon * HEAD_WIDTH};
    int64_t most = s->features;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        most = sizes[i] > most ? sizes[i] : most;
    return padded(most);
}

/* Room for tiles of up to `tokens`; 0 if there is no memory. */
static int reserve(const Sizes *s, const char *weights, int64_t tokens, Workspace *space) {
    Activations *t = &space->activations;
    Rounded *rounded = &t->aside.rounded;
    float **arrays[] = {&t->x, &t->normed, &t->wide, &t->active, &t->low,
                        &t->alpha, &t->omega, &t->dt, &t->mixed, &t->narrow};
    int64_t count = sizeof arrays / sizeof *arrays;
    int64_t stride = t->stride = rounded->stride = widest(s);
    int64_t panel = stride * PANEL, each = count * stride + forecast_size(s) + stride / 2 + 3;
    float *memory = space->memory = malloc((size_t)(panel + tokens * each) * sizeof *memory);
    if (!memory) return 0;
    t->aside.panel = memory, memory += panel;
    t->aside.kept = (Kept){weights, s->kept};
    for (int64_t i = 0; i < count; i++, memory += tokens * stride) *arrays[i] = memory;
    rounded->bytes = (int8_t *)memory, memory += tokens * stride / 2;
    rounded->totals = (int32_t *)memory, memory += tokens * 2;
    rounded->units = memory, memory += tokens;
    space->quantiles = memory;
    return 1;
}

static void embed(const Ends *ends, const Arena *arenas, Tile *tile, const Activations *t) {
    for (int64_t r = 0; r < tile->count; r++) {
        double *statistics = arenas[tile->parts[r]].scaler + tile->slots[r] * FIELDS;
        memcpy(&tile->before[r], statistics, sizeof *tile->before);
        tile->after[r] = update(&tile->before[r], tile->values[r], tile->dt[r]);
        memcpy(statistics, &tile->after[r], sizeof *tile->after);
        features(tile->values[r], tile->dt[r], &tile->before[r], &tile->after[r],
                 t->normed + r * t->stride);
    }
    linear(tile->count, &ends->embed, &t->aside, t->normed, t->x, t->stride);
    for (int64_t r = 0; r < tile->count; r++)
        for (int64_t i = 0; i < ends->embed.outputs; i++)
            t->x[r * t->stride + i] += ends->embed_bias[i];
}

static void mix_tokens(const Sizes *s, const Layer *layer, const Arena *arenas, int64_t number,
                       const Tile *tile, const Activations *t) {
    int64_t stride = t->stride, count = tile->count, inner = s->d_inner, rank = s->rank;
    const Aside *aside = &t->aside;
    for (int64_t r = 0; r < count; r++)
        rms_norm(t->x + r * stride, layer->norm, s->d_model, s->d_model, s->eps,
                 t->normed + r * stride);
    linear(count, &layer->in_proj, aside, t->normed, t->wide, stride);
    for (int64_t r = 0; r < count; r++)
        convolve(s, layer, t->wide + r * stride,
                 arenas[tile->parts[r]].windows[number] + tile->slots[r] * window_size(s),
                 t->active + r * stride);
    linear(count, &layer->select, aside, t->active, t->low, stride);
    linear(count, &layer->alpha_up, aside, t->low, t->alpha, stride);
    linear(count, &layer->omega_up, aside, t->low + rank, t->omega, stride);
    linear(count, &layer->dt_up, aside, t->low + 2 * rank, t->dt, stride);
    for (int64_t r = 0; r < count; r++) {
        float *y = t->normed + r * stride;
        scan_row(s, layer, t, r, (float)tile->dt[r],
                 arenas[tile->parts[r]].states[number] + tile->slots[r] * 2 * inner, y);
        gate_row(s, layer, y, t->active + r * stride, t->wide + r * stride + inner,
                 t->mixed + r * stride);
    }
    linear(count, &layer->out_proj, aside, t->mixed, t->narrow, stride);
}

/* Nine quantiles of one horizon from the head's ten numbers and their softplus: the median, then
 * outwards. */
static void spread(const float *raw, const float *positive, float last, float *quantiles) {
    float below = 0.0f, above = 0.0f, median = raw[0] + sigmoid(raw[1]) * last;
    quantiles[MEDIAN] = median;
    for (int i = 0; i < MEDIAN; i++) {
        below += positive[2 + i];
        above += positive[2 + MEDIAN + i];
        quantiles[MEDIAN - 1 - i] = median - below;
        quantiles[MEDIAN + 1 + i] = median + above;
    }
}

/* The first `horizons` quantiles of the tokens that ask for `reading`. */
static void read_out(const Sizes *s, const Ends *ends, const Tile *tile, const Workspace *space,
                     Reading reading, int64_t horizons) {
    const Activations *t = &space->activations;
    int64_t stride = t->stride, outputs = horizons * HEAD_WIDTH, count = 0, tokens[TILE];
    for (int64_t r = 0; r < tile->count; r++) {
        if (tile->readings[r] != reading) continue;
        rms_norm(t->x + r * stride, ends->norm, s->d_model, s->d_model, s->eps,
                 t->normed + count * stride);
        tokens[count++] = r;
    }
    linear(count, &ends->head_hidden, &t->aside, t->normed, t->mixed, stride);
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < s->head_hidden; j++)
            t->mixed[i * stride + j] = silu(t->mixed[i * stride + j]);
    Matrix head_out = ends->head_out;
    head_out.outputs = outputs;
    linear(count, &head_out, &t->aside, t->mixed, t->wide, stride);
    for (int64_t i = 0; i < count; i++) {
        const Statistics *statistics = &tile->after[tokens[i]];
        float *raw = t->wide + i * stride, last = (float)normalise(statistics->last, statistics);
        float *restrict positive = t->active, *quantiles = space->quantiles;
        for (int64_t j = 0; j < outputs; j++) raw[j] += ends->head_bias[j];
        for (int64_t j = 0; j < outputs; j++) positive[j] = softplus(raw[j]);
        for (int64_t k = 0; k < horizons; k++)
            spread(raw + k * HEAD_WIDTH, positive + k * HEAD_WIDTH, last,
                   quantiles + tokens[i] * forecast_size(s) + k * LEVELS);
    }
}

/* Scores each token against its row's forecast, which what was read of the token then replaces. */
static void score_tokens(const Sizes *s, const Arena *arenas, Tile *tile,
                         const Workspace *space) {
    for (int64_t r = 0; r < tile->count; r++) {
        float *forecast = arenas[tile->parts[r]].forecast + tile->slots[r] * forecast_size(s);
        tile->tail[r] = score(tile->values[r], tile->dt[r], &tile->before[r], forecast);
        if (tile->readings[r] == NOTHING) continue;
        int64_t horizons = tile->readings[r] == SCORED ? SCORED_HORIZONS : s->head_horizon;
        memcpy(forecast, space->quantiles + r * forecast_size(s),
               (size_t)(horizons * LEVELS) * sizeof *forecast);
    }
}

/* Advances the arenas by the tile's tokens; their scores come to lie in `tail`. */
static void run_tile(const Sizes *s, char *weights, const Arena *arenas, Tile *tile,
                     const Workspace *space) {
    const Activations *t = &space->activations;
    Cursor cursor = {weights, NULL};
    Ends ends = ends_at(&cursor, s);
    embed(&ends, arenas, tile, t);
    for (int64_t i = 0; i < s->layers; i++) {
        Layer layer = layer_at(&cursor, s);
        mix_tokens(s, &layer, arenas, i, tile, t);
        add(s, t, tile->count);
        if (!s->d_mlp) continue;
        feed_forward(s, &layer, t, tile->count);
        add(s, t, tile->count);
    }
    read_out(s, &ends, tile, space, SCORED, SCORED_HORIZONS);
    read_out(s, &ends, tile, space, EVERYTHING, s->head_horizon);
    score_tokens(s, arenas, tile, space);
}

#endif
