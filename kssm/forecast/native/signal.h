/* The scaler's recursion, features and scores of one row, in float64.
 *
 * The same formulas as kssm/ops/scaler_scan, kssm/forecast/scaler.py and
 * kssm/forecast/distribution.py, which explain them.
 */
#ifndef KSSM_SIGNAL_H
#define KSSM_SIGNAL_H

#include <math.h>
#include <stdint.h>

enum { FIELDS = 7, FEATURES = 9, LEVELS = 9, MEDIAN = 4, SCORED_HORIZONS = 4 };
#define WARM_UP 8.0 /* visible samples before a scale is trusted */

typedef struct {
    double count, mean, variance, difference, fast_mean, last, gap;
} Statistics;

static inline int is_visible(double x) { return fabs(x) <= 1e30; }

/* The larger of the two; NaN if either is. */
static inline double maximum(double a, double b) { return a > b || isnan(a) ? a : b; }

static inline double scale_of(const Statistics *s) {
    return maximum(sqrt(s->variance), 1e-8 * fabs(s->mean) + 1e-30);
}

static inline double normalise(double x, const Statistics *s) {
    return asinh((x - s->mean) / scale_of(s));
}

static inline double winsorise(double innovation, double variance, int warm) {
    double bound = 16.0 * sqrt(variance);
    if (!warm || !(variance > 0)) return innovation;
    return innovation > bound ? bound : innovation < -bound ? -bound : innovation;
}

static Statistics update(const Statistics *old, double x, double dt) {
    Statistics s = *old;
    if (!is_visible(x)) {
        s.gap = old->gap + dt;
        return s;
    }
    int first = old->count == 0, warm = old->count >= WARM_UP;
    double mean = first ? x : old->mean, last = first ? x : old->last;
    double fast_mean = first ? x : old->fast_mean;
    s.count = old->count + 1.0;
    double share = 1.0 / (s.count < 512.0 ? s.count : 512.0);
    double fast = 1.0 / (s.count < 16.0 ? s.count : 16.0);
    double pairs = old->count < 512.0 ? old->count : 512.0;
    double deviation = winsorise(x - mean, old->variance, warm);
    double step = winsorise(x - last, old->difference, warm);
    double rush = winsorise(x - fast_mean, old->variance, warm);
    s.mean = mean + share * deviation;
    s.variance = (1.0 - share) * (old->variance + share * deviation * deviation);
    if (!first) s.difference += (step * step - old->difference) / (pairs < 1.0 ? 1.0 : pairs);
    s.fast_mean = fast_mean + fast * rush;
    s.last = x;
    s.gap = 0.0;
    return s;
}

static void features(double value, double dt, const Statistics *before, const Statistics *after,
                     float out[FEATURES]) {
    int seen = is_visible(value), moved = seen && before->count > 0;
    double scale = scale_of(after), steps = maximum(sqrt(after->difference), 0.01 * scale);
    double count = after->count < 1.0 ? 1.0 : after->count > 2048.0 ? 2048.0 : after->count;
    out[0] = (float)asinh((seen ? value - after->mean : 0.0) / scale);
    out[1] = (float)seen;
    out[2] = (float)asinh((moved ? value - before->last : 0.0) / steps);
    out[3] = (float)asinh((moved ? value - before->fast_mean : 0.0) / steps);
    out[4] = (float)log(steps / scale);
    out[5] = (float)asinh((after->last - after->mean) / scale);
    out[6] = (float)(log(count) / 6.0);
    out[7] = (float)(log1p(after->gap) / 6.0);
    out[8] = (float)log(dt);
}

/* Two-sided tail probability of x under nine quantiles. Nothing is subtracted from 1 beyond the
 * outer ones, so that far above is as precise as far below. */
static double tail_probability(const float *quantiles, double x) {
    double median = quantiles[MEDIAN], low = quantiles[0], high = quantiles[LEVELS - 1];
    double distance = x - median;
    if (x < low || x > high) {
        double spread = maximum(distance < 0 ? median - low : high - median, 1e-6);
        return erfc(fabs(distance) * (1.2815515655446004 / spread) * 0.70710678118654752440);
    }
    double steps = 0.0;
    for (int i = 0; i + 1 < LEVELS; i++) {
        double gap = (double)quantiles[i + 1] - quantiles[i], above = x - quantiles[i];
        double inside = above / maximum(gap, 1e-12);
        if (gap > 0)
            steps += inside < 0.0 ? 0.0 : inside > 1.0 ? 1.0 : inside;
        else
            steps += inside >= 0;
    }
    double below = 0.1 + 0.1 * steps;
    return 2.0 * (below < 1.0 - below ? below : 1.0 - below);
}

/* Two-sided tail probability of a value under the forecasts made before it; NaN = no score. */
static double score(double value, double dt, const Statistics *before, const float *forecast) {
    if (!is_visible(value) || !(before->count >= WARM_UP)) return NAN;
    double ahead = rint(dt);
    int k = ahead >= SCORED_HORIZONS ? SCORED_HORIZONS - 1 : ahead > 1 ? (int)ahead - 1 : 0;
    return tail_probability(forecast + k * LEVELS, normalise(value, before));
}

#endif
