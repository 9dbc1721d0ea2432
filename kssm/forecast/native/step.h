/* One sample for each of many rows; a row whose forecast is not finite is not advanced, nor are the
 * others of its group. */
#ifndef KSSM_STEP_H
#define KSSM_STEP_H

#include "copies.h"

/* The caller's arrays, one entry a sample. Mirrored in library.py. */
typedef struct {
    int64_t count;
    const double *values, *dt; /* dt may be NULL: all 1 */
    const int64_t *slots;      /* all different, -1 = padding */
    const int64_t *groups;     /* equal for neighbours that go on together or not at all, as long
                                * as they fit into a tile; NULL: each by itself */
    double *tail;
    uint8_t *healthy;
} Samples;

/* A tile; the rows' entries before it; each row's group, and what was at the place of its sample in
 * its block. */
typedef struct {
    Tile tile;
    float *backup;
    int64_t groups[TILE];
    double places[TILE][2];
} Attempt;

typedef enum { SAVE, RESTORE } Direction;

static int64_t backup_size(const Sizes *s) {
    return s->layers * 3 * s->d_inner + forecast_size(s);
}

static float *move(Direction direction, float *entry, float *backup, int64_t size) {
    float *to = direction == SAVE ? backup : entry, *from = direction == SAVE ? entry : backup;
    memcpy(to, from, (size_t)size * sizeof *to);
    return backup + size;
}

/* Only the token that the step pushes out of the window is saved; the others are moved back. */
static float *move_window(Direction direction, const Sizes *s, float *window, float *backup) {
    int64_t inner = s->d_inner, rest = window_size(s) - inner;
    if (direction == RESTORE) memmove(window + inner, window, (size_t)rest * sizeof *window);
    return move(direction, window, backup, inner);
}

/* A row's entries to or from its backup. */
static void move_row(Direction direction, const Sizes *s, const Arena *arena, int64_t slot,
                     float *backup) {
    int64_t window = window_size(s), state = 2 * s->d_inner, forecast = forecast_size(s);
    for (int64_t i = 0; i < s->layers; i++) {
        backup = move_window(direction, s, arena->windows[i] + slot * window, backup);
        backup = move(direction, arena->states[i] + slot * state, backup, state);
    }
    move(direction, arena->forecast + slot * forecast, backup, forecast);
}

#define INFINITE 0x7f800000 /* the bits that infinity and NaN have in common */

static int is_healthy(const float *quantiles, int64_t size) {
    int32_t ill = 0;
    for (int64_t i = 0; i < size; i++) ill |= (to_bits(quantiles[i]) & INFINITE) == INFINITE;
    return !ill;
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

static int token_is_healthy(const Sizes *s, const Workspace *space, int64_t r) {
    return is_healthy(space->quantiles + r * forecast_size(s), forecast_size(s));
}

/* After token `r` of the row itself, and `copies` tokens of its copies that follow it. */
static void settle(const Sizes *s, const Rows *rows, const Attempt *attempt, int64_t r,
                   int64_t copies, int healthy, const Workspace *space,
                   const Samples *samples) {
    const Tile *tile = &attempt->tile;
    int64_t out = tile->outputs[r], slot = tile->slots[r];
    samples->tail[out] = tile->tail[r];
    samples->healthy[out] = (uint8_t)healthy;
    if (!healthy) restore(s, rows->parts, attempt, r);
    for (int64_t i = r + 1; i <= r + copies; i++)
        if (!healthy || !token_is_healthy(s, space, i))
            restore(s, rows->parts, attempt, i);
    if (!rows->copies) return;
    if (!healthy) {
        put(rows, slot, s->head_horizon, attempt->places[r]);
    } else if (tick(rows, slot, s->head_horizon)) {
        Readings readings = readings_of(s, rows, slot);
        keep_rivals(rows, slot, s->head_horizon, &readings);
    }
}

/* After the tokens of a group, [first, last). */
static void settle_group(const Sizes *s, const Rows *rows, const Attempt *attempt, int64_t first,
                         int64_t last, const Workspace *space, const Samples *samples) {
    const int64_t *parts = attempt->tile.parts;
    int healthy = 1;
    for (int64_t r = first; r < last; r++)
        if (!parts[r] && !token_is_healthy(s, space, r)) healthy = 0;
    for (int64_t r = first, next; r < last; r = next) {
        for (next = r + 1; next < last && parts[next]; next++) {}
        settle(s, rows, attempt, r, next - r - 1, healthy, space, samples);
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
        const int64_t *groups = attempt->groups;
        for (next = r + 1; next < tile->count && groups[next] == groups[r]; next++) {}
        settle_group(s, rows, attempt, r, next, space, samples);
    }
    tile->count = 0;
}

/* Tokens of the group that begins with sample `i`, or of as much of it as fits into a tile. */
static int64_t tokens_of(const Samples *samples, int64_t i, int64_t each) {
    int64_t tokens = each;
    if (!samples->groups || (i && samples->groups[i] == samples->groups[i - 1])) return tokens;
    for (int64_t j = i + 1; j < samples->count && samples->groups[j] == samples->groups[i]; j++)
        tokens += each;
    return tokens < TILE ? tokens : TILE;
}

static void step_rows(const Sizes *s, char *weights, const Rows *rows, const Workspace *space,
                      float *backup, const Samples *samples) {
    Attempt attempt;
    Tile *tile = &attempt.tile;
    attempt.backup = backup;
    tile->count = 0;
    for (int64_t i = 0; i < samples->count; i++) {
        int64_t slot = samples->slots[i];
        if (slot < 0) {
            samples->tail[i] = NAN;
            samples->healthy[i] = 1;
            continue;
        }
        if (tile->count && tile->count + tokens_of(samples, i, 1 + rows->copies) > TILE)
            step_tile(s, weights, rows, &attempt, space, samples);
        double value = samples->values[i], dt = samples->dt ? samples->dt[i] : 1.0;
        int64_t r = tile->count;
        add_token(tile, 0, slot, value, dt, EVERYTHING);
        tile->outputs[r] = i;
        if (rows->copies) {
            take(rows, slot, s->head_horizon, attempt.places[r]);
            hold(rows, slot, s->head_horizon, value, dt);
            add_copies(rows, slot, s->head_horizon, EVERYTHING, tile);
        }
        for (int64_t q = r; q < tile->count; q++)
            attempt.groups[q] = samples->groups ? samples->groups[i] : i;
    }
    if (tile->count) step_tile(s, weights, rows, &attempt, space, samples);
}

#endif
