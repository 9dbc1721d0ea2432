// The gradients of the element-wise scan over 16-bit inputs (CUDA; see README.md).
//
// A program of one warp takes 64 channels of a row, or of a chunk of it, two a lane, and KEEP = 4
// tokens at a time, the last ones first. Their states are computed once more from the one kept before them, then the
// adjoint runs back over them; kernel_backward.py has the equations. As in walk.cu, inputs wait in
// a ring of AHEAD places in shared memory.
//
// Given by the compiler's command line, beside what parts.cuh says: AHEAD.

#include "parts.cuh"
#include "rows.cuh"
#include "board.cuh"
#include "adjoint.cuh"

#define STREAM_LINE 160                        // words of a token: 5 streams of 32 lanes
#define PLACE_WORDS (KEEP * STREAM_LINE + 128)  // and the kept states: 64 real parts, 64 imaginary
#define WINDOW 4  // maps that are asked for at once
#define NOTHING (HALF ? 0xfc00fc00u : 0xff80ff80u)  // a step of softplus(-inf)

struct Sums { float alpha, w, w_omega, dt, c_re, c_im; };

// What the second half needs to know of a token.
struct Known { float P, Q, step, a, w, slope_a, slope_dt; };

struct Found { float alpha, omega, dt, x; Pair b; };

DEVICE Known know(Token t, Channel c) {
  Known k;
  float raw_a = fmaf(t.alpha, LOG2E, c.alpha_bias), raw_dt = fmaf(t.dt, LOG2E, c.dt_bias);
  k.a = softplus_4(raw_a);
  float step = softplus_5(raw_dt);
  k.slope_a = raw_a - k.a;
  k.slope_dt = raw_dt - step;
  if (FACTOR) step *= t.factor;
  k.step = least(step, LARGEST_STEP);
  k.w = fmaf(t.omega, c.scale, c.shift);
  float p = fmaf(k.step * (HALF_LN2 * HALF_LN2), k.a, 0.5f), q = k.step * k.w;
  float inverse = reciprocal(fmaf(p, p, q * q));
  k.P = p * inverse;
  k.Q = q * inverse;
  return k;
}

// A token's gradients from its adjoint g, which becomes what it hands to the token before it.
DEVICE Found trace(Known k, Token t, Channel c, Pair b, Pair before, Pair after, float dy, Pair& g,
                   Sums& sums) {
  Pair r = {fmaf(k.P, g.re, -k.Q * g.im), fmaf(k.P, g.im, k.Q * g.re)};
  g = {r.re - g.re, r.im - g.im};
  float m_re = before.re + after.re, m_im = before.im + after.im;
  float to_x = fmaf(r.re, b.re, r.im * b.im);
  float to_a = fmaf(r.re, m_re, r.im * m_im);
  float to_w = fmaf(r.im, m_re, -r.re * m_im);
  float to_step = fmaf(t.x, to_x, -fmaf(k.a * (HALF_LN2 * HALF_LN2), to_a, k.w * to_w));
  float stepped = k.step * to_w, drive = k.step * t.x;
  Found found;
  found.alpha = k.step * to_a * (-0.5f * HALF_LN2 * exp2_fast(k.slope_a));
  found.omega = -stepped * c.scale;
  found.dt = to_step * (LOG2E * exp2_fast(k.slope_dt));
  if (FACTOR) found.dt *= t.factor;
  found.x = k.step * to_x;
  found.b = {drive * r.re, drive * r.im};
  sums.alpha += found.alpha;
  sums.w += stepped;
  sums.w_omega = fmaf(stepped, t.omega, sums.w_omega);
  sums.dt += found.dt;
  sums.c_re = fmaf(dy, after.re, sums.c_re);
  sums.c_im = fmaf(dy, after.im, sums.c_im);
  return found;
}

// Of two numbers a lane keeps one, by a bit of its own, and adds the other side's to it.
DEVICE float merge(float low_one, float high_one, int bit) {
  bool upper = threadIdx.x & bit;
  float sent = upper ? low_one : high_one, held = upper ? high_one : low_one;
  return held + __shfl_xor_sync(0xffffffffu, sent, bit);
}

// The sums over all lanes of 8 numbers: of number lane / 4 in each lane.
DEVICE float sum_lanes(const float* v) {
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; i++) four[i] = merge(v[i], v[4 + i], 16);
#pragma unroll
  for (int i = 0; i < 2; i++) two[i] = merge(four[i], four[2 + i], 8);
  float one = merge(two[0], two[1], 4);
  one += __shfl_xor_sync(0xffffffffu, one, 2);
  return one + __shfl_xor_sync(0xffffffffu, one, 1);
}

// What a lane copies of the next place.
struct Source {
  const u16* at[5];
  const float* kept;
};

