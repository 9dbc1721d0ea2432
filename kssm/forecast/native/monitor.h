/* The anomaly monitor of one row: calibrated tail probabilities and the running surprise.
 *
 * The same formulas as kssm/forecast/anomaly.py, which explains them.
 */
#ifndef KSSM_MONITOR_H
#define KSSM_MONITOR_H

#include "signal.h"

#define OUTER_TAIL 0.2 /* two-sided probability beyond the outer quantiles */
#define OUTER_Z 1.2815515655446004
#define TAIL_MEMORY 500.0
#define SURPRISE_MEMORY 32.0
#define LEAST_TAIL 1e-12 /* a score is at most 12 */

/* Mirrors `FIELDS` in anomaly.py. */
typedef struct {
    Statistics level;
    double weight, excess, surprise;
} Monitor;

static double polynomial(const double *coefficients, double x) {
    double sum = coefficients[7];
    for (int i = 6; i >= 0; i--) sum = sum * x + coefficients[i];
    return sum;
}

/* The z that a standard normal number exceeds with probability p, for p in (0, 0.15]:
 * Wichura's rational approximations (1988, algorithm AS 241), good to 1e-16. */
static double upper_normal(double p) {
    static const double near_top[] = {
        1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550,
        3.64784832476320460504, 1.27045825245236838258, 2.41780725177450611770e-1,
        2.27238449892691845833e-2, 7.74545014278341407640e-4};
    static const double near_bottom[] = {
        1.0, 2.05319162663775882187, 1.67638483018380384940, 6.89767334985100004550e-1,
        1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
        1.05075007164441684324e-9};
    static const double far_top[] = {
        6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580,
        2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
        2.71155556874348757815e-5, 2.01033439929228813265e-7};
    static const double far_bottom[] = {
        1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
        7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
        2.04426310338993978564e-15};
    double r = sqrt(-log(p));
    if (r <= 5.0) return polynomial(near_top, r - 1.6) / polynomial(near_bottom, r - 1.6);
    return polynomial(far_top, r - 5.0) / polynomial(far_bottom, r - 5.0);
}

static double score_of(double tail) {
    return -log10(tail < LEAST_TAIL ? LEAST_TAIL : tail > 1.0 ? 1.0 : tail);
}

static double level_tail(const Statistics *level, double value) {
    if (!is_visible(value) || !(level->count >= WARM_UP)) return NAN;
    return erfc(fabs((value - level->mean) / scale_of(level)) * 0.70710678118654752440);
}

/* Takes a sample and its tail under the forecast made before it; NaN where there is no score. */
static void watch(Monitor *m, double value, double tail, double *probability, double *surprise) {
    double level = level_tail(&m->level, value);
    m->level = update(&m->level, value, 1.0);
    *probability = tail;
    *surprise = NAN;
    if (isnan(tail)) return;
    if (tail < OUTER_TAIL) {
        double reach = upper_normal((tail < 1e-300 ? 1e-300 : tail) / 2.0) / OUTER_Z;
        reach = reach > 1.0 ? reach : 1.0;
        double fade = m->weight >= TAIL_MEMORY ? 1.0 - 1.0 / TAIL_MEMORY : 1.0;
        *probability = OUTER_TAIL * pow(reach, -m->weight / m->excess);
        m->weight = m->weight * fade + 1.0;
        m->excess = m->excess * fade + log(reach);
    }
    double fresh = score_of(*probability) + score_of(level);
    if (isnan(level)) return;
    m->surprise += (fresh - m->surprise) / SURPRISE_MEMORY;
    *surprise = m->surprise;
}

/* The caller's arrays: samples, tails and what comes of them [tokens, count], and the monitors,
 * of which column i uses number slots[i] (or i, without slots). Mirrored in library.py. */
typedef struct {
    int64_t count, tokens;
    const int64_t *slots;
    const double *values, *tail;
    Monitor *monitors;
    double *probability, *surprise;
} Watched;

static void watch_all(const Watched *w) {
    for (int64_t t = 0; t < w->tokens; t++)
        for (int64_t i = 0; i < w->count; i++) {
            int64_t at = t * w->count + i;
            watch(w->monitors + (w->slots ? w->slots[i] : i), w->values[at], w->tail[at],
                  w->probability + at, w->surprise + at);
        }
}

#endif
