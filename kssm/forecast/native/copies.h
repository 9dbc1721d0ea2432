/* A row and its thinned copies: the block of samples under way, which copies are due, and the
 * contest between them. The same formulas as kssm/forecast/{thinning,contest,resolutions}.py, which
 * explain them; in float64 but for the forecasts that are kept.
 */
#ifndef KSSM_COPIES_H
#define KSSM_COPIES_H

#include "quantiles.h"
#include "tile.h"

enum { JUDGED = 3, MOST_COPIES = 15 };
static const int JUDGED_LEVELS[JUDGED] = {0, MEDIAN, LEVELS - 1};
static const double JUDGED_AT[JUDGED] = {0.1, 0.5, 0.9};

#define ABSENT 2e30 /* what a missing sample is kept as */
#define LIMIT 1e6   /* of a kept forecast, in scales */
#define FADE 0.99

/* Entries of the state of rows that are read at several resolutions. Mirrored in library.py. */
typedef struct {
    int64_t copies;         /* of each row; without any all that follows `parts` is unused */
    const Arena *parts;     /* [1 + copies]: the row itself, then its copies */
    const int64_t *factors; /* [copies] */
    const int64_t *mature;  /* [copies]: blocks before a copy takes part */
    double *clock;          /* [rows]: samples so far */
    double *block;          /* [rows, 2, size]: samples and steps */
    float *rivals;          /* [rows, 1 + copies, size, JUDGED] */
    double *rivals_scale;   /* [rows, 2]: location and scale */
    double *contest;        /* [rows, copies, 2, 3] */
} Rows;

/* Forecasts and statistics of a row's resolutions at the same moment. */
typedef struct {
    const float *forecasts[1 + MOST_COPIES];
    const Statistics *statistics[1 + MOST_COPIES];
} Readings;

static inline int64_t phase_of(const Rows *rows, int64_t slot, int64_t size) {
    return phase(rows->clock[slot], size);
}

/* Puts a sample and its step into the block, at their place by the clock, which does not move. */
static void put(const Rows *rows, int64_t slot, int64_t size, const double pair[2]) {
    double *place = rows->block + slot * 2 * size + phase_of(rows, slot, size);
    place[0] = pair[0];
    place[size] = pair[1];
}

static void take(const Rows *rows, int64_t slot, int64_t size, double pair[2]) {
    const double *place = rows->block + slot * 2 * size + phase_of(rows, slot, size);
    pair[0] = place[0];
    pair[1] = place[size];
}

static void hold(const Rows *rows, int64_t slot, int64_t size, double value, double dt) {
    double pair[2] = {is_visible(value) ? value : ABSENT, dt};
    put(rows, slot, size, pair);
}

/* A token for every copy whose run ends with the sample that was held last. */
static void add_copies(const Rows *rows, int64_t slot, int64_t size, Reading reading,
                       Tile *tile) {
    int64_t next = phase_of(rows, slot, size) + 1;
    const double *samples = rows->block + slot * 2 * size, *steps = samples + size;
    for (int64_t i = 0; i < rows->copies; i++) {
        int64_t factor = rows->factors[i];
        if (next % factor) continue;
        double value = NAN, total = steps[next - factor];
        for (int64_t j = next - factor; j < next; j++)
            if (is_visible(samples[j])) value = samples[j];
        for (int64_t j = next - factor + 1; j < next; j++) total += steps[j];
        add_token(tile, i + 1, slot, value, total / (double)factor, reading);
    }
}

/* Losses of the forecasts kept of a block, near and far: [1 + copies, 2]. */
static void judge(const Rows *rows, int64_t slot, int64_t size, double *losses, int valid[2]) {
    const double *samples = rows->block + slot * 2 * size, *kept = rows->rivals_scale + slot * 2;
    int64_t near = size / 4, count[2] = {0, 0};
    for (int64_t r = 0; r <= rows->copies; r++) losses[2 * r] = losses[2 * r + 1] = 0.0;
    for (int64_t j = 0; j < size; j++) {
        if (!is_visible(samples[j]) || !(kept[1] > 0)) continue;
        double unit = bounded((samples[j] - kept[0]) / kept[1], LIMIT);
        count[j >= near]++;
        for (int64_t r = 0; r <= rows->copies; r++) {
            const float *forecast =
                rows->rivals + ((slot * (rows->copies + 1) + r) * size + j) * JUDGED;
            double sum = 0.0;
            for (int q = 0; q < JUDGED; q++) {
                double error = unit - forecast[q];
                sum += maximum(JUDGED_AT[q] * error, (JUDGED_AT[q] - 1.0) * error);
            }
            losses[2 * r + (j >= near)] += sum / JUDGED;
        }
    }
    for (int part = 0; part < 2; part++) {
        valid[part] = count[part] > 0;
        for (int64_t r = 0; r <= rows->copies; r++)
            losses[2 * r + part] /= (double)(valid[part] ? count[part] : 1);
    }
}

/* Adds the losses of the row's block number `number`, which is full, to the fading sums. */
static void fold(const Rows *rows, int64_t slot, int64_t size, int64_t number) {
    double losses[2 * (1 + MOST_COPIES)];
    int valid[2];
    judge(rows, slot, size, losses, valid);
    for (int64_t i = 0; i < rows->copies; i++)
        for (int part = 0; part < 2; part++) {
            double *sums = rows->contest + ((slot * rows->copies + i) * 2 + part) * 3;
            if (!valid[part] || number < rows->mature[i]) continue;
            sums[0] = FADE * sums[0] + losses[2 * (i + 1) + part];
            sums[1] = FADE * sums[1] + losses[part];
            sums[2] += 1.0;
        }
}

/* The clock moves on by the sample that was held last. If its block is full, the block is judged
 * and emptied; says whether it was. */
static int tick(const Rows *rows, int64_t slot, int64_t size) {
    rows->clock[slot] += 1.0;
    if (phase_of(rows, slot, size)) return 0;
    fold(rows, slot, size, samples_of(rows->clock[slot]) / size - 1);
    memset(rows->block + slot * 2 * size, 0, (size_t)(2 * size) * sizeof *rows->block);
    return 1;
}

/* Keeps every resolution's forecast of the block that begins, in scales of the row. */
static void keep_rivals(const Rows *rows, int64_t slot, int64_t size, const Readings *readings) {
    const Statistics *own = readings->statistics[0];
    double location = own->mean, scale = scale_of(own), *kept = rows->rivals_scale + slot * 2;
    kept[0] = location;
    kept[1] = own->count >= WARM_UP ? scale : 0.0;
    float *out = rows->rivals + slot * (rows->copies + 1) * size * JUDGED;
    for (int64_t r = 0; r <= rows->copies; r++)
        for (int q = 0; q < JUDGED; q++) {
            Level level = {JUDGED_LEVELS[q], JUDGED_LEVELS[q], 0.0};
            Path path = path_of(readings->forecasts[r], readings->statistics[r], level,
                                r ? rows->factors[r - 1] : 1, 0, own->last);
            for (int64_t j = 0; j < size; j++) {
                double unit = (walk(&path, j + 1) - location) / scale;
                out[(r * size + j) * JUDGED + q] = (float)bounded(unit, LIMIT);
            }
        }
}

#endif
