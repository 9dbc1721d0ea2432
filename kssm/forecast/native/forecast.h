/* Quantiles of the next samples from the forecasts in the rows' states, mixed over resolutions. */
#ifndef KSSM_FORECAST_H
#define KSSM_FORECAST_H

#include "copies.h"

#define SHARPNESS 32.0
#define DOUBT 4.0
#define DOUBT_BLOCKS 8.0
#define STALENESS 32.0
#define OVERLAP 0.2
#define WORST 10.0
#define TINY 1e-12

/* One resolution of the rows. */
typedef struct {
    int64_t points;         /* of the forecasts: enough for the horizon */
    const float *forecasts; /* [slots, points, LEVELS] */
    const double *scaler;   /* [slots, 7] */
} Source;

/* Mirrored in library.py. */
typedef struct {
    int64_t rows, horizon, levels, direct; /* `direct`: samples that the head reaches */
    int64_t copies;
    const Source *sources;  /* [1 + copies] */
    const int64_t *factors; /* [copies] */
    const int64_t *slots;   /* [rows]: where each row's entries are, or NULL: in order */
    const double *clock;    /* [slots] */
    const double *contest;  /* [slots, copies, 2, 3] */
    const Level *wanted;    /* [levels] */
    double *quantiles;      /* [rows, horizon, levels] */
} Question;

/* Room for one row's shares [1 + copies, horizon], narrowing and medians [horizon]. */
typedef struct {
    double *shares, *narrowing, *medians;
} Mixture;

/* Excess losses of the resolutions, near and far, and how much less is believed of each. */
static void standing(const Question *q, int64_t row, double excess[][2], double *doubt) {
    double ratio[1 + MOST_COPIES][2] = {{1.0, 1.0}}, least[2] = {1.0, 1.0};
    doubt[0] = 0.0;
    for (int64_t r = 1; r <= q->copies; r++) {
        const double *sums = q->contest + (row * q->copies + r - 1) * 6;
        double blocks = sums[2] < sums[5] ? sums[2] : sums[5];
        doubt[r] = blocks > 0 ? DOUBT * DOUBT_BLOCKS / (DOUBT_BLOCKS + blocks) : INFINITY;
        for (int part = 0; part < 2; part++, sums += 3) {
            double value = (sums[0] + TINY) / (sums[1] + TINY);
            ratio[r][part] = sums[2] > 0 ? (value > WORST ? WORST : value) : 1.0;
            if (ratio[r][part] < least[part]) least[part] = ratio[r][part];
        }
    }
    for (int64_t r = 0; r <= q->copies; r++)
        for (int part = 0; part < 2; part++)
            excess[r][part] = (ratio[r][part] - 1.0) / least[part];
}

static void weigh(const Question *q, int64_t row, const Mixture *mixture) {
    double excess[1 + MOST_COPIES][2], doubt[1 + MOST_COPIES], logits[1 + MOST_COPIES];
    double direct = (double)q->direct, ages[1 + MOST_COPIES];
    for (int64_t r = 1; r <= q->copies; r++)
        ages[r] = (double)phase(q->clock[row], q->factors[r - 1]);
    standing(q, row, excess, doubt);
    for (int64_t h = 0; h < q->horizon; h++) {
        double ahead = (double)(h + 1), far = (ahead - direct / 8.0) / (direct / 4.0);
        double best = -INFINITY, sum = 0.0, squares = 0.0;
        far = far < 0.0 ? 0.0 : far > 1.0 ? 1.0 : far;
        for (int64_t r = 0; r <= q->copies; r++) {
            double reach = direct * (double)(r ? q->factors[r - 1] : 1);
            logits[r] = -SHARPNESS * lerp(excess[r][0], excess[r][1], far) - doubt[r];
            if (ahead > reach) logits[r] -= log(ahead / reach);
            if (r && ages[r] > 0) logits[r] -= STALENESS * log1p(ages[r] / ahead);
            if (logits[r] > best) best = logits[r];
        }
        for (int64_t r = 0; r <= q->copies; r++) sum += logits[r] = exp(logits[r] - best);
        for (int64_t r = 0; r <= q->copies; r++) {
            double share = mixture->shares[r * q->horizon + h] = logits[r] / sum;
            squares += share * share;
        }
        mixture->narrowing[h] = 1.0 - OVERLAP * (1.0 - squares);
    }
}

/* One level of a row at every horizon: to `out`, `stride` apart. */
static void mix(const Question *q, int64_t row, Level level, const Mixture *mixture, double *out,
                int64_t stride) {
    double anchor = ((const Statistics *)q->sources->scaler)[row].last;
    for (int64_t h = 0; h < q->horizon; h++) out[h * stride] = 0.0;
    for (int64_t r = 0; r <= q->copies; r++) {
        const Source *source = q->sources + r;
        int64_t factor = r ? q->factors[r - 1] : 1;
        int64_t age = r ? phase(q->clock[row], factor) : 0;
        Path path = path_of(source->forecasts + row * source->points * LEVELS,
                            (const Statistics *)source->scaler + row, level, factor, age, anchor);
        for (int64_t h = 0; h < q->horizon; h++) {
            double value = walk(&path, h + 1);
            double share = q->copies ? mixture->shares[r * q->horizon + h] : 1.0;
            if (share > 0) out[h * stride] += value * share;
        }
    }
}

/* The row whose entries are at `row`: to `out` [horizon, levels]. */
static void answer_row(const Question *q, int64_t row, const Mixture *mixture, double *out) {
    if (((const Statistics *)q->sources->scaler)[row].count == 0) {
        for (int64_t i = 0; i < q->horizon * q->levels; i++) out[i] = NAN;
        return;
    }
    if (q->copies) {
        Level median = {MEDIAN, MEDIAN, 0.0};
        weigh(q, row, mixture);
        mix(q, row, median, mixture, mixture->medians, 1);
    }
    for (int64_t i = 0; i < q->levels; i++) {
        mix(q, row, q->wanted[i], mixture, out + i, q->levels);
        if (!q->copies) continue;
        for (int64_t h = 0; h < q->horizon; h++) {
            double *value = out + h * q->levels + i, middle = mixture->medians[h];
            *value = middle + (*value - middle) * mixture->narrowing[h];
        }
    }
}

/* Rows [first, last); 0 if there is no memory. */
static int answer_rows(const Question *q, int64_t first, int64_t last) {
    double *memory = malloc((size_t)((q->copies + 3) * q->horizon) * sizeof *memory);
    if (!memory) return 0;
    Mixture mixture = {memory + 2 * q->horizon, memory, memory + q->horizon};
    for (int64_t i = first; i < last; i++)
        answer_row(q, q->slots ? q->slots[i] : i, &mixture,
                   q->quantiles + i * q->horizon * q->levels);
    free(memory);
    return 1;
}

#endif
