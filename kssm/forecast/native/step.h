/* One sample for each of many rows; a row whose forecast is not finite is not advanced. */
#ifndef KSSM_STEP_H
#define KSSM_STEP_H

#include "copies.h"

/* The caller's arrays, one entry a sample. Mirrored in library.py. */
typedef struct {
    int64_t count;
    const double *values, *dt; /* dt may be NULL: all 1 */
    const int64_t *slots;      /* all different, -1 = padding */
    double *tail;
    uint8_t *healthy;
} Samples;

/* A tile; the rows' entries before it; and what was at the place of each sample in its block. */
typedef struct {
    Tile tile;
    float *backup;
    double places[TILE][2];
} Attempt;

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

static void restore(const Sizes *s, const Arena *arenas, const Attempt *attempt, int64_t r) {
    const Tile *tile = &attempt->tile;
    const Arena *arena = arenas + tile->parts[r];
    move_row(RESTORE, s, arena, tile->slots[r], attempt->backup + r * backup_size(s));
    memcpy(arena->scaler + tile->slots[r] * FIELDS, &tile->before[r], sizeof *tile->before);
}

/* What the row's resolutions forecast now. */
static Readings readings_of(const Sizes *s, const Rows *rows, int64_t slot) {
    Readings readings;
    for (int64_t i = 0; i <= rows->copies; i++) {
        readings.forecasts[i] = rows->parts[i].forecast + slot * forecast_size(s);
        readings.statistics[i] = (const Statistics *)(rows->parts[i].scaler + slot * FIELDS);
    }
    return readings;
}

/* After token `r` of the row itself, and `copies` tokens of its copies that follow it. */
static void settle(const Sizes *s, const Rows *rows, const Attempt *attempt, int64_t r,
                   int64_t copies, const Workspace *space, const Samples *samples) {
    const Tile *tile = &attempt->tile;
    int64_t size = forecast_size(s), out = tile->outputs[r], slot = tile->slots[r];
    int healthy = is_healthy(space->quantiles + r * size, size);
    samples->tail[out] = tile->tail[r];
    samples->healthy[out] = (uint8_t)healthy;
    if (!healthy) restore(s, rows->parts, attempt, r);
    for (int64_t i = r + 1; i <= r + copies; i++)
        if (!healthy || !is_healthy(space->quantiles + i * size, size))
            restore(s, rows->parts, attempt, i);
    if (!rows->copies) return;
    if (!healthy) {
        put(rows, slot, s->head_horizon, attempt->places[r]);
    } else if (tick(rows, slot, s->head_horizon)) {
        Readings readings = readings_of(s, rows, slot);
        keep_rivals(rows, slot, s->head_horizon, &readings);
    }
}

static void step_tile(const Sizes *s, char *weights, const Rows *rows, Attempt *attempt,
                      const Workspace *space, const Samples *samples) {
    Tile *tile = &attempt->tile;
    for (int64_t r = 0; r < tile->count; r++)
        move_row(SAVE, s, rows->parts + tile->parts[r], tile->slots[r],
                 attempt->backup + r * backup_size(s));
    run_tile(s, weights, rows->parts, tile, space);
    for (int64_t r = 0, next; r < tile->count; r = next) {
        for (next = r + 1; next < tile->count && tile->parts[next]; next++) {}
        settle(s, rows, attempt, r, next - r - 1, space, samples);
    }
    tile->count = 0;
}

static void step_rows(const Sizes *s, char *weights, const Rows *rows, const Workspace *space,
                      float *backup, const Samples *samples) {
    Attempt attempt = {.backup = backup};
    Tile *tile = &attempt.tile;
    for (int64_t i = 0; i < samples->count; i++) {
        int64_t slot = samples->slots[i];
        if (slot < 0) {
            samples->tail[i] = NAN;
            samples->healthy[i] = 1;
            continue;
        }
        if (tile->count + 1 + rows->copies > TILE)
            step_tile(s, weights, rows, &attempt, space, samples);
        double value = samples->values[i], dt = samples->dt ? samples->dt[i] : 1.0;
        int64_t r = tile->count;
        add_token(tile, 0, slot, value, dt, EVERYTHING);
        tile->outputs[r] = i;
        if (!rows->copies) continue;
        take(rows, slot, s->head_horizon, attempt.places[r]);
        hold(rows, slot, s->head_horizon, value, dt);
        add_copies(rows, slot, s->head_horizon, EVERYTHING, tile);
    }
    if (tile->count) step_tile(s, weights, rows, &attempt, space, samples);
}

#endif
