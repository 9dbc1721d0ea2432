/* One sample for each of many rows; a row whose forecast is not finite is not advanced. */
#ifndef KSSM_STEP_H
#define KSSM_STEP_H

#include "tile.h"

/* The caller's arrays, one entry a sample. Mirrored in library.py. */
typedef struct {
    int64_t count;
    const double *values, *dt; /* dt may be NULL: all 1 */
    const int64_t *slots;      /* all different, -1 = padding */
    double *tail;
    uint8_t *healthy;
} Samples;

typedef enum { SAVE, RESTORE } Direction;

static int64_t backup_size(const Sizes *s) {
    return s->layers * (window_size(s) + 2 * s->d_inner) + forecast_size(s);
}

static float *move(Direction direction, float *entry, float *backup, int64_t size) {
    float *to = direction == SAVE ? backup : entry, *from = direction == SAVE ? entry : backup;
    memcpy(to, from, (size_t)size * sizeof *to);
    return backup + size;
}

/* A row's entries to or from its backup. */
static void move_row(Direction direction, const Sizes *s, const Arena *arena, int64_t slot,
                     float *backup) {
    int64_t window = window_size(s), state = 2 * s->d_inner, forecast = forecast_size(s);
    for (int64_t i = 0; i < s->layers; i++) {
        backup = move(direction, arena->windows[i] + slot * window, backup, window);
        backup = move(direction, arena->states[i] + slot * state, backup, state);
    }
    move(direction, arena->forecast + slot * forecast, backup, forecast);
}

static int is_healthy(const float *quantiles, int64_t size) {
    float sum = 0.0f; /* stays 0 unless some number is not finite */
    for (int64_t i = 0; i < size; i++) sum += quantiles[i] * 0.0f;
    return sum == 0.0f;
}

static void step_tile(const Sizes *s, char *weights, const Arena *arena, Tile *tile,
                      const Workspace *space, float *backup, const Samples *samples) {
    int64_t size = backup_size(s);
    for (int64_t r = 0; r < tile->count; r++)
        move_row(SAVE, s, arena, tile->slots[r], backup + r * size);
    run_tile(s, weights, arena, tile, space);
    for (int64_t r = 0; r < tile->count; r++) {
        int64_t out = tile->outputs[r];
        int healthy = is_healthy(space->quantiles + r * forecast_size(s), forecast_size(s));
        samples->tail[out] = tile->tail[r];
        samples->healthy[out] = (uint8_t)healthy;
        if (healthy) continue;
        move_row(RESTORE, s, arena, tile->slots[r], backup + r * size);
        memcpy(arena->scaler + tile->slots[r] * FIELDS, &tile->before[r], sizeof *tile->before);
    }
    tile->count = 0;
}

static void step_rows(const Sizes *s, char *weights, const Arena *arena, const Workspace *space,
                      float *backup, const Samples *samples) {
    Tile tile = {0};
    for (int64_t i = 0; i < samples->count; i++) {
        if (samples->slots[i] < 0) {
            samples->tail[i] = NAN;
            samples->healthy[i] = 1;
            continue;
        }
        int64_t r = tile.count++;
        tile.slots[r] = samples->slots[i];
        tile.outputs[r] = i;
        tile.values[r] = samples->values[i];
        tile.dt[r] = samples->dt ? samples->dt[i] : 1.0;
        tile.readings[r] = EVERYTHING;
        if (tile.count == TILE) step_tile(s, weights, arena, &tile, space, backup, samples);
    }
    if (tile.count) step_tile(s, weights, arena, &tile, space, backup, samples);
}

#endif
