// What a chunk of a row does to the adjoint, for walk_back.cu (CUDA; see README.md).
//
// A program of one warp takes 64 channels of a chunk and walks its tokens, the last one first. The
// adjoint's map is adjoint -> a adjoint + s: a is the product of conj(lambda). Inputs wait in a ring of
// AHEAD places for groups of 8 tokens, as in walk.cu. Nobody reads the map of a row's first chunk.
//
// Given by the compiler's command line, beside what parts.cuh says: AHEAD.

#include "parts.cuh"
#include "rows.cuh"
#include "board.cuh"
#include "adjoint.cuh"

#define GROUP 8   // tokens
#define LINE 128  // words of a token in shared memory: alpha, omega, dt, dy

struct Source {
  const u16* at[4];
};

DEVICE int spacing_of(const Both& g, int s) { return s < 3 ? g.forward.spacing[s] : g.to.dy_spacing; }

DEVICE void ask_for_group(const Both& g, u32* to, Source& from, int first, Span span) {
#pragma unroll
  for (int s = 0; s < 4; s++) {
    copy_async(to + s * 32, from.at[s], first >= span.start && first < span.stop);
    copy_async(to + s * 32 + 4 * LINE, from.at[s] + 4ll * spacing_of(g, s),
               first >= span.start && first + 4 < span.stop);
    from.at[s] -= (long long)GROUP * spacing_of(g, s);
  }
  end_group();
}

// conj(lambda) times a number.
DEVICE Pair turn_back(Gate k, Pair g) {
  return {fmaf(k.P, g.re, fmaf(-k.Q, g.im, -g.re)), fmaf(k.P, g.im, fmaf(k.Q, g.re, -g.im))};
}

// The map, a token longer.
DEVICE Map precede(Map m, Gate gate, Channel c, float dy, bool held) {
  Pair s = {fmaf(c.c_re, dy, m.s_re), fmaf(c.c_im, dy, m.s_im)};
  if (held) return {m.a_re, m.a_im, s.re, s.im};
  Pair a = turn_back(gate, {m.a_re, m.a_im});
  s = turn_back(gate, s);
  return {a.re, a.im, s.re, s.im};
}

DEVICE void walk(Map& m0, Map& m1, const u32* words, const float* factor, Channel c0, Channel c1,
                 int count) {
#pragma unroll
  for (int u = GROUP - 1; u >= 0; u--) {
    if (u >= count) continue;
    const u32* at = words + u * LINE;
    Quad in = {at[0], at[32], at[64], 0};
    u32 dy = at[96];
    float f = FACTOR ? factor[u] : 1.0f;
    bool held = FACTOR && f == 0.0f;
    m0 = precede(m0, gate_of(first_of(in, f), c0), c0, low(dy), held);
    m1 = precede(m1, gate_of(second_of(in, f), c1), c1, high(dy), held);
  }
}

KERNEL(32, 8) back_maps_kernel(CONSTANT Both g) {
  u32* ring = (u32*)memory;                              // [AHEAD, GROUP, LINE]
  float* factor = (float*)(ring + AHEAD * GROUP * LINE);  // [NARROW]
  int lane = threadIdx.x, block = blockIdx.x % BLOCKS, unit = blockIdx.x / BLOCKS;
  int channel = block * 64 + 2 * lane;
  Row row = find(g.forward, unit);
  if (row.chunk == 0 || row.chunk >= row.chunks) return;
  Span span = span_of(g, row);
  bool any = span.stop > span.start;
  int top = any ? span.start + (span.stop - span.start - 1) / GROUP * GROUP : span.start;
  int own = lane / 8, column = block * 64 + lane % 8 * 8;
  Source from;
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const u16* stream = s < 3 ? g.forward.streams[s] : g.to.dy;
    from.at[s] = stream + (row.first_token + top + own) * spacing_of(g, s) + column;
  }
  u32* target = ring + own * LINE + lane % 8 * 4;
  Span shifted = {span.start, span.stop - own};
  int asked = any ? top : span.start - GROUP;
#pragma unroll
  for (int k = 0; k < AHEAD - 1; k++, asked -= GROUP)
    ask_for_group(g, target + k * GROUP * LINE, from, asked, shifted);
  Channel c0 = load_channel(g.forward, channel), c1 = load_channel(g.forward, channel + 1);
  Map m0 = {1, 0, 0, 0}, m1 = {1, 0, 0, 0};
  int full = 0, empty = AHEAD - 1;
  for (int t = any ? top : span.start - GROUP; t >= span.start; t -= GROUP, asked -= GROUP) {
    wait_for_group<AHEAD - 2>();
    __syncwarp();
    if (FACTOR && (t == top || t % NARROW == NARROW - GROUP)) {
      int token = t / NARROW * NARROW + lane;
      if (token < span.stop) factor[lane] = g.forward.factor[row.first_token + token];
      __syncwarp();
    }
    ask_for_group(g, target + empty * GROUP * LINE, from, asked, shifted);
    const u32* words = ring + full * GROUP * LINE + lane;
    if (t + GROUP <= span.stop)
      walk(m0, m1, words, factor + t % NARROW, c0, c1, GROUP);
    else
      walk(m0, m1, words, factor + t % NARROW, c0, c1, span.stop - t);
    full = full + 1 == AHEAD ? 0 : full + 1;
    empty = empty + 1 == AHEAD ? 0 : empty + 1;
  }
  Quad* to = g.to.maps + (long long)unit * D + channel;
  to[0] = as_quad(m0);
  to[1] = as_quad(m1);
}