DEVICE void ask_for_place(const Both& g, u32* place, Source& from, int first, Span span) {
  int lane = threadIdx.x;
  bool there = first >= span.start && first + lane / 8 < span.stop;
#pragma unroll
  for (int s = 0; s < 5; s++) {
    int spacing = s < 4 ? g.forward.spacing[s] : g.to.dy_spacing;
    copy_async(place + lane / 8 * STREAM_LINE + s * 32 + lane % 8 * 4, from.at[s], there);
    from.at[s] -= (long long)KEEP * spacing;
  }
  copy_async(place + KEEP * STREAM_LINE + lane * 4, from.kept, first >= span.start);
  from.kept -= 2 * D;
  end_group();
}

struct Tracer {
  Channel c0, c1;
  Pair g0, g1;
  Sums s0, s1;
  u32* to[4];
  float* b;
};

DEVICE Quad words_of(const u32* at, float factor, bool there) {
  Quad q = {at[0], at[32], at[64], at[96]};
  if (FACTOR && factor == 0.0f) q = {0, 0, 0, 0};
  if (!there) q.c = NOTHING;
  return q;
}

// KEEP tokens of which the first `count` are there.
DEVICE void trace_back(Tracer& w, const u32* place, const Pair* b, const float* factor, int count) {
  int lane = threadIdx.x;
  Known k0[KEEP], k1[KEEP];
  Pair h0[KEEP + 1], h1[KEEP + 1];
  Pair re = ((const Pair*)(place + KEEP * STREAM_LINE))[lane];
  Pair im = ((const Pair*)(place + KEEP * STREAM_LINE + 64))[lane];
  h0[0] = {re.re, im.re};
  h1[0] = {re.im, im.im};
#pragma unroll
  for (int u = 0; u < KEEP; u++) {
    float f = FACTOR ? factor[u] : 1.0f;
    Quad q = words_of(place + u * STREAM_LINE + lane, f, u < count);
    Token t0 = first_of(q, f), t1 = second_of(q, f);
    k0[u] = know(t0, w.c0);
    k1[u] = know(t1, w.c1);
    h0[u + 1] = evolve(h0[u], {k0[u].P, k0[u].Q, k0[u].step * t0.x}, b[u]);
    h1[u + 1] = evolve(h1[u], {k1[u].P, k1[u].Q, k1[u].step * t1.x}, b[u]);
  }
  float to_b[2 * KEEP];
#pragma unroll
  for (int u = KEEP - 1; u >= 0; u--) {
    float f = FACTOR ? factor[u] : 1.0f;
    const u32* at = place + u * STREAM_LINE + lane;
    Quad q = words_of(at, f, u < count);
    Token t0 = first_of(q, f), t1 = second_of(q, f);
    float dy0 = low(at[128]), dy1 = high(at[128]);
    w.g0 = {fmaf(w.c0.c_re, dy0, w.g0.re), fmaf(w.c0.c_im, dy0, w.g0.im)};
    w.g1 = {fmaf(w.c1.c_re, dy1, w.g1.re), fmaf(w.c1.c_im, dy1, w.g1.im)};
    Found f0 = trace(k0[u], t0, w.c0, b[u], h0[u], h0[u + 1], dy0, w.g0, w.s0);
    Found f1 = trace(k1[u], t1, w.c1, b[u], h1[u], h1[u + 1], dy1, w.g1, w.s1);
    to_b[2 * u] = f0.b.re + f1.b.re;
    to_b[2 * u + 1] = f0.b.im + f1.b.im;
    if (u >= count) continue;
    w.to[0][u * (D / 2)] = pack(f0.alpha, f1.alpha);
    w.to[1][u * (D / 2)] = pack(f0.omega, f1.omega);
    w.to[2][u * (D / 2)] = pack(f0.dt, f1.dt);
    w.to[3][u * (D / 2)] = pack(f0.x, f1.x);
  }
  float total = sum_lanes(to_b) * HALF_LN2;
  if (lane % 4 == 0 && lane / 8 < count) w.b[lane / 8 * BLOCKS] = total;
}

// The program's pointers, for its last group of tokens.
DEVICE Source source_at(const Both& g, Row row, int block, int top) {
  int lane = threadIdx.x, column = block * 64 + lane % 8 * 8;
  long long token = row.first_token + top + lane / 8;
  Source from;
#pragma unroll
  for (int s = 0; s < 4; s++)
    from.at[s] = g.forward.streams[s] + token * g.forward.spacing[s] + column;
  from.at[4] = g.to.dy + token * g.to.dy_spacing + column;
  from.kept = kept_of(g.forward, row.number, row.first_token, top) + lane / 16 * D + block * 64 +
              lane % 16 * 4;
  return from;
}

DEVICE void write_sums(const Both& g, long long unit, int channel, Channel c, Sums s) {
  float* to = g.to.parameters + unit * (6 * D) + channel;
  to[0] = s.alpha;
  to[D] = -c.scale * s.w;
  to[2 * D] = (-0.5f * HALF_LN2) * fmaf(g.forward.parameters[1][channel], s.w, s.w_omega);
  to[3 * D] = s.dt;
  to[4 * D] = s.c_re;
  to[5 * D] = s.c_im;
}

// The adjoint of two channels after a chunk, from that of the last state and the later chunks' maps.
DEVICE void read_adjoint(const Both& g, Row row, long long unit, int channel, Pair& g0, Pair& g1) {
  const float* last = g.to.last + (row.number * D + channel) * 2;
  g0 = {last[0], last[1]};
  g1 = {last[2], last[3]};
  for (int c = row.chunks - 1; c > row.chunk; c -= WINDOW) {
    Quad first[WINDOW], second[WINDOW];
#pragma unroll
    for (int k = 0; k < WINDOW; k++) {
      const Quad* at = g.to.maps + (unit - row.chunk + max(c - k, 0)) * D + channel;
      first[k] = at[0];
      second[k] = at[1];
    }
#pragma unroll
    for (int k = 0; k < WINDOW; k++)
      if (c - k > row.chunk) {
        g0 = apply(as_map(first[k]), g0);
        g1 = apply(as_map(second[k]), g1);
      }
  }
}

KERNEL(32, 8) walk_back_kernel(CONSTANT Both g) {
  u32* ring = (u32*)memory;                       // [AHEAD, PLACE_WORDS]
  Pair* b = (Pair*)(ring + AHEAD * PLACE_WORDS);  // [NARROW]
  float* factor = (float*)(b + NARROW);           // [NARROW]
  int lane = threadIdx.x, block = blockIdx.x % BLOCKS, group = block / (BLOCKS / GROUPS);
  int channel = block * 64 + 2 * lane, unit = blockIdx.x / BLOCKS;
  Row row = find(g.forward, unit);
  if (row.chunk >= row.chunks) return;  // packed rows have room for more units than they fill
  Span span = span_of(g, row);
  bool any = span.stop > span.start;
  int top = any ? span.start + (span.stop - span.start - 1) / KEEP * KEEP : span.start;
  Source from = source_at(g, row, block, top);
  int asked = any ? top : span.start - KEEP;
#pragma unroll
  for (int k = 0; k < AHEAD - 1; k++, asked -= KEEP)
    ask_for_place(g, ring + k * PLACE_WORDS, from, asked, span);
  int window = top / NARROW * NARROW;
  Narrow next = read_narrow(g.forward, row.first_token + window + lane, window + lane < span.stop, group);
  Tracer w = {load_channel(g.forward, channel), load_channel(g.forward, channel + 1)};
  read_adjoint(g, row, unit, channel, w.g0, w.g1);
  w.s0 = w.s1 = {0, 0, 0, 0, 0, 0};
  long long first = row.first_token + top;
  for (int s = 0; s < 4; s++) w.to[s] = g.to.streams[s] + first * (D / 2) + channel / 2;
  w.b = g.to.b[lane / 4 % 2] + first * BLOCKS + block;
  int full = 0, empty = AHEAD - 1;
  for (int t = any ? top : span.start - KEEP; t >= span.start; t -= KEEP, asked -= KEEP) {
    wait_for_group<AHEAD - 2>();
    __syncwarp();
    if (t == top || t % NARROW == NARROW - KEEP) {
      b[lane] = next.b;
      if (FACTOR) factor[lane] = next.factor;
      window -= NARROW;
      next = read_narrow(g.forward, row.first_token + window + lane, window >= span.start, group);
      __syncwarp();
    }
    ask_for_place(g, ring + empty * PLACE_WORDS, from, asked, span);
    const u32* place = ring + full * PLACE_WORDS;
    if (t + KEEP <= span.stop)
      trace_back(w, place, b + t % NARROW, factor + t % NARROW, KEEP);
    else
      trace_back(w, place, b + t % NARROW, factor + t % NARROW, span.stop - t);
    for (int s = 0; s < 4; s++) w.to[s] -= KEEP * (D / 2);
    w.b -= KEEP * BLOCKS;
    full = full + 1 == AHEAD ? 0 : full + 1;
    empty = empty + 1 == AHEAD ? 0 : empty + 1;
  }
  write_sums(g, unit, channel, w.c0, w.s0);
  write_sums(g, unit, channel + 1, w.c1, w.s1);
  if (row.chunk == 0)
    *(Quad*)(g.to.initial + (row.number * D + channel) * 2) = as_quad(w.g0, w.g1);
}
